"""Transfers: immutable rows that move an amount from one account to another. Pure.

A transfer is *posted* at once, or *pending* (a hold) until one other transfer, which names it in
``pending_id``, *posts* at most its amount (a capture; the rest is released) or *voids* it (a release).
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from app.clock import EpochMs
from app.money import ZERO, NanoUsd

POSTED = "posted"
PENDING = "pending"
POST = "post"
VOID = "void"

# Every transfer has a kind; reversals, goodwill and refunds never look like usage.
HOLD = "hold"
CAPTURE = "capture"
RELEASE = "release"
OVERRUN = "overrun"
COST = "cost"
TOP_UP = "top_up"
GRANT = "grant"
GOODWILL = "goodwill"
REVERSAL = "reversal"
REFUND = "refund"
REFUND_PAID = "refund_paid"
# Of channels: a voucher's credit, what the chain paid out, and what is left when a channel ends.
VOUCHER = "voucher"
SETTLEMENT = "settlement"
UNSPENT = "unspent"
DUST = "dust"
UNCOLLECTED = "uncollected"
OVERPAID = "overpaid"
CHAIN_FEE = "chain_fee"
CHARGE = "charge"
USAGE_KINDS = (CAPTURE, OVERRUN)


class Transfer(NamedTuple):
    """A row of `transfers`, in the order of its columns. Doing one id twice returns the first result."""

    id: str
    kind: str
    phase: str
    debit_account: str
    credit_account: str
    amount: NanoUsd
    pending_id: str | None
    request_id: str | None
    note: str | None
    created_at_ms: EpochMs


class Hold(NamedTuple):
    """A row of `holds`: an open pending transfer, who owns it and for which request."""

    id: str
    account_id: str
    key_id: str | None
    request_id: str
    credit_account: str
    amount: NanoUsd
    owner_id: str
    created_at_ms: EpochMs


def pending(hold: Hold) -> Transfer:
    """The pending transfer of a hold."""
    return Transfer(
        hold.id,
        HOLD,
        PENDING,
        hold.account_id,
        hold.credit_account,
        hold.amount,
        None,
        hold.request_id,
        None,
        hold.created_at_ms,
    )


def resolve(holds: Sequence[Hold], *, amount: NanoUsd, at: EpochMs) -> list[Transfer]:
    """Capture ``amount`` over several holds, oldest first, and release what is left of them.

    ``amount`` must not exceed the holds' sum: the caller charges an excess separately.
    """
    transfers, left = [], amount
    for hold in holds:
        captured = NanoUsd(min(left, hold.amount))
        left = NanoUsd(left - captured)
        kind, phase = (CAPTURE, POST) if captured else (RELEASE, VOID)
        transfers.append(
            Transfer(
                f"{hold.id}:r",
                kind,
                phase,
                hold.account_id,
                hold.credit_account,
                captured,
                hold.id,
                hold.request_id,
                None,
                at,
            )
        )
    if left:
        raise ValueError("the capture exceeds its holds")
    return transfers


def total(holds: Iterable[Hold]) -> NanoUsd:
    """The sum of the holds' amounts."""
    return NanoUsd(sum((hold.amount for hold in holds), ZERO))
