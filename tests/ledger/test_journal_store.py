"""What only rows can show; `test_ledger_machine` compares the rest with a model."""

from typing import Any

import pytest
from sqlalchemy import Engine

from app.errors import InvariantViolated
from app.ledger.books import Books
from app.ledger.journal_store import JournalStore
from app.ledger.operation import Admitted, Captured, ClaimFound, Operation
from app.money import NanoUsd
from app.tables import holds, idempotency_claims, transfers
from tests.clocks import FakeClock
from tests.ledger.faults import WRITES, Crash, CrashingStore
from tests.ledger.operations import IMPOSSIBLE, admit, capture, claim, extend, post, sweep
from tests.ledger.proof import prove, rows
from tests.ledger.seeds import add_customer


def test_a_capture_takes_the_oldest_windows_first_in_whatever_order_they_were_stored(
    engine: Engine, store: JournalStore
) -> None:
    add_customer(engine, "c1", credits=1000)
    store.apply([admit(amount=10)])
    for sequence in (10, 2, 1):
        store.apply([extend(sequence=sequence, amount=10)])
    assert store.apply([capture(price=25)]) == [Captured(NanoUsd(25))]
    taken = {row.pending_id: row.amount for row in rows(engine, transfers) if row.pending_id is not None}
    assert taken == {"r1:h0": 10, "r1:h1": 10, "r1:h2": 5, "r1:h10": 0}
    prove(engine)


def test_a_sweep_bills_by_the_mark_of_the_newest_window(engine: Engine, store: JournalStore) -> None:
    add_customer(engine, "c1", credits=1000)
    store.apply([admit(amount=10)])
    store.apply([extend(sequence=2, amount=10, used=15)])
    store.apply([extend(sequence=1, amount=10, used=5)])
    assert store.apply([sweep(silent_since=None)]) == [Captured(NanoUsd(25))]
    prove(engine)


def test_a_batch_that_the_database_refuses_leaves_nothing_behind(engine: Engine, store: JournalStore) -> None:
    add_customer(engine, "c1", credits=1000)
    before = rows(engine, transfers)
    with pytest.raises(store.driver.IntegrityError):
        store.apply([admit(amount=10, claim=claim()), IMPOSSIBLE])
    assert rows(engine, transfers) == before
    assert rows(engine, holds) == rows(engine, idempotency_claims) == []
    assert store.apply([admit(amount=10)]) == [Admitted(NanoUsd(10), NanoUsd(1000))]
    prove(engine)


@pytest.mark.parametrize("before", range(WRITES))
def test_a_crash_between_any_two_writes_leaves_nothing_behind(engine: Engine, clock: FakeClock, before: int) -> None:
    add_customer(engine, "c1", credits=1000)
    store = CrashingStore(engine, clock)
    store.apply([admit("r1", amount=10, claim=claim("old"))])
    stored = [rows(engine, table) for table in (transfers, holds, idempotency_claims)]
    batch: list[Operation] = [capture("r1", price=5, claimed=True), admit("r2", amount=10, claim=claim("new"))]
    with pytest.raises(Crash):
        store.crash(batch, before=before, again=False)
    assert [rows(engine, table) for table in (transfers, holds, idempotency_claims)] == stored
    prove(engine)
    store.close()


def test_an_expired_claim_makes_room_for_the_next(engine: Engine, clock: FakeClock, store: JournalStore) -> None:
    add_customer(engine, "c1", credits=1000)
    store.apply([admit("r1", amount=10, claim=claim(expires_in_ms=10))])
    store.apply([capture("r1", price=5, claimed=True)])
    clock.advance(9)
    again = admit("r2", amount=10, claim=claim(expires_in_ms=100))
    assert store.apply([again]) == [ClaimFound("r1", "body", "unstored", None)]
    clock.advance(1)
    assert store.apply([again]) == [Admitted(NanoUsd(10), NanoUsd(995))]
    assert [row.request_id for row in rows(engine, idempotency_claims)] == ["r2"]


def test_a_row_that_changed_under_its_lock_is_a_bug(engine: Engine, store: JournalStore) -> None:
    """The version is the belt to the lock's braces: a write without the lock is found, not overwritten."""
    account_id = add_customer(engine, "c1", credits=1000)

    class Unlocked(JournalStore):
        def _write_rows(self, books: Books) -> list[tuple[Any, int]]:
            books.accounts[account_id].version -= 1
            return super()._write_rows(books)

    unlocked = Unlocked(engine, FakeClock())
    with pytest.raises(InvariantViolated, match="changed under its lock"):
        unlocked.apply([post("t1", amount=1)])
    unlocked.close()
    prove(engine)


def test_integers_of_every_size_are_stored(engine: Engine, store: JournalStore) -> None:
    add_customer(engine, "c1")
    amounts = [1, 2**15, 2**31, 2**53 + 1]
    for number, amount in enumerate(amounts):
        store.apply([post(f"t{number}", amount=amount)])
    assert sorted(row.amount for row in rows(engine, transfers)) == amounts
    prove(engine)
