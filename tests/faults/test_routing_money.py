"""Random failures and latencies of providers, from the request to the books: nobody pays twice, or for nothing.

Each run draws requests and what the providers do with each attempt; everything between them is the real
program on a real database. Then the rows, what the providers saw and what the clients got must agree, and every
provider must be served again once it is well.
"""

import asyncio
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from app.database import connect
from app.errors import Overloaded
from app.ledger.operation import Capture, Deliver, Operation, Result
from app.routing.breaker import OPEN_S_MAX
from app.routing.router import REFUSED_S
from app.settings import DatabaseSettings
from app.tables import metadata, outcomes, price_versions
from tests.faults.routing_proof import Proof
from tests.faults.routing_world import (
    COMMENT,
    OUTPUT_MAX,
    PATHS,
    PROVIDERS,
    Ask,
    World,
    price_book,
)
from tests.faults.scripted_providers import (
    BEFORE,
    PRELUDE_LONG,
    REPORTS,
    RETRY_AFTER_S,
    WITHIN,
    Act,
    Called,
)
from tests.ledger.proof import rows

EXAMPLES = 110
EXAMPLES_ON_POSTGRESQL = 10
WAIT_S_MAX = 20
MS_PER_S = 1000
REST_S = max(OPEN_S_MAX, REFUSED_S, RETRY_AFTER_S)
GOOD = st.builds(
    Act,
    tokens=st.integers(0, OUTPUT_MAX + 6),
    report=st.sampled_from(("honest", "honest", *REPORTS)),
    heeds=st.sampled_from((True, True, False)),
    prelude=st.sampled_from((1, 0, PRELUDE_LONG)),
    together=st.integers(1, 4),
    turns=st.sampled_from((0, 0, 2, 30)),
    slow_ms=st.sampled_from((0, 0, 40, 6000)),
)
BAD = st.builds(
    Act,
    fault=st.sampled_from((*BEFORE, *WITHIN)),
    after=st.sampled_from((0, 0, 1, 7, 40)),
    report=st.sampled_from(REPORTS),
    prelude=st.sampled_from((1, 0, PRELUDE_LONG)),
    together=st.integers(1, 4),
    turns=st.sampled_from((0, 2, 30)),
    slow_ms=st.sampled_from((0, 40, 12_000)),
)
ASKS = st.builds(
    Ask,
    kind=st.sampled_from(("stream", "stream", "stream", "speech", *PATHS)),
    words=st.integers(1, 8),
    n=st.sampled_from((1, 1, 2, 3)),
    max_tokens=st.none() | st.integers(1, OUTPUT_MAX),
    routing=st.sampled_from((None, "cheapest", "fastest", "balanced")),
    order=st.sampled_from(((), (), (), ("d",), ("b", "a"))),
    falls_back=st.sampled_from((True, True, True, False)),
    rich=st.sampled_from((True, False)),
    key=st.sampled_from((None, None, None, 0, 1)),
    again=st.sampled_from((True, True, True, False)),
    leaves_at=st.sampled_from((None, None, None, None, 1, 2, 3, 5)),
    turns=st.sampled_from((None, None, None, None, None, 0, 30, 200, 600)),
    slow_ms=st.sampled_from((0, 0, 0, 100, 8000)),
    acts=st.lists(st.one_of(BAD, BAD, GOOD), min_size=1, max_size=4).map(tuple),
)
# Streams whose windows want more than a poor payer has, once there are two of them.
GREEDY = st.builds(
    Ask,
    n=st.sampled_from((1, 2)),
    rich=st.just(False),
    acts=st.builds(Act, tokens=st.integers(16, OUTPUT_MAX), turns=st.sampled_from((2, 30))).map(lambda act: (act,)),
)
ANY = st.one_of(ASKS, ASKS, ASKS, GREEDY)


@dataclass(frozen=True, slots=True)
class Run:
    """What happens: groups of requests at once with time between them, and what runs when the process ends."""

    seed: int
    funds: int
    groups: tuple[tuple[int, tuple[Ask, ...]], ...]
    last: tuple[Ask, ...]
    last_turns: int


RUNS = st.builds(
    Run,
    seed=st.integers(0, 2**32),
    funds=st.sampled_from((0, 60_000, 700_000, 1_500_000, 3_000_000)),
    groups=st.lists(
        st.tuples(st.sampled_from((0, 500, 6_000, 61_000)), st.lists(ANY, min_size=2, max_size=6).map(tuple)),
        min_size=2,
        max_size=5,
    ).map(tuple),
    last=st.lists(ANY, max_size=3).map(tuple),
    last_turns=st.sampled_from((2, 30, 200, 600)),
)


