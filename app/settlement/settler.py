"""Decides what is settled and closed, has the lanes do it, and tells who waits for a close.

Nothing here is awaited inside a stream. Any replica may plan, because an intent is a conditional row of
the ledger; who signs holds the account's lease. A caller who leaves changes nothing: the work goes on.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from functools import partial

from app import log, metrics
from app.chain.backend import ChainUnavailable, ChannelBackend
from app.chain.places import Places, account_name
from app.channels.channel import ChannelView
from app.channels.outbox_store import CONFIRMED, FAILED, DueChannel, OutboxStore
from app.channels.store import ChannelRecord, ChannelStore
from app.clock import Clock, EpochMs
from app.errors import IdempotencyConflict, InvariantViolated, NotFound, Overloaded, PaymentGone
from app.ledger.ids import new_id
from app.ledger.journal import Journal
from app.ledger.operation import Changed, Freeze, PlanSettlement, Refused
from app.money import BaseUnits
from app.mpp.voucher import Voucher
from app.settings import MppSettings
from app.settlement.lane import Lane
from app.settlement.policy import Limits, action_for, voucher_for_close

# While something is under way, a block may come at any moment.
POLL_S = 0.25
PAUSE_S_MAX = 30.0
PRUNE_EVERY_S = 600.0
# Replicas' clocks differ, and a challenge may have been presented just before it expired.
CHALLENGE_GRACE_MS = 3_600_000

_log = log.get("settler")


class Settler:
    """One process's part in settling: plans for every channel, and signs for the accounts that it leases."""

    def __init__(
        self,
        *,
        backends: Sequence[ChannelBackend],
        outbox: OutboxStore,
        channels: ChannelStore,
        journal: Journal,
        clock: Clock,
        settings: MppSettings,
        owner_id: str,
        lease_ttl_s: float,
        alone: bool,
        on_changed: Callable[[ChannelView], None] = lambda _view: None,
    ) -> None:
        self._places = Places(backends, settings)
        self._outbox = outbox
        self._channels = channels
        self._journal = journal
        self._clock = clock
        self._limits = Limits.of(settings)
        self._every_s = settings.watch_every_s
        self._owner_id = owner_id
        self._waiting: dict[str, asyncio.Future[str]] = {}
        self._kicked: dict[str, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._pruned_at_s = float("-inf")
        self.on_changed = on_changed
        self._lanes = {
            name: Lane(
                name,
                places=self._places,
                outbox=outbox,
                channels=channels,
                journal=journal,
                clock=clock,
                owner_id=owner_id,
                lease_ttl_s=lease_ttl_s,
                alone=alone,
                on_changed=self._changed,
            )
            for name in dict.fromkeys(map(account_name, backends))
        }

    # What others call.

    def start(self) -> None:
        """Begin, in the running event loop. What an earlier process left in the outbox is gone on with."""
        self._run("settlement-plan", self._plan_and_prune)
        for name, lane in self._lanes.items():
            self._run(f"settlement-{name}", partial(self._lane_turn, lane))

    async def stop(self) -> None:
        """End the work where it is, and let others sign. What is signed is in the outbox."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks.clear()
        for future in self._waiting.values():
            future.cancel()
        self._waiting.clear()
        await asyncio.to_thread(self._outbox.give_lease, owner_id=self._owner_id)

    def kick(self) -> None:
        """Something may have to be settled: look now."""
        for event in self._kicked.values():
            event.set()

    async def close(self, channel_id: str) -> str:
        """The hash of the transaction that closes a channel, once it has its confirmations.

        Joins a close that is under way. Freezes the channel if nobody has. To cancel this, as by a timeout, ends
        the waiting and not the close. Raises `NotFound`, and `PaymentGone` where somebody else closed it.
        """
        future = self._waiting.get(channel_id)
        if future is None:
            record = await asyncio.to_thread(self._channels.find, channel_id)
            if record is None:
                raise NotFound(f"no channel {channel_id}")
            if record.view.status == "open":
                await self._freeze(channel_id)
            future = self._waiting.setdefault(channel_id, asyncio.get_running_loop().create_future())
        self.kick()
        return await asyncio.shield(future)

    def lend_nonce(self, backend: ChannelBackend) -> AbstractAsyncContextManager[int]:
        """A nonce of the settlement account for a client's authorization that we carry (`ChannelBackend.prepare`).

        To be signed and broadcast inside. Raises `Overloaded` where another replica signs, and `ChainUnavailable`.
        """
        return self._lanes[account_name(backend)].lend_nonce(backend)

    async def turn(self) -> bool:
        """Plan, then take every lane a step on; whether anything is under way.

        For callers without `start`. A node that is away is logged, and all is as it was.
        """
        await self.plan()
        return await self.advance()

    async def advance(self) -> bool:
        """The second half of `turn`: what is in the outbox already, and nothing new."""
        busy = False
        for lane in self._lanes.values():
            try:
                busy = await lane.turn() or busy
            except (ChainUnavailable, Overloaded) as error:
                busy = True
                _log.warning("settlement_waits", account=lane.name, reason=str(error))
        await self._tell()
        return busy

    async def order(self, channel_id: str, *, kind: str) -> None:
        """Write the intent to ``settle`` or ``close`` one channel now, due or not.

        Raises `NotFound` where there is nothing to do, and `IdempotencyConflict` where it cannot be done now.
        """
        record = await asyncio.to_thread(self._channels.find, channel_id)
        backend = self._places.of(record) if record is not None else None
        if record is None or backend is None:
            raise NotFound(f"no [[mpp.channels]] entry serves channel {channel_id}")
        if kind == "close":
            await self._freeze(channel_id)
            if not await self._plan_close(await self._again(record), backend):
                raise IdempotencyConflict(
                    "the channel cannot be closed now: requests run on it, or it is being settled"
                )
            return
        voucher = await asyncio.to_thread(self._channels.voucher_at_most, channel_id, record.view.spent_cumulative)
        if voucher is None or voucher.cumulative_amount <= record.view.settled:
            raise NotFound("there is nothing to settle: no voucher is spent beyond what is settled")
        if not await self._submit(record, backend, kind="settle", voucher=voucher):
            raise IdempotencyConflict("the channel is being settled already, or it changed: look at it again")

    # Planning.

    async def plan(self) -> int:
        """Write an intent for every channel that is due; returns how many were written."""
        now, count = self._clock.now_ms(), 0
        for due in await asyncio.to_thread(self._outbox.due, least=self._limits.least):
            action = action_for(due, self._limits, now=now)
            if action is None:
                continue
            record = await asyncio.to_thread(self._channels.find, due.view.id)
            backend = self._places.of(record) if record is not None else None
            if record is None or backend is None:
                continue
            with suppress(Overloaded):
                planned = await (
                    self._plan_close(record, backend)
                    if action == "close"
                    else self._plan_settle(record, backend, due=due)
                )
                count += planned
        return count

    async def _plan_settle(self, record: ChannelRecord, backend: ChannelBackend, *, due: DueChannel) -> bool:
        if due.payable is None:
            return False
        voucher = await asyncio.to_thread(self._channels.voucher_at_most, record.id, due.payable)
        if voucher is None:
            return False
        return await self._submit(record, backend, kind="settle", voucher=voucher)

    async def _plan_close(self, record: ChannelRecord, backend: ChannelBackend) -> bool:
        if record.view.status == "open":
            # The payer asked for it on chain. Frozen only now, with nothing held: until then it could be taken back.
            await self._freeze(record.id)
            record = await self._again(record)
        view = record.view
        least = max(view.spent_cumulative, view.settled)
        accepted = await asyncio.to_thread(self._channels.voucher_at_least, record.id, least)
        voucher = voucher_for_close(view, (accepted, record.close_voucher))
        if voucher is None:
            metrics.alerts.labels("no_voucher_for_close").inc()
            _log.error("no_voucher_for_close", channel_id=record.id, spent_nano_usd=view.spent)
            return False
        return await self._submit(record, backend, kind="close", voucher=voucher)

    async def _again(self, record: ChannelRecord) -> ChannelRecord:
        return await asyncio.to_thread(self._channels.find, record.id) or record

    async def _submit(self, record: ChannelRecord, backend: ChannelBackend, *, kind: str, voucher: Voucher) -> bool:
        now = self._clock.now_ms()
        operation = plan_of(record, backend, kind=kind, voucher=voucher, now=now)
        result = await self._journal.submit(operation)
        if isinstance(result, Refused):
            # Another replica was first, or the channel changed meanwhile: the next look decides anew.
            _log.info("settlement_not_planned", channel_id=record.id, kind=kind, reason=result.reason)
            return False
        if not isinstance(result, Changed):
            raise InvariantViolated("the ledger answered a plan with something else")
        _log.info(
            "settlement_planned",
            settlement_id=operation.settlement_id,
            channel_id=record.id,
            kind=kind,
            capture_base_units=result.capture,
        )
        self.kick()
        return result.first

    async def _freeze(self, channel_id: str) -> None:
        result = await self._journal.submit(Freeze(channel_id))
        if isinstance(result, Changed):
            self.on_changed(result.channel)

    # Who waits.

    async def _tell(self) -> None:
        """Answer those who wait for closes that are over, whichever process ended them."""
        for channel_id, future in list(self._waiting.items()):
            tx_hash = await asyncio.to_thread(self._outbox.closed_by, channel_id)
            if tx_hash is None:
                if not await self._ended_without_us(channel_id):
                    continue
                # Whatever it is, it is over now; ours may have been confirmed between the two looks.
                tx_hash = await asyncio.to_thread(self._outbox.closed_by, channel_id)
            self._waiting.pop(channel_id, None)
            if future.done():
                continue
            if tx_hash is not None:
                future.set_result(tx_hash)
                continue
            gone = PaymentGone("the channel was closed by another transaction", slug="session/channel-finalized")
            future.set_exception(gone)
            # Whoever waited may have left, and nobody is to be told that nobody asked.
            future.exception()

    async def _ended_without_us(self, channel_id: str) -> bool:
        record = await asyncio.to_thread(self._channels.find, channel_id)
        if record is None or record.view.status != "closed":
            return False
        # The chain was seen to have closed it, perhaps by the very transaction that we still follow.
        rows = await asyncio.to_thread(self._outbox.settlements_of, channel_id, limit=1)
        return all(row.state in {CONFIRMED, FAILED} for row in rows)

    # The loops.

    async def _plan_and_prune(self) -> bool:
        await self.plan()
        await self._tell()
        if self._clock.monotonic_s() - self._pruned_at_s >= PRUNE_EVERY_S:
            self._pruned_at_s = self._clock.monotonic_s()
            await self.prune()
        return False

    async def prune(self) -> None:
        """Forget vouchers and challenges that nothing can need."""
        await asyncio.to_thread(self._outbox.prune_vouchers)
        expired = EpochMs(self._clock.now_ms() - CHALLENGE_GRACE_MS)
        await asyncio.to_thread(self._outbox.prune_challenges, expired_before=expired)

    async def _lane_turn(self, lane: Lane) -> bool:
        busy = await lane.turn()
        if self._waiting:
            await self._tell()
        return busy

    def _changed(self, view: ChannelView) -> None:
        self.on_changed(view)

    def _run(self, name: str, work: Callable[[], Awaitable[bool]]) -> None:
        kicked = self._kicked[name] = asyncio.Event()
        self._tasks.append(asyncio.create_task(self._loop(name, work, kicked=kicked), name=name))

    async def _loop(self, name: str, work: Callable[[], Awaitable[bool]], *, kicked: asyncio.Event) -> None:
        pause_s = self._every_s
        while True:
            busy = False
            try:
                busy = await work()
                pause_s = self._every_s
            except (ChainUnavailable, Overloaded) as error:
                pause_s = min(PAUSE_S_MAX, 2 * pause_s)
                _log.warning("settlement_waits", worker=name, reason=str(error))
            except Exception as error:
                pause_s = min(PAUSE_S_MAX, 2 * pause_s)
                metrics.alerts.labels("settlement").inc()
                _log.error("settlement_worker_failed", worker=name, exc_info=error)
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S if busy else pause_s):
                    await kicked.wait()
            kicked.clear()


def plan_of(
    record: ChannelRecord, backend: ChannelBackend, *, kind: str, voucher: Voucher, now: EpochMs
) -> PlanSettlement:
    """The intent to show ``voucher`` to a channel's escrow."""
    return PlanSettlement(
        new_id("set", now),
        record.id,
        kind,
        BaseUnits(voucher.cumulative_amount),
        voucher.signature,
        account_name(backend),
        kind == "close" and not backend.offer.captures_less,
    )
