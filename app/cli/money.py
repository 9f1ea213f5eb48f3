"""``farebox credit`` and ``farebox refund``: money in, and money back. Each id moves money once."""

from typing import Annotated

import typer

from app.cli.output import emit, table
from app.cli.session import AsJson, Books, Config, amount, open_books

refunds = typer.Typer(help="Refunds: recorded first, then marked as paid out.", no_args_is_help=True)

Who = Annotated[str, typer.Argument(metavar="CUSTOMER", help="A customer's id, or one of its keys' ids.")]
Amount = Annotated[str, typer.Argument(metavar="USD", help="How much, as a decimal: 5.00")]
Id = Annotated[
    str | None, typer.Option("--id", help="An id of yours: repeated, it moves nothing again. Made up when left out.")
]
Note = Annotated[str | None, typer.Option("--note", help="Why, for the books.")]

_REFUND_COLUMNS = {
    "id": "ID",
    "customer_id": "CUSTOMER",
    "amount": "USD",
    "created_at": "RECORDED",
    "paid_at": "PAID",
    "note": "NOTE",
}


def credit(
    customer: Who,
    usd: Amount,
    *,
    credit_id: Id = None,
    kind: Annotated[
        str, typer.Option("--kind", help="top_up (you received the money), grant, goodwill, or reversal of a charge.")
    ] = "grant",
    note: Note = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Give a customer credit.

    Example: farebox credit cus_01... 50.00 --kind top_up --id invoice-2041
    """
    with open_books(config) as books:
        from app.ledger.ids import new_id
        from app.rails import funds

        now = books.clock.now_ms()
        credit_id = credit_id or new_id("credit", now)
        customer_id = books.customer_id(customer)
        transfer = funds.credit(
            credit_id=credit_id,
            customer_id=customer_id,
            amount=amount(usd, param="amount"),
            kind=kind,
            note=note,
            at=now,
        )
        first = books.post(transfer)
        balance = books.customers().read(customer_id).balance()
        body = {
            "id": credit_id,
            "customer_id": customer_id,
            "kind": kind,
            "amount": _shown(usd),
            "first": first,
            **balance,
        }
        done = "credited" if first else "had been credited before; nothing was moved again:"
        text = f"{customer_id} {done} {_shown(usd)} USD ({kind}, id {credit_id}); available {balance['available']} USD"
        emit(body, as_json=as_json, text=text)


@refunds.command(epilog="Example: farebox refund create cus_01... 12.50 --id ticket-77")
def create(
    customer: Who,
    usd: Amount,
    *,
    refund_id: Id = None,
    note: Note = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Take from a customer's own funds what is to be paid out."""
    with open_books(config) as books:
        from app.ledger.ids import new_id
        from app.rails import funds

        now = books.clock.now_ms()
        refund_id = refund_id or new_id("refund", now)
        customer_id = books.customer_id(customer)
        money = amount(usd, param="amount")
        first = books.post(funds.refund(refund_id=refund_id, customer_id=customer_id, amount=money, note=note, at=now))
        _show_refund(books, refund_id, first=first, as_json=as_json)


@refunds.command()
def paid(
    refund_id: Annotated[str, typer.Argument(metavar="REFUND_ID", help="The refund's id.")],
    note: Note = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Say that a recorded refund was paid out."""
    with open_books(config) as books:
        from app.rails import funds
        from app.rails.funds_store import FundsStore

        recorded = FundsStore(books.engine).refund(refund_id).recorded
        first = books.post(funds.refund_paid(recorded, note=note, at=books.clock.now_ms()))
        _show_refund(books, refund_id, first=first, as_json=as_json)


@refunds.command("list")
def list_refunds(
    unpaid: Annotated[bool, typer.Option("--unpaid", help="Only those that were not paid out yet.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List refunds, newest first."""
    with open_books(config) as books:
        from app.rails.funds_store import FundsStore

        rows = [record.to_dict() for record in FundsStore(books.engine).refunds(unpaid_only=unpaid)]
        emit({"refunds": rows}, as_json=as_json, text=table(rows, _REFUND_COLUMNS, empty="no refunds"))


def _show_refund(books: Books, refund_id: str, *, first: bool, as_json: bool) -> None:
    from app.rails.funds_store import FundsStore

    body = {**FundsStore(books.engine).refund(refund_id).to_dict(), "first": first}
    again = "" if first else "\n(done before; nothing was moved again)"
    emit(body, as_json=as_json, text=table([body], _REFUND_COLUMNS, empty="") + again)


def _shown(usd: str) -> str:
    from app.money import format_usd, parse_usd

    return format_usd(parse_usd(usd))
