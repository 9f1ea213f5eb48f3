"""The providers that can serve a request at all, whatever their state: the filter before the router.

A challenge promises the prices of all that are left here, so this depends on nothing but the
configuration and the request. Which of them is asked first is decided by `app.routing.router`.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from app.endpoints import CHAT, COMPLETIONS
from app.errors import InvalidRequest, NoProviderAvailable, NotFound
from app.money import ZERO, PicoUsd, format_price_per_million
from app.pricing.price_book import PriceVersion
from app.provider_settings import ModelSettings
from app.routing.facts import Facts
from app.routing.wishes import (
    BALANCED,
    CHEAPEST,
    FASTEST,
    NO_WISHES,
    PICO_USD_PER_CENT_PER_MILLION,
    STRATEGIES,
    Wishes,
)
from app.units import IMAGE_UNIT, WEB_SEARCH
from app.upstream.provider import Provider

__all__ = [
    "BALANCED",
    "CHEAPEST",
    "FASTEST",
    "NO_WISHES",
    "PICO_USD_PER_CENT_PER_MILLION",
    "STRATEGIES",
    "Candidate",
    "Catalog",
    "Listing",
    "Wishes",
    "eligible",
]

SUGGESTIONS_MAX = 5
NAMES_SHOWN_MAX = 20
# Kinds of requests of one model whose candidates are remembered. Callers choose these, so they are bounded.
REMEMBERED_MAX = 256
EXTERNAL = "external"
RAILS = frozenset({"api_key", "wallet"})
# The parameter that asks for a capability.
_ASKED_BY: Mapping[str, str] = {
    "tools": "tools",
    "vision": "messages",
    "audio": "messages",
    "json": "response_format",
    "reasoning": "reasoning_effort",
}
_PROMPT_PARAMETERS = {CHAT.name: "messages", COMPLETIONS.name: "prompt"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model as one provider serves it, with the price version that is current.

    The fields below ``rails`` are what routing reads of each candidate for each request.
    """

    provider: Provider
    model: ModelSettings
    price: PriceVersion
    rails: frozenset[str] = RAILS
    name: str = field(init=False, repr=False, compare=False)
    key: str = field(init=False, repr=False, compare=False)
    input: PicoUsd = field(init=False, repr=False, compare=False)
    output: PicoUsd = field(init=False, repr=False, compare=False)
    output_max: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        prices = self.price.prices
        for name, value in (
            ("name", self.provider.name),
            # Neither name can hold a line break.
            ("key", f"{self.provider.name}\n{self.model.id}"),
            ("input", prices.get("input", PicoUsd(ZERO))),
            ("output", prices.get("output", PicoUsd(ZERO))),
            ("output_max", self.model.output_max),
        ):
            object.__setattr__(self, name, value)

    @property
    def upstream_model(self) -> str:
        return self.model.upstream_id or self.model.id


class Listing(tuple[Candidate, ...]):
    """The candidates of one model. It remembers which of them suit the kinds of requests that came last."""

    remembered: dict[Hashable, tuple[list[Candidate], int]]

    def __new__(cls, candidates: Iterable[Candidate]) -> Self:
        listing = super().__new__(cls, candidates)
        listing.remembered = {}
        return listing


class Catalog:
    """Every model by every name that clients may use."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        by_id: dict[str, list[Candidate]] = {}
        self._ids: dict[str, str] = {}
        for candidate in candidates:
            by_id.setdefault(candidate.model.id, []).append(candidate)
            for name in (candidate.model.id, *candidate.model.aliases):
                self._ids[name] = candidate.model.id
        self._by_id = {model_id: Listing(found) for model_id, found in by_id.items()}

    @property
    def models(self) -> Mapping[str, Sequence[Candidate]]:
        """Candidates by model id."""
        return self._by_id

    def find(self, name: str) -> Sequence[Candidate]:
        """The candidates of the model with this id or alias. Raises `NotFound`."""
        model_id = self._ids.get(name)
        if model_id is None:
            known = ", ".join(list(self._by_id)[:SUGGESTIONS_MAX])
            message = f"no model {name[:200]!r}; there is {known}. GET /v1/models lists them all."
            raise NotFound(message, code="model_not_found", param="model")
        return self._by_id[model_id]


def eligible(candidates: Sequence[Candidate], facts: Facts, wishes: Wishes = NO_WISHES) -> list[Candidate]:
    """Those of a model's candidates that may serve a request, in their order; there is at least one.

    Raises `InvalidRequest` where none could serve such a request for anyone, and `NoProviderAvailable` where
    it is the wishes that leave none. An output limit above a model's leaves nobody out: it is clipped.
    """
    if isinstance(candidates, Listing):
        kind = (facts.endpoint.name, facts.needs, facts.rail, facts.search, tuple(facts.units), wishes)
        known = candidates.remembered.get(kind)
        if known is None:
            known = _suited(candidates, facts, wishes)
            if len(candidates.remembered) >= REMEMBERED_MAX:
                candidates.remembered.clear()
            candidates.remembered[kind] = known
    else:
        known = _suited(candidates, facts, wishes)
    suited, context_min = known
    if facts.prompt_tokens_min <= context_min:
        return suited.copy()
    return _long_enough(candidates, suited, facts)


def _suited(candidates: Sequence[Candidate], facts: Facts, wishes: Wishes) -> tuple[list[Candidate], int]:
    """What does not depend on the prompt's length, with the smallest context window of those left."""
    able = _able(candidates, facts)
    allowed = _allowed(able, wishes)
    within = [candidate for candidate in allowed if _affordable(candidate, wishes)]
    if not within:
        raise _too_dear(allowed)
    return within, min(candidate.model.context for candidate in within)


