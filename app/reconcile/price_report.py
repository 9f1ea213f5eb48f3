"""Models and prices as operators see them, in USD per million tokens. Pure."""

from collections.abc import Iterable
from typing import Any

from app.clock import EpochMs, to_rfc3339
from app.money import format_price_per_million
from app.pricing.price_book import PriceVersion
from app.settings import ProviderSettings


def price_row(version: PriceVersion, added_at: EpochMs | None = None) -> dict[str, Any]:
    """One price version, and when it was added."""
    row: dict[str, Any] = {
        "id": version.id,
        "provider": version.provider,
        "model": version.model,
        "version": version.version,
        "price": {unit: format_price_per_million(price) for unit, price in version.prices.items()},
        "cost": {unit: format_price_per_million(price) for unit, price in version.costs.items()},
    }
    if added_at is not None:
        row["added_at"] = to_rfc3339(added_at)
    return row


def model_rows(providers: Iterable[ProviderSettings]) -> list[dict[str, Any]]:
    """Every model of the configuration, once per provider that serves it."""
    return [
        {
            "id": model.id,
            "provider": provider.name,
            "kind": provider.kind,
            "upstream_id": model.upstream_id or model.id,
            "aliases": list(model.aliases),
            "capabilities": list(model.capabilities),
            "context_window": model.context_window,
            "max_output_tokens": model.max_output_tokens,
            "price": model.price.model_dump(exclude_none=True),
            "cost": model.cost.model_dump(exclude_none=True),
        }
        for provider in providers
        for model in provider.models
    ]
