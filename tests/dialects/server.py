"""A real HTTP server that answers ``POST /v1/chat/completions``, and the other endpoints, as upstreams in the wild do.

The model in the body chooses the dialect; some take a parameter after a colon::

    ok azure vllm gemini mistral deepseek none zero        whole dialects (texts and usage: `answers`)
    strict  strict_limit  strict_limit_old                 refuse stream_options, max_tokens, max_completion_tokens
    error200  error_late                                   an error as an event: the first, or after content
    cut  cut_clean  no_done  midline                       ends: connection closed, body ended without a finish,
                                                           no [DONE], in mid-line and then open until the client leaves
    crlf  cr  bytewise  big  huge_event  flood[:N]         framing: line ends, one byte a write, 1 MiB, no end, N chunks
    slow_head[:MS]  gated                                  wait for `Recorded.release` (or MS) before the head; after
                                                           three chunks
    status:N  redirect  cookie  notjson  huge_body         answers that are no stream
    deep                                                   JSON that is nested absurdly deep
    reset  hangup                                          the connection is reset, or closed, without an answer
    openrouter llama ... (`tests.dialects.endpoints`)      what some of them say differently

Those of the other endpoints stand in `tests.dialects.endpoints`; failures that are no endpoint's own are spoken on all.

Run it by hand: ``python -m tests.dialects.server [PORT]``.
"""

import asyncio
import json
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import Self

from tests.dialects import answers, endpoints
from tests.dialects.answers import event
from tests.dialects.endpoints import DONE, Dialect
from tests.dialects.wire import HEAD_BYTES_MAX, ClientLeft, Recorded, Reply, Watched, read_request

PATH = "/v1/chat/completions"
START_S_MAX = 10.0
GATED_AFTER = 3
# Far past where parsers recurse too deep.
DEEP_LEVELS = 100_000
BLOCK_BYTES = 1 << 16
FLOOD_BLOCK_EVENTS = 100
ODD_HEADERS = (
    ("Set-Cookie", "session=upstream; Domain=localhost; Path=/"),
    ("Set-Cookie", "second=1"),
    ("X-Odd", "caf\u00e9"),
    ("X-Farebox-Account", "forged"),
    ("Payment-Receipt", "forged"),
    ("WWW-Authenticate", "Payment forged"),
    ("Cache-Control", "public, max-age=31536000"),
)


class DialectServer:
    """The server, in a thread and an event loop of its own; ``requests`` are in the order of arrival."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0) -> None:
        self.requests: list[Recorded] = []
        self.port = port
        self._host = host
        self._arrived = threading.Condition()
        self._ready = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="dialects", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._connections: set[_Connection] = set()

    @property
    def base_url(self) -> str:
        """What a provider's ``base_url`` is set to."""
        return f"http://{self._host}:{self.port}/v1"

    @property
    def last(self) -> Recorded:
        """The newest request."""
        return self.requests[-1]

    def start(self) -> Self:
        """Listen, and return when connections are accepted."""
        self._thread.start()
        if not self._ready.wait(START_S_MAX):
            raise TimeoutError("the dialect server did not start")
        if self._error is not None:
            raise self._error
        return self

    def stop(self) -> None:
        """Close everything and join the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(START_S_MAX)

    def clear(self) -> None:
        """Forget the requests so far."""
        with self._arrived:
            self.requests.clear()

    def wait_for_requests(self, count: int, timeout_s: float = 10) -> bool:
        """Wait until so many requests have arrived."""
        with self._arrived:
            return self._arrived.wait_for(lambda: len(self.requests) >= count, timeout_s)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        try:
            server = await self._loop.create_server(self._connect, self._host, self.port)
        except OSError as error:
            self._error = error
            self._ready.set()
            return
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        async with asyncio.timeout(START_S_MAX):
            await asyncio.gather(*(connection.abort() for connection in tuple(self._connections)))

    def _connect(self) -> asyncio.BaseProtocol:
        return _Connection(self._handle, self._connections)

    async def _handle(self, connection: "_Connection", writer: asyncio.StreamWriter) -> None:
        try:
            while (recorded := await read_request(connection.reader)) is not None:
                connection.current = recorded
                with self._arrived:
                    self.requests.append(recorded)
                    self._arrived.notify_all()
                reply = Reply(writer, recorded)
                try:
                    await _answer(reply)
                except ClientLeft:
                    recorded.client_left()
                    return
                recorded.answered()
                if not reply.keep_alive:
                    return
        finally:
            writer.transport.abort() if connection.gone else writer.close()


class _Connection(Watched):
    """A client's connection; in ``connections`` from its first moment to its last."""

    def __init__(
        self,
        handle: Callable[["_Connection", asyncio.StreamWriter], Awaitable[None]],
        connections: "set[_Connection]",
    ) -> None:
        loop = asyncio.get_running_loop()
        self.reader = asyncio.StreamReader(limit=HEAD_BYTES_MAX, loop=loop)
        self.current: Recorded | None = None
        self.gone = False
        super().__init__(self.reader, self._client_left, loop)
        self._handle, self._connections = handle, connections
        self._writer: asyncio.StreamWriter
        self._handling: asyncio.Future[None]
        self._lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.WriteTransport)
        self._writer = asyncio.StreamWriter(transport, self, self.reader, asyncio.get_running_loop())
        self._connections.add(self)
        self._handling = asyncio.ensure_future(self._handle(self, self._writer))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._connections.discard(self)
        self._lost.set()

    async def abort(self) -> None:
        """Close it with whatever was not sent yet."""
        self._handling.cancel()
        self._writer.transport.abort()
        await self._lost.wait()

    def _client_left(self) -> None:
        self.gone = True
        if self.current is not None:
            self.current.client_left()


