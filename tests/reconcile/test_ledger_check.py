"""Each finding is provoked by damaging the rows of books that were green, one way at a time."""

import json
from dataclasses import dataclass

import pytest
from sqlalchemy import Engine, text

from app.clock import EpochMs
from app.database import is_sqlite
from app.ledger.operation import Claim
from app.money import parse_usd
from app.reconcile import channel_rules, ledger_check
from app.reconcile.ledger_check import FINDINGS_PER_KIND_MAX, Report, check
from app.reconcile.ledger_rules import rules
from tests.clocks import FakeClock
from tests.reconcile.books import ONE, LiveBooks, Payer

LEASE_TTL_S = 30.0


@dataclass(frozen=True)
class Standing:
    """The books that every test damages, and who is in them."""

    books: LiveBooks
    payer: Payer
    idle_customer_id: str


@pytest.fixture
def standing(engine: Engine, clock: FakeClock) -> Standing:
    """Requests that were served, failed, ran over their hold, were swept and are running; money in and out."""
    books = LiveBooks(engine, clock)
    customer, payer = books.customer(credit="1.00")
    idle, _ = books.customer(credit="2.00", credit_limit="0.50")
    books.served(payer, "req_served")
    books.admit(payer, "req_failed")
    books.capture(payer, "req_failed", None)
    books.admit(payer, "req_over", amount=1000)
    books.extend(payer, "req_over", amount=500, used=900)
    books.capture(payer, "req_over", ONE)
    books.admit(payer, "req_swept")
    books.deliver(payer, "req_swept", used=0, window=2000)
    books.sweep(payer, "req_swept")
    books.admit(payer, "req_running", claim=Claim("k", "b", EpochMs(clock.now_ms() + 1000)))
    books.refund(customer.id, "0.10", paid=True)
    books.refund(customer.id, "0.05", refund_id="r2")
    return Standing(books, payer, idle.id)


def damage(engine: Engine, *statements: str) -> None:
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        for statement in statements:
            connection.execute(text(statement))


def checked(standing: Standing) -> Report:
    return check(standing.books.engine, standing.books.clock, LEASE_TTL_S)


def test_books_that_balance_are_green(standing: Standing) -> None:
    report = checked(standing)
    assert report.findings == []
    assert report.green
    assert report.rows == {"accounts": 2, "transfers": 19, "holds": 1, "requests": 5, "outcomes": 4}


def test_empty_books_are_green(engine: Engine, clock: FakeClock) -> None:
    assert check(engine, clock, LEASE_TTL_S).green


def test_the_trial_balance_lists_the_accounts(standing: Standing) -> None:
    report = checked(standing)
    lines = {line.account: line for line in report.lines}
    assert set(lines) == {"customer:*", "revenue", "treasury", "refunds", "cost:sandbox", "provider:sandbox"}
    assert lines["customer:*"].accounts == 2
    assert lines["customer:*"].held == 1_000_000
    assert lines["treasury"].debits == parse_usd("3.00")
    assert lines["treasury"].credits == parse_usd("0.10")
    assert report.debits == report.credits > 0


COPIED = "id, kind, phase, debit_account, credit_account, amount, pending_id, request_id, note, created_at_ms"

