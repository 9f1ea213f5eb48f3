"""What a request is billed by: the provider's report, else our count, marked as estimated.

Nobody pays for more than was held: what a provider reports beyond what the request could use is cut.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import orjson

from app import log, metrics
from app.admission import PaidRequest, Plan
from app.clock import MS_PER_SECOND
from app.errors import FareboxError
from app.ledger.operation import Captured, Outcome
from app.metering import StreamMeter, usage_from
from app.money import ZERO
from app.pricing.price_book import Usage
from app.pricing.quote import TokenRatio
from app.routing.candidates import Candidate
from app.units import IMAGE_UNIT, SEARCH_UNIT, SECOND, WEB_SEARCH

NUMBER_CHARACTERS_MAX = 32
NOTHING = Usage(0, 0, estimated=True)

_log = log.get("reckoning")


@dataclass(frozen=True, slots=True)
class Ending:
    """How serving ended, before it is captured.

    ``body`` is a whole answer; of an answer of bytes, ``tail`` is what is sent once it is captured.
    """

    status: str
    usage: Usage
    finish_reason: str | None = None
    error: FareboxError | None = None
    body: dict[str, Any] | None = None
    media_type: str | None = None
    tail: bytes = b""


@dataclass(frozen=True, slots=True)
class Billed:
    """What a usage is reckoned for: a request as it was admitted, at the provider that served it."""

    request_id: str
    request: PaidRequest
    plan: Plan
    candidate: Candidate
    ratio: TokenRatio


def answered_usage(body: Mapping[str, Any], billed: Billed, *, text_bytes: int) -> Usage:
    """The usage of a whole answer that ended well, in the units of its endpoint."""
    if billed.request.endpoint.input_tokens:
        return reported_usage(body.get("usage"), billed, text_bytes=text_bytes)
    return _unit_usage(body, billed.request)


def reported_usage(report: Any, billed: Billed, *, text_bytes: int) -> Usage:
    """The usage of an answer in tokens that ended well.

    A missing report is replaced by our count. Odd reports and units without a price raise an alert; good
    ones teach the ratio of bytes to tokens.
    """
    plan, candidate, ratio, request = billed.plan, billed.candidate, billed.ratio, billed.request
    model, units = candidate.model, _searches(report, request)
    if not request.endpoint.output_tokens:
        report = _prompt_alone(report)
    output_max = max(plan.output_tokens_max, model.output_max * plan.choices if plan.limit else 0)
    usage, odd = usage_from(report, prompt_max=max(model.context, plan.prompt_tokens_max), output_max=output_max)
    if usage is None:
        counted = min(ratio.output_tokens(text_bytes), plan.output_tokens_max)
        return Usage(_prompts_expected(plan, request, units), counted, estimated=True, units=units)
    for unit in (*odd, *candidate.price.unpriced(usage)):
        metrics.alerts.labels(f"usage_{unit}").inc()
        _log.warning("usage_alert", request_id=billed.request_id, provider=candidate.provider.name, unit=unit)
    usage, size = replace(usage, units=units) if units else usage, request.size
    if request.search is not None:
        # Rounds with our own instruction and tool teach nothing of this prompt.
        return usage
    if size.text_alone:
        ratio.learn_prompt(text_bytes=size.text_bytes, tokens=usage.prompt_tokens)
    if usage.completion_tokens:
        ratio.learn_answer(tokens=usage.completion_tokens // plan.choices)
        if not usage.reasoning_tokens:
            ratio.learn_output(text_bytes=text_bytes, tokens=usage.completion_tokens)
    return usage


def delivered_usage(meter: StreamMeter, billed: Billed, *, delivered_bytes: int) -> Usage:
    """The usage of a stream that was cut short: what was delivered, and no more.

    Of several rounds the finished ones were reported; what came after the last report is counted.
    """
    plan, candidate = billed.plan, billed.candidate
    units = _searches(meter.usage, billed.request)
    counted = min(billed.ratio.output_tokens(delivered_bytes), plan.output_tokens_max)
    report, _ = usage_from(
        meter.usage, prompt_max=max(candidate.model.context, plan.prompt_tokens_max), output_max=plan.output_tokens_max
    )
    if report is None:
        return Usage(_prompts_expected(plan, billed.request, units), counted, estimated=True, units=units)
    if meter.text_bytes and delivered_bytes == meter.text_bytes and meter.reported_bytes == meter.text_bytes:
        return replace(report, units=units)
    known = min(delivered_bytes, meter.reported_bytes)
    share = -(-report.completion_tokens * known // meter.reported_bytes) if meter.reported_bytes else 0
    share += billed.ratio.output_tokens(max(0, delivered_bytes - meter.reported_bytes))
    share = min(share, plan.output_tokens_max)
    return Usage(
        report.prompt_tokens,
        share,
        cached_tokens=report.cached_tokens,
        cache_write_tokens=report.cache_write_tokens,
        audio_input_tokens=report.audio_input_tokens,
        estimated=True,
        units=units,
    )


def spoken_usage(request: PaidRequest) -> Usage:
    """The usage of an answer of bytes, from when its provider began to answer: what it says was used up whole."""
    return Usage(0, 0, units=tuple(request.units.items()))


def _searches(report: Any, request: PaidRequest) -> tuple[tuple[str, int], ...]:
    """The web searches that were made, within what was held for them."""
    most = request.units.get(WEB_SEARCH)
    made = report.get("web_searches") if most and isinstance(report, Mapping) else None
    if most is None or not isinstance(made, int) or made <= 0:
        return ()
    return ((WEB_SEARCH, min(made, most)),)


def _prompts_expected(plan: Plan, request: PaidRequest, units: tuple[tuple[str, int], ...]) -> int:
    """The prompt, once for each round that is known to have been."""
    rounds = 1
    if request.search is not None:
        rounds += min(dict(units).get(WEB_SEARCH, 0), request.search.rounds_max)
    return min(rounds * plan.prompt_tokens_expected, plan.prompt_tokens_max)


def _prompt_alone(report: Any) -> Any:
    """A report without output: some servers give the total alone."""
    if not isinstance(report, Mapping):
        return None
    tokens = report.get("prompt_tokens", report.get("total_tokens"))
    return {"prompt_tokens": tokens, "completion_tokens": 0}


def _unit_usage(body: Mapping[str, Any], request: PaidRequest) -> Usage:
    """What was used of what is no token, as far as the provider says; else what was expected."""
    units, estimated = [], False
    for unit, most in request.units.items():
        made = _made(unit, body)
        estimated = estimated or made is None
        if made is not None and made > most:
            metrics.alerts.labels(f"usage_{unit.partition(':')[0]}").inc()
            _log.warning("usage_beyond_hold", unit=unit, reported=made, held=most)
        units.append((unit, min(most, request.units_expected.get(unit, most) if made is None else made)))
    return Usage(0, 0, estimated=estimated, units=tuple(units))


def _made(unit: str, body: Mapping[str, Any]) -> int | None:
    """How many of one unit an answer reports; None if it does not say, or nonsense."""
    if unit.startswith(IMAGE_UNIT):
        data = body.get("data")
        return len(data) if isinstance(data, list) else None
    found: Any = None
    if unit == SEARCH_UNIT:
        found = _member(_member(body.get("meta"), "billed_units"), "search_units")
    elif unit == SECOND:
        found = _member(body.get("usage"), "seconds")
        found = body.get("duration") if found is None else found
    if isinstance(found, str):
        # Whisper's own server writes its durations as text.
        found = _number(found)
    if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found) or found < 0:
        return None
    return math.ceil(found)


def _member(found: Any, name: str) -> Any:
    return found.get(name) if isinstance(found, Mapping) else None


def _number(text: str) -> float | None:
    try:
        return float(text[:NUMBER_CHARACTERS_MAX])
    except ValueError:
        return None


def outcome_of(
    ending: Ending, candidate: Candidate | None, *, first_token_s: float | None, duration_s: float
) -> Outcome:
    """The row that says how a request ended, with what its usage costs at the pinned price."""
    usage = ending.usage
    return Outcome(
        status=ending.status,
        provider=candidate.provider.name if candidate else None,
        upstream_model=candidate.upstream_model if candidate else None,
        price_version_id=candidate.price.id if candidate else None,
        tokens=(
            usage.prompt_tokens,
            usage.cached_tokens,
            usage.cache_write_tokens,
            usage.audio_input_tokens,
            usage.completion_tokens,
            usage.reasoning_tokens,
            usage.audio_output_tokens,
        ),
        estimated=usage.estimated,
        price=candidate.price.charge(usage) if candidate else ZERO,
        cost=candidate.price.upstream_cost(usage) if candidate else ZERO,
        finish_reason=ending.finish_reason,
        error_code=ending.error.code if ending.error else None,
        first_token_ms=int(first_token_s * MS_PER_SECOND) if first_token_s is not None else None,
        duration_ms=int(duration_s * MS_PER_SECOND),
        units=orjson.dumps(dict(usage.units)).decode() if usage.units else None,
    )


def count(outcome: Outcome, captured: Captured, *, request_id: str, endpoint: str) -> None:
    """Count a captured request in the metrics, and log what an operator should see of it."""
    provider = outcome.provider or "none"
    metrics.count_request(endpoint, outcome.status, provider)
    metrics.count_money(provider, charged=captured.charged, cost=outcome.cost, loss=captured.loss)
    metrics.count_tokens(prompt=outcome.tokens[0], completion=outcome.tokens[4])
    if captured.loss:
        _log.warning("usage_beyond_funds", request_id=request_id, loss_nano_usd=captured.loss)
    if outcome.status != "completed":
        _log.info("request_ended", request_id=request_id, status=outcome.status, charged_nano_usd=captured.charged)
