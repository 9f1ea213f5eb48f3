"""HTTP/1.1 as a test upstream needs it: one connection at a time, every byte under the test's control.

A server library would frame, buffer and finish answers properly, and answers that are not proper are
what these tests are about.
"""

import asyncio
import json
import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

HEAD_BYTES_MAX = 1 << 16
BODY_BYTES_MAX = 1 << 26
GATE_S_MAX = 30.0


class ClientLeft(Exception):
    """The client closed the connection before its answer was complete."""


class Recorded:
    """A request that arrived and what became of its answer. Tests read it from any thread."""

    def __init__(self, method: str, path: str, headers: dict[str, str], content: bytes) -> None:
        self.method = method
        self.path = path
        self.headers = headers
        self.content = content
        self.events_written = 0
        self.bytes_written = 0
        self._closed = threading.Event()
        self._finished = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._gate = asyncio.Event()
        self._left = asyncio.Event()

    @property
    def body(self) -> Any:
        """The body as JSON, or None."""
        try:
            return json.loads(self.content)
        except ValueError:
            return None

    @property
    def model(self) -> str:
        """The model asked for, which chooses the dialect."""
        return str(self.body.get("model", "")) if isinstance(self.body, dict) else ""

    @property
    def closed(self) -> bool:
        """Whether the client closed the connection before the answer was complete."""
        return self._closed.is_set()

    @property
    def finished(self) -> bool:
        """Whether the dialect wrote all that it wanted to write."""
        return self._finished.is_set()

    def wait_closed(self, timeout_s: float = 10) -> bool:
        """Wait until the client has closed the connection before the answer was complete."""
        return self._closed.wait(timeout_s)

    def wait_finished(self, timeout_s: float = 10) -> bool:
        """Wait until the dialect has written all that it wanted to write."""
        return self._finished.wait(timeout_s)

    def release(self) -> None:
        """Let a dialect that waits for its test (`slow_head`, `gated`) go on."""
        self._loop.call_soon_threadsafe(self._gate.set)

    async def gate(self) -> None:
        """The server's side of `release`; a test that forgets it costs `GATE_S_MAX`."""
        await self._until(self._gate)

    async def left(self) -> None:
        """The server's side: wait for the client to leave, which raises; one that stays costs `GATE_S_MAX`."""
        await self._until(self._left)

    async def _until(self, event: asyncio.Event) -> None:
        waits = {asyncio.ensure_future(one.wait()) for one in {event, self._left}}
        try:
            await asyncio.wait(waits, timeout=GATE_S_MAX, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if self._left.is_set():
            raise ClientLeft

    def client_left(self) -> None:
        """The connection is gone; only the first word on how the answer ended counts."""
        if not self.finished:
            self._closed.set()
        self._left.set()

    def answered(self) -> None:
        """The dialect is done."""
        if not self.closed:
            self._finished.set()


class Watched(asyncio.StreamReaderProtocol):
    """Tells at once that the client closed its side, also while nothing is read."""

    def __init__(self, reader: asyncio.StreamReader, left: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(reader, loop=loop)
        self._tell = left

    def eof_received(self) -> bool:
        self._tell()
        super().eof_received()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self._tell()
        super().connection_lost(exc)


class Reply:
    """The answer to one request, written as the dialect wishes."""

    def __init__(self, writer: asyncio.StreamWriter, recorded: Recorded) -> None:
        self.recorded = recorded
        self._writer = writer
        self.keep_alive = True

    async def json(self, body: Any, *, status: int = 200, headers: tuple[tuple[str, str], ...] = ()) -> None:
        """A whole answer in JSON."""
        await self.whole(json.dumps(body).encode(), "application/json", status=status, headers=headers)

    async def whole(
        self, content: bytes, content_type: str, *, status: int = 200, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """A whole answer with its length."""
        lines = (*headers, ("Content-Type", content_type), ("Content-Length", str(len(content))))
        await self.raw(_head(status, lines) + content)

    async def begin(self, content_type: str = "text/event-stream", headers: tuple[tuple[str, str], ...] = ()) -> None:
        """The head of an answer in HTTP chunks."""
        await self.raw(_head(200, (*headers, ("Content-Type", content_type), ("Transfer-Encoding", "chunked"))))

    async def write(self, data: bytes, *, events: int = 0) -> None:
        """One HTTP chunk, in a write of its own."""
        await self.raw(b"%x\r\n%s\r\n" % (len(data), data))
        self.recorded.events_written += events

    async def end(self, last: bytes = b"") -> None:
        """The proper end of an answer in HTTP chunks, in one write with its ``last`` data.

        A client that leaves when it has seen that data did not leave early.
        """
        await self.raw((b"%x\r\n%s\r\n" % (len(last), last) if last else b"") + b"0\r\n\r\n")
        self.recorded.answered()

    async def raw(self, data: bytes) -> None:
        """Bytes as they are, after the client has made room for them."""
        if self.recorded.closed or self._writer.is_closing():
            raise ClientLeft
        self._writer.write(data)
        try:
            await self._writer.drain()
        except ConnectionError as error:
            raise ClientLeft from error
        self.recorded.bytes_written += len(data)

    def hang_up(self, *, reset: bool = False) -> None:
        """Close the connection as it stands: after what was written, or (``reset``) with a TCP reset."""
        self.keep_alive = False
        self.recorded.answered()
        if reset:
            linger = struct.pack("ii", 1, 0)
            self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._writer.transport.abort()
        else:
            self._writer.close()


async def read_request(reader: asyncio.StreamReader) -> Recorded | None:
    """The next request of a connection; none when the client is done with it."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        method, path, _ = first.split(" ")
        if headers.get("transfer-encoding") == "chunked":
            content = await _chunked(reader)
        else:
            content = await reader.readexactly(min(int(headers.get("content-length", 0)), BODY_BYTES_MAX))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return Recorded(method, path, headers, content)


async def _chunked(reader: asyncio.StreamReader) -> bytes:
    content = b""
    while len(content) < BODY_BYTES_MAX:
        size = int(await reader.readline(), 16)
        part = (await reader.readexactly(size + 2))[:size]
        if not size:
            break
        content += part
    return content


def _head(status: int, headers: tuple[tuple[str, str], ...]) -> bytes:
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers)
    return f"HTTP/1.1 {status} Said\r\n{lines}\r\n".encode("latin-1")
