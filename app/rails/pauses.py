"""Streams that wait for a voucher: first come, first served, woken by an event and never by polling."""

import asyncio
from collections import OrderedDict, deque
from dataclasses import dataclass, field

from app.money import ZERO, NanoUsd

ASKED_MAX = 32
CHANNELS_MAX = 4096


@dataclass(slots=True, eq=False)
class Waiter:
    """One stream in its channel's line, and what it wants to hold."""

    wanted: NanoUsd
    woken: asyncio.Event = field(default_factory=asyncio.Event)


class Pauses:
    """The lines of one process, by channel. Belongs to one event loop."""

    def __init__(self) -> None:
        self._lines: dict[str, list[Waiter]] = {}
        # What streams asked for lately: their answers may overtake each other on the way.
        self._asked: OrderedDict[str, deque[int]] = OrderedDict()

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def ask(self, channel_id: str, required: int) -> None:
        """Remember that a stream asked for a voucher of ``required``."""
        asked = self._asked.pop(channel_id, None) or deque(maxlen=ASKED_MAX)
        asked.append(required)
        self._asked[channel_id] = asked
        if len(self._asked) > CHANNELS_MAX:
            self._asked.popitem(last=False)

    def was_asked(self, channel_id: str, amount: int) -> bool:
        """Whether a voucher of exactly ``amount`` is the answer to one of our own events."""
        return amount in self._asked.get(channel_id, ())

    def join(self, channel_id: str, *, wanted: NanoUsd) -> Waiter:
        """Stand at the end of a channel's line."""
        waiter = Waiter(wanted)
        self._lines.setdefault(channel_id, []).append(waiter)
        return waiter

    def leave(self, channel_id: str, waiter: Waiter) -> None:
        """Step out of the line; what is left of the funds is the next one's."""
        line = self._lines.get(channel_id, [])
        if waiter in line:
            line.remove(waiter)
        if line:
            line[0].woken.set()
        else:
            self._lines.pop(channel_id, None)

    def is_first(self, channel_id: str, waiter: Waiter) -> bool:
        """Whether it is this one's turn."""
        line = self._lines.get(channel_id, [])
        return bool(line) and line[0] is waiter

    def wanted(self, channel_id: str, waiter: Waiter) -> NanoUsd:
        """What a waiter and all before it want."""
        total = ZERO
        for other in self._lines.get(channel_id, []):
            total = NanoUsd(total + other.wanted)
            if other is waiter:
                break
        return total

    def wake(self, channel_id: str) -> None:
        """Something changed on a channel: the first in its line tries again."""
        line = self._lines.get(channel_id)
        if line:
            line[0].woken.set()

    def wake_all(self, channel_id: str) -> None:
        """Everybody looks again: the channel stopped."""
        for waiter in self._lines.get(channel_id, []):
            waiter.woken.set()

    def wake_everyone(self) -> None:
        """Every line looks again."""
        for channel_id in list(self._lines):
            self.wake(channel_id)
