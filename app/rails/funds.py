"""Money that operators move: credits to a customer, and refunds from one. Pure.

Each is one transfer whose id the caller chose, posted through the journal like every other, so that
doing it twice does it once. Where the money comes from depends on why it is given:

========  ============  ====================================================================
kind      debited       why
========  ============  ====================================================================
top_up    treasury      the operator received the money
grant     adjustments   given: nobody paid for it
goodwill  adjustments   given to make up for something
reversal  revenue       a charge is given back; what the customer spent stays spent
========  ============  ====================================================================

A refund is recorded (customer to `refunds`) before it is paid out, and then marked as paid
(`refunds` to `treasury`), each once.
"""

from collections.abc import Mapping

from app.clock import EpochMs
from app.errors import BillingRefused, IdempotencyConflict, InvalidRequest, InvariantViolated, NotFound
from app.ledger.account import ADJUSTMENTS, REFUNDS, REVENUE, TREASURY, customer_account
from app.ledger.operation import Posted, Refused, Result
from app.ledger.transfer import GOODWILL, GRANT, POSTED, REFUND, REFUND_PAID, REVERSAL, TOP_UP, Transfer
from app.money import AMOUNT_NANO_USD_MAX, NanoUsd, format_usd
from app.rails.label import checked_caller_id, checked_label, may_be_id

# The id of a refund's pay-out is the refund's own with this behind it.
PAID_SUFFIX = ":paid"
REFUND_PREFIX = "refund:"
CREDIT_PREFIX = "credit:"

CREDITED_FROM: Mapping[str, str] = {
    TOP_UP: TREASURY,
    GRANT: ADJUSTMENTS,
    GOODWILL: ADJUSTMENTS,
    REVERSAL: REVENUE,
}


def credit(*, credit_id: str, customer_id: str, amount: NanoUsd, kind: str, note: str | None, at: EpochMs) -> Transfer:
    """The transfer that gives ``amount`` to a customer. Raises `InvalidRequest`."""
    if kind not in CREDITED_FROM:
        raise InvalidRequest(f"kind must be one of {', '.join(CREDITED_FROM)}", param="kind")
    transfer_id = CREDIT_PREFIX + checked_caller_id(credit_id, param="id")
    parties = (CREDITED_FROM[kind], _account(customer_id))
    return _posted(transfer_id, kind, parties, amount=amount, note=note, at=at)


def refund(*, refund_id: str, customer_id: str, amount: NanoUsd, note: str | None, at: EpochMs) -> Transfer:
    """The transfer that takes ``amount`` from a customer, to be paid out. Raises `InvalidRequest`."""
    parties = (_account(customer_id), REFUNDS)
    return _posted(refund_transfer_id(refund_id), REFUND, parties, amount=amount, note=note, at=at)


def refund_paid(recorded: Transfer, *, note: str | None, at: EpochMs) -> Transfer:
    """The transfer that says that a recorded refund was paid out."""
    paid_id, parties = recorded.id + PAID_SUFFIX, (REFUNDS, TREASURY)
    return _posted(paid_id, REFUND_PAID, parties, amount=recorded.amount, note=note, at=at)


def refund_transfer_id(refund_id: str) -> str:
    """Where a refund is recorded. Raises `InvalidRequest`."""
    return REFUND_PREFIX + checked_caller_id(refund_id, param="id")


def check_refundable(amount: NanoUsd, *, available: NanoUsd, credit_limit: NanoUsd) -> None:
    """A refund returns a customer's own funds, never what it may owe. Raises `BillingRefused`."""
    own = NanoUsd(available - credit_limit)
    if amount > own:
        raise _insufficient(available=NanoUsd(max(own, 0)), required=amount)


def check_same(done: Transfer, asked: Transfer) -> None:
    """That an id was used for the same thing before. Raises `IdempotencyConflict`."""
    if (done.kind, done.debit_account, done.credit_account, done.amount) != (
        asked.kind,
        asked.debit_account,
        asked.credit_account,
        asked.amount,
    ):
        raise IdempotencyConflict(
            f"this id was used before for another transfer: {done.kind} of {format_usd(done.amount)} USD "
            f"from {done.debit_account} to {done.credit_account}",
            param="id",
        )


def check_posted(result: Result) -> bool:
    """Whether the journal did it now (or had done it before). Raises why it refused."""
    match result:
        case Posted(first=first):
            return first
        case Refused(reason="insufficient_balance", available=available, required=required):
            raise _insufficient(available=available, required=required)
        case Refused(reason="transfer_differs"):
            raise IdempotencyConflict("this id was used before with another amount", param="id")
        case Refused(reason="no_account"):
            raise NotFound("there is no such customer", param="customer_id")
        case _:
            raise InvariantViolated(f"a posted transfer cannot answer {result!r}")


def _account(customer_id: str) -> str:
    if not may_be_id(customer_id):
        raise NotFound("there is no such customer", param="customer_id")
    return customer_account(customer_id)


def _insufficient(*, available: NanoUsd, required: NanoUsd) -> BillingRefused:
    return BillingRefused(
        f"{format_usd(required)} USD is more than the {format_usd(available)} USD that can be taken",
        details={"required": format_usd(required), "available": format_usd(available)},
    )


def _posted(
    transfer_id: str, kind: str, parties: tuple[str, str], *, amount: NanoUsd, note: str | None, at: EpochMs
) -> Transfer:
    """A posted transfer between ``(debited, credited)``."""
    if not 0 < amount <= AMOUNT_NANO_USD_MAX:
        raise InvalidRequest("amount must be positive and in range", param="amount")
    kept = checked_label(note, param="note") if note else None
    return Transfer(transfer_id, kind, POSTED, *parties, amount, None, None, kept, at)
