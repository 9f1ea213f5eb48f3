"""Channels against a plain model of them: vouchers, holds, captures, freezes, the chain's word and settlements,
in batches, with crashes and repetitions. Amounts of the model are plain integers in nano-USD."""

import shutil
from collections import defaultdict
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
from sqlalchemy import Engine, select, text, update

from app.channels.channel import ChannelView
from app.database import connect
from app.ledger.account import channel_account, escrow_account
from app.ledger.operation import (
    AcceptVoucher,
    Admit,
    Admitted,
    Capture,
    Captured,
    Changed,
    Extend,
    Extended,
    Freeze,
    Observe,
    Operation,
    PlanSettlement,
    Refused,
    Result,
)
from app.money import BaseUnits, NanoUsd
from app.reconcile.channel_rules import rules
from app.settings import DatabaseSettings
from app.tables import accounts, challenge_claims, channels, metadata, receipts, settlements, transfers, vouchers
from tests.clocks import FakeClock
from tests.ledger.channel_operations import (
    add_channel,
    channel_admit,
    channel_capture,
    channel_extend,
    freeze,
    observe,
    plan,
    voucher,
)
from tests.ledger.faults import Crash, CrashingStore
from tests.ledger.proof import prove, rows

# The second was settled before anybody here knew of it.
CHANNELS = {"0x" + "a1" * 32: 0, "0x" + "b2" * 32: 30}
DEPOSIT = 400
# Refusals that more money turns.
FUNDS = ("insufficient_balance", "exposure")
EXPOSURE_MAX = 150_000
CHALLENGES = ("x", "y", "z")
# The writes of a batch with channels: those of any other, then vouchers, challenges, receipts, settlements, COMMIT.
WRITES = 12
BATCH_MAX = 6
BASE = st.integers(0, DEPOSIT + 20)
NANO = st.integers(0, 120_000)
AGES = st.integers(0, 5)
RULES = rules()


@dataclass
class Request:
    channel: str
    granted: dict[int, int] = field(default_factory=dict)
    outcome: tuple[int, int] | None = None

    @property
    def held(self) -> int:
        return 0 if self.outcome is not None else sum(self.granted.values())


