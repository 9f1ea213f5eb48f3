"""What is read from signed transactions is what their makers put in."""

from typing import Any

import pytest
import rlp  # type: ignore[import-untyped]
from eth_account import Account
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st
from pytempo import Call, TempoTransaction  # type: ignore[import-untyped]

from app.devnet.tempo_transaction import EXPIRING_NONCE_KEY, RawCall, Undecodable, decode

KEY = Account.from_key(b"\1" * 32)
SPONSOR = Account.from_key(b"\2" * 32)
SENDER = bytes.fromhex(KEY.address[2:])
TARGET = b"\x11" * 20


def hexed(key: Any) -> str:
    return bytes(key.key).hex()


@given(
    nonce=st.integers(0, 2**48),
    nonce_key=st.sampled_from([0, 1, EXPIRING_NONCE_KEY]),
    valid_before=st.none() | st.integers(1, 2**40),
    data=st.lists(st.binary(max_size=40), min_size=1, max_size=3),
    sponsored=st.booleans(),
)
def test_tempo_transactions(
    nonce: int, nonce_key: int, valid_before: int | None, data: list[bytes], sponsored: bool
) -> None:
    unsigned = TempoTransaction.create(
        chain_id=1337,
        gas_limit=1,
        nonce=nonce,
        nonce_key=nonce_key,
        valid_before=valid_before,
        fee_token=None if sponsored else TARGET,
        awaiting_fee_payer=sponsored,
        calls=tuple(Call.create(to=TARGET, data=part) for part in data),
    )
    signed = unsigned.sign(hexed(KEY))
    # The sponsor adds its token and signature afterwards: what the sender signed stays what it was.
    expected = keccak(signed.encode_for_signing() + SENDER)
    if sponsored:
        signed = signed.sign(hexed(SPONSOR), for_fee_payer=True)
    found = decode(signed.encode())
    assert found.sender == SENDER
    assert found.calls == tuple(RawCall(TARGET, part) for part in data)
    assert found.expiring_nonce_hash == expected
    assert (found.nonce_key, found.nonce, found.valid_before) == (nonce_key, nonce, valid_before or 0)


def test_transaction_signed_by_an_access_key_is_the_accounts() -> None:
    unsigned = TempoTransaction.create(chain_id=1, gas_limit=1, calls=(Call.create(to=TARGET),))
    signed = unsigned.sign_access_key(hexed(SPONSOR), KEY.address)
    assert decode(signed.encode()).sender == SENDER


# What each type of transaction signs, by its EIP, for these fields.
COMMON: dict[str, Any] = {"nonce": 5, "gas": 21_000, "to": "0x" + TARGET.hex(), "value": 0, "data": b"\7\7"}
BODY: list[Any] = [21_000, TARGET, 0, b"\7\7"]
ETHEREUM: dict[str, tuple[dict[str, Any], bytes]] = {
    "legacy": ({"gasPrice": 9}, rlp.encode([5, 9, *BODY])),
    "legacy with chain": ({"gasPrice": 9, "chainId": 1337}, rlp.encode([5, 9, *BODY, 1337, 0, 0])),
    "access list": (
        {"gasPrice": 9, "chainId": 1337, "type": 1, "accessList": []},
        b"\1" + rlp.encode([1337, 5, 9, *BODY, []]),
    ),
    "dynamic fee": (
        {"maxFeePerGas": 9, "maxPriorityFeePerGas": 3, "chainId": 1337},
        b"\2" + rlp.encode([1337, 5, 3, 9, *BODY, []]),
    ),
}


@pytest.mark.parametrize("kind", ETHEREUM)
def test_ethereum_transactions(kind: str) -> None:
    fields, preimage = ETHEREUM[kind]
    found = decode(bytes(KEY.sign_transaction({**COMMON, **fields}).raw_transaction))
    assert (found.sender, found.calls, found.nonce) == (SENDER, (RawCall(TARGET, b"\7\7"),), 5)
    assert (found.nonce_key, found.valid_before) == (0, 0)
    assert found.expiring_nonce_hash == keccak(preimage + SENDER)


@pytest.mark.parametrize("raw", [b"", b"\x76", b"\x76\xc0", b"\x99\x01", b"\xc0", b"\x02\xc0", b"\x76" + b"\xff" * 9])
def test_garbage_is_not_decoded(raw: bytes) -> None:
    with pytest.raises(Undecodable):
        decode(raw)


@given(st.binary(max_size=200))
def test_anything_else_is_decoded_or_not(raw: bytes) -> None:
    try:
        decode(raw)
    except Undecodable:
        return
