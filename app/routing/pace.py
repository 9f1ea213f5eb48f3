"""How long a provider is expected to take: what its attempts took, by peak-EWMA. No I/O.

A peak-EWMA (as in Twitter's Finagle) believes a slow answer at once and forgets it slowly: a value above the
average becomes the average, one below it moves it by the time that passed since the last. What nobody
measured for a while drifts back to what an unknown provider is believed to be, and an unknown one is believed to
be no slower than the fastest that is known: so everybody is tried, and who was slow once is tried again.
"""

from collections.abc import Iterable
from math import exp

# What is believed of a provider where nobody was measured: rather too fast.
FIRST_BYTE_S = 0.1
TOKEN_S = 0.005
# Time constants: of the average, and of forgetting where there is nothing to average.
DECAY_S = 10.0
FORGET_S = 30.0
IDLE_S = 2.0
# What is this near to unknown is unknown.
UNKNOWN_NEAR = 1.01
# An answer of few tokens says little about the time of each.
TOKENS_MIN = 8
SECONDS_MIN = 1e-6


class PeakAverage:
    """One peak-EWMA, in seconds."""

    __slots__ = ("_forgot_s", "_measured_s", "unknown", "value")

    def __init__(self, unknown: float) -> None:
        self.value = unknown
        self.unknown = unknown
        self._measured_s: float | None = None
        self._forgot_s = 0.0

    @property
    def measured(self) -> bool:
        """Whether there was anything to average yet."""
        return self._measured_s is not None

    def add(self, seconds: float, now_s: float) -> None:
        """A measurement."""
        seconds = max(seconds, SECONDS_MIN)
        if self._measured_s is None or seconds >= self.value:
            self.value = seconds
        else:
            kept = exp((self._measured_s - now_s) / DECAY_S)
            self.value = self.value * kept + seconds * (1 - kept)
        self._measured_s = self._forgot_s = now_s

    def suppose(self, unknown: float) -> None:
        """This is what an unknown provider is believed to be."""
        self.unknown = unknown
        if self._measured_s is None:
            self.value = unknown

    def forget(self, now_s: float) -> bool:
        """Drift towards the unknown while nothing is measured; false once there is nothing left to forget."""
        unknown = self.unknown
        if self.value <= unknown:
            return False
        if self._measured_s is not None and now_s - self._measured_s >= IDLE_S:
            drifted = unknown + (self.value - unknown) * exp((self._forgot_s - now_s) / FORGET_S)
            self.value = drifted if drifted > unknown * UNKNOWN_NEAR else unknown
            self._forgot_s = now_s
        return True


def fastest_known(averages: Iterable[PeakAverage], *, otherwise: float) -> float:
    """What to believe of the unknown: the least of what was measured, and no more than without any."""
    return min(otherwise, min((each.value for each in averages if each.measured), default=otherwise))


class Pace:
    """One provider's and model's time to the first byte, and seconds per token after it."""

    __slots__ = ("first_byte", "token")

    def __init__(self) -> None:
        self.first_byte = PeakAverage(FIRST_BYTE_S)
        self.token = PeakAverage(TOKEN_S)

    def tokens(self, seconds: float, count: int, now_s: float) -> None:
        """So long did so many tokens take after the first byte."""
        if count >= TOKENS_MIN:
            self.token.add(seconds / count, now_s)

    def whole(self, seconds: float, count: int, now_s: float) -> None:
        """So long did a whole answer take: the difference to what was expected is of both parts alike."""
        ratio = seconds / self.expected(count)
        first_byte_s, token_s = self.first_byte.value * ratio, self.token.value * ratio
        self.first_byte.add(first_byte_s, now_s)
        self.tokens(token_s * count, count, now_s)

    def at_least(self, seconds: float, now_s: float) -> None:
        """The first byte takes longer than that: somebody waits for it, or gave up."""
        if seconds > self.first_byte.value:
            self.first_byte.add(seconds, now_s)

    def expected(self, tokens: int) -> float:
        """Seconds that an answer of so many tokens would take."""
        return self.first_byte.value + tokens * self.token.value

    def forget(self, now_s: float) -> bool:
        """See `PeakAverage.forget`."""
        first_byte, token = self.first_byte.forget(now_s), self.token.forget(now_s)
        return first_byte or token
