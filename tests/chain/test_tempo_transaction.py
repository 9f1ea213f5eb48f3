"""Decoding what clients signed, against the library that they sign with."""

from typing import Any

import attrs
import pytest
from eth_account import Account
from eth_utils.crypto import keccak
from hypothesis import given
from hypothesis import strategies as st
from mpp.methods.tempo.fee_payer_envelope import encode_fee_payer_envelope
from pytempo import AccessListItem, Call, TempoTransaction  # type: ignore[import-untyped]

from app.chain import rlp, tempo_transaction
from app.chain.backend import TransactionRefused
from app.chain.signer import Signer
from app.chain.tempo_transaction import TRANSACTION_BYTES_MAX, decode, parse
from app.mpp.voucher import ORDER

KEY = "0x" + "11" * 32
SPONSOR = Signer(b"\x22" * 32)
SENDER = Account.from_key(KEY).address.lower()
TOKEN = "0x20c0000000000000000000000000000000000000"
ESCROW = "0x4d50500000000000000000000000000000000000"


def signed(**changes: Any) -> TempoTransaction:
    fields: dict[str, Any] = {
        "chain_id": 1337,
        "gas_limit": 1_000_000,
        "max_fee_per_gas": 20_000_000_000,
        "nonce_key": 2**256 - 1,
        "valid_before": 1_800_000_000,
        "fee_token": TOKEN,
        "calls": (Call.create(to=ESCROW, data=b"\1\2\3\4" + bytes(64)),),
    }
    return TempoTransaction.create(**{**fields, **changes}).sign(KEY)


PLAIN = signed().encode()
AWAITING = signed(fee_token=None, awaiting_fee_payer=True)
ENVELOPE = encode_fee_payer_envelope(AWAITING)


@given(
    chain_id=st.integers(1, 2**64 - 1),
    gas=st.integers(1, 2**64 - 1),
    fee=st.integers(0, 2**100),
    nonce_key=st.integers(0, 2**256 - 1),
    nonce=st.integers(0, 2**64 - 1),
    times=st.none() | st.tuples(st.integers(1, 2**63), st.integers(0, 2**62)),
    calls=st.lists(st.tuples(st.binary(min_size=20, max_size=20), st.binary(max_size=300)), min_size=1, max_size=3),
    sponsored=st.booleans(),
)
def test_decodes_what_the_library_signed(
    chain_id: int,
    gas: int,
    fee: int,
    nonce_key: int,
    nonce: int,
    times: tuple[int, int] | None,
    calls: list[tuple[bytes, bytes]],
    sponsored: bool,
) -> None:
    before, after = (None, None) if times is None else (sum(times), times[0])
    theirs = signed(
        chain_id=chain_id,
        gas_limit=gas,
        max_fee_per_gas=fee,
        nonce_key=nonce_key,
        nonce=nonce,
        valid_before=before,
        valid_after=after,
        calls=tuple(Call.create(to=to, data=data) for to, data in calls),
        fee_token=None if sponsored else TOKEN,
        awaiting_fee_payer=sponsored,
    )
    ours = decode(encode_fee_payer_envelope(theirs) if sponsored else theirs.encode())
    assert (ours.chain_id, ours.gas, ours.max_fee_per_gas, ours.nonce_key) == (chain_id, gas, fee, nonce_key)
    assert (ours.nonce, ours.valid_before, ours.valid_after) == (nonce, before, after)
    assert [(call.to, call.data) for call in ours.calls] == [("0x" + to.hex(), data) for to, data in calls]
    assert (ours.sender, ours.awaits_fee_payer) == (SENDER, sponsored)
    assert ours.expiring_nonce_hash == "0x" + keccak(theirs.encode_for_signing() + bytes.fromhex(SENDER[2:])).hex()
    if not sponsored:
        assert (ours.raw, ours.tx_hash) == (theirs.encode(), "0x" + theirs.hash().hex())


def test_sponsored_is_as_the_library_would_sign_it() -> None:
    ours = decode(ENVELOPE).sponsored(SPONSOR, fee_token=TOKEN)
    theirs = attrs.evolve(AWAITING, fee_token=bytes.fromhex(TOKEN[2:]), awaiting_fee_payer=False)
    assert ours.raw == theirs.sign("0x" + "22" * 32, for_fee_payer=True).encode()
    again = decode(ours.raw)
    assert (again.sender, again.fee_payer(), again.tx_hash) == (SENDER, SPONSOR.address, ours.tx_hash)
    assert again.expiring_nonce_hash == decode(ENVELOPE).expiring_nonce_hash


def test_placeholder_form_is_the_same_as_the_envelope() -> None:
    fields = rlp.decode(ENVELOPE[1:], depth_max=4)
    assert isinstance(fields, list)
    placeholder = b"\x76" + rlp.encode([*fields[:11], b"\0", *fields[12:]])
    assert decode(placeholder) == decode(ENVELOPE)


def test_own_transactions_decode() -> None:
    ours = tempo_transaction.sign(
        SPONSOR,
        chain_id=1,
        nonce=7,
        calls=(tempo_transaction.Call(to=ESCROW, data=b"x"),),
        gas=1,
        max_fee_per_gas=2,
        max_priority_fee_per_gas=1,
        fee_token=TOKEN,
    )
    assert decode(ours.raw) == ours
    assert ours.sender == SPONSOR.address


