"""The price book's rows: a price change adds a version, and nothing is ever rewritten."""

from collections.abc import Iterable, Mapping

import orjson
from sqlalchemy import Engine, Row, func, insert, select
from sqlalchemy.exc import IntegrityError

from app.clock import Clock, EpochMs
from app.errors import InvariantViolated
from app.money import PicoUsd
from app.pricing.price_book import PriceVersion
from app.settings import ProviderSettings
from app.tables import price_versions

SYNC_TRIES_MAX = 5


class PriceStore:
    """Reads and appends price versions."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def sync(self, providers: Iterable[ProviderSettings]) -> dict[tuple[str, str], PriceVersion]:
        """Make the newest version of each configured price equal the settings; by (provider, model)."""
        book = {}
        for provider in providers:
            for model in provider.models:
                prices, costs = model.price.in_pico_usd(), model.cost.in_pico_usd()
                book[provider.name, model.id] = self._sync_one(provider.name, model.id, prices, costs)
        return book

    def current(self) -> list[PriceVersion]:
        """The newest version of every provider and model."""
        newest: dict[tuple[str, str], PriceVersion] = {}
        for version, _ in self.history():
            newest[version.provider, version.model] = version
        return list(newest.values())

    def history(self, model: str | None = None) -> list[tuple[PriceVersion, EpochMs]]:
        """Every version with the moment it was added, oldest first."""
        statement = select(price_versions).order_by(
            price_versions.c.provider, price_versions.c.model, price_versions.c.version
        )
        if model is not None:
            statement = statement.where(price_versions.c.model == model)
        with self._engine.connect() as connection:
            return [(_version(row), EpochMs(row.created_at_ms)) for row in connection.execute(statement)]

    def read(self, ids: Iterable[str]) -> dict[str, PriceVersion]:
        """Versions by id; unknown ids are left out."""
        statement = select(price_versions).where(price_versions.c.id.in_(list(ids)))
        with self._engine.connect() as connection:
            return {row.id: _version(row) for row in connection.execute(statement)}

    def _sync_one(
        self, provider: str, model: str, prices: Mapping[str, PicoUsd], costs: Mapping[str, PicoUsd]
    ) -> PriceVersion:
        for _ in range(SYNC_TRIES_MAX):
            newest = self._newest(provider, model)
            if newest is not None and dict(newest.prices) == dict(prices) and dict(newest.costs) == dict(costs):
                return newest
            version = newest.version + 1 if newest is not None else 1
            row = {
                "id": f"price_{provider}:{model}:{version}",
                "provider": provider,
                "model": model,
                "version": version,
                "prices": orjson.dumps(dict(prices), option=orjson.OPT_SORT_KEYS).decode(),
                "costs": orjson.dumps(dict(costs), option=orjson.OPT_SORT_KEYS).decode(),
                "created_at_ms": self._clock.now_ms(),
            }
            try:
                with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
                    connection.execute(insert(price_versions).values(row))
            except IntegrityError:
                continue  # Another replica added the same number first: look again.
        raise InvariantViolated(f"the price of {model} at {provider} keeps changing")

    def _newest(self, provider: str, model: str) -> PriceVersion | None:
        same = (price_versions.c.provider == provider) & (price_versions.c.model == model)
        newest = select(func.max(price_versions.c.version)).where(same).scalar_subquery()
        with self._engine.connect() as connection:
            row = connection.execute(select(price_versions).where(same, price_versions.c.version == newest)).first()
        return _version(row) if row is not None else None


def _version(row: Row[tuple[object, ...]]) -> PriceVersion:
    return PriceVersion(
        id=row.id,
        provider=row.provider,
        model=row.model,
        version=row.version,
        prices=orjson.loads(row.prices),
        costs=orjson.loads(row.costs),
    )
