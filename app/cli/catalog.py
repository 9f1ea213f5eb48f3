"""``farebox models`` and ``farebox prices``: what is sold, and for how much."""

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from app.cli.output import emit, table
from app.cli.session import AsJson, Config, load_settings, open_books

PRICE = "PRICE, USD PER MILLION TOKENS OR PER UNIT"
COST = "COST, THE SAME WAY"
_MODEL_COLUMNS = {
    "id": "MODEL",
    "provider": "PROVIDER",
    "upstream_id": "UPSTREAM",
    "context_window": "CONTEXT",
    "capabilities": "CAN",
    "price": PRICE,
}
_PRICE_COLUMNS = {
    "model": "MODEL",
    "provider": "PROVIDER",
    "version": "VERSION",
    "price": PRICE,
    "cost": COST,
}


def models(config: Config = None, as_json: AsJson = False) -> None:
    """List the models of the configuration."""
    from app.reconcile.price_report import model_rows

    rows = model_rows(load_settings(config).providers)
    emit({"models": rows}, as_json=as_json, text=table(_flat(rows), _MODEL_COLUMNS, empty="no models are configured"))


def prices(
    history: Annotated[bool, typer.Option("--history", help="Every version, oldest first.")] = False,
    model: Annotated[str | None, typer.Option("--model", help="Only this model's.")] = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List the price versions that requests are charged by; a change takes effect when the server starts."""
    with open_books(config) as books:
        from app.ledger.price_store import PriceStore
        from app.reconcile.price_report import price_row

        store = PriceStore(books.engine, books.clock)
        if history:
            rows = [price_row(version, at) for version, at in store.history(model)]
        else:
            rows = [price_row(version) for version in store.current() if model in (None, version.model)]
        columns = {**_PRICE_COLUMNS, "added_at": "ADDED"} if history else _PRICE_COLUMNS
        empty = "no prices are recorded yet; `farebox serve` records them when it starts"
        emit({"prices": rows}, as_json=as_json, text=table(_flat(rows), columns, empty=empty))


def _flat(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows whose images' prices stand beside the others, each with its size."""
    return [{**row, **{name: _side_by_side(row[name]) for name in ("price", "cost") if name in row}} for row in rows]


def _side_by_side(prices: dict[str, Any]) -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, price in prices.items():
        flat |= {f"{name} {size}": each for size, each in price.items()} if isinstance(price, dict) else {name: price}
    return flat
