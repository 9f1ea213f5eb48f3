"""A clock that stands still until a test moves it."""

from app.clock import MS_PER_SECOND, EpochMs

# 2025-10-09T08:53:20Z, twenty seconds into a minute.
START_MS = EpochMs(1_760_000_000_000)


class FakeClock:
    """An `app.clock.Clock`; `advance` moves both of its times forward together."""

    def __init__(self, now: EpochMs = START_MS) -> None:
        self._now_ms = now
        self._monotonic_ms = 0

    def now_ms(self) -> EpochMs:
        return self._now_ms

    def monotonic_s(self) -> float:
        return self._monotonic_ms / MS_PER_SECOND

    def advance(self, ms: int) -> None:
        """Let ``ms`` milliseconds pass at once."""
        if ms < 0:
            raise ValueError("time does not go back")
        self._now_ms = EpochMs(self._now_ms + ms)
        self._monotonic_ms += ms