def _able(candidates: Sequence[Candidate], facts: Facts) -> list[Candidate]:
    """Those that can do what is asked, for this kind of payer, at a known price. Raises `InvalidRequest`."""
    endpoint, needs, rail = facts.endpoint, facts.needs, facts.rail
    tokens = (("input", endpoint.input_tokens), ("output", endpoint.output_tokens))
    units = {unit for unit, billed in tokens if billed} | facts.units.keys()
    able = [
        each
        for each in candidates
        if endpoint.name in each.provider.endpoints
        and rail in each.rails
        and endpoint.capability in each.model.capabilities
        and (not needs or needs.issubset(each.model.capabilities))
        and (not facts.search or each.model.searches)
        # A price of its own for each, which is quickly seen, or a parent's.
        and (each.price.prices.keys() >= units or each.price.sells(units))
    ]
    if able:
        return able
    raise _unable(candidates, facts, sorted(units))


def _unable(candidates: Sequence[Candidate], facts: Facts, units: Sequence[str]) -> InvalidRequest:
    """What stands in the way: the first thing that no candidate has beside those before it."""
    endpoint, model_id = facts.endpoint, candidates[0].model.id
    left = [
        each
        for each in candidates
        if endpoint.name in each.provider.endpoints and endpoint.capability in each.model.capabilities
    ]
    if not left:
        message = f"model {model_id!r} is not served by this endpoint; GET /v1/models says what each model can do"
        return InvalidRequest(message, code="model_not_capable", param="model")
    for need in sorted(facts.needs):
        left = [each for each in left if need in each.model.capabilities]
        if not left:
            message = f"model {model_id!r} cannot do what this request asks of it: {need}"
            return InvalidRequest(message, code="model_not_capable", param=_ASKED_BY.get(need, "model"))
    if facts.search:
        left = [each for each in left if each.model.searches]
        if not left:
            message = f"model {model_id!r} cannot search the web here"
            return InvalidRequest(message, code="model_not_capable", param="web_search")
    for unit in units:
        left = [each for each in left if each.price.sells((unit,))]
        if not left:
            return _unsold(model_id, unit)
    payer, other = ("a wallet", "an API key") if facts.rail == "wallet" else ("an API key", "a wallet")
    message = f"no provider that can serve this with model {model_id!r} takes {payer}; pay with {other}"
    return InvalidRequest(message, code="rail_not_accepted", param="model")


def _unsold(model_id: str, unit: str) -> InvalidRequest:
    """Nothing is sold without a price, whatever a model can do."""
    if unit.startswith(IMAGE_UNIT):
        message = f"model {model_id!r} is not sold with images of {unit.removeprefix(IMAGE_UNIT)}"
        return InvalidRequest(message, code="size_not_sold", param="size")
    param = "web_search" if unit == WEB_SEARCH else "model"
    return InvalidRequest(f"model {model_id!r} has no price per {unit}", code="unit_not_sold", param=param)


def _allowed(candidates: list[Candidate], wishes: Wishes) -> list[Candidate]:
    """Those that the wishes name, or do not rule out. Raises `NoProviderAvailable`."""
    only, ignore = wishes.only, wishes.ignore
    named = [each for each in candidates if each.name not in ignore and (not only or each.name in only)]
    if wishes.order and not wishes.falls_back:
        named = [each for each in named if each.name in wishes.order]
    allowed = named if wishes.external else [each for each in named if each.provider.kind != EXTERNAL]
    if allowed:
        return allowed
    if named:
        message = f"only external providers are left, and they are not allowed here (strategy {wishes.chosen}); "
        raise NoProviderAvailable(message + "set allow_external to true to use them", param="allow_external")
    names = ", ".join(sorted(each.name for each in candidates)[:NAMES_SHOWN_MAX])
    raise NoProviderAvailable(f"`provider` leaves none of those that can serve this: {names}", param="provider")


def _affordable(candidate: Candidate, wishes: Wishes) -> bool:
    if wishes.max_input is not None and candidate.input > wishes.max_input:
        return False
    return wishes.max_output is None or candidate.output <= wishes.max_output


def _too_dear(candidates: list[Candidate]) -> NoProviderAvailable:
    nearest = min(candidates, key=lambda each: each.input + each.output)
    return NoProviderAvailable(
        "no provider is within max_input_price_per_million and max_output_price_per_million; the nearest asks "
        f"{format_price_per_million(nearest.input)} USD for input and "
        f"{format_price_per_million(nearest.output)} USD for output per million tokens",
        code="no_provider_under_price",
    )


def _long_enough(candidates: Sequence[Candidate], suited: list[Candidate], facts: Facts) -> list[Candidate]:
    """Those whose context window the prompt may fit into."""
    left = [candidate for candidate in suited if candidate.model.context >= facts.prompt_tokens_min]
    if left:
        return left
    longest = max(candidate.model.context for candidate in suited)
    message = f"the prompt cannot fit into the model's context window of {longest} tokens"
    if any(candidate.model.context >= facts.prompt_tokens_min for candidate in _able(candidates, facts)):
        raise NoProviderAvailable(f"{message}; providers with a longer one are ruled out by this request's routing")
    param = _PROMPT_PARAMETERS.get(facts.endpoint.name, "input")
    raise InvalidRequest(message, code="context_length_exceeded", param=param)
