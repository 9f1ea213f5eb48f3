"""Amounts and bounds: exact, and refused with what to raise."""

from collections.abc import Callable
from decimal import Decimal

import pytest
from farebox_client import LimitReached, Limits, show, usd
from farebox_client.limits import price_of
from hypothesis import given
from hypothesis import strategies as st

LIST = "qwen/qwen3.5-9b: 0.10 USD for input and 0.15 USD for output per million tokens"


@given(st.integers(0, 10**30))
def test_shown_amounts_read_back(amount: int) -> None:
    assert usd(show(amount)) == amount


@pytest.mark.parametrize(("text", "amount"), [("0.25", 250_000), ("0.000001", 1), ("3", 3_000_000), (2, 2_000_000)])
def test_amounts_are_exact(text: str | int, amount: int) -> None:
    assert usd(text) == amount


@pytest.mark.parametrize("text", ["0.0000001", "-1", "1e", "", "NaN", "Infinity", "1e60", 0.1])
def test_amounts_without_sense_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"amount|float|decimals"):
        usd(text)


def test_limits_hold_to_the_unit() -> None:
    limits = Limits(per_request=10, per_channel=20, per_day=30, per_fee=5, per_fee_native=7)
    limits.check_voucher(added=10, today=30)
    limits.check_deposit(20)
    limits.check_fee(5)
    limits.check_fee_native(7)
    refused: list[Callable[[], None]] = [
        lambda: limits.check_voucher(added=11, today=11),
        lambda: limits.check_voucher(added=1, today=31),
        lambda: limits.check_deposit(21),
        lambda: limits.check_fee(6),
        lambda: limits.check_fee_native(8),
    ]
    for check in refused:
        with pytest.raises(LimitReached, match="raise Limits"):
            check()


def test_no_limit_is_none() -> None:
    limits = Limits(per_request=None, per_channel=None, per_day=None, per_fee=None, per_fee_native=None)
    limits.check_voucher(added=2**128, today=2**128)
    limits.check_fee(2**128)
    limits.check_fee_native(2**128)
    assert limits.deposit(suggested=7, needed=9) == 9


def test_deposit_is_what_was_suggested_within_the_limit() -> None:
    limits = Limits(per_channel=100)
    assert limits.deposit(suggested=50, needed=1) == 50
    assert limits.deposit(suggested=500, needed=1) == 100
    assert limits.deposit(suggested=0, needed=60) == 60
    with pytest.raises(LimitReached, match="deposit"):
        limits.deposit(suggested=0, needed=101)


def test_prices_are_read_from_the_servers_list() -> None:
    assert price_of(LIST, "input") == Decimal("0.10")
    assert price_of(LIST, "output") == Decimal("0.15")
    assert price_of(LIST, "reasoning") is None
    assert price_of("a: 1 USD for input, b: 2.5 USD for input; 3 USD for cached_input", "input") == Decimal("2.5")


@pytest.mark.parametrize("text", [LIST, "a: 0.100 USD for input and 0.15 USD for output"])
def test_prices_up_to_the_limit_are_paid(text: str) -> None:
    Limits(prices={"input": "0.10", "output": "0.15"}).check_prices(text)


@pytest.mark.parametrize(
    "text",
    [
        "a: 0.11 USD for input and 0.15 USD for output",
        "a: 0.10 USD for input and 0.1500001 USD for output",
        "a: 0.10 USD for input",
        "a: 0.10 USD for input and 9 USD for output, 0.01 USD out",
        "a: 10.10 USD for input and 0.15 USD for output",
        "",
    ],
)
def test_prices_above_the_limit_or_not_named_are_refused(text: str) -> None:
    with pytest.raises(LimitReached, match="price"):
        Limits(prices={"input": "0.10", "output": "0.15"}).check_prices(text)
