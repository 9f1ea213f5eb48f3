from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.money import (
    AMOUNT_NANO_USD_MAX,
    PRICE_PICO_USD_MAX,
    NanoUsd,
    PicoUsd,
    cost_nano_usd,
    format_price,
    format_price_per_million,
    format_usd,
    parse_price,
    parse_price_per_million,
    parse_usd,
    units_affordable,
)

AMOUNTS = st.integers(-AMOUNT_NANO_USD_MAX, AMOUNT_NANO_USD_MAX).map(NanoUsd)
PRICES = st.integers(0, PRICE_PICO_USD_MAX).map(PicoUsd)
LINES = st.lists(st.tuples(st.integers(0, 10**9), PRICES), max_size=8)


@given(LINES)
def test_a_cost_is_rounded_up_once_for_all_its_lines(lines: list[tuple[int, PicoUsd]]) -> None:
    exact = sum((Fraction(units * price, 1000) for units, price in lines), Fraction(0))
    assert 0 <= cost_nano_usd(lines) - exact < 1


def test_lines_are_summed_before_they_are_rounded() -> None:
    assert cost_nano_usd([(1, PicoUsd(1))] * 1000) == 1
    assert cost_nano_usd([(1, PicoUsd(1))] * 1001) == 2


def test_no_lines_cost_nothing() -> None:
    assert cost_nano_usd([]) == 0


@pytest.mark.parametrize("line", [(-1, PicoUsd(1)), (1, PicoUsd(-1))])
def test_a_negative_line_is_refused(line: tuple[int, PicoUsd]) -> None:
    with pytest.raises(ValueError, match="never negative"):
        cost_nano_usd([(5, PicoUsd(5)), line])


@given(st.integers(0, AMOUNT_NANO_USD_MAX).map(NanoUsd), st.integers(1, PRICE_PICO_USD_MAX).map(PicoUsd))
def test_affordable_units_are_the_most_that_can_be_paid(available: NanoUsd, price: PicoUsd) -> None:
    units = units_affordable(available, price=price)
    assert cost_nano_usd([(units, price)]) <= available < cost_nano_usd([(units + 1, price)])


def test_debt_affords_nothing() -> None:
    assert units_affordable(NanoUsd(-5), price=PicoUsd(1)) == 0


def test_a_free_unit_has_no_affordable_number() -> None:
    with pytest.raises(ValueError, match="free"):
        units_affordable(NanoUsd(1), price=PicoUsd(0))


@given(AMOUNTS)
def test_every_amount_survives_being_shown_and_parsed(amount: NanoUsd) -> None:
    shown = format_usd(amount)
    assert parse_usd(shown) == amount
    assert Decimal(shown) * 10**9 == amount
    assert len(shown.partition(".")[2]) >= 2


@given(PRICES)
def test_every_price_survives_being_shown_and_parsed(price: PicoUsd) -> None:
    shown = format_price_per_million(price)
    assert parse_price_per_million(shown) == price
    assert Decimal(shown) * 10**6 == price
    each = format_price(price)
    assert parse_price(each) == price
    assert Decimal(each) * 10**12 == price


@pytest.mark.parametrize(
    ("amount", "shown"), [(0, "0.00"), (4_999_985_000, "4.999985"), (1, "0.000000001"), (-1_500_000_000, "-1.50")]
)
def test_amounts_are_shown_exactly_without_an_exponent(amount: int, shown: str) -> None:
    assert format_usd(NanoUsd(amount)) == shown


@pytest.mark.parametrize(
    ("text", "amount"), [("5", 5 * 10**9), (" 0.000000001 ", 1), ("1e-9", 1), ("1.10", 11 * 10**8)]
)
def test_a_decimal_is_parsed_exactly(text: str, amount: int) -> None:
    assert parse_usd(text) == amount


@pytest.mark.parametrize(
    "text",
    [
        "",
        "five",
        "NaN",
        "Infinity",
        "0.0000000001",
        "1e-400000",
        "1e400000",
        "1" * 41,
        "1000000.000000001",
        "0x10",
        "1,5",
    ],
)
def test_what_cannot_be_kept_exactly_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"decimal|characters|range"):
        parse_usd(text)


def test_a_price_finer_than_a_pico_usd_is_refused() -> None:
    with pytest.raises(ValueError, match="decimal places"):
        parse_price_per_million("0.0000001")
    with pytest.raises(ValueError, match="decimal places"):
        parse_price("0.0000000000001")
