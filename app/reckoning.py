"""What a request is billed by: the provider's report, else our count, marked as estimated."""

from dataclasses import dataclass
from typing import Any

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

NOTHING = Usage(0, 0, estimated=True)

_log = log.get("reckoning")


@dataclass(frozen=True, slots=True)
class Ending:
    """How serving ended, before it is captured."""

    status: str
    usage: Usage
    finish_reason: str | None = None
    error: FareboxError | None = None
    body: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Billed:
    """What a usage is reckoned for: a request as it was admitted, at the provider that served it."""

    request_id: str
    request: PaidRequest
    plan: Plan
    candidate: Candidate
    ratio: TokenRatio


def reported_usage(report: Any, billed: Billed, *, text_bytes: int) -> Usage:
    """The usage of an answer that ended well.

    A missing report is replaced by our count. Odd reports and units without a price raise an alert; good
    ones teach the ratio of bytes to tokens.
    """
    plan, candidate, ratio = billed.plan, billed.candidate, billed.ratio
    model = candidate.model
    output_max = max(plan.output_tokens_max, model.max_output_tokens * plan.choices)
    usage, odd = usage_from(report, prompt_max=max(model.context_window, plan.prompt_tokens_max), output_max=output_max)
    if usage is None:
        counted = min(ratio.output_tokens(text_bytes), plan.output_tokens_max)
        return Usage(plan.prompt_tokens_expected, counted, estimated=True)
    for unit in (*odd, *candidate.price.unpriced(usage)):
        metrics.alerts.labels(f"usage_{unit}").inc()
        _log.warning("usage_alert", request_id=billed.request_id, provider=candidate.provider.name, unit=unit)
    size = billed.request.size
    if not size.images and not size.audio_bytes:
        ratio.learn_prompt(text_bytes=size.text_bytes, tokens=usage.prompt_tokens)
    if not usage.reasoning_tokens:
        ratio.learn_output(text_bytes=text_bytes, tokens=usage.completion_tokens)
    return usage


def delivered_usage(meter: StreamMeter, billed: Billed, *, delivered_bytes: int) -> Usage:
    """The usage of a stream that was cut short: what was delivered, and no more."""
    plan, candidate = billed.plan, billed.candidate
    counted = min(billed.ratio.output_tokens(delivered_bytes), plan.output_tokens_max)
    report, _ = usage_from(meter.usage, prompt_max=candidate.model.context_window, output_max=plan.output_tokens_max)
    if report is None:
        return Usage(plan.prompt_tokens_expected, counted, estimated=True)
    if meter.text_bytes and delivered_bytes == meter.text_bytes:
        return report
    share = -(-report.completion_tokens * delivered_bytes // meter.text_bytes) if meter.text_bytes else 0
    return Usage(report.prompt_tokens, share, report.cached_tokens, estimated=True)


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
