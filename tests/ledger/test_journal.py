import asyncio
import sqlite3
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Engine

from app.database import connect
from app.errors import InvariantViolated, Overloaded
from app.ledger import journal as journal_module
from app.ledger import journal_store
from app.ledger.journal import Journal
from app.ledger.operation import (
    Admitted,
    Captured,
    ClaimFound,
    Delivered,
    Extended,
    Operation,
    Posted,
    Refused,
)
from app.money import NanoUsd
from app.settings import DatabaseSettings, LedgerSettings
from app.tables import attempts, holds, outcomes, requests, transfers
from tests.clocks import FakeClock
from tests.ledger.conftest import CLOSE_S_MAX, WAIT_S_MAX, reached, running
from tests.ledger.faults import WatchedStore
from tests.ledger.operations import IMPOSSIBLE, KEY, admit, capture, claim, condition, deliver, extend, post
from tests.ledger.proof import prove, rows
from tests.ledger.seeds import add_customer, add_key

ROOT = Path(__file__).resolve().parents[2]


def at_sqlite(url: str) -> sqlite3.Connection:
    return sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)


def at_postgres(url: str) -> psycopg.Connection:
    return psycopg.connect(url, autocommit=True)


class TestCommits:
    async def test_take_a_request_from_hold_to_charge(self, engine: Engine, store: WatchedStore) -> None:
        add_customer(engine, "c1", credits=1000)
        add_key(engine, KEY, customer_id="c1")
        attempt = ("r1", 1, "p", "m", "ok", 200, 0, 5)
        async with running(store) as journal:
            steps: list[Operation] = [
                admit(amount=100, key=condition(), claim=claim()),
                deliver(window=80),
                extend(sequence=1, amount=200, used=75, key=condition()),
                capture(price=250, cost=90, key_id=KEY, attempts=(attempt,), claimed=True, answer=lambda _: b"{}"),
                admit("r2", amount=100, key=condition(), claim=claim()),
            ]
            results = [await journal.submit(step) for step in steps]
        assert results == [
            Admitted(NanoUsd(100), NanoUsd(1000)),
            Delivered(),
            Extended(NanoUsd(200)),
            Captured(NanoUsd(250)),
            ClaimFound("r1", "body", "stored", b"{}"),
        ]
        (outcome,) = rows(engine, outcomes)
        assert (outcome.charged, outcome.loss, outcome.cost, outcome.estimated) == (250, 0, 90, False)
        assert [tuple(row) for row in rows(engine, attempts)] == [attempt]
        prove(engine)

    async def test_are_shared_by_all_that_wait(self, engine: Engine, store: WatchedStore) -> None:
        add_customer(engine, "c1", credits=1000)
        async with running(store, batch_max=256) as journal:
            store.gate.clear()
            first = journal.submit(admit("first", amount=1))
            await reached(store.at_gate)
            others = [journal.submit(admit(f"r{n}", amount=1)) for n in range(200)]
            await asyncio.sleep(0)
            assert (journal.waiting, first.done()) == (200, False)
            store.gate.set()
            results = await asyncio.gather(first, *others)
        assert all(isinstance(result, Admitted) for result in results)
        assert (journal.commits, journal.operations) == (2, 201)
        assert len(rows(engine, holds)) == 201

    async def test_of_callers_at_once_are_one(self, engine: Engine, store: WatchedStore) -> None:
        add_customer(engine, "c1", credits=1000)
        async with running(store, batch_max=256) as journal:
            await asyncio.gather(*(journal.submit(admit(f"r{n}", amount=1)) for n in range(100)))
        assert journal.commits == 1

    async def test_take_a_bounded_number_of_operations(self, engine: Engine, store: WatchedStore) -> None:
        add_customer(engine, "c1", credits=1000)
        async with running(store, batch_max=3) as journal:
            await asyncio.gather(*(journal.submit(admit(f"r{n}", amount=1)) for n in range(8)))
        assert journal.commits == 3

    async def test_wake_the_caller_only_when_durable(self, engine: Engine, store: WatchedStore) -> None:
        add_customer(engine, "c1", credits=1000)
        async with running(store) as journal:
            store.gate.clear()
            future = journal.submit(admit(amount=1))
            await reached(store.at_gate)
            assert rows(engine, holds) == []
            assert not future.done()
            store.gate.set()
            await future
            assert len(rows(engine, holds)) == 1

    async def test_are_reported(self, engine: Engine, store: WatchedStore) -> None:
        add_customer(engine, "c1", credits=1000)
        reports: list[int] = []
        async with running(store) as journal:
            journal.on_commit = lambda operations, _seconds: reports.append(operations)
            await asyncio.gather(*(journal.submit(admit(f"r{n}", amount=1)) for n in range(5)))
        assert reports == [5]

    async def test_of_hundreds_of_rows_keep_the_books(self, engine: Engine, store: WatchedStore) -> None:
        add_customer(engine, "c1", credits=10_000)
        count = 300
        async with running(store, batch_max=1000) as journal:
            for make in (
                lambda n: admit(f"r{n}", amount=10, claim=claim(f"claim{n}")),
                lambda n: extend(f"r{n}", sequence=1, amount=10),
                lambda n: capture(f"r{n}", price=15, cost=5, claimed=True),
            ):
                await asyncio.gather(*(journal.submit(make(n)) for n in range(count)))
        assert journal.commits == 3
        assert sum(outcome.charged for outcome in rows(engine, outcomes)) == 15 * count
        prove(engine)


