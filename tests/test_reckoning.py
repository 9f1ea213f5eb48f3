from dataclasses import replace
from typing import Any, cast

import orjson
import pytest

from app import metrics
from app.admission import PaidRequest, Plan
from app.endpoints import CHAT, EMBEDDINGS, IMAGES, RERANK, TRANSCRIPTIONS, Endpoint
from app.metering import StreamMeter
from app.money import PicoUsd, parse_price_per_million
from app.pricing.price_book import PriceVersion, Usage
from app.pricing.quote import PromptSize, TokenRatio
from app.reckoning import Billed, answered_usage, delivered_usage, reported_usage
from app.routing.candidates import Candidate
from app.settings import ModelSettings
from app.upstream.provider import Provider
from tests.serving import model

PLAN = Plan(
    prompt_tokens_max=1000,
    prompt_tokens_expected=25,
    limit=100,
    limit_defaulted=False,
    choices=1,
    input_price=PicoUsd(1_000_000),
    output_price=PicoUsd(4_000_000),
    window=100,
    whole=False,
)


class Named:
    name = "p"
    kind = "native"


def candidate(**prices: str) -> Candidate:
    settings = ModelSettings.model_validate(model("m", max_output_tokens=500, context_window=2000))
    own = {"input": "1.00", "output": "4.00", **prices}
    version = PriceVersion("v", "p", "m", 1, {unit: parse_price_per_million(text) for unit, text in own.items()}, {})
    return Candidate(cast("Provider", Named()), settings, version)


def request(*, images: int = 0) -> PaidRequest:
    return PaidRequest(CHAT, "/", "m", {}, b"", True, PromptSize(100, images=images))


def reported(usage: Any, *, ratio: TokenRatio | None = None, text_bytes: int = 40, images: int = 0) -> Usage:
    billed = Billed("r", request(images=images), PLAN, candidate(), ratio or TokenRatio())
    return reported_usage(usage, billed, text_bytes=text_bytes)


def streamed(text: str, usage: dict[str, int] | None = None) -> StreamMeter:
    meter = StreamMeter(model="m", final_usage=False)
    meter.read(orjson.dumps({"choices": [{"index": 0, "delta": {"content": text}}], "usage": usage}))
    return meter


def delivered(meter: StreamMeter, delivered_bytes: int, *, ratio: TokenRatio | None = None) -> Usage:
    billed = Billed("r", request(images=0), PLAN, candidate(), ratio or TokenRatio())
    return delivered_usage(meter, billed, delivered_bytes=delivered_bytes)


def usage(prompt: int, completion: int, **details: Any) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        **details,
    }


@pytest.fixture
def alerted() -> dict[str, float]:
    """How many alerts of a kind were raised since the test began."""

    class Raised(dict[str, float]):
        def __missing__(self, kind: str) -> float:
            value = metrics.registry.get_sample_value("farebox_alerts_total", {"kind": kind}) or 0.0
            return value - before.get(kind, 0.0)

    before = {
        sample.labels["kind"]: sample.value
        for metric in metrics.alerts.collect()
        for sample in metric.samples
        if sample.name.endswith("_total")
    }
    return Raised()


class TestReported:
    def test_report_is_taken_as_it_is(self) -> None:
        assert reported(usage(11, 5)) == Usage(11, 5)

    @pytest.mark.parametrize("nothing", [None, {}, {"prompt_tokens": 3}, "many"])
    def test_missing_report_is_counted_and_marked(self, nothing: Any) -> None:
        assert reported(nothing) == Usage(25, 10, estimated=True)

    def test_zero_is_a_report(self) -> None:
        assert reported(usage(0, 0)) == Usage(0, 0)

    def test_count_is_by_the_learned_ratio_and_never_beyond_the_limit(self) -> None:
        assert reported(None, ratio=TokenRatio(output=2.0)).completion_tokens == 20
        assert reported(None, text_bytes=10_000).completion_tokens == PLAN.output_tokens_max

    def test_overrun_is_billed_up_to_what_the_model_can_produce(self, alerted: dict[str, float]) -> None:
        assert reported(usage(11, 300)) == Usage(11, 300)
        assert alerted["usage_output"] == 0
        assert reported(usage(11, 900)) == Usage(11, 500)
        assert alerted["usage_output"] == 1

    def test_unit_without_a_price_raises_an_alert(self, alerted: dict[str, float]) -> None:
        reported(usage(11, 5, prompt_tokens_details={"cached_tokens": 3}))
        assert alerted["usage_cached_input"] == 1

    def test_good_reports_teach_the_ratio(self) -> None:
        ratio = TokenRatio()
        for _ in range(200):
            reported(usage(50, 20), ratio=ratio, text_bytes=40)
        assert ratio.output == pytest.approx(2.0, rel=0.01)
        assert ratio.prompt == pytest.approx(2.0, rel=0.01)

    def test_good_reports_teach_how_long_answers_are(self) -> None:
        ratio = TokenRatio()
        for _ in range(200):
            reported(usage(50, 20), ratio=ratio)
        assert ratio.answer == pytest.approx(20, rel=0.01)
        assert (ratio.answer_tokens(limit=5), ratio.answer_tokens(limit=1000)) == (5, 20)

    def test_reports_that_hide_tokens_or_media_teach_no_ratio(self) -> None:
        ratio = TokenRatio()
        reported(usage(11, 20, completion_tokens_details={"reasoning_tokens": 9}), ratio=ratio)
        reported(usage(50, 0), ratio=ratio, images=1)
        reported(None, ratio=ratio)
        assert (ratio.prompt, ratio.output) == (TokenRatio().prompt, TokenRatio().output)


