"""The outbox of settlements, who may sign for an account, and how far escrows were read. SQL.

A settlement is an intent (written by the journal), then a signed transaction that is kept before anyone
else sees it, then what the chain said. Whoever signs holds the account's lease, which is checked in the
same transaction that keeps the nonce: two replicas never use one nonce twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Connection, Engine, Select, Table, and_, case, delete, exists, func, or_, select, update

from app.channels.channel import ChannelView
from app.clock import Clock, EpochMs
from app.database import insert_or_ignore
from app.money import NANO_PER_BASE_UNIT, BaseUnits, NanoUsd
from app.tables import (
    accounts,
    challenge_claims,
    channels,
    owners,
    settlements,
    settlers,
    sponsored_fees,
    sponsored_transactions,
    vouchers,
    watch_positions,
)

INTENT = "intent"
SIGNED = "signed"
CONFIRMED = "confirmed"
FAILED = "failed"
OPEN_STATES = (INTENT, SIGNED)
ROWS_MAX = 1000
ERROR_CHARACTERS_MAX = 300


@dataclass(frozen=True, slots=True)
class SettlementRecord:
    """A row of the outbox. ``capture`` is what the channel has paid out in all once it is confirmed."""

    id: str
    channel_id: str
    kind: str
    amount: BaseUnits
    capture: BaseUnits
    signature: str = field(repr=False)
    account: str
    state: str
    nonce: int | None
    raw: bytes | None = field(repr=False)
    tx_hash: str | None
    fee: BaseUnits | None
    attempts: int
    error: str | None
    created_at: EpochMs
    updated_at: EpochMs


@dataclass(frozen=True, slots=True)
class DueChannel:
    """A channel on which something may have to be settled.

    ``payable`` is the highest voucher that is spent and not settled, and ``payable_since`` is when the
    first such voucher came. ``failed_at`` is when a settlement was last given up.
    """

    view: ChannelView
    payable: BaseUnits | None
    payable_since: EpochMs | None
    failed_at: EpochMs | None


@dataclass(frozen=True, slots=True)
class Exposure:
    """All channels of one kind together; amounts as in `ChannelView`. ``uncollected`` is spent and not settled."""

    backend: str
    chain_id: int
    escrow: str
    open: int
    closing: int
    deposit: BaseUnits
    uncollected: NanoUsd


class OutboxStore:
    """Synchronous: callers run it in a thread."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            yield connection

    def _inserted(self, connection: Connection, table: Table, row: Mapping[str, object]) -> bool:
        """Insert a row unless it is there; whether it was not."""
        # Without being told to, SQLAlchemy forgets what PostgreSQL says of inserts.
        options = {"preserve_rowcount": True}
        inserting = insert_or_ignore(self._engine, table)
        return bool(connection.execute(inserting, row, execution_options=options).rowcount > 0)

    # Who may sign.

    def take_lease(self, account: str, *, owner_id: str, ttl_ms: int, alone: bool = False) -> bool:
        """Be, or stay, the one settler of an account; false while another is.

        ``alone`` says that no other process can be there, so that whoever held it is gone.
        """
        now = self._clock.now_ms()
        mine = (settlers.c.owner_id == owner_id) | (settlers.c.expires_at_ms <= now)
        row = {"account": account, "owner_id": owner_id, "expires_at_ms": EpochMs(now + ttl_ms)}
        with self._writing() as connection:
            statement = update(settlers).where(settlers.c.account == account).values(row)
            if connection.execute(statement if alone else statement.where(mine)).rowcount:
                return True
            return self._inserted(connection, settlers, row)

    def give_lease(self, *, owner_id: str) -> None:
        """Let others settle at once."""
        with self._writing() as connection:
            connection.execute(delete(settlers).where(settlers.c.owner_id == owner_id))

    def server_is_running(self, *, ttl_ms: int) -> bool:
        """Whether any serving process has said that it lives within ``ttl_ms``."""
        query = select(owners.c.id).where(owners.c.heartbeat_at_ms > self._clock.now_ms() - ttl_ms).limit(1)
        with self._engine.connect() as connection:
            return connection.execute(query).first() is not None

    # The outbox.

    def open_settlements(self, account: str | None = None) -> Sequence[SettlementRecord]:
        """What is not over, of one account or of all: signed ones by nonce, then intents by age."""
        query = select(settlements).where(settlements.c.state.in_(OPEN_STATES))
        if account is not None:
            query = query.where(settlements.c.account == account)
        order = (case((settlements.c.nonce.is_(None), 1), else_=0), settlements.c.nonce, settlements.c.created_at_ms)
        return self._settlements(query.order_by(*order, settlements.c.id).limit(ROWS_MAX))

    def settlements_of(self, channel_id: str, *, limit: int = 100) -> Sequence[SettlementRecord]:
        """A channel's settlements, the newest first."""
        query = select(settlements).where(settlements.c.channel_id == channel_id)
        return self._settlements(
            query.order_by(settlements.c.created_at_ms.desc(), settlements.c.id.desc()).limit(limit)
        )

    def failed_settlements(self, *, limit: int = 100) -> Sequence[SettlementRecord]:
        """What was given up, the newest first."""
        query = select(settlements).where(settlements.c.state == FAILED, settlements.c.attempts > 0)
        return self._settlements(query.order_by(settlements.c.updated_at_ms.desc()).limit(limit))

    def captured_by(self, tx_hash: str) -> BaseUnits | None:
        """What a channel has paid out in all by a transaction of ours; None if it is not one of the outbox."""
        query = select(settlements.c.capture).where(settlements.c.tx_hash == tx_hash)
        with self._engine.connect() as connection:
            return connection.execute(query).scalar()

    def closed_by(self, channel_id: str) -> str | None:
        """The hash of the transaction by which we closed a channel."""
        query = select(settlements.c.tx_hash).where(
            settlements.c.channel_id == channel_id, settlements.c.kind == "close", settlements.c.state == CONFIRMED
        )
        with self._engine.connect() as connection:
            return connection.execute(query).scalar()

    def nonces(self, account: str, *, at_least: int) -> set[int]:
        """The nonces that settlements of an account have, from ``at_least`` on."""
        query = select(settlements.c.nonce).where(settlements.c.account == account, settlements.c.nonce >= at_least)
        with self._engine.connect() as connection:
            return set(connection.execute(query).scalars())

    def keep_signed(
        self,
        settlement_id: str,
        *,
        account: str,
        owner_id: str,
        nonce: int,
        raw: bytes,
        tx_hash: str,
        instead_of: str | None = None,
    ) -> bool:
        """Keep a signed transaction before it is broadcast.

        False, and nothing kept, unless the lease is ours, the nonce is free and the row is an intent still (or,
        with ``instead_of``, has that transaction).
        """
        now = self._clock.now_ms()
        with self._writing() as connection:
            # The row's lock is what two replicas meet at.
            lease = connection.execute(select(settlers).where(settlers.c.account == account).with_for_update()).first()
            if lease is None or lease.owner_id != owner_id or lease.expires_at_ms <= now:
                return False
            taken = select(settlements.c.id).where(
                settlements.c.account == account, settlements.c.nonce == nonce, settlements.c.id != settlement_id
            )
            if connection.execute(taken).first() is not None:
                return False
            before = (
                settlements.c.state == INTENT
                if instead_of is None
                else and_(settlements.c.state == SIGNED, settlements.c.tx_hash == instead_of)
            )
            statement = (
                update(settlements)
                .where(settlements.c.id == settlement_id, before)
                .values(state=SIGNED, nonce=nonce, raw=raw, tx_hash=tx_hash, updated_at_ms=now)
            )
            return bool(connection.execute(statement).rowcount)

    def forget_signed(self, record: SettlementRecord, *, error: str, fee: BaseUnits | None = None) -> None:
        """Make a signed settlement an intent again: its transaction did nothing, or never will."""
        self._change(
            record,
            {"state": INTENT, "nonce": None, "raw": None, "tx_hash": None, "attempts": record.attempts + 1},
            error=error,
            fee=fee,
        )

    def give_up(self, record: SettlementRecord, *, error: str, fee: BaseUnits | None = None) -> None:
        """End a settlement that failed too often; the channel may be planned for again later."""
        values: dict[str, object] = {"state": FAILED, "nonce": None, "raw": None, "attempts": record.attempts + 1}
        self._change(record, values, error=error, fee=fee)

    def note(self, record: SettlementRecord, *, error: str, attempted: bool = False) -> None:
        """Keep why a settlement does not get on."""
        self._change(record, {"attempts": record.attempts + attempted}, error=error, fee=None)

    def end(
        self,
        record: SettlementRecord,
        *,
        state: str,
        error: str | None = None,
        fee: BaseUnits | None = None,
        nonce_used: bool = True,
    ) -> None:
        """``confirmed`` or ``failed``. A nonce that was not used is free again."""
        values: dict[str, object] = {"state": state, "raw": None}
        if not nonce_used:
            values["nonce"] = None
        self._change(record, values, error=error, fee=fee)

    def _change(
        self, record: SettlementRecord, values: dict[str, object], *, error: str | None, fee: BaseUnits | None
    ) -> None:
        """Change a row that is still as it was read; any other was changed by who holds the lease now."""
        values = values | {
            "error": error[:ERROR_CHARACTERS_MAX] if error else None,
            "updated_at_ms": self._clock.now_ms(),
        }
        if fee is not None:
            values["fee"] = (record.fee or 0) + fee
        unchanged = (
            settlements.c.state == record.state,
            settlements.c.tx_hash.is_not_distinct_from(record.tx_hash),
            settlements.c.attempts == record.attempts,
        )
        with self._writing() as connection:
            connection.execute(update(settlements).where(settlements.c.id == record.id, *unchanged).values(values))

    def _settlements(self, query: Select[tuple[object, ...]]) -> list[SettlementRecord]:
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [_record(tuple(row)) for row in rows]

    # What may have to be settled.

    def due(self, *, least: NanoUsd, limit: int = ROWS_MAX) -> Sequence[DueChannel]:
        """Channels that stop, or of which ``least`` is spent and not settled, and that nothing is settling."""
        columns = channels.c
        exposure = columns.spent - columns.settled * NANO_PER_BASE_UNIT
        payable = (
            vouchers.c.channel_id == columns.id,
            vouchers.c.amount > columns.settled,
            vouchers.c.amount * NANO_PER_BASE_UNIT <= columns.spent,
        )
        failed = (
            settlements.c.channel_id == columns.id,
            settlements.c.state == FAILED,
            settlements.c.attempts > 0,
        )
        under_way = exists().where(settlements.c.channel_id == columns.id, settlements.c.state.in_(OPEN_STATES))
        stopping = or_(columns.status == "closing", columns.close_requested_at != 0)
        query = (
            select(
                columns.id,
                columns.status,
                columns.deposit,
                columns.settled,
                columns.accepted,
                columns.spent,
                accounts.c.debits_pending,
                columns.published,
                columns.close_requested_at,
                select(func.max(vouchers.c.amount)).where(*payable).scalar_subquery().label("payable"),
                select(func.min(vouchers.c.created_at_ms)).where(*payable).scalar_subquery().label("payable_since"),
                select(func.max(settlements.c.updated_at_ms)).where(*failed).scalar_subquery().label("failed_at"),
            )
            .join_from(channels, accounts, accounts.c.id == "channel:" + columns.id)
            .where(columns.status != "closed", ~under_way, or_(stopping, exposure >= least))
            .order_by(case((stopping, 0), else_=1), exposure.desc(), columns.id)
            .limit(limit)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        return [DueChannel(ChannelView(*row[:9]), row.payable, row.payable_since, row.failed_at) for row in rows]

    def exposures(self) -> Sequence[Exposure]:
        """What is at stake on the channels that are not closed, by kind."""
        columns = channels.c
        kind = (columns.backend, columns.chain_id, columns.escrow)
        query = (
            select(
                *kind,
                func.sum(case((columns.status == "open", 1), else_=0)),
                func.sum(case((columns.status == "closing", 1), else_=0)),
                func.sum(columns.deposit),
                func.sum(columns.spent - columns.settled * NANO_PER_BASE_UNIT),
            )
            .where(columns.status != "closed")
            .group_by(*kind)
            .order_by(*kind)
        )
        with self._engine.connect() as connection:
            rows = connection.execute(query).all()
        # PostgreSQL sums BIGINT as NUMERIC.
        return [
            Exposure(row[0], row[1], row[2], int(row[3]), int(row[4]), BaseUnits(int(row[5])), NanoUsd(int(row[6])))
            for row in rows
        ]

    # How far escrows were read.

    def position(self, name: str) -> tuple[int, EpochMs] | None:
        """The block up to which an escrow's events were taken, and when that was."""
        query = select(watch_positions.c.block, watch_positions.c.updated_at_ms).where(watch_positions.c.escrow == name)
        with self._engine.connect() as connection:
            row = connection.execute(query).first()
        return (row.block, EpochMs(row.updated_at_ms)) if row else None

    def keep_position(self, name: str, *, block: int) -> None:
        """Events up to ``block`` were taken; a replica that is behind changes nothing."""
        row = {"escrow": name, "block": block, "updated_at_ms": self._clock.now_ms()}
        behind = and_(watch_positions.c.escrow == name, watch_positions.c.block <= block)
        with self._writing() as connection:
            if not connection.execute(update(watch_positions).where(behind).values(row)).rowcount:
                connection.execute(insert_or_ignore(self._engine, watch_positions), row)

    # Fees that are paid for clients.

    def reserve_fee(self, tx_hash: str, *, backend: str, day: int, amount: BaseUnits, limit: BaseUnits) -> bool:
        """Reserve a transaction's worst case of the day's budget; the same transaction again is one reservation."""
        with self._writing() as connection:
            row = {"tx_hash": tx_hash, "backend": backend, "day": day, "reserved": amount}
            if not self._inserted(connection, sponsored_transactions, row):
                return True
            connection.execute(
                insert_or_ignore(self._engine, sponsored_fees), {"backend": backend, "day": day, "reserved": 0}
            )
            total = sponsored_fees.c.reserved + amount
            within = (sponsored_fees.c.backend == backend, sponsored_fees.c.day == day, total <= limit)
            if connection.execute(update(sponsored_fees).where(*within).values(reserved=total)).rowcount:
                return True
            connection.execute(delete(sponsored_transactions).where(sponsored_transactions.c.tx_hash == tx_hash))
            return False

    def fee_is_settled(self, tx_hash: str) -> bool:
        """Whether what a sponsored transaction cost is known."""
        query = select(sponsored_transactions.c.fee).where(sponsored_transactions.c.tx_hash == tx_hash)
        with self._engine.connect() as connection:
            return connection.execute(query).scalar() is not None

    def settle_fee(self, tx_hash: str, *, fee: BaseUnits) -> None:
        """A sponsored transaction cost ``fee``: the rest of what it reserved is free again."""
        columns = sponsored_transactions.c
        with self._writing() as connection:
            statement = update(sponsored_transactions).where(columns.tx_hash == tx_hash, columns.fee.is_(None))
            if not connection.execute(statement.values(fee=fee)).rowcount:
                return
            row = connection.execute(select(sponsored_transactions).where(columns.tx_hash == tx_hash)).one()
            day = (sponsored_fees.c.backend == row.backend, sponsored_fees.c.day == row.day)
            left = sponsored_fees.c.reserved - row.reserved + fee
            connection.execute(update(sponsored_fees).where(*day).values(reserved=left))

    # What is not needed any more.

    def prune_vouchers(self) -> int:
        """Delete vouchers that no settlement and no close can need; returns how many.

        Kept are the highest that is spent and all above it, and the first that is spent and not settled,
        which tells how long something is owed.
        """
        highest = (
            select(func.max(vouchers.c.amount))
            .where(vouchers.c.channel_id == channels.c.id, vouchers.c.amount * NANO_PER_BASE_UNIT <= channels.c.spent)
            .scalar_subquery()
        )
        first = (
            select(func.min(vouchers.c.amount))
            .where(vouchers.c.channel_id == channels.c.id, vouchers.c.amount > channels.c.settled)
            .scalar_subquery()
        )
        count = 0
        with self._engine.connect() as connection:
            query = select(channels.c.id, highest, first).where(channels.c.status != "closed", highest.is_not(None))
            kept = connection.execute(query).all()
        for channel_id, above, oldest in kept:
            gone = (vouchers.c.channel_id == channel_id, vouchers.c.amount < above, vouchers.c.amount != (oldest or 0))
            # Seldom anything is: no write lock is taken to find nothing.
            with self._engine.connect() as connection:
                found = connection.execute(select(vouchers.c.amount).where(*gone).limit(1)).first()
            if found is not None:
                with self._writing() as connection:
                    count += connection.execute(delete(vouchers).where(*gone)).rowcount
        return count

    def prune_challenges(self, *, expired_before: EpochMs) -> int:
        """Delete claims of challenges that would be refused for their age anyway."""
        with self._writing() as connection:
            gone = challenge_claims.c.expires_at_ms < expired_before
            return connection.execute(delete(challenge_claims).where(gone)).rowcount


def _record(row: tuple[object, ...]) -> SettlementRecord:
    values = dict(zip(settlements.c.keys(), row, strict=True))
    raw = values["raw"]
    values["raw"] = bytes(raw) if isinstance(raw, bytes | memoryview) else None
    values["created_at"], values["updated_at"] = values.pop("created_at_ms"), values.pop("updated_at_ms")
    return SettlementRecord(**values)  # type: ignore[arg-type]
