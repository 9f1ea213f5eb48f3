"""One account of one chain and its outbox: every settlement is signed, kept, broadcast and followed here.

    intent -> signed (raw, hash and nonce are durable) -> broadcast -> confirmed | failed

A process may die between any two lines: the next one finds the row and goes on. What was signed is
broadcast again byte for byte. A new transaction is signed only for one that did nothing: that reverted,
or whose nonce the chain shows to be used by another. Escrows take no claim twice, so that even a node
that lies about this costs a fee and not a payment.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

from app import log, metrics
from app.chain.backend import ChainUnavailable, ChannelBackend, Mined, Signed, TransactionRefused
from app.chain.places import Places
from app.channels.channel import ChannelView
from app.channels.outbox_store import CONFIRMED, FAILED, INTENT, SIGNED, OutboxStore, SettlementRecord
from app.channels.store import ChannelRecord, ChannelStore
from app.clock import MS_PER_SECOND, Clock
from app.errors import InvariantViolated, Overloaded
from app.ledger.journal import Journal
from app.ledger.operation import Changed, Observe, Posted
from app.money import BaseUnits
from app.settlement.fees import chain_fee
from app.settlement.observation import differs, means_nothing, observed, take

# Transactions that may wait for a block at once.
UNDER_WAY_MAX = 32
ATTEMPTS_MAX = 5
RETRY_MS = 1_000
RETRY_MS_MAX = 60_000
REBROADCAST_S = 5.0
# A node that will not have a transaction so often will not have it at all.
REFUSALS_MAX = 3
# Receipts may be behind nonces where one address stands for several nodes.
PROOF_S = 15.0
STUCK_MS = 600_000
# What was not mined after so long is looked at less often.
PATIENCE_MS = 30_000
LENT_S = 60.0

Work = Callable[[SettlementRecord, ChannelBackend, ChannelRecord], Awaitable[None]]

_log = log.get("settlement")


class Lane:
    """The outbox of one settlement account. Belongs to one event loop; the lease keeps other processes out."""

    def __init__(
        self,
        name: str,
        *,
        places: Places,
        outbox: OutboxStore,
        channels: ChannelStore,
        journal: Journal,
        clock: Clock,
        owner_id: str,
        lease_ttl_s: float,
        alone: bool,
        on_changed: Callable[[ChannelView], None],
    ) -> None:
        self.name = name
        self._places = places
        self._outbox = outbox
        self._channels = channels
        self._journal = journal
        self._clock = clock
        self._owner_id = owner_id
        self._ttl_ms = int(lease_ttl_s * MS_PER_SECOND)
        self._alone = alone
        self._on_changed = on_changed
        self._lease_until_ms = 0
        self._signing = asyncio.Lock()
        self._broadcast_at_s: dict[str, float] = {}
        self._refusals: dict[str, int] = {}
        # Transactions whose nonce is used and that have no receipt: since which block, and when.
        self._doubted: dict[str, tuple[int, float]] = {}
        self._lent: dict[int, float] = {}

    async def turn(self) -> bool:
        """Take every open settlement one step on; whether it pays to look again soon.

        Raises `ChainUnavailable` where the node does not answer: all is as it was, and is tried again.
        """
        rows = await asyncio.to_thread(self._outbox.open_settlements, self.name)
        if not rows or not await self._leased():
            return False
        signed = [row for row in rows if row.state == SIGNED]
        self._forget_all_but(signed)
        for row in signed:
            await self._step(row, self._follow)
        room = max(0, UNDER_WAY_MAX - len(signed))
        intents = [row for row in rows if row.state == INTENT and self._is_due(row)][:room]
        for row in intents:
            await self._step(row, self._send)
        recent = self._clock.now_ms() - PATIENCE_MS
        return bool(intents) or any(row.updated_at > recent for row in signed)

    @asynccontextmanager
    async def lend_nonce(self, backend: ChannelBackend) -> AsyncIterator[int]:
        """A nonce of the account for a transaction that is not a settlement, to be signed and broadcast inside.

        Nothing else is signed meanwhile, and what fails inside gives the nonce back: a gap would stop all above
        it. Raises `Overloaded` where another process holds the account, and `ChainUnavailable`.
        """
        if not await self._leased():
            raise Overloaded("another replica signs for this account; try again", retry_after_s=1)
        async with self._signing:
            nonce = await self._free_nonce(backend)
            yield nonce
            self._lent[nonce] = self._clock.monotonic_s()

    async def _step(self, row: SettlementRecord, work: Work) -> None:
        """One row's trouble is not its neighbours': only a node that is away stops them all."""
        record = await asyncio.to_thread(self._channels.find, row.channel_id)
        backend = self._places.of(record) if record is not None else None
        if record is None or backend is None:
            await self._note(row, "no configured [[mpp.channels]] entry serves this channel")
            return
        try:
            await work(row, backend, record)
        except (ChainUnavailable, Overloaded):
            raise
        except TransactionRefused as refused:
            await self._refused(row, str(refused))
        except Exception as error:
            _log.error("settlement_step_failed", settlement_id=row.id, exc_info=error)
            await self._refused(row, f"{type(error).__name__}: {error}")

    # A signed settlement.

    async def _follow(self, row: SettlementRecord, backend: ChannelBackend, record: ChannelRecord) -> None:
        if row.tx_hash is None or row.nonce is None or row.raw is None:
            raise InvariantViolated(f"settlement {row.id} is signed without a transaction")
        mined = await backend.mined(row.tx_hash)
        if mined is not None:
            await self._mined(row, mined, backend=backend, record=record)
        elif await backend.next_nonce() > row.nonce:
            await self._doubt(row, backend, record)
        else:
            self._doubted.pop(row.tx_hash, None)
            await self._broadcast(row, backend, record)

    async def _broadcast(self, row: SettlementRecord, backend: ChannelBackend, record: ChannelRecord) -> None:
        """Hand the bytes to the node, again and again until they are mined: pools forget."""
        tx_hash, now_s = row.tx_hash or "", self._clock.monotonic_s()
        if now_s - self._broadcast_at_s.get(tx_hash, float("-inf")) < REBROADCAST_S:
            return
        self._broadcast_at_s[tx_hash] = now_s
        if self._clock.now_ms() - row.updated_at > STUCK_MS:
            metrics.alerts.labels("settlement_stuck").inc()
            _log.warning("settlement_stuck", settlement_id=row.id, tx_hash=tx_hash)
        try:
            await backend.broadcast(row.raw or b"")
        except TransactionRefused as refused:
            self._refusals[tx_hash] = self._refusals.get(tx_hash, 0) + 1
            await self._note(row, str(refused))
            if self._refusals[tx_hash] >= REFUSALS_MAX:
                await self._again(row, backend, record)

    async def _again(self, row: SettlementRecord, backend: ChannelBackend, record: ChannelRecord) -> None:
        """A transaction that no node will have, whose nonce is unused: another with the same nonce.

        Of the two only one can ever be mined.
        """
        if row.nonce is None or await self._is_over(row, backend, record, nonce_used=False):
            return
        try:
            async with self._signing:
                signed = await self._sign(row, backend, record, nonce=row.nonce)
                kept = signed.tx_hash != row.tx_hash and await self._keep(row, signed)
        except TransactionRefused as refused:
            # It would revert: its nonce is free for others until that changes.
            await self._give_back(row, str(refused))
            return
        if kept:
            _log.warning("settlement_signed_again", settlement_id=row.id, nonce=row.nonce, tx_hash=signed.tx_hash)

    async def _doubt(self, row: SettlementRecord, backend: ChannelBackend, record: ChannelRecord) -> None:
        """The nonce is used and our transaction has no receipt: it waits for confirmations, the nodes
        disagree, or another transaction used the nonce. Only what lasts proves the last."""
        tx_hash = row.tx_hash or ""
        head, now_s = await backend.head(), self._clock.monotonic_s()
        since_block, since_s = self._doubted.setdefault(tx_hash, (head.block, now_s))
        if head.block - since_block < self._places.confirmations(backend) - 1 or now_s - since_s < PROOF_S:
            return
        # Once more, now that the node is known to have got that far.
        mined = await backend.mined(tx_hash)
        if mined is not None:
            await self._mined(row, mined, backend=backend, record=record)
        elif not await self._is_over(row, backend, record):
            await self._give_back(row, "the nonce was used by another transaction")

    async def _mined(
        self, row: SettlementRecord, mined: Mined, *, backend: ChannelBackend, record: ChannelRecord
    ) -> None:
        """The transaction is in a block. Each line may be done again, and the row says last that all was done."""
        if not mined.succeeded:
            await self._book_fee(f"{row.id}:fee:{row.nonce}", mined)
            if not await self._is_over(row, backend, record, fee=mined.fee):
                await self._give_back(row, "the transaction reverted", fee=mined.fee)
            return
        changed = await self._paid(row, mined, backend=backend, record=record)
        await self._book_fee(f"{row.id}:fee", mined)
        await asyncio.to_thread(self._outbox.end, row, state=CONFIRMED, fee=mined.fee)
        metrics.settlements.labels(row.kind, CONFIRMED).inc()
        _log.info(
            "settlement_confirmed",
            settlement_id=row.id,
            channel_id=row.channel_id,
            kind=row.kind,
            capture_base_units=row.capture,
            tx_hash=row.tx_hash,
        )
        self._on_changed(changed.channel)

    async def _paid(
        self, row: SettlementRecord, mined: Mined, *, backend: ChannelBackend, record: ChannelRecord
    ) -> Changed:
        """Book what a mined settlement paid out: as the escrow says, or as it must have, where it says nothing."""
        closes = row.kind == "close"
        state = await backend.channel(row.channel_id)
        said_so = state is not None and not means_nothing(state) and state.settled >= row.capture
        if state is not None and said_so and (state.finalized or not closes):
            return await take(self._journal, row.channel_id, state)
        view = record.view
        said = Observe(row.channel_id, view.deposit, row.capture, view.close_requested_at, closes, mined.block)
        return await observed(self._journal, said)

    async def _book_fee(self, transfer_id: str, mined: Mined) -> None:
        if not mined.fee:
            return
        posted = await self._journal.submit(chain_fee(transfer_id, fee=mined.fee, at=self._clock.now_ms()), must=True)
        if not isinstance(posted, Posted):
            raise InvariantViolated(f"the fee {transfer_id} was booked before with another amount")

    # An intent.

    async def _send(self, row: SettlementRecord, backend: ChannelBackend, record: ChannelRecord) -> None:
        """Sign, keep, broadcast: in this order."""
        if await self._is_over(row, backend, record):
            return
        state = await backend.channel(row.channel_id)
        if means_nothing(state) or state is None:
            # Behind, or in the middle of something: not gone.
            await self._note(row, "the node does not know the channel")
            return
        if row.capture > state.deposit:
            await self._note(row, f"the node says that the deposit is {state.deposit}")
            return
        async with self._signing:
            if not await self._leased():
                return
            nonce = await self._free_nonce(backend)
            signed = await self._sign(row, backend, record, nonce=nonce)
            kept = await self._keep(row, signed)
        if not kept:
            # The lease is lost, or the node named a nonce that was used long ago.
            _log.warning("settlement_not_kept", settlement_id=row.id, nonce=nonce)
            return
        _log.info("settlement_signed", settlement_id=row.id, kind=row.kind, nonce=nonce, tx_hash=signed.tx_hash)
        self._broadcast_at_s[signed.tx_hash] = self._clock.monotonic_s()
        try:
            await backend.broadcast(signed.raw)
        except TransactionRefused as refused:
            # Its row is signed now: what becomes of it is seen at the next look.
            self._refusals[signed.tx_hash] = 1
            _log.warning("settlement_refused", settlement_id=row.id, reason=str(refused))

    async def _sign(
        self, row: SettlementRecord, backend: ChannelBackend, record: ChannelRecord, *, nonce: int
    ) -> Signed:
        if row.kind == "settle":
            return await backend.sign_settle(
                channel_id=row.channel_id,
                descriptor=record.descriptor,
                amount=row.amount,
                signature=row.signature,
                nonce=nonce,
            )
        return await backend.sign_close(
            channel_id=row.channel_id,
            descriptor=record.descriptor,
            amount=row.amount,
            capture=row.capture,
            signature=row.signature,
            nonce=nonce,
        )

    async def _keep(self, row: SettlementRecord, signed: Signed) -> bool:
        return await asyncio.to_thread(
            self._outbox.keep_signed,
            row.id,
            account=self.name,
            owner_id=self._owner_id,
            nonce=signed.nonce,
            raw=signed.raw,
            tx_hash=signed.tx_hash,
            instead_of=row.tx_hash,
        )

    async def _free_nonce(self, backend: ChannelBackend) -> int:
        """The lowest nonce that the chain would take and nothing of ours has: a gap would stop all above it."""
        nonce = await backend.next_nonce()
        now_s = self._clock.monotonic_s()
        self._lent = {lent: at_s for lent, at_s in self._lent.items() if lent >= nonce and now_s - at_s < LENT_S}
        used = await asyncio.to_thread(self._outbox.nonces, self.name, at_least=nonce)
        while nonce in used or nonce in self._lent:
            nonce += 1
        return nonce

    # What both may find.

    async def _is_over(
        self,
        row: SettlementRecord,
        backend: ChannelBackend,
        record: ChannelRecord,
        *,
        nonce_used: bool = True,
        fee: BaseUnits | None = None,
    ) -> bool:
        """Whether the chain has nothing left for a settlement to do; then it is ended, as failed.

        The state on chain decides, never what became of a transaction.
        """
        state = await backend.channel(row.channel_id)
        over = record.view.status == "closed" or (state is not None and state.finalized)
        settled = record.view.settled
        if state is not None and not means_nothing(state) and differs(state, record.view):
            changed = await take(self._journal, row.channel_id, state)
            settled = changed.channel.settled
            self._on_changed(changed.channel)
        # A close whose channel has paid out more by now would revert: the next one is made for what is left.
        if not over and settled < row.capture + (row.kind == "close"):
            return False
        error = "the channel was closed by another transaction" if over else "another transaction settled it"
        await asyncio.to_thread(
            self._outbox.end, row, state=FAILED, error=error, fee=fee, nonce_used=row.nonce is not None and nonce_used
        )
        metrics.settlements.labels(row.kind, "superseded").inc()
        _log.warning("settlement_superseded", settlement_id=row.id, channel_id=row.channel_id, reason=error)
        if settled < row.capture:
            metrics.alerts.labels("uncollected").inc()
        return True

    async def _give_back(self, row: SettlementRecord, error: str, *, fee: BaseUnits | None = None) -> None:
        """What was signed did nothing: the same intent again, a few times."""
        if row.attempts + 1 >= ATTEMPTS_MAX:
            await self._give_up(row, error, fee=fee)
            return
        await asyncio.to_thread(self._outbox.forget_signed, row, error=error, fee=fee)
        _log.warning("settlement_retried", settlement_id=row.id, attempts=row.attempts + 1, reason=error)

    async def _refused(self, row: SettlementRecord, error: str) -> None:
        """It could not even be signed, or was not let into the pool."""
        metrics.alerts.labels("settlement_refused").inc()
        if row.state == INTENT and row.attempts + 1 >= ATTEMPTS_MAX:
            await self._give_up(row, error, fee=None)
        else:
            await asyncio.to_thread(self._outbox.note, row, error=error, attempted=row.state == INTENT)

    async def _give_up(self, row: SettlementRecord, error: str, *, fee: BaseUnits | None) -> None:
        # Counted, so that the policy leaves the channel alone for a while.
        await asyncio.to_thread(self._outbox.give_up, row, error=error, fee=fee)
        metrics.settlements.labels(row.kind, FAILED).inc()
        metrics.alerts.labels("settlement_failed").inc()
        _log.error("settlement_failed", settlement_id=row.id, channel_id=row.channel_id, reason=error)

    async def _note(self, row: SettlementRecord, error: str) -> None:
        if row.error != error:
            await asyncio.to_thread(self._outbox.note, row, error=error)

    def _is_due(self, row: SettlementRecord) -> bool:
        """What failed waits longer each time."""
        if not row.attempts:
            return True
        wait_ms = min(RETRY_MS_MAX, RETRY_MS << row.attempts)
        return self._clock.now_ms() - row.updated_at >= wait_ms

    def _forget_all_but(self, signed: Sequence[SettlementRecord]) -> None:
        current = {row.tx_hash for row in signed}
        for known in (self._broadcast_at_s, self._refusals, self._doubted):
            for tx_hash in [tx_hash for tx_hash in known if tx_hash not in current]:
                del known[tx_hash]

    async def _leased(self) -> bool:
        """Whether we sign for the account; renewed at half of its time."""
        now = self._clock.now_ms()
        if self._lease_until_ms - now > self._ttl_ms // 2:
            return True
        taken: bool = await asyncio.to_thread(
            self._outbox.take_lease, self.name, owner_id=self._owner_id, ttl_ms=self._ttl_ms, alone=self._alone
        )
        self._lease_until_ms = now + self._ttl_ms if taken else 0
        return taken
