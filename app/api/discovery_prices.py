"""Prices as discovery says them: one line for each model, as many as there is room for."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from app.money import format_price_per_million
from app.pricing.price_book import UNITS
from app.routing.candidates import Candidate

Models = Mapping[str, Sequence[Candidate]]


def price_lines(models: Models) -> Iterator[str]:
    """``model: input 0.10, cached_input 0.02, output 0.40`` for each model, in USD per million tokens."""
    for model, candidates in models.items():
        units = [unit for unit in UNITS if any(unit in each.price.prices for each in candidates)]
        yield f"{model}: " + ", ".join(f"{unit} {_price(candidates, unit)}" for unit in units)


def _price(candidates: Sequence[Candidate], unit: str) -> str:
    """A request is charged by the provider that served it, so providers may make a range."""
    prices = sorted({each.price.price(unit) for each in candidates})
    return " to ".join(format_price_per_million(price) for price in dict.fromkeys((prices[0], prices[-1])))


def within(lines: Iterable[str], characters_max: int, *, separator: str, more: str) -> str:
    """The first lines that fit together; ``more`` is said with the number of those that do not."""
    shown: list[str] = []
    left_out = size = 0
    for line in lines:
        size += len(line) + len(separator)
        if left_out or size > characters_max:
            left_out += 1
        else:
            shown.append(line)
    return separator.join([*shown, more.format(left_out)] if left_out else shown)
