"""Opens and top-ups that were mined while nobody looked: found again by the transaction that was kept.

The process that was asked for them may have died, or may be about to record them itself: whatever is
done here is done once, whoever does it.
"""

import asyncio
from collections.abc import Callable

from app import log, metrics
from app.chain.backend import ChannelBackend, Mined
from app.chain.places import Places
from app.channels.channel import ChannelView
from app.channels.store import ChannelStore, FundingRecord
from app.clock import Clock
from app.errors import InvariantViolated
from app.ledger.journal import Journal
from app.ledger.operation import AcceptVoucher, Changed, Refused
from app.money import BaseUnits
from app.settlement.observation import means_nothing, take

# A client's transaction expires minutes after it was signed, and a node is behind by seconds.
NEVER_MINED_MS = 3_600_000

_log = log.get("recovery")


class Recovery:
    """Ends fundings whose end is not known."""

    def __init__(
        self,
        *,
        places: Places,
        channels: ChannelStore,
        journal: Journal,
        clock: Clock,
        on_changed: Callable[[ChannelView], None],
    ) -> None:
        self._places = places
        self._channels = channels
        self._journal = journal
        self._clock = clock
        self._on_changed = on_changed

    async def look(self, backend: ChannelBackend) -> int:
        """Look at every open funding of a backend; returns how many ended. Raises `ChainUnavailable`."""
        count = 0
        for funding in await asyncio.to_thread(self._channels.open_fundings):
            if self._places.serves(backend, funding):
                count += await self._look_at(funding, backend)
        return count

    async def _look_at(self, funding: FundingRecord, backend: ChannelBackend) -> bool:
        mined = await backend.mined(funding.tx_hash)
        if mined is None:
            if not self._is_old(funding):
                return False
            return await self._end(funding, state="failed", error="it was not mined")
        if not mined.succeeded:
            return await self._end(funding, state="failed", error="it reverted")
        return await self._take(funding, mined, backend=backend)

    async def _take(self, funding: FundingRecord, mined: Mined, *, backend: ChannelBackend) -> bool:
        state = await backend.channel(funding.channel_id)
        if state is None or means_nothing(state) or state.block < mined.block:
            # Behind: asked again. One channel that stays unknown must not stop the service of all.
            if not self._is_old(funding):
                return False
            return await self._end(funding, state="mined", error="the chain does not know the channel")
        record = await asyncio.to_thread(self._channels.find, funding.channel_id)
        if record is None:
            if state.finalized:
                return await self._end(funding, state="mined", error="the channel was over before it was recorded")
            record = await asyncio.to_thread(
                self._channels.create,
                funding.channel_id,
                backend=backend.offer.backend,
                chain_id=backend.offer.chain_id,
                escrow=backend.offer.escrow,
                descriptor=funding.descriptor,
                deposit=state.deposit,
                settled=state.settled,
                block=state.block,
            )
            metrics.channels_recovered.labels(backend.offer.backend).inc()
            _log.warning("channel_recovered", channel_id=record.id, deposit_base_units=state.deposit)
        changed = await take(self._journal, record.id, state)
        await self._accept(funding)
        self._on_changed(changed.channel)
        return await self._end(funding, state="mined")

    async def _accept(self, funding: FundingRecord) -> None:
        """The voucher of an open, whose signature was verified before its transaction was kept."""
        voucher = funding.voucher
        if funding.kind != "open" or voucher is None:
            return
        result = await self._journal.submit(
            AcceptVoucher(funding.channel_id, BaseUnits(voucher.cumulative_amount), voucher.signature), must=True
        )
        if isinstance(result, Refused):
            # The payer went on, or asked for a close: the channel is recorded, and this voucher buys nothing.
            _log.info("voucher_not_recovered", channel_id=funding.channel_id, reason=result.reason)
        elif not isinstance(result, Changed):
            raise InvariantViolated("the ledger answered a voucher with something else")

    def _is_old(self, funding: FundingRecord) -> bool:
        return self._clock.now_ms() - funding.created_at > NEVER_MINED_MS

    async def _end(self, funding: FundingRecord, *, state: str, error: str | None = None) -> bool:
        await asyncio.to_thread(self._channels.end_funding, funding.tx_hash, state=state, error=error)
        _log.info("funding_ended", channel_id=funding.channel_id, tx_hash=funding.tx_hash, state=state, error=error)
        return True
