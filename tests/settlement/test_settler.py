"""What is settled and closed, on a real chain, with processes that die between any two steps."""

import asyncio

import pytest
from sqlalchemy import select

from app.channels.outbox_store import CONFIRMED, FAILED, INTENT, SIGNED
from app.ledger import transfer as kinds
from app.ledger.account import ADJUSTMENTS, CHAIN_FEES, TREASURY, escrow_account
from app.tables import challenge_claims, transfers, vouchers
from tests.devnet_fixtures import TempoChain
from tests.ledger.proof import prove
from tests.settlement.conftest import DEPOSIT, Shop, ShopMaker

DAY_MS = 86_400_000


def moves(shop: Shop, kind: str) -> list[tuple[str, str, int]]:
    with shop.engine.connect() as connection:
        found = connection.execute(select(transfers).where(transfers.c.kind == kind))
        return [(move.debit_account, move.credit_account, move.amount) for move in found]


async def test_exposure_is_settled_with_the_highest_voucher_that_is_spent(shop: Shop) -> None:
    channel_id = await shop.open()
    for amount in (200_000, 500_100, 700_000):
        await shop.accept(channel_id, amount)
    settler = shop.settler()
    await shop.spend(channel_id, 499_999_000)
    await shop.until_done(settler)
    assert not shop.settlements(channel_id)

    before = shop.payee_has()
    await shop.spend(channel_id, 101_500)
    await shop.until_done(settler)
    [row] = shop.settlements(channel_id)
    assert (row.kind, row.state, row.amount, row.error) == ("settle", CONFIRMED, 500_100, None)
    state, view = await shop.on_chain(channel_id), shop.record(channel_id).view
    assert (state.settled, state.finalized) == (500_100, False)
    assert (view.settled, view.published, view.status) == (500_100, 500_100, "open")
    # What the escrow paid, less what the transaction cost.
    assert row.fee
    assert shop.payee_has() - before == 500_100 - row.fee
    assert moves(shop, kinds.SETTLEMENT) == [(TREASURY, escrow_account(channel_id), 500_100_000)]
    assert moves(shop, kinds.CHAIN_FEE) == [(CHAIN_FEES, TREASURY, row.fee * 1000)]
    prove(shop.engine)


async def test_small_debt_is_settled_when_it_is_old(shop: Shop) -> None:
    channel_id = await shop.open(voucher=9_999)
    await shop.spend(channel_id, 9_999_000)
    settler = shop.settler()
    shop.clock.advance(DAY_MS - 1)
    await shop.accept(channel_id, 20_000)
    shop.clock.advance(1)
    await shop.until_done(settler)
    assert not shop.settlements(channel_id)
    # From 0.01 USD on it is worth a fee.
    await shop.spend(channel_id, 10_001_000)
    await shop.until_done(settler)
    assert [(row.amount, row.state) for row in shop.settlements(channel_id)] == [(20_000, CONFIRMED)]


@pytest.mark.parametrize("kind", ["tempo-v1", "tempo-v2"])
async def test_close_captures_what_was_spent_and_refunds_the_rest(
    make_shop: ShopMaker, devnet: TempoChain, kind: str
) -> None:
    shop = await make_shop(devnet, kind)
    channel_id = await shop.open(voucher=400_000)
    await shop.spend(channel_id, 123_456_789)
    await shop.freeze(channel_id, 500_000)
    payer, before = shop.record(channel_id).descriptor.payer, shop.payee_has()
    refunded = -shop.bench.chain.balance(payer)
    settler = shop.settler()
    await shop.until_done(settler)
    [row] = shop.settlements(channel_id)
    # The lowest voucher that covers it: the payer's closing voucher stays private.
    assert (row.kind, row.state, row.amount, row.capture) == ("close", CONFIRMED, 400_000, 123_456)
    assert row.fee
    assert shop.payee_has() - before == 123_456 - row.fee
    assert refunded + shop.bench.chain.balance(payer) == DEPOSIT - 123_456
    assert shop.record(channel_id).view.status == "closed"
    assert moves(shop, kinds.DUST) == [(ADJUSTMENTS, escrow_account(channel_id), 789)]
    prove(shop.engine)


async def test_close_waits_for_requests_and_uses_the_closing_voucher_they_need(shop: Shop) -> None:
    channel_id = await shop.open(voucher=100_000)
    request = await shop.hold(channel_id, 80_000_000)
    await shop.freeze(channel_id, 90_000)
    settler = shop.settler()
    assert not await settler.turn()
    assert not shop.settlements(channel_id)
    await shop.capture(channel_id, request, 85_000_000)
    await shop.until_done(settler)
    [row] = shop.settlements(channel_id)
    assert (row.amount, row.capture, row.state) == (90_000, 85_000, CONFIRMED)


async def test_unused_channel_is_closed_with_nothing(reserve: Shop) -> None:
    channel_id = await reserve.open()
    await reserve.freeze(channel_id)
    await reserve.until_done(reserve.settler())
    [row] = reserve.settlements(channel_id)
    assert (row.amount, row.capture, row.signature, row.state) == (0, 0, "", CONFIRMED)
    assert (await reserve.on_chain(channel_id)).finalized


