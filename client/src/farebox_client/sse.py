"""Takes payment events out of an event stream and leaves every other byte as it came. Pure.

Source: the WHATWG's event stream format (lines end in LF, CR LF or CR; a blank line ends an event) and
`draft-tempo-session-00`, "Insufficient Balance During Streaming" and "Receipt Generation".
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Literal

from farebox_client.errors import ServerMisbehaved

NEED_VOUCHER: Final = "payment-need-voucher"
RECEIPT: Final = "payment-receipt"
EVENT_BYTES_MAX = 8 * 2**20
_LF, _CR = 0x0A, 0x0D


@dataclass(frozen=True, slots=True)
class PaymentEvent:
    """An event that is for the wallet and not for its user."""

    name: Literal["payment-need-voucher", "payment-receipt"]
    data: dict[str, Any]


class EventFilter:
    """Cuts a stream of bytes, split anywhere, into whole events.

    Bytes come back in whole events, in order and unchanged; what is left at the end of the stream comes
    back from `finish`. Raises `ServerMisbehaved` for an event that is too large or a payment event without sense.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        # Where the line begins that is being looked at, and how far it was looked at.
        self._line = 0
        self._seen = 0
        # The last event ended in a carriage return, and a line feed may still belong to it: the user's or not.
        self._late: bool | None = None

    def feed(self, data: bytes) -> Iterator[bytes | PaymentEvent]:
        """What ``data`` completes."""
        self._buffer += data
        if self._late is not None and self._buffer:
            if self._buffer[0] == _LF:
                del self._buffer[0]
                if self._late:
                    yield b"\n"
            self._late = None
        while (end := self._event_end()) is not None:
            block = bytes(self._buffer[:end])
            del self._buffer[:end]
            self._line = self._seen = 0
            event = _payment_event(block)
            if not self._buffer and block[-1] == _CR:
                self._late = event is None
            yield event or block
        if len(self._buffer) > EVENT_BYTES_MAX:
            raise ServerMisbehaved(f"the server sent an event of more than {EVENT_BYTES_MAX} bytes")

    def finish(self) -> bytes:
        """What came after the last event: clients are owed it as it stands."""
        rest, self._buffer = bytes(self._buffer), bytearray()
        # An unfinished payment event is cut off, and not the user's.
        return b"" if _payment_name(rest) else rest

    def _event_end(self) -> int | None:
        """Just behind the blank line that ends the first event, once it is there."""
        buffer = self._buffer
        while (at := _line_end(buffer, self._seen)) is not None:
            behind, blank = at + 1, at == self._line
            if buffer[at] == _CR and behind == len(buffer) and not blank:
                # A line feed may still belong to this line end.
                self._seen = at
                return None
            if buffer[at] == _CR and behind < len(buffer):
                behind += buffer[behind] == _LF
            self._line = self._seen = behind
            if blank:
                return behind
        self._seen = len(buffer)
        return None


def _line_end(buffer: bytearray, start: int) -> int | None:
    feed, carriage = buffer.find(b"\n", start), buffer.find(b"\r", start)
    found = [at for at in (feed, carriage) if at >= 0]
    return min(found) if found else None


def _fields(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    for line in block.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n"):
        name, _, value = line.partition(b":")
        yield name, value.removeprefix(b" ")


def _payment_name(block: bytes) -> Literal["payment-need-voucher", "payment-receipt"] | None:
    if b"payment-" not in block:
        return None
    # As the format says, the last `event` field counts.
    names = [value for name, value in _fields(block) if name == b"event"]
    for known in (NEED_VOUCHER, RECEIPT):
        if names and names[-1] == known.encode():
            return known
    return None


def _payment_event(block: bytes) -> PaymentEvent | None:
    name = _payment_name(block)
    if name is None:
        return None
    try:
        data = json.loads(b"\n".join(value for field, value in _fields(block) if field == b"data"))
    except ValueError as error:
        raise ServerMisbehaved(f"the server sent a {name} event that is not JSON") from error
    if not isinstance(data, dict):
        raise ServerMisbehaved(f"the server sent a {name} event that is not an object")
    return PaymentEvent(name, data)