class TestNeighbours:
    @pytest.mark.parametrize(
        ("bad", "reason"),
        [(IMPOSSIBLE, "refused an operation"), (capture("nobody", price=1), "neither holds nor an outcome")],
        ids=["refused by the database", "a bug found in the decision"],
    )
    async def test_are_not_failed_by_a_bad_operation(
        self, engine: Engine, store: WatchedStore, bad: Operation, reason: str
    ) -> None:
        add_customer(engine, "c1", credits=1000)
        async with running(store) as journal:
            results = await asyncio.gather(
                journal.submit(admit("r1", amount=1)),
                journal.submit(bad),
                journal.submit(admit("r2", amount=2)),
                return_exceptions=True,
            )
        assert isinstance(results[1], InvariantViolated)
        assert reason in results[1].message
        assert [results[0], results[2]] == [
            Admitted(NanoUsd(1), NanoUsd(1000)),
            Admitted(NanoUsd(2), NanoUsd(999)),
        ]
        assert {row.id for row in rows(engine, requests)} == {"r1", "r2"}
        prove(engine)

    async def test_are_not_failed_by_a_refusal(self, engine: Engine, store: WatchedStore) -> None:
        add_customer(engine, "c1", credits=10)
        async with running(store) as journal:
            results = await asyncio.gather(
                journal.submit(admit("r1", amount=8, required=8)),
                journal.submit(admit("r2", amount=8, required=8)),
                journal.submit(admit("r3", amount=2, required=2)),
            )
        assert journal.commits == 1
        assert [type(result) for result in results] == [Admitted, Refused, Admitted]

    async def test_outlive_a_caller_that_left(self, engine: Engine, store: WatchedStore) -> None:
        add_customer(engine, "c1", credits=10)
        async with running(store) as journal:
            leaver, stayer = journal.submit(admit("r1", amount=1)), journal.submit(admit("r2", amount=1))
            leaver.cancel()
            assert isinstance(await stayer, Admitted)
        # Cancelling takes nothing back: the hold is the sweeper's.
        assert {row.request_id for row in rows(engine, holds)} == {"r1", "r2"}

    async def test_that_were_committed_unheard_are_found_beside_a_bad_operation(
        self, engine: Engine, store: WatchedStore
    ) -> None:
        add_customer(engine, "c1", credits=1000)
        async with running(store) as journal:
            await asyncio.gather(journal.submit(admit("r1", amount=1)), journal.submit(admit("r2", amount=1)))
            store.answers_to_lose = 1
            lost = [journal.submit(deliver("r1", window=1)), journal.submit(extend("r2", sequence=1, amount=2))]
            await asyncio.gather(*lost)
        assert len(rows(engine, holds)) == 3
        prove(engine)