# (kind of finding, the row that it must name, what was done to the rows)
DAMAGES: list[tuple[str, str, str]] = [
    ("account_balance", "{account}", "UPDATE accounts SET credits_posted = credits_posted + 1 WHERE id = '{account}'"),
    ("account_balance", "{account}", "UPDATE accounts SET debits_posted = debits_posted + 1 WHERE id = '{account}'"),
    ("account_balance", "{account}", "UPDATE accounts SET debits_pending = debits_pending - 1 WHERE id = '{account}'"),
    ("account_balance", "{account}", "UPDATE accounts SET credits_pending = 1 WHERE id = '{account}'"),
    ("account_balance", "{account}", "UPDATE transfers SET amount = amount - 1 WHERE id = 'req_served:h0:r'"),
    ("trial_balance", "total", "UPDATE accounts SET debits_posted = debits_posted - 1 WHERE id = '{account}'"),
    ("account_missing", "{idle_account}", "DELETE FROM accounts WHERE id = '{idle_account}'"),
    ("customer_without_account", "cus_x", "INSERT INTO customers VALUES ('cus_x', 'Eve', 1)"),
    ("below_limit", "{idle_account}", "UPDATE accounts SET debits_posted = 2500000001 WHERE id = '{idle_account}'"),
    (
        "resolution_without_hold",
        "req_served:h0:r",
        "UPDATE transfers SET pending_id = 'req_gone:h0' WHERE id = 'req_served:h0:r'",
    ),
    (
        "resolution_without_hold",
        "req_served:h0:r",
        "UPDATE transfers SET pending_id = NULL WHERE id = 'req_served:h0:r'",
    ),
    (
        "resolution_without_hold",
        "req_served:h0:r",
        "UPDATE transfers SET pending_id = 'req_served:cost' WHERE id = 'req_served:h0:r'",
    ),
    (
        "stray_pending_id",
        "req_served:cost",
        "UPDATE transfers SET pending_id = 'req_running:h0' WHERE id = 'req_served:cost'",
    ),
    (
        "resolution_exceeds_hold",
        "req_served:h0:r",
        "UPDATE transfers SET amount = 1000001 WHERE id = 'req_served:h0:r'",
    ),
    ("release_with_amount", "req_failed:h0:r", "UPDATE transfers SET amount = 1 WHERE id = 'req_failed:h0:r'"),
    (
        "resolution_differs",
        "req_served:h0:r",
        "UPDATE transfers SET credit_account = 'treasury' WHERE id = 'req_served:h0:r'",
    ),
    (
        "resolution_differs",
        "req_served:h0:r",
        "UPDATE transfers SET debit_account = '{idle_account}' WHERE id = 'req_served:h0:r'",
    ),
    (
        "resolution_differs",
        "req_served:h0:r",
        "UPDATE transfers SET request_id = 'req_over' WHERE id = 'req_served:h0:r'",
    ),
    (
        "transfer_without_request",
        "req_served:cost",
        "UPDATE transfers SET request_id = 'req_none' WHERE id = 'req_served:cost'",
    ),
    ("refund_paid", "refund:r1:paid", "UPDATE transfers SET amount = amount + 1 WHERE id = 'refund:r1:paid'"),
    ("refund_paid", "refund:r9:paid", "UPDATE transfers SET id = 'refund:r9:paid' WHERE id = 'refund:r1:paid'"),
    ("hold_without_pending", "req_running:h0", "DELETE FROM transfers WHERE id = 'req_running:h0'"),
    (
        "hold_without_pending",
        "req_served:h0",
        "INSERT INTO holds SELECT 'req_served:h0', account_id, key_id, 'req_served', credit_account, amount, owner_id,"
        " created_at_ms FROM holds",
    ),
    ("pending_without_hold", "req_running:h0", "DELETE FROM holds WHERE id = 'req_running:h0'"),
    ("pending_without_hold", "req_served:h0", "DELETE FROM transfers WHERE id = 'req_served:h0:r'"),
    ("hold_differs", "req_running:h0", "UPDATE holds SET amount = amount - 1"),
    ("hold_differs", "req_running:h0", "UPDATE holds SET account_id = '{idle_account}'"),
    ("hold_differs", "req_running:h0", "UPDATE holds SET credit_account = 'treasury'"),
    ("hold_differs", "req_running:h0", "UPDATE holds SET request_id = 'req_served'"),
    ("hold_payer", "req_running:h0", "UPDATE holds SET key_id = NULL"),
    ("hold_payer", "req_running:h0", "UPDATE requests SET account_id = 'customer:x' WHERE id = 'req_running'"),
    ("hold_after_outcome", "req_running:h0", "UPDATE outcomes SET request_id = 'req_running' WHERE status = 'failed'"),
    ("orphan_hold", "req_running:h0", "DELETE FROM owners"),
    ("orphan_hold", "req_running:h0", "UPDATE owners SET heartbeat_at_ms = heartbeat_at_ms - 30000"),
    ("key_held", "{key}", "UPDATE api_keys SET held = held + 1 WHERE id = '{key}'"),
    ("key_spent", "{key}", "UPDATE api_keys SET spent = spent - 1 WHERE id = '{key}'"),
    ("customer_spent", "{customer}", "UPDATE api_keys SET spent = spent - 1 WHERE id = '{key}'"),
    ("request_lost", "req_served", "DELETE FROM outcomes WHERE request_id = 'req_served'"),
    ("request_lost", "req_running", "DELETE FROM holds WHERE request_id = 'req_running'"),
    ("outcome_without_request", "req_served", "DELETE FROM requests WHERE id = 'req_served'"),
    ("attempt_missing", "req_served", "DELETE FROM attempts WHERE request_id = 'req_served'"),
    ("claim_stuck", "req_running", "DELETE FROM holds WHERE request_id = 'req_running'"),
    ("outcome_charged", "req_over", "UPDATE transfers SET amount = amount - 1 WHERE id = 'req_over:over'"),
    ("outcome_charged", "req_served", "UPDATE outcomes SET charged = charged - 1 WHERE request_id = 'req_served'"),
    ("outcome_arithmetic", "req_served", "UPDATE outcomes SET loss = 1 WHERE request_id = 'req_served'"),
    ("outcome_cost_moved", "req_served", "DELETE FROM transfers WHERE id = 'req_served:cost'"),
    ("outcome_cost_moved", "req_failed", "UPDATE outcomes SET cost = 1 WHERE request_id = 'req_failed'"),
    ("outcome_price", "req_served", "UPDATE outcomes SET price = price + 1 WHERE request_id = 'req_served'"),
    (
        "outcome_price",
        "req_served",
        "UPDATE outcomes SET completion_tokens = completion_tokens + 1 WHERE request_id = 'req_served'",
    ),
    ("outcome_price", "req_failed", "UPDATE outcomes SET price = 1, loss = 1 WHERE request_id = 'req_failed'"),
    ("outcome_cost", "req_served", "UPDATE outcomes SET cost = cost + 1 WHERE request_id = 'req_served'"),
    (
        "outcome_unpriceable",
        "req_served",
        "UPDATE outcomes SET cached_tokens = -1 WHERE request_id = 'req_served'",
    ),
    ("price_version_missing", "req_served", "DELETE FROM price_versions"),
    ("swept_price", "req_swept", "UPDATE outcomes SET price = 2001, loss = 1 WHERE request_id = 'req_swept'"),
    ("swept_price", "req_swept", "DELETE FROM deliveries WHERE request_id = 'req_swept'"),
]


