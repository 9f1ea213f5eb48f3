import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Engine

from app.database import connect
from app.ledger.journal import Journal
from app.ledger.lease_store import LeaseStore
from app.ledger.operation import Admitted, Captured, ClaimFound, Refused
from app.ledger.sweeper import OWN_GRACE_MS, Sweeper
from app.money import NanoUsd
from app.settings import DatabaseSettings, LedgerSettings
from app.tables import holds, idempotency_claims, outcomes, owners
from tests.clocks import FakeClock
from tests.ledger.conftest import CLOSE_S_MAX, running
from tests.ledger.faults import WatchedStore
from tests.ledger.operations import KEY, admit, capture, claim, condition, deliver, extend, sweep
from tests.ledger.proof import prove, rows
from tests.ledger.seeds import add_customer, add_key

SETTINGS = LedgerSettings.model_validate({"lease_ttl_s": 30})
TTL_MS = 30_000
TEN_DAYS_MS = 10 * 24 * 3600 * 1000


@pytest.fixture
async def journal(engine: Engine, store: WatchedStore) -> AsyncIterator[Journal]:
    """A journal with a customer who has 1000."""
    add_customer(engine, "c1", credits=1000)
    async with running(store) as journal:
        yield journal


def sweeper_of(
    owner_id: str,
    *,
    engine: Engine,
    journal: Journal,
    clock: FakeClock,
    alone: bool = False,
    in_flight: tuple[str, ...] = (),
) -> Sweeper:
    return Sweeper(
        store=LeaseStore(engine),
        journal=journal,
        clock=clock,
        settings=SETTINGS,
        owner_id=owner_id,
        alone=alone,
        in_flight=lambda: in_flight,
    )


@pytest.fixture
async def other(engine: Engine, journal: Journal, clock: FakeClock) -> Sweeper:
    """The process ``o1``, which may die; the holds of these tests are its own unless they say otherwise."""
    sweeper = sweeper_of("o1", engine=engine, journal=journal, clock=clock)
    await sweeper.register()
    return sweeper


@pytest.fixture
async def mine(engine: Engine, journal: Journal, clock: FakeClock) -> Sweeper:
    """The process ``o2``, which sweeps."""
    sweeper = sweeper_of("o2", engine=engine, journal=journal, clock=clock)
    await sweeper.register()
    return sweeper


async def test_no_hold_of_a_living_owner_is_swept_however_old(
    engine: Engine, journal: Journal, clock: FakeClock, other: Sweeper, mine: Sweeper
) -> None:
    await journal.submit(admit(amount=100))
    clock.advance(TEN_DAYS_MS)
    await other.beat()
    clock.advance(TTL_MS - 1)
    assert await mine.sweep() == 0
    assert len(rows(engine, holds)) == 1


async def test_a_hold_of_a_dead_owner_is_released_if_nothing_was_delivered(
    engine: Engine, journal: Journal, clock: FakeClock, other: Sweeper, mine: Sweeper
) -> None:
    await journal.submit(admit(amount=100, claim=claim(expires_in_ms=TEN_DAYS_MS)))
    clock.advance(TTL_MS)
    assert await mine.sweep() == 1
    assert mine.swept == 1
    (outcome,) = rows(engine, outcomes)
    assert (outcome.status, outcome.charged, outcome.error_code) == ("swept", 0, "interrupted")
    # Nothing reached the client, so its key is free for another try.
    again = await journal.submit(admit("r2", amount=1000, claim=claim(expires_in_ms=TEN_DAYS_MS)))
    assert again == Admitted(NanoUsd(1000), NanoUsd(1000))
    prove(engine)


async def test_a_hold_of_a_dead_owner_is_billed_for_what_was_delivered(
    engine: Engine, journal: Journal, clock: FakeClock, other: Sweeper, mine: Sweeper
) -> None:
    add_key(engine, KEY, customer_id="c1", spend_limit=NanoUsd(500))
    claimed = claim(expires_in_ms=TEN_DAYS_MS)
    await journal.submit(admit(amount=100, key=condition(), claim=claimed))
    await journal.submit(deliver(window=100))
    await journal.submit(extend(sequence=1, amount=60, used=70, key=condition()))
    clock.advance(TTL_MS)
    assert await mine.sweep() == 1
    (outcome,) = rows(engine, outcomes)
    assert (outcome.charged, outcome.loss, outcome.estimated, outcome.provider) == (130, 0, True, "p")
    found = await journal.submit(admit("r2", amount=1, key=condition(), claim=claimed))
    assert found == ClaimFound("r1", "body", "interrupted", None)
    prove(engine)


async def test_a_late_capture_returns_what_the_sweep_charged(
    engine: Engine, journal: Journal, clock: FakeClock, other: Sweeper, mine: Sweeper
) -> None:
    await journal.submit(admit(amount=100, claim=claim(expires_in_ms=TEN_DAYS_MS)))
    await journal.submit(deliver(window=40))
    clock.advance(TTL_MS)
    await mine.sweep()
    late = await journal.submit(capture(price=90, claimed=True, answer=lambda _: b"late"), must=True)
    assert late == Captured(NanoUsd(40), first=False)
    assert [row.state for row in rows(engine, idempotency_claims)] == ["interrupted"]
    prove(engine)