async def _answer(reply: Reply) -> None:
    recorded = reply.recorded
    if recorded.method == "GET" and recorded.path == "/v1/models":
        models = [{"id": name, "object": "model", "owned_by": "dialects"} for name in sorted(DIALECTS)]
        return await reply.json({"object": "list", "data": models})
    model = endpoints.model_of(recorded)
    dialect, _, parameter = model.partition(":")
    spoken = {PATH: DIALECTS, "/v1/elsewhere": DIALECTS, **endpoints.ENDPOINTS}.get(recorded.path, {})
    if recorded.method != "POST" or not (dialect in spoken or (spoken and dialect in FAILURES)):
        error = {"message": f"Nothing is called {model!r} here", "type": "invalid_request_error"}
        return await reply.json({"error": error | {"param": "model", "code": "model_not_found"}}, status=404)
    stream = isinstance(recorded.body, dict) and recorded.body.get("stream") is True
    await (spoken.get(dialect) or FAILURES[dialect])(reply, parameter, stream)


def _chunks(reply: Reply, dialect: str) -> list[bytes]:
    options = reply.recorded.body.get("stream_options") or {}
    wants_usage = options.get("include_usage") is True
    return [event(body) for body in answers.stream(dialect, wants_usage=wants_usage)]


async def _ordinary(reply: Reply, dialect: str, stream: bool, *, done: bytes = DONE) -> None:
    if not stream:
        return await reply.json(answers.completion(dialect))
    await reply.begin()
    for data in _chunks(reply, dialect):
        await reply.write(data, events=1)
    await reply.end(done)


def _plain(dialect: str) -> Dialect:
    return lambda reply, parameter, stream: _ordinary(reply, dialect, stream)


def _refusing(dialect: str, parameter: str) -> Dialect:
    async def answer(reply: Reply, _: str, stream: bool) -> None:
        if parameter in reply.recorded.body:
            return await reply.json({"error": answers.REFUSALS[parameter]}, status=400)
        await _ordinary(reply, dialect, stream)

    return answer


def _failing(content: int) -> Dialect:
    """An error in a 200, after ``content`` chunks."""

    async def answer(reply: Reply, _: str, stream: bool) -> None:
        if not stream:
            return await reply.json(answers.ERROR)
        await reply.begin()
        for data in _chunks(reply, "ok")[:content]:
            await reply.write(data, events=1)
        await reply.write(event(answers.ERROR))
        await reply.end()

    return answer


