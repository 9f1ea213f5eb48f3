"""The channel reserve on a real chain: what clients send, and what we send."""

from typing import Any

import attrs
import pytest
from eth_utils.crypto import keccak

from app.chain import abi
from app.chain.backend import Signed, TransactionRefused
from app.money import BaseUnits
from app.mpp.descriptor import ZERO_ADDRESS
from tests.chain.conftest import PAYEE_FUNDS, PAYER_FUNDS, Bench, BenchMaker
from tests.chain.wallet import EXPIRING, Opening, Wallet, new_key, now_s, resigned
from tests.devnet_fixtures import TempoChain

DEPOSIT = 1_000_000
STRANGER = "0x" + "5e" * 20
OTHER_TOKEN = "0x20c0000000000000000000000000000000000001"


async def opened(bench: Bench, *, sponsored: bool = False) -> tuple[Wallet, Opening]:
    """A channel that is open on chain."""
    wallet = bench.wallet()
    opening = wallet.open_v2(DEPOSIT, sponsored=sponsored)
    funding = await bench.backend.prepare(bench.backend.decode_open(opening.payload, source=wallet.source))
    assert (funding.kind, funding.amount, funding.sponsored) == ("open", DEPOSIT, sponsored)
    assert (funding.channel_id, funding.descriptor) == (opening.channel_id, opening.descriptor)
    assert funding.raw is not None
    assert funding.tx_hash is not None
    mined = await bench.mine(funding.raw, funding.tx_hash)
    assert mined.succeeded
    return wallet, opening


async def settle(bench: Bench, wallet: Wallet, opening: Opening, amount: int) -> Signed:
    return await bench.backend.sign_settle(
        channel_id=opening.channel_id,
        descriptor=opening.descriptor,
        amount=BaseUnits(amount),
        signature=wallet.voucher(opening.channel_id, amount),
        nonce=await bench.backend.next_nonce(),
    )


async def close(bench: Bench, opening: Opening, amount: int, *, capture: int, signature: str) -> Signed:
    return await bench.backend.sign_close(
        channel_id=opening.channel_id,
        descriptor=opening.descriptor,
        amount=BaseUnits(amount),
        capture=BaseUnits(capture),
        signature=signature,
        nonce=await bench.backend.next_nonce(),
    )


@pytest.mark.parametrize("sponsored", [False, True])
async def test_open_is_mined_as_decoded(v2: Bench, sponsored: bool) -> None:
    wallet, opening = await opened(v2, sponsored=sponsored)
    state = await v2.backend.channel(opening.channel_id)
    assert state is not None
    assert (state.deposit, state.settled, state.close_requested_at, state.finalized) == (DEPOSIT, 0, 0, False)
    assert (PAYER_FUNDS - v2.chain.balance(wallet.address) == DEPOSIT) is sponsored


async def test_check_passes(v2: Bench) -> None:
    await v2.backend.check()


async def test_top_up_adds(v2: Bench) -> None:
    wallet, opening = await opened(v2)
    for sponsored in (False, True):
        payload = wallet.top_up_v2(opening, 250_000, sponsored=sponsored)
        funding = v2.backend.decode_top_up(
            payload, channel_id=opening.channel_id, descriptor=opening.descriptor, source=wallet.source
        )
        funding = await v2.backend.prepare(funding)
        assert (funding.kind, funding.amount) == ("topUp", 250_000)
        assert funding.raw is not None
        assert funding.tx_hash is not None
        assert (await v2.mine(funding.raw, funding.tx_hash)).succeeded
    state = await v2.backend.channel(opening.channel_id)
    assert state is not None
    assert state.deposit == DEPOSIT + 500_000


async def test_settle_pays_a_voucher_and_fees_in_the_token(v2: Bench) -> None:
    wallet, opening = await opened(v2)
    first = await v2.backend.head()
    signed = await settle(v2, wallet, opening, 300_000)
    mined = await v2.mine(signed.raw, signed.tx_hash)
    assert mined.succeeded
    assert mined.fee is not None
    assert mined.fee > 0
    assert v2.chain.balance(v2.backend.account) == PAYEE_FUNDS + 300_000 - mined.fee
    state = await v2.backend.channel(opening.channel_id)
    assert state is not None
    assert (state.settled, state.finalized) == (300_000, False)
    assert signed.nonce + 1 == await v2.backend.next_nonce()
    events = await v2.backend.events(first=first.block, last=mined.block)
    assert [event.kind for event in events] == ["opened", "settled"]
    assert {event.channel_id for event in events} == {opening.channel_id}
    assert events[1].tx_hash == signed.tx_hash