class TestBounds:
    async def test_refuse_what_the_queue_cannot_take_and_take_what_must_be(
        self, engine: Engine, store: WatchedStore
    ) -> None:
        add_customer(engine, "c1", credits=1000)
        async with running(store, queue_max=2) as journal:
            store.gate.clear()
            running_now = journal.submit(admit("r0", amount=10))
            await reached(store.at_gate)
            waiting = [journal.submit(admit(f"r{n}", amount=1)) for n in (1, 2)]
            refused = journal.submit(admit("r3", amount=1))
            taken = journal.submit(capture("r0", price=5), must=True)
            with pytest.raises(Overloaded) as caught:
                await refused
            assert caught.value.retry_after_s == 1
            store.gate.set()
            results = await asyncio.gather(running_now, *waiting, taken)
        assert results[-1] == Captured(NanoUsd(5))
        assert {row.id for row in rows(engine, requests)} == {"r0", "r1", "r2"}

    async def test_are_needed_only_once_started(self, store: WatchedStore) -> None:
        with pytest.raises(InvariantViolated, match="not started"):
            Journal(store, LedgerSettings()).submit(admit(amount=1))


class TestDatabaseAway:
    async def test_is_waited_out(self, engine: Engine, store: WatchedStore) -> None:
        add_customer(engine, "c1", credits=1000)
        async with running(store) as journal:
            store.away = True
            future = journal.submit(admit(amount=7))
            for _ in range(3):
                await reached(store.failed)
            store.away = False
            assert await future == Admitted(NanoUsd(7), NanoUsd(1000))
        assert journal.commits == 1
        prove(engine)

    async def test_for_too_long_abandons_what_may_be_abandoned(self, engine: Engine, store: WatchedStore) -> None:
        add_customer(engine, "c1", credits=1000)
        async with running(store, commit_timeout_s=0.05) as journal:
            await journal.submit(admit("r1", amount=7))
            store.away = True
            capturing = journal.submit(capture("r1", price=5), must=True)
            beside = journal.submit(admit("r2", amount=1))
            await reached(store.failed)
            behind = journal.submit(admit("r3", amount=1))
            for abandoned in (beside, behind):
                with pytest.raises(Overloaded, match="nothing was charged"):
                    await asyncio.wait_for(abandoned, WAIT_S_MAX)
            assert not capturing.done()
            store.away = False
            assert await capturing == Captured(NanoUsd(5))
        assert {row.id for row in rows(engine, requests)} == {"r1"}
        prove(engine)

    async def test_behind_another_writer_of_sqlite_is_waited_out(
        self, sqlite_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal_store, "BUSY_TIMEOUT_MS", 1)
        engine = connect(DatabaseSettings(url=sqlite_url))
        add_customer(engine, "c1", credits=1000)
        store = WatchedStore(engine, clock)
        writer = at_sqlite(sqlite_url)
        async with running(store) as journal:
            writer.execute("BEGIN IMMEDIATE")
            future = journal.submit(admit(amount=7))
            for _ in range(3):
                await reached(store.failed)
            writer.execute("COMMIT")
            assert await future == Admitted(NanoUsd(7), NanoUsd(1000))
        writer.close()
        assert {str(error) for error in store.failures} == {"database is locked"}
        assert len(rows(engine, holds)) == 1
        prove(engine)
        engine.dispose()

    async def test_between_two_batches_on_postgresql_is_not_noticed(self, postgres_url: str, clock: FakeClock) -> None:
        engine = connect(DatabaseSettings(url=postgres_url))
        add_customer(engine, "c1", credits=1000)
        store = WatchedStore(engine, clock)
        async with running(store) as journal:
            await journal.submit(admit("r1", amount=7))
            with at_postgres(postgres_url) as other:
                killed = other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                ).fetchall()
            assert killed
            assert await journal.submit(admit("r2", amount=7)) == Admitted(NanoUsd(7), NanoUsd(993))
        assert store.failures
        assert {row.request_id for row in rows(engine, holds)} == {"r1", "r2"}
        prove(engine)
        engine.dispose()

    async def test_in_the_middle_of_a_batch_on_postgresql_does_nothing_twice(
        self, postgres_url: str, clock: FakeClock
    ) -> None:
        engine = connect(DatabaseSettings(url=postgres_url))
        add_customer(engine, "c1", credits=1000)
        store = WatchedStore(engine, clock)
        async with running(store) as journal:
            store.gate.clear()
            future = journal.submit(admit("r1", amount=7))
            await reached(store.at_gate)
            with at_postgres(postgres_url) as other:
                killed = other.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction' "
                    "AND datname = current_database()"
                ).fetchall()
            assert len(killed) == 1
            store.gate.set()
            assert isinstance(await future, Admitted)
        assert len(rows(engine, transfers)) == 2
        prove(engine)
        engine.dispose()

    async def test_after_a_commit_that_nobody_heard_of_does_nothing_twice(
        self, engine: Engine, store: WatchedStore
    ) -> None:
        add_customer(engine, "c1", credits=1000)
        add_key(engine, KEY, customer_id="c1", spend_limit=NanoUsd(900))
        batches: list[list[Operation]] = [
            [admit("r1", amount=50, key=condition(), claim=claim()), post("t1", amount=5)],
            [deliver("r1", window=50), extend("r1", sequence=1, amount=10, key=condition())],
            [capture("r1", price=90, key_id=KEY, claimed=True)],
        ]
        async with running(store) as journal:
            heard = []
            for batch in batches:
                store.answers_to_lose = 1
                heard.append(await asyncio.gather(*map(journal.submit, batch)))
        assert heard == [
            [Admitted(NanoUsd(50), NanoUsd(1005)), Posted(first=False)],
            [Delivered(), Extended(NanoUsd(10))],
            [Captured(NanoUsd(90), first=False)],
        ]
        assert store.answers_to_lose == 0
        prove(engine)

    async def test_for_a_reason_that_no_one_foresaw_does_not_stop_the_writer(
        self, sqlite_url: str, clock: FakeClock
    ) -> None:
        engine = connect(DatabaseSettings(url=sqlite_url))
        add_customer(engine, "c1", credits=1000)
        store = WatchedStore(engine, clock)
        async with running(store) as journal:
            store.answers_to_lose, store.lost_with = 1, "DatabaseError"
            for name in ("r1", "r2"):
                assert isinstance(await asyncio.wait_for(journal.submit(admit(name, amount=5)), WAIT_S_MAX), Admitted)
        prove(engine)
        engine.dispose()

    async def test_after_an_unheard_commit_and_a_bad_neighbour_does_nothing_twice(
        self, engine: Engine, store: WatchedStore
    ) -> None:
        add_customer(engine, "c1", credits=1000)
        # Applied and lost; the retry then fails for a neighbour's reasons and is split.
        store.apply([admit("r1", amount=50)])
        async with running(store) as journal:
            store.away = True
            futures = [journal.submit(admit("r1", amount=50)), journal.submit(IMPOSSIBLE)]
            await reached(store.failed)
            store.away = False
            results = await asyncio.gather(*futures, return_exceptions=True)
        assert results[0] == Admitted(NanoUsd(50), NanoUsd(1000))
        assert isinstance(results[1], InvariantViolated)
        prove(engine)


