"""Prices as discovery says them: one line for each model, as many as there is room for."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from app.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, IMAGES, RERANK, SPEECH, TRANSCRIPTIONS, Endpoint
from app.money import format_price, format_price_per_million
from app.routing.candidates import Candidate
from app.units import CHARACTER, IMAGE_UNIT, PARENT, SEARCH_UNIT, SECOND, UNITS, WEB_SEARCH

Models = Mapping[str, Sequence[Candidate]]

_OF_INPUT = frozenset(unit for unit in UNITS if PARENT.get(unit, unit) == "input")
# What each endpoint may bill, but for images, whose units are sizes.
_BILLED: Mapping[str, frozenset[str]] = {
    CHAT.name: frozenset((*UNITS, WEB_SEARCH)),
    COMPLETIONS.name: frozenset(UNITS),
    EMBEDDINGS.name: _OF_INPUT,
    RERANK.name: frozenset((SEARCH_UNIT,)),
    TRANSCRIPTIONS.name: frozenset((SECOND,)),
    SPEECH.name: frozenset((CHARACTER,)),
}


def billed_by(endpoint: Endpoint) -> Callable[[str], bool]:
    """Whether the endpoint may bill a unit."""
    if endpoint is IMAGES:
        return lambda unit: unit.startswith(IMAGE_UNIT)
    return _BILLED[endpoint.name].__contains__


def able(models: Models, endpoint: Endpoint, *, rail: str | None = None) -> dict[str, list[Candidate]]:
    """The models that an endpoint serves, with those of their providers that do it, for payers of one rail."""
    found = {
        model: [
            each
            for each in candidates
            if endpoint.capability in each.model.capabilities
            and endpoint.name in each.provider.endpoints
            and (rail is None or rail in each.rails)
        ]
        for model, candidates in models.items()
    }
    return {model: candidates for model, candidates in found.items() if candidates}


def price_lines(models: Models, *, billed: Callable[[str], bool] | None = None) -> Iterator[str]:
    """``model: input 0.10, cached_input 0.02, output 0.40, 0.01 per web search`` for each model.

    In USD: tokens by the million, anything else each. ``billed`` leaves units out.
    """
    for model, candidates in models.items():
        priced = dict.fromkeys(unit for each in candidates for unit in each.price.prices)
        units = [*(unit for unit in UNITS if unit in priced), *(unit for unit in priced if unit not in UNITS)]
        yield f"{model}: " + ", ".join(_said(candidates, unit) for unit in units if billed is None or billed(unit))


def _said(candidates: Sequence[Candidate], unit: str) -> str:
    """A request is charged by the provider that served it, so providers may make a range."""
    prices = sorted({each.price.price(unit) for each in candidates if each.price.sells((unit,))})
    ends = dict.fromkeys((prices[0], prices[-1]))
    if unit in UNITS:
        return f"{unit} " + " to ".join(map(format_price_per_million, ends))
    return " to ".join(map(format_price, ends)) + f" per {unit.replace(':', ' ').replace('_', ' ')}"


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