async def test_close_captures_less_than_the_voucher(v2: Bench) -> None:
    wallet, opening = await opened(v2)
    voucher = wallet.voucher(opening.channel_id, 900_000)
    signed = await close(v2, opening, 900_000, capture=123_456, signature=voucher)
    mined = await v2.mine(signed.raw, signed.tx_hash)
    assert mined.fee is not None
    assert v2.chain.balance(v2.backend.account) == PAYEE_FUNDS + 123_456 - mined.fee
    state = await v2.backend.channel(opening.channel_id)
    assert state is not None
    assert (state.deposit, state.settled, state.finalized) == (DEPOSIT, 123_456, True)
    assert (await v2.backend.events(first=mined.block, last=mined.block))[-1].kind == "closed"


async def test_close_of_an_unused_channel_needs_no_voucher(v2: Bench) -> None:
    wallet, opening = await opened(v2)
    before = v2.chain.balance(wallet.address)
    signed = await close(v2, opening, 0, capture=0, signature="")
    assert (await v2.mine(signed.raw, signed.tx_hash)).succeeded
    assert v2.chain.balance(wallet.address) == before + DEPOSIT


async def test_compact_voucher_settles(v2: Bench) -> None:
    """EIP-2098's 64 bytes are put on chain as the 65 that the reserve takes."""
    wallet, opening = await opened(v2)
    full = bytes.fromhex(wallet.voucher(opening.channel_id, 10)[2:])
    compact = full[:32] + bytes((full[32] | (0x80 if full[64] == 28 else 0),)) + full[33:64]
    signed = await close(v2, opening, 10, capture=10, signature="0x" + compact.hex())
    assert (await v2.mine(signed.raw, signed.tx_hash)).succeeded


async def test_close_at_what_was_settled(v2: Bench) -> None:
    wallet, opening = await opened(v2)
    signed = await settle(v2, wallet, opening, 300_000)
    await v2.mine(signed.raw, signed.tx_hash)
    voucher = wallet.voucher(opening.channel_id, 300_000)
    signed = await close(v2, opening, 300_000, capture=300_000, signature=voucher)
    assert (await v2.mine(signed.raw, signed.tx_hash)).succeeded


async def test_requested_close_is_seen(v2: Bench) -> None:
    wallet, opening = await opened(v2)
    raw = wallet.request_close(opening)
    mined = await v2.mine(raw, "0x" + keccak(raw).hex())
    state = await v2.backend.channel(opening.channel_id)
    assert state is not None
    assert state.close_requested_at > 0
    assert not state.finalized
    kinds = [event.kind for event in await v2.backend.events(first=mined.block, last=mined.block)]
    assert kinds == ["close_requested"]
    payload = wallet.top_up_v2(opening, 1)
    funding = v2.backend.decode_top_up(payload, channel_id=opening.channel_id, descriptor=opening.descriptor)
    assert funding.raw is not None
    assert funding.tx_hash is not None
    mined = await v2.mine(funding.raw, funding.tx_hash)
    kinds = [event.kind for event in await v2.backend.events(first=mined.block, last=mined.block)]
    assert kinds == ["close_request_cancelled", "topped_up"]


async def test_unknown_channel_is_none(v2: Bench) -> None:
    assert await v2.backend.channel("0x" + "77" * 32) is None


async def test_what_would_revert_is_not_signed(v2: Bench) -> None:
    wallet, opening = await opened(v2)
    with pytest.raises(TransactionRefused, match="reverts"):
        await settle(v2, wallet, opening, DEPOSIT + 1)
    with pytest.raises(TransactionRefused, match="reverts"):
        await close(v2, opening, 5, capture=5, signature=wallet.voucher(opening.channel_id, 5, key=new_key()))


async def test_operator_settles_for_another_payee(devnet: TempoChain, make_bench: BenchMaker) -> None:
    bench = await make_bench(devnet, "tempo-v2", recipient=STRANGER)
    assert bench.backend.offer.operator == bench.backend.account
    wallet, opening = await opened(bench)
    before = devnet.balance(STRANGER)
    signed = await settle(bench, wallet, opening, 10)
    assert (await bench.mine(signed.raw, signed.tx_hash)).succeeded
    assert devnet.balance(STRANGER) == before + 10
    with pytest.raises(TransactionRefused, match="operator"):
        bench.backend.decode_open(wallet.open_v2(1, operator=STRANGER).payload)
    with pytest.raises(TransactionRefused, match="operator"):
        bench.backend.decode_open(wallet.open_v2(1, operator=ZERO_ADDRESS).payload)