@pytest.mark.parametrize(("kind", "row", "statement"), DAMAGES)
def test_a_damaged_row_is_named(standing: Standing, kind: str, row: str, statement: str) -> None:
    names = {
        "account": standing.payer.identity.account_id,
        "customer": standing.payer.customer_id,
        "key": standing.payer.key_id,
        "idle_account": f"customer:{standing.idle_customer_id}",
    }
    damage(standing.books.engine, statement.format(**names))
    report = checked(standing)
    assert not report.green
    assert (kind, row.format(**names)) in {(finding.kind, finding.row) for finding in report.findings}


def test_a_hold_resolved_twice_is_named_although_the_database_forbids_it(standing: Standing) -> None:
    engine = standing.books.engine
    again = (
        f"INSERT INTO transfers ({COPIED}) SELECT 'twice', kind, phase, debit_account, credit_account, amount,"
        " pending_id, request_id, note, created_at_ms FROM transfers WHERE id = 'req_served:h0:r'"
    )
    if is_sqlite(engine):
        # SQLite drops no constraint: the rows move to a table that has none.
        damage(
            engine,
            "CREATE TABLE bare AS SELECT * FROM transfers",
            "DROP TABLE transfers",
            "ALTER TABLE bare RENAME TO transfers",
            again,
        )
    else:
        damage(engine, "ALTER TABLE transfers DROP CONSTRAINT uq_transfers_pending_id", again)
    report = checked(standing)
    assert ("resolved_twice", "req_served:h0") in {(finding.kind, finding.row) for finding in report.findings}


def test_every_rule_has_a_damage_that_it_finds() -> None:
    tried = {kind for kind, _, _ in DAMAGES} | {"resolved_twice"}
    assert {rule.kind for rule in rules()} - tried == set()


