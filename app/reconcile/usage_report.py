"""Usage as JSON and CSV: exact USD decimals, and for payers only what is theirs to know. Pure."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import orjson

from app.clock import EpochMs, to_rfc3339
from app.money import NanoUsd, format_usd
from app.reconcile.usage_store import Attempt, RequestUsage, UsageSum

# A spreadsheet would take a cell that begins so for a formula.
FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


_OF_REQUEST = (
    "id",
    "created_at",
    "status",
    "model",
    "endpoint",
    "stream",
    "key_id",
    "provider",
    "prompt_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "audio_input_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "audio_output_tokens",
    "units",
    "estimated",
    "cost",
    "finish_reason",
    "error_code",
    "first_token_ms",
    "duration_ms",
    "finished_at",
    "price_version_id",
)
_OF_SUM = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens", "cost")
_AMOUNTS_OF_OPERATOR = ("price", "loss", "provider_cost")


def request_columns(*, operator: bool) -> Sequence[str]:
    """The members of `request_row`, in their order."""
    return (*_OF_REQUEST, "account_id", "upstream_model", *_AMOUNTS_OF_OPERATOR) if operator else _OF_REQUEST


def sum_columns(by: str, *, operator: bool) -> Sequence[str]:
    """The members of `sum_row`, in their order."""
    group = (by, "label") if by == "key" else (by,)
    return (*group, *_OF_SUM, *_AMOUNTS_OF_OPERATOR) if operator else (*group, *_OF_SUM)


def request_row(usage: RequestUsage, *, operator: bool) -> dict[str, Any]:
    """One request; ``operator`` adds who paid, and what it cost us."""
    row: dict[str, Any] = {
        "id": usage.id,
        "created_at": to_rfc3339(usage.created_at_ms),
        "status": usage.status,
        "model": usage.model,
        "endpoint": usage.endpoint,
        "stream": usage.stream,
        "key_id": usage.key_id,
        "provider": usage.provider,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "cache_write_tokens": usage.cache_write_tokens,
        "audio_input_tokens": usage.audio_input_tokens,
        "completion_tokens": usage.completion_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "audio_output_tokens": usage.audio_output_tokens,
        "units": orjson.loads(usage.units) if usage.units else {},
        "estimated": usage.estimated,
        "cost": format_usd(usage.charged),
        "finish_reason": usage.finish_reason,
        "error_code": usage.error_code,
        "first_token_ms": usage.first_token_ms,
        "duration_ms": usage.duration_ms,
        "finished_at": _moment(usage.finished_at_ms),
        "price_version_id": usage.price_version_id,
    }
    if operator:
        row["account_id"] = usage.account_id
        row["upstream_model"] = usage.upstream_model
        row |= _operator_amounts(usage)
    return row


def sum_row(total: UsageSum, *, by: str, operator: bool, labels: Mapping[str, str] | None = None) -> dict[str, Any]:
    """One group; by key, its label too."""
    row: dict[str, Any] = {by: total.group}
    if labels is not None:
        row["label"] = labels.get(total.group, "")
    row |= {
        "requests": total.requests,
        "prompt_tokens": total.prompt_tokens,
        "cached_tokens": total.cached_tokens,
        "completion_tokens": total.completion_tokens,
        "reasoning_tokens": total.reasoning_tokens,
        "cost": format_usd(total.charged),
    }
    return row | _operator_amounts(total) if operator else row


def total_row(totals: Sequence[UsageSum], *, operator: bool) -> dict[str, Any]:
    """All groups added up."""
    names = ("requests", "prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
    row: dict[str, Any] = {name: sum(getattr(total, name) for total in totals) for name in names}
    row["cost"] = format_usd(NanoUsd(sum(total.charged for total in totals)))
    if operator:
        for name, amount in (("price", "price"), ("loss", "loss"), ("provider_cost", "cost")):
            row[name] = format_usd(NanoUsd(sum(getattr(total, amount) for total in totals)))
    return row


def attempt_row(attempt: Attempt, *, operator: bool) -> dict[str, Any]:
    """One try at a provider."""
    row: dict[str, Any] = {
        "number": attempt.number,
        "provider": attempt.provider,
        "result": attempt.result,
        "status": attempt.status,
        "started_at": to_rfc3339(attempt.started_at_ms),
        "duration_ms": attempt.duration_ms,
    }
    if operator:
        row["upstream_model"] = attempt.upstream_model
    return row


def to_csv(rows: Iterable[Mapping[str, Any]], *, columns: Sequence[str]) -> str:
    """RFC 4180 text with a header; nothing in it is a formula to a spreadsheet."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\r\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(row.get(name)) for name in columns})
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    text = "" if value is None else orjson.dumps(value).decode() if isinstance(value, dict) else str(value)
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text


def _operator_amounts(usage: RequestUsage | UsageSum) -> dict[str, str]:
    return {
        "price": format_usd(usage.price),
        "loss": format_usd(usage.loss),
        "provider_cost": format_usd(usage.cost),
    }


def _moment(at: EpochMs | None) -> str | None:
    return to_rfc3339(at) if at is not None else None