async def _no_done(reply: Reply, _: str, stream: bool) -> None:
    await _ordinary(reply, "no_done", stream, done=b"")


async def _cut(reply: Reply, _: str, stream: bool) -> None:
    if stream:
        await reply.begin()
        for data in _chunks(reply, "ok")[: len(answers.CONTENT)]:
            await reply.write(data, events=1)
    else:
        await reply.begin("application/json")
        await reply.write(b'{"choices":[{"message":{"content":"Hel')
    reply.hang_up()


async def _cut_clean(reply: Reply, _: str, stream: bool) -> None:
    if not stream:
        return await reply.whole(b'{"choices":[{"message":{"content":"Hel', "application/json")
    await reply.begin()
    for data in _chunks(reply, "ok")[: len(answers.CONTENT)]:
        await reply.write(data, events=1)
    await reply.end()


async def _midline(reply: Reply, _: str, stream: bool) -> None:
    await reply.begin("text/event-stream" if stream else "application/json")
    if stream:
        await reply.write(_chunks(reply, "ok")[0], events=1)
        await reply.write(b'data: {"id":"chatcmpl-')
    else:
        await reply.write(b'{"id":"chatcmpl-')
    await reply.recorded.left()
    reply.hang_up()


def _odd_lines(dialect: str, end: bytes) -> Dialect:
    async def answer(reply: Reply, _: str, stream: bool) -> None:
        if not stream:
            return await _ordinary(reply, dialect, stream)
        await reply.begin("text/event-stream; charset=utf-8")
        await reply.write(b"retry: 5" + end + b"id: 1" + end + end)
        for number, body in enumerate(answers.stream(dialect, wants_usage=True)):
            await reply.write(answers.odd_event(body, end), events=1)
            if number == 1:
                forged = f"event: {answers.FORGED_EVENT}", f"data: {answers.FORGED_DATA}", "", ""
                await reply.write(end.join(line.encode() for line in forged))
        await reply.end(b"data:[DONE]" + end + end)

    return answer


async def _bytewise(reply: Reply, _: str, stream: bool) -> None:
    content = b"".join([*_chunks(reply, "bytewise"), DONE])
    content = content if stream else json.dumps(answers.completion("bytewise")).encode()
    await reply.begin("text/event-stream" if stream else "application/json")
    for position in range(len(content)):
        await reply.write(content[position : position + 1])
        await asyncio.sleep(0)
    await reply.end()


