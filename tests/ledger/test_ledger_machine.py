"""The ledger against a plain model of it: random operations, batches, crashes and repetitions."""

import shutil
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Engine, select, text

from app.database import connect
from app.errors import InvariantViolated
from app.ledger import transfer as transfers
from app.ledger.account import REFUNDS
from app.ledger.budget import KeyCondition
from app.ledger.lease_store import LeaseStore
from app.ledger.operation import (
    Admit,
    Admitted,
    Capture,
    Captured,
    ClaimFound,
    Deliver,
    Delivered,
    Extend,
    Extended,
    Operation,
    Post,
    Posted,
    Refused,
    Result,
    Sweep,
)
from app.money import NanoUsd
from app.settings import DatabaseSettings
from app.tables import idempotency_claims, metadata
from tests.clocks import FakeClock
from tests.ledger.faults import WRITES, Crash, CrashingStore
from tests.ledger.operations import admit, capture, claim, condition, deliver, extend, post, sweep
from tests.ledger.proof import prove
from tests.ledger.seeds import add_customer, add_key, set_credit_limit

CUSTOMERS = ("a", "b", "c")
# The second key of each customer has a spend limit.
KEYS = {f"{customer}{number}": f"customer:{customer}" for customer in CUSTOMERS for number in (1, 2)}
KEY_LIMIT = 300
OWNERS = ("o1", "o2")
BATCH_MAX = 8
LEASE_MS = 30_000
CLAIM_LIFE_MS = 10**9
AMOUNTS = st.integers(0, 120)
# A request is named by how long ago it was made, so that a shrunk example keeps its meaning.
AGES = st.integers(0, 6)


@dataclass
class Request:
    account: str
    key: str | None
    owner: str
    granted: dict[int, int] = field(default_factory=dict)
    marks: dict[int, tuple[int, int]] = field(default_factory=dict)
    outcome: tuple[int, int] | None = None

    @property
    def held(self) -> int:
        return 0 if self.outcome is not None else sum(self.granted.values())


