"""When a channel is settled or closed, and with which voucher."""

from dataclasses import replace

import pytest

from app.channels.channel import ChannelView
from app.channels.outbox_store import DueChannel
from app.clock import EpochMs
from app.money import BaseUnits, NanoUsd
from app.mpp.voucher import Voucher
from app.settings import MppSettings
from app.settlement.policy import FAILED_PAUSE_MS, GRACE_MS, Limits, action_for, voucher_for_close
from tests.clocks import START_MS

DAY_MS = 86_400_000
LIMITS = Limits.of(MppSettings())
VIEW = ChannelView(
    "0x1", "open", BaseUnits(10**7), BaseUnits(0), NanoUsd(9 * 10**9), NanoUsd(0), NanoUsd(0), BaseUnits(0), 0
)


def due(
    *, payable: int | None = None, since: int = START_MS, failed_at: int | None = None, **changes: object
) -> DueChannel:
    view = replace(VIEW, **changes)  # type: ignore[arg-type]
    at = EpochMs(failed_at) if failed_at is not None else None
    if payable is None:
        return DueChannel(view, None, None, at)
    return DueChannel(view, BaseUnits(payable), EpochMs(since), at)


@pytest.mark.parametrize(
    ("channel", "action"),
    [
        (due(payable=4_999_999, spent=4_999_999_999), None),
        (due(payable=1, spent=5_000_000_000), "settle"),
        # Nothing may be published above what is spent, so that an unspent voucher waits for the close.
        (due(payable=None, spent=5_000_000_000), None),
        (due(payable=10_000, since=START_MS - DAY_MS, spent=10_000_000), "settle"),
        (due(payable=10_000, since=START_MS - DAY_MS + 1, spent=10_000_000), None),
        (due(payable=9_999, since=START_MS - DAY_MS, spent=10_000_000), None),
        # What is settled is not owed.
        (due(payable=15_000, since=START_MS - DAY_MS, spent=15_000_000, settled=10_000), None),
        (due(status="closing"), "close"),
        (due(status="closing", held=1), None),
        (due(status="closing", held=1, payable=1, spent=5_000_000_000), "settle"),
        (due(close_requested_at=START_MS // 1000), "close"),
        (due(close_requested_at=START_MS // 1000, held=1, payable=1, spent=1000), None),
        (due(close_requested_at=(START_MS - GRACE_MS // 2) // 1000 - 1, held=1, payable=1, spent=1000), "settle"),
        (due(status="closed"), None),
        (due(status="closing", failed_at=START_MS - FAILED_PAUSE_MS + 1), None),
        (due(status="closing", failed_at=START_MS - FAILED_PAUSE_MS), "close"),
    ],
)
def test_action(channel: DueChannel, action: str | None) -> None:
    assert action_for(channel, LIMITS, now=START_MS) == action


def vouchers(*amounts: int) -> list[Voucher]:
    return [Voucher("0x1", amount, f"signed {amount}") for amount in amounts]


@pytest.mark.parametrize(
    ("spent", "settled", "amounts", "amount", "signature"),
    [
        # The lowest that covers what was spent, rounded down.
        (60_999, 0, (70, 60, 90), 60, "signed 60"),
        (61_000, 0, (70, 60, 90), 70, "signed 70"),
        # Nothing is claimed: nothing is shown.
        (0, 0, (), 0, ""),
        (0, 0, (70,), 0, ""),
        (60_000, 60, (90,), 60, ""),
        (60_000, 60, (60, 90), 60, "signed 60"),
        (50_000, 60, (55, 90), 60, ""),
    ],
)
def test_voucher_for_a_close(spent: int, settled: int, amounts: tuple[int, ...], amount: int, signature: str) -> None:
    view = replace(VIEW, spent=NanoUsd(spent), settled=BaseUnits(settled))
    found = voucher_for_close(view, [None, *vouchers(*amounts)])
    assert found is not None
    assert (found.cumulative_amount, found.signature) == (amount, signature)


def test_close_without_a_voucher_that_covers_it_is_impossible() -> None:
    assert voucher_for_close(replace(VIEW, spent=NanoUsd(61_000)), vouchers(60)) is None