class TestDelivered:
    def test_nothing_delivered_costs_the_prompt(self) -> None:
        assert delivered(streamed("x" * 40), 0) == Usage(25, 0, estimated=True)

    @pytest.mark.parametrize(("size", "tokens"), [(1, 1), (4, 1), (5, 2), (40, 10)])
    def test_what_was_delivered_is_counted_up(self, size: int, tokens: int) -> None:
        assert delivered(streamed("x" * 40), size) == Usage(25, tokens, estimated=True)

    def test_report_of_all_that_was_delivered_counts(self) -> None:
        assert delivered(streamed("x" * 40, usage(11, 7)), 40) == Usage(11, 7)

    @pytest.mark.parametrize(("size", "tokens"), [(0, 0), (1, 1), (20, 4), (39, 7)])
    def test_report_of_more_than_was_delivered_counts_by_its_share(self, size: int, tokens: int) -> None:
        assert delivered(streamed("x" * 40, usage(11, 7)), size) == Usage(11, tokens, estimated=True)

    def test_delivered_is_never_counted_beyond_the_limit(self) -> None:
        assert delivered(streamed("x" * 4000), 4000).completion_tokens == PLAN.output_tokens_max


def answered(
    endpoint: Endpoint, body: dict[str, Any], *, units: dict[str, int], expected: dict[str, int] | None = None
) -> Usage:
    asked = replace(request(), endpoint=endpoint, stream=False, units=units, units_expected=expected or {})
    plan = replace(PLAN, limit=0, prompt_tokens_max=0, prompt_tokens_expected=0) if units else PLAN
    return answered_usage(body, Billed("r", asked, plan, candidate(), TokenRatio()), text_bytes=0)


class TestUnits:
    def test_images_bill_by_how_many_came(self) -> None:
        body = {"data": [{"b64_json": ""}, {"b64_json": ""}]}
        size = "image:1024x1024"
        assert answered(IMAGES, body, units={size: 3}).units == ((size, 2),)
        assert answered(IMAGES, {"data": body["data"] * 9}, units={size: 3}).units == ((size, 3),)

    @pytest.mark.parametrize(
        ("body", "seconds"),
        [
            ({"usage": {"type": "duration", "seconds": 3}}, 3),
            ({"usage": {"seconds": 2}, "duration": 9.0}, 2),
            ({"duration": 8.47}, 9),
            ({"duration": "8.470000267028809"}, 9),
            ({"duration": 0}, 0),
            ({"duration": 10**9}, 60),
        ],
    )
    def test_seconds_of_audio_bill_as_reported_rounded_up(self, body: dict[str, Any], seconds: int) -> None:
        usage = answered(TRANSCRIPTIONS, body, units={"second": 60}, expected={"second": 30})
        assert (usage.units, usage.estimated) == ((("second", seconds),), False)

    @pytest.mark.parametrize(
        "duration", [None, -1, True, "nan", "inf", "1e999", "soon", float("nan"), float("inf"), [], {}, "1" * 400]
    )
    def test_nonsense_in_place_of_seconds_is_replaced_by_what_was_expected(self, duration: Any) -> None:
        body = {"text": "", "duration": duration}
        usage = answered(TRANSCRIPTIONS, body, units={"second": 60}, expected={"second": 30})
        expected = (("second", 60), False) if duration == "1" * 400 else (("second", 30), True)
        assert (usage.units[0], usage.estimated) == expected

    def test_search_units_bill_as_reported_and_never_above_what_was_held(self) -> None:
        body = {"results": [], "meta": {"billed_units": {"search_units": 2}}}
        assert answered(RERANK, body, units={"search_unit": 3}).units == (("search_unit", 2),)
        assert answered(RERANK, body, units={"search_unit": 1}).units == (("search_unit", 1),)
        missing = answered(RERANK, {"results": []}, units={"search_unit": 3}, expected={"search_unit": 1})
        assert (missing.units, missing.estimated) == ((("search_unit", 1),), True)

    def test_embeddings_bill_their_prompt_alone(self) -> None:
        body = {"usage": {"prompt_tokens": 7, "total_tokens": 7}}
        assert answered(EMBEDDINGS, body, units={}) == Usage(7, 0)
        assert answered(EMBEDDINGS, {"usage": {"total_tokens": 7}}, units={}) == Usage(7, 0)
        assert answered(EMBEDDINGS, {}, units={}) == Usage(PLAN.prompt_tokens_expected, 0, estimated=True)

    def test_web_searches_bill_beside_tokens_and_never_above_what_was_held(self) -> None:
        asked = replace(request(), units={"web_search": 2})
        billed = Billed("r", asked, PLAN, candidate(), TokenRatio())
        report = usage(20, 30, web_searches=5)
        assert reported_usage(report, billed, text_bytes=9) == Usage(20, 30, units=(("web_search", 2),))
        made = reported_usage({"web_searches": 1}, billed, text_bytes=8)
        assert (made.units, made.estimated) == ((("web_search", 1),), True)
        unasked = Billed("r", request(), PLAN, candidate(), TokenRatio())
        assert reported_usage(report, unasked, text_bytes=9).units == ()


class TestRoundsOfAStream:
    def test_what_came_after_the_last_report_is_counted(self) -> None:
        meter = streamed("a" * 40, {"prompt_tokens": 30, "completion_tokens": 10, "total_tokens": 40})
        meter.read(orjson.dumps({"choices": [{"index": 0, "delta": {"content": "b" * 20}}]}))
        ratio = TokenRatio(output=4.0)
        assert delivered(meter, 60, ratio=ratio) == Usage(30, 15, estimated=True)
        assert delivered(meter, 50, ratio=ratio) == Usage(30, 13, estimated=True)
        assert delivered(meter, 20, ratio=ratio) == Usage(30, 5, estimated=True)
