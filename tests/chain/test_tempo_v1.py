"""The contract escrow on Tempo: an approval and an open in one transaction, and a close that may capture less."""

from typing import Any

import pytest
from eth_utils.crypto import keccak

from app.chain import abi
from app.chain.backend import Signed, TransactionRefused
from app.money import BaseUnits
from tests.chain.conftest import PAYEE_FUNDS, PAYER_FUNDS, Bench, BenchMaker
from tests.chain.wallet import Opening, Wallet, new_key, resigned
from tests.devnet_fixtures import TempoChain

DEPOSIT = 1_000_000
STRANGER = "0x" + "5e" * 20
OTHER_TOKEN = "0x20c0000000000000000000000000000000000001"
TRANSFER = abi.Function("transfer", ("address", "uint256"))


async def opened(bench: Bench, *, sponsored: bool = False) -> tuple[Wallet, Opening]:
    """A channel that is open on chain."""
    wallet = bench.wallet()
    opening = wallet.open_v1(DEPOSIT, sponsored=sponsored)
    funding = await bench.backend.prepare(bench.backend.decode_open(opening.payload, source=wallet.source))
    assert (funding.channel_id, funding.descriptor, funding.amount) == (
        opening.channel_id,
        opening.descriptor,
        DEPOSIT,
    )
    assert funding.raw is not None
    assert funding.tx_hash is not None
    assert (await bench.mine(funding.raw, funding.tx_hash)).succeeded
    return wallet, opening


async def close(bench: Bench, opening: Opening, amount: int, *, capture: int, signature: str) -> Signed:
    return await bench.backend.sign_close(
        channel_id=opening.channel_id,
        descriptor=opening.descriptor,
        amount=BaseUnits(amount),
        capture=BaseUnits(capture),
        signature=signature,
        nonce=await bench.backend.next_nonce(),
    )


async def test_check_passes(v1: Bench) -> None:
    await v1.backend.check()


@pytest.mark.parametrize("sponsored", [False, True])
async def test_open_is_mined_as_decoded(v1: Bench, sponsored: bool) -> None:
    wallet, opening = await opened(v1, sponsored=sponsored)
    state = await v1.backend.channel(opening.channel_id)
    assert state is not None
    assert (state.deposit, state.settled, state.close_requested_at, state.finalized) == (DEPOSIT, 0, 0, False)
    assert (PAYER_FUNDS - v1.chain.balance(wallet.address) == DEPOSIT) is sponsored
    assert bool(v1.budget.settled) is sponsored


@pytest.mark.parametrize("wide", [True, False])
async def test_top_up_adds(v1: Bench, wide: bool) -> None:
    wallet, opening = await opened(v1)
    payload = wallet.top_up_v1(opening, 250_000, wide=wide)
    funding = v1.backend.decode_top_up(payload, channel_id=opening.channel_id, descriptor=opening.descriptor)
    assert funding.raw is not None
    assert funding.tx_hash is not None
    assert (await v1.mine(funding.raw, funding.tx_hash)).succeeded
    state = await v1.backend.channel(opening.channel_id)
    assert state is not None
    assert state.deposit == DEPOSIT + 250_000


async def test_settle_then_close_captures_less_than_the_voucher(v1: Bench) -> None:
    wallet, opening = await opened(v1)
    first = (await v1.backend.head()).block
    signed = await v1.backend.sign_settle(
        channel_id=opening.channel_id,
        descriptor=opening.descriptor,
        amount=BaseUnits(300_000),
        signature=wallet.voucher(opening.channel_id, 300_000),
        nonce=await v1.backend.next_nonce(),
    )
    settled = await v1.mine(signed.raw, signed.tx_hash)
    voucher = wallet.voucher(opening.channel_id, 900_000)
    signed = await close(v1, opening, 900_000, capture=400_000, signature=voucher)
    mined = await v1.mine(signed.raw, signed.tx_hash)
    assert settled.fee is not None
    assert mined.fee is not None
    assert v1.chain.balance(v1.backend.account) == PAYEE_FUNDS + 400_000 - settled.fee - mined.fee
    state = await v1.backend.channel(opening.channel_id)
    assert state is not None
    assert (state.settled, state.finalized) == (400_000, True)
    kinds = [event.kind for event in await v1.backend.events(first=first, last=mined.block)]
    assert kinds == ["opened", "settled", "closed"]


async def test_close_of_an_unused_channel_needs_no_voucher(v1: Bench) -> None:
    wallet, opening = await opened(v1)
    before = v1.chain.balance(wallet.address)
    signed = await close(v1, opening, 0, capture=0, signature="")
    assert (await v1.mine(signed.raw, signed.tx_hash)).succeeded
    assert v1.chain.balance(wallet.address) == before + DEPOSIT


async def test_foreign_escrow_pays_whole_vouchers_only(devnet: TempoChain, make_bench: BenchMaker) -> None:
    bench = await make_bench(devnet, "tempo-v1", foreign_escrow=True)
    assert not bench.backend.offer.captures_less
    await bench.backend.check()
    wallet, opening = await opened(bench)
    voucher = wallet.voucher(opening.channel_id, 500)
    with pytest.raises(ValueError, match="whole voucher"):
        await close(bench, opening, 500, capture=400, signature=voucher)
    signed = await close(bench, opening, 500, capture=500, signature=voucher)
    assert (await bench.mine(signed.raw, signed.tx_hash)).succeeded
    state = await bench.backend.channel(opening.channel_id)
    assert state is not None
    assert (state.settled, state.finalized) == (500, True)


