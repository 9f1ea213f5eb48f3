"""Vouchers and channel ids against the drafts' own words: typed data, and the formulas of the escrows."""

import json
from pathlib import Path

import pytest
from eth_abi.abi import encode
from eth_account import Account
from eth_utils.crypto import keccak
from farebox_client import voucher
from farebox_client.channel import RESERVE, Kind, Parts
from hypothesis import given
from hypothesis import strategies as st

from tests.client.edge_chain import voucher_domain, voucher_message

ACCOUNT = Account.from_key("0x" + "42" * 32)
# secp256k1, SEC 2: a signature with a higher s has a second form, and escrows refuse it.
HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0


def parts(kind: Kind, *, chain_id: int = 4217) -> Parts:
    """A channel like any other."""
    return Parts(
        kind=kind,
        chain_id=chain_id,
        escrow=RESERVE if kind == "tempo-v2" else "0x9d136eea063ede5418a6bc7beaff009bbb6cfa70",
        payer=ACCOUNT.address.lower(),
        payee="0x742d35cc6634c0532925a3b844bc9e7595f8fe00",
        token="0x20c0000000000000000000000000000000000000",
        salt="0x" + "aa" * 32,
        operator="0x" + "0b" * 20 if kind == "tempo-v2" else "0x" + "00" * 20,
        expiring_nonce_hash="0x" + ("bb" if kind == "tempo-v2" else "00") * 32,
    )


KINDS: list[Kind] = ["tempo-v2", "tempo-v1", "evm"]


@pytest.mark.parametrize("kind", KINDS)
@given(amount=st.integers(0, 2**96 - 1), chain_id=st.integers(1, 2**53 - 1))
def test_digest_is_that_of_the_typed_data(kind: Kind, amount: int, chain_id: int) -> None:
    channel = parts(kind, chain_id=chain_id)
    domain = voucher_domain(kind, chain_id, channel.escrow)
    message = voucher_message(domain, kind, channel.channel_id, amount)
    expected = keccak(b"\x19\x01" + message.header + message.body)
    assert voucher.digest(channel, cumulative=amount) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_signature_is_canonical_and_the_payers(kind: Kind) -> None:
    channel = parts(kind)
    domain = voucher_domain(kind, 4217, channel.escrow)
    for amount in (0, 1, 250_000, 2**96 - 1):
        signature = voucher.sign(ACCOUNT, channel, cumulative=amount)
        raw = bytes.fromhex(signature[2:])
        assert len(raw) == 65
        assert raw[64] in {27, 28}
        assert int.from_bytes(raw[32:64], "big") <= HALF_ORDER
        message = voucher_message(domain, kind, channel.channel_id, amount)
        assert Account.recover_message(message, signature=signature) == ACCOUNT.address


@pytest.mark.parametrize(("kind", "largest"), [("tempo-v2", 2**96 - 1), ("tempo-v1", 2**128 - 1), ("evm", 2**128 - 1)])
def test_amount_stays_in_the_escrows_range(kind: Kind, largest: int) -> None:
    assert voucher.digest(parts(kind), cumulative=largest)
    for amount in (largest + 1, -1):
        with pytest.raises(ValueError, match="out of range"):
            voucher.digest(parts(kind), cumulative=amount)


def test_id_of_a_v2_channel_is_the_reserves_formula() -> None:
    channel = parts("tempo-v2")
    types = (*("address",) * 4, "bytes32", "address", "bytes32", "address", "uint256")
    values = (
        *(channel.payer, channel.payee, channel.operator, channel.token, b"\xaa" * 32, "0x" + "00" * 20),
        *(b"\xbb" * 32, RESERVE, 4217),
    )
    assert channel.channel_id == "0x" + keccak(encode(types, values)).hex()


@pytest.mark.parametrize("kind", ["tempo-v1", "evm"])
def test_id_of_a_contract_channel_is_the_contracts_formula(kind: Kind) -> None:
    channel = parts(kind)
    types = ("address", "address", "address", "bytes32", "address", "address", "uint256")
    values = (channel.payer, channel.payee, channel.token, b"\xaa" * 32, "0x" + "00" * 20, channel.escrow, 4217)
    assert channel.channel_id == "0x" + keccak(encode(types, values)).hex()


def test_every_part_changes_the_digest() -> None:
    seen = {voucher.digest(parts(kind, chain_id=chain), cumulative=5) for kind in KINDS for chain in (1, 2)}
    assert len(seen) == 6


def test_voucher_of_v2_carries_its_descriptor() -> None:
    channel = parts("tempo-v2")
    members = voucher.members(ACCOUNT, channel, cumulative=5)
    assert members["descriptor"]["expiringNonceHash"] == "0x" + "bb" * 32
    assert json.loads(json.dumps(members))["cumulativeAmount"] == "5"
    assert "descriptor" not in voucher.members(ACCOUNT, parts("evm"), cumulative=5)


def test_distribution_declares_its_types() -> None:
    assert (Path(voucher.__file__).parent / "py.typed").exists()
