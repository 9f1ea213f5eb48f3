"""The session intent's payloads, receipts and events, to the byte."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from mpp import Receipt

from app.money import BaseUnits
from app.mpp.descriptor import ZERO_ADDRESS, ZERO_HASH, Descriptor
from app.mpp.session import (
    DIGITS_MAX,
    PayloadMalformed,
    SessionReceipt,
    amount_of,
    need_voucher_event,
    parse_payload,
)

CHANNEL = "0x" + "ab" * 32
SIGNATURE = "0x" + "11" * 64 + "1b"
DESCRIPTOR = Descriptor(payer="0x" + "0a" * 20, payee="0x" + "0b" * 20, token="0x" + "0c" * 20, salt="0x" + "0d" * 32)
VOUCHER = {"action": "voucher", "channelId": CHANNEL, "cumulativeAmount": "5", "signature": SIGNATURE}
AT = datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC)
EMPTY: tuple[Any, ...] = ([], {})
MISSING = object()


def test_payload_is_read_in_any_case_and_kept_in_lowercase() -> None:
    wire = {name: "0x" + value[2:].upper() for name, value in DESCRIPTOR.to_wire().items()}
    payload = parse_payload(
        {
            **VOUCHER,
            "channelId": CHANNEL.upper().replace("X", "x"),
            "signature": "0x" + SIGNATURE[2:].upper(),
            "descriptor": wire,
            "unknown": [1],
        }
    )
    assert (payload.action, payload.channel_id, payload.descriptor) == ("voucher", CHANNEL, DESCRIPTOR)
    assert payload.voucher is not None
    assert (payload.voucher.channel_id, payload.voucher.cumulative_amount) == (CHANNEL, 5)
    assert payload.voucher.signature == SIGNATURE
    assert SIGNATURE not in repr(payload)


def test_top_up_has_no_voucher() -> None:
    payload = parse_payload({"action": "topUp", "channelId": CHANNEL, "additionalDeposit": "1"})
    assert (payload.action, payload.voucher) == ("topUp", None)


@pytest.mark.parametrize("value", [None, 5, "text", [], True])
def test_payload_that_is_no_object_is_malformed(value: object) -> None:
    with pytest.raises(PayloadMalformed, match="object"):
        parse_payload(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("action", value) for value in (MISSING, "", "Voucher", "charge", 5, *EMPTY)),
        *(("channelId", value) for value in (MISSING, "", CHANNEL[:-1], CHANNEL + "0", "ab" * 33, 5, [])),
        *(("descriptor", value) for value in (5, "", *EMPTY, {**DESCRIPTOR.to_wire(), "salt": "0x"})),
        *(("signature", value) for value in (MISSING, "", 5, "0x", SIGNATURE[:-4], SIGNATURE[:-2] + "1d")),
        *(
            ("cumulativeAmount", value)
            for value in (MISSING, "", 5, 5.0, "-1", "1.0", "1e3", "\u0665", "²", " 5", "1_0")
        ),
        ("cumulativeAmount", "1" * (DIGITS_MAX + 1)),
    ],
)
def test_field_of_no_good_form_is_malformed_and_named(name: str, value: object) -> None:
    payload: dict[str, Any] = {**VOUCHER, name: value}
    if value is MISSING:
        del payload[name]
    with pytest.raises(PayloadMalformed, match=name):
        parse_payload(payload)


def test_amounts_are_read_up_to_uint128_and_no_further() -> None:
    assert amount_of(str(2**128 - 1), name="amount") == 2**128 - 1
    assert amount_of("007", name="amount") == 7
    with pytest.raises(PayloadMalformed, match="amount"):
        amount_of("1" * 60, name="amount")


def test_descriptor_defaults_are_zero_and_its_signer_is_the_payer() -> None:
    assert (DESCRIPTOR.operator, DESCRIPTOR.expiring_nonce_hash) == (ZERO_ADDRESS, ZERO_HASH)
    assert DESCRIPTOR.signer == DESCRIPTOR.payer
    assert Descriptor.parse(DESCRIPTOR.to_wire()) == DESCRIPTOR


def receipt(**changes: Any) -> SessionReceipt:
    fields: dict[str, Any] = {
        "method": "tempo",
        "challenge_id": "c",
        "channel_id": CHANNEL,
        "accepted": BaseUnits(2**60),
        "spent": BaseUnits(4),
        "units": 7,
        "at": AT,
    }
    return SessionReceipt(**{**fields, **changes})


WIRE = {
    "method": "tempo",
    "status": "success",
    "timestamp": "2026-01-02T03:04:05Z",
    "reference": CHANNEL,
    "intent": "session",
    "challengeId": "c",
    "channelId": CHANNEL,
    "acceptedCumulative": str(2**60),
    "spent": "4",
    "units": 7,
}


def test_receipt_says_amounts_as_strings() -> None:
    assert receipt().to_wire() == WIRE
    assert receipt(tx_hash="0xff").to_wire() == {**WIRE, "txHash": "0xff"}


def test_receipt_in_the_head_is_that_of_the_event() -> None:
    event = receipt(tx_hash="0xff").to_event()
    head, _, data = event.partition(b"\ndata: ")
    assert head == b"event: payment-receipt"
    assert data.endswith(b"\n\n")
    assert json.loads(data) == {**WIRE, "txHash": "0xff"}
    parsed = Receipt.from_payment_receipt(receipt(tx_hash="0xff").to_header())
    assert parsed.status == "success"
    assert parsed.reference == CHANNEL
    import base64

    text = receipt(tx_hash="0xff").to_header()
    shown = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    assert {name: shown[name] for name in ("acceptedCumulative", "spent", "units", "txHash")} == {
        name: {**WIRE, "txHash": "0xff"}[name] for name in ("acceptedCumulative", "spent", "units", "txHash")
    }


def test_pause_is_one_event_with_strings() -> None:
    event = need_voucher_event(CHANNEL, required=BaseUnits(3), accepted=BaseUnits(2), deposit=BaseUnits(9))
    assert event == (
        b'event: payment-need-voucher\ndata: {"acceptedCumulative":"2","channelId":"'
        + CHANNEL.encode()
        + b'","deposit":"9","requiredCumulative":"3"}\n\n'
    )
