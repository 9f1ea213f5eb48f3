from dataclasses import asdict

import pytest
from sqlalchemy import Engine

from app.clock import EpochMs
from app.money import format_usd
from app.reconcile.usage_report import (
    attempt_row,
    request_columns,
    request_row,
    sum_columns,
    sum_row,
    to_csv,
    total_row,
)
from app.reconcile.usage_store import ROWS_PER_PAGE_MAX, UsageQuery, UsageStore
from tests.clocks import START_MS, FakeClock
from tests.reconcile.books import MODEL, ONE, LiveBooks, Payer

MS_PER_DAY = 86_400_000
OPERATORS_OWN = {"price", "loss", "provider_cost", "account_id", "upstream_model"}


@pytest.fixture
def books(engine: Engine, clock: FakeClock) -> LiveBooks:
    return LiveBooks(engine, clock)


@pytest.fixture
def payer(books: LiveBooks) -> Payer:
    return books.customer(credit="1.00")[1]


@pytest.fixture
def usage(engine: Engine) -> UsageStore:
    return UsageStore(engine)


def mine(payer: Payer) -> UsageQuery:
    return UsageQuery(account_id=payer.identity.account_id)


def test_a_served_request_shows_what_it_used_and_cost(books: LiveBooks, payer: Payer, usage: UsageStore) -> None:
    books.served(payer, "req_1")
    (row,) = usage.rows(mine(payer)).rows
    assert (row.id, row.status, row.model, row.key_id) == ("req_1", "ok", MODEL, payer.key_id)
    assert (row.prompt_tokens, row.cached_tokens, row.completion_tokens, row.reasoning_tokens) == (1000, 100, 500, 50)
    assert (row.price, row.charged, row.loss) == (books.charge_of_one, books.charge_of_one, 0)
    assert row.cost == books.version.upstream_cost(ONE)
    assert row.price_version_id == books.version.id


def test_a_running_request_shows_no_cost_yet(books: LiveBooks, payer: Payer, usage: UsageStore) -> None:
    books.admit(payer, "req_1")
    (row,) = usage.rows(mine(payer)).rows
    assert (row.status, row.charged, row.completion_tokens, row.finished_at_ms) == ("running", 0, 0, None)
    (total,) = usage.sums(mine(payer), by="day")
    assert (total.requests, total.charged) == (1, 0)


@pytest.mark.parametrize("of_one_account", [True, False])
@pytest.mark.parametrize("step_ms", [0, 1])
def test_pages_have_every_row_once_newest_first(
    books: LiveBooks, payer: Payer, usage: UsageStore, clock: FakeClock, of_one_account: bool, step_ms: int
) -> None:
    for number in range(5):
        books.served(payer, f"req_{number}")
        clock.advance(step_ms)
    query = mine(payer) if of_one_account else UsageQuery()
    seen: list[str] = []
    cursor: str | None = None
    pages = 0
    while pages == 0 or cursor is not None:
        page = usage.rows(query, limit=2, cursor=cursor)
        seen += [row.id for row in page.rows]
        cursor, pages = page.next_cursor, pages + 1
    assert seen == [f"req_{number}" for number in reversed(range(5))]
    assert pages == 3


def test_the_last_full_page_has_no_successor(books: LiveBooks, payer: Payer, usage: UsageStore) -> None:
    books.served(payer, "req_1")
    books.served(payer, "req_2")
    assert usage.rows(mine(payer), limit=2).next_cursor is None


def test_a_page_is_bounded(books: LiveBooks, payer: Payer, usage: UsageStore) -> None:
    books.served(payer, "req_1")
    books.served(payer, "req_2")
    assert len(usage.rows(mine(payer), limit=10**9).rows) == 2
    assert len(usage.rows(mine(payer), limit=-1).rows) == 1
    assert ROWS_PER_PAGE_MAX == 1000


def test_another_accounts_requests_are_not_in_it(books: LiveBooks, payer: Payer, usage: UsageStore) -> None:
    _, other = books.customer(credit="1.00")
    books.served(payer, "req_1")
    books.served(other, "req_2")
    assert [row.id for row in usage.rows(mine(payer)).rows] == ["req_1"]
    assert [total.requests for total in usage.sums(mine(payer), by="model")] == [1]
    assert [total.requests for total in usage.sums(UsageQuery(), by="model")] == [2]


