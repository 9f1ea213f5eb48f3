"""One consistent view of the books, read in bounded batches.

The view is one read transaction: on PostgreSQL at REPEATABLE READ, on SQLite WAL's own snapshot
(until it ends, the WAL is not shortened). Nothing is locked, so a busy server goes on.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import (
    ColumnElement,
    Connection,
    Engine,
    Row,
    Select,
    case,
    func,
    literal_column,
    select,
    text,
    union_all,
)

from app.clock import EpochMs
from app.database import is_sqlite
from app.ledger.transfer import PENDING, POST, POSTED
from app.money import NanoUsd
from app.pricing.price_book import PriceVersion, Usage
from app.reconcile.ledger_rules import Rule, pending, resolution, resolves
from app.tables import accounts, holds, outcomes, price_versions, requests, transfers

BATCH_ROWS = 1000
# A check of large books may take longer than a request's statement ever should.
STATEMENT_TIMEOUT_MS = 3_600_000
COUNTERS = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")
_COUNTED = (accounts, transfers, holds, requests, outcomes)


@dataclass(frozen=True, slots=True)
class Balance:
    """An account as its transfers add up, and as its row says (None: it has no row)."""

    account_id: str
    recomputed: tuple[NanoUsd, ...]
    stored: tuple[NanoUsd, ...] | None


@dataclass(frozen=True, slots=True)
class PricedOutcome:
    """What a request used, and what its row says that it cost."""

    request_id: str
    status: str
    price_version_id: str | None
    usage: Usage
    price: NanoUsd
    cost: NanoUsd


class LedgerSnapshot:
    """The books at one moment; see `open_snapshot`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def counts(self) -> dict[str, int]:
        """Rows per table."""
        return {
            table.name: self._connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in _COUNTED
        }

    def offenders(self, rule: Rule, *, silent_since: EpochMs) -> Iterator[Mapping[str, Any]]:
        """The rows that break a rule; the owner of a hold must have been heard of after ``silent_since``."""
        for row in self._stream(rule.offenders.order_by(text("1")), {"silent_since_ms": silent_since}):
            yield row._asdict()

    def balances(self) -> Iterator[Balance]:
        """Every account that has a row or a transfer."""
        zero: ColumnElement[int] = literal_column("0")
        posted = case((pending.c.phase.in_((POSTED, POST)), pending.c.amount), else_=zero)
        is_open = (pending.c.phase == PENDING) & resolution.c.id.is_(None)
        opened = case((is_open, pending.c.amount), else_=zero)
        with_resolution = pending.outerjoin(resolution, resolves)
        names = ("account_id", *COUNTERS)
        parts: list[Select[Any]] = [
            select(*_labelled(names, (pending.c.debit_account, opened, posted, zero, zero))).select_from(
                with_resolution
            ),
            select(*_labelled(names, (pending.c.credit_account, zero, zero, opened, posted))).select_from(
                with_resolution
            ),
            select(*_labelled(names, (accounts.c.id, zero, zero, zero, zero))),
        ]
        moves = union_all(*parts).subquery()
        sums = (
            select(moves.c.account_id, *(func.sum(moves.c[name]).label(name) for name in COUNTERS))
            .group_by(moves.c.account_id)
            .subquery()
        )
        statement = (
            select(sums, *(accounts.c[name].label(f"stored_{name}") for name in COUNTERS))
            .join_from(sums, accounts, accounts.c.id == sums.c.account_id, isouter=True)
            .order_by(sums.c.account_id)
        )
        for row in self._stream(statement, {}):
            recomputed, stored = row[1 : 1 + len(COUNTERS)], row[1 + len(COUNTERS) :]
            yield Balance(
                row.account_id,
                # PostgreSQL sums BIGINT as NUMERIC.
                tuple(NanoUsd(int(value)) for value in recomputed),
                tuple(NanoUsd(value) for value in stored) if stored[0] is not None else None,
            )

    def price_versions(self) -> dict[str, PriceVersion]:
        """The whole price book: it grows with price changes, not with requests."""
        return {
            row.id: PriceVersion(
                row.id, row.provider, row.model, row.version, orjson.loads(row.prices), orjson.loads(row.costs)
            )
            for row in self._connection.execute(select(price_versions))
        }

    def outcomes(self) -> Iterator[PricedOutcome]:
        """Every outcome, in the order of the requests' ids."""
        for row in self._stream(select(outcomes).order_by(outcomes.c.request_id), {}):
            usage = Usage(
                prompt_tokens=row.prompt_tokens,
                completion_tokens=row.completion_tokens,
                cached_tokens=row.cached_tokens,
                cache_write_tokens=row.cache_write_tokens,
                audio_input_tokens=row.audio_input_tokens,
                reasoning_tokens=row.reasoning_tokens,
                audio_output_tokens=row.audio_output_tokens,
                units=tuple(orjson.loads(row.units).items()) if row.units else (),
            )
            yield PricedOutcome(row.request_id, row.status, row.price_version_id, usage, row.price, row.cost)

    def _stream(self, statement: Select[Any], parameters: Mapping[str, Any]) -> Iterator[Row[Any]]:
        with self._connection.execute(statement, parameters, execution_options={"yield_per": BATCH_ROWS}) as result:
            yield from result


@contextmanager
def open_snapshot(engine: Engine) -> Iterator[LedgerSnapshot]:
    """A view of the books in which nothing moves while it is open."""
    with engine.connect() as connection:
        if not is_sqlite(engine):
            connection.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)
        with connection.begin():
            if not is_sqlite(engine):
                connection.execute(text(f"SET LOCAL statement_timeout = {STATEMENT_TIMEOUT_MS}"))
            yield LedgerSnapshot(connection)


def _labelled(names: tuple[str, ...], columns: tuple[Any, ...]) -> list[Any]:
    return [column.label(name) for name, column in zip(names, columns, strict=True)]
