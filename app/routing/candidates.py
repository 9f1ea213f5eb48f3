"""The providers that can serve a request, in the order in which they are tried.

For now the order is the configuration's, with those that failed a moment ago at the end. What the
caller ruled out (`allow_external`, price ceilings, the `provider` object) is left out before.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from app.errors import NoProviderAvailable, NotFound
from app.money import PicoUsd, format_price_per_million
from app.pricing.price_book import PriceVersion
from app.routing.health import Health
from app.settings import ModelSettings
from app.upstream.provider import Provider

CHEAPEST = "cheapest"
# One integer cent per million tokens, in pico-USD per token.
PICO_USD_PER_CENT_PER_MILLION = 10_000
SUGGESTIONS_MAX = 5


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model as one provider serves it, with the price version that is current."""

    provider: Provider
    model: ModelSettings
    price: PriceVersion

    @property
    def upstream_model(self) -> str:
        return self.model.upstream_id or self.model.id


@dataclass(frozen=True, slots=True)
class Wishes:
    """What a caller said about routing."""

    strategy: str = "balanced"
    allow_external: bool | None = None
    max_input: PicoUsd | None = None
    max_output: PicoUsd | None = None
    order: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    allow_fallbacks: bool = True

    @property
    def external(self) -> bool:
        """Whether external providers may serve: unless said, for every strategy but `cheapest`."""
        return self.allow_external if self.allow_external is not None else self.strategy != CHEAPEST


NO_WISHES = Wishes()


class Catalog:
    """Every model by every name that clients may use."""

    def __init__(self, candidates: Iterable[Candidate]) -> None:
        self._by_id: dict[str, list[Candidate]] = {}
        self._ids: dict[str, str] = {}
        for candidate in candidates:
            self._by_id.setdefault(candidate.model.id, []).append(candidate)
            for name in (candidate.model.id, *candidate.model.aliases):
                self._ids[name] = candidate.model.id

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


def choose(candidates: Sequence[Candidate], wishes: Wishes, health: Health) -> list[Candidate]:
    """The candidates to try, in order. Raises `NoProviderAvailable` when the wishes leave none."""
    if len(candidates) == 1 and wishes is NO_WISHES:
        return list(candidates)
    allowed = [candidate for candidate in candidates if _named(candidate, wishes)]
    if not allowed:
        raise NoProviderAvailable("no provider of this model is left by `provider` and `allow_external`")
    within = [candidate for candidate in allowed if _affordable(candidate, wishes)]
    if not within:
        nearest = min(allowed, key=lambda each: each.price.price("input") + each.price.price("output"))
        raise NoProviderAvailable(
            "no provider is within max_input_price_per_million and max_output_price_per_million; the nearest asks "
            f"{format_price_per_million(nearest.price.price('input'))} USD for input and "
            f"{format_price_per_million(nearest.price.price('output'))} USD for output per million tokens",
            code="no_provider_under_price",
        )
    if wishes.order:
        rank = {name: index for index, name in enumerate(wishes.order)}
        within.sort(key=lambda each: rank.get(each.provider.name, len(rank)))
    within.sort(key=lambda each: not health.is_well(each.provider.name, each.model.id))
    return within if wishes.allow_fallbacks else within[:1]


def _named(candidate: Candidate, wishes: Wishes) -> bool:
    name = candidate.provider.name
    if candidate.provider.kind == "external" and not wishes.external:
        return False
    return name not in wishes.ignore and (not wishes.only or name in wishes.only)


def _affordable(candidate: Candidate, wishes: Wishes) -> bool:
    if wishes.max_input is not None and candidate.price.price("input") > wishes.max_input:
        return False
    return wishes.max_output is None or candidate.price.price("output") <= wishes.max_output