class TestClose:
    async def test_commits_what_waits_and_refuses_what_comes(self, engine: Engine, store: WatchedStore) -> None:
        add_customer(engine, "c1", credits=1000)
        async with running(store) as journal:
            store.gate.clear()
            waiting = [journal.submit(admit("r0", amount=5))]
            await reached(store.at_gate)
            waiting += [journal.submit(admit(f"r{n}", amount=5)) for n in range(1, 4)]
            closing = asyncio.create_task(journal.close(timeout_s=CLOSE_S_MAX))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await journal.submit(admit("late", amount=5))
            # What is still running may end.
            waiting.append(journal.submit(capture("r0", price=5), must=True))
            store.gate.set()
            await closing
            assert all(future.done() for future in waiting)
        assert [type(future.result()) for future in waiting] == [Admitted] * 4 + [Captured]
        assert {row.id for row in rows(engine, requests)} == {f"r{n}" for n in range(4)}
        prove(engine)

    async def test_of_a_journal_without_a_database_ends_in_time(self, engine: Engine, store: WatchedStore) -> None:
        add_customer(engine, "c1", credits=1000)
        async with running(store, batch_max=1) as journal:
            store.away = True
            waiting = [journal.submit(capture(f"r{n}", price=5), must=True) for n in range(3)]
            await reached(store.failed)
            await journal.close(timeout_s=0.05)
            for future in waiting:
                with pytest.raises(Overloaded):
                    await asyncio.wait_for(future, CLOSE_S_MAX)

    async def test_of_a_journal_that_is_stuck_leaves_nobody_waiting_behind_it(
        self, engine: Engine, store: WatchedStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(journal_module, "RETRY_PAUSE_S_MAX", 0.01)
        add_customer(engine, "c1", credits=1000)
        async with running(store) as journal:
            store.gate.clear()
            stuck = journal.submit(admit("r1", amount=5))
            await reached(store.at_gate)
            behind = journal.submit(admit("r2", amount=5), must=True)
            await journal.close(timeout_s=0.01)
            with pytest.raises(Overloaded):
                await asyncio.wait_for(behind, WAIT_S_MAX)
            store.gate.set()
            # Its commit was under way, and it hears of it.
            assert isinstance(await asyncio.wait_for(stuck, WAIT_S_MAX), Admitted)
        assert {row.id for row in rows(engine, requests)} == {"r1"}

    async def test_leaves_nobody_waiting_for_a_journal_that_stopped(self, engine: Engine, store: WatchedStore) -> None:
        add_customer(engine, "c1", credits=1000)
        async with running(store) as journal:
            await journal.submit(admit("r1", amount=5))
        for must in (False, True):
            with pytest.raises(Overloaded):
                await asyncio.wait_for(journal.submit(capture("r1", price=5), must=must), CLOSE_S_MAX)
        assert len(rows(engine, holds)) == 1

    async def test_gives_the_connection_back(self, engine: Engine, store: WatchedStore) -> None:
        add_customer(engine, "c1", credits=1000)
        async with running(store) as journal:
            await journal.submit(admit("r1", amount=5))
            assert engine.pool.checkedout() == 1  # type: ignore[attr-defined]
        assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]

    async def test_twice_is_harmless(self, store: WatchedStore) -> None:
        async with running(store) as journal:
            await journal.close(timeout_s=CLOSE_S_MAX)


