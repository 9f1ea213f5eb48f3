"""uvicorn's httptools protocol with bounds that it lacks, measured to be needed.

Request heads are bounded in bytes and time (the server accepts a 300 MiB header otherwise). A second,
pipelined request would hide the first client's disconnect, and a hidden disconnect costs money: nobody
pipelines POSTs, so the connection is closed.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX_DEFAULT = 65_536
HEAD_TIMEOUT_S_DEFAULT = 5.0


class BoundedProtocol(HttpToolsProtocol):
    """One client connection."""

    head_bytes_max = HEAD_BYTES_MAX_DEFAULT
    head_timeout_s = HEAD_TIMEOUT_S_DEFAULT
    _in_head = False
    _head_bytes = 0
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # A connection that never sends a request is as slow as one that drips it.
        self._arm()

    def data_received(self, data: bytes) -> None:
        if self._in_head or self._head_timer is not None:
            self._head_bytes += len(data)
            if self._head_bytes > self.head_bytes_max and self._head_is_too_large(data):
                self.send_400_response("Request head too large")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        if self._head_timer is None:
            self._head_bytes = 0
            self._arm()

    def on_headers_complete(self) -> None:
        self._in_head = False
        self._head_bytes = 0
        self._disarm()
        super().on_headers_complete()
        if self.pipeline:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def _head_is_too_large(self, data: bytes) -> bool:
        """Whether the bytes past the bound are the head's: a body may arrive in the same segment."""
        end = data.find(b"\r\n\r\n")
        return end < 0 or self._head_bytes - len(data) + end > self.head_bytes_max

    def _arm(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self._too_slow)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if not self.transport.is_closing():
            self.transport.abort()


def bounded_protocol(*, head_bytes_max: int, head_timeout_s: float) -> type[BoundedProtocol]:
    """The protocol class with the settings' bounds."""
    bounds = {"head_bytes_max": head_bytes_max, "head_timeout_s": head_timeout_s}
    return type("ConfiguredProtocol", (BoundedProtocol,), bounds)
