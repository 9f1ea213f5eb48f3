"""Draws are random, so what is said of them is counted over many, with a fixed seed and wide margins."""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise, permutations
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.endpoints import CHAT, RERANK
from app.routing.facts import Facts
from app.routing.scoring import FLOOR, cheapest, drawn, fastest, picked, seconds, totals, weights
from tests.routing.providers import FACTS, candidate, names

DRAWS = 20_000


@dataclass
class Known:
    """A standing of so many seconds, all in the first byte."""

    first_byte_s: float
    token_s: float = 0.0
    success: float = 1.0


@pytest.fixture
def rng() -> Random:
    return Random(7)


def test_total_is_of_this_request() -> None:
    found = [candidate("a", input="1.00", output="4.00"), candidate("b", input="2.00", output="0.50")]
    # USD per million tokens are pico-USD per token times a million.
    assert totals(found, Facts(CHAT, prompt_tokens_expected=10, output_tokens_expected=1)) == [14_000_000, 20_500_000]
    assert totals(found, Facts(CHAT, prompt_tokens_expected=1, output_tokens_expected=10)) == [41_000_000, 7_000_000]


def test_total_counts_what_is_no_token() -> None:
    found = [candidate("a", units={"search_unit": 500}), candidate("b", units={"search_unit": 7})]
    assert totals(found, Facts(RERANK, units={"search_unit": 3})) == [1500, 21]
    assert totals(found, Facts(CHAT, prompt_tokens_expected=1, units={"search_unit": 2})) == [1_001_000, 1_000_014]


def test_weight_falls_with_the_square_of_cost_and_with_time_and_rises_with_success() -> None:
    found = [candidate("a"), candidate("b", input="2.00", output="8.00"), candidate("c"), candidate("d")]
    known = [Known(1.0), Known(1.0), Known(3.0), Known(1.0, success=0.5)]
    first, dear, slow, flaky = weights(found, known, FACTS)
    assert first / dear == pytest.approx(4, rel=1e-3)
    assert first / slow == pytest.approx(3)
    assert first / flaky == pytest.approx(2)


def test_weight_with_units_is_the_same_formula() -> None:
    found = [candidate("a", units={"search_unit": 10**9}), candidate("b", units={"search_unit": 2 * 10**9})]
    one, two = weights(found, [Known(1.0), Known(1.0)], Facts(RERANK, units={"search_unit": 1}))
    assert one / two == pytest.approx(4, rel=1e-3)
    tokens = weights(found, [Known(1.0), Known(2.0)], FACTS)
    assert weights(found, [Known(1.0), Known(2.0)], Facts(CHAT, FACTS.needs, 0, 1000, 100, units={})) == tokens


def test_tokens_count_in_time() -> None:
    known = [Known(1.0, token_s=0.01), Known(2.0, token_s=0.001)]
    found = [candidate("a"), candidate("b")]
    few = weights(found, known, Facts(CHAT, prompt_tokens_expected=1000, output_tokens_expected=10))
    many = weights(found, known, Facts(CHAT, prompt_tokens_expected=1000, output_tokens_expected=1000))
    assert few[0] > few[1]
    assert many[0] < many[1]


@given(
    st.integers(0, 10**9), st.integers(0, 10**9), st.sampled_from(["0", "0.000001", "1000000000"]), st.floats(1e-6, 1e6)
)
def test_weights_are_finite_and_positive(prompt: int, output: int, price: str, taken: float) -> None:
    found = [candidate("a", input=price, output=price)]
    (weight,) = weights(
        found, [Known(taken, taken)], Facts(CHAT, prompt_tokens_expected=prompt, output_tokens_expected=output)
    )
    assert 0 < weight < float("inf")
    assert FLOOR > 0


def test_draws_follow_their_weights(rng: Random) -> None:
    found = Counter(drawn("abc", [6.0, 3.0, 1.0], rng, count=1)[0] for _ in range(DRAWS))
    assert [found[each] / DRAWS for each in "abc"] == pytest.approx([0.6, 0.3, 0.1], abs=0.02)


def test_later_draws_follow_the_weights_of_those_left(rng: Random) -> None:
    weighed = {"a": 6.0, "b": 3.0, "c": 1.0}
    found = Counter(tuple(drawn("abc", list(weighed.values()), rng, count=3)) for _ in range(DRAWS))
    for first, second, third in permutations("abc"):
        left = weighed[second] + weighed[third]
        expected = weighed[first] / 10 * weighed[second] / left
        assert found[first, second, third] / DRAWS == pytest.approx(expected, abs=0.02)


def test_weight_that_is_nearly_everything_does_not_keep_the_others_from_being_drawn(rng: Random) -> None:
    found = Counter(tuple(drawn("abc", [1.0, 1e-12, 2e-12], rng, count=3)) for _ in range(2000))
    assert set(found) == {("a", "b", "c"), ("a", "c", "b")}
    assert found["a", "c", "b"] / 2000 == pytest.approx(2 / 3, abs=0.05)