async def test_a_stream_that_was_swept_gets_no_further(
    journal: Journal, clock: FakeClock, other: Sweeper, mine: Sweeper
) -> None:
    await journal.submit(admit(amount=100))
    clock.advance(TTL_MS)
    await mine.sweep()
    await other.beat()
    assert await journal.submit(extend(sequence=1, amount=60)) == Refused("hold_lost")
    assert await journal.submit(deliver(window=60)) == Refused("hold_lost")


async def test_sweeping_again_finds_nothing(
    engine: Engine, journal: Journal, clock: FakeClock, other: Sweeper, mine: Sweeper
) -> None:
    await journal.submit(admit(amount=100))
    clock.advance(TTL_MS)
    assert [await mine.sweep(), await mine.sweep()] == [1, 0]
    assert len(rows(engine, outcomes)) == 1


async def test_an_owner_that_beats_while_it_is_being_swept_keeps_its_holds(
    engine: Engine, journal: Journal, clock: FakeClock, other: Sweeper
) -> None:
    await journal.submit(admit(amount=100))
    clock.advance(TTL_MS)
    silent_since = clock.now_ms() - TTL_MS
    assert len(LeaseStore(engine).orphaned(silent_since=clock.now_ms())) == 1
    await other.beat()
    assert await journal.submit(sweep(silent_since=silent_since)) == Refused("owner_lives")
    assert len(rows(engine, holds)) == 1


async def test_an_owner_whose_lease_was_deleted_begins_another(
    engine: Engine, clock: FakeClock, other: Sweeper
) -> None:
    LeaseStore(engine).retire("o1", silent_since=clock.now_ms())
    assert rows(engine, owners) == []
    await other.beat()
    assert [row.id for row in rows(engine, owners)] == ["o1"]


async def test_two_sweepers_resolve_a_hold_once(postgres_url: str, clock: FakeClock) -> None:
    engines = [connect(DatabaseSettings(url=postgres_url)) for _ in range(2)]
    add_customer(engines[0], "c1", credits=1000)
    stores = [WatchedStore(engine, clock) for engine in engines]
    async with running(stores[0]) as one, running(stores[1]) as two:
        sweepers = [
            sweeper_of(f"sweeper{n}", engine=engine, journal=journal, clock=clock)
            for n, (engine, journal) in enumerate(zip(engines, (one, two), strict=True))
        ]
        for n in range(20):
            await one.submit(admit(f"r{n}", amount=10, owner_id="dead"))
        assert sum(await asyncio.gather(*(sweeper.sweep() for sweeper in sweepers))) == 20
    assert len(rows(engines[0], outcomes)) == 20
    prove(engines[0])
    for engine in engines:
        engine.dispose()


class TestAlone:
    async def test_the_holds_of_the_process_before_are_swept_at_the_start(
        self, engine: Engine, journal: Journal, clock: FakeClock, other: Sweeper
    ) -> None:
        await journal.submit(admit(amount=100))
        successor = sweeper_of("o2", engine=engine, journal=journal, clock=clock, alone=True)
        await successor.register()
        assert successor.swept == 1
        assert rows(engine, holds) == []
        prove(engine)

    async def test_ones_own_holds_are_not(self, engine: Engine, journal: Journal, clock: FakeClock) -> None:
        mine = sweeper_of("o1", engine=engine, journal=journal, clock=clock, alone=True)
        await mine.register()
        await journal.submit(admit(amount=100))
        clock.advance(1)
        assert await mine.sweep() == 0


class TestOwnHolds:
    async def test_of_lost_jobs_are_swept_after_a_while(
        self, engine: Engine, journal: Journal, clock: FakeClock, other: Sweeper
    ) -> None:
        await journal.submit(admit(amount=100))
        clock.advance(OWN_GRACE_MS)
        await other.beat()
        assert await other.sweep() == 0
        clock.advance(1)
        assert await other.sweep() == 1
        prove(engine)

    async def test_of_running_jobs_are_never_swept(self, engine: Engine, journal: Journal, clock: FakeClock) -> None:
        mine = sweeper_of("o1", engine=engine, journal=journal, clock=clock, in_flight=("r1",))
        await mine.register()
        await journal.submit(admit("r1", amount=100))
        await journal.submit(admit("r2", amount=100))
        clock.advance(TEN_DAYS_MS)
        assert await mine.sweep() == 1
        assert [row.request_id for row in rows(engine, holds)] == ["r1"]


async def test_sweeping_forgets_expired_claims(
    engine: Engine, journal: Journal, clock: FakeClock, other: Sweeper
) -> None:
    await journal.submit(admit(amount=100, claim=claim(expires_in_ms=10)))
    await journal.submit(capture(price=1, claimed=True))
    clock.advance(11)
    await other.sweep()
    assert rows(engine, idempotency_claims) == []


async def test_a_journal_that_closes_stops_the_sweep_without_an_error(
    engine: Engine, journal: Journal, clock: FakeClock, other: Sweeper, mine: Sweeper
) -> None:
    await journal.submit(admit(amount=100))
    clock.advance(TTL_MS)
    await journal.close(timeout_s=CLOSE_S_MAX)
    assert await mine.sweep() == 0
    assert len(rows(engine, holds)) == 1


async def test_a_process_that_leaves_in_order_leaves_no_lease(engine: Engine, mine: Sweeper, other: Sweeper) -> None:
    await mine.retire()
    assert [row.id for row in rows(engine, owners)] == ["o1"]
