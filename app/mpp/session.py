"""The session intent on the wire: requests, payloads, snapshots, receipts and stream events. Pure.

Source: `draft-tempo-session-00` and `draft-evm-session-00`. Amounts are decimal strings of base units,
addresses and ids are lowercase on output and of any case on input. Unknown fields are ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import orjson
from mpp import Receipt

from app.money import BaseUnits
from app.mpp.descriptor import Descriptor, hash_of
from app.mpp.voucher import Voucher, signature_bytes

Action = Literal["open", "voucher", "topUp", "close"]
ACTIONS: tuple[Action, ...] = ("open", "voucher", "topUp", "close")
# uint128 has 39 digits; a longer text is refused before it is a number.
DIGITS_MAX = 39


class PayloadMalformed(ValueError):
    """A payload's field is missing or not what it must be; the message names it."""


@dataclass(frozen=True, slots=True)
class SessionPayload:
    """A session credential's payload with its form checked, and no more than that."""

    action: Action
    channel_id: str
    descriptor: Descriptor | None
    voucher: Voucher | None = field(default=None, repr=False)
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False)


def amount_of(value: object, *, name: str) -> BaseUnits:
    """A decimal string of base units. Raises `PayloadMalformed`."""
    if not isinstance(value, str) or not 0 < len(value) <= DIGITS_MAX or not value.isascii() or not value.isdigit():
        raise PayloadMalformed(f"{name} must be a decimal string of base units")
    return BaseUnits(int(value))


def parse_payload(value: object) -> SessionPayload:
    """Check a payload's form, cheaply, before anything else. Raises `PayloadMalformed`."""
    if not isinstance(value, Mapping):
        raise PayloadMalformed("payload must be an object")
    action = value.get("action")
    if action not in ACTIONS:
        raise PayloadMalformed("payload.action must be one of open, voucher, topUp, close")
    try:
        channel_id = hash_of(value.get("channelId"))
        descriptor = Descriptor.parse(value["descriptor"]) if value.get("descriptor") is not None else None
    except ValueError as error:
        raise PayloadMalformed(f"payload.channelId or payload.descriptor: {error}") from error
    voucher = None
    if action != "topUp":
        amount = amount_of(value.get("cumulativeAmount"), name="payload.cumulativeAmount")
        # Where the deposit is pulled by an authorization, `signature` is the authorization's.
        name = "voucherSignature" if value.get("type") == "authorization" else "signature"
        signature = value.get(name)
        try:
            raw = signature_bytes(signature)
        except ValueError as error:
            raise PayloadMalformed(f"payload.{name}: {error}") from error
        # Kept with 65 bytes: the channel reserve takes no shorter form.
        voucher = Voucher(channel_id, amount, "0x" + (raw[:64] + bytes((27 + raw[64],))).hex())
    return SessionPayload(action, channel_id, descriptor, voucher, value)


@dataclass(frozen=True, slots=True)
class SessionReceipt:
    """What a payer is told of a channel; amounts in base units. ``units`` is what this request used."""

    method: str
    challenge_id: str
    channel_id: str
    accepted: BaseUnits
    spent: BaseUnits
    units: int
    at: datetime
    tx_hash: str | None = None

    def _extensions(self) -> dict[str, Any]:
        fields: dict[str, Any] = {
            "intent": "session",
            "challengeId": self.challenge_id,
            "channelId": self.channel_id,
            "acceptedCumulative": str(self.accepted),
            "spent": str(self.spent),
            "units": self.units,
        }
        if self.tx_hash is not None:
            fields["txHash"] = self.tx_hash
        return fields

    def to_wire(self) -> dict[str, Any]:
        """The receipt's fields."""
        return {
            "method": self.method,
            "status": "success",
            "timestamp": self.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "reference": self.channel_id,
            **self._extensions(),
        }

    def to_header(self) -> str:
        """The value of ``Payment-Receipt``."""
        receipt = Receipt(
            status="success",
            timestamp=self.at.replace(microsecond=0),
            reference=self.channel_id,
            method=self.method,
            extensions=self._extensions(),
        )
        return receipt.to_payment_receipt()

    def to_event(self) -> bytes:
        """The last event of a paid stream."""
        return _event(b"payment-receipt", self.to_wire())


def need_voucher_event(channel_id: str, *, required: BaseUnits, accepted: BaseUnits, deposit: BaseUnits) -> bytes:
    """The event that pauses a stream. Strings: a client drops an event that has numbers."""
    return _event(
        b"payment-need-voucher",
        {
            "acceptedCumulative": str(accepted),
            "channelId": channel_id,
            "deposit": str(deposit),
            "requiredCumulative": str(required),
        },
    )


def _event(name: bytes, data: Mapping[str, Any]) -> bytes:
    return b"event: " + name + b"\ndata: " + orjson.dumps(data) + b"\n\n"
