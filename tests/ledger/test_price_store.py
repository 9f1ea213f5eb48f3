from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine

from app.ledger.price_store import PriceStore
from app.settings import ProviderSettings
from app.tables import price_versions
from tests.clocks import START_MS, FakeClock
from tests.ledger.proof import rows


def provider(name: str = "p", *, price: str = "1.00", cost: str = "0.50") -> ProviderSettings:
    return ProviderSettings.model_validate(
        {
            "name": name,
            "adapter": "sandbox",
            "models": [
                {
                    "id": "m",
                    "context_window": 1000,
                    "max_output_tokens": 100,
                    "price": {"input": price, "output": "2.00"},
                    "cost": {"input": cost},
                }
            ],
        }
    )


@pytest.fixture
def prices(engine: Engine, clock: FakeClock) -> PriceStore:
    return PriceStore(engine, clock)


def test_a_new_price_is_version_one(prices: PriceStore) -> None:
    book = prices.sync([provider()])
    version = book["p", "m"]
    assert (version.version, dict(version.prices)) == (1, {"input": 10**6, "output": 2 * 10**6})
    assert dict(version.costs) == {"input": 500_000}
    assert prices.read([version.id, "unknown"]) == {version.id: version}


def test_an_unchanged_price_keeps_its_version(engine: Engine, prices: PriceStore) -> None:
    assert prices.sync([provider()]) == prices.sync([provider()])
    assert len(rows(engine, price_versions)) == 1


@pytest.mark.parametrize("change", [{"price": "1.01"}, {"cost": "0.51"}])
def test_a_changed_price_or_cost_is_a_new_version_and_the_old_one_stays(
    prices: PriceStore, clock: FakeClock, change: dict[str, str]
) -> None:
    first = prices.sync([provider()])["p", "m"]
    clock.advance(5)
    second = prices.sync([provider(**change)])["p", "m"]
    assert second.version == 2
    assert prices.history("m") == [(first, START_MS), (second, START_MS + 5)]
    assert prices.current() == [second]
    assert prices.history("another") == []


def test_each_provider_has_prices_of_its_own(prices: PriceStore) -> None:
    book = prices.sync([provider("p"), provider("q")])
    assert {key: version.version for key, version in book.items()} == {("p", "m"): 1, ("q", "m"): 1}


def test_replicas_that_start_together_add_one_version(engine: Engine, clock: FakeClock) -> None:
    with ThreadPoolExecutor(4) as pool:
        books = list(pool.map(lambda _: PriceStore(engine, clock).sync([provider()]), range(4)))
    assert len(rows(engine, price_versions)) == 1
    assert all(book == books[0] for book in books)
