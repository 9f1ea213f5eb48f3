"""``farebox usage``: what was used, what was charged for it, and what it cost."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.output import emit, table
from app.cli.session import AsJson, Books, Config, open_books

if TYPE_CHECKING:
    from app.reconcile.usage_store import UsageQuery


class By(StrEnum):
    """What usage is added up by."""

    day = "day"
    model = "model"
    key = "key"


_ROW_COLUMNS = {
    "created_at": "WHEN",
    "id": "REQUEST",
    "model": "MODEL",
    "status": "STATUS",
    "prompt_tokens": "IN",
    "completion_tokens": "OUT",
    "units": "OTHER UNITS",
    "cost": "CHARGED",
    "provider_cost": "COST",
}
_SUM_COLUMNS = {
    "requests": "REQUESTS",
    "prompt_tokens": "IN",
    "completion_tokens": "OUT",
    "cost": "CHARGED",
    "provider_cost": "COST",
    "loss": "LOSS",
}


def usage(
    *,
    by: Annotated[By | None, typer.Option("--by", help="Add up by this; else single requests, newest first.")] = None,
    customer: Annotated[
        str | None, typer.Option("--customer", metavar="CUSTOMER", help="A customer's id, or one of its keys' ids.")
    ] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="KEY_ID", help="Only this key's.")] = None,
    since: Annotated[str | None, typer.Option("--from", metavar="DATE", help="First day or moment, UTC.")] = None,
    until: Annotated[str | None, typer.Option("--to", metavar="DATE", help="Last day, or moment before.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, max=1000, help="Requests on a page.")] = 100,
    cursor: Annotated[str | None, typer.Option("--cursor", help="Where the page before ended.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show usage in exact USD, by request or added up.

    Example: farebox usage --by model --from 2026-01-01 --to 2026-01-31
    """
    with open_books(config) as books:
        from app.ledger.account import customer_account
        from app.reconcile.period import parse_moment
        from app.reconcile.usage_report import to_csv
        from app.reconcile.usage_store import UsageQuery

        query = UsageQuery(
            account_id=customer_account(books.customer_id(customer)) if customer else None,
            key_id=key,
            from_ms=parse_moment(since, param="--from") if since else None,
            to_ms=parse_moment(until, param="--to", end=True) if until else None,
        )
        body, columns, shown = _rows(books, query, limit, cursor) if by is None else _sums(books, query, by)
        if as_csv and not as_json:
            typer.echo(to_csv(body["data"], columns=columns), nl=False)
            return
        text = table(body["data"], shown, empty="nothing was used")
        if body.get("next_cursor"):
            text += f"\nmore with --cursor {body['next_cursor']}"
        emit(body, as_json=as_json, text=text)


def _rows(
    books: Books, query: "UsageQuery", limit: int, cursor: str | None
) -> tuple[dict[str, Any], Any, dict[str, str]]:
    from app.reconcile.usage_report import request_columns, request_row
    from app.reconcile.usage_store import UsageStore

    page = UsageStore(books.engine).rows(query, limit=limit, cursor=cursor)
    rows = [request_row(row, operator=True) for row in page.rows]
    return {"data": rows, "next_cursor": page.next_cursor}, request_columns(operator=True), _ROW_COLUMNS


def _sums(books: Books, query: "UsageQuery", by: By) -> tuple[dict[str, Any], Any, dict[str, str]]:
    from app.reconcile.usage_report import sum_columns, sum_row, total_row
    from app.reconcile.usage_store import UsageStore

    store = UsageStore(books.engine)
    totals = store.sums(query, by=by.value)
    labels = store.labels([total.group for total in totals]) if by is By.key else None
    rows = [sum_row(total, by=by.value, operator=True, labels=labels) for total in totals]
    body = {"group_by": by.value, "data": rows, "total": total_row(totals, operator=True)}
    first = {by.value: by.value.upper(), "label": "LABEL"} if by is By.key else {by.value: by.value.upper()}
    return body, sum_columns(by.value, operator=True), {**first, **_SUM_COLUMNS}
