"""``farebox customers``: who has a balance."""

from typing import Annotated

import typer

from app.cli.output import emit, record, table
from app.cli.session import AsJson, Config, amount, open_books

app = typer.Typer(help="Customers and their balances.", no_args_is_help=True)

_COLUMNS = {
    "id": "ID",
    "name": "NAME",
    "available": "AVAILABLE",
    "held": "HELD",
    "spent": "SPENT",
    "credit_limit": "CREDIT LIMIT",
}


@app.command("list")
def list_customers(
    after: Annotated[str, typer.Option("--after", metavar="CUSTOMER_ID", help="Begin after this customer.")] = "",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List customers with their balances in USD, oldest first, 1000 at a time."""
    with open_books(config) as books:
        rows = [customer.to_dict() for customer in books.customers().list(after=after)]
        emit({"customers": rows}, as_json=as_json, text=table(rows, _COLUMNS, empty="no customers"))


@app.command()
def show(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="A customer's id, or one of its keys' ids.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show one customer's balance."""
    with open_books(config) as books:
        body = books.customers().read(books.customer_id(customer)).to_dict()
        emit(body, as_json=as_json, text=record(body))


@app.command()
def create(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name for people.")],
    credit_limit: Annotated[
        str, typer.Option("--credit-limit", metavar="USD", help="How far the balance may go below zero.")
    ] = "0",
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Make a customer with an empty balance."""
    with open_books(config, create=True) as books:
        limit_nano_usd = amount(credit_limit, param="--credit-limit")
        body = books.customers().create(name, credit_limit=limit_nano_usd).to_dict()
        emit(body, as_json=as_json, text=record(body))


@app.command(epilog="Example: farebox customers limit cus_01... 20.00")
def limit(
    customer: Annotated[str, typer.Argument(metavar="CUSTOMER", help="A customer's id, or one of its keys' ids.")],
    credit_limit: Annotated[str, typer.Argument(metavar="USD", help="How far the balance may go below zero.")],
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Set a customer's credit limit; never below what of it is used."""
    with open_books(config) as books:
        customer_id = books.customer_id(customer)
        limit_nano_usd = amount(credit_limit, param="credit limit")
        body = books.customers().set_credit_limit(customer_id, limit_nano_usd).to_dict()
        emit(body, as_json=as_json, text=record(body))