async def recovered(world: World) -> None:
    """Once failures stopped and the longest rest is over, one request each is all that it takes."""
    world.clock.advance(int((REST_S + 1) * MS_PER_S))
    for name in PROVIDERS:
        for kind in ("stream", "embeddings", "images", "speech"):
            await world.perform(Ask(kind=kind, only=name))
            assert world.done[-1].error is None
            assert world.stage.calls[world.done[-1].id][-1].provider == name
    states = world.proxy.router.state(world.candidates)
    assert {(state.breaker, state.in_flight, state.retry_after_s) for state in states} == {("closed", 0, None)}


async def perform(world: World, run: Run, seen: Counter[str]) -> None:
    """The run, the recovery, and the end of the process."""
    world.journal.start()
    try:
        for pause_ms, asks in run.groups:
            await world.all_of(asks)
            seen["rested"] += any(state.breaker != "closed" for state in world.proxy.router.state(world.candidates))
            world.clock.advance(pause_ms)
        await recovered(world)
        await world.stopped_amid(run.last, turns=run.last_turns)
    finally:
        await world.close()


def _empty(engine: Engine) -> None:
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        for table in reversed(metadata.sorted_tables):
            if table is not price_versions:
                connection.execute(table.delete())


def prove_run(engine: Engine, run: Run, seen: Counter[str]) -> None:
    """Perform one run on an empty database and prove it; what was there is counted in ``seen``."""
    _empty(engine)
    world = World(engine, price_book(engine), seed=run.seed, funds=run.funds)
    asyncio.run(perform(world, run, seen))
    Proof(world, seen).check()


def prove_runs(engine: Engine, *, examples: int) -> Counter[str]:
    """Draw so many runs and prove each; gives what was seen in them."""
    seen = Counter[str]()

    @settings(max_examples=examples, suppress_health_check=list(HealthCheck))
    @given(run=RUNS)
    def proven(run: Run) -> None:
        prove_run(engine, run, seen)

    proven()
    return seen


def each_failure() -> Run:
    """Every failure at every endpoint, before and after content, each followed by a provider that is well."""
    asks = [
        Ask(kind=kind, acts=(Act(fault, after=after, prelude=prelude, slow_ms=40),))
        for fault in (*BEFORE, *WITHIN)
        for kind in PATHS
        for after, prelude in ((0, 1), (7, 0), (0, PRELUDE_LONG))
    ]
    return Run(1, 0, tuple((int(REST_S * MS_PER_S) + 1, (ask,)) for ask in asks), (), 2)


def each_report() -> Run:
    """Every report at every endpoint, of providers that keep to the limit and of those that do not."""
    asks = [
        Ask(kind=kind, n=2, max_tokens=10, order=("d",), acts=(Act(tokens=tokens, report=said, heeds=heeds),))
        for kind in PATHS
        for said in REPORTS
        for tokens, heeds in ((5, True), (OUTPUT_MAX, True), (OUTPUT_MAX, False))
    ]
    return Run(2, 0, tuple((0, (ask,)) for ask in asks), (), 2)


def each_end() -> Run:
    """What clients do: leave, ask again with their key, and ask for more than they have."""
    slow = (Act(tokens=40, turns=30),)
    lie = (Act(tokens=OUTPUT_MAX, report="lie", heeds=False),)
    groups: list[tuple[Ask, ...]] = [(Ask(kind=kind, key=number),) * 2 for number, kind in enumerate(PATHS)]
    groups += [(Ask(kind=kind, key=number), Ask(words=9, key=number, again=False)) for number, kind in enumerate(PATHS)]
    groups += [(Ask(kind=kind, leaves_at=at, acts=slow),) for kind in PATHS for at in (1, 2, 3)]
    groups += [(Ask(kind=kind, turns=turns, acts=slow),) for kind in PATHS for turns in (0, 200, 600)]
    groups += [
        (Ask(acts=(Act(slow_ms=12_000, turns=30),)),),
        (Ask(rich=False, n=2, acts=slow),) * 2,
        (Ask(rich=False, acts=lie),),
        (Ask(rich=False, words=200),),
    ]
    return Run(3, 900_000, tuple((100, group) for group in groups), (Ask(acts=slow), Ask(kind="chat", acts=slow)), 600)


EXPECTED = {
    *(f"completed {kind}" for kind in PATHS),
    *(f"reported {said} by {kind}" for said in REPORTS for kind in ("chat", "stream", "embeddings", "images")),
    *(f"failed over after {fault}" for fault, (_, _, fails_over) in BEFORE.items() if fails_over),
    *(f"failed over after {fault}" for fault, (_, fails_over) in WITHIN.items() if fails_over),
    *(f"{how} in mid-stream" for how in ("aborted", "exhausted", "failed")),
    *("left in mid-speech", "speech broke off", "commented", "rested", "replayed", "overrun", "loss"),
    *(f"refused: {code}" for code in ("insufficient_balance", "idempotency_running", "idempotency_body_differs")),
}


