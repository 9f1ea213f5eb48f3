"""The budget of fees that are paid for clients."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Engine, select

from app.channels.outbox_store import OutboxStore
from app.ledger.account import CHAIN_FEES, TREASURY
from app.ledger.journal import Journal
from app.ledger.journal_store import JournalStore
from app.money import BaseUnits
from app.settings import ChannelSettings, LedgerSettings, MppSettings
from app.settlement.fees import SponsoredFees
from app.tables import transfers
from tests.clocks import FakeClock
from tests.ledger.channel_operations import ESCROW, TOKEN

DAY_MS = 86_400_000


@pytest.fixture
async def journal(engine: Engine, clock: FakeClock) -> AsyncIterator[Journal]:
    journal = Journal(JournalStore(engine, clock), LedgerSettings())
    journal.start()
    yield journal
    await journal.close(timeout_s=10)


def fees_of(engine: Engine, clock: FakeClock, journal: Journal, *, escrow: str = ESCROW) -> SponsoredFees:
    """A budget of 100 base units a day."""
    entry = ChannelSettings(backend="tempo-v2", chain_id=1, rpc_url="http://127.0.0.1:1", escrow=escrow, currency=TOKEN)
    settings = MppSettings(sponsored_fees_per_day="0.0001")
    return SponsoredFees(entry, settings, store=OutboxStore(engine, clock), journal=journal, clock=clock)


async def test_worst_case_is_reserved_and_the_rest_freed(engine: Engine, clock: FakeClock, journal: Journal) -> None:
    fees = fees_of(engine, clock, journal)
    assert await fees.reserve(BaseUnits(60), tx_hash="0x1")
    # The same transaction is one reservation, before and after it is mined.
    assert await fees.reserve(BaseUnits(60), tx_hash="0x1")
    assert not await fees.reserve(BaseUnits(41), tx_hash="0x2")
    assert await fees.reserve(BaseUnits(40), tx_hash="0x3")
    for _ in range(2):
        await fees.settle(BaseUnits(25), tx_hash="0x1")
    assert not await fees.reserve(BaseUnits(36), tx_hash="0x4")
    assert await fees.reserve(BaseUnits(35), tx_hash="0x4")
    with engine.connect() as connection:
        [booked] = connection.execute(select(transfers)).all()
    assert (booked.debit_account, booked.credit_account, booked.amount) == (CHAIN_FEES, TREASURY, 25_000)


async def test_each_day_and_each_kind_has_its_own(engine: Engine, clock: FakeClock, journal: Journal) -> None:
    fees, other = fees_of(engine, clock, journal), fees_of(engine, clock, journal, escrow="0x" + "e6" * 20)
    assert await fees.reserve(BaseUnits(100), tx_hash="0x1")
    assert not await fees.reserve(BaseUnits(1), tx_hash="0x2")
    assert await other.reserve(BaseUnits(100), tx_hash="0x3")
    clock.advance(DAY_MS)
    assert await fees.reserve(BaseUnits(100), tx_hash="0x2")
    # Yesterday's is settled against yesterday.
    await fees.settle(BaseUnits(1), tx_hash="0x1")
    assert not await fees.reserve(BaseUnits(1), tx_hash="0x4")


async def test_fee_of_a_transaction_that_was_never_reserved_is_booked_once(
    engine: Engine, clock: FakeClock, journal: Journal
) -> None:
    fees = fees_of(engine, clock, journal)
    for _ in range(2):
        await fees.settle(BaseUnits(7), tx_hash="0x1")
    with engine.connect() as connection:
        assert [row.amount for row in connection.execute(select(transfers))] == [7_000]


async def test_replicas_share_the_budget(engine: Engine, clock: FakeClock, journal: Journal) -> None:
    fees = fees_of(engine, clock, journal)
    results = await asyncio.gather(*(fees.reserve(BaseUnits(10), tx_hash=f"0x{number}") for number in range(20)))
    assert sum(results) == 10