@dataclass
class Model:
    """The ledger without a database, batches or time. Amounts are plain integers."""

    balances: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    key_spent: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KEYS, 0))
    requests: dict[str, Request] = field(default_factory=dict)
    posts: dict[str, int] = field(default_factory=dict)
    claims: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)
    claim_ends: dict[str, str | None] = field(default_factory=dict)
    beats: dict[str, int] = field(default_factory=dict)

    def free(self, account: str, key: str | None) -> tuple[int, str]:
        held = sum(request.held for request in self.requests.values() if request.account == account)
        free, reason = self.balances[account] - held + self.limits[account], "insufficient_balance"
        if key is not None and key.endswith("2"):
            held = sum(request.held for request in self.requests.values() if request.key == key)
            left = KEY_LIMIT - self.key_spent[key] - held
            if left < free:
                return left, "spend_limit"
        return free, reason

    def batch(self, operations: list[Operation]) -> list[Result]:
        """Apply a batch. A claim that ends in it ends for the next batch."""
        results = [self.apply(operation) for operation in operations]
        for request_id, state in self.claim_ends.items():
            for place, (owner, _) in list(self.claims.items()):
                if owner == request_id:
                    if state is None:
                        del self.claims[place]
                    else:
                        self.claims[place] = (owner, state)
        self.claim_ends.clear()
        return results

    def apply(self, operation: Operation) -> Result:
        match operation:
            case Admit():
                return self.admit(operation)
            case Deliver():
                return self.deliver(operation)
            case Extend():
                return self.extend(operation)
            case Capture():
                return self.capture(operation)
            case Sweep():
                return self.sweep(operation)
            case Post():
                return self.post(operation)
            case _:
                raise AssertionError("operations on channels have a machine of their own")

    def admit(self, op: Admit) -> Result:
        key = op.key.key_id if op.key else None
        free, reason = self.free(op.account_id, key)
        if op.request_id in self.requests:
            granted = NanoUsd(self.requests[op.request_id].granted[0])
            return Admitted(granted, NanoUsd(self.free(op.account_id, None)[0] + granted))
        if op.claim is not None and (op.account_id, op.claim.key_hash) in self.claims:
            found, state = self.claims[op.account_id, op.claim.key_hash]
            return ClaimFound(found, op.claim.body_hash, state, None)
        if free < op.required:
            return Refused(reason, NanoUsd(max(free, 0)), op.required)
        granted = NanoUsd(min(op.amount, free))
        self.requests[op.request_id] = Request(op.account_id, key, op.owner_id, {0: granted})
        if op.claim is not None:
            self.claims[op.account_id, op.claim.key_hash] = (op.request_id, "running")
        return Admitted(granted, NanoUsd(free))

    def running(self, request_id: str) -> Request | None:
        request = self.requests.get(request_id)
        return request if request is not None and request.outcome is None else None

    def deliver(self, op: Deliver) -> Result:
        request = self.requests.get(op.request_id)
        if request is None or (request.outcome is not None and 0 not in request.marks):
            return Refused("hold_lost")
        request.marks.setdefault(0, (op.row[4], op.row[5]))
        return Delivered()

    def extend(self, op: Extend) -> Result:
        done = self.requests.get(op.request_id)
        if done is not None and op.sequence in done.granted:
            return Extended(NanoUsd(done.granted[op.sequence]))
        request = self.running(op.request_id)
        if request is None:
            return Refused("hold_lost")
        free, reason = self.free(op.account_id, op.key.key_id if op.key else None)
        if free < op.required:
            return Refused(reason, NanoUsd(max(free, 0)), op.required)
        granted = NanoUsd(min(op.amount, free))
        request.granted[op.sequence] = granted
        row = op.delivery(granted)
        request.marks[op.sequence] = (row[4], row[5])
        return Extended(granted)

    def end(self, request: Request, price: int) -> Captured:
        held = request.held
        request.outcome = (0, 0)
        self.balances[request.account] -= min(price, held)
        free, _ = self.free(request.account, None)
        overrun = min(max(price - held, 0), max(free, 0))
        self.balances[request.account] -= overrun
        charged = min(price, held) + overrun
        request.outcome = (charged, price - charged)
        if request.key is not None:
            self.key_spent[request.key] += charged
        return Captured(NanoUsd(charged), NanoUsd(price - charged))

    def capture(self, op: Capture) -> Result:
        request = self.requests.get(op.request_id)
        if request is None:
            raise InvariantViolated("captured without a hold")
        if request.outcome is not None:
            charged, loss = request.outcome
            return Captured(NanoUsd(charged), NanoUsd(loss), first=False)
        self.claim_ends[op.request_id] = None if op.forget_claim else "unstored"
        return self.end(request, op.outcome.price)

    def sweep(self, op: Sweep) -> Result:
        request = self.running(op.request_id)
        if request is None:
            return Captured(NanoUsd(0), first=False)
        if op.silent_since_ms is not None and self.beats.get(request.owner, 0) > op.silent_since_ms:
            return Refused("owner_lives")
        self.claim_ends[op.request_id] = "interrupted" if request.marks else None
        newest = request.marks[max(request.marks)] if request.marks else (0, 0)
        return self.end(request, min(request.held, sum(newest)))

    def post(self, op: Post) -> Result:
        move = op.transfer
        if move.id in self.posts:
            return Posted(first=False)
        if move.debit_account in self.balances:
            free, _ = self.free(move.debit_account, None)
            if move.kind == transfers.REFUND:
                free -= self.limits[move.debit_account]
            if free < move.amount:
                return Refused("insufficient_balance", NanoUsd(max(free, 0)), move.amount)
            self.balances[move.debit_account] -= move.amount
        if move.credit_account in self.balances:
            self.balances[move.credit_account] += move.amount
        self.posts[move.id] = move.amount
        return Posted()


@dataclass
class Made:
    """What the machine knows of a request that it made, whether or not it was admitted."""

    id: str
    account: str
    key: str | None
    owner: str
    windows: int = 0
    delivered: bool = False


