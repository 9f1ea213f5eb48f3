from typing import Any, cast

import orjson
import pytest

from app import metrics
from app.admission import PaidRequest, Plan
from app.metering import StreamMeter
from app.money import PicoUsd, parse_price_per_million
from app.pricing.price_book import PriceVersion, Usage
from app.pricing.quote import PromptSize, TokenRatio
from app.reckoning import Billed, delivered_usage, reported_usage
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
    return PaidRequest("chat", "/", "m", {}, b"", True, PromptSize(100, images=images))


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

    def test_reports_that_hide_tokens_or_media_teach_nothing(self) -> None:
        ratio = TokenRatio()
        reported(usage(11, 20, completion_tokens_details={"reasoning_tokens": 9}), ratio=ratio)
        reported(usage(50, 0), ratio=ratio, images=1)
        reported(None, ratio=ratio)
        assert ratio == TokenRatio()


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
