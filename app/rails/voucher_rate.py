"""How many vouchers a second one channel may have verified: a bucket for each, bounded in number."""

from collections import OrderedDict

from app.clock import Clock

CHANNELS_MAX = 65_536
# A client that sent nothing for a while may send so many seconds' worth at once.
BURST_S = 5


class VoucherRate:
    """Token buckets by channel; the ones not used for longest are forgotten first."""

    def __init__(self, clock: Clock, *, per_second: int) -> None:
        self._clock = clock
        self._per_second = per_second
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def allows(self, channel_id: str, *, take: bool = True) -> bool:
        """Take one from a channel's bucket, if there is one; or only look."""
        now_s, full = self._clock.monotonic_s(), float(self._per_second * BURST_S)
        left, since_s = self._buckets.pop(channel_id, (full, now_s))
        left = min(full, left + (now_s - since_s) * self._per_second)
        allowed = left >= 1
        self._buckets[channel_id] = (left - 1 if allowed and take else left, now_s)
        if len(self._buckets) > CHANNELS_MAX:
            self._buckets.popitem(last=False)
        return allowed
