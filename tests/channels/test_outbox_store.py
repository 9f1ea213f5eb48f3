"""Leases, the outbox's rows and reading positions, on both databases."""

import asyncio

from sqlalchemy import Engine

from app.channels.outbox_store import CONFIRMED, FAILED, INTENT, OutboxStore
from app.channels.store import ChannelStore
from app.ledger.journal_store import JournalStore
from app.money import BaseUnits
from app.tables import owners
from tests.clocks import FakeClock
from tests.ledger.channel_operations import CHANNEL, ESCROW, add_channel, freeze, plan, voucher

ACCOUNT = "1:0xabc"
TTL_MS = 30_000
OTHER = "0x" + "c2" * 32


def planned(engine: Engine, clock: FakeClock, channel_id: str = CHANNEL, *, settlement_id: str = "set_1") -> None:
    """A frozen channel and the intent to close it."""
    add_channel(engine, channel_id, clock=clock)
    store = JournalStore(engine, clock)
    store.apply([voucher(9, channel_id=channel_id), freeze(channel_id=channel_id)])
    store.apply([plan("close", 9, settlement_id=settlement_id, channel_id=channel_id)])
    store.close()


def test_lease_is_one_owners_until_it_runs_out(engine: Engine, clock: FakeClock) -> None:
    store = OutboxStore(engine, clock)
    assert store.take_lease(ACCOUNT, owner_id="a", ttl_ms=TTL_MS)
    assert not store.take_lease(ACCOUNT, owner_id="b", ttl_ms=TTL_MS)
    assert store.take_lease("2:0xabc", owner_id="b", ttl_ms=TTL_MS)
    clock.advance(TTL_MS - 1)
    assert not store.take_lease(ACCOUNT, owner_id="b", ttl_ms=TTL_MS)
    assert store.take_lease(ACCOUNT, owner_id="a", ttl_ms=TTL_MS)
    clock.advance(TTL_MS)
    assert store.take_lease(ACCOUNT, owner_id="b", ttl_ms=TTL_MS)
    assert not store.take_lease(ACCOUNT, owner_id="a", ttl_ms=TTL_MS)
    assert store.take_lease(ACCOUNT, owner_id="a", ttl_ms=TTL_MS, alone=True)
    store.give_lease(owner_id="a")
    assert store.take_lease(ACCOUNT, owner_id="b", ttl_ms=TTL_MS)


async def test_lease_that_is_new_is_taken_by_one_of_many(engine: Engine, clock: FakeClock) -> None:
    store = OutboxStore(engine, clock)
    taking = (
        asyncio.to_thread(store.take_lease, ACCOUNT, owner_id=f"own_{number}", ttl_ms=TTL_MS) for number in range(8)
    )
    assert sum(await asyncio.gather(*taking)) == 1


def test_nothing_is_kept_without_the_lease_or_with_a_used_nonce(engine: Engine, clock: FakeClock) -> None:
    store = OutboxStore(engine, clock)
    planned(engine, clock)
    planned(engine, clock, OTHER, settlement_id="set_2")

    def keep(settlement_id: str, *, owner_id: str = "a", nonce: int = 7, instead_of: str | None = None) -> bool:
        return store.keep_signed(
            settlement_id,
            account=ACCOUNT,
            owner_id=owner_id,
            nonce=nonce,
            raw=b"raw",
            tx_hash=f"0x{settlement_id}{nonce}",
            instead_of=instead_of,
        )

    assert not keep("set_1")
    assert store.take_lease(ACCOUNT, owner_id="a", ttl_ms=TTL_MS)
    assert not keep("set_1", owner_id="b")
    assert keep("set_1")
    # It is no intent any more, and only whoever knows what it is may replace it.
    assert not keep("set_1", nonce=8)
    assert not keep("set_1", nonce=7, instead_of="0xother")
    assert keep("set_1", nonce=7, instead_of="0xset_17")
    assert not keep("set_2", nonce=7)
    assert keep("set_2", nonce=8)
    assert store.nonces(ACCOUNT, at_least=8) == {8}
    assert [(row.id, row.nonce, row.raw) for row in store.open_settlements(ACCOUNT)] == [
        ("set_1", 7, b"raw"),
        ("set_2", 8, b"raw"),
    ]
    clock.advance(TTL_MS)
    assert not keep("set_1", nonce=7, instead_of="0xset_17")


def test_row_that_somebody_else_changed_is_left_alone(engine: Engine, clock: FakeClock) -> None:
    """Two that believe to hold the lease: what the second does is decided on what the first left."""
    store = OutboxStore(engine, clock)
    planned(engine, clock)
    assert store.take_lease(ACCOUNT, owner_id="a", ttl_ms=TTL_MS)
    assert store.keep_signed("set_1", account=ACCOUNT, owner_id="a", nonce=7, raw=b"raw", tx_hash="0x1")
    [stale] = store.open_settlements()
    store.forget_signed(stale, error="it reverted", fee=BaseUnits(3))
    [row] = store.settlements_of(CHANNEL)
    assert (row.state, row.nonce, row.raw, row.tx_hash, row.fee, row.attempts) == (INTENT, None, None, None, 3, 1)
    store.end(stale, state=CONFIRMED)
    store.give_up(stale, error="late")
    assert store.settlements_of(CHANNEL) == [row]
    store.give_up(row, error="too often")
    [ended] = store.settlements_of(CHANNEL)
    assert (ended.state, ended.attempts, ended.error) == (FAILED, 2, "too often")
    assert list(store.failed_settlements()) == [ended]
    assert store.closed_by(CHANNEL) is None


def test_position_is_kept_and_never_goes_back(engine: Engine, clock: FakeClock) -> None:
    store = OutboxStore(engine, clock)
    assert store.position("escrow") is None
    store.keep_position("escrow", block=5)
    store.keep_position("escrow", block=3)
    assert store.position("escrow") == (5, clock.now_ms())
    store.keep_position("escrow", block=9)
    assert store.position("escrow") == (9, clock.now_ms())


def test_reading_begins_where_the_first_open_channel_was_seen(engine: Engine, clock: FakeClock) -> None:
    channels = ChannelStore(engine, clock)
    kind = {"backend": "tempo-v1", "chain_id": 1, "escrow": ESCROW}
    assert channels.first_seen(**kind) is None  # type: ignore[arg-type]
    add_channel(engine, block=12)
    add_channel(engine, OTHER, block=10)
    assert channels.first_seen(**kind) == 10  # type: ignore[arg-type]
    assert [found.id for found in channels.named("0xc1")] == [CHANNEL]
    assert len(channels.named("0xc")) == 2
    assert not channels.named("0x%")


def test_server_is_known_by_its_heartbeat(engine: Engine, clock: FakeClock) -> None:
    store = OutboxStore(engine, clock)
    assert not store.server_is_running(ttl_ms=TTL_MS)
    with engine.begin() as connection:
        now = clock.now_ms()
        connection.execute(owners.insert().values(id="own", started_at_ms=now, heartbeat_at_ms=now))
    assert store.server_is_running(ttl_ms=TTL_MS)
    clock.advance(TTL_MS)
    assert not store.server_is_running(ttl_ms=TTL_MS)
