"""The price list of one request, in words: what a wallet is shown before it pays, and may hold us to. Pure."""

from collections.abc import Iterable, Sequence

from app.money import format_price, format_price_per_million
from app.pricing.price_book import PriceVersion
from app.units import ROOTS


def price_list(model: str, versions: Sequence[PriceVersion], *, units: Iterable[str]) -> str:
    """``model: 0.10 USD for input and 0.40 USD for output per million tokens``, each the highest of any provider.

    ``units`` are what the request may use: ``input`` and ``output``, and what is no token.
    """
    tokens, others = [], []
    for unit in units:
        price = max(version.price(unit) for version in versions)
        if unit in ROOTS:
            tokens.append(f"{format_price_per_million(price)} USD for {unit}")
        else:
            others.append(f"{format_price(price)} USD for {unit}, each")
    parts = [" and ".join(tokens) + " per million tokens"] if tokens else []
    return f"{model}: " + "; ".join([*parts, *others])
