from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.money import PicoUsd
from app.pricing.price_book import PriceVersion, Usage
from app.units import FLAT_UNITS, IMAGE_UNIT, PARENT, ROOTS, UNITS

TOKENS = st.integers(0, 10**7)
USAGES = st.builds(
    Usage,
    prompt_tokens=TOKENS,
    completion_tokens=TOKENS,
    cached_tokens=TOKENS,
    cache_write_tokens=TOKENS,
    audio_input_tokens=TOKENS,
    reasoning_tokens=TOKENS,
    audio_output_tokens=TOKENS,
)
TEXT_USAGES = st.builds(
    Usage,
    prompt_tokens=TOKENS,
    completion_tokens=TOKENS,
    cached_tokens=TOKENS,
    cache_write_tokens=TOKENS,
    reasoning_tokens=TOKENS,
)
PRICE = st.integers(0, 10**9).map(PicoUsd)
PRICES = st.fixed_dictionaries(
    {unit: PRICE for unit in ROOTS},  # noqa: C420 - one strategy for each
    optional={unit: PRICE for unit in PARENT},  # noqa: C420
)


def version(prices: dict[str, PicoUsd], *, costs: dict[str, PicoUsd] | None = None) -> PriceVersion:
    return PriceVersion("p:m:1", "p", "m", 1, prices, costs or {})


def pico(**prices: int) -> dict[str, PicoUsd]:
    return {unit: PicoUsd(price) for unit, price in prices.items()}


@given(USAGES)
def test_every_token_bills_exactly_once(usage: Usage) -> None:
    by_unit = usage.by_unit()
    inputs = sum(tokens for unit, tokens in by_unit.items() if PARENT.get(unit, unit) == "input")
    outputs = sum(tokens for unit, tokens in by_unit.items() if PARENT.get(unit, unit) == "output")
    assert set(by_unit) == set(UNITS)
    assert min(by_unit.values()) >= 0
    assert (inputs, outputs) == (usage.prompt_tokens, usage.completion_tokens)


def test_cached_and_reasoning_tokens_are_taken_out_of_their_totals() -> None:
    usage = Usage(100, 50, cached_tokens=60, cache_write_tokens=10, reasoning_tokens=45)
    prices = version(pico(input=1000, cached_input=100, cache_write=1250, output=4000, reasoning=5000))
    assert prices.charge(usage) == 30 * 1 + 6 + 12.5 + 0.5 + 5 * 4 + 45 * 5


def test_cached_audio_reported_as_both_bills_once() -> None:
    usage = Usage(10, 0, cached_tokens=8, audio_input_tokens=8)
    prices = version(pico(input=1000, cached_input=1000, audio_input=1000, output=0))
    assert prices.charge(usage) == 10


@given(USAGES, PRICES)
def test_a_unit_without_a_price_bills_at_its_parents(usage: Usage, prices: dict[str, PicoUsd]) -> None:
    spelled_out = {unit: prices.get(unit, prices[PARENT.get(unit, unit)]) for unit in UNITS}
    assert version(prices).charge(usage) == version(spelled_out).charge(usage)


def test_a_price_of_zero_is_a_price() -> None:
    prices = version(pico(input=1000, cached_input=0, output=1000))
    assert prices.charge(Usage(10, 0, cached_tokens=10)) == 0
    assert prices.unpriced(Usage(10, 5, cached_tokens=10, reasoning_tokens=5)) == ("reasoning",)


def test_usage_that_no_price_covers_is_an_error_and_not_free() -> None:
    with pytest.raises(KeyError):
        version(pico(input=1000)).charge(Usage(1, 1))
    for unit in (*FLAT_UNITS, f"{IMAGE_UNIT}1024x1024"):
        with pytest.raises(KeyError):
            version(pico(input=1000, output=1000)).charge(Usage(0, 0, units=((unit, 1),)))


@given(usage=USAGES, prices=PRICES, units=st.dictionaries(st.sampled_from(FLAT_UNITS), TOKENS), price=PRICE)
def test_what_is_no_token_bills_beside_the_tokens(
    usage: Usage, prices: dict[str, PicoUsd], units: dict[str, int], price: PicoUsd
) -> None:
    flat = version(prices | dict.fromkeys(FLAT_UNITS, price))
    both = flat.charge(replace(usage, units=tuple(units.items())))
    apart = flat.charge(Usage(0, 0, units=tuple(units.items())))
    # Each is rounded up once; together they are rounded once.
    assert 0 <= flat.charge(usage) + apart - both <= 1


def test_an_image_bills_by_its_size() -> None:
    prices = version({"image:1024x1024": PicoUsd(40_000_000_000), "image:1792x1024": PicoUsd(80_000_000_000)})
    assert prices.charge(Usage(0, 0, units=(("image:1792x1024", 2),))) == 160_000_000
    assert prices.sells(["image:1024x1024", "image:1792x1024"])
    assert not prices.sells(["image:512x512"])


def test_embeddings_bill_without_a_price_of_output() -> None:
    assert version(pico(input=1000)).charge(Usage(7, 0)) == 7


@given(USAGES, PRICES, TOKENS, TOKENS)
def test_the_ceiling_is_never_below_the_charge(
    usage: Usage, prices: dict[str, PicoUsd], prompt_slack: int, output_slack: int
) -> None:
    ceiling = version(prices).ceiling(
        prompt_tokens=usage.prompt_tokens + prompt_slack,
        output_tokens=usage.completion_tokens + output_slack,
        audio=True,
    )
    assert ceiling >= version(prices).charge(usage)


@given(TEXT_USAGES, PRICES)
def test_without_audio_the_ceiling_needs_no_audio_price(usage: Usage, prices: dict[str, PicoUsd]) -> None:
    ceiling = version(prices).ceiling(prompt_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens)
    without = {unit: price for unit, price in prices.items() if not unit.startswith("audio")}
    assert ceiling >= version(prices).charge(usage)
    assert ceiling == version(without).ceiling(
        prompt_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens, audio=True
    )


def test_the_ceiling_is_no_higher_than_the_dearest_usage() -> None:
    prices = version(pico(input=1000, cache_write=2000, output=3000, reasoning=2000))
    dearest = Usage(10, 10, cache_write_tokens=10)
    assert prices.ceiling(prompt_tokens=10, output_tokens=10) == prices.charge(dearest) == 50


def test_the_upstream_cost_of_a_unit_falls_back_to_its_parents() -> None:
    costs = version(pico(input=0, output=0), costs=pico(input=1000, cached_input=100))
    usage = Usage(30, 10, cached_tokens=10, cache_write_tokens=10, reasoning_tokens=10)
    assert costs.upstream_cost(usage) == 10 + 1 + 10


def test_our_own_machines_cost_nothing_upstream() -> None:
    assert version(pico(input=1000, output=1000)).upstream_cost(Usage(10, 10)) == 0
