"""What a request is billed by: the provider's report, else our count, marked as estimated."""

from typing import Any

from app import log, metrics
from app.admission import PaidRequest, Plan
from app.metering import StreamMeter, usage_from
from app.pricing.price_book import Usage
from app.pricing.quote import TokenRatio
from app.routing.candidates import Candidate

NOTHING = Usage(0, 0, estimated=True)

_log = log.get("reckoning")


def reported_usage(
    report: Any,
    *,
    request_id: str,
    request: PaidRequest,
    plan: Plan,
    candidate: Candidate,
    ratio: TokenRatio,
    text_bytes: int,
) -> Usage:
    """The usage of an answer that ended well.

    A missing report is replaced by our count. Odd reports and units without a price raise an alert; good
    ones teach the ratio of bytes to tokens.
    """
    model = candidate.model
    output_max = max(plan.output_tokens_max, model.max_output_tokens * plan.choices)
    usage, odd = usage_from(report, prompt_max=max(model.context_window, plan.prompt_tokens_max), output_max=output_max)
    if usage is None:
        counted = min(ratio.output_tokens(text_bytes), plan.output_tokens_max)
        return Usage(plan.prompt_tokens_expected, counted, estimated=True)
    for unit in (*odd, *candidate.price.unpriced(usage)):
        metrics.alerts.labels(f"usage_{unit}").inc()
        _log.warning("usage_alert", request_id=request_id, provider=candidate.provider.name, unit=unit)
    size = request.size
    if not size.images and not size.audio_bytes:
        ratio.learn_prompt(text_bytes=size.text_bytes, tokens=usage.prompt_tokens)
    if not usage.reasoning_tokens:
        ratio.learn_output(text_bytes=text_bytes, tokens=usage.completion_tokens)
    return usage


def delivered_usage(
    meter: StreamMeter, *, plan: Plan, candidate: Candidate, ratio: TokenRatio, delivered_bytes: int
) -> Usage:
    """The usage of a stream that was cut short: what was delivered, and no more."""
    counted = min(ratio.output_tokens(delivered_bytes), plan.output_tokens_max)
    report, _ = usage_from(meter.usage, prompt_max=candidate.model.context_window, output_max=plan.output_tokens_max)
    if report is None:
        return Usage(plan.prompt_tokens_expected, counted, estimated=True)
    if meter.text_bytes and delivered_bytes == meter.text_bytes:
        return report
    share = -(-report.completion_tokens * delivered_bytes // meter.text_bytes) if meter.text_bytes else 0
    return Usage(report.prompt_tokens, share, report.cached_tokens, estimated=True)
