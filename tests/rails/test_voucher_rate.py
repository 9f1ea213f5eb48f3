"""Buckets of vouchers by channel."""

import pytest

from app.rails import voucher_rate
from app.rails.voucher_rate import BURST_S, VoucherRate
from tests.clocks import FakeClock

PER_SECOND = 10


def taken(rate: VoucherRate, channel_id: str) -> int:
    """How many are allowed at this moment."""
    count = 0
    while rate.allows(channel_id):
        count += 1
    return count


def test_burst_is_allowed_and_then_the_rate(clock: FakeClock) -> None:
    rate = VoucherRate(clock, per_second=PER_SECOND)
    assert taken(rate, "a") == PER_SECOND * BURST_S
    clock.advance(1000)
    assert taken(rate, "a") == PER_SECOND


def test_silence_fills_the_bucket_and_no_more(clock: FakeClock) -> None:
    rate = VoucherRate(clock, per_second=PER_SECOND)
    taken(rate, "a")
    clock.advance(3_600_000)
    assert taken(rate, "a") == PER_SECOND * BURST_S


def test_one_channel_takes_nothing_of_another(clock: FakeClock) -> None:
    rate = VoucherRate(clock, per_second=PER_SECOND)
    taken(rate, "a")
    assert rate.allows("b")
    assert not rate.allows("a")


def test_refusals_do_not_take_what_comes_in(clock: FakeClock) -> None:
    rate = VoucherRate(clock, per_second=PER_SECOND)
    taken(rate, "a")
    for _ in range(10):
        clock.advance(60)
        rate.allows("a")
    clock.advance(60)
    assert taken(rate, "a") <= 1
    clock.advance(1000)
    assert taken(rate, "a") == PER_SECOND


def test_channels_that_are_kept_are_bounded(clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(voucher_rate, "CHANNELS_MAX", 3)
    rate = VoucherRate(clock, per_second=1)
    taken(rate, "a")
    for other in ("b", "c", "d"):
        rate.allows(other)
    # Forgotten, and so full again.
    assert rate.allows("a")