async def test_requested_close_is_seen(v1: Bench) -> None:
    wallet, opening = await opened(v1)
    raw = wallet.request_close(opening)
    mined = await v1.mine(raw, "0x" + keccak(raw).hex())
    state = await v1.backend.channel(opening.channel_id)
    assert state is not None
    assert state.close_requested_at > 0
    assert not state.finalized
    kinds = [event.kind for event in await v1.backend.events(first=mined.block, last=mined.block)]
    assert kinds == ["close_requested"]


async def test_withdrawal_is_one_end(new_devnet: Any, make_bench: BenchMaker) -> None:
    chain = new_devnet()
    bench = await make_bench(chain, "tempo-v1")
    wallet, opening = await opened(bench)
    raw = wallet.request_close(opening)
    await bench.mine(raw, "0x" + keccak(raw).hex())
    chain.increase_time(16 * 60)
    head = await bench.backend.head()
    withdraw = abi.Function("withdraw", ("bytes32",)).call(bytes.fromhex(opening.channel_id[2:]))
    signed = wallet.transaction(((wallet.offer.escrow, withdraw),), valid_before=head.timestamp + 20)
    mined = await bench.mine(signed.encode(), "0x" + signed.hash().hex())
    assert mined.succeeded
    kinds = [event.kind for event in await bench.backend.events(first=mined.block, last=mined.block)]
    assert kinds == ["closed"]
    state = await bench.backend.channel(opening.channel_id)
    assert state is not None
    assert state.finalized


async def test_unknown_or_anothers_channel_is_none(v1: Bench, devnet: TempoChain, make_bench: BenchMaker) -> None:
    assert await v1.backend.channel("0x" + "77" * 32) is None
    _, opening = await opened(v1)
    other = await make_bench(devnet, "tempo-v1", payee_funds=0)
    assert await other.backend.channel(opening.channel_id) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"payee": STRANGER}, "payee"),
        ({"token": OTHER_TOKEN}, "must be a call of"),
        ({"escrow": STRANGER}, "approval is not for the escrow"),
        ({"spender": STRANGER}, "approval is not for the escrow"),
        ({"approved": DEPOSIT + 1}, "approval is not for the deposit"),
        ({"approved": 2**256 - 1}, "approval is not for the deposit"),
        ({"chain_id": 1}, "for chain 1"),
        ({"extra": ((OTHER_TOKEN, TRANSFER.call(STRANGER, 1)),)}, "two calls"),
        ({"valid_before": 1_700_000_000}, "expired"),
    ],
)
def test_another_open_is_refused(v1: Bench, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TransactionRefused, match=message):
        v1.backend.decode_open(Wallet(v1.backend.offer).open_v1(DEPOSIT, **changes).payload)


def test_order_and_number_of_calls_count(v1: Bench) -> None:
    wallet = Wallet(v1.backend.offer)
    opening = wallet.open_v1(DEPOSIT)
    assert opening.transaction is not None
    calls = opening.transaction.calls
    for others in (calls[::-1], calls[1:], calls[:1], (calls[0], calls[1], calls[1])):
        signed = resigned(opening.transaction, wallet.key, calls=others)
        with pytest.raises(TransactionRefused):
            v1.backend.decode_open({**opening.payload, "transaction": wallet.wire(signed)})


def test_anothers_signature_makes_another_channel(v1: Bench) -> None:
    opening = Wallet(v1.backend.offer).open_v1(DEPOSIT)
    assert opening.transaction is not None
    forged = "0x" + resigned(opening.transaction, new_key()).encode().hex()
    with pytest.raises(TransactionRefused, match="channelId"):
        v1.backend.decode_open({**opening.payload, "transaction": forged})


def test_another_top_up_is_refused(v1: Bench) -> None:
    wallet, other = Wallet(v1.backend.offer), Wallet(v1.backend.offer)
    opening, foreign = wallet.open_v1(DEPOSIT), other.open_v1(DEPOSIT)
    ours: dict[str, Any] = {"channel_id": opening.channel_id, "descriptor": opening.descriptor}
    assert v1.backend.decode_top_up(wallet.top_up_v1(opening, 5), **ours).amount == 5
    with pytest.raises(TransactionRefused, match="additionalDeposit"):
        v1.backend.decode_top_up({**wallet.top_up_v1(opening, 5), "additionalDeposit": "6"}, **ours)
    with pytest.raises(TransactionRefused, match="approval"):
        v1.backend.decode_top_up(wallet.top_up_v1(opening, 5, approved=6), **ours)
    with pytest.raises(TransactionRefused, match="payer"):
        v1.backend.decode_top_up(other.top_up_v1(opening, 5), **ours)
    with pytest.raises(TransactionRefused, match="another channel"):
        v1.backend.decode_top_up({**wallet.top_up_v1(foreign, 5), "channelId": opening.channel_id}, **ours)
