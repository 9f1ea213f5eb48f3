"""Time, injected: aware UTC milliseconds for records, monotonic seconds for durations."""

import time
from datetime import UTC, datetime
from typing import NewType, Protocol

EpochMs = NewType("EpochMs", int)

MS_PER_SECOND = 1000
MS_PER_MINUTE = 60_000


class Clock(Protocol):
    """What the rest of the code may know of time."""

    def now_ms(self) -> EpochMs:
        """Milliseconds since the Unix epoch, UTC, for records."""
        ...

    def monotonic_s(self) -> float:
        """Seconds that never go back, for durations and deadlines."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now_ms(self) -> EpochMs:
        return EpochMs(time.time_ns() // 1_000_000)

    def monotonic_s(self) -> float:
        return time.monotonic()


def to_datetime(at: EpochMs) -> datetime:
    """The aware UTC datetime of a record's timestamp."""
    return datetime.fromtimestamp(at / MS_PER_SECOND, tz=UTC)


def to_rfc3339(at: EpochMs) -> str:
    """RFC 3339 text with milliseconds, as records are shown."""
    return to_datetime(at).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def month_of(at: EpochMs) -> int:
    """The calendar month in UTC as ``year * 100 + month``, the period of monthly limits."""
    moment = to_datetime(at)
    return moment.year * 100 + moment.month