@dataclass
class Model:
    """One channel without a database: the rules of channels, written down a second time."""

    id: str
    recovered: int
    requests: dict[str, Request]
    challenges: set[str]
    status: str = "open"
    deposit: int = DEPOSIT
    settled: int = 0
    requested: int = 0
    block: int = 10
    accepted: int = 0
    spent: int = 0
    published: int = 0
    close_amount: int | None = None
    planned: dict[str, int] = field(default_factory=dict)
    open_plan: str | None = None

    @property
    def held(self) -> int:
        return sum(request.held for request in self.requests.values() if request.channel == self.id)

    @property
    def stopped(self) -> str | None:
        if self.status == "closed":
            return "channel_finalized"
        return "channel_closing" if self.status == "closing" or self.requested else None

    @property
    def free(self) -> int:
        # A closed channel that is wound up has nothing left.
        return 0 if self.status == "closed" and not self.held else self.accepted - self.spent - self.held

    def view(self) -> ChannelView:
        return ChannelView(
            self.id,
            self.status,
            BaseUnits(self.deposit),
            BaseUnits(self.settled),
            NanoUsd(self.accepted),
            NanoUsd(self.spent),
            NanoUsd(self.held),
            BaseUnits(self.published),
            self.requested,
        )

    def refused(self, reason: str, available: int = 0, required: int = 0) -> Refused:
        return Refused(reason, NanoUsd(max(available, 0)), NanoUsd(required), channel=self.view())

    def changed(self, first: bool = True, capture: int = 0, accepted_before: int = 0) -> Changed:
        return Changed(self.view(), first, NanoUsd(accepted_before), BaseUnits(capture))

    def voucher(self, op: AcceptVoucher) -> Result:
        if self.stopped:
            return self.refused("channel-finalized")
        before = self.accepted
        if op.amount * 1000 == before:
            return self.changed(first=False, accepted_before=before)
        if op.amount * 1000 < self.accepted:
            return self.refused("below-accepted")
        if op.amount > self.deposit:
            return self.refused("amount-exceeds-deposit")
        if op.amount - self.accepted // 1000 < op.min_delta and op.amount != self.deposit:
            return self.refused("delta-too-small")
        self.accepted = op.amount * 1000
        return self.changed(accepted_before=before)

    def may_hold(self, exposure_max: int) -> tuple[int, str]:
        if self.stopped:
            return 0, self.stopped
        room = exposure_max - (self.spent - self.settled * 1000) - (self.accepted - self.spent - self.free)
        if room <= 0:
            return 0, "exposure"
        return (room, "exposure") if room < self.free else (self.free, "insufficient_balance")

    def admit(self, op: Admit) -> Result:
        if op.request_id in self.requests:
            granted = self.requests[op.request_id].granted[0]
            return Admitted(NanoUsd(granted), NanoUsd(self.free + granted), self.view())
        assert op.channel is not None
        free, reason = self.may_hold(op.channel.exposure_max)
        stops = reason not in FUNDS
        if not stops and op.channel.challenge_id in self.challenges:
            free, reason, stops = 0, "challenge_used", True
        if not stops:
            published = op.channel.presented <= max(self.published, self.settled) * 1000
            covered = 0 if published else min(op.channel.presented, self.accepted) - self.spent
            free, reason = (covered, "insufficient_balance") if covered < free else (free, reason)
        if stops or free < op.required:
            return self.refused(reason, free, op.required)
        granted = min(op.amount, max(free, 0))
        self.requests[op.request_id] = Request(self.id, {0: granted})
        if op.channel.challenge_id is not None:
            self.challenges.add(op.channel.challenge_id)
        return Admitted(NanoUsd(granted), NanoUsd(free), self.view())

    def extend(self, op: Extend) -> Result:
        request = self.requests.get(op.request_id)
        if request is not None and op.sequence in request.granted:
            return Extended(NanoUsd(request.granted[op.sequence]))
        if request is None or request.outcome is not None:
            return Refused("hold_lost")
        assert op.channel is not None
        free, reason = self.may_hold(op.channel.exposure_max)
        if free < op.required or reason not in FUNDS:
            return self.refused(reason, free, op.required)
        request.granted[op.sequence] = min(op.amount, max(free, 0))
        return Extended(NanoUsd(request.granted[op.sequence]))

    def capture(self, op: Capture) -> Result:
        request = self.requests[op.request_id]
        if request.outcome is not None:
            charged, loss = request.outcome
            return Captured(NanoUsd(charged), NanoUsd(loss), False, self.view())
        price, held = op.outcome.price, request.held
        free = self.accepted - self.spent - self.held
        charged = min(price, held + free)
        request.outcome = (charged, price - charged)
        self.spent += charged
        return Captured(NanoUsd(charged), NanoUsd(price - charged), channel=self.view())

    def freeze(self, op: Freeze) -> Result:
        if self.status == "closed":
            return self.refused("channel-finalized")
        if op.amount is not None:
            if op.amount < max(self.spent // 1000, self.settled):
                return self.refused("insufficient-balance")
            if op.amount > self.deposit:
                return self.refused("amount-exceeds-deposit")
            self.close_amount = max(op.amount, self.close_amount or 0)
        first, self.status = self.status == "open", "closing"
        return self.changed(first=first)

    def observe(self, op: Observe) -> Result:
        if self.status == "closed":
            return self.changed(first=False)
        settled = max(self.settled, op.settled or 0)
        if not op.finalized and op.deposit < settled:
            return self.changed(first=False)
        paid, old = settled > self.settled, op.block < self.block and not op.finalized
        self.settled, self.published = settled, max(self.published, settled if paid else 0)
        if old:
            return self.changed(first=paid)
        self.block, self.requested = max(self.block, op.block), op.close_requested_at
        if op.finalized:
            self.status = "closed"
        else:
            self.deposit = op.deposit
        return self.changed()

    def plan(self, op: PlanSettlement) -> Result:
        if op.settlement_id in self.planned:
            return self.changed(first=False, capture=self.planned[op.settlement_id])
        if self.open_plan is not None:
            return self.refused("settlement_open")
        if self.status == "closed":
            return self.refused("channel-finalized")
        capture = int(op.amount)
        if op.kind == "close":
            if self.status != "closing" or self.held:
                return self.refused("channel_busy")
            capture = max(self.spent // 1000, self.settled)
            if capture > op.amount:
                return self.refused("voucher_short")
        elif op.amount * 1000 > self.spent or op.amount <= self.settled:
            return self.refused("not_spent")
        self.published = max(self.published, op.amount)
        self.planned[op.settlement_id], self.open_plan = capture, op.settlement_id
        return self.changed(capture=capture)


class ChannelMachine(RuleBasedStateMachine):
    """Queues operations, commits them in batches, and compares every answer and every row."""

    def __init__(self) -> None:
        super().__init__()
        self.engine = self.fresh()
        self.clock = FakeClock()
        self.store = CrashingStore(self.engine, self.clock)
        self.requests: dict[str, Request] = {}
        self.models: dict[str, Model] = {}
        self.queue: list[Operation] = []
        self.last: list[Operation] = []
        self.made: list[tuple[str, str, str | None]] = []
        self.windows: dict[str, int] = defaultdict(int)
        self.least: dict[str, tuple[int, int]] = {}
        self.numbers = count(1)
        # Whether rows changed since they were last proved: most steps only queue.
        self.dirty = True

    def fresh(self) -> Engine:
        """An engine on a migrated database without rows."""
        raise NotImplementedError

    def teardown(self) -> None:
        self.store.close()
        self.engine.dispose()

    @initialize()
    def open(self) -> None:
        challenges: set[str] = set()
        for channel_id, settled in CHANNELS.items():
            add_channel(self.engine, channel_id, deposit=DEPOSIT, settled=settled)
            found = settled * 1000
            self.models[channel_id] = Model(
                channel_id,
                found,
                self.requests,
                challenges,
                settled=settled,
                accepted=found,
                spent=found,
                published=settled,
            )

    # What is queued. Vouchers and plans are often sensible, so that channels live.

    channel_ids = st.sampled_from(sorted(CHANNELS))

    @precondition(lambda self: len(self.queue) < BATCH_MAX)
    @rule(channel_id=channel_ids, amount=BASE, min_delta=st.sampled_from([0, 0, 15]))
    def accept(self, channel_id: str, amount: int, min_delta: int) -> None:
        self.queue.append(voucher(amount, channel_id=channel_id, min_delta=min_delta))

    @precondition(lambda self: len(self.queue) < BATCH_MAX)
    @rule(channel_id=channel_ids, more=st.integers(1, 80))
    def accept_more(self, channel_id: str, more: int) -> None:
        self.queue.append(voucher(self.models[channel_id].accepted // 1000 + more, channel_id=channel_id))

    @precondition(lambda self: len(self.queue) < BATCH_MAX)
    @rule(
        channel_id=channel_ids,
        amount=NANO,
        least=NANO,
        presented=st.one_of(st.just(2**40), BASE),
        challenge=st.sampled_from([None, None, *CHALLENGES]),
    )
    def admit(self, channel_id: str, amount: int, least: int, presented: int, challenge: str | None) -> None:
        request_id = f"r{next(self.numbers)}"
        self.made.append((request_id, channel_id, challenge))
        self.queue.append(
            channel_admit(
                request_id,
                amount=amount,
                required=min(amount, least),
                presented=presented,
                challenge_id=challenge,
                channel_id=channel_id,
                exposure_max=EXPOSURE_MAX,
            )
        )

    @precondition(lambda self: self.made and len(self.queue) < BATCH_MAX)
    @rule(age=AGES, amount=NANO, least=NANO)
    def extend(self, age: int, amount: int, least: int) -> None:
        request_id, channel_id, _ = self.made[-1 - age % len(self.made)]
        self.windows[request_id] += 1
        self.queue.append(
            channel_extend(
                request_id,
                sequence=self.windows[request_id],
                amount=amount,
                required=min(amount, least),
                channel_id=channel_id,
                exposure_max=EXPOSURE_MAX,
            )
        )

    @precondition(lambda self: len(self.queue) < BATCH_MAX and any(r.outcome is None for r in self.requests.values()))
    @rule(age=AGES, price=st.integers(0, 180_000))
    def capture(self, age: int, price: int) -> None:
        running = [request_id for request_id, request in self.requests.items() if request.outcome is None]
        request_id = running[-1 - age % len(running)]
        [(_, channel_id, challenge)] = [made for made in self.made if made[0] == request_id]
        self.queue.append(channel_capture(request_id, price=price, challenge_id=challenge, channel_id=channel_id))

    @precondition(lambda self: len(self.queue) < BATCH_MAX)
    @rule(channel_id=channel_ids, amount=st.one_of(st.none(), BASE))
    def freeze(self, channel_id: str, amount: int | None) -> None:
        self.queue.append(freeze(amount, channel_id=channel_id))

    @precondition(lambda self: len(self.queue) < BATCH_MAX)
    @rule(
        channel_id=channel_ids,
        deposit=st.sampled_from([DEPOSIT, DEPOSIT, DEPOSIT + 100, 0]),
        settled=st.one_of(st.none(), BASE),
        requested=st.sampled_from([0, 0, 0, 7]),
        finalized=st.sampled_from([False] * 9 + [True]),
        block=st.integers(5, 40),
    )
    def observe(
        self, channel_id: str, deposit: int, settled: int | None, requested: int, finalized: bool, block: int
    ) -> None:
        if settled is not None:
            # A chain pays out what was published, and nobody else signs for us.
            settled = min(settled, self.models[channel_id].published)
        self.queue.append(
            observe(
                channel_id=channel_id,
                deposit=deposit,
                settled=settled,
                close_requested_at=requested,
                finalized=finalized,
                block=block,
            )
        )

    @precondition(lambda self: len(self.queue) < BATCH_MAX)
    @rule(channel_id=channel_ids, kind=st.sampled_from(["settle", "settle", "close"]), less=st.integers(-5, 40))
    def plan(self, channel_id: str, kind: str, less: int) -> None:
        amount = max(0, self.models[channel_id].spent // 1000 - less)
        self.queue.append(plan(kind, amount, settlement_id=f"set_{next(self.numbers)}", channel_id=channel_id))

    @rule(channel_id=channel_ids)
    def end_settlement(self, channel_id: str) -> None:
        """The lane gives up what was planned, so that another can be."""
        with self.engine.connect().execution_options(writes=True) as connection, connection.begin():
            connection.execute(update(settlements).where(settlements.c.channel_id == channel_id).values(state="failed"))
        self.models[channel_id].open_plan = None

    # What is committed.

    def expected(self, models: dict[str, Model], batch: list[Operation]) -> list[Result]:
        results: list[Result] = []
        for op in batch:
            match op:
                case AcceptVoucher():
                    results.append(models[op.channel_id].voucher(op))
                case Freeze():
                    results.append(models[op.channel_id].freeze(op))
                case Observe():
                    results.append(models[op.channel_id].observe(op))
                case PlanSettlement():
                    results.append(models[op.channel_id].plan(op))
                case Admit():
                    results.append(models[op.account_id.removeprefix("channel:")].admit(op))
                case Extend():
                    results.append(models[op.account_id.removeprefix("channel:")].extend(op))
                case Capture():
                    results.append(models[op.account_id.removeprefix("channel:")].capture(op))
        return results

    def take(self, models: dict[str, Model]) -> None:
        self.models = models
        self.requests = next(iter(models.values())).requests

    def commit_and_compare(self, batch: list[Operation], *, again: bool) -> None:
        after = deepcopy(self.models)
        expected = self.expected(after, batch)
        self.dirty = True
        assert self.store.apply(batch, again=again) == expected
        self.take(after)
        self.last = batch

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
        after = deepcopy(self.models)
        self.expected(after, batch)
        with pytest.raises(Crash):
            self.store.crash(batch, before=before, again=False)
        self.store.close()
        self.store = CrashingStore(self.engine, self.clock)
        if before == WRITES:
            self.take(after)
        self.prove()
        self.commit_and_compare(batch, again=True)

    @precondition(lambda self: self.last)
    @rule()
    def repeat(self) -> None:
        self.commit_and_compare(self.last, again=True)

    # What must be true after every step.

    @invariant()
    def rows_are_proved(self) -> None:
        if self.dirty:
            self.prove()
            self.dirty = False

    def prove(self) -> None:
        self.rows_are_the_models()
        self.closed_channels_are_wound_up()
        self.each_challenge_bought_once()

    def rows_are_the_models(self) -> None:
        prove(self.engine)
        with self.engine.connect() as connection:
            for each in RULES:
                assert not connection.execute(each.offenders).all(), each.kind
        for row in rows(self.engine, channels):
            model = self.models[row.id]
            assert (row.status, row.deposit, row.settled, row.close_requested_at, row.seen_block) == (
                model.status,
                model.deposit,
                model.settled,
                model.requested,
                model.block,
            )
            assert (row.accepted, row.spent, row.published) == (model.accepted, model.spent, model.published)
            assert row.close_amount == model.close_amount

    @invariant()
    def what_counts_never_falls(self) -> None:
        for channel_id, model in self.models.items():
            accepted, spent = self.least.get(channel_id, (0, 0))
            assert model.accepted >= accepted
            assert model.spent >= spent
            assert model.spent <= model.accepted
            if model.status == "open" and not model.requested:
                assert model.published * 1000 <= model.spent
            self.least[channel_id] = (model.accepted, model.spent)

    def closed_channels_are_wound_up(self) -> None:
        closed = [model.id for model in self.models.values() if model.status == "closed" and not model.held]
        with self.engine.connect() as connection:
            for channel_id in closed:
                account = connection.execute(select(accounts).where(accounts.c.id == channel_account(channel_id))).one()
                assert account.credits_posted == account.debits_posted
                assert account.debits_pending == 0
                moves = connection.execute(select(transfers)).all()
                escrow = escrow_account(channel_id)
                assert (
                    sum(
                        move.amount * ((move.debit_account == escrow) - (move.credit_account == escrow))
                        for move in moves
                    )
                    == 0
                )

    def each_challenge_bought_once(self) -> None:
        claimed = {row.id: row.request_id for row in rows(self.engine, challenge_claims)}
        challenge_of = {request_id: challenge for request_id, _, challenge in self.made}
        held = [challenge_of[request_id] for request_id in self.requests if challenge_of[request_id] is not None]
        assert sorted(claimed) == sorted(name for name in held if name is not None)
        assert {row.request_id for row in rows(self.engine, receipts)} <= set(claimed.values())
        assert len({(row.channel_id, row.amount) for row in rows(self.engine, vouchers)}) == len(
            rows(self.engine, vouchers)
        )


def test_random_operations_keep_channels_on_sqlite(sqlite_template: Path, tmp_path: Path) -> None:
    path = tmp_path / "farebox.db"

    class OnSqlite(ChannelMachine):
        def fresh(self) -> Engine:
            shutil.copy(sqlite_template, path)
            return connect(DatabaseSettings(url=f"sqlite:///{path}"))

    run_state_machine_as_test(OnSqlite, settings=settings(max_examples=40, stateful_step_count=50))


def test_random_operations_keep_channels_on_postgresql(postgres_url: str) -> None:
    names = ", ".join(table.name for table in metadata.sorted_tables)

    class OnPostgresql(ChannelMachine):
        def fresh(self) -> Engine:
            engine = connect(DatabaseSettings(url=postgres_url))
            with engine.connect() as connection, connection.begin():
                connection.execute(text(f"TRUNCATE {names}"))
            return engine

    run_state_machine_as_test(OnPostgresql, settings=settings(max_examples=8, stateful_step_count=50))