class TestReplicas:
    async def test_admit_one_request_on_a_balance_for_one(self, postgres_url: str, clock: FakeClock) -> None:
        engines = [connect(DatabaseSettings(url=postgres_url)) for _ in range(2)]
        add_customer(engines[0], "c1", credits=100)
        stores = [WatchedStore(engine, clock) for engine in engines]
        async with running(stores[0], batch_max=5) as one, running(stores[1], batch_max=5) as two:
            results = await asyncio.gather(
                *(
                    journal.submit(admit(f"{name}{n}", amount=100, required=100))
                    for n in range(50)
                    for name, journal in (("a", one), ("b", two))
                )
            )
        assert sum(isinstance(result, Admitted) for result in results) == 1
        assert one.commits > 1 < two.commits
        prove(engines[0])
        for engine in engines:
            engine.dispose()

    async def test_in_two_processes_admit_one_request_on_a_balance_for_one(self, postgres_url: str) -> None:
        engine = connect(DatabaseSettings(url=postgres_url))
        add_customer(engine, "c1", credits=100)
        processes = [
            await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tests.ledger.admit_process", postgres_url, name, "50", "100"),
                cwd=ROOT,
                stdin=PIPE,
                stdout=PIPE,
            )
            for name in ("a", "b")
        ]
        for process in processes:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
        answers = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
        assert [process.returncode for process in processes] == [0, 0]
        assert sum(int(out) for out, _ in answers) == 1
        assert len(rows(engine, requests)) == 1
        prove(engine)
        engine.dispose()

    async def test_claim_an_idempotency_key_once(self, postgres_url: str, clock: FakeClock) -> None:
        engines = [connect(DatabaseSettings(url=postgres_url)) for _ in range(2)]
        add_customer(engines[0], "c1", credits=1000)
        stores = [WatchedStore(engine, clock) for engine in engines]
        async with running(stores[0], batch_max=2) as one, running(stores[1], batch_max=2) as two:
            results = await asyncio.gather(
                *(
                    journal.submit(admit(f"{name}{n}", amount=1, claim=claim()))
                    for n in range(20)
                    for name, journal in (("a", one), ("b", two))
                )
            )
        winners = [result for result in results if isinstance(result, Admitted)]
        assert len(winners) == 1
        assert {result.request_id for result in results if isinstance(result, ClaimFound)} == {
            row.id for row in rows(engines[0], requests)
        }
        for engine in engines:
            engine.dispose()

    async def test_never_wait_for_each_other_in_a_circle(self, postgres_url: str, clock: FakeClock) -> None:
        engines = [connect(DatabaseSettings(url=postgres_url)) for _ in range(2)]
        names = [add_customer(engines[0], f"c{n}", credits=1000) for n in range(6)]
        stores = [WatchedStore(engine, clock) for engine in engines]
        async with running(stores[0], batch_max=6) as one, running(stores[1], batch_max=6) as two:
            await asyncio.gather(
                *(
                    journal.submit(post(f"{way}{n}", amount=1, debit=order[n % 6], credit=order[(n + 1) % 6]))
                    for n in range(300)
                    for way, journal, order in (("up", one, names), ("down", two, names[::-1]))
                )
            )
        assert stores[0].failures == stores[1].failures == []
        prove(engines[0])
        for engine in engines:
            engine.dispose()

    async def test_take_over_a_row_that_another_holds(self, postgres_url: str, clock: FakeClock) -> None:
        engine = connect(DatabaseSettings(url=postgres_url))
        add_customer(engine, "c1", credits=100)
        stores = [WatchedStore(engine, clock) for _ in range(2)]
        async with running(stores[0]) as one, running(stores[1]) as two:
            stores[0].gate.clear()
            first = one.submit(admit("first", amount=100))
            await reached(stores[0].at_gate)
            second = two.submit(admit("second", amount=100))
            with at_postgres(postgres_url) as other:
                blocked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
                async with asyncio.timeout(WAIT_S_MAX):
                    while other.execute(blocked).fetchone() != (1,):  # noqa: ASYNC110 - PostgreSQL tells nobody
                        await asyncio.sleep(0)
            stores[0].gate.set()
            assert await first == Admitted(NanoUsd(100), NanoUsd(100))
            # It decides on the row as the first one left it, not as it was when it asked.
            assert await second == Refused("insufficient_balance", NanoUsd(0), NanoUsd(1))
        engine.dispose()
