"""Commits a batch of operations in one transaction: load under locks, decide, write, commit.

The same on SQLite and PostgreSQL. Driver calls are made directly, with texts made once: a commit of
a hundred operations is about ten statements. SQLAlchemy lends the connection and its dialect.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Engine, Table

from app.channels.channel import Channel
from app.channels.listener_store import CHANNEL_CHANGED
from app.clock import Clock
from app.database import BUSY_TIMEOUT_MS, is_sqlite
from app.errors import InvariantViolated
from app.ledger.account import CHANNEL_PREFIX, Account, can_refuse, channel_account
from app.ledger.books import Books, ClaimRow, DeliveryRow
from app.ledger.budget import KeyBudget
from app.ledger.decision import decide
from app.ledger.operation import (
    AcceptVoucher,
    Admit,
    Capture,
    Deliver,
    Extend,
    Freeze,
    Observe,
    Operation,
    PlanSettlement,
    Post,
    Result,
    Sweep,
)
from app.ledger.statements import Statements
from app.ledger.transfer import Hold
from app.tables import (
    accounts,
    api_keys,
    attempts,
    challenge_claims,
    channels,
    deliveries,
    holds,
    idempotency_claims,
    outcomes,
    owners,
    receipts,
    requests,
    settlements,
    transfers,
    vouchers,
)

_ACCOUNT_COLUMNS = (
    "id",
    "debits_pending",
    "debits_posted",
    "credits_pending",
    "credits_posted",
    "credit_limit",
    "version",
)
_ACCOUNT_WRITES = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")
_KEY_COLUMNS = tuple(KeyBudget.__slots__)
_KEY_WRITES = ("spent", "held", "month", "spent_month", "minute", "minute_requests", "minute_tokens")
_HOLD_COLUMNS = Hold._fields
_CHANNEL_COLUMNS = tuple(Channel.__slots__)
_CHANNEL_WRITES = tuple(name for name in _CHANNEL_COLUMNS if name not in {"id", "recovered", "version"})


class JournalStore:
    """One connection that commits operations; used by one thread at a time."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._sqlite = is_sqlite(engine)
        self._statements = Statements(sqlite=self._sqlite)
        self._lease: Any = None
        self._connection: Any = None
        self._patient: bool | None = None

    def apply(self, operations: Sequence[Operation], *, again: bool = False) -> list[Result]:
        """Commit all of ``operations`` in one transaction and return their results in order.

        ``again`` says that an earlier try may have committed: what is done is found, not repeated.
        Raises what the driver raises, after rolling back.
        """
        results = self._write_batch(operations, again=again, patient=True)
        self.commit()
        return results

    @property
    def writes_inline(self) -> bool:
        """Whether `write` is quick enough for an event loop: an embedded database's statements are."""
        return self._sqlite

    def write(self, operations: Sequence[Operation]) -> list[Result]:
        """The first half of `apply`, without waiting for anyone's lock: `commit` must follow."""
        return self._write_batch(operations, again=False, patient=False)

    def commit(self) -> None:
        """Make what was written durable. Raises what the driver raises, after rolling back."""
        try:
            self._finish("COMMIT")
        except BaseException:
            self._abandon()
            raise

    def _write_batch(self, operations: Sequence[Operation], *, again: bool, patient: bool) -> list[Result]:
        self._connect()
        try:
            self._begin(patient=patient)
            books = self._load(operations, again=again)
            results = [decide(books, operation) for operation in operations]
            self._write(books)
            return results
        except BaseException:
            self._abandon()
            raise

    @property
    def driver(self) -> Any:
        """The DB-API module, for its error classes."""
        return self._engine.dialect.loaded_dbapi

    def close(self) -> None:
        """Give the connection back."""
        if self._lease is not None:
            self._lease.close()
            self._lease = self._connection = self._patient = None

    def _connect(self) -> None:
        if self._connection is not None:
            return
        self._lease = self._engine.raw_connection()
        self._connection = self._lease.driver_connection
        if not self._sqlite:
            from psycopg.types.numeric import Int8Dumper

            # One integer type for every size, so that a statement is prepared once.
            self._connection.adapters.register_dumper(int, Int8Dumper)

    def _begin(self, *, patient: bool) -> None:
        if not self._sqlite:
            return
        if patient is not self._patient:
            self._connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS if patient else 0}")
            self._patient = patient
        self._connection.execute("BEGIN IMMEDIATE")

    def _finish(self, word: str) -> None:
        if self._sqlite:
            self._connection.execute(word)
        elif word == "COMMIT":
            self._connection.commit()
        else:
            self._connection.rollback()

    def _abandon(self) -> None:
        """Roll back; a connection that cannot even do that is thrown away."""
        try:
            if not self._sqlite or self._connection.in_transaction:
                self._finish("ROLLBACK")
        except self.driver.Error:
            self._lease.invalidate()
            self._lease = self._connection = self._patient = None

    def _read(
        self, table: Table, columns: tuple[str, ...], by: str, values: Iterable[str], *, lock: bool = False
    ) -> Any:
        unique = list(dict.fromkeys(values))
        for text, parameters in self._statements.select(table, columns, by=by, values=unique, lock=lock):
            yield from self._connection.execute(text, parameters).fetchall()

    def _load(self, operations: Sequence[Operation], *, again: bool) -> Books:
        # Payers' rows are locked first, in order of id, and every other row is reached through its
        # payer: batches of several replicas can wait for each other but never in a circle.
        books = Books(now=self._clock.now_ms())
        account_ids, key_ids = _touched(operations)
        for row in self._read(accounts, _ACCOUNT_COLUMNS, "id", account_ids, lock=True):
            books.accounts[row[0]] = Account(*row)
        for row in self._read(api_keys, _KEY_COLUMNS, "id", key_ids, lock=True):
            books.keys[row[0]] = KeyBudget(*row)
        self._load_channels(books, operations, account_ids)
        running = [op.request_id for op in operations if isinstance(op, Deliver | Extend | Capture | Sweep)]
        for row in self._read(holds, _HOLD_COLUMNS, "request_id", running):
            hold = Hold._make(row)
            books.holds.setdefault(hold.request_id, []).append(hold)
        for held in books.holds.values():
            held.sort(key=lambda hold: (len(hold.id), hold.id))
        self._load_claims(books, operations)
        self._load_done(books, operations, again=again)
        self._load_sweeps(books, [op for op in operations if isinstance(op, Sweep)])
        return books

    def _load_channels(self, books: Books, operations: Sequence[Operation], account_ids: set[str]) -> None:
        """Channels after their accounts, which are locked: no two batches meet here."""
        ids = [name[len(CHANNEL_PREFIX) :] for name in account_ids if name[: len(CHANNEL_PREFIX)] == CHANNEL_PREFIX]
        if not ids:
            return
        for row in self._read(channels, _CHANNEL_COLUMNS, "id", ids, lock=True):
            books.channels[row[0]] = Channel(*row)
        conditions = [op.channel for op in operations if isinstance(op, Admit) and op.channel is not None]
        claimed = [condition.challenge_id for condition in conditions if condition.challenge_id is not None]
        books.challenges_claimed.update(row[0] for row in self._read(challenge_claims, ("id",), "id", claimed))
        planned = [op for op in operations if isinstance(op, PlanSettlement)]
        columns = ("id", "channel_id", "state", "capture")
        for settlement_id, channel_id, state, capture in self._read(
            settlements, columns, "channel_id", [op.channel_id for op in planned]
        ):
            books.settlements_done[settlement_id] = capture
            if state in {"intent", "signed"}:
                books.settlements_open[channel_id] = settlement_id

    def _load_claims(self, books: Books, operations: Sequence[Operation]) -> None:
        wanted = {(op.account_id, op.claim.key_hash) for op in operations if isinstance(op, Admit) and op.claim}
        columns = ("account_id", "key_hash", "request_id", "body_hash", "state", "answer", "expires_at_ms")
        for row in self._read(idempotency_claims, columns, "key_hash", (key_hash for _, key_hash in wanted)):
            if (row[0], row[1]) in wanted:
                answer = bytes(row[5]) if row[5] is not None else None
                books.claims[row[0], row[1]] = ClaimRow(row[2], row[3], row[4], answer, row[6])

    def _load_done(self, books: Books, operations: Sequence[Operation], *, again: bool) -> None:
        ids = [op.transfer.id for op in operations if isinstance(op, Post)]
        if again:
            ids += [f"{op.request_id}:h0" for op in operations if isinstance(op, Admit)]
            ids += [f"{op.request_id}:h{op.sequence}" for op in operations if isinstance(op, Extend)]
            marked = [op.request_id for op in operations if isinstance(op, Deliver)]
            for request_id, sequence in self._read(deliveries, ("request_id", "sequence"), "request_id", marked):
                books.delivered.add((request_id, sequence))
        columns = ("id", "amount", "debit_account", "credit_account")
        for transfer_id, amount, debit_account, credit_account in self._read(transfers, columns, "id", ids):
            books.amounts_done[transfer_id] = amount
            books.sides_done[transfer_id] = (debit_account, credit_account)
        over = [op.request_id for op in operations if isinstance(op, Capture) and not books.holds.get(op.request_id)]
        for request_id, charged, loss in self._read(outcomes, ("request_id", "charged", "loss"), "request_id", over):
            books.outcomes_done[request_id] = (charged, loss)

    def _load_sweeps(self, books: Books, sweeps: Sequence[Sweep]) -> None:
        if not sweeps:
            return
        columns = ("request_id", "sequence", "provider", "price_version_id", "used", "window")
        marks = sorted(self._read(deliveries, columns, "request_id", [op.request_id for op in sweeps]))
        for request_id, _sequence, *mark in marks:
            books.deliveries[request_id] = DeliveryRow(*mark)
        for owner_id, at in self._read(owners, ("id", "heartbeat_at_ms"), "id", [op.owner_id for op in sweeps]):
            books.heartbeats[owner_id] = at

    def _write(self, books: Books) -> None:
        if self._sqlite:
            self._write_rows(books)
        else:
            with self._connection.pipeline():
                cursors = self._write_rows(books)
            for cursor, due in cursors:
                _all_updated(cursor.rowcount, due)

    def _write_rows(self, books: Books) -> list[tuple[Any, int]]:
        execute = self._connection.execute
        cursors = []
        for table, columns, rows in (
            (accounts, _ACCOUNT_WRITES, [books.accounts[name] for name in sorted(books.accounts_changed)]),
            (api_keys, _KEY_WRITES, [books.keys[name] for name in sorted(books.keys_changed)]),
            (channels, _CHANNEL_WRITES, [books.channels[name] for name in sorted(books.channels_changed)]),
        ):
            values = [(row.id, row.version, *(getattr(row, name) for name in columns)) for row in rows]
            for text, parameters, due in self._statements.update(table, columns, values):
                cursor = execute(text, parameters)
                if self._sqlite:
                    _all_updated(cursor.rowcount, due)
                cursors.append((cursor, due))
        gone = set(books.resolved_holds)
        self._insert(transfers, books.new_transfers)
        self._insert(holds, [hold for hold in books.new_holds if hold.id not in gone])
        for text, parameters in self._statements.delete(holds, by="id", values=books.resolved_holds):
            execute(text, parameters)
        self._insert(requests, books.new_requests)
        self._insert(deliveries, books.new_deliveries)
        self._insert(outcomes, books.new_outcomes)
        self._insert(attempts, books.new_attempts)
        self._write_claims(books)
        if books.channels:
            self._insert(vouchers, books.new_vouchers)
            self._insert(challenge_claims, books.new_challenges)
            self._insert(receipts, books.new_receipts)
            self._insert(settlements, books.new_settlements)
            self._notify(books)
        return cursors

    def _notify(self, books: Books) -> None:
        """Tell the other processes which channels changed, and whether they stopped; sent with the commit."""
        if not self._sqlite and books.channels_changed:
            for channel_id in sorted(books.channels_changed):
                word = books.channels[channel_id].stopped or "open"
                self._connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL_CHANGED, f"{channel_id} {word}"))

    def _write_claims(self, books: Books) -> None:
        mark = "?" if self._sqlite else "%s"
        for place in books.new_claims:
            # Only an expired claim can be in the way: a live one refused the operation.
            self._connection.execute(
                f"DELETE FROM idempotency_claims WHERE account_id = {mark} AND key_hash = {mark}", place
            )
        self._insert(
            idempotency_claims,
            [
                (*place, row.body_hash, row.request_id, row.state, row.answer, row.expires_at_ms)
                for place, row in books.new_claims.items()
            ],
        )
        for resolution in books.resolved_claims:
            self._connection.execute(
                f"UPDATE idempotency_claims SET state = {mark}, answer = {mark} WHERE request_id = {mark}", resolution
            )
        for text, parameters in self._statements.delete(
            idempotency_claims, by="request_id", values=books.forgotten_claims
        ):
            self._connection.execute(text, parameters)

    def _insert(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        for text, parameters in self._statements.insert(table, rows):
            self._connection.execute(text, parameters)


def _touched(operations: Sequence[Operation]) -> tuple[set[str], set[str]]:
    account_ids: set[str] = set()
    key_ids: set[str] = set()
    for op in operations:
        match op:
            case Post():
                sides = (op.transfer.debit_account, op.transfer.credit_account)
                account_ids.update(filter(can_refuse, sides))
            case Admit() | Extend():
                account_ids.add(op.account_id)
                if op.key is not None:
                    key_ids.add(op.key.key_id)
            case Capture() | Sweep():
                account_ids.add(op.account_id)
                if op.key_id is not None:
                    key_ids.add(op.key_id)
            case Deliver():
                account_ids.add(op.account_id)
            case AcceptVoucher() | Freeze() | Observe() | PlanSettlement():
                account_ids.add(channel_account(op.channel_id))
    return account_ids, key_ids


def _all_updated(count: int, due: int) -> None:
    if count != due:
        raise InvariantViolated(f"a locked row changed under its lock: {count} of {due} updated")
