from typing import Any

import pytest

from app import endpoints
from app.endpoints import CHAT, EMBEDDINGS, IMAGES
from app.errors import FareboxError, InvalidRequest, NoProviderAvailable, NotFound
from app.routing.candidates import REMEMBERED_MAX, Catalog, Listing, eligible
from app.routing.facts import Facts
from app.routing.wishes import NO_WISHES, Wishes
from tests.routing.providers import FACTS, candidate, cents, names

EXTERNAL = candidate("c", kind="external", input="0.50", output="2.00")
ALL = [candidate("a"), candidate("b", kind="quota"), EXTERNAL]


@pytest.mark.parametrize(
    ("wishes", "left"),
    [
        (NO_WISHES, ["a", "b", "c"]),
        (Wishes(strategy="fastest"), ["a", "b", "c"]),
        (Wishes(strategy="cheapest"), ["a", "b"]),
        (Wishes(strategy="cheapest", allow_external=True), ["a", "b", "c"]),
        (Wishes(allow_external=False), ["a", "b"]),
        (Wishes(ignore=("a",)), ["b", "c"]),
        (Wishes(only=("b", "c")), ["b", "c"]),
        (Wishes(only=("b", "c"), ignore=("c",)), ["b"]),
        (Wishes(order=("c", "a")), ["a", "b", "c"]),
        (Wishes(allow_fallbacks=False), ["a", "b", "c"]),
        (Wishes(order=("c", "nobody"), allow_fallbacks=False), ["c"]),
        (Wishes(max_input=cents(100), max_output=cents(400)), ["a", "b", "c"]),
        (Wishes(max_input=cents(99), max_output=cents(400)), ["c"]),
        (Wishes(max_input=cents(100), max_output=cents(399)), ["c"]),
        (Wishes(max_input=cents(50), max_output=cents(200)), ["c"]),
        (Wishes(max_output=cents(399)), ["c"]),
    ],
)
@pytest.mark.parametrize("kind", [list, Listing])
def test_wishes_leave_candidates_in_their_order(kind: Any, wishes: Wishes, left: list[str]) -> None:
    found = kind(ALL)
    assert names(eligible(found, FACTS, wishes)) == left
    assert names(eligible(found, FACTS, wishes)) == left


@pytest.mark.parametrize(
    "wishes",
    [
        Wishes(only=("nobody",)),
        Wishes(ignore=("a", "b", "c")),
        Wishes(order=("nobody",), allow_fallbacks=False),
        Wishes(only=("c",), allow_external=False),
    ],
)
def test_wishes_that_leave_nobody_are_refused(wishes: Wishes) -> None:
    with pytest.raises(NoProviderAvailable) as caught:
        eligible(ALL, FACTS, wishes)
    assert caught.value.code == "no_provider_available"


def test_cheapest_that_finds_only_external_providers_says_how_to_allow_them() -> None:
    with pytest.raises(NoProviderAvailable, match="allow_external"):
        eligible([EXTERNAL], FACTS, Wishes(strategy="cheapest"))


def test_price_ceiling_below_everybody_names_the_nearest() -> None:
    with pytest.raises(NoProviderAvailable) as caught:
        eligible(ALL, FACTS, Wishes(max_input=cents(1), max_output=cents(1)))
    assert caught.value.code == "no_provider_under_price"
    assert "0.50 USD for input and 2.00 USD for output" in caught.value.message


def test_price_ceiling_counts_only_those_that_are_allowed() -> None:
    with pytest.raises(NoProviderAvailable) as caught:
        eligible(ALL, FACTS, Wishes(allow_external=False, max_input=cents(50), max_output=cents(200)))
    assert "1.00 USD for input" in caught.value.message


def test_wishes_bind_a_single_candidate_too() -> None:
    assert names(eligible(ALL[:1], FACTS)) == ["a"]
    with pytest.raises(NoProviderAvailable):
        eligible(ALL[:1], FACTS, Wishes(ignore=("a",)))


def test_only_who_can_do_what_is_needed_is_left() -> None:
    found = [
        candidate("plain", capabilities=["chat"]),
        candidate("tools", capabilities=["chat", "tools"]),
        candidate("all", capabilities=["chat", "tools", "vision"]),
        candidate("wallets", rails=("wallet",)),
        candidate("embedder", capabilities=["embeddings"]),
        candidate("other", endpoints=(EMBEDDINGS.name,)),
    ]
    assert names(eligible(found, FACTS)) == ["plain", "tools", "all"]
    assert names(eligible(found, Facts(CHAT, frozenset({"tools"})))) == ["tools", "all"]
    assert names(eligible(found, Facts(CHAT, frozenset({"tools", "vision"})))) == ["all"]
    assert names(eligible(found, Facts(CHAT, rail="wallet"))) == ["plain", "tools", "all", "wallets"]


def refusal(facts: Facts, *changes: dict[str, Any]) -> FareboxError:
    with pytest.raises(InvalidRequest) as caught:
        eligible([candidate(f"p{number}", **each) for number, each in enumerate(changes)], facts)
    return caught.value


