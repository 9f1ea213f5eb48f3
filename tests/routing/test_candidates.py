from typing import Any, cast

import pytest

from app.errors import NoProviderAvailable, NotFound
from app.money import PicoUsd, parse_price_per_million
from app.pricing.price_book import PriceVersion
from app.routing.candidates import NO_WISHES, PICO_USD_PER_CENT_PER_MILLION, Candidate, Catalog, Wishes, choose
from app.routing.health import Health
from app.settings import ModelSettings
from app.upstream.provider import Provider
from tests.clocks import FakeClock
from tests.serving import model

COOLDOWN_MS = 5000


class Upstream:
    """A provider that is only ever chosen."""

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind


def candidate(
    name: str, *, kind: str = "native", input: str = "1.00", output: str = "4.00", **changes: Any
) -> Candidate:
    settings = ModelSettings.model_validate(model("m", **changes))
    prices = {"input": parse_price_per_million(input), "output": parse_price_per_million(output)}
    return Candidate(
        cast("Provider", Upstream(name, kind)), settings, PriceVersion(f"{name}:m:1", name, "m", 1, prices, {})
    )


def cents(amount: int) -> PicoUsd:
    return PicoUsd(amount * PICO_USD_PER_CENT_PER_MILLION)


def names(candidates: list[Candidate]) -> list[str]:
    return [each.provider.name for each in candidates]


@pytest.fixture
def health(clock: FakeClock) -> Health:
    return Health(clock, cooldown_s=COOLDOWN_MS / 1000)


ALL = [candidate("a"), candidate("b", kind="quota"), candidate("c", kind="external", input="0.50", output="2.00")]


@pytest.mark.parametrize(
    ("wishes", "chosen"),
    [
        (NO_WISHES, ["a", "b", "c"]),
        (Wishes(strategy="fastest"), ["a", "b", "c"]),
        (Wishes(strategy="cheapest"), ["a", "b"]),
        (Wishes(strategy="cheapest", allow_external=True), ["a", "b", "c"]),
        (Wishes(allow_external=False), ["a", "b"]),
        (Wishes(ignore=("a",)), ["b", "c"]),
        (Wishes(only=("b", "c")), ["b", "c"]),
        (Wishes(only=("b", "c"), ignore=("c",)), ["b"]),
        (Wishes(order=("c", "a")), ["c", "a", "b"]),
        (Wishes(order=("nobody", "b")), ["b", "a", "c"]),
        (Wishes(allow_fallbacks=False), ["a"]),
        (Wishes(order=("c",), allow_fallbacks=False), ["c"]),
        (Wishes(max_input=cents(100), max_output=cents(400)), ["a", "b", "c"]),
        (Wishes(max_input=cents(99), max_output=cents(400)), ["c"]),
        (Wishes(max_input=cents(100), max_output=cents(399)), ["c"]),
        (Wishes(max_input=cents(50), max_output=cents(200)), ["c"]),
    ],
)
def test_wishes_leave_and_order_candidates(wishes: Wishes, chosen: list[str], health: Health) -> None:
    assert names(choose(ALL, wishes, health)) == chosen


@pytest.mark.parametrize(
    "wishes", [Wishes(only=("nobody",)), Wishes(ignore=("a", "b", "c")), Wishes(only=("c",), allow_external=False)]
)
def test_wishes_that_leave_nobody_are_refused(wishes: Wishes, health: Health) -> None:
    with pytest.raises(NoProviderAvailable) as caught:
        choose(ALL, wishes, health)
    assert caught.value.code == "no_provider_available"


def test_price_ceiling_below_everybody_names_the_nearest(health: Health) -> None:
    with pytest.raises(NoProviderAvailable) as caught:
        choose(ALL, Wishes(max_input=cents(1), max_output=cents(1)), health)
    assert caught.value.code == "no_provider_under_price"
    assert "0.50 USD for input and 2.00 USD for output" in caught.value.message


def test_price_ceiling_counts_only_those_that_are_allowed(health: Health) -> None:
    with pytest.raises(NoProviderAvailable) as caught:
        choose(ALL, Wishes(allow_external=False, max_input=cents(50), max_output=cents(200)), health)
    assert "1.00 USD for input" in caught.value.message


def test_wishes_bind_a_single_candidate_too(health: Health) -> None:
    assert names(choose(ALL[:1], NO_WISHES, health)) == ["a"]
    with pytest.raises(NoProviderAvailable):
        choose(ALL[:1], Wishes(ignore=("a",)), health)


def test_provider_that_failed_is_tried_last_until_it_is_well(health: Health, clock: FakeClock) -> None:
    health.failed("a", "m")
    assert names(choose(ALL, NO_WISHES, health)) == ["b", "c", "a"]
    assert names(choose(ALL, Wishes(order=("a",)), health)) == ["b", "c", "a"]
    clock.advance(COOLDOWN_MS)
    assert names(choose(ALL, NO_WISHES, health)) == ["a", "b", "c"]


def test_choosing_never_changes_the_catalog(health: Health) -> None:
    catalog = Catalog(ALL)
    choose(catalog.find("m"), Wishes(order=("c", "b")), health)
    assert names(list(catalog.find("m"))) == ["a", "b", "c"]


def test_models_are_found_by_id_and_alias() -> None:
    catalog = Catalog([candidate("a", aliases=["short"]), candidate("b")])
    assert names(list(catalog.find("m"))) == names(list(catalog.find("short"))) == ["a", "b"]
    assert list(catalog.models) == ["m"]


def test_unknown_model_is_refused_with_what_there_is() -> None:
    with pytest.raises(NotFound) as caught:
        Catalog(ALL).find("x" * 1000)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "there is m" in caught.value.message
    assert len(caught.value.message) < 400


def test_upstream_model_is_the_id_where_no_other_is_set() -> None:
    assert candidate("a").upstream_model == "m"
    assert candidate("a", upstream_id="theirs").upstream_model == "theirs"
