"""Units of money and the only places where one unit becomes another.

Ledger amounts are integers in nano-USD (1e-9 USD). Prices are integers in pico-USD (1e-12 USD) per
unit (a token, an image, a second). Each unit is a `NewType`, so that mypy refuses to mix them, and
`Decimal` appears only where a person's text is parsed or shown. There are no floats.
"""

from collections.abc import Iterable
from decimal import Decimal, InvalidOperation
from typing import NewType

NanoUsd = NewType("NanoUsd", int)
PicoUsd = NewType("PicoUsd", int)
# Of a USD token with six decimals (TIP-20, USDC): 1e-6 USD. No other token is taken.
BaseUnits = NewType("BaseUnits", int)

ZERO = NanoUsd(0)
NANO_PER_USD = 10**9
PICO_PER_USD = 10**12
PICO_PER_NANO = 1000
NANO_PER_BASE_UNIT = 1000
TOKENS_PER_MILLION = 10**6
# A BIGINT holds 9.2e18; no single amount may come near the sum of many.
AMOUNT_NANO_USD_MAX = NanoUsd(10**15)
PRICE_PICO_USD_MAX = PicoUsd(10**15)
PRICE_TEXT_CHARACTERS_MAX = 40


def cost_nano_usd(lines: Iterable[tuple[int, PicoUsd]]) -> NanoUsd:
    """Cost of ``(units, price per unit)`` lines: summed exactly, then rounded **up** once.

    This is the one rounding function of the product. Raises `ValueError` for a negative line.
    """
    total_pico_usd = 0
    for units, price in lines:
        if units < 0 or price < 0:
            raise ValueError("units and prices are never negative")
        total_pico_usd += units * price
    return NanoUsd(-(-total_pico_usd // PICO_PER_NANO))


def units_affordable(available: NanoUsd, *, price: PicoUsd) -> int:
    """How many whole units ``available`` buys, rounded **down**; the price must be positive."""
    if price <= 0:
        raise ValueError("a free unit has no affordable number")
    return max(0, available * PICO_PER_NANO // price)


def nano_usd_of(amount: BaseUnits) -> NanoUsd:
    """Token base units in the ledger's unit: exact."""
    return NanoUsd(amount * NANO_PER_BASE_UNIT)


def base_units_up(amount: NanoUsd) -> BaseUnits:
    """What a client must authorise for ``amount``: rounded **up**."""
    return BaseUnits(-(-amount // NANO_PER_BASE_UNIT))


def base_units_down(amount: NanoUsd) -> BaseUnits:
    """What receipts, closes and captures say of ``amount``: rounded **down**."""
    return BaseUnits(amount // NANO_PER_BASE_UNIT)


def parse_usd(text: str) -> NanoUsd:
    """Parse an amount such as ``"5.00"`` into nano-USD, exactly.

    Raises `ValueError` for anything but a finite decimal with at most nine places.
    """
    return NanoUsd(_scaled(text, scale=NANO_PER_USD, maximum=AMOUNT_NANO_USD_MAX))


def parse_price_per_million(text: str) -> PicoUsd:
    """Parse USD per million units (as operators write token prices) into pico-USD per unit.

    One USD per million tokens is 1e-6 USD a token, which is 1e6 pico-USD: six places are exact.
    """
    return PicoUsd(_scaled(text, scale=TOKENS_PER_MILLION, maximum=PRICE_PICO_USD_MAX))


def parse_price(text: str) -> PicoUsd:
    """Parse USD per unit (an image, a second, a character) into pico-USD: twelve places are exact."""
    return PicoUsd(_scaled(text, scale=PICO_PER_USD, maximum=PRICE_PICO_USD_MAX))


def format_usd(amount: NanoUsd) -> str:
    """Exact USD decimal without an exponent and with at least two places: ``"4.999985"``."""
    sign = "-" if amount < 0 else ""
    whole, fraction = divmod(abs(amount), NANO_PER_USD)
    digits = f"{fraction:09d}".rstrip("0").ljust(2, "0")
    return f"{sign}{whole}.{digits}"


def format_price_per_million(price: PicoUsd) -> str:
    """USD per million units, exact: the inverse of `parse_price_per_million`."""
    whole, fraction = divmod(price, TOKENS_PER_MILLION)
    digits = f"{fraction:06d}".rstrip("0").ljust(2, "0")
    return f"{whole}.{digits}"


def format_price(price: PicoUsd) -> str:
    """USD per unit, exact: the inverse of `parse_price`."""
    whole, fraction = divmod(price, PICO_PER_USD)
    digits = f"{fraction:012d}".rstrip("0").ljust(2, "0")
    return f"{whole}.{digits}"


def _scaled(text: str, *, scale: int, maximum: int) -> int:
    if len(text) > PRICE_TEXT_CHARACTERS_MAX:
        raise ValueError("too many characters for an amount")
    try:
        value = Decimal(text.strip())
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is not a decimal amount") from error
    if not value.is_finite() or abs(value.adjusted()) > PRICE_TEXT_CHARACTERS_MAX:
        raise ValueError(f"{text!r} is not a decimal amount")
    numerator, denominator = value.as_integer_ratio()
    scaled, remainder = divmod(numerator * scale, denominator)
    if remainder:
        raise ValueError(f"{text!r} has more decimal places than can be kept exactly")
    if abs(scaled) > maximum:
        raise ValueError(f"{text!r} is out of range")
    return scaled
