"""A payment channel as the ledger has it: what was accepted, spent and seen on chain. Pure.

An instance is the row as locked in the current transaction, never a memory of it. `accepted` is the sum
of voucher credits and `spent` the sum of captures; neither ever falls. Deposit, settled and the close
request are copies of what the chain said at `seen_block`.
"""

from dataclasses import dataclass, field
from typing import Literal

from app.errors import InvariantViolated
from app.money import ZERO, BaseUnits, NanoUsd, base_units_down, base_units_up, nano_usd_of

Status = Literal["open", "closing", "closed"]

# Copies of on-chain amounts are kept up to here: no channel that is served comes near.
AMOUNT_MAX = BaseUnits(2**53)


class VoucherRefused(Exception):
    """Why a voucher is not accepted: a problem type of the session intent, and what to say."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class ChannelView:
    """A channel at one moment, as payers are shown it. ``held`` is in nano-USD like accepted and spent."""

    id: str
    status: str
    deposit: BaseUnits
    settled: BaseUnits
    accepted: NanoUsd
    spent: NanoUsd
    held: NanoUsd
    published: BaseUnits
    close_requested_at: int

    @property
    def accepted_cumulative(self) -> BaseUnits:
        """The highest voucher that was accepted, in base units."""
        return base_units_down(self.accepted)

    @property
    def spent_cumulative(self) -> BaseUnits:
        """What was charged in all, rounded down, in base units."""
        return base_units_down(self.spent)

    def required_cumulative(self, *, wanted: NanoUsd) -> BaseUnits:
        """The cumulative amount that pays for all that is spent and held, and for ``wanted``."""
        return base_units_up(NanoUsd(self.spent + self.held + wanted))

    def proves(self, amount: BaseUnits) -> bool:
        """Whether only the payer can have a voucher of ``amount``: the chain never saw one so high.

        Settlement publishes signatures; a published voucher proves nothing about who presents it.
        """
        return amount > max(self.published, self.settled)


@dataclass(slots=True)
class Channel:
    """The columns of `channels` that decide."""

    id: str
    status: str
    deposit: BaseUnits
    settled: BaseUnits
    close_requested_at: int
    seen_block: int
    recovered: NanoUsd
    accepted: NanoUsd
    spent: NanoUsd
    published: BaseUnits
    close_amount: BaseUnits | None
    close_signature: str | None = field(repr=False)
    version: int = 0

    def view(self, *, held: NanoUsd) -> ChannelView:
        """What may be shown of it."""
        return ChannelView(
            self.id,
            self.status,
            self.deposit,
            self.settled,
            self.accepted,
            self.spent,
            held,
            self.published,
            self.close_requested_at,
        )

    @property
    def stopped(self) -> str | None:
        """Why nothing new is served on this channel, or None."""
        if self.status == "closed":
            return "channel_finalized"
        if self.status == "closing" or self.close_requested_at:
            return "channel_closing"
        return None

    @property
    def exposure(self) -> NanoUsd:
        """What was spent and is not yet ours on chain."""
        return NanoUsd(self.spent - nano_usd_of(self.settled))

    def accept(self, amount: BaseUnits, *, min_delta: BaseUnits) -> NanoUsd:
        """Take a voucher of ``amount`` in all; returns its credit, zero for an equal one.

        Raises `VoucherRefused`. The delta's minimum is waived at the end of the deposit.
        """
        if self.stopped == "channel_finalized":
            raise VoucherRefused("channel-finalized", "the channel is closed")
        if self.stopped is not None:
            raise VoucherRefused("channel-finalized", "the channel is closing: no voucher is accepted any more")
        accepted = base_units_down(self.accepted)
        if amount == accepted:
            return ZERO
        if amount < accepted:
            raise VoucherRefused("below-accepted", f"a voucher of {accepted} was accepted before this one of {amount}")
        if amount > self.deposit:
            raise VoucherRefused("amount-exceeds-deposit", f"the voucher exceeds the deposit of {self.deposit}")
        if amount - accepted < min_delta and amount != self.deposit:
            raise VoucherRefused("delta-too-small", f"a voucher must add at least {min_delta}")
        credit = NanoUsd(nano_usd_of(amount) - self.accepted)
        self.accepted = nano_usd_of(amount)
        return credit

    def spend(self, amount: NanoUsd) -> None:
        """Count a capture."""
        if amount < 0:
            raise InvariantViolated(f"a capture of {amount} on channel {self.id}")
        self.spent = NanoUsd(self.spent + amount)

    def freeze(self, amount: BaseUnits | None, signature: str | None) -> None:
        """Stop service for good, because of a close by the payer or by us.

        With the payer's closing voucher, which must cover what was spent and settled; raises `VoucherRefused`.
        """
        if self.status == "closed":
            raise VoucherRefused("channel-finalized", "the channel is closed")
        if amount is not None:
            least = max(base_units_down(self.spent), self.settled)
            if amount < least:
                raise VoucherRefused("insufficient-balance", f"a close covers at least the {least} that were spent")
            if amount > self.deposit:
                raise VoucherRefused("amount-exceeds-deposit", f"the voucher exceeds the deposit of {self.deposit}")
            if self.close_amount is None or amount > self.close_amount:
                self.close_amount, self.close_signature = amount, signature
        self.status = "closing"

    def publish(self, amount: BaseUnits) -> None:
        """Remember that a voucher of ``amount`` goes on chain, where everybody reads its signature.

        While the channel is open, it must be spent already.
        """
        if self.status == "open" and not self.close_requested_at and nano_usd_of(amount) > self.spent:
            raise InvariantViolated(f"a voucher of {amount} above what channel {self.id} spent may not go on chain")
        self.published = max(self.published, amount)
