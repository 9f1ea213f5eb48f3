"""What the server says was accepted and spent, and what it wants: read, and checked against what was signed. Pure.

Source: `draft-tempo-session-00`, "Receipt Generation" and "Insufficient Balance During Streaming".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mpp
from mpp._parsing import ParseError

from farebox_client.amounts import show, wire_amount
from farebox_client.channel import Channel
from farebox_client.errors import ServerMisbehaved
from farebox_client.hexadecimal import bytes32


@dataclass(frozen=True, slots=True)
class Receipt:
    """One receipt. ``accepted`` and ``spent`` are base units of the channel in all; ``units`` are this request's."""

    channel_id: str
    challenge_id: str
    accepted: int
    spent: int
    units: int
    tx_hash: str | None
    timestamp: str


@dataclass(frozen=True, slots=True)
class NeedVoucher:
    """A stream that pauses until a voucher of ``required`` base units. Amounts are the channel's in all."""

    channel_id: str
    required: int
    accepted: int
    deposit: int


def read_receipt(members: Mapping[str, Any]) -> Receipt:
    """A receipt's members. Raises `ServerMisbehaved`."""
    try:
        units, tx_hash = members.get("units"), members.get("txHash")
        return Receipt(
            channel_id=bytes32(members.get("channelId")),
            challenge_id=str(members.get("challengeId", "")),
            accepted=wire_amount(members.get("acceptedCumulative")),
            spent=wire_amount(members.get("spent")),
            units=units if isinstance(units, int) and not isinstance(units, bool) else 0,
            tx_hash=bytes32(tx_hash) if tx_hash else None,
            timestamp=str(members.get("timestamp", "")),
        )
    except ValueError as error:
        raise ServerMisbehaved(f"the server's receipt cannot be read: {error}") from error


def read_receipt_header(text: str) -> Receipt:
    """A ``Payment-Receipt`` header. Raises `ServerMisbehaved`."""
    try:
        receipt = mpp.Receipt.from_payment_receipt(text)
    except (ParseError, ValueError) as error:
        raise ServerMisbehaved(f"the server's receipt cannot be read: {error}") from error
    return read_receipt({**(receipt.extensions or {}), "timestamp": receipt.timestamp.isoformat()})


def read_need_voucher(members: Mapping[str, Any]) -> NeedVoucher:
    """A ``payment-need-voucher`` event's members. Raises `ServerMisbehaved`."""
    try:
        return NeedVoucher(
            channel_id=bytes32(members.get("channelId")),
            required=wire_amount(members.get("requiredCumulative")),
            accepted=wire_amount(members.get("acceptedCumulative")),
            deposit=wire_amount(members.get("deposit")),
        )
    except ValueError as error:
        raise ServerMisbehaved(f"the server's request for a voucher cannot be read: {error}") from error


def check_statement(channel: Channel, *, channel_id: str, accepted: int, spent: int) -> None:
    """Hold what the server says of a channel against what was signed. Raises `ServerMisbehaved`.

    The order that receipts arrive in says nothing: several streams may use one channel.
    """
    if channel_id != channel.channel_id:
        raise ServerMisbehaved(f"the server speaks of channel {channel_id}, but {channel.channel_id} was used")
    if accepted > channel.signed:
        raise ServerMisbehaved(
            f"the server claims a voucher of {show(accepted)} USD, but no more than {show(channel.signed)} "
            "was ever signed from this channel file. If another copy of it is in use, use only one."
        )
    if spent > accepted:
        raise ServerMisbehaved(
            f"the server claims to have spent {show(spent)} USD, which is more than the {show(accepted)} it accepted"
        )