async def _endless(reply: Reply, head: bytes, size: int, content_type: str) -> None:
    await reply.begin(content_type)
    await reply.write(head)
    for _ in range(size // BLOCK_BYTES):
        await reply.write(b"x" * BLOCK_BYTES)
    await reply.end()


async def _huge_event(reply: Reply, _: str, stream: bool) -> None:
    content_type = "text/event-stream" if stream else "application/json"
    await _endless(reply, b'data: {"choices":[{"delta":{"content":"', answers.HUGE_EVENT_BYTES_MAX, content_type)


async def _huge_body(reply: Reply, _: str, stream: bool) -> None:
    head = b'{"choices":[{"index":0,"message":{"role":"assistant","content":"'
    await _endless(reply, head, answers.HUGE_BODY_BYTES_MAX, "application/json")


async def _flood(reply: Reply, parameter: str, stream: bool) -> None:
    if not stream:
        return await _ordinary(reply, "ok", stream)
    wanted = min(int(parameter or answers.FLOOD_EVENTS_MAX), answers.FLOOD_EVENTS_MAX)
    one = event(answers.chunk({"content": answers.FLOOD_PIECE}, model="flood"))
    await reply.begin()
    for start in range(0, wanted, FLOOD_BLOCK_EVENTS):
        count = min(FLOOD_BLOCK_EVENTS, wanted - start)
        await reply.write(one * count, events=count)
        await asyncio.sleep(0)
    usage = answers.usage_of(answers.Known(prompt=11, completion=wanted, total=11 + wanted), "flood")
    await reply.write(event(answers.chunk({}, model="flood", finish="stop")))
    await reply.end(event(answers.chunk(None, model="flood", usage=usage)) + DONE)


async def _slow_head(reply: Reply, parameter: str, stream: bool) -> None:
    if parameter:
        await asyncio.sleep(int(parameter) / 1000)
    else:
        await reply.recorded.gate()
    await _ordinary(reply, "ok", stream)


async def _gated(reply: Reply, _: str, stream: bool) -> None:
    if not stream:
        await reply.recorded.gate()
        return await _ordinary(reply, "ok", stream)
    chunks = _chunks(reply, "ok")
    await reply.begin()
    for data in chunks[:GATED_AFTER]:
        await reply.write(data, events=1)
    await reply.recorded.gate()
    for data in chunks[GATED_AFTER:]:
        await reply.write(data, events=1)
    await reply.end(DONE)


async def _status(reply: Reply, parameter: str, stream: bool) -> None:
    status = int(parameter or 500)
    message = answers.STATUS_MESSAGES.get(status, answers.ERROR_MESSAGE)
    headers = (("Retry-After", str(answers.RETRY_AFTER_S)),) if status == 429 else ()
    await reply.json({"error": {"message": message, "type": "error", "code": None}}, status=status, headers=headers)


async def _redirect(reply: Reply, _: str, stream: bool) -> None:
    await reply.whole(b"", "text/plain", status=302, headers=(("Location", "/v1/elsewhere"),))


async def _cookie(reply: Reply, _: str, stream: bool) -> None:
    if not stream:
        return await reply.json(answers.completion("ok"), headers=ODD_HEADERS)
    await reply.begin(headers=ODD_HEADERS)
    for data in _chunks(reply, "ok"):
        await reply.write(data, events=1)
    await reply.end(DONE)


async def _notjson(reply: Reply, _: str, stream: bool) -> None:
    await reply.whole(b"<!doctype html><title>502</title><h1>Bad gateway at 10.1.2.3</h1>", "text/html")


async def _deep(reply: Reply, _: str, stream: bool) -> None:
    nested = b"[" * DEEP_LEVELS + b"]" * DEEP_LEVELS
    content = b'{"choices": [], "extra": ' + nested + b"}"
    if not stream:
        await reply.whole(content, "application/json")
        return
    await reply.begin()
    await reply.write(b"data: " + content + b"\n\n")


async def _reset(reply: Reply, _: str, stream: bool) -> None:
    reply.hang_up(reset=True)


async def _hangup(reply: Reply, _: str, stream: bool) -> None:
    reply.hang_up()


# These are no endpoint's own.
FAILURES: Mapping[str, Dialect] = {
    "status": _status,
    "redirect": _redirect,
    "notjson": _notjson,
    "deep": _deep,
    "huge_body": _huge_body,
    "slow_head": _slow_head,
    "reset": _reset,
    "hangup": _hangup,
}
DIALECTS: Mapping[str, Dialect] = {
    **FAILURES,
    **endpoints.CHAT,
    **{name: _plain(name) for name in ("ok", "azure", "vllm", "gemini", "mistral", "deepseek", "none", "zero", "big")},
    "strict": _refusing("strict", "stream_options"),
    "strict_limit": _refusing("strict_limit", "max_tokens"),
    "strict_limit_old": _refusing("strict_limit_old", "max_completion_tokens"),
    "error200": _failing(0),
    "error_late": _failing(GATED_AFTER),
    "cut": _cut,
    "cut_clean": _cut_clean,
    "no_done": _no_done,
    "midline": _midline,
    "crlf": _odd_lines("crlf", b"\r\n"),
    "cr": _odd_lines("cr", b"\r"),
    "bytewise": _bytewise,
    "huge_event": _huge_event,
    "flood": _flood,
    "gated": _gated,
    "cookie": _cookie,
}


def main() -> None:
    """Serve until interrupted."""
    with DialectServer(port=int(sys.argv[1]) if len(sys.argv) > 1 else 0) as server:
        print(f"dialects at {server.base_url}: {' '.join(sorted(DIALECTS))}")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            print("stopped")


if __name__ == "__main__":
    main()
