"""Follows the escrows: what payers do on chain without telling us is known within a few blocks.

An event says that something changed; the channel's state says what. Events are read in bounded ranges
from a position that is kept, with the last blocks again each time, because chains take blocks back.
A node that is behind, away or makes no sense is asked again, more and more seldom; service on channels
ends (`lag_s`) before a payer could withdraw what he has used.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from app import log, metrics
from app.chain.backend import ChainUnavailable, ChannelBackend, ChannelEvent, ChannelState
from app.chain.places import Places, watch_name
from app.channels.channel import ChannelView
from app.channels.outbox_store import OutboxStore
from app.channels.store import ChannelRecord, ChannelStore
from app.clock import MS_PER_SECOND, Clock
from app.ledger.journal import Journal
from app.ledger.operation import Observe
from app.money import BaseUnits
from app.settings import MppSettings
from app.settlement.observation import differs, means_nothing, observed, take
from app.settlement.recovery import Recovery

# Read again at each look: blocks that may have been taken back, or that a node had not yet.
REREAD_BLOCKS = 12
KEEP_EVERY_BLOCKS = 10
RANGES_PER_LOOK_MAX = 50
# Every channel is compared with the chain so often, whether or not an event told of it.
RECONCILE_EVERY_S = 300.0
AT_ONCE = 8
CHANNELS_MAX = 100_000
PAUSE_S_MAX = 30.0
EVENTS_REMEMBERED_MAX = 10_000
# No chain makes blocks faster; a head beyond this is no head.
BLOCKS_PER_S_MAX = 100
BLOCKS_AHEAD_MAX = 10_000

_log = log.get("watcher")


@dataclass(slots=True)
class _Watch:
    """What is known of one backend's chain."""

    backend: ChannelBackend
    name: str
    # The last block whose events were taken, and up to where that is kept; None: nothing was read yet.
    position: int | None = None
    kept: int = -1
    # Monotonic seconds of the last look that saw everything; None: none yet.
    whole_at_s: float | None = None
    reconciled_at_s: float = float("-inf")
    head: int = 0
    head_at_s: float = 0.0
    # Taken, so that reading a block again is not work again.
    taken: OrderedDict[ChannelEvent, None] = field(default_factory=OrderedDict)
    # The node knows nothing of them and no event says that they are over: neither gone nor seen.
    unsure: set[str] = field(default_factory=set)


