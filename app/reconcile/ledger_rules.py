"""What must be true of the books, each rule as the select that finds the rows that break it. Pure.

Every select names its row in the column ``row``; its other columns are the values of the message.
Amounts in messages are nano-USD, as they stand in the rows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, bindparam, func, or_, select

from app.ledger.account import CUSTOMER_PREFIX
from app.ledger.decision import RUNNING, SWEPT
from app.ledger.transfer import COST, PENDING, POST, POSTED, REFUND, REFUND_PAID, USAGE_KINDS, VOID
from app.rails.funds import PAID_SUFFIX
from app.tables import (
    accounts,
    api_keys,
    attempts,
    customers,
    deliveries,
    holds,
    idempotency_claims,
    outcomes,
    owners,
    requests,
    transfers,
)

pending = transfers.alias("pending")
resolution = transfers.alias("resolution")
# The resolution of a pending transfer, for joins.
resolves = and_(resolution.c.pending_id == pending.c.id, resolution.c.phase.in_((POST, VOID)))


@dataclass(frozen=True, slots=True)
class Rule:
    """A kind of finding, the rows that are one, and how to say it."""

    kind: str
    offenders: Select[Any]
    message: str


def rules() -> list[Rule]:
    """Every rule that the database can decide by itself."""
    return [*_transfer_rules(), *_hold_rules(), *_counter_rules(), *_request_rules(), *_outcome_rules()]


def _differ(*pairs: tuple[ColumnElement[Any], ColumnElement[Any]]) -> ColumnElement[bool]:
    return or_(*(left.is_distinct_from(right) for left, right in pairs))


def _transfer_rules() -> Iterable[Rule]:
    row = resolution.c.id.label("row")
    resolved = select(row, pending.c.amount.label("held"), resolution.c.amount, resolution.c.pending_id).join_from(
        resolution, pending, resolves
    )
    yield Rule(
        "resolution_without_hold",
        select(row, resolution.c.pending_id)
        .join_from(resolution, pending, and_(resolves, pending.c.phase == PENDING), isouter=True)
        .where(resolution.c.phase.in_((POST, VOID)), pending.c.id.is_(None)),
        "resolves {pending_id}, which is no pending transfer",
    )
    yield Rule(
        "stray_pending_id",
        select(row, resolution.c.phase, resolution.c.pending_id).where(
            resolution.c.phase.in_((POSTED, PENDING)), resolution.c.pending_id.is_not(None)
        ),
        "is {phase} and yet names {pending_id}",
    )
    yield Rule(
        "resolved_twice",
        select(resolution.c.pending_id.label("row"), func.count().label("times"))
        .where(resolution.c.pending_id.is_not(None))
        .group_by(resolution.c.pending_id)
        .having(func.count() > 1),
        "was resolved {times} times",
    )
    yield Rule(
        "resolution_exceeds_hold",
        resolved.where(resolution.c.amount > pending.c.amount),
        "moves {amount} of {pending_id}, which held {held}",
    )
    yield Rule(
        "release_with_amount",
        select(row, resolution.c.amount).where(resolution.c.phase == VOID, resolution.c.amount != 0),
        "releases a hold and yet moves {amount}",
    )
    parties = ("debit_account", "credit_account", "request_id")
    yield Rule(
        "resolution_differs",
        resolved.where(_differ(*((resolution.c[name], pending.c[name]) for name in parties))),
        "has other accounts or another request than {pending_id}",
    )
    yield Rule(
        "transfer_without_request",
        select(transfers.c.id.label("row"), transfers.c.request_id).where(
            transfers.c.request_id.is_not(None),
            ~select(requests.c.id).where(requests.c.id == transfers.c.request_id).exists(),
        ),
        "belongs to request {request_id}, which is not there",
    )
    refund = transfers.alias("refund")
    paid = transfers.alias("paid")
    yield Rule(
        "refund_paid",
        select(paid.c.id.label("row"), paid.c.amount, refund.c.amount.label("refund"))
        .join_from(paid, refund, and_(paid.c.id == refund.c.id + PAID_SUFFIX, refund.c.kind == REFUND), isouter=True)
        .where(paid.c.kind == REFUND_PAID, paid.c.amount.is_distinct_from(refund.c.amount)),
        "pays out {amount} of a refund of {refund}",
    )


def _hold_rules() -> Iterable[Rule]:
    row = holds.c.id.label("row")
    yield Rule(
        "hold_without_pending",
        select(row, holds.c.amount)
        .join_from(holds, pending, and_(pending.c.id == holds.c.id, pending.c.phase == PENDING), isouter=True)
        .join(resolution, resolves, isouter=True)
        .where(or_(pending.c.id.is_(None), resolution.c.id.is_not(None))),
        "is listed as open with {amount}, and no pending transfer is",
    )
    yield Rule(
        "pending_without_hold",
        select(pending.c.id.label("row"), pending.c.amount)
        .join_from(pending, resolution, resolves, isouter=True)
        .join(holds, holds.c.id == pending.c.id, isouter=True)
        .where(pending.c.phase == PENDING, resolution.c.id.is_(None), holds.c.id.is_(None)),
        "holds {amount} and is not listed as open",
    )
    yield Rule(
        "hold_differs",
        select(row, holds.c.amount, pending.c.amount.label("pended"))
        .join_from(holds, pending, pending.c.id == holds.c.id)
        .where(
            _differ(
                (holds.c.amount, pending.c.amount),
                (holds.c.account_id, pending.c.debit_account),
                (holds.c.credit_account, pending.c.credit_account),
                (holds.c.request_id, pending.c.request_id),
            )
        ),
        "is listed with {amount}, and its pending transfer has {pended} or other parties",
    )
    yield Rule(
        "hold_payer",
        select(row, holds.c.account_id, holds.c.key_id, holds.c.request_id)
        .join_from(holds, requests, requests.c.id == holds.c.request_id)
        .where(_differ((holds.c.account_id, requests.c.account_id), (holds.c.key_id, requests.c.key_id))),
        "holds from {account_id} by {key_id}, and request {request_id} has another payer",
    )
    yield Rule(
        "hold_after_outcome",
        select(row, holds.c.request_id).join_from(holds, outcomes, outcomes.c.request_id == holds.c.request_id),
        "is open although request {request_id} is over",
    )
    yield Rule(
        "orphan_hold",
        select(row, holds.c.owner_id, holds.c.amount)
        .join_from(holds, owners, owners.c.id == holds.c.owner_id, isouter=True)
        .where(or_(owners.c.id.is_(None), owners.c.heartbeat_at_ms <= bindparam("silent_since_ms"))),
        "holds {amount} for {owner_id}, which is gone",
    )


def _counter_rules() -> Iterable[Rule]:
    held = (
        select(holds.c.key_id, func.sum(holds.c.amount).label("total"))
        .where(holds.c.key_id.is_not(None))
        .group_by(holds.c.key_id)
        .subquery()
    )
    held_total = func.coalesce(held.c.total, 0)
    yield Rule(
        "key_held",
        select(api_keys.c.id.label("row"), api_keys.c.held, held_total.label("total"))
        .join_from(api_keys, held, held.c.key_id == api_keys.c.id, isouter=True)
        .where(api_keys.c.held != held_total),
        "counts {held} as held, and its open holds are {total}",
    )
    charged = (
        select(requests.c.key_id, func.sum(outcomes.c.charged).label("total"))
        .join_from(outcomes, requests, requests.c.id == outcomes.c.request_id)
        .where(requests.c.key_id.is_not(None))
        .group_by(requests.c.key_id)
        .subquery()
    )
    charged_total = func.coalesce(charged.c.total, 0)
    yield Rule(
        "key_spent",
        select(api_keys.c.id.label("row"), api_keys.c.spent, charged_total.label("total"))
        .join_from(api_keys, charged, charged.c.key_id == api_keys.c.id, isouter=True)
        .where(api_keys.c.spent != charged_total),
        "counts {spent} as spent, and its requests were charged {total}",
    )
    spent = (
        select(api_keys.c.customer_id, func.sum(api_keys.c.spent).label("total"))
        .group_by(api_keys.c.customer_id)
        .subquery()
    )
    usage = _sum_of_transfers(USAGE_KINDS, by="debit_account")
    # A wallet that pays one request at a time has no key.
    keyless = (
        select(requests.c.account_id, func.sum(outcomes.c.charged).label("total"))
        .join_from(outcomes, requests, requests.c.id == outcomes.c.request_id)
        .where(requests.c.key_id.is_(None))
        .group_by(requests.c.account_id)
        .subquery()
    )
    spent_total = func.coalesce(spent.c.total, 0) + func.coalesce(keyless.c.total, 0)
    usage_total = func.coalesce(usage.c.total, 0)
    account_id = CUSTOMER_PREFIX + customers.c.id
    yield Rule(
        "customer_spent",
        select(customers.c.id.label("row"), spent_total.label("spent"), usage_total.label("total"))
        .join_from(customers, spent, spent.c.customer_id == customers.c.id, isouter=True)
        .join(keyless, keyless.c.account_id == account_id, isouter=True)
        .join(usage, usage.c.debit_account == account_id, isouter=True)
        .where(spent_total != usage_total),
        "has keys and requests that spent {spent}, and its account paid {total} for usage",
    )
    yield Rule(
        "customer_without_account",
        select(customers.c.id.label("row")).where(~select(accounts.c.id).where(accounts.c.id == account_id).exists()),
        "has no account",
    )
    columns = accounts.c
    available = columns.credits_posted - columns.debits_posted - columns.debits_pending + columns.credit_limit
    yield Rule(
        "below_limit",
        select(columns.id.label("row"), available.label("available"), columns.credit_limit).where(available < 0),
        "has {available} available, with its credit limit of {credit_limit}",
    )


def _request_rules() -> Iterable[Rule]:
    over = select(outcomes.c.request_id).where(outcomes.c.request_id == requests.c.id).exists()
    held = select(holds.c.id).where(holds.c.request_id == requests.c.id).exists()
    yield Rule(
        "request_lost",
        select(requests.c.id.label("row")).where(~over, ~held),
        "has neither an outcome nor an open hold",
    )
    row = outcomes.c.request_id.label("row")
    yield Rule(
        "outcome_without_request",
        select(row).where(~select(requests.c.id).where(requests.c.id == outcomes.c.request_id).exists()),
        "has an outcome and no request",
    )
    tried = select(attempts.c.request_id).where(attempts.c.request_id == outcomes.c.request_id).exists()
    yield Rule(
        "attempt_missing",
        select(row, outcomes.c.charged).where(outcomes.c.status != SWEPT, outcomes.c.charged > 0, ~tried),
        "was charged {charged} without an attempt at a provider",
    )
    still_held = select(holds.c.id).where(holds.c.request_id == idempotency_claims.c.request_id).exists()
    yield Rule(
        "claim_stuck",
        select(idempotency_claims.c.request_id.label("row")).where(idempotency_claims.c.state == RUNNING, ~still_held),
        "is over, and its idempotency key still says that it runs",
    )


def _outcome_rules() -> Iterable[Rule]:
    row = outcomes.c.request_id.label("row")
    usage = _sum_of_transfers(USAGE_KINDS, by="request_id")
    moved = func.coalesce(usage.c.total, 0)
    yield Rule(
        "outcome_charged",
        select(row, outcomes.c.charged, moved.label("total"))
        .join_from(outcomes, usage, usage.c.request_id == outcomes.c.request_id, isouter=True)
        .where(outcomes.c.charged != moved),
        "says {charged} was charged, and its transfers moved {total}",
    )
    yield Rule(
        "outcome_arithmetic",
        select(row, outcomes.c.price, outcomes.c.charged, outcomes.c.loss).where(
            outcomes.c.price != outcomes.c.charged + outcomes.c.loss
        ),
        "has the price {price}, charged {charged} and lost {loss}",
    )
    cost = _sum_of_transfers((COST,), by="request_id")
    owed = func.coalesce(cost.c.total, 0)
    yield Rule(
        "outcome_cost_moved",
        select(row, outcomes.c.cost, owed.label("total"))
        .join_from(outcomes, cost, cost.c.request_id == outcomes.c.request_id, isouter=True)
        .where(outcomes.c.cost != owed),
        "says that it cost {cost}, and its transfers moved {total}",
    )
    newest = (
        select(deliveries.c.request_id, func.max(deliveries.c.sequence).label("sequence"))
        .group_by(deliveries.c.request_id)
        .subquery()
    )
    mark = and_(deliveries.c.request_id == newest.c.request_id, deliveries.c.sequence == newest.c.sequence)
    delivered = func.coalesce(deliveries.c.used + deliveries.c.window, 0)
    yield Rule(
        "swept_price",
        select(row, outcomes.c.price, delivered.label("delivered"))
        .join_from(outcomes, newest, newest.c.request_id == outcomes.c.request_id, isouter=True)
        .join(deliveries, mark, isouter=True)
        .where(outcomes.c.status == SWEPT, outcomes.c.price > delivered),
        "was swept at {price}, and at most {delivered} can have been delivered",
    )


def _sum_of_transfers(kinds: tuple[str, ...], *, by: str) -> Any:
    column = transfers.c[by]
    return (
        select(column, func.sum(transfers.c.amount).label("total"))
        .where(transfers.c.kind.in_(kinds))
        .group_by(column)
        .subquery()
    )
