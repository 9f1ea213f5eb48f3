"""Opens and top-ups: a client's transaction is checked, kept, broadcast, mined and only then believed.

It is kept before it is broadcast, with the voucher that came with it: what was mined while this process
died is found by the watcher. Everything here may be done again.
"""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, suppress

from app import log, metrics
from app.chain.backend import ChainUnavailable, ChannelBackend, ChannelState, Funding, Mined, Offer, TransactionRefused
from app.channels.channel import ChannelView
from app.channels.store import ChannelRecord, ChannelStore, FundingRecord
from app.errors import InvariantViolated, PaymentProblem, PaymentTooFast
from app.ledger.journal import Journal
from app.ledger.operation import Changed, Observe, Refused
from app.money import ZERO, BaseUnits, base_units_up, nano_usd_of, parse_usd
from app.mpp.descriptor import Descriptor
from app.mpp.session import PayloadMalformed, SessionPayload, amount_of
from app.rails.challenger import Ask, Challenger, Known
from app.rails.credential import malformed
from app.settings import MppSettings

STATE_TRIES_MAX = 20
# Opens and top-ups at once: each costs the node several answers, and is asked for by anybody.
FUNDINGS_MAX = 64
# A transaction that a client sent by itself is known to the node soon, or not at all.
NAMED_S = 10.0
STATE_PAUSE_S = 0.25

_log = log.get("funding")


