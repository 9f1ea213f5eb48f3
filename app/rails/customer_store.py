"""Customers, and what their accounts hold.

A customer and its ledger account are one fact, so they are made in one transaction.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Engine, Row, func, insert, select, update

from app.clock import Clock, EpochMs, to_rfc3339
from app.errors import InvalidRequest, NotFound
from app.ledger.account import CUSTOMER_PREFIX, Account, customer_account
from app.ledger.ids import new_id
from app.money import AMOUNT_NANO_USD_MAX, ZERO, NanoUsd, format_usd
from app.rails.label import checked_label, may_be_id
from app.tables import accounts, api_keys, customers

CUSTOMERS_LISTED_MAX = 1000
CURRENCY = "USD"


@dataclass(frozen=True, slots=True)
class CustomerRecord:
    """A customer and its balance: ``available`` includes the credit limit and excludes what is held."""

    id: str
    name: str
    account_id: str
    created_at_ms: EpochMs
    available: NanoUsd
    held: NanoUsd
    spent: NanoUsd
    credit_limit: NanoUsd

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON shows it."""
        return {"id": self.id, "name": self.name, "created_at": to_rfc3339(self.created_at_ms), **self.balance()}

    def balance(self) -> dict[str, Any]:
        """The balance alone; amounts are exact USD decimals."""
        return {
            "available": format_usd(self.available),
            "held": format_usd(self.held),
            "spent": format_usd(self.spent),
            "credit_limit": format_usd(self.credit_limit),
            "currency": CURRENCY,
        }


class CustomerStore:
    """Makes, reads and limits customers.

    ``spent`` is usage alone. An account's posted debits also count refunds, so it is the sum of the
    counters of the customer's keys: the journal moves those in the commit that charges (by what was
    captured and overrun, nothing else), keys are never deleted, and `ledger check` proves them
    against the transfers. It costs a read of a few rows and no index that every request would pay for.
    """

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock

    def create(self, name: str, *, credit_limit: NanoUsd = ZERO) -> CustomerRecord:
        """A new customer with an empty account."""
        _check_limit(credit_limit)
        now = self._clock.now_ms()
        customer_id = new_id("cus", now)
        counters = dict.fromkeys(("debits_pending", "debits_posted", "credits_pending", "credits_posted", "version"), 0)
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            connection.execute(
                insert(customers).values(id=customer_id, name=checked_label(name, param="name"), created_at_ms=now)
            )
            connection.execute(
                insert(accounts).values(
                    id=customer_account(customer_id), credit_limit=credit_limit, created_at_ms=now, **counters
                )
            )
        return self.read(customer_id)

    def read(self, customer_id: str) -> CustomerRecord:
        """One customer. Raises `NotFound`."""
        rows = self._select(customers.c.id == customer_id, limit=1) if may_be_id(customer_id) else []
        if not rows:
            raise _unknown(customer_id)
        return rows[0]

    def list(self, *, after: str = "", limit: int = CUSTOMERS_LISTED_MAX) -> Sequence[CustomerRecord]:
        """Customers in the order of their ids, those past ``after``."""
        return self._select(customers.c.id > after, limit=min(limit, CUSTOMERS_LISTED_MAX))

    def set_credit_limit(self, customer_id: str, credit_limit: NanoUsd) -> CustomerRecord:
        """How far the balance may go below zero.

        Refused below what is already used or held of it, by a condition in the database, so that no
        balance is ever under its limit. Raises `InvalidRequest` or `NotFound`.
        """
        _check_limit(credit_limit)
        known = self.read(customer_id)
        columns = accounts.c
        free = columns.credits_posted - columns.debits_posted - columns.debits_pending + credit_limit
        change = (
            update(accounts)
            .where(columns.id == known.account_id, free >= 0)
            .values(credit_limit=credit_limit, version=columns.version + 1)
        )
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            changed = connection.execute(change).rowcount
        now = self.read(customer_id)
        if not changed:
            used = NanoUsd(now.credit_limit - now.available)
            raise InvalidRequest(
                f"{format_usd(used)} USD of credit is used or held: the limit cannot be lower", param="credit_limit"
            )
        return now

    def _select(self, condition: ColumnElement[bool], *, limit: int) -> Sequence[CustomerRecord]:
        spent = (
            select(func.coalesce(func.sum(api_keys.c.spent), 0))
            .where(api_keys.c.customer_id == customers.c.id)
            .scalar_subquery()
        )
        statement = (
            select(customers, *(accounts.c[name] for name in Account.__slots__ if name != "id"), spent.label("spent"))
            .join(accounts, accounts.c.id == CUSTOMER_PREFIX + customers.c.id)
            .where(condition)
            .order_by(customers.c.id)
            .limit(limit)
        )
        with self._engine.connect() as connection:
            return [_record(row) for row in connection.execute(statement)]


def _record(row: Row[Any]) -> CustomerRecord:
    account_id = customer_account(row.id)
    account = Account(
        account_id,
        row.debits_pending,
        row.debits_posted,
        row.credits_pending,
        row.credits_posted,
        row.credit_limit,
        row.version,
    )
    return CustomerRecord(
        id=row.id,
        name=row.name,
        account_id=account_id,
        created_at_ms=EpochMs(row.created_at_ms),
        available=account.available,
        held=account.debits_pending,
        # PostgreSQL sums BIGINT as NUMERIC.
        spent=NanoUsd(int(row.spent)),
        credit_limit=account.credit_limit,
    )


def _check_limit(credit_limit: NanoUsd) -> None:
    if not 0 <= credit_limit <= AMOUNT_NANO_USD_MAX:
        raise InvalidRequest("credit_limit is never negative, and in range", param="credit_limit")


def _unknown(customer_id: str) -> NotFound:
    return NotFound(f"there is no customer {customer_id[:64]!r}", param="customer_id")