def test_an_owner_that_is_only_late_is_no_finding(standing: Standing) -> None:
    damage(standing.books.engine, "UPDATE owners SET heartbeat_at_ms = heartbeat_at_ms - 29999")
    assert checked(standing).green


def test_a_request_is_priced_by_the_version_it_pinned(standing: Standing) -> None:
    damage(
        standing.books.engine,
        "INSERT INTO price_versions SELECT 'newer', provider, model, 2, '{\"input\": 1, \"output\": 1}', costs,"
        " created_at_ms FROM price_versions WHERE model = 'sandbox/echo'",
    )
    assert checked(standing).green
    damage(
        standing.books.engine,
        "UPDATE outcomes SET price_version_id = 'newer' WHERE request_id = 'req_served'",
    )
    assert checked(standing).counts["outcome_price"] == 1


def test_findings_are_bounded_and_counted_whole(standing: Standing, engine: Engine) -> None:
    many = FINDINGS_PER_KIND_MAX + 5
    damage(engine, *(f"INSERT INTO customers VALUES ('cus_{number:03}', 'Eve', 1)" for number in range(many)))
    report = checked(standing)
    assert len(report.findings) == FINDINGS_PER_KIND_MAX
    assert report.counts == {"customer_without_account": many}
    assert "customer_without_account: 5 more" in report.to_text()


def test_the_books_are_read_at_one_moment(standing: Standing) -> None:
    """What is committed while the check runs is not in it: it sees all of a commit or nothing."""
    engine, steps = standing.books.engine, []

    def commit_meanwhile(done: int, _steps: int, step: str) -> None:
        steps.append(step)
        if done == 0:
            damage(engine, "DELETE FROM outcomes", "UPDATE api_keys SET spent = 0, held = 0")

    assert check(engine, standing.books.clock, LEASE_TTL_S, progress=commit_meanwhile).green
    assert steps[0] == "balances"
    assert steps[-1] == "done"
    assert not checked(standing).green


def test_the_check_writes_nothing(standing: Standing) -> None:
    def rows() -> list[object]:
        with standing.books.engine.connect() as connection:
            return [
                connection.execute(text(f"SELECT * FROM {table} ORDER BY 1, 2")).all()
                for table in ("accounts", "api_keys", "transfers", "holds", "requests", "outcomes", "owners")
            ]

    before = rows()
    checked(standing)
    assert rows() == before


def test_more_rows_than_a_batch_are_all_read(
    standing: Standing, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    monkeypatch.setattr("app.reconcile.ledger_check_store.BATCH_ROWS", 2)
    assert checked(standing).green
    damage(engine, "UPDATE outcomes SET price = price + 1")
    assert checked(standing).counts["outcome_price"] == 3


def test_a_report_is_json_with_exact_decimals(standing: Standing) -> None:
    damage(standing.books.engine, "UPDATE api_keys SET held = held + 1 WHERE spent > 0")
    body = json.loads(json.dumps(checked(standing).to_dict()))
    assert body["green"] is False
    assert body["counts"] == {"key_held": 1}
    assert body["findings"][0]["row"] == standing.payer.key_id
    assert body["trial_balance"]["difference"] == "0.00"
    treasury = next(line for line in body["trial_balance"]["accounts"] if line["account"] == "treasury")
    assert (treasury["debits"], treasury["credits"]) == ("3.00", "0.10")


def test_a_report_says_the_verdict_and_names_the_rows(standing: Standing) -> None:
    assert "the books balance" in checked(standing).to_text()
    damage(standing.books.engine, "UPDATE api_keys SET held = held + 1 WHERE spent > 0")
    text_report = checked(standing).to_text()
    assert "NOT balance" in text_report
    assert f"key_held: {standing.payer.key_id}" in text_report


def test_progress_is_told_step_by_step(standing: Standing) -> None:
    told: list[tuple[int, int]] = []
    ledger_check.check(
        standing.books.engine,
        standing.books.clock,
        LEASE_TTL_S,
        progress=lambda done, steps, _: told.append((done, steps)),
    )
    steps = len(rules()) + len(channel_rules.rules()) + 2
    assert told == [(done, steps) for done in range(steps + 1)]