@pytest.mark.parametrize(
    ("facts", "changes", "code", "param"),
    [
        (Facts(EMBEDDINGS), [{}], "model_not_capable", "model"),
        (Facts(CHAT), [{"endpoints": ()}], "model_not_capable", "model"),
        (Facts(CHAT, frozenset({"vision"})), [{}], "model_not_capable", "messages"),
        (Facts(CHAT, frozenset({"tools"})), [{"capabilities": ["chat"]}], "model_not_capable", "tools"),
        (Facts(CHAT, frozenset({"json"})), [{}], "model_not_capable", "response_format"),
        (Facts(CHAT, search=True), [{}], "model_not_capable", "web_search"),
        (Facts(CHAT), [{"output": None}], "unit_not_sold", "model"),
        (Facts(CHAT, units={"web_search": 1}), [{}], "unit_not_sold", "web_search"),
        (
            Facts(IMAGES, units={"image:64x64": 1}),
            [{"endpoints": [IMAGES.name], "capabilities": ["images"], "price": {"per_image": {"32x32": "1"}}}],
            "size_not_sold",
            "size",
        ),
        (Facts(CHAT, rail="wallet"), [{"rails": ("api_key",)}], "rail_not_accepted", "model"),
        # One can do the one, the other the other: nobody can do both.
        (
            Facts(CHAT, frozenset({"tools"}), rail="wallet"),
            [{"rails": ("api_key",)}, {"capabilities": ["chat"]}],
            "rail_not_accepted",
            "model",
        ),
    ],
)
def test_what_no_provider_of_the_model_can_do_is_refused_by_name(
    facts: Facts, changes: list[dict[str, Any]], code: str, param: str
) -> None:
    error = refusal(facts, *changes)
    assert (error.status, error.code, error.param) == (400, code, param)


@pytest.mark.parametrize("kind", [list, Listing])
def test_unit_without_a_price_is_not_sold_by_that_provider(kind: Any) -> None:
    found = kind([candidate("a"), candidate("b", units={"web_search": 10}), candidate("c", units={"web_search": 0})])
    assert names(eligible(found, Facts(CHAT, units={"web_search": 1}))) == ["b", "c"]
    assert names(eligible(found, FACTS)) == ["a", "b", "c"]


def test_kind_of_token_without_a_price_has_its_parents() -> None:
    assert names(eligible([candidate("a")], Facts(CHAT, units={"audio_input": 5}))) == ["a"]


@pytest.mark.parametrize("kind", [list, Listing])
def test_prompt_that_is_surely_too_long_leaves_longer_windows(kind: Any) -> None:
    found = kind([candidate("short", context_window=1000), candidate("long", context_window=2000)])
    for tokens, left in ((1000, ["short", "long"]), (1001, ["long"]), (1000, ["short", "long"]), (2000, ["long"])):
        assert names(eligible(found, Facts(CHAT, prompt_tokens_min=tokens))) == left


@pytest.mark.parametrize(
    ("endpoint", "param"),
    [(CHAT, "messages"), (endpoints.COMPLETIONS, "prompt"), (EMBEDDINGS, "input")],
)
def test_prompt_too_long_for_all_is_refused(endpoint: endpoints.Endpoint, param: str) -> None:
    found = candidate("a", context_window=1000, capabilities=[endpoint.capability], endpoints=(endpoint.name,))
    with pytest.raises(InvalidRequest, match="1000 tokens") as caught:
        eligible([found], Facts(endpoint, prompt_tokens_min=1001))
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)


def test_prompt_too_long_for_those_that_the_wishes_left_is_another_matter() -> None:
    found = [candidate("short", context_window=1000), candidate("long", context_window=2000)]
    with pytest.raises(NoProviderAvailable, match="ruled out"):
        eligible(found, Facts(CHAT, prompt_tokens_min=1500), Wishes(only=("short",)))


def test_output_limit_above_a_models_leaves_nobody_out() -> None:
    found = [candidate("less", max_output_tokens=10), candidate("more", max_output_tokens=100)]
    assert names(eligible(found, Facts(CHAT, output_limit=50))) == ["less", "more"]


def test_choosing_never_changes_the_catalog() -> None:
    catalog = Catalog(ALL)
    eligible(catalog.find("m"), FACTS).clear()
    assert names(eligible(catalog.find("m"), FACTS)) == ["a", "b", "c"]


def test_what_is_remembered_is_bounded_and_never_of_another_kind() -> None:
    listing = Listing(ALL)
    for number in range(3 * REMEMBERED_MAX):
        wishes = Wishes(ignore=("a", f"n{number}"))
        assert names(eligible(listing, FACTS, wishes)) == ["b", "c"]
        assert len(listing.remembered) <= REMEMBERED_MAX
    assert names(eligible(listing, FACTS)) == ["a", "b", "c"]


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
