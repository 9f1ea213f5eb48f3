"""Reads what operators moved: one transfer by its id, and the refunds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, select

from app.clock import EpochMs, to_rfc3339
from app.errors import NotFound
from app.ledger.account import CUSTOMER_PREFIX, Account
from app.ledger.transfer import REFUND, Transfer
from app.money import format_usd
from app.rails.funds import PAID_SUFFIX, REFUND_PREFIX, check_refundable, check_same, refund_transfer_id
from app.tables import accounts, transfers

REFUNDS_LISTED_MAX = 1000


@dataclass(frozen=True, slots=True)
class RefundRecord:
    """A refund, and when it was paid out (None: not yet)."""

    recorded: Transfer
    paid_at_ms: EpochMs | None

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON shows it."""
        return {
            "id": self.recorded.id.removeprefix(REFUND_PREFIX),
            "customer_id": self.recorded.debit_account.removeprefix(CUSTOMER_PREFIX),
            "amount": format_usd(self.recorded.amount),
            "note": self.recorded.note,
            "created_at": to_rfc3339(self.recorded.created_at_ms),
            "paid_at": to_rfc3339(self.paid_at_ms) if self.paid_at_ms is not None else None,
        }


class FundsStore:
    """Reads transfers that are not usage."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def was_done(self, asked: Transfer) -> bool:
        """Whether this very transfer was posted before.

        Raises `IdempotencyConflict` if its id was used for another, and `BillingRefused` or `NotFound`
        for a refund that is still to be posted and that the payer's own funds do not cover.
        """
        with self._engine.connect() as connection:
            row = connection.execute(select(transfers).where(transfers.c.id == asked.id)).first()
            if row is None and asked.kind == REFUND:
                _check_own_funds(connection, asked)
        if row is None:
            return False
        check_same(Transfer._make(row), asked)
        return True

    def refund(self, refund_id: str) -> RefundRecord:
        """One refund. Raises `NotFound` or `InvalidRequest`."""
        found = self._refunds(transfers.c.id == refund_transfer_id(refund_id), limit=1)
        if not found:
            raise NotFound(f"there is no refund {refund_id!r}", param="id")
        return found[0]

    def refunds(self, *, unpaid_only: bool = False) -> Sequence[RefundRecord]:
        """The newest refunds. Reads the whole of `transfers`: for an operator, now and then."""
        return self._refunds(transfers.c.kind == REFUND, limit=REFUNDS_LISTED_MAX, unpaid_only=unpaid_only)

    def _refunds(
        self, condition: ColumnElement[bool], *, limit: int, unpaid_only: bool = False
    ) -> Sequence[RefundRecord]:
        paid = transfers.alias("paid")
        statement: Any = (
            select(transfers, paid.c.created_at_ms.label("paid_at_ms"))
            .join_from(transfers, paid, paid.c.id == transfers.c.id + PAID_SUFFIX, isouter=True)
            .where(condition)
            .order_by(transfers.c.created_at_ms.desc(), transfers.c.id)
            .limit(limit)
        )
        if unpaid_only:
            statement = statement.where(paid.c.id.is_(None))
        with self._engine.connect() as connection:
            return [
                RefundRecord(Transfer._make(row[: len(Transfer._fields)]), row.paid_at_ms)
                for row in connection.execute(statement)
            ]


def _check_own_funds(connection: Connection, refund: Transfer) -> None:
    columns = [accounts.c[name] for name in Account.__slots__]
    row = connection.execute(select(*columns).where(accounts.c.id == refund.debit_account)).first()
    if row is None:
        raise NotFound("there is no such customer", param="customer_id")
    account = Account(*row)
    check_refundable(refund.amount, available=account.available, credit_limit=account.credit_limit)
