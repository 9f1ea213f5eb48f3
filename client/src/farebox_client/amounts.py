"""Money: integers of token base units. `Decimal` is for reading and showing alone. Pure.

Every token that is taken is a USD token with six decimals, so one base unit is 1e-6 USD.
"""

from decimal import Decimal, InvalidOperation, localcontext

DECIMALS = 6
BASE_UNITS_PER_USD = 10**DECIMALS
UINT96_MAX = 2**96 - 1
UINT128_MAX = 2**128 - 1
_DIGITS_MAX = 39  # of 2**128 - 1


def usd(text: str | int | Decimal) -> int:
    """Base units of an amount of USD such as ``"0.25"``, exactly.

    Raises `ValueError` for floats, signs, and more than six decimals: money is never rounded here.
    """
    if isinstance(text, float):
        raise ValueError("write an amount as a string, as in '0.25': a float is not exact")
    try:
        value = Decimal(text)
    except InvalidOperation as error:
        raise ValueError(f"{text!r} is not an amount of USD") from error
    if not value.is_finite() or value < 0:
        raise ValueError(f"{text!r} is not an amount of USD")
    with localcontext(prec=_DIGITS_MAX + DECIMALS):
        scaled = value * BASE_UNITS_PER_USD
        whole = scaled == scaled.to_integral_value()
    # More digits than the context has would have been rounded away.
    if not whole or scaled > UINT128_MAX or len(value.as_tuple().digits) > _DIGITS_MAX:
        raise ValueError(f"{text!r} has more than {DECIMALS} decimals, or is too large")
    return int(scaled)


def show(amount: int) -> str:
    """Base units as USD: at least two decimals and no more than it takes, ``0.10`` or ``0.000123``."""
    whole, part = divmod(amount, BASE_UNITS_PER_USD)
    return f"{whole}.{f'{part:06d}'.rstrip('0').ljust(2, '0')}"


def wire_amount(value: object) -> int:
    """An amount from JSON: a string of decimal digits up to a uint128. Raises `ValueError` for all else."""
    if not isinstance(value, str) or not value.isascii() or not value.isdigit() or len(value) > _DIGITS_MAX:
        raise ValueError("an amount is a string of decimal digits")
    amount = int(value)
    if amount > UINT128_MAX:
        raise ValueError("an amount is at most a uint128")
    return amount
