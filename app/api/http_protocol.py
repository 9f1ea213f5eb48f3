"""uvicorn's httptools protocol with bounds that it lacks, measured to be needed.

Request heads are bounded in bytes and time (the server accepts a 300 MiB header otherwise), and so is
what still comes of a body that was refused unread. A second, pipelined request would hide the first
client's disconnect, and a hidden disconnect costs money: nobody pipelines POSTs, so the connection ends.
"""

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from app.api.problems import problem
from app.errors import InvalidRequest

HEAD_BYTES_MAX_DEFAULT = 65_536
HEAD_TIMEOUT_S_DEFAULT = 5.0
WRITE_TIMEOUT_S_DEFAULT = 30.0
HEAD_END = b"\r\n\r\n"
# An offer of HTTP/2 (Java's client makes it with every first request) makes the parser drop the body. An
# offer may be ignored (RFC 9110, section 7.8), so the parser is shown a name that means nothing.
_UPGRADE = re.compile(rb"(?i)(?<=\n)upgrade(?=[ \t]*:)")
_IGNORED = b"x-offer"


class BoundedProtocol(HttpToolsProtocol):
    """One client connection."""

    head_bytes_max = HEAD_BYTES_MAX_DEFAULT
    head_timeout_s = HEAD_TIMEOUT_S_DEFAULT
    write_timeout_s = WRITE_TIMEOUT_S_DEFAULT
    _in_head = False
    _head_bytes = 0
    _head_tail = b""
    # Runs while a head, or a body that nobody reads, is under way.
    _timer: asyncio.TimerHandle | None = None
    # Runs while the client does not take what was written.
    _write_timer: asyncio.TimerHandle | None = None
    _unread = 0

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # A connection that never sends a request is as slow as one that drips it.
        self._arm()

    def data_received(self, data: bytes) -> None:
        # What follows a whole request is the head of the next.
        if self._in_head or self.cycle is None or not self.cycle.more_body:
            self._head_bytes += len(data)
            if self._head_bytes > self.head_bytes_max and self._head_is_too_large(data):
                self.send_400_response("Request head too large")
                return
            self._head_tail = data[1 - len(HEAD_END) :]
            data = _without_upgrade(data)
        super().data_received(data)
        if self._timer is None and self.cycle is not None and self.cycle.response_complete:
            self._idle()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        if self._timer is None:
            self._arm()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._disarm()
        running = self.cycle
        super().on_headers_complete()
        if self.pipeline:
            # The request that runs is told at once: the connection may have more to write than is ever read.
            running.disconnected = True
            running.message_event.set()
            self.cycle = running
            self.transport.abort()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self.cycle.response_complete:
            # It was refused before its body was read: this was the rest of it.
            self.cycle.more_body = False
            self._disarm()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body and not self.transport.is_closing():
            # The rest of the body is read and dropped, so that the client sees the answer, but not for ever.
            self._unset_keepalive_if_required()
            self._arm()

    def send_400_response(self, msg: str) -> None:
        """The refusal of what is no HTTP, unless it would land in the middle of an answer."""
        if self.cycle is not None and self.cycle.response_started and not self.cycle.response_complete:
            self.transport.abort()
            return
        _, headers, body = problem(InvalidRequest(msg, code="invalid_http"))
        lines = [b"%s: %s\r\n" % header for header in (*headers, (b"connection", b"close"))]
        self.transport.write(b"".join((b"HTTP/1.1 400 Bad Request\r\n", *lines, b"\r\n", body)))
        self.transport.close()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
        super().connection_lost(exc)

    def _head_is_too_large(self, data: bytes) -> bool:
        """Whether the bytes past the bound are the head's: a body may arrive in the same segment."""
        end = (self._head_tail + data).find(HEAD_END)
        before = self._head_bytes - len(data) - len(self._head_tail)
        return end < 0 or before + end + len(HEAD_END) > self.head_bytes_max

    def _idle(self) -> None:
        """Bytes came and no request began: uvicorn has forgotten its keep-alive timer, and would wait for ever."""
        if self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self.head_timeout_s, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _await_reading(self) -> None:
        self._unread = self.transport.get_write_buffer_size()
        self._write_timer = self.loop.call_later(self.write_timeout_s, self._not_read)

    def _not_read(self) -> None:
        """A client that takes nothing is dropped: closing would wait for it to read, for ever."""
        self._write_timer = None
        if self.transport.get_write_buffer_size() < self._unread:
            self._await_reading()
        else:
            self.transport.abort()

    def _too_slow(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self.transport.abort()


def _without_upgrade(data: bytes) -> bytes:
    end = data.find(HEAD_END)
    end = len(data) if end < 0 else end
    if _UPGRADE.search(data, 0, end) is None:
        return data
    return _UPGRADE.sub(_IGNORED, data[:end]) + data[end:]


def bounded_protocol(
    *, head_bytes_max: int, head_timeout_s: float, write_timeout_s: float = WRITE_TIMEOUT_S_DEFAULT
) -> type[BoundedProtocol]:
    """The protocol class with the settings' bounds."""
    bounds = {"head_bytes_max": head_bytes_max, "head_timeout_s": head_timeout_s, "write_timeout_s": write_timeout_s}
    return type("ConfiguredProtocol", (BoundedProtocol,), bounds)
