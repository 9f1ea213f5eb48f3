"""The provider behind every server under test: `python -m bench.upstream --port P`.

It must never be the bottleneck, so it is a bare asyncio.Protocol on uvloop that answers with precomputed bytes and
parses no more of HTTP than its three clients (wrk, aiohttp, httpx) use: Content-Length bodies on kept-alive
connections. What it says is what OpenAI's API says: JSON completions, SSE chunks, a finish chunk, a usage chunk.
"""

import argparse
import asyncio
import gc
import re
import signal
from typing import cast

import orjson
import uvloop

from bench.wire import MODEL, PACE_INTERVAL_S, PACED_MODEL, PROMPT_TOKENS, STAMP_BYTES, STREAM_TOKENS, stamp

REQUEST_BYTES_MAX = 1 << 20
BACKLOG = 2048

_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_STREAMING = re.compile(rb'"stream":\s*true')
_PACED = re.compile(b'"model":\\s*"' + PACED_MODEL.encode() + b'"')

_WORD = " tok"  # four bytes, the usual rule of thumb for a token
_STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    b"Cache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n"
)
_LAST_CHUNK = b"0\r\n\r\n"


def _plain(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _usage(tokens: int) -> dict[str, int]:
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": tokens, "total_tokens": PROMPT_TOKENS + tokens}


def _event(data: bytes) -> bytes:
    """One SSE event as one HTTP chunk, as providers flush them."""
    event = b"data: " + data + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(event), event)


def _chunk(model: str, choices: list[object], **extra: object) -> bytes:
    return orjson.dumps(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion.chunk",
            "created": 1_700_000_000,
            "model": model,
            "choices": choices,
            **extra,
        }
    )


def _content(model: str, text: str) -> bytes:
    return _event(_chunk(model, [{"index": 0, "delta": {"content": text}, "finish_reason": None}]))


def _ending(model: str, tokens: int) -> list[bytes]:
    return [
        _event(_chunk(model, [{"index": 0, "delta": {}, "finish_reason": "stop"}])),
        _event(_chunk(model, [], usage=_usage(tokens))),
        _event(b"[DONE]"),
        _LAST_CHUNK,
    ]


COMPLETION = _plain(
    "200 OK",
    orjson.dumps(
        {
            "id": "chatcmpl-bench",
            "object": "chat.completion",
            "created": 1_700_000_000,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": _WORD * STREAM_TOKENS},
                    "finish_reason": "stop",
                }
            ],
            "usage": _usage(STREAM_TOKENS),
        }
    ),
)
MODELS = _plain("200 OK", b'{"object":"list","data":[]}')
TOO_LARGE = _plain("413 Payload Too Large", b'{"error":{"message":"request too large"}}')
# One write per chunk; uvloop hands the list to a single writev, so the chunks arrive in a burst but separately framed.
STREAM = [_STREAM_HEAD, *(_content(MODEL, _WORD) for _ in range(STREAM_TOKENS)), *_ending(MODEL, STREAM_TOKENS)]
_PACED_HEAD, _PACED_TAIL = _content(PACED_MODEL, "@" * STAMP_BYTES).split(b"@" * STAMP_BYTES)


class Upstream(asyncio.Protocol):
    """One client connection; answers each request completely before it looks at the next."""

    def __init__(self, *, loop: asyncio.AbstractEventLoop, paced_tokens: int) -> None:
        self._loop = loop
        self._paced_tokens = paced_tokens
        self._buffer = b""
        self._timer: asyncio.TimerHandle | None = None
        self._emitted = 0
        self._started_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports share asyncio's methods but not its classes.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        # A paced stream in progress parks what follows it; no client in the benchmark pipelines.
        while self._buffer and self._timer is None and self._answer_one():
            pass
        if len(self._buffer) > REQUEST_BYTES_MAX:
            self._transport.write(TOO_LARGE)
            self._transport.close()

    def _answer_one(self) -> bool:
        """Answers the first request of the buffer; False while it is incomplete."""
        head_end = self._buffer.find(b"\r\n\r\n")
        if head_end < 0:
            return False
        length = _CONTENT_LENGTH.search(self._buffer, 0, head_end)
        end = head_end + 4 + (int(length[1]) if length else 0)
        if len(self._buffer) < end:
            return False
        request, self._buffer = self._buffer[:end], self._buffer[end:]
        if not request.startswith(b"POST "):
            self._transport.write(MODELS)
        elif not _STREAMING.search(request, head_end):
            self._transport.write(COMPLETION)
        elif not _PACED.search(request, head_end):
            self._transport.writelines(STREAM)
        else:
            self._transport.write(_STREAM_HEAD)
            self._emitted = 0
            self._started_s = self._loop.time()
            self._schedule()
        return True

    def _schedule(self) -> None:
        # Absolute times: a late timer must not slow the stream down, or lag would hide itself.
        due_s = self._started_s + (self._emitted + 1) * PACE_INTERVAL_S
        self._timer = self._loop.call_at(due_s, self._emit)

    def _emit(self) -> None:
        self._transport.write(_PACED_HEAD + stamp() + _PACED_TAIL)
        self._emitted += 1
        if self._emitted < self._paced_tokens:
            self._schedule()
            return
        self._timer = None
        self._transport.writelines(_ending(PACED_MODEL, self._emitted))
        if self._buffer:
            self.data_received(b"")


async def serve(*, port: int, paced_tokens: int) -> None:
    """Listens on loopback until SIGTERM."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    server = await loop.create_server(
        lambda: Upstream(loop=loop, paced_tokens=paced_tokens), "127.0.0.1", port, backlog=BACKLOG
    )
    # Nothing here makes cycles per request; a collection would only show up as latency of the server under test.
    gc.freeze()
    gc.disable()
    await stopped.wait()
    server.close()


def main() -> None:
    """The command line of the upstream process."""
    parser = argparse.ArgumentParser(prog="python -m bench.upstream")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--paced-tokens", type=int, default=200, help="length of a paced stream, in tokens")
    arguments = parser.parse_args()
    uvloop.run(serve(port=arguments.port, paced_tokens=arguments.paced_tokens))


if __name__ == "__main__":
    main()