# Less than all of it, but no run of these many can be without.
DRAWN = {*(f"completed {kind}" for kind in PATHS), "failed over", "aborted", "failed", "rested", "replayed"}


def test_every_failure_report_and_end_is_recorded_and_billed_by_what_was_used(sqlite_url: str) -> None:
    engine, seen = connect(DatabaseSettings(url=sqlite_url)), Counter[str]()
    for run in (each_failure(), each_report(), each_end()):
        prove_run(engine, run, seen)
    engine.dispose()
    assert {what for what in EXPECTED if not seen[what]} == set()


def test_random_failures_of_providers_charge_nobody_twice_or_for_nothing(sqlite_url: str) -> None:
    engine = connect(DatabaseSettings(url=sqlite_url))
    seen = prove_runs(engine, examples=EXAMPLES)
    engine.dispose()
    assert {what for what in DRAWN if not seen[what]} == set()


def test_random_failures_of_providers_charge_nobody_twice_or_for_nothing_on_postgresql(postgres_url: str) -> None:
    engine = connect(DatabaseSettings(url=postgres_url))
    assert prove_runs(engine, examples=EXAMPLES_ON_POSTGRESQL)["failed over"]
    engine.dispose()


async def test_stream_that_a_shutdown_ends_before_its_first_content_costs_nothing(
    engine: Engine,
) -> None:
    world = World(engine, price_book(engine), seed=1, funds=0)
    world.journal.start()
    asked = asyncio.ensure_future(world.perform(Ask(acts=(Act(tokens=20, turns=1000),))))
    await asyncio.wait_for(world.stage.begun.wait(), WAIT_S_MAX)
    await world.proxy.drain(timeout_s=0)
    await asked
    await world.close()
    (done,) = world.done
    assert done.error is not None
    assert (done.error.code, done.reader.status) == ("overloaded", None)
    assert [(row.status, row.price) for row in rows(engine, outcomes)] == [("aborted", 0)]
    Proof(world, Counter()).check()


async def test_head_that_a_comment_sent_early_names_no_provider_which_may_yet_fail(engine: Engine) -> None:
    world = World(engine, price_book(engine), seed=1, funds=0)
    world.journal.start()
    failing = Act("cut", prelude=1, slow_ms=6000, turns=30)
    await world.perform(Ask(order=("a", "b"), acts=(failing, Act())))
    await world.perform(Ask(order=("b",)))
    await world.close()
    early, other = world.done
    assert early.reader.body.startswith(COMMENT)
    assert [called.provider for called in _calls(world)] == ["a", "b", "b"]
    assert "x-farebox-provider" not in early.reader.headers
    assert other.reader.headers["x-farebox-provider"] == "b"
    Proof(world, Counter()).check()


@pytest.mark.parametrize("kind", PATHS)
async def test_answer_that_is_charged_while_the_process_ends_is_still_sent(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    world = World(engine, price_book(engine), seed=1, funds=0)
    submit, drained = world.journal.submit, list[asyncio.Task[None]]()

    def end_amid_capture(operation: Operation, *, must: bool = False) -> asyncio.Future[Result]:
        if isinstance(operation, Capture):
            drained.append(asyncio.ensure_future(world.proxy.drain(timeout_s=0)))
        return submit(operation, must=must)

    monkeypatch.setattr(world.journal, "submit", end_amid_capture)
    world.journal.start()
    await world.perform(Ask(kind=kind))
    await asyncio.gather(*drained)
    await world.close()
    assert [(row.status, row.charged > 0) for row in rows(engine, outcomes)] == [("completed", True)]
    Proof(world, Counter()).check()


@pytest.mark.parametrize("kind", ["stream", "speech"])
async def test_answer_whose_mark_the_ledger_cannot_take_costs_nothing(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    world = World(engine, price_book(engine), seed=1, funds=0)
    submit = world.journal.submit

    def refuse_marks(operation: Operation, *, must: bool = False) -> asyncio.Future[Result]:
        if not isinstance(operation, Deliver):
            return submit(operation, must=must)
        late: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        late.set_exception(Overloaded("the ledger did not answer in time; nothing was charged"))
        return late

    monkeypatch.setattr(world.journal, "submit", refuse_marks)
    world.journal.start()
    await world.perform(Ask(kind=kind))
    await world.close()
    (done,) = world.done
    told = done.error.code if done.error is not None else done.reader.events[-1]["error"]["code"]
    assert told == "overloaded"
    assert [(row.status, row.price) for row in rows(engine, outcomes)] == [("failed", 0)]


def _calls(world: World) -> list[Called]:
    return [called for calls in world.stage.calls.values() for called in calls]