# What is not exactly an open of ours.

TRANSFER = abi.Function("transfer", ("address", "uint256"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"payee": STRANGER}, "payee"),
        ({"token": OTHER_TOKEN}, "token"),
        ({"operator": STRANGER}, "operator"),
        ({"escrow": STRANGER}, "must be a call of"),
        ({"chain_id": 1}, "for chain 1"),
        ({"deposit": 0}, "deposit"),
        ({"deposit": 10**10 + 1}, "deposit"),
        ({"extra": ((OTHER_TOKEN, TRANSFER.call(STRANGER, 1)),)}, "one call"),
        ({"suffix": b"\0"}, "canonical"),
        ({"suffix": bytes(32)}, "canonical"),
        ({"nonce_key": 0}, "expiring nonce"),
        ({"valid_before": 1_700_000_000}, "expired"),
        ({"valid_before": 4_000_000_000, "valid_after": 3_900_000_000}, "not valid yet"),
    ],
)
def test_another_open_is_refused(v2: Bench, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TransactionRefused, match=message):
        v2.backend.decode_open(Wallet(v2.backend.offer).open_v2(**{"deposit": DEPOSIT, **changes}).payload)


def test_two_channels_in_one_transaction_are_refused(v2: Bench) -> None:
    wallet = Wallet(v2.backend.offer)
    opening = wallet.open_v2(DEPOSIT)
    assert opening.transaction is not None
    twice = resigned(opening.transaction, wallet.key, calls=opening.transaction.calls * 2)
    with pytest.raises(TransactionRefused, match="one call"):
        v2.backend.decode_open({**opening.payload, "transaction": wallet.wire(twice)})


def test_anothers_signature_makes_another_channel(v2: Bench) -> None:
    opening = Wallet(v2.backend.offer).open_v2(DEPOSIT)
    assert opening.transaction is not None
    forged = "0x" + resigned(opening.transaction, new_key()).encode().hex()
    with pytest.raises(TransactionRefused, match="descriptor"):
        v2.backend.decode_open({**opening.payload, "transaction": forged})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("type", "hash", "type"),
        ("channelId", "0x" + "11" * 32, "channelId"),
        ("channelId", "0x11", "channelId"),
        ("transaction", None, "transaction"),
        ("transaction", "0x76c0", "transaction"),
        ("descriptor", None, "descriptor"),
        ("descriptor", {}, "descriptor.payer"),
        ("authorizedSigner", STRANGER, "authorizedSigner"),
        ("authorizedSigner", 1, "authorizedSigner"),
    ],
)
def test_payload_must_say_what_the_transaction_does(v2: Bench, field: str, value: object, message: str) -> None:
    payload = Wallet(v2.backend.offer).open_v2(DEPOSIT).payload
    with pytest.raises(TransactionRefused, match=message):
        v2.backend.decode_open({**payload, field: value})


@pytest.mark.parametrize(
    "name", ["payer", "payee", "operator", "token", "salt", "authorizedSigner", "expiringNonceHash"]
)
def test_every_member_of_the_descriptor_counts(v2: Bench, name: str) -> None:
    payload = Wallet(v2.backend.offer).open_v2(DEPOSIT).payload
    shown = payload["descriptor"]
    altered = {**shown, name: shown[name][:-1] + ("1" if shown[name][-1] == "0" else "0")}
    with pytest.raises(TransactionRefused, match="descriptor"):
        v2.backend.decode_open({**payload, "descriptor": altered})


@pytest.mark.parametrize("source", ["did:pkh:eip155:1:0x" + "11" * 20, "me", "did:pkh:eip155:1337:0x" + "11" * 20])
def test_wrong_source_is_refused(v2: Bench, source: str) -> None:
    with pytest.raises(TransactionRefused, match="source"):
        v2.backend.decode_open(Wallet(v2.backend.offer).open_v2(DEPOSIT).payload, source=source)


def test_mixed_case_is_the_same_channel(v2: Bench) -> None:
    opening = Wallet(v2.backend.offer).open_v2(DEPOSIT)
    shouted = {**opening.payload, "channelId": "0x" + opening.channel_id[2:].upper()}
    assert v2.backend.decode_open(shouted).channel_id == opening.channel_id


