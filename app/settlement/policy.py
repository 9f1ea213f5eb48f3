"""When a channel is settled or closed, and with which voucher. Pure.

A settlement pays its voucher in full, so only what is spent already is settled. A close captures what
was spent, and shows the lowest voucher that covers it: what is published proves nothing any more.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from app.channels.channel import ChannelView
from app.channels.outbox_store import DueChannel
from app.clock import MS_PER_SECOND, EpochMs
from app.money import BaseUnits, NanoUsd, nano_usd_of, parse_usd
from app.mpp.voucher import Voucher
from app.settings import MppSettings

# After a settlement was given up, its channel is left alone for so long: an operator was told.
FAILED_PAUSE_MS = 300_000
# Escrows wait at least 15 minutes after a payer's request. Requests that still run are given half of it.
GRACE_MS = 900_000

Action = Literal["settle", "close"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What is owed before it is settled."""

    exposure_max: NanoUsd
    settle_min: NanoUsd
    settle_after_ms: int

    @classmethod
    def of(cls, settings: MppSettings) -> "Limits":
        """From the settings."""
        return cls(
            parse_usd(settings.exposure_max), parse_usd(settings.settle_min), settings.settle_after_s * MS_PER_SECOND
        )

    @property
    def least(self) -> NanoUsd:
        """With less than this owed, and no close in sight, nothing is ever settled."""
        return max(min(self.exposure_max, self.settle_min), NanoUsd(1))


def action_for(due: DueChannel, limits: Limits, *, now: EpochMs) -> Action | None:
    """What to do about a channel that nothing is under way for."""
    view = due.view
    if view.status == "closed" or (due.failed_at is not None and now - due.failed_at < FAILED_PAUSE_MS):
        return None
    stopping = view.status == "closing" or view.close_requested_at != 0
    if stopping and not view.held:
        return "close"
    payable = NanoUsd(nano_usd_of(due.payable) - nano_usd_of(view.settled)) if due.payable is not None else NanoUsd(0)
    if payable <= 0 or due.payable_since is None:
        return None
    if view.close_requested_at and now - view.close_requested_at * MS_PER_SECOND > GRACE_MS // 2:
        # What runs on may run on past the grace period, and then all of it would be the payer's.
        return "settle"
    if view.spent - nano_usd_of(view.settled) >= limits.exposure_max:
        return "settle"
    old = now - due.payable_since >= limits.settle_after_ms
    return "settle" if old and payable >= limits.settle_min else None


def voucher_for_close(view: ChannelView, vouchers: Iterable[Voucher | None]) -> Voucher | None:
    """The lowest of ``vouchers`` that covers what was spent; None if none does.

    Where nothing was spent beyond what is settled, nothing is claimed, which needs no signature.
    """
    least = max(view.spent_cumulative, view.settled)
    covering = [voucher for voucher in vouchers if voucher is not None and voucher.cumulative_amount >= least]
    lowest = min(covering, key=lambda voucher: voucher.cumulative_amount, default=None)
    if least > view.settled or (lowest is not None and lowest.cumulative_amount == least):
        return lowest
    return Voucher(view.id, BaseUnits(least), "")
