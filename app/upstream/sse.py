"""Server-sent events, read incrementally and written in one form. Pure.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream.
Only the ``data`` of an event matters here: a provider's event names are dropped, so that it can never
forge one of ours, and every event leaves as ``data: `` with its space and ``\\n`` endings.
"""

EVENT_END = b"\n\n"
BOM = b"\xef\xbb\xbf"


class EventTooLarge(Exception):
    """One event is past the bound."""


class EventSplitter:
    """Takes bytes as they arrive and gives the ``data`` of each event that is complete.

    Lines may end in ``\\n``, ``\\r`` or ``\\r\\n`` and be split at any byte. An event that the end of the
    stream cuts off is never given: the specification discards it.
    """

    def __init__(self, *, event_bytes_max: int) -> None:
        self._event_bytes_max = event_bytes_max
        self._pending = b""
        self._after_cr = False
        self._at_start = True
        self._start = b""

    def feed(self, block: bytes) -> list[bytes]:
        """The complete events of ``block``, in order. Raises `EventTooLarge`."""
        if self._at_start:
            block = self._start + block
            if len(block) < len(BOM) and BOM.startswith(block):
                self._start = block
                return []
            self._at_start = False
            block = block.removeprefix(BOM)
        if self._after_cr or b"\r" in block:
            block = self._with_newlines(block)
        text = self._pending + block if self._pending else block
        parts = text.split(EVENT_END)
        self._pending = parts.pop()
        if len(self._pending) > self._event_bytes_max:
            raise EventTooLarge
        events = []
        for part in parts:
            # Nearly every event is one line of data: take it without looking at lines.
            data = part[6:] if part.startswith(b"data: ") and b"\n" not in part else _data(part)
            if data is not None:
                events.append(data)
        return events

    def _with_newlines(self, block: bytes) -> bytes:
        """``\\r\\n`` and ``\\r`` as ``\\n``; a ``\\r`` at the end waits to see whether ``\\n`` follows."""
        if self._after_cr and block:
            self._after_cr = False
            block = block.removeprefix(b"\n")
        if block:
            self._after_cr = block.endswith(b"\r")
        return block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data(part: bytes) -> bytes | None:
    """The data lines of one event, joined; None if it has none."""
    lines = []
    for line in part.split(b"\n"):
        if line.startswith(b"data:"):
            value = line[5:]
            lines.append(value.removeprefix(b" "))
        elif line == b"data":
            lines.append(b"")
    # The payload is JSON: a line break in it can only stand where white space may.
    return b" ".join(lines) if lines else None


def frame(data: bytes) -> bytes:
    """One unnamed event. ``data`` has no line break (see `EventSplitter`)."""
    return b"data: " + data + EVENT_END


def comment(text: bytes = b"") -> bytes:
    """A comment, which every client ignores: keeps a silent connection alive."""
    return b": " + text + EVENT_END
