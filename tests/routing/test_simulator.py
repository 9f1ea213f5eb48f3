"""The simulator and its plots, on a shorter run: the same numbers each time, and the difference that routing makes."""

from xml.etree import ElementTree

import pytest

from bench.routing_plots import lines, scatter
from bench.routing_simulator import Done, simulate, summary, table
from bench.routing_traffic import PROVIDERS, arrivals

LENGTH_S = 300.0
SEED = 5
SVG = "{http://www.w3.org/2000/svg}"


def test_traffic_is_the_same_for_the_same_seed_and_has_a_long_tail() -> None:
    found = arrivals(SEED, length_s=LENGTH_S)
    assert found == arrivals(SEED, length_s=LENGTH_S)
    assert found != arrivals(SEED + 1, length_s=LENGTH_S)
    prompts = sorted(each.prompt for each in found)
    assert prompts[len(prompts) * 99 // 100] > 8 * prompts[len(prompts) // 2]


def test_simulation_is_the_same_for_the_same_seed() -> None:
    assert simulate("balanced", SEED, length_s=60) == simulate("balanced", SEED, length_s=60)


@pytest.fixture(scope="module")
def runs() -> dict[str, list[Done]]:
    return {name: simulate(name, SEED, length_s=LENGTH_S) for name in ("cheapest", "fastest", "balanced", "random")}


def test_every_request_ends_once_at_a_provider_that_there_is(runs: dict[str, list[Done]]) -> None:
    names = {each.name for each in PROVIDERS}
    for done in runs.values():
        assert [each.at_s for each in done] == [each.at_s for each in arrivals(SEED, length_s=LENGTH_S)]
        served = [each for each in done if each.served_by is not None]
        assert {each.served_by for each in served} <= names
        assert all(0 < each.first_byte_s <= each.total_s and each.pico_usd > 0 for each in served)


def test_strategies_do_what_they_are_named_for(runs: dict[str, list[Done]]) -> None:
    found = {name: summary(name, done) for name, done in runs.items()}
    assert min(found.values(), key=lambda each: each.usd_per_thousand).policy == "cheapest"
    assert min(found.values(), key=lambda each: each.total_s[0]).policy == "fastest"
    assert found["balanced"].usd_per_thousand < found["random"].usd_per_thousand
    assert found["balanced"].attempts < found["random"].attempts
    assert len(table(list(found.values())).splitlines()) == 1 + len(found)


def test_plots_are_svg_with_a_name_for_everything() -> None:
    drawn = scatter([("a", 1.0, 2.0), ("b", 1.01, 2.02), ("<c>", 0.0, 0.0)], x="x", y="y", title="t")
    texts = {element.text: element for element in ElementTree.fromstring(drawn).iter(f"{SVG}text")}
    assert {"a", "b", "<c>", "t", "x", "y"} <= set(texts)
    assert texts["a"].get("y") != texts["b"].get("y")
    plot = ElementTree.fromstring(lines({"a": [0, 0], "b": [0, 3]}, x="x", y="y", title="t", marks=[(0, 1, "down")]))
    assert len(list(plot.iter(f"{SVG}polyline"))) == 2
    assert "down" in {element.text for element in plot.iter(f"{SVG}text")}
