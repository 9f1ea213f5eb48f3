"""Fees that we pay for others: for exactly what was asked, within bounds, and never past the budget."""

from typing import Any

import pytest

from app.chain.backend import TransactionRefused
from app.chain.sponsorship import FEE_MAX, check
from app.chain.tempo_transaction import decode
from app.money import BaseUnits
from tests.chain.conftest import PAYEE_FUNDS, Bench, BenchMaker, Budget
from tests.chain.wallet import GWEI, Wallet, now_s
from tests.devnet_fixtures import TempoChain

DEPOSIT = 1_000_000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nonce_key": 0, "nonce": 3}, "sponsored transaction needs"),
        ({"nonce_key": 7}, "sponsored transaction needs"),
        ({"valid_before": None}, "sponsored transaction needs"),
        ({"gas_limit": 2_000_001}, "gas"),
        ({"max_fee_per_gas": 100 * GWEI + 1, "gas_limit": 21_000}, "per gas"),
        ({"max_priority_fee_per_gas": 10 * GWEI + 1}, "per gas"),
        ({"max_fee_per_gas": 50 * GWEI}, "may cost"),
    ],
)
def test_expensive_or_lasting_transaction_is_not_sponsored(v2: Bench, changes: dict[str, Any], message: str) -> None:
    wallet = Wallet(v2.backend.offer)
    with pytest.raises(TransactionRefused, match=message):
        v2.backend.decode_open(wallet.open_v2(DEPOSIT, sponsored=True, **changes).payload)


@pytest.mark.parametrize(("lasts_s", "message"), [(16 * 60, "at most"), (2, "too soon")])
def test_window_is_neither_long_nor_nearly_over(v2: Bench, lasts_s: int, message: str) -> None:
    opening = Wallet(v2.backend.offer).open_v2(DEPOSIT, sponsored=True, valid_before=now_s() + lasts_s)
    with pytest.raises(TransactionRefused, match=message):
        v2.backend.decode_open(opening.payload)


def test_test_network_may_tip_more(v2: Bench) -> None:
    opening = Wallet(v2.backend.offer).open_v2(1, sponsored=True, max_priority_fee_per_gas=20 * GWEI)
    transaction, token = decode(bytes.fromhex(opening.payload["transaction"][2:])), v2.backend.offer.currency
    check(transaction, chain_id=42431, fee_token=token, now_s=now_s())
    with pytest.raises(TransactionRefused, match="per gas"):
        check(transaction, chain_id=1337, fee_token=token, now_s=now_s())


def test_other_fee_token_is_not_sponsored(v2: Bench) -> None:
    named = Wallet(v2.backend.offer).open_v2(1, sponsored=True, fee_token="0x20c0000000000000000000000000000000000001")
    with pytest.raises(TransactionRefused, match="token"):
        v2.backend.decode_open(named.payload)
    ours = Wallet(v2.backend.offer).open_v2(1, sponsored=True, fee_token=v2.backend.offer.currency)
    assert v2.backend.decode_open(ours.payload).sponsored


async def test_nothing_is_sponsored_unless_offered(devnet: TempoChain, make_bench: BenchMaker) -> None:
    for kind in ("tempo-v1", "tempo-v2"):
        bench = await make_bench(devnet, kind, payee_funds=0)
        wallet = Wallet(bench.backend.offer)
        opening = (wallet.open_v2 if kind == "tempo-v2" else wallet.open_v1)(1, sponsored=True)
        with pytest.raises(TransactionRefused, match="not sponsored"):
            bench.backend.decode_open(opening.payload)


async def test_cost_is_reserved_first_and_the_rest_given_back(v2: Bench) -> None:
    opening = v2.wallet().open_v2(DEPOSIT, sponsored=True)
    decoded = v2.backend.decode_open(opening.payload)
    assert (decoded.sponsored, decoded.tx_hash) == (True, None)
    funding = await v2.backend.prepare(decoded)
    assert funding.raw is not None
    assert funding.tx_hash is not None
    assert v2.budget.reserved == {funding.tx_hash: 47_500}
    assert v2.budget.settled == {}
    # Again, before and after it is prepared: the same transaction and one reservation.
    assert await v2.backend.prepare(decoded) == funding
    assert await v2.backend.prepare(funding) == funding
    assert len(v2.budget.reserved) == 1
    mined = await v2.mine(funding.raw, funding.tx_hash)
    assert mined.fee is not None
    assert v2.budget.settled == {funding.tx_hash: mined.fee}
    assert v2.chain.balance(v2.backend.account) == PAYEE_FUNDS - mined.fee
    # And once it is mined: nothing is asked of the budget for it.
    v2.budget.limit = 0
    assert await v2.backend.prepare(decoded) == funding


async def test_own_transactions_are_no_sponsorship(v2: Bench) -> None:
    opening = v2.wallet().open_v2(DEPOSIT)
    funding = await v2.backend.prepare(v2.backend.decode_open(opening.payload))
    assert funding.raw is not None
    assert funding.tx_hash is not None
    await v2.mine(funding.raw, funding.tx_hash)
    signed = await v2.backend.sign_close(
        channel_id=opening.channel_id,
        descriptor=opening.descriptor,
        amount=BaseUnits(0),
        capture=BaseUnits(0),
        signature="",
        nonce=await v2.backend.next_nonce(),
    )
    await v2.mine(signed.raw, signed.tx_hash)
    assert (v2.budget.reserved, v2.budget.settled) == ({}, {})


async def test_budget_ends_sponsorship(devnet: TempoChain, make_bench: BenchMaker) -> None:
    bench = await make_bench(devnet, "tempo-v2", fee_payer=True, budget=Budget(limit=FEE_MAX * 2 - 10_000))
    wallet = bench.wallet()
    fundings = [bench.backend.decode_open(wallet.open_v2(DEPOSIT, sponsored=True).payload) for _ in range(2)]
    await bench.backend.prepare(fundings[0])
    with pytest.raises(TransactionRefused, match="budget"):
        await bench.backend.prepare(fundings[1])


async def test_what_would_fail_is_not_signed_for(v2: Bench, v1: Bench) -> None:
    poor = v2.wallet(funds=DEPOSIT - 1)
    with pytest.raises(TransactionRefused, match="less than the deposit"):
        await v2.backend.prepare(v2.backend.decode_open(poor.open_v2(DEPOSIT, sponsored=True).payload))
    rich = v2.wallet()
    opening = rich.open_v2(DEPOSIT)
    top_up = v2.backend.decode_top_up(
        rich.top_up_v2(opening, 5, sponsored=True), channel_id=opening.channel_id, descriptor=opening.descriptor
    )
    with pytest.raises(TransactionRefused, match="no such open channel"):
        await v2.backend.prepare(top_up)
    payer = v1.wallet()
    first = payer.open_v1(DEPOSIT)
    funding = v1.backend.decode_open(first.payload)
    assert funding.raw is not None
    assert funding.tx_hash is not None
    await v1.mine(funding.raw, funding.tx_hash)
    assert first.transaction is not None
    calls = first.transaction.calls
    again = payer.transaction([(bytes(call.to).hex(), call.data) for call in calls], sponsored=True)
    repeated = v1.backend.decode_open({**first.payload, "transaction": payer.wire(again)})
    with pytest.raises(TransactionRefused, match="open already"):
        await v1.backend.prepare(repeated)
    assert (v2.budget.reserved, v1.budget.reserved) == ({}, {})