@given(st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=40), st.integers(1, 50), st.integers())
def test_draw_is_without_replacement(weighed: list[float], count: int, seed: int) -> None:
    found = drawn(range(len(weighed)), weighed, Random(seed), count=count)
    assert len(found) == len(set(found)) == min(count, len(weighed))


def test_cheapest_takes_those_within_a_fifth_alike_and_the_others_in_their_order(rng: Random) -> None:
    found = [
        candidate("dear", input="3.00", output="3.00"),
        candidate("low", input="1.00", output="1.00"),
        candidate("near", input="1.20", output="1.20"),
        candidate("above", input="1.21", output="1.21"),
    ]
    chains = Counter(tuple(names(cheapest(found, FACTS, rng, count=4, troubled=lambda _: False))) for _ in range(4000))
    assert set(chains) == {("low", "near", "above", "dear"), ("near", "low", "above", "dear")}
    assert chains["low", "near", "above", "dear"] / 4000 == pytest.approx(0.5, abs=0.03)
    assert len(cheapest(found, FACTS, rng, count=1, troubled=lambda _: False)) == 1


def test_cheapest_of_this_request_is_not_the_cheapest_of_another(rng: Random) -> None:
    found = [candidate("a", input="1.00", output="4.00"), candidate("b", input="2.00", output="2.00")]
    for prompt, output, first in ((1000, 10, "a"), (10, 1000, "b")):
        facts = Facts(CHAT, prompt_tokens_expected=prompt, output_tokens_expected=output)
        assert names(cheapest(found, facts, rng, count=1, troubled=lambda _: False)) == [first]


def test_cheapest_with_free_providers_asks_these_first(rng: Random) -> None:
    found = [candidate("paid"), candidate("free", input="0", output="0"), candidate("gift", input="0", output="0")]
    chain = names(cheapest(found, FACTS, rng, count=3, troubled=lambda _: False))
    assert chain[2] == "paid"


def test_cheapest_asks_the_troubled_last_among_equals_alone(rng: Random) -> None:
    found = [candidate("a"), candidate("b"), candidate("c"), candidate("dear", input="9.00")]
    for _ in range(50):
        chain = names(cheapest(found, FACTS, rng, count=4, troubled=lambda each: each.name == "b"))
        assert chain[2:] == ["b", "dear"]


def test_picked_is_any_order_alike(rng: Random) -> None:
    found = Counter(tuple(picked("abc", rng, count=2)) for _ in range(6000))
    assert len(found) == 6
    assert min(found.values()) > 850


def test_fastest_takes_the_better_of_two(rng: Random) -> None:
    expected = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    found = Counter(fastest("abcd", expected.__getitem__, rng, count=1)[0] for _ in range(DRAWS))
    # Of the six pairs, the best is in three, the next in two of the others, and the last is never taken.
    assert [found[each] / DRAWS for each in "abcd"] == pytest.approx([3 / 6, 2 / 6, 1 / 6, 0], abs=0.02)


def test_fastest_of_two_is_the_faster(rng: Random) -> None:
    assert fastest("ab", {"a": 2.0, "b": 1.0}.__getitem__, rng, count=2) == ["b", "a"]


def test_fastest_between_equals_is_even(rng: Random) -> None:
    found = Counter(fastest("abc", lambda _: 1.0, rng, count=1)[0] for _ in range(DRAWS))
    assert all(count / DRAWS == pytest.approx(1 / 3, abs=0.02) for count in found.values())


@given(st.integers(1, 30), st.integers(1, 40), st.integers())
def test_fastest_asks_each_once(size: int, count: int, seed: int) -> None:
    found = fastest(range(size), lambda each: each, Random(seed), count=count)
    assert len(found) == len(set(found)) == min(size, count)


def test_failures_count_as_time() -> None:
    assert seconds(Known(1.0, success=0.5), FACTS) == 2.0


@given(st.lists(st.sampled_from(["0", "0.50", "1.00", "1.10", "2.00"]), min_size=1, max_size=8), st.integers())
def test_cheapest_never_puts_one_that_costs_over_a_fifth_more_before_the_lowest(prices: list[str], seed: int) -> None:
    found = [candidate(f"p{number}", input=price, output=price) for number, price in enumerate(prices)]
    chain = cheapest(found, FACTS, Random(seed), count=len(found), troubled=lambda _: False)
    asked = totals(chain, FACTS)
    assert sorted(names(chain)) == sorted(names(found))
    assert asked[0] * 5 <= min(asked) * 6
    far = [total for total in asked if total * 5 > min(asked) * 6]
    assert asked[len(asked) - len(far) :] == far
    assert all(one <= two for one, two in pairwise(far))
