from hypothesis import given
from hypothesis import strategies as st

from app.money import PicoUsd
from app.routing.wishes import BALANCED, CHEAPEST, FASTEST, NO_WISHES, STRATEGIES, Wishes

NAMES = st.lists(st.sampled_from("abc"), unique=True, max_size=2).map(tuple)
PRICES = st.none() | st.integers(0, 3).map(PicoUsd)
WISHES = st.builds(
    Wishes,
    strategy=st.none() | st.sampled_from(STRATEGIES),
    allow_external=st.none() | st.booleans(),
    max_input=PRICES,
    max_output=PRICES,
    order=NAMES,
    only=NAMES,
    ignore=NAMES,
    allow_fallbacks=st.none() | st.booleans(),
)


def test_nothing_said_is_balanced_with_everybody() -> None:
    assert (NO_WISHES.chosen, NO_WISHES.external, NO_WISHES.falls_back) == (BALANCED, True, True)


def test_only_cheapest_leaves_external_providers_out_unless_said() -> None:
    assert [Wishes(strategy=each).external for each in (CHEAPEST, FASTEST, BALANCED)] == [False, True, True]
    assert Wishes(strategy=CHEAPEST, allow_external=True).external
    assert not Wishes(strategy=FASTEST, allow_external=False).external


def test_request_that_says_nothing_has_its_keys_wishes() -> None:
    defaults = Wishes(strategy=CHEAPEST, only=("a",), max_input=PicoUsd(1), max_output=PicoUsd(2))
    assert NO_WISHES.over(defaults) == defaults
    assert defaults.over(None) == defaults
    assert defaults.over(NO_WISHES) == defaults


def test_each_thing_that_a_request_says_wins() -> None:
    defaults = Wishes(CHEAPEST, False, PicoUsd(1), PicoUsd(2), ("a",), ("a", "b"), ("c",), False)
    said = Wishes(FASTEST, True, PicoUsd(3), PicoUsd(4), ("d",), ("d", "e"), ("f",), True)
    assert said.over(defaults) == said
    assert Wishes(strategy=FASTEST).over(defaults).only == ("a", "b")
    assert Wishes(allow_external=True).over(defaults).chosen == CHEAPEST
    assert Wishes(allow_fallbacks=True).over(defaults).falls_back
    assert not Wishes(order=("b",)).over(defaults).falls_back


def test_price_ceilings_are_taken_together() -> None:
    defaults = Wishes(max_input=PicoUsd(1), max_output=PicoUsd(2))
    found = Wishes(max_output=PicoUsd(9)).over(defaults)
    assert (found.max_input, found.max_output) == (None, 9)


def test_who_names_providers_is_not_kept_from_them_by_the_keys_ignore() -> None:
    defaults = Wishes(ignore=("a", "b"))
    assert Wishes(only=("a",)).over(defaults).ignore == ()
    assert Wishes(only=("a",), ignore=("c",)).over(defaults).ignore == ("c",)
    assert Wishes(strategy=CHEAPEST).over(defaults).ignore == ("a", "b")


@given(WISHES, WISHES)
def test_over_invents_nothing_and_loses_nothing(said: Wishes, defaults: Wishes) -> None:
    found = said.over(defaults)
    for name in ("strategy", "allow_external", "allow_fallbacks", "order", "only", "ignore"):
        mine, other, kept = (getattr(each, name) for each in (said, defaults, found))
        assert kept == (mine if mine not in (None, ()) else kept)
        assert kept in (mine, other)
    assert (found.max_input, found.max_output) in (
        (said.max_input, said.max_output),
        (defaults.max_input, defaults.max_output),
    )
    assert found.over(defaults) == found or said.only