def test_another_top_up_is_refused(v2: Bench) -> None:
    wallet, other = Wallet(v2.backend.offer), Wallet(v2.backend.offer)
    opening, foreign = wallet.open_v2(DEPOSIT), other.open_v2(DEPOSIT)
    ours: dict[str, Any] = {"channel_id": opening.channel_id, "descriptor": opening.descriptor}
    payload = wallet.top_up_v2(opening, 5)
    assert v2.backend.decode_top_up(payload, **ours).amount == 5
    for changed, message in (
        ({"additionalDeposit": "6"}, "additionalDeposit"),
        ({"additionalDeposit": "5.0"}, "additionalDeposit"),
        ({"additionalDeposit": 5}, "additionalDeposit"),
        ({"channelId": foreign.channel_id}, "channelId"),
        ({"descriptor": foreign.descriptor.to_wire()}, "descriptor"),
        ({"type": "hash"}, "type"),
    ):
        with pytest.raises(TransactionRefused, match=message):
            v2.backend.decode_top_up({**payload, **changed}, **ours)
    with pytest.raises(TransactionRefused, match="payer"):
        v2.backend.decode_top_up(other.top_up_v2(opening, 5), **ours)
    shown = {"channelId": opening.channel_id, "descriptor": opening.descriptor.to_wire()}
    with pytest.raises(TransactionRefused, match="adds to another channel"):
        v2.backend.decode_top_up({**wallet.top_up_v2(foreign, 5), **shown}, **ours)
    with pytest.raises(TransactionRefused, match="the descriptor is another"):
        v2.backend.decode_top_up(
            {**payload, "channelId": foreign.channel_id}, channel_id=foreign.channel_id, descriptor=opening.descriptor
        )
    with pytest.raises(TransactionRefused, match="deposit"):
        v2.backend.decode_top_up(wallet.top_up_v2(opening, 0), **ours)


@pytest.mark.parametrize("named", [{"payee": STRANGER}, {"token": OTHER_TOKEN}, {"operator": STRANGER}])
async def test_channel_of_others_is_neither_added_to_nor_settled(v2: Bench, named: dict[str, Any]) -> None:
    wallet = Wallet(v2.backend.offer)
    theirs = wallet.open_v2(DEPOSIT, **named)
    with pytest.raises(TransactionRefused, match="not with this payee"):
        v2.backend.decode_top_up(
            wallet.top_up_v2(theirs, 5), channel_id=theirs.channel_id, descriptor=theirs.descriptor
        )
    with pytest.raises(TransactionRefused, match="not with this payee"):
        await settle(v2, wallet, theirs, 1)
    with pytest.raises(TransactionRefused, match="not with this payee"):
        await close(v2, theirs, 0, capture=0, signature="")


def test_native_value_is_refused(v2: Bench) -> None:
    wallet = Wallet(v2.backend.offer)
    opening = wallet.open_v2(DEPOSIT)
    assert opening.transaction is not None
    (call,) = opening.transaction.calls
    generous = resigned(opening.transaction, wallet.key, calls=(attrs.evolve(call, value=1),))
    with pytest.raises(TransactionRefused, match="native value"):
        v2.backend.decode_open({**opening.payload, "transaction": wallet.wire(generous)})


# Sending again.


async def test_what_is_mined_can_be_sent_again(v2: Bench) -> None:
    wallet, opening = await opened(v2)
    signed = await settle(v2, wallet, opening, 10)
    mined = await v2.mine(signed.raw, signed.tx_hash)
    await v2.backend.broadcast(signed.raw)
    assert await v2.backend.mined(signed.tx_hash) == mined


async def test_expired_transaction_is_refused_by_the_chain(v2: Bench) -> None:
    wallet = v2.wallet()
    raw = wallet.open_v2(DEPOSIT, valid_before=now_s() - 60, nonce_key=EXPIRING).transaction
    assert raw is not None
    with pytest.raises(TransactionRefused, match="the chain refused"):
        await v2.backend.broadcast(raw.encode())


async def test_poor_payers_open_is_refused_by_the_chain(v2: Bench) -> None:
    funding = v2.backend.decode_open(v2.wallet(funds=0).open_v2(DEPOSIT).payload)
    assert funding.raw is not None
    with pytest.raises(TransactionRefused, match="insufficient"):
        await v2.backend.broadcast(funding.raw)
