"""Vouchers against the libraries that clients sign them with."""

from dataclasses import replace

import pytest
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st

from app.mpp.voucher import (
    HALF_ORDER,
    ORDER,
    SignatureInvalid,
    Voucher,
    VoucherDomain,
    recover,
    signature_bytes,
    signer_of,
    signing_hash,
)

KEY = "0x" + "4c" * 32
ADDRESS = str(Account.from_key(KEY).address).lower()
ESCROW = "0x4d50500000000000000000000000000000000000"
CHANNEL = "0x" + "ab" * 32
DOMAINS = {
    "v2": VoucherDomain("TIP20 Channel Reserve", 42431, ESCROW, 96),
    "v1": VoucherDomain("Tempo Stream Channel", 42431, ESCROW, 128),
    "evm": VoucherDomain("EVM Payment Channel", 8453, ESCROW, 128),
}
all_domains = pytest.mark.parametrize("domain", DOMAINS.values(), ids=DOMAINS)


def typed(domain: VoucherDomain, *, channel_id: str, amount: int) -> bytes:
    """The signing hash as wallets compute it."""
    message = encode_typed_data(
        domain_data={
            "name": domain.name,
            "version": "1",
            "chainId": domain.chain_id,
            "verifyingContract": domain.escrow,
        },
        message_types={
            "Voucher": [
                {"name": "channelId", "type": "bytes32"},
                {"name": "cumulativeAmount", "type": f"uint{domain.amount_bits}"},
            ]
        },
        message_data={"channelId": bytes.fromhex(channel_id[2:]), "cumulativeAmount": amount},
    )
    return keccak(b"\x19" + message.version + message.header + message.body)


def signed(domain: VoucherDomain, amount: int = 5, *, channel_id: str = CHANNEL, key: str = KEY) -> Voucher:
    digest = signing_hash(domain, channel_id=channel_id, cumulative_amount=amount)
    signature = "0x" + bytes(Account.from_key(key).unsafe_sign_hash(digest).signature).hex()
    return Voucher(channel_id, amount, signature)


def compact(signature: str) -> str:
    """EIP-2098: the recovery id in the highest bit of s."""
    s, v = int(signature[66:130], 16), int(signature[130:], 16)
    return f"0x{signature[2:66]}{s | (v - 27) << 255:064x}"


@all_domains
@given(data=st.data())
def test_signing_hash_is_that_of_wallets(domain: VoucherDomain, data: st.DataObject) -> None:
    amount = data.draw(st.integers(0, domain.amount_max))
    channel_id = "0x" + data.draw(st.binary(min_size=32, max_size=32)).hex()
    assert signing_hash(domain, channel_id=channel_id, cumulative_amount=amount) == typed(
        domain, channel_id=channel_id, amount=amount
    )


@all_domains
def test_amount_out_of_range_is_refused(domain: VoucherDomain) -> None:
    for amount in (-1, domain.amount_max + 1):
        with pytest.raises(ValueError, match="out of range"):
            signing_hash(domain, channel_id=CHANNEL, cumulative_amount=amount)
    assert domain.amount_max == 2**domain.amount_bits - 1


@all_domains
def test_signer_is_recovered_from_either_form(domain: VoucherDomain) -> None:
    for amount in range(20):
        voucher = signed(domain, amount)
        assert signer_of(domain, voucher) == ADDRESS
        assert signer_of(domain, replace(voucher, signature=compact(voucher.signature))) == ADDRESS
        assert signer_of(domain, replace(voucher, signature="0x" + voucher.signature[2:].upper())) == ADDRESS
        zero_based = voucher.signature[:-2] + f"{int(voucher.signature[-2:], 16) - 27:02x}"
        assert signer_of(domain, replace(voucher, signature=zero_based)) == ADDRESS


@pytest.mark.parametrize(
    "changes", [{"name": "Other"}, {"chain_id": 1}, {"escrow": "0x" + "11" * 20}, {"amount_bits": 64}]
)
@all_domains
def test_voucher_of_another_domain_has_another_signer(domain: VoucherDomain, changes: dict[str, object]) -> None:
    assert signer_of(domain, signed(replace(domain, **changes))) != ADDRESS  # type: ignore[arg-type]
    assert signer_of(domain, replace(signed(domain), channel_id="0x" + "cd" * 32)) != ADDRESS
    assert signer_of(domain, replace(signed(domain), cumulative_amount=6)) != ADDRESS


def high_s(signature: str) -> str:
    s, v = int(signature[66:130], 16), int(signature[130:], 16)
    return f"{signature[:66]}{ORDER - s:064x}{55 - v:02x}"


def test_high_s_is_refused_although_it_recovers() -> None:
    domain = DOMAINS["v2"]
    voucher = signed(domain)
    other = high_s(voucher.signature)
    digest = signing_hash(domain, channel_id=CHANNEL, cumulative_amount=5)
    raw = bytes.fromhex(other[2:-2]) + bytes((int(other[-2:], 16) - 27,))
    assert recover(digest, raw) == ADDRESS
    with pytest.raises(SignatureInvalid, match="canonical"):
        signature_bytes(other)


@pytest.mark.parametrize(
    "text",
    [
        None,
        5,
        b"0x" + b"11" * 65,
        "",
        "0x",
        "11" * 65,
        "0X" + "11" * 65,
        "0x" + "11" * 63,
        "0x" + "11" * 66,
        "0x" + "zz" * 65,
        "0x" + " " * 130,
        "0x" + "11" * 64 + "  ",
        "0x " + "11" * 64 + " ",
        "0x" + "11" * 64 + "1d",
        "0x" + "11" * 64 + "02",
        "0x" + "11" * 64 + "ff",
        "0x" + "00" * 32 + "11" * 32 + "1b",
        "0x" + "11" * 32 + "00" * 32 + "1b",
        "0x" + f"{ORDER:064x}" + "11" * 32 + "1b",
        "0x" + "11" * 32 + f"{HALF_ORDER + 1:064x}" + "1b",
        "0x" + "11" * 32 + f"{HALF_ORDER + 1:064x}",
    ],
)
def test_signature_of_no_canonical_form_is_invalid(text: object) -> None:
    with pytest.raises(SignatureInvalid):
        signature_bytes(text)


def test_largest_canonical_signature_is_taken() -> None:
    assert signature_bytes("0x" + "11" * 32 + f"{HALF_ORDER:064x}" + "1c")[-1] == 1


def test_signature_that_no_key_made_is_invalid() -> None:
    with pytest.raises(SignatureInvalid, match="no key"):
        signer_of(DOMAINS["v2"], Voucher(CHANNEL, 5, f"0x{5:064x}{1:064x}1b"))


def test_voucher_keeps_its_signature_out_of_logs() -> None:
    voucher = signed(DOMAINS["v2"])
    assert voucher.signature not in repr(voucher)
