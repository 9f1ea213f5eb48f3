"""Proves the books from their rows: what must be true of every database after every commit."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import Engine, Row, Table, select

from app.ledger import transfer as kinds
from app.ledger.account import can_refuse
from app.tables import accounts, api_keys, deliveries, holds, idempotency_claims, outcomes, requests, transfers

Rows = list[Row[Any]]


def rows(engine: Engine, table: Table) -> Rows:
    """Every row of a table."""
    with engine.connect() as connection:
        return list(connection.execute(select(table)))


def prove(engine: Engine, *, lowered: Collection[str] = ()) -> None:
    """Assert every invariant. ``lowered`` accounts may owe more than their credit limit."""
    tables = (accounts, api_keys, transfers, holds, requests, deliveries, outcomes, idempotency_claims)
    with engine.connect() as connection:
        read: dict[str, Rows] = {table.name: list(connection.execute(select(table))) for table in tables}
    unresolved = _resolutions(read["transfers"])
    _balances(read["accounts"], read["transfers"], unresolved, lowered)
    _trial_balance(read["accounts"], read["transfers"])
    _open_holds(read["holds"], unresolved)
    _keys(read["api_keys"], read["holds"], read["transfers"], {row.id: row.key_id for row in read["requests"]})
    _requests(read)


def _resolutions(moves: Rows) -> dict[str, Row[Any]]:
    """Each hold is resolved at most once, within its amount and between its accounts; returns the open ones."""
    pending = {move.id: move for move in moves if move.phase == kinds.PENDING}
    resolved = Counter(move.pending_id for move in moves if move.pending_id is not None)
    assert set(resolved.values()) <= {1}
    for move in moves:
        assert (move.phase in {kinds.POST, kinds.VOID}) == (move.pending_id is not None)
        if move.pending_id is not None:
            held = pending[move.pending_id]
            assert move.amount <= held.amount
            assert (move.debit_account, move.credit_account) == (held.debit_account, held.credit_account)
            assert (move.phase == kinds.VOID) == (move.amount == 0)
    return {name: move for name, move in pending.items() if name not in resolved}


def _posted(moves: Rows) -> Iterable[Row[Any]]:
    return (move for move in moves if move.phase in {kinds.POSTED, kinds.POST})


def _balances(balances: Rows, moves: Rows, unresolved: dict[str, Row[Any]], lowered: Collection[str]) -> None:
    debits: dict[str, int] = defaultdict(int)
    credits: dict[str, int] = defaultdict(int)
    pending: dict[str, int] = defaultdict(int)
    for move in _posted(moves):
        debits[move.debit_account] += move.amount
        credits[move.credit_account] += move.amount
    for move in unresolved.values():
        pending[move.debit_account] += move.amount
    for row in balances:
        stored = (row.debits_pending, row.debits_posted, row.credits_pending, row.credits_posted)
        assert stored == (pending[row.id], debits[row.id], 0, credits[row.id]), row.id
        available = row.credits_posted - row.debits_posted - row.debits_pending + row.credit_limit
        assert available >= 0 or row.id in lowered, row.id
    assert {move.debit_account for move in unresolved.values()} <= {row.id for row in balances}


def _trial_balance(balances: Rows, moves: Rows) -> None:
    """Payers by their stored counters, everybody else by their transfers: together nothing."""
    payers = sum(row.credits_posted - row.debits_posted for row in balances)
    others = sum(
        move.amount * ((not can_refuse(move.credit_account)) - (not can_refuse(move.debit_account)))
        for move in _posted(moves)
    )
    assert payers + others == 0


def _open_holds(open_holds: Rows, unresolved: dict[str, Row[Any]]) -> None:
    indexed = {row.id: (row.account_id, row.credit_account, row.amount, row.request_id) for row in open_holds}
    assert indexed == {
        name: (move.debit_account, move.credit_account, move.amount, move.request_id)
        for name, move in unresolved.items()
    }


def _keys(keys: Rows, open_holds: Rows, moves: Rows, key_of: dict[str, str | None]) -> None:
    held: dict[str, int] = defaultdict(int)
    spent: dict[str, int] = defaultdict(int)
    for hold in open_holds:
        if hold.key_id is not None:
            held[hold.key_id] += hold.amount
    for move in moves:
        key_id = key_of.get(move.request_id) if move.request_id is not None else None
        if key_id is not None and move.kind in kinds.USAGE_KINDS:
            spent[key_id] += move.amount
    assert {row.id: (row.held, row.spent) for row in keys} == {row.id: (held[row.id], spent[row.id]) for row in keys}


def _requests(read: dict[str, Rows]) -> None:
    charged: dict[str, int] = defaultdict(int)
    for move in read["transfers"]:
        if move.kind in kinds.USAGE_KINDS:
            charged[move.request_id] += move.amount
    for outcome in read["outcomes"]:
        assert outcome.charged == charged[outcome.request_id], outcome.request_id
        assert outcome.price == outcome.charged + outcome.loss, outcome.request_id
    running = {hold.request_id for hold in read["holds"]}
    over = {outcome.request_id for outcome in read["outcomes"]}
    assert not running & over
    assert running | over == {request.id for request in read["requests"]}
    assert {delivery.request_id for delivery in read["deliveries"]} <= running | over
    for claim in read["idempotency_claims"]:
        assert (claim.state == "running") == (claim.request_id in running), claim.request_id
