"""Channels and their funding transactions, in SQL.

Making a channel moves no money and may be repeated; what moves money is the journal's. A funding
transaction is kept before it is broadcast, with the voucher that came with it, so that a deposit that
was mined while nobody looked is found again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
from sqlalchemy import Engine, func, literal, select

from app.channels.channel import AMOUNT_MAX, ChannelView
from app.clock import Clock, EpochMs
from app.database import insert_or_ignore
from app.money import BaseUnits, NanoUsd, nano_usd_of
from app.mpp.descriptor import Descriptor
from app.mpp.voucher import Voucher
from app.tables import accounts, channels, fundings, receipts, vouchers

RECEIPTS_SHOWN_MAX = 100
_DESCRIPTOR = ("payer", "payee", "token", "salt", "authorized_signer", "operator", "expiring_nonce_hash")


@dataclass(frozen=True, slots=True)
class ChannelRecord:
    """A channel with what identifies it."""

    id: str
    backend: str
    chain_id: int
    escrow: str
    descriptor: Descriptor
    view: ChannelView
    created_at: EpochMs
    close_voucher: Voucher | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class FundingRecord:
    """A client's funding transaction as it was kept. ``voucher`` came with an open."""

    tx_hash: str
    channel_id: str
    kind: str
    backend: str
    escrow: str
    descriptor: Descriptor
    amount: BaseUnits
    raw: bytes | None = field(repr=False)
    voucher: Voucher | None = field(repr=False)
    state: str = "sent"
    created_at: EpochMs = EpochMs(0)


@dataclass(frozen=True, slots=True)
class ReceiptRecord:
    """A stored receipt; amounts in base units."""

    request_id: str
    channel_id: str
    challenge_id: str
    accepted: BaseUnits
    spent: BaseUnits
    units: int
    created_at: EpochMs


