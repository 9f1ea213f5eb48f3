"""What was used and what it cost: requests with their outcomes, row by row or added up.

A request counts for the moment it came in, by UTC days. Of running requests only what is known is
shown. Rows come newest first; a page ends with a cursor, the id of its last row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Engine, Row, Select, and_, func, or_, select

from app.clock import EpochMs
from app.money import NanoUsd
from app.reconcile.period import MS_PER_DAY, day_of
from app.tables import api_keys, attempts, outcomes, requests

ROWS_PER_PAGE = 100
ROWS_PER_PAGE_MAX = 1000
GROUPS_MAX = 10_000
RUNNING = "running"

GroupBy = Literal["day", "model", "key"]


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Which requests: of an account or of all, from ``from_ms`` on and before ``to_ms``."""

    account_id: str | None = None
    key_id: str | None = None
    from_ms: EpochMs | None = None
    to_ms: EpochMs | None = None


@dataclass(frozen=True, slots=True)
class RequestUsage:
    """One request. ``charged`` is what its payer paid; ``price``, ``loss`` and ``cost`` are the operator's."""

    id: str
    account_id: str
    key_id: str | None
    endpoint: str
    model: str
    stream: bool
    created_at_ms: EpochMs
    status: str
    provider: str | None
    upstream_model: str | None
    price_version_id: str | None
    prompt_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    audio_input_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    audio_output_tokens: int
    units: str | None
    estimated: bool
    price: NanoUsd
    charged: NanoUsd
    loss: NanoUsd
    cost: NanoUsd
    finish_reason: str | None
    error_code: str | None
    first_token_ms: int | None
    duration_ms: int | None
    finished_at_ms: EpochMs | None


@dataclass(frozen=True, slots=True)
class UsageSum:
    """Requests of one day, model or key added up."""

    group: str
    requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int
    price: NanoUsd
    charged: NanoUsd
    loss: NanoUsd
    cost: NanoUsd


@dataclass(frozen=True, slots=True)
class Attempt:
    """One try at a provider."""

    number: int
    provider: str
    upstream_model: str
    result: str
    status: int | None
    started_at_ms: EpochMs
    duration_ms: int


@dataclass(frozen=True, slots=True)
class Page:
    """Rows, and where the next page begins (None: this was the last)."""

    rows: Sequence[RequestUsage]
    next_cursor: str | None


_SUMMED = (
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "price",
    "charged",
    "loss",
    "cost",
)
_OF_REQUEST = ("id", "account_id", "key_id", "endpoint", "model", "stream", "created_at_ms")
_ZERO_WHILE_RUNNING = (
    "prompt_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "audio_input_tokens",
    "completion_tokens",
    "reasoning_tokens",
    "audio_output_tokens",
    "price",
    "charged",
    "loss",
    "cost",
)
_OF_OUTCOME = tuple(column.name for column in outcomes.columns if column.name != "request_id")


class UsageStore:
    """Reads requests, outcomes and attempts."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def rows(self, query: UsageQuery, *, limit: int = ROWS_PER_PAGE, cursor: str | None = None) -> Page:
        """One page, newest first; ``cursor`` is that of the page before."""
        limit = max(1, min(limit, ROWS_PER_PAGE_MAX))
        statement = _joined().where(*_conditions(query))
        if query.account_id is not None:
            # Along the index on (account, time); ids settle what came in within one millisecond.
            statement = statement.order_by(requests.c.created_at_ms.desc(), requests.c.id.desc())
            if cursor is not None:
                seen = select(requests.c.created_at_ms).where(requests.c.id == cursor).scalar_subquery()
                same_time = and_(requests.c.created_at_ms == seen, requests.c.id < cursor)
                statement = statement.where(or_(requests.c.created_at_ms < seen, same_time))
        else:
            # Of everybody: along the primary key, which sorts by time.
            statement = statement.order_by(requests.c.id.desc())
            if cursor is not None:
                statement = statement.where(requests.c.id < cursor)
        with self._engine.connect() as connection:
            found = [_usage(row) for row in connection.execute(statement.limit(limit + 1))]
        return Page(found[:limit], found[limit - 1].id if len(found) > limit else None)

    def sums(self, query: UsageQuery, *, by: GroupBy) -> Sequence[UsageSum]:
        """Sums in the order of their groups, at most `GROUPS_MAX`; requests that still run count as requests."""
        group = _group_column(by)
        columns = [func.coalesce(func.sum(outcomes.c[name]), 0).label(name) for name in _SUMMED]
        statement = (
            select(group.label("group_value"), func.count().label("request_count"), *columns)
            .join_from(requests, outcomes, outcomes.c.request_id == requests.c.id, isouter=True)
            .where(*_conditions(query))
            .group_by(group)
            .order_by(group)
            .limit(GROUPS_MAX)
        )
        with self._engine.connect() as connection:
            return [_sum(row, by) for row in connection.execute(statement)]

    def generation(self, request_id: str) -> tuple[RequestUsage, Sequence[Attempt]] | None:
        """One request with its attempts; None if there is none."""
        tried = select(
            attempts.c.number,
            attempts.c.provider,
            attempts.c.upstream_model,
            attempts.c.result,
            attempts.c.status,
            attempts.c.started_at_ms,
            attempts.c.duration_ms,
        )
        with self._engine.connect() as connection:
            row = connection.execute(_joined().where(requests.c.id == request_id)).first()
            if row is None:
                return None
            mine = tried.where(attempts.c.request_id == request_id).order_by(attempts.c.number)
            return _usage(row), [Attempt(*attempt) for attempt in connection.execute(mine)]

    def labels(self, key_ids: Sequence[str]) -> dict[str, str]:
        """The labels of keys, for people."""
        statement = select(api_keys.c.id, api_keys.c.label).where(api_keys.c.id.in_(key_ids[:GROUPS_MAX]))
        with self._engine.connect() as connection:
            return {row.id: row.label for row in connection.execute(statement)}


def _joined() -> Select[Any]:
    columns = [requests.c[name] for name in _OF_REQUEST] + [outcomes.c[name] for name in _OF_OUTCOME]
    return select(*columns).join_from(requests, outcomes, outcomes.c.request_id == requests.c.id, isouter=True)


def _conditions(query: UsageQuery) -> list[ColumnElement[bool]]:
    conditions: list[ColumnElement[bool]] = []
    if query.account_id is not None:
        conditions.append(requests.c.account_id == query.account_id)
    if query.key_id is not None:
        conditions.append(requests.c.key_id == query.key_id)
    if query.from_ms is not None:
        conditions.append(requests.c.created_at_ms >= query.from_ms)
    if query.to_ms is not None:
        conditions.append(requests.c.created_at_ms < query.to_ms)
    return conditions


def _group_column(by: GroupBy) -> ColumnElement[Any]:
    match by:
        case "day":
            return requests.c.created_at_ms // MS_PER_DAY
        case "model":
            return requests.c.model
        case "key":
            return func.coalesce(requests.c.key_id, "")


def _usage(row: Row[Any]) -> RequestUsage:
    values = row._asdict()
    if values["status"] is None:
        values.update(status=RUNNING, estimated=False, **dict.fromkeys(_ZERO_WHILE_RUNNING, 0))
    return RequestUsage(**values)


def _sum(row: Row[Any], by: GroupBy) -> UsageSum:
    group = day_of(int(row.group_value)) if by == "day" else row.group_value
    # PostgreSQL sums BIGINT as NUMERIC.
    sums: dict[str, Any] = {name: int(getattr(row, name)) for name in _SUMMED}
    return UsageSum(group=group, requests=row.request_count, **sums)
