"""Models and prices as people see them: tokens in USD per million, anything else in USD per unit. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any

from app.clock import EpochMs, to_rfc3339
from app.money import PicoUsd, format_price, format_price_per_million
from app.pricing.price_book import PriceVersion
from app.settings import ProviderSettings
from app.units import IMAGE_UNIT, UNITS

PER = "per_"
PER_IMAGE = "per_image"


def shown_prices(prices: Mapping[str, PicoUsd]) -> dict[str, Any]:
    """Prices under the names that settings have for them, tokens first; an image's by its size."""
    shown: dict[str, Any] = {}
    tokens = {unit: prices[unit] for unit in UNITS if unit in prices}
    for unit, price in {**tokens, **prices}.items():
        if unit in UNITS:
            shown[unit] = format_price_per_million(price)
        elif unit.startswith(IMAGE_UNIT):
            shown.setdefault(PER_IMAGE, {})[unit.removeprefix(IMAGE_UNIT)] = format_price(price)
        else:
            shown[PER + unit] = format_price(price)
    return shown


def price_row(version: PriceVersion, added_at: EpochMs | None = None) -> dict[str, Any]:
    """One price version, and when it was added."""
    row: dict[str, Any] = {
        "id": version.id,
        "provider": version.provider,
        "model": version.model,
        "version": version.version,
        "price": shown_prices(version.prices),
        "cost": shown_prices(version.costs),
    }
    if added_at is not None:
        row["added_at"] = to_rfc3339(added_at)
    return row


def model_rows(providers: Iterable[ProviderSettings]) -> list[dict[str, Any]]:
    """Every model of the configuration, once per provider that serves it; a limit that is not set is null."""
    return [
        {
            "id": model.id,
            "provider": provider.name,
            "kind": provider.kind,
            "rails": list(provider.rails),
            "upstream_id": model.upstream_id or model.id,
            "aliases": list(model.aliases),
            "capabilities": list(model.capabilities),
            "context_window": model.context_window,
            "max_output_tokens": model.max_output_tokens,
            "price": shown_prices(model.price.in_pico_usd()),
            "cost": shown_prices(model.cost.in_pico_usd()),
        }
        for provider in providers
        for model in provider.models
    ]