def test_recovery_id_is_written_as_nodes_hash_it() -> None:
    zero_based = PLAIN[:-1] + bytes((PLAIN[-1] - 27,))
    assert decode(zero_based).raw == PLAIN


def changed(raw: bytes, *, at: int, value: rlp.Item) -> bytes:
    fields = rlp.decode(raw[1:], depth_max=4)
    assert isinstance(fields, list)
    fields[at] = value
    return raw[:1] + rlp.encode(fields)


SIGNATURE = PLAIN[-65:]
HIGH_S = (
    SIGNATURE[:32]
    + (ORDER - int.from_bytes(SIGNATURE[32:64], "big")).to_bytes(32, "big")
    + bytes((27 + 28 - SIGNATURE[64],))
)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"\x02" + PLAIN[1:], id="another type"),
        pytest.param(PLAIN + b"\0", id="bytes after the end"),
        pytest.param(PLAIN[:-1], id="cut off"),
        pytest.param(b"\x76" + rlp.encode([b""] * 14), id="empty fields"),
        pytest.param(b"\x76" + rlp.encode([b""] * 15), id="15 fields"),
        pytest.param(b"\x76" + rlp.encode(b"x" * 80), id="no list"),
        pytest.param(changed(PLAIN, at=13, value=HIGH_S), id="high s"),
        pytest.param(changed(PLAIN, at=13, value=b"\0" * 65), id="zero signature"),
        pytest.param(changed(PLAIN, at=13, value=b"\4" + b"\1" * 85), id="access key"),
        pytest.param(changed(PLAIN, at=13, value=SIGNATURE[:64] + b"\x1d"), id="recovery id"),
        pytest.param(changed(PLAIN, at=11, value=b"\1"), id="slot 11"),
        pytest.param(changed(PLAIN, at=11, value=bytes.fromhex(SENDER[2:])), id="sender in the wrong type"),
        pytest.param(changed(PLAIN, at=11, value=[b"\1", b"\1"]), id="fee payer's signature of two parts"),
        pytest.param(changed(PLAIN, at=11, value=[b"\1", b"\1", b"\xff" * 32]), id="fee payer's high s"),
        pytest.param(changed(ENVELOPE, at=11, value=b"\x11" * 20), id="another sender"),
        pytest.param(changed(ENVELOPE, at=2, value=b"\1"), id="changed fee, signed by nobody in the envelope"),
        pytest.param(changed(PLAIN, at=0, value=b"\0\1"), id="leading zero"),
        pytest.param(changed(PLAIN, at=4, value=[[b"\1" * 19, b"", b""]]), id="short target"),
        pytest.param(changed(PLAIN, at=4, value=[[b"", b"", b""]]), id="creates a contract"),
        pytest.param(changed(PLAIN, at=12, value=[b"\1"]), id="authorization list"),
        pytest.param(signed(access_list=(AccessListItem.create(ESCROW),)).encode(), id="access list"),
        pytest.param(b"\x76" + b"\xff" * TRANSACTION_BYTES_MAX, id="too long"),
    ],
)
def test_refused(raw: bytes) -> None:
    with pytest.raises(TransactionRefused) as caught:
        decode(raw)
    assert caught.value.malformed


@pytest.mark.parametrize("text", [None, 7, "", "0x", "76ff", "0xzz", "0x7", "0x" + " 76", "0x" + "76" * 20_000, "0xé"])
def test_text_is_refused(text: object) -> None:
    with pytest.raises(TransactionRefused):
        parse(text)


@pytest.mark.parametrize("blank", [" ", "\n", "\t"])
def test_blanks_in_text_are_refused(blank: str) -> None:
    text = "0x" + PLAIN.hex()
    assert parse(text).raw == PLAIN
    for other in (text[:10] + blank + text[10:], text + blank):
        with pytest.raises(TransactionRefused):
            parse(other)


@given(st.binary(max_size=400), st.sampled_from([b"", b"\x76", b"\x78"]))
def test_random_bytes_are_refused(noise: bytes, prefix: bytes) -> None:
    with pytest.raises(TransactionRefused):
        decode(prefix + noise)


@given(st.sampled_from([PLAIN, ENVELOPE]), st.data())
def test_no_mutation_passes_for_the_senders(raw: bytes, data: st.DataObject) -> None:
    """One byte or a run of them is changed, removed or added: it is refused, or another's, or the very same."""
    at = data.draw(st.integers(0, len(raw) - 1))
    removed = data.draw(st.integers(0, 3))
    mutated = raw[:at] + data.draw(st.binary(max_size=3)) + raw[at + removed :]
    try:
        found = decode(mutated)
    except TransactionRefused:
        return
    if found.sender == SENDER:
        assert found == decode(raw)
    else:
        assert raw[0] == 0x76


@given(st.integers(0, 12), st.binary(max_size=40), st.sampled_from([PLAIN, ENVELOPE]))
def test_no_changed_field_passes_for_the_senders(at: int, value: bytes, raw: bytes) -> None:
    fields = rlp.decode(raw[1:], depth_max=4)
    assert isinstance(fields, list)
    # What the sender of a sponsored transaction leaves to its fee payer.
    left_open = raw[0] == 0x78 and at == 10
    if fields[at] == value or left_open:
        return
    try:
        found = decode(changed(raw, at=at, value=value))
    except TransactionRefused:
        return
    assert found.sender != SENDER