def test_a_period_begins_with_its_first_moment_and_ends_before_its_last(
    books: LiveBooks, payer: Payer, usage: UsageStore, clock: FakeClock
) -> None:
    for number in range(3):
        books.served(payer, f"req_{number}")
        clock.advance(1000)
    query = UsageQuery(
        account_id=payer.identity.account_id, from_ms=EpochMs(START_MS + 1000), to_ms=EpochMs(START_MS + 2000)
    )
    assert [row.id for row in usage.rows(query).rows] == ["req_1"]
    assert [total.requests for total in usage.sums(query, by="day")] == [1]


def test_sums_by_day_are_of_utc_days(books: LiveBooks, payer: Payer, usage: UsageStore, clock: FakeClock) -> None:
    books.served(payer, "req_0")
    clock.advance(MS_PER_DAY - START_MS % MS_PER_DAY - 1)
    books.served(payer, "req_1")
    clock.advance(1)
    books.served(payer, "req_2")
    totals = usage.sums(mine(payer), by="day")
    assert [(total.group, total.requests) for total in totals] == [("2025-10-09", 2), ("2025-10-10", 1)]
    assert totals[0].charged == 2 * books.charge_of_one
    assert totals[0].prompt_tokens == 2000


def test_sums_by_key_can_be_labelled(books: LiveBooks, payer: Payer, usage: UsageStore) -> None:
    second = books.key(payer.customer_id)
    books.served(payer, "req_1")
    books.served(second, "req_2")
    books.served(second, "req_3")
    totals = {total.group: total.requests for total in usage.sums(mine(payer), by="key")}
    assert totals == {payer.key_id: 1, second.key_id: 2}
    assert usage.labels([payer.key_id, "key_none"]) == {payer.key_id: "laptop"}


def test_usage_can_be_of_one_key(books: LiveBooks, payer: Payer, usage: UsageStore) -> None:
    second = books.key(payer.customer_id)
    books.served(payer, "req_1")
    books.served(second, "req_2")
    assert [row.id for row in usage.rows(UsageQuery(key_id=second.key_id)).rows] == ["req_2"]


def test_a_generation_has_its_attempts(books: LiveBooks, payer: Payer, usage: UsageStore) -> None:
    books.served(payer, "req_1")
    found = usage.generation("req_1")
    assert found is not None
    row, attempts = found
    assert row.id == "req_1"
    assert [attempt_row(attempt, operator=False) for attempt in attempts] == [
        {
            "number": 1,
            "provider": "sandbox",
            "result": "ok",
            "status": 200,
            "started_at": "2025-10-09T08:53:20.000Z",
            "duration_ms": 34,
        }
    ]
    assert usage.generation("req_none") is None


def test_a_payer_is_not_shown_what_is_the_operators(books: LiveBooks, payer: Payer, usage: UsageStore) -> None:
    books.served(payer, "req_1")
    (row,) = usage.rows(mine(payer)).rows
    (total,) = usage.sums(mine(payer), by="model")
    assert OPERATORS_OWN.isdisjoint(request_row(row, operator=False))
    assert OPERATORS_OWN.isdisjoint(sum_row(total, by="model", operator=False))
    assert set(request_row(row, operator=True)) >= OPERATORS_OWN
    assert {"price", "loss", "provider_cost"} <= set(sum_row(total, by="model", operator=True))


@pytest.mark.parametrize("operator", [True, False])
def test_columns_are_the_members_of_the_rows(books: LiveBooks, payer: Payer, usage: UsageStore, operator: bool) -> None:
    books.served(payer, "req_1")
    (row,) = usage.rows(mine(payer)).rows
    (total,) = usage.sums(mine(payer), by="key")
    assert list(request_row(row, operator=operator)) == list(request_columns(operator=operator))
    shown = sum_row(total, by="key", operator=operator, labels={})
    assert list(shown) == list(sum_columns("key", operator=operator))
    assert set(total_row([total], operator=operator)) == set(shown) - {"key", "label"}


def test_amounts_are_exact_decimals(books: LiveBooks, payer: Payer, usage: UsageStore) -> None:
    books.served(payer, "req_1")
    (row,) = usage.rows(mine(payer)).rows
    assert request_row(row, operator=False)["cost"] == format_usd(books.charge_of_one) == "0.000292"
    csv_text = to_csv([request_row(row, operator=False)], columns=("id", "cost"))
    assert csv_text == "id,cost\r\nreq_1,0.000292\r\n"
    totals = usage.sums(mine(payer), by="model")
    assert total_row([*totals, *totals], operator=True)["cost"] == "0.000584"


def test_every_column_of_an_outcome_is_read(books: LiveBooks, payer: Payer, usage: UsageStore) -> None:
    books.served(payer, "req_1")
    (row,) = usage.rows(mine(payer)).rows
    unset = {name for name, value in asdict(row).items() if value is None}
    assert unset == {"error_code", "units"}
