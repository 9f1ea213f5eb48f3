"""When a provider is passed over: a circuit breaker, fed by the attempts that the router sees end. No I/O.

Closed, it lets everything through and counts. Once at least `REQUESTS_MIN` attempts of the last
`WINDOW_S` ended and over half of them failed, it opens: nothing goes through for `OPEN_S_MIN`, and twice
as long after each probe that fails, up to `OPEN_S_MAX`. While several payers are served, one payer's
failures alone open nothing: requests can be made to fail. When that time is over it is half open: exactly
one attempt goes through, and what becomes of that one closes it or opens it again.
"""

from collections import deque
from typing import Literal

WINDOW_S = 60.0
BUCKETS = 12
BUCKET_S = WINDOW_S / BUCKETS
REQUESTS_MIN = 5
OPEN_S_MIN = 5.0
OPEN_S_MAX = 60.0
# A probe that streams for so long has shown enough; one that nobody ended for so long was lost.
PROBE_STREAMS_S = 5.0
PROBE_S_MAX = 600.0
# Payers that are told apart.
PAYERS_MAX = 32

Why = Literal["", "failures", "asked_to_wait", "quota_used_up", "refused"]
State = Literal["closed", "open", "half_open"]


class Breaker:
    """The breaker of one provider and model, or of a whole provider. Times are monotonic seconds."""

    __slots__ = (
        "_buckets",
        "_doublings",
        "_payers",
        "_probe",
        "_probe_since_s",
        "_requests_min",
        "_streams_since_s",
        "_unlucky",
        "failures",
        "successes",
        "until_s",
        "why",
    )

    def __init__(self, requests_min: int = REQUESTS_MIN) -> None:
        self._requests_min = requests_min
        # Closed while None. Until then nothing goes through; from then on one probe does.
        self.until_s: float | None = None
        self.why: Why = ""
        self.successes = 0
        self.failures = 0
        # Of the window: [number of the bucket, successes, failures], oldest first.
        self._buckets: deque[list[int]] = deque(maxlen=BUCKETS + 1)
        self._doublings = 0
        # When an attempt of each payer last ended, and when one last failed; of those who came lately.
        self._payers: dict[str, float] = {}
        self._unlucky: dict[str, float] = {}
        # Probes are numbered, so that one of an earlier opening is not taken for that of now.
        self._probe = 0
        self._probe_since_s: float | None = None
        self._streams_since_s: float | None = None

    def state(self, now_s: float) -> State:
        """Half open also while the probe is on its way."""
        if self.until_s is None:
            return "closed"
        return "open" if now_s < self.until_s else "half_open"

    def allows(self, now_s: float) -> bool:
        """Whether an attempt may begin now."""
        if self.until_s is None:
            return True
        if now_s < self.until_s:
            return False
        if self._streams_since_s is not None and now_s - self._streams_since_s >= PROBE_STREAMS_S:
            self.close()
            return True
        return self._probe_since_s is None or now_s - self._probe_since_s >= PROBE_S_MAX

    def begin(self, now_s: float) -> int:
        """An attempt that is allowed begins; gives the probe's number, and 0 for what is no probe."""
        if self.until_s is None:
            return 0
        self._probe_since_s, self._streams_since_s = now_s, None
        self._probe += 1
        return self._probe

    def streams(self, now_s: float, *, probe: int) -> None:
        """The probe's answer has begun."""
        if self._is_probe(probe):
            self._streams_since_s = now_s

    def release(self, *, probe: int) -> None:
        """The probe ended and says nothing: the next attempt is the probe."""
        if self._is_probe(probe):
            self._probe_since_s = self._streams_since_s = None

    def worked(self, now_s: float, *, probe: int, payer: str = "") -> None:
        """An attempt succeeded. One that began before the breaker opened does not close it."""
        if self._is_probe(probe):
            self.close()
        if self.until_s is None:
            _note(self._payers, payer, now_s)
            self._count(now_s, 1, 0)

    def failed(self, now_s: float, *, probe: int, payer: str = "") -> bool:
        """An attempt failed; true if that opened the breaker."""
        if self._is_probe(probe):
            self._doublings += 1
        elif self.until_s is not None:
            return False
        else:
            _note(self._payers, payer, now_s)
            _note(self._unlucky, payer, now_s)
            self._count(now_s, 0, 1)
            if self.successes + self.failures < self._requests_min or self.failures <= self.successes:
                return False
            if _lately(self._unlucky, now_s) == 1 < _lately(self._payers, now_s):
                return False
        self.open(now_s + min(OPEN_S_MIN * 2**self._doublings, OPEN_S_MAX), "failures")
        return True

    def open(self, until_s: float, why: Why) -> None:
        """Let nothing through until then; if it is open already, the later time counts."""
        self.until_s = max(until_s, self.until_s or 0.0)
        self.why = why
        self._forget()

    def close(self) -> None:
        """Let everything through and count from the beginning."""
        self.until_s, self.why, self._doublings = None, "", 0
        self._forget()

    def age(self, now_s: float) -> None:
        """Forget what is older than the window."""
        oldest = int(now_s // BUCKET_S) - BUCKETS
        while self._buckets and self._buckets[0][0] <= oldest:
            _, successes, failures = self._buckets.popleft()
            self.successes -= successes
            self.failures -= failures

    def _count(self, now_s: float, successes: int, failures: int) -> None:
        number = int(now_s // BUCKET_S)
        if not self._buckets or self._buckets[-1][0] != number:
            self.age(now_s)
            self._buckets.append([number, 0, 0])
        bucket = self._buckets[-1]
        bucket[1] += successes
        bucket[2] += failures
        self.successes += successes
        self.failures += failures

    def _is_probe(self, number: int) -> bool:
        return number == self._probe and self._probe_since_s is not None and self.until_s is not None

    def _forget(self) -> None:
        self._probe_since_s = self._streams_since_s = None
        self._buckets.clear()
        self._payers.clear()
        self._unlucky.clear()
        self.successes = self.failures = 0


def _note(payers: dict[str, float], payer: str, now_s: float) -> None:
    """Remember when a payer came last; the one who came longest ago makes room."""
    payers.pop(payer, None)
    payers[payer] = now_s
    if len(payers) > PAYERS_MAX:
        del payers[next(iter(payers))]


def _lately(payers: dict[str, float], now_s: float) -> int:
    """How many came within the window; the others are forgotten."""
    for payer in [payer for payer, at_s in payers.items() if now_s - at_s > WINDOW_S]:
        del payers[payer]
    return len(payers)
