from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.errors import InvalidRequest
from app.routing.defaults import CENTS_MAX, parameters_of, wishes_of
from app.routing.wishes import NO_WISHES, STRATEGIES, Wishes
from tests.routing.providers import cents

NAMES = st.lists(st.sampled_from(["a", "b.c", "d_e"]), unique=True, max_size=3).map(tuple)
CENTS = st.integers(0, CENTS_MAX).map(cents)
WISHES = st.builds(
    lambda ceilings, **said: Wishes(max_input=ceilings[0], max_output=ceilings[1], **said),
    ceilings=st.just((None, None)) | st.tuples(CENTS, CENTS),
    strategy=st.none() | st.sampled_from(STRATEGIES),
    allow_external=st.none() | st.booleans(),
    order=NAMES,
    only=NAMES,
    ignore=NAMES,
    allow_fallbacks=st.none() | st.booleans(),
)


def test_parameters_of_a_request_are_understood() -> None:
    said = {
        "routing_strategy": "cheapest",
        "allow_external": True,
        "max_input_price_per_million": 50,
        "max_output_price_per_million": 200,
        "provider": {"order": ["a"], "only": ["a", "b"], "ignore": ["c"], "allow_fallbacks": False},
    }
    found = wishes_of(said)
    assert found == Wishes("cheapest", True, cents(50), cents(200), ("a",), ("a", "b"), ("c",), False)
    assert parameters_of(found) == said


@given(WISHES)
def test_what_is_kept_is_read_back(wishes: Wishes) -> None:
    assert wishes_of(orjson.loads(orjson.dumps(parameters_of(wishes)))) == wishes


def test_null_is_not_said() -> None:
    assert wishes_of({"routing_strategy": None, "provider": {"only": None}}) == NO_WISHES
    assert wishes_of({"provider": None}) == NO_WISHES
    assert parameters_of(NO_WISHES) == {}


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"routing_strategy": "random"}, "routing.routing_strategy"),
        ({"routing_strategy": ["cheapest"]}, "routing.routing_strategy"),
        ({"strategy": "cheapest"}, "routing.strategy"),
        ({"timeout_ms": 5}, "routing.timeout_ms"),
        ({"allow_external": "yes"}, "routing.allow_external"),
        ({"allow_external": 1}, "routing.allow_external"),
        ({"max_input_price_per_million": 5}, "routing.max_output_price_per_million"),
        ({"max_output_price_per_million": 5}, "routing.max_input_price_per_million"),
        *(
            (
                {"max_input_price_per_million": bad, "max_output_price_per_million": 5},
                "routing.max_input_price_per_million",
            )
            for bad in (-1, True, 1.5, "5", CENTS_MAX + 1)
        ),
        ({"provider": []}, "routing.provider"),
        ({"provider": {"sort": "price"}}, "routing.provider.sort"),
        *(({"provider": {"only": bad}}, "routing.provider.only") for bad in ("a", [], [1], ["a b"], ["a"] * 65, ["é"])),
        ({"provider": {"allow_fallbacks": 0}}, "routing.provider.allow_fallbacks"),
    ],
)
def test_what_cannot_be_kept_is_refused_by_name(said: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        wishes_of(said)
    assert caught.value.param == param