class LedgerMachine(RuleBasedStateMachine):
    """Queues operations, commits them in batches, and compares every answer and every row."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = self.fresh()
        self.clock = FakeClock()
        self.store = CrashingStore(self.engine, self.clock)
        self.leases = LeaseStore(self.engine)
        self.model = Model()
        self.queue: list[Operation] = []
        self.last: list[Operation] = []
        self.made: list[Made] = []
        self.lowered: set[str] = set()
        self.numbers = count(1)

    def fresh(self) -> Engine:
        """An engine on a migrated database without rows."""
        raise NotImplementedError

    def teardown(self) -> None:
        self.store.close()
        self.engine.dispose()

    @initialize(limits=st.lists(st.integers(0, 100), min_size=3, max_size=3))
    def open(self, limits: list[int]) -> None:
        for customer, credit_limit in zip(CUSTOMERS, limits, strict=True):
            account = add_customer(self.engine, customer, credit_limit=credit_limit)
            self.model.balances[account], self.model.limits[account] = 0, credit_limit
        for key in KEYS:
            limit = KEY_LIMIT if key.endswith("2") else None
            add_key(self.engine, key, customer_id=key[0], spend_limit=limit)
        for owner in OWNERS:
            self.leases.register(owner, now=self.clock.now_ms())
            self.model.beats[owner] = self.clock.now_ms()

    def queued(self, operation: Operation) -> None:
        self.queue.append(operation)

    @precondition(lambda self: len(self.queue) < BATCH_MAX)
    @rule(customer=st.sampled_from(CUSTOMERS), amount=st.integers(1, 400))
    def top_up(self, customer: str, amount: int) -> None:
        self.queued(post(f"t{next(self.numbers)}", amount=amount, credit=f"customer:{customer}"))

    @precondition(lambda self: len(self.queue) < BATCH_MAX)
    @rule(
        customer=st.sampled_from(CUSTOMERS),
        amount=AMOUNTS,
        kind=st.sampled_from([transfers.REFUND, transfers.REVERSAL]),
    )
    def pay_out(self, customer: str, amount: int, kind: str) -> None:
        account = f"customer:{customer}"
        self.queued(post(f"t{next(self.numbers)}", amount=amount, debit=account, credit=REFUNDS, kind=kind))

    @precondition(lambda self: len(self.queue) < BATCH_MAX)
    @rule(
        key=st.sampled_from(sorted(KEYS)),
        keyless=st.booleans(),
        owner=st.sampled_from(OWNERS),
        amount=AMOUNTS,
        least=AMOUNTS,
        claimed=st.sampled_from([None, None, "x", "y"]),
    )
    def admit(self, key: str, keyless: bool, owner: str, amount: int, least: int, claimed: str | None) -> None:
        made = Made(f"r{next(self.numbers)}", KEYS[key], None if keyless else key, owner)
        self.made.append(made)
        self.queued(
            admit(
                made.id,
                amount=amount,
                required=min(amount, least),
                account_id=made.account,
                owner_id=owner,
                key=self.key_of(made),
                claim=claim(claimed, expires_in_ms=CLAIM_LIFE_MS) if claimed else None,
            )
        )

    @staticmethod
    def key_of(made: Made) -> KeyCondition | None:
        return condition(made.key, key_hash=f"hash-of-{made.key}") if made.key else None

    def aged(self, age: int) -> Made:
        return self.made[-1 - age % len(self.made)]

    @precondition(lambda self: self.made and len(self.queue) < BATCH_MAX)
    @rule(age=AGES, window=AMOUNTS)
    def deliver(self, age: int, window: int) -> None:
        made = self.aged(age)
        # Without ``again`` an operation is new: its caller sends it once.
        if not made.delivered and not made.windows:
            made.delivered = True
            self.queued(deliver(made.id, window=window, account_id=made.account))

    @precondition(lambda self: self.made and len(self.queue) < BATCH_MAX)
    @rule(age=AGES, amount=AMOUNTS, least=AMOUNTS, used=AMOUNTS)
    def extend(self, age: int, amount: int, least: int, used: int) -> None:
        made = self.aged(age)
        made.windows += 1
        self.queued(
            extend(
                made.id,
                sequence=made.windows,
                amount=amount,
                required=min(amount, least),
                used=used,
                account_id=made.account,
                owner_id=made.owner,
                key=self.key_of(made),
            )
        )

    @precondition(lambda self: self.made and len(self.queue) < BATCH_MAX)
    @rule(age=AGES, price=st.integers(0, 250), forget=st.booleans())
    def capture(self, age: int, price: int, forget: bool) -> None:
        made = self.aged(age)
        self.queued(
            capture(
                made.id,
                price=price,
                cost=price // 2,
                account_id=made.account,
                key_id=made.key,
                claimed=True,
                forget_claim=forget,
            )
        )

    @precondition(lambda self: self.made and len(self.queue) < BATCH_MAX)
    @rule(age=AGES, own=st.booleans())
    def sweep(self, age: int, own: bool) -> None:
        made = self.aged(age)
        since = None if own else self.clock.now_ms() - LEASE_MS
        self.queued(sweep(made.id, silent_since=since, account_id=made.account, key_id=made.key, owner_id=made.owner))

    @rule(ms=st.integers(1, LEASE_MS), beats=st.sampled_from([(), ("o1",), ("o2",), OWNERS]))
    def wait(self, ms: int, beats: tuple[str, ...]) -> None:
        self.clock.advance(ms)
        for owner in beats:
            assert self.leases.beat(owner, now=self.clock.now_ms())
            self.model.beats[owner] = self.clock.now_ms()

    @rule(customer=st.sampled_from(CUSTOMERS), credit_limit=st.integers(0, 100))
    def change_credit_limit(self, customer: str, credit_limit: int) -> None:
        account = f"customer:{customer}"
        set_credit_limit(self.engine, account, credit_limit)
        if credit_limit < self.model.limits[account]:
            self.lowered.add(account)
        self.model.limits[account] = credit_limit

    def commit_and_compare(self, batch: list[Operation], *, again: bool) -> None:
        after = deepcopy(self.model)
        try:
            expected = after.batch(batch)
        except InvariantViolated:
            with pytest.raises(InvariantViolated):
                self.store.apply(batch, again=again)
            return
        assert self.store.apply(batch, again=again) == expected
        self.model, self.last = after, batch

    @precondition(lambda self: self.queue)
    @rule()
    def commit(self) -> None:
        batch, self.queue = self.queue, []
        self.commit_and_compare(batch, again=False)

    @precondition(lambda self: self.queue)
    @rule(before=st.integers(0, WRITES))
    def crash_and_retry(self, before: int) -> None:
        """``before == WRITES``: the commit is durable, and nobody was told."""
        batch, self.queue = self.queue, []
        after = deepcopy(self.model)
        try:
            after.batch(batch)
        except InvariantViolated:
            return
        with pytest.raises(Crash):
            self.store.crash(batch, before=before, again=False)
        self.store.close()
        self.store = CrashingStore(self.engine, self.clock)
        if before == WRITES:
            self.model = after
        self.books_are_proved()
        self.commit_and_compare(batch, again=True)

    @precondition(lambda self: self.last)
    @rule()
    def repeat(self) -> None:
        self.commit_and_compare(self.last, again=True)

    @invariant()
    def books_are_proved(self) -> None:
        prove(self.engine, lowered=self.lowered)

    @invariant()
    def claims_are_the_models(self) -> None:
        with self.engine.connect() as connection:
            claims = {
                (row.account_id, row.key_hash): (row.request_id, row.state)
                for row in connection.execute(select(idempotency_claims))
            }
        assert claims == self.model.claims


def test_random_operations_keep_the_books_on_sqlite(sqlite_template: Path, tmp_path: Path) -> None:
    path = tmp_path / "farebox.db"

    class OnSqlite(LedgerMachine):
        def fresh(self) -> Engine:
            shutil.copy(sqlite_template, path)
            return connect(DatabaseSettings(url=f"sqlite:///{path}"))

    run_state_machine_as_test(OnSqlite, settings=settings(max_examples=120, stateful_step_count=50))


def test_random_operations_keep_the_books_on_postgresql(postgres_url: str) -> None:
    names = ", ".join(table.name for table in metadata.sorted_tables)

    class OnPostgresql(LedgerMachine):
        def fresh(self) -> Engine:
            engine = connect(DatabaseSettings(url=postgres_url))
            with engine.connect() as connection, connection.begin():
                connection.execute(text(f"TRUNCATE {names}"))
            return engine

    run_state_machine_as_test(OnPostgresql, settings=settings(max_examples=25, stateful_step_count=50))
