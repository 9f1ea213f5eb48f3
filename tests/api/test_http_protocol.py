"""The bounds of one connection, fed segment by segment; `tests/cases/test_edge_bodies.py` has them over TCP."""

import asyncio
from typing import Any, cast

import pytest
from starlette.types import Message, Receive, Scope, Send
from uvicorn import Config
from uvicorn.server import ServerState

from app.api.http_protocol import BoundedProtocol, bounded_protocol

HEAD_BYTES_MAX = 200
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LATER_S = 3600.0
WAIT_S_MAX = 10.0


class Wire(asyncio.Transport):
    """The server's side of a connection that goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.ended = False
        self.closed = asyncio.Event()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def close(self) -> None:
        self.ended = True
        self.closed.set()

    abort = close

    def is_closing(self) -> bool:
        return self.ended

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass


class Served:
    """An application that answers when it is told to."""

    def __init__(self) -> None:
        self.scopes: list[Scope] = []
        self.bodies: list[bytes] = []
        self.received = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        message: Message = await receive()
        self.bodies.append(message.get("body", b""))
        self.received.set()
        gone = asyncio.ensure_future(receive())
        ready = asyncio.ensure_future(self.may_answer.wait())
        await asyncio.wait((gone, ready), return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and gone.result()["type"] == "http.disconnect":
            self.left.set()
        gone.cancel()
        ready.cancel()
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})


def connected(app: Served, *, head_timeout_s: float = LATER_S) -> tuple[BoundedProtocol, Wire]:
    kind = bounded_protocol(head_bytes_max=HEAD_BYTES_MAX, head_timeout_s=head_timeout_s)
    config = Config(cast(Any, app), log_config=None, ws="none", lifespan="off")
    protocol, wire = kind(config, ServerState(), {}), Wire()
    protocol.connection_made(wire)
    return protocol, wire


async def soon(event: asyncio.Event) -> None:
    """Wait for what is about to happen; fails if it does not."""
    async with asyncio.timeout(WAIT_S_MAX):
        await event.wait()


async def end(protocol: BoundedProtocol) -> None:
    """Close the connection and let the application see it."""
    protocol.connection_lost(None)
    while protocol.tasks:
        await asyncio.wait(protocol.tasks)


async def test_settings_are_the_bounds() -> None:
    kind = bounded_protocol(head_bytes_max=7, head_timeout_s=0.5)
    assert issubclass(kind, BoundedProtocol)
    assert (kind.head_bytes_max, kind.head_timeout_s) == (7, 0.5)


@pytest.mark.parametrize("size", [1, 7, 64, HEAD_BYTES_MAX])
async def test_head_at_the_bound_is_taken_in_any_segments(size: int) -> None:
    app = Served()
    protocol, wire = connected(app)
    head = b"GET / HTTP/1.1\r\nX: " + b"x" * (HEAD_BYTES_MAX - 23) + b"\r\n\r\n"
    assert len(head) == HEAD_BYTES_MAX
    for start in range(0, len(head), size):
        protocol.data_received(head[start : start + size])
    assert not wire.ended
    await end(protocol)
    assert len(app.scopes) == 1


@pytest.mark.parametrize("size", [1, 7, 64, HEAD_BYTES_MAX + 1])
async def test_head_past_the_bound_is_refused_in_any_segments(size: int) -> None:
    app = Served()
    protocol, wire = connected(app)
    head = b"GET / HTTP/1.1\r\nX: " + b"x" * (HEAD_BYTES_MAX - 22) + b"\r\n\r\n"
    for start in range(0, len(head), size):
        if not wire.ended:
            protocol.data_received(head[start : start + size])
    assert wire.ended
    assert wire.written.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert wire.written.count(b"HTTP/1.1") == 1
    await end(protocol)
    assert not app.scopes


@pytest.mark.parametrize("split", range(5))
async def test_body_does_not_count_wherever_its_head_is_split(split: int) -> None:
    app = Served()
    protocol, wire = connected(app)
    body = b"x" * (2 * HEAD_BYTES_MAX)
    request = b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    start = len(request) - len(body) - split
    protocol.data_received(request[:start])
    protocol.data_received(request[start:])
    assert not wire.ended
    await soon(app.received)
    await end(protocol)
    assert app.bodies == [body]


@pytest.mark.parametrize("name", [b"Upgrade", b"upgrade", b"UPGRADE"])
async def test_offer_of_another_protocol_does_not_cost_the_body(name: bytes) -> None:
    app = Served()
    protocol, _ = connected(app)
    body = b"{\r\nupgrade: h2c\r\n\r\n}"
    lines = b"Connection: Upgrade\r\n" + name + b": h2c\r\nContent-Length: %d\r\n\r\n" % len(body)
    protocol.data_received(b"POST / HTTP/1.1\r\n" + lines + body)
    await soon(app.received)
    await end(protocol)
    assert app.bodies == [body]


async def test_second_request_tells_the_first_that_its_client_is_gone() -> None:
    app = Served()
    protocol, wire = connected(app)
    protocol.data_received(GET)
    await soon(app.received)
    protocol.data_received(GET)
    assert wire.ended
    await soon(app.left)
    await end(protocol)
    assert len(app.scopes) == 1
    assert wire.written == b""


async def test_nonsense_in_mid_answer_ends_the_connection_without_a_word() -> None:
    app = Served()
    protocol, wire = connected(app)
    protocol.data_received(GET)
    await soon(app.received)
    protocol.cycle.response_started = True
    protocol.data_received(b"\0\0\0\r\n\r\n")
    assert (wire.ended, wire.written) == (True, b"")
    await end(protocol)


@pytest.mark.parametrize("began", [b"", b"GET / HT", GET[:-2]])
async def test_head_that_does_not_come_ends_the_connection(began: bytes) -> None:
    protocol, wire = connected(Served(), head_timeout_s=0)
    if began:
        protocol.data_received(began)
    await soon(wire.closed)
    assert wire.written == b""
    await end(protocol)


async def test_every_connection_at_rest_has_an_end() -> None:
    """uvicorn forgets its keep-alive timer with the first byte that is no request."""
    app = Served()
    app.may_answer.set()
    protocol, _ = connected(app)
    protocol.data_received(GET)
    await asyncio.wait(protocol.tasks)
    assert protocol.timeout_keep_alive_task is not None
    protocol.data_received(b"\r\n")
    assert protocol.timeout_keep_alive_task is not None
    await end(protocol)