async def test_channel_is_closed_at_what_is_settled_already(shop: Shop) -> None:
    channel_id = await shop.open(voucher=600_000)
    await shop.spend(channel_id, 600_000_000)
    settler = shop.settler()
    await shop.until_done(settler)
    await shop.accept(channel_id, 900_000)
    await shop.freeze(channel_id)
    await shop.until_done(settler)
    settled, closed = shop.settlements(channel_id)
    assert (settled.amount, closed.amount, closed.capture, closed.state) == (600_000, 600_000, 600_000, CONFIRMED)
    assert shop.record(channel_id).view.status == "closed"
    prove(shop.engine)


async def test_foreign_escrow_is_closed_with_the_lowest_whole_voucher(make_shop: ShopMaker, devnet: TempoChain) -> None:
    shop = await make_shop(devnet, "tempo-v1", foreign_escrow=True)
    channel_id = await shop.open(voucher=10_000)
    await shop.accept(channel_id, 12_000)
    await shop.spend(channel_id, 9_000_000)
    await shop.freeze(channel_id, 15_000)
    await shop.until_done(shop.settler())
    [row] = shop.settlements(channel_id)
    assert (row.amount, row.capture, row.state) == (10_000, 10_000, CONFIRMED)
    assert moves(shop, kinds.OVERPAID) == [(escrow_account(channel_id), ADJUSTMENTS, 1_000_000)]
    prove(shop.engine)


# Who waits for a close.


async def test_waiting_for_a_close_joins_it_and_leaving_does_not_end_it(shop: Shop) -> None:
    channel_id = await shop.open(voucher=50_000)
    await shop.spend(channel_id, 40_000_000)
    settler = shop.settler()
    patient = asyncio.create_task(settler.close(channel_id))
    async with asyncio.timeout(10):
        while channel_id not in settler._waiting:  # noqa: ASYNC110 - what changes is another task's
            await asyncio.sleep(0)
    hasty = asyncio.create_task(settler.close(channel_id))
    for _ in range(3):
        await asyncio.sleep(0)
    hasty.cancel()
    await asyncio.wait([hasty])
    await shop.until_done(settler)
    tx_hash = await patient
    [row] = shop.settlements(channel_id)
    assert (row.state, row.tx_hash) == (CONFIRMED, tx_hash)
    # Asked again, as by a client that heard nothing: the same answer, and nothing is done twice.
    again = asyncio.create_task(settler.close(channel_id))
    while not again.done():
        await settler.turn()
    assert await again == tx_hash
    assert len(shop.settlements(channel_id)) == 1


async def test_running_settler_closes_by_itself(make_shop: ShopMaker, devnet: TempoChain) -> None:
    shop = await make_shop(devnet, mpp={"watch_every_s": 60})
    channel_id = await shop.open(voucher=50_000)
    await shop.spend(channel_id, 40_000_000)
    settler = shop.settler()
    settler.start()
    try:
        async with asyncio.timeout(20):
            tx_hash = await settler.close(channel_id)
    finally:
        await settler.stop()
    assert shop.settlements(channel_id)[0].tx_hash == tx_hash
    assert (await shop.on_chain(channel_id)).finalized
    # Its successor need not wait for the lease to run out.
    assert shop.outbox.take_lease("any", owner_id="own_b", ttl_ms=1)
    assert shop.outbox.take_lease(shop.settlements(channel_id)[0].account, owner_id="own_b", ttl_ms=1)


# What is kept, and what is not.


async def test_only_vouchers_that_may_be_needed_are_kept(shop: Shop) -> None:
    channel_id = await shop.open()
    for amount in (10_000, 20_000, 30_000, 40_000, 50_000):
        await shop.accept(channel_id, amount)
    await shop.spend(channel_id, 35_000_000)
    settler = shop.settler()
    await settler.prune()

    def kept() -> list[int]:
        with shop.engine.connect() as connection:
            return list(connection.execute(select(vouchers.c.amount).order_by(vouchers.c.amount)).scalars())

    # The oldest that is owed tells since when.
    assert kept() == [10_000, 30_000, 40_000, 50_000]
    shop.clock.advance(DAY_MS)
    await shop.until_done(settler)
    assert shop.record(channel_id).view.settled == 30_000
    await settler.prune()
    assert kept() == [30_000, 40_000, 50_000]


async def test_claims_of_challenges_are_forgotten_long_after_they_expired(shop: Shop) -> None:
    now = shop.clock.now_ms()
    with shop.engine.begin() as connection:
        for name, expires in (("old", now - 3_600_001), ("new", now - 3_600_000)):
            row = {"id": name, "request_id": name, "expires_at_ms": expires}
            connection.execute(challenge_claims.insert().values(row))
    await shop.settler().prune()
    with shop.engine.connect() as connection:
        assert list(connection.execute(select(challenge_claims.c.id)).scalars()) == ["new"]


async def test_signed_bytes_are_kept_before_anybody_sees_them(shop: Shop) -> None:
    channel_id = await shop.open(voucher=50_000)
    await shop.freeze(channel_id)
    settler = shop.settler()
    await settler.plan()
    assert [row.state for row in shop.settlements(channel_id)] == [INTENT]
    seen: list[str] = []
    broadcast = shop.backend.broadcast

    async def watched(raw: bytes) -> None:
        seen.append(shop.settlements(channel_id)[0].state)
        await broadcast(raw)

    shop.backend.broadcast = watched  # type: ignore[method-assign]
    await shop.until_done(settler)
    assert seen == [SIGNED]
    assert FAILED not in [row.state for row in shop.settlements(channel_id)]