class Funder:
    """Funding transactions of clients."""

    def __init__(
        self,
        *,
        store: ChannelStore,
        journal: Journal,
        settings: MppSettings,
        challenger: Challenger,
        lend_nonce: Callable[[ChannelBackend], AbstractAsyncContextManager[int]],
        confirmations: Mapping[Offer, int],
    ) -> None:
        self._store = store
        self._journal = journal
        self._settings = settings
        self._challenger = challenger
        # Of the account that settles, for what we carry.
        self._lend_nonce = lend_nonce
        self._confirmations = confirmations
        self._running = {"open": 0, "topUp": 0}
        self._deposit_max = base_units_up(parse_usd(settings.deposit_max))

    async def open(
        self,
        payload: SessionPayload,
        backend: ChannelBackend,
        ask: Ask,
        *,
        source: str | None,
        verify: Callable[[Descriptor], None],
    ) -> ChannelRecord:
        """The channel of an ``open``, once the chain has it. ``verify`` checks the voucher's signer before that.

        Raises `PaymentProblem`.
        """
        try:
            funding = backend.decode_open(payload.fields, source=source)
        except TransactionRefused as refused:
            raise self._problem(refused, ask) from refused
        self._same(payload, funding)
        verify(funding.descriptor)
        mined = await self._mine(funding, backend, ask, record=payload)
        state = await self._state(backend, funding, ask, after=mined.block, payload=payload)
        if state.finalized or state.close_requested_at:
            await asyncio.to_thread(self._store.end_funding, mined.tx_hash, state="mined")
            raise self._challenger.problem("the channel is closing already", ask, slug="session/channel-finalized")
        offer = backend.offer
        record = await asyncio.to_thread(
            self._store.create,
            payload.channel_id,
            backend=offer.backend,
            chain_id=offer.chain_id,
            escrow=offer.escrow,
            descriptor=funding.descriptor,
            deposit=state.deposit,
            settled=state.settled,
            block=state.block,
        )
        await asyncio.to_thread(self._store.end_funding, mined.tx_hash, state="mined")
        metrics.channels_opened.labels(offer.backend).inc()
        _log.info("channel_opened", channel_id=record.id, backend=offer.backend, deposit=int(state.deposit))
        return record

    def _check_open(self, funding: Funding, payload: SessionPayload, ask: Ask) -> None:
        """What can be said only once the deposit is known. Raises `PaymentProblem`."""
        if payload.voucher is None or payload.voucher.cumulative_amount > funding.amount:
            raise self._challenger.problem(
                "the first voucher exceeds the deposit", ask, slug="session/amount-exceeds-deposit"
            )
        if funding.amount > self._deposit_max:
            raise self._challenger.problem(
                f"deposits above {self._settings.deposit_max} USD are not taken", ask, slug="verification-failed"
            )

    async def top_up(
        self,
        payload: SessionPayload,
        backend: ChannelBackend,
        descriptor: Descriptor,
        ask: Ask,
        *,
        source: str | None,
    ) -> ChannelView:
        """How the channel stands after a top-up. Raises `PaymentProblem`."""
        try:
            added = amount_of(payload.fields.get("additionalDeposit"), name="payload.additionalDeposit")
            funding = backend.decode_top_up(
                payload.fields, channel_id=payload.channel_id, descriptor=descriptor, source=source
            )
        except PayloadMalformed as error:
            raise malformed(str(error)) from error
        except TransactionRefused as refused:
            raise self._problem(refused, ask) from refused
        self._same(payload, funding)
        before = await asyncio.to_thread(self._store.find, payload.channel_id)
        if before is not None and before.view.deposit + added > self._deposit_max:
            raise self._challenger.problem(
                f"deposits above {self._settings.deposit_max} USD are not taken", ask, slug="verification-failed"
            )
        mined = await self._mine(funding, backend, ask, record=payload)
        await self._state(backend, funding, ask, after=mined.block, payload=payload)
        view = await self.look(payload.channel_id, backend, added=added)
        if view is None:
            raise self._unseen(ask)
        await asyncio.to_thread(self._store.end_funding, mined.tx_hash, state="mined")
        _log.info("channel_topped_up", channel_id=payload.channel_id, deposit=int(view.deposit))
        return view

    async def look(self, channel_id: str, backend: ChannelBackend, *, added: int = 0) -> ChannelView | None:
        """Take the chain's word on one channel now; None if it cannot be had.

        Where confirmations are waited for, a deposit grows by no more than ``added``, which has them: the newest
        block may be taken back, and the watcher takes the rest in time.
        """
        with suppress(ChainUnavailable):
            state = await backend.channel(channel_id)
            if state is None:
                return None
            deposit = state.deposit
            if self._confirmations[backend.offer] > 1:
                record = await asyncio.to_thread(self._store.find, channel_id)
                known = record.view.deposit if record is not None else BaseUnits(0)
                deposit = BaseUnits(min(deposit, known + added))
            result = await self._journal.submit(
                Observe(
                    channel_id,
                    deposit,
                    state.settled,
                    state.close_requested_at,
                    state.finalized,
                    state.block,
                )
            )
            if isinstance(result, Changed):
                return result.channel
            if isinstance(result, Refused):
                raise InvariantViolated(f"channel {channel_id} is not in the books")
        return None

    async def _mine(self, funding: Funding, backend: ChannelBackend, ask: Ask, *, record: SessionPayload) -> Mined:
        """Sponsor or carry, check, keep, broadcast, wait. Raises `PaymentProblem`, and `Overloaded`."""
        if self._running[funding.kind] >= FUNDINGS_MAX:
            raise PaymentTooFast("too many channels are being opened; try again", slug="rate-limited", retry_after_s=2)
        self._running[funding.kind] += 1
        try:
            return await self._mined(funding, backend, ask, record=record)
        finally:
            self._running[funding.kind] -= 1

    async def _mined(self, funding: Funding, backend: ChannelBackend, ask: Ask, *, record: SessionPayload) -> Mined:
        # Whoever only names a transaction pays nothing for naming one that is not there.
        named = funding.tx_hash is not None and funding.raw is None
        timeout_s = min(NAMED_S, self._settings.confirm_timeout_s) if named else self._settings.confirm_timeout_s
        try:
            if funding.authorization is not None:
                # Signed and sent while nothing else of the account is: what fails leaves no gap.
                async with self._lend_nonce(backend) as nonce:
                    funding = await self._sent(funding, backend, ask, record=record, nonce=nonce)
            else:
                funding = await self._sent(funding, backend, ask, record=record, nonce=None)
            if funding.tx_hash is None:
                raise InvariantViolated("a funding that was sent without its hash")
            mined = await backend.wait(funding.tx_hash, timeout_s=timeout_s)
        except TransactionRefused as refused:
            if funding.tx_hash is not None:
                await asyncio.to_thread(
                    self._store.end_funding, funding.tx_hash, state="failed", error=str(refused)[:200]
                )
            raise self._problem(refused, ask) from refused
        except ChainUnavailable as error:
            raise self._unseen(ask, funding, backend, record) from error
        if mined is None:
            raise self._unseen(ask, funding, backend, record)
        if not mined.succeeded:
            await asyncio.to_thread(self._store.end_funding, mined.tx_hash, state="failed", error="reverted")
            raise self._challenger.problem(
                "the funding transaction was reverted on chain", ask, slug="verification-failed"
            )
        return mined

    async def _sent(
        self, funding: Funding, backend: ChannelBackend, ask: Ask, *, record: SessionPayload, nonce: int | None
    ) -> Funding:
        """Prepared, checked, kept and broadcast."""
        funding = await backend.prepare(funding, nonce=nonce)
        if funding.tx_hash is None:
            raise InvariantViolated("a prepared funding without its hash")
        if funding.kind == "open":
            self._check_open(funding, record, ask)
        elif amount_of(record.fields.get("additionalDeposit"), name="additionalDeposit") != funding.amount:
            raise self._challenger.problem(
                "additionalDeposit is not what the transaction adds", ask, slug="verification-failed"
            )
        await asyncio.to_thread(self._store.keep_funding, _kept(funding, backend, record))
        if funding.raw is not None:
            await backend.broadcast(funding.raw)
        return funding

    async def _state(
        self, backend: ChannelBackend, funding: Funding, ask: Ask, *, after: int, payload: SessionPayload
    ) -> ChannelState:
        """The channel as of the block of its transaction: a node that lags behind it is asked again."""
        for _ in range(STATE_TRIES_MAX):
            with suppress(ChainUnavailable):
                state = await backend.channel(funding.channel_id)
                if state is not None and state.block >= after and (state.deposit or state.finalized):
                    return state
            await asyncio.sleep(STATE_PAUSE_S)
        raise self._unseen(ask, funding, backend, payload)

    def _same(self, payload: SessionPayload, funding: Funding) -> None:
        if funding.channel_id != payload.channel_id:
            raise malformed("payload.channelId is not the channel of the transaction")
        if payload.descriptor is not None and payload.descriptor != funding.descriptor:
            raise malformed("payload.descriptor is not that of the transaction")

    def _problem(self, refused: TransactionRefused, ask: Ask) -> PaymentProblem:
        if refused.malformed:
            return malformed(str(refused))
        return self._challenger.problem(str(refused), ask, slug="verification-failed")

    def _unseen(
        self,
        ask: Ask,
        funding: Funding | None = None,
        backend: ChannelBackend | None = None,
        payload: SessionPayload | None = None,
    ) -> PaymentProblem:
        """Perhaps mined, perhaps not: an open is answered as a channel that is there, so that nobody opens another."""
        known = None
        if funding is not None and backend is not None and payload is not None and funding.kind == "open":
            accepted = nano_usd_of(BaseUnits(payload.voucher.cumulative_amount if payload.voucher else 0))
            view = ChannelView(
                payload.channel_id, "open", funding.amount, BaseUnits(0), accepted, ZERO, ZERO, BaseUnits(0), 0
            )
            known = Known(payload.channel_id, backend.offer, funding.descriptor, view)
        return self._challenger.problem(
            "the transaction was not seen on chain yet; ask again in a moment, and open no other channel",
            ask,
            slug="verification-failed",
            known=known,
            retry_after_s=2,
        )


def _kept(funding: Funding, backend: ChannelBackend, payload: SessionPayload) -> FundingRecord:
    if funding.tx_hash is None:
        raise InvariantViolated("a funding without its hash")
    return FundingRecord(
        funding.tx_hash,
        funding.channel_id,
        funding.kind,
        backend.offer.backend,
        backend.offer.escrow,
        funding.descriptor,
        funding.amount,
        funding.raw,
        payload.voucher,
    )
