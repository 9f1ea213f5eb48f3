import pytest
from sqlalchemy import Engine

from app.clock import EpochMs
from app.ledger import lease_store
from app.ledger.journal_store import JournalStore
from app.ledger.lease_store import HeldRequest, LeaseStore
from app.tables import idempotency_claims, owners
from tests.clocks import START_MS, FakeClock
from tests.ledger.operations import ACCOUNT, KEY, admit, capture, claim, condition, extend
from tests.ledger.proof import rows
from tests.ledger.seeds import add_customer, add_key


@pytest.fixture
def leases(engine: Engine) -> LeaseStore:
    return LeaseStore(engine)


@pytest.fixture
def journal_store(engine: Engine, store: JournalStore) -> JournalStore:
    """A store over which one customer can hold."""
    add_customer(engine, "c1", credits=10_000)
    return store


def after(ms: int) -> EpochMs:
    return EpochMs(START_MS + ms)


def test_a_beat_renews_a_lease(engine: Engine, leases: LeaseStore) -> None:
    leases.register("o1", now=START_MS)
    assert leases.beat("o1", now=after(5))
    assert [tuple(row) for row in rows(engine, owners)] == [("o1", START_MS, after(5))]


def test_a_beat_without_a_lease_says_so(leases: LeaseStore) -> None:
    assert not leases.beat("o1", now=START_MS)


def test_holds_of_silent_and_unknown_owners_are_orphaned(
    leases: LeaseStore, engine: Engine, journal_store: JournalStore
) -> None:
    add_key(engine, KEY, customer_id="c1")
    leases.register("alive", now=after(101))
    leases.register("silent", now=after(100))
    journal_store.apply(
        [
            admit("r1", amount=1, owner_id="alive"),
            admit("r2", amount=1, owner_id="silent", key=condition()),
            admit("r3", amount=1, owner_id="unknown"),
        ]
    )
    assert sorted(leases.orphaned(silent_since=after(100)), key=lambda held: held.request_id) == [
        HeldRequest("r2", ACCOUNT, KEY, "silent"),
        HeldRequest("r3", ACCOUNT, None, "unknown"),
    ]


def test_a_request_of_several_holds_is_orphaned_once(leases: LeaseStore, journal_store: JournalStore) -> None:
    journal_store.apply([admit(amount=1), extend(sequence=1, amount=1), extend(sequence=2, amount=1)])
    assert [held.request_id for held in leases.orphaned(silent_since=START_MS)] == ["r1"]


def test_orphans_come_in_bounded_numbers(
    leases: LeaseStore, journal_store: JournalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_store, "ORPHANS_MAX", 3)
    journal_store.apply([admit(f"r{n}", amount=1) for n in range(5)])
    assert len(leases.orphaned(silent_since=START_MS)) == 3


def test_ones_own_old_holds_are_found(leases: LeaseStore, clock: FakeClock, journal_store: JournalStore) -> None:
    journal_store.apply([admit("old", amount=1), admit("other", amount=1, owner_id="o2")])
    clock.advance(10)
    journal_store.apply([admit("new", amount=1)])
    assert [held.request_id for held in leases.owned("o1", created_before=after(10))] == ["old"]


def test_an_owner_that_leaves_is_forgotten_once_it_holds_nothing(
    engine: Engine, leases: LeaseStore, journal_store: JournalStore
) -> None:
    leases.register("o1", now=START_MS)
    journal_store.apply([admit(amount=1)])
    leases.retire("o1", silent_since=EpochMs(0))
    assert [row.id for row in rows(engine, owners)] == ["o1"]
    journal_store.apply([capture(price=1)])
    leases.retire("o1", silent_since=EpochMs(0))
    assert rows(engine, owners) == []


def test_only_the_long_dead_are_forgotten_with_it(engine: Engine, leases: LeaseStore) -> None:
    for owner, at in (("leaver", 100), ("alive", 50), ("dead", 49)):
        leases.register(owner, now=after(at))
    leases.retire("leaver", silent_since=after(50))
    assert [row.id for row in rows(engine, owners)] == ["alive"]


def test_expired_claims_are_forgotten_unless_they_run(
    engine: Engine, leases: LeaseStore, journal_store: JournalStore
) -> None:
    journal_store.apply(
        [
            admit("ended", amount=1, claim=claim("ended", expires_in_ms=10)),
            admit("running", amount=1, claim=claim("running", expires_in_ms=10)),
            admit("fresh", amount=1, claim=claim("fresh", expires_in_ms=11)),
        ]
    )
    journal_store.apply([capture(name, price=1, claimed=True) for name in ("ended", "fresh")])
    assert leases.forget_claims(now=after(10)) == 0
    assert leases.forget_claims(now=after(11)) == 1
    assert {row.key_hash for row in rows(engine, idempotency_claims)} == {"running", "fresh"}