class Watcher:
    """One process's view of every chain that it serves channels of. Belongs to one event loop."""

    def __init__(
        self,
        *,
        backends: Sequence[ChannelBackend],
        outbox: OutboxStore,
        channels: ChannelStore,
        journal: Journal,
        clock: Clock,
        settings: MppSettings,
        on_changed: Callable[[ChannelView], None] = lambda _view: None,
    ) -> None:
        self._places = Places(backends, settings)
        self._outbox = outbox
        self._channels = channels
        self._journal = journal
        self._clock = clock
        self._range_max = settings.log_range_max
        self._every_s = settings.watch_every_s
        self._watches = [_Watch(backend, watch_name(backend)) for backend in backends]
        self._tasks: list[asyncio.Task[None]] = []
        # Called when a channel stopped, or when its deposit grew; perhaps more than once.
        self.on_changed = on_changed
        self._recovery = Recovery(
            places=self._places, channels=channels, journal=journal, clock=clock, on_changed=self._changed
        )

    @property
    def lag_s(self) -> float:
        """Monotonic seconds since every chain was last seen whole; infinite until each was once."""
        return max((self._lag_of(watch) for watch in self._watches), default=0.0)

    def lag_of(self, backend: ChannelBackend) -> float:
        """The same of one backend. Raises `LookupError` for one that is not watched."""
        return next(self._lag_of(watch) for watch in self._watches if watch.backend.offer == backend.offer)

    def start(self) -> None:
        """Begin, in the running event loop. The first look compares every channel with its chain."""
        self._tasks = [asyncio.create_task(self._loop(watch), name=f"watch-{watch.name}") for watch in self._watches]

    async def stop(self) -> None:
        """End. What was taken is in the books."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()

    async def look(self) -> None:
        """Look at every chain once, to its head. Raises `ChainUnavailable`. For callers without `start`."""
        for watch in self._watches:
            while not await self._look(watch):
                pass

    def _lag_of(self, watch: _Watch) -> float:
        return float("inf") if watch.whole_at_s is None else self._clock.monotonic_s() - watch.whole_at_s

    async def _loop(self, watch: _Watch) -> None:
        pause_s = self._every_s
        while True:
            try:
                # What is behind by many ranges goes on at once.
                pause_s = self._every_s if await self._look(watch) else 0.0
            except ChainUnavailable as error:
                pause_s = min(PAUSE_S_MAX, 2 * max(pause_s, self._every_s))
                _log.warning("chain_not_seen", watch=watch.name, reason=str(error), lag_s=self._lag_of(watch))
            except Exception as error:
                pause_s = min(PAUSE_S_MAX, 2 * max(pause_s, self._every_s))
                metrics.alerts.labels("watcher").inc()
                _log.error("watcher_failed", watch=watch.name, exc_info=error)
            metrics.chain_lag.labels(watch.backend.offer.backend).set(self._lag_of(watch))
            await asyncio.sleep(pause_s)

    async def _look(self, watch: _Watch) -> bool:
        """Read on; whether the head was reached, and with it everything was seen."""
        backend = watch.backend
        head = await self._head(watch)
        confirmed = head - (self._places.confirmations(backend) - 1)
        if self._clock.monotonic_s() - watch.reconciled_at_s >= RECONCILE_EVERY_S:
            await self._reconcile(watch)
        position = await self._position(watch, head=head)
        first = max(0, min(position, confirmed) - REREAD_BLOCKS + 1)
        for _ in range(RANGES_PER_LOOK_MAX):
            if first > head:
                break
            last = min(head, first + self._range_max - 1)
            events = await backend.events(first=first, last=last)
            if any(not first <= event.block <= last for event in events):
                raise ChainUnavailable("the node answered with events of other blocks")
            await self._take_events(watch, events, confirmed=confirmed)
            await self._keep(watch, min(last, confirmed))
            first = last + 1
        await self._recovery.look(backend)
        await self._look_again(watch)
        if first <= head:
            return False
        watch.whole_at_s = self._clock.monotonic_s()
        return True

    async def _head(self, watch: _Watch) -> int:
        """The newest block, if it can be one. Raises `ChainUnavailable` for a node that is behind what was read."""
        head, now_s = (await watch.backend.head()).block, self._clock.monotonic_s()
        if watch.head:
            known, elapsed_s = watch.head, now_s - watch.head_at_s
        else:
            kept = await asyncio.to_thread(self._outbox.position, watch.name)
            known = kept[0] if kept else head
            elapsed_s = max(0, self._clock.now_ms() - kept[1]) / MS_PER_SECOND if kept else 0.0
        if head > known + BLOCKS_AHEAD_MAX + int(elapsed_s * BLOCKS_PER_S_MAX):
            raise ChainUnavailable(f"the node says that block {head} is the newest, soon after {known}")
        if head < known - REREAD_BLOCKS:
            raise ChainUnavailable(f"the node is at block {head}, far behind {known}")
        if head > watch.head:
            watch.head, watch.head_at_s = head, now_s
        return head

    async def _position(self, watch: _Watch, *, head: int) -> int:
        """Where reading goes on: where it ended, or where the first channel was seen, or here."""
        if watch.position is not None:
            return watch.position
        kept = await asyncio.to_thread(self._outbox.position, watch.name)
        if kept is not None:
            watch.position = watch.kept = kept[0]
            return kept[0]
        offer = watch.backend.offer
        seen = await asyncio.to_thread(
            self._channels.first_seen, backend=offer.backend, chain_id=offer.chain_id, escrow=offer.escrow
        )
        return head if seen is None else min(seen, head)

    async def _keep(self, watch: _Watch, block: int) -> None:
        watch.position = max(block, watch.position or 0)
        # The last blocks are read again in any case: a quiet chain costs no writes.
        if watch.position - watch.kept >= KEEP_EVERY_BLOCKS or watch.kept < 0:
            await asyncio.to_thread(self._outbox.keep_position, watch.name, block=watch.position)
            watch.kept = watch.position

    # Events.

    async def _take_events(self, watch: _Watch, events: Iterable[ChannelEvent], *, confirmed: int) -> None:
        fresh: dict[str, list[ChannelEvent]] = {}
        for event in events:
            if event not in watch.taken:
                fresh.setdefault(event.channel_id, []).append(event)
        for channel_id, news in fresh.items():
            record = await asyncio.to_thread(self._channels.find, channel_id)
            if record is not None and self._places.of(record) is watch.backend:
                await self._take_news(watch, record, news, confirmed=confirmed)
            for event in news:
                if event.block <= confirmed:
                    watch.taken[event] = None
        while len(watch.taken) > EVENTS_REMEMBERED_MAX:
            watch.taken.popitem(last=False)

    async def _take_news(
        self, watch: _Watch, record: ChannelRecord, news: Sequence[ChannelEvent], *, confirmed: int
    ) -> None:
        """One channel's events: read its state, at a block that is no older than the newest of them."""
        if record.view.status == "closed":
            return
        state = await watch.backend.channel(record.id)
        if state is None or means_nothing(state):
            await self._take_without_state(watch, record, news)
            return
        if state.block < max(event.block for event in news):
            raise ChainUnavailable(f"the node is at block {state.block}, behind its own events")
        await self._take(watch, record, state, sure=all(event.block <= confirmed for event in news))

    async def _take_without_state(self, watch: _Watch, record: ChannelRecord, news: Sequence[ChannelEvent]) -> None:
        """The escrow has nothing under the id (any more): what the events and our own outbox say must do."""
        view = record.view
        settled, requested = view.settled, view.close_requested_at
        for event in news:
            paid = await asyncio.to_thread(self._outbox.captured_by, event.tx_hash)
            settled = max(settled, paid or BaseUnits(0))
            if event.kind == "close_requested":
                requested = requested or self._clock.now_ms() // MS_PER_SECOND
            elif event.kind == "close_request_cancelled":
                requested = 0
        over = any(event.kind == "closed" for event in news)
        if not over:
            self._unknown(watch, record.id)
        word = Observe(record.id, view.deposit, settled, requested, over, max(event.block for event in news))
        changed = await observed(self._journal, word)
        self._tell(view, changed.channel)

    def _unknown(self, watch: _Watch, channel_id: str) -> None:
        """Not gone: nobody but an event, or the escrow itself, says that a channel is over."""
        if channel_id not in watch.unsure:
            watch.unsure.add(channel_id)
            metrics.alerts.labels("channel_unknown_to_node").inc()
            _log.warning("channel_unknown_to_node", channel_id=channel_id)

    # States.

    async def _reconcile(self, watch: _Watch) -> None:
        """Compare every channel that is not closed with the chain, a few at a time."""
        records = [
            record
            for status in ("open", "closing")
            for record in await asyncio.to_thread(self._channels.list, status=status, limit=CHANNELS_MAX)
            if self._places.of(record) is watch.backend
        ]
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(record: ChannelRecord) -> None:
            async with gate:
                await self._compare(watch, record)

        results = await asyncio.gather(*map(one, records), return_exceptions=True)
        for error in results:
            if isinstance(error, BaseException):
                raise error
        watch.reconciled_at_s = self._clock.monotonic_s()
        _log.info("channels_reconciled", watch=watch.name, channels=len(records))

    async def _compare(self, watch: _Watch, record: ChannelRecord) -> None:
        state = await watch.backend.channel(record.id)
        if state is None or means_nothing(state):
            self._unknown(watch, record.id)
        else:
            watch.unsure.discard(record.id)
            # What is in the newest block may be taken back: events tell of it once they are confirmed.
            await self._take(watch, record, state, sure=self._places.confirmations(watch.backend) == 1)

    async def _look_again(self, watch: _Watch) -> None:
        """Channels that the node knew nothing of: it may have caught up, or an event may have ended them."""
        for channel_id in list(watch.unsure):
            record = await asyncio.to_thread(self._channels.find, channel_id)
            if record is None or record.view.status == "closed":
                watch.unsure.discard(channel_id)
            else:
                await self._compare(watch, record)

    async def _take(self, watch: _Watch, record: ChannelRecord, state: ChannelState, *, sure: bool) -> None:
        """Take a state. What is not ``sure`` may stop a channel, and never adds to what it can pay."""
        if state.block > watch.head + BLOCKS_AHEAD_MAX:
            raise ChainUnavailable(f"the node answered with a state at block {state.block}, beyond its head")
        if not sure:
            state = replace(state, deposit=min(state.deposit, record.view.deposit))
        if differs(state, record.view):
            changed = await take(self._journal, record.id, state)
            self._tell(record.view, changed.channel)

    def _tell(self, before: ChannelView, after: ChannelView) -> None:
        stopped = after.status != "open" or after.close_requested_at != 0
        was_stopped = before.status != "open" or before.close_requested_at != 0
        if (stopped and not was_stopped) or after.deposit > before.deposit or (was_stopped and not stopped):
            self._changed(after)

    def _changed(self, view: ChannelView) -> None:
        with suppress(Exception):
            self.on_changed(view)