class ChannelStore:
    """Synchronous: callers run it in a thread."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def create(
        self,
        channel_id: str,
        *,
        backend: str,
        chain_id: int,
        escrow: str,
        descriptor: Descriptor,
        deposit: BaseUnits,
        settled: BaseUnits,
        block: int,
    ) -> ChannelRecord:
        """The channel's row and account, made unless they are there.

        A channel that was settled before we knew of it starts at ``spent`` = ``settled``: what the chain
        has paid out cannot be spent again.
        """
        now = self._clock.now_ms()
        recovered = nano_usd_of(settled)
        row = {name: getattr(descriptor, name) for name in _DESCRIPTOR} | {
            "id": channel_id,
            "backend": backend,
            "chain_id": chain_id,
            "escrow": escrow,
            "status": "open",
            "deposit": min(deposit, AMOUNT_MAX),
            "settled": settled,
            "close_requested_at": 0,
            "seen_block": block,
            "recovered": recovered,
            "accepted": recovered,
            "spent": recovered,
            "published": settled,
            "version": 0,
            "created_at_ms": now,
        }
        account = {
            "id": f"channel:{channel_id}",
            "debits_pending": 0,
            "debits_posted": 0,
            "credits_pending": 0,
            "credits_posted": 0,
            "credit_limit": 0,
            "version": 0,
            "created_at_ms": now,
        }
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            connection.execute(insert_or_ignore(self._engine, accounts), account)
            connection.execute(insert_or_ignore(self._engine, channels), row)
        found = self.find(channel_id)
        if found is None:
            raise LookupError(f"channel {channel_id} was not kept")
        return found

    def find(self, channel_id: str) -> ChannelRecord | None:
        """One channel by its id in lowercase."""
        with self._engine.connect() as connection:
            rows = connection.execute(_select().where(channels.c.id == channel_id)).all()
        return _record(rows[0]) if rows else None

    def named(self, beginning: str, *, limit: int = 2) -> Sequence[ChannelRecord]:
        """Channels whose ids begin so, at most ``limit``."""
        query = (
            _select().where(channels.c.id.startswith(beginning, autoescape=True)).order_by(channels.c.id).limit(limit)
        )
        with self._engine.connect() as connection:
            return [_record(row) for row in connection.execute(query)]

    def list(self, *, status: str | None = None, limit: int = 1000) -> Sequence[ChannelRecord]:
        """Channels, the newest first."""
        query = _select().order_by(channels.c.created_at_ms.desc(), channels.c.id).limit(limit)
        if status is not None:
            query = query.where(channels.c.status == status)
        with self._engine.connect() as connection:
            return [_record(row) for row in connection.execute(query)]

    def first_seen(self, *, backend: str, chain_id: int, escrow: str) -> int | None:
        """The earliest block at which a channel of an escrow was seen that is not closed; None without any."""
        query = select(func.min(channels.c.seen_block)).where(
            channels.c.status != "closed",
            channels.c.backend == backend,
            channels.c.chain_id == chain_id,
            channels.c.escrow == escrow,
        )
        with self._engine.connect() as connection:
            return connection.execute(query).scalar()

    def highest_voucher(self, channel_id: str) -> Voucher | None:
        """The highest accepted voucher with its signature."""
        return self._voucher(channel_id, vouchers.c.amount.desc())

    def voucher_at_most(self, channel_id: str, amount: BaseUnits) -> Voucher | None:
        """The highest accepted voucher that is not above ``amount``."""
        return self._voucher(channel_id, vouchers.c.amount.desc(), vouchers.c.amount <= amount)

    def voucher_at_least(self, channel_id: str, amount: BaseUnits) -> Voucher | None:
        """The lowest accepted voucher that covers ``amount``."""
        return self._voucher(channel_id, vouchers.c.amount, vouchers.c.amount >= amount)

    def _voucher(self, channel_id: str, order: Any, *conditions: Any) -> Voucher | None:
        query = (
            select(vouchers.c.amount, vouchers.c.signature)
            .where(vouchers.c.channel_id == channel_id, *conditions)
            .order_by(order)
            .limit(1)
        )
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        return Voucher(channel_id, row.amount, row.signature) if row else None

    def receipts(self, channel_id: str, *, limit: int = RECEIPTS_SHOWN_MAX) -> Sequence[ReceiptRecord]:
        """A channel's newest receipts."""
        query = (
            select(receipts)
            .where(receipts.c.channel_id == channel_id)
            .order_by(receipts.c.created_at_ms.desc(), receipts.c.request_id.desc())
            .limit(limit)
        )
        with self._engine.connect() as connection:
            return [ReceiptRecord(*row) for row in connection.execute(query)]

    def receipt(self, request_id: str) -> ReceiptRecord | None:
        """The receipt of one request."""
        with self._engine.connect() as connection:
            row = connection.execute(select(receipts).where(receipts.c.request_id == request_id)).first()
        return ReceiptRecord(*row) if row else None

    def keep_funding(self, funding: FundingRecord) -> None:
        """Keep a funding transaction before it is broadcast; a known one stays as it is."""
        row = {
            "tx_hash": funding.tx_hash,
            "channel_id": funding.channel_id,
            "kind": funding.kind,
            "backend": funding.backend,
            "escrow": funding.escrow,
            "descriptor": orjson.dumps(funding.descriptor.to_wire()).decode(),
            "amount": funding.amount,
            "raw": funding.raw,
            "voucher_amount": funding.voucher.cumulative_amount if funding.voucher else None,
            "voucher_signature": funding.voucher.signature if funding.voucher else None,
            "state": "sent",
            "error": None,
            "created_at_ms": self._clock.now_ms(),
        }
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            connection.execute(insert_or_ignore(self._engine, fundings), row)

    def end_funding(self, tx_hash: str, *, state: str, error: str | None = None) -> None:
        """``mined`` or ``failed``; the transaction's bytes are not needed any more."""
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            connection.execute(
                fundings.update().where(fundings.c.tx_hash == tx_hash).values(state=state, error=error, raw=None)
            )

    def open_fundings(self, *, limit: int = 1000) -> Sequence[FundingRecord]:
        """Funding transactions whose end is not known, the oldest first."""
        query = select(fundings).where(fundings.c.state == "sent").order_by(fundings.c.created_at_ms).limit(limit)
        with self._engine.connect() as connection:
            return [_funding(row) for row in connection.execute(query)]


def _select() -> Any:
    # What is held is the account's.
    return select(channels, accounts.c.debits_pending).join_from(
        channels, accounts, accounts.c.id == literal("channel:") + channels.c.id
    )


def _record(row: Any) -> ChannelRecord:
    view = ChannelView(
        row.id,
        row.status,
        BaseUnits(row.deposit),
        BaseUnits(row.settled),
        NanoUsd(row.accepted),
        NanoUsd(row.spent),
        NanoUsd(row.debits_pending),
        BaseUnits(row.published),
        row.close_requested_at,
    )
    closing = Voucher(row.id, row.close_amount, row.close_signature) if row.close_signature else None
    descriptor = Descriptor(**{name: getattr(row, name) for name in _DESCRIPTOR})
    return ChannelRecord(
        row.id, row.backend, row.chain_id, row.escrow, descriptor, view, EpochMs(row.created_at_ms), closing
    )


def _funding(row: Any) -> FundingRecord:
    voucher = (
        Voucher(row.channel_id, row.voucher_amount, row.voucher_signature)
        if row.voucher_signature is not None
        else None
    )
    return FundingRecord(
        row.tx_hash,
        row.channel_id,
        row.kind,
        row.backend,
        row.escrow,
        Descriptor.parse(orjson.loads(row.descriptor)),
        BaseUnits(row.amount),
        bytes(row.raw) if row.raw is not None else None,
        voucher,
        row.state,
        EpochMs(row.created_at_ms),
    )
