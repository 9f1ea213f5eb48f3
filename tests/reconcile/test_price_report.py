"""Prices as people see them: tokens by the million, anything else by the unit, under the names of settings."""

from app.clock import EpochMs
from app.pricing.price_book import PriceVersion
from app.provider_settings import Prices, ProviderSettings
from app.reconcile.price_report import model_rows, price_row, shown_prices
from tests.serving import PRICE, model, sandbox

EVERY = {
    **PRICE,
    "per_image": {"1024x1024": "0.04", "1792x1024": "0.08"},
    "per_second": "0.0001",
    "per_character": "0.000015",
    "per_search_unit": "0.002",
    "per_web_search": "0.01",
}


def test_prices_are_shown_as_they_are_set() -> None:
    prices = Prices.model_validate(EVERY).in_pico_usd()
    assert shown_prices(prices) == EVERY
    assert list(shown_prices(prices))[:2] == ["input", "output"]
    # However they are kept.
    assert list(shown_prices(dict(reversed(prices.items()))))[:2] == ["input", "output"]


def test_version_has_both_prices_in_their_units() -> None:
    prices = Prices.model_validate(EVERY).in_pico_usd()
    row = price_row(PriceVersion("pv", "p", "m", 2, prices, {"second": prices["second"]}), EpochMs(0))
    assert (row["price"], row["cost"]) == (EVERY, {"per_second": "0.0001"})
    assert row["added_at"] == "1970-01-01T00:00:00.000Z"
    assert "added_at" not in price_row(PriceVersion("pv", "p", "m", 2, prices, {}))


def test_models_say_who_serves_whom_for_how_much() -> None:
    paints = model("paints", capabilities=["images"], price={"per_image": {"256x256": "0.01"}}, cost={})
    del paints["context_window"], paints["max_output_tokens"]
    settings = ProviderSettings.model_validate(sandbox(models=[paints], rails=["wallet"]))
    (row,) = model_rows([settings])
    assert row == {
        "id": "paints",
        "provider": "sandbox",
        "kind": "native",
        "rails": ["wallet"],
        "upstream_id": "paints",
        "aliases": [],
        "capabilities": ["images"],
        "context_window": None,
        "max_output_tokens": None,
        "price": {"per_image": {"256x256": "0.01"}},
        "cost": {},
    }
