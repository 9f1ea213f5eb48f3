"""What a key may know of itself and its account: limits, balance, usage, single requests.

Nothing here holds money, so every answer reads the key's row: a revoked key is refused at once.
A customer's keys share its balance, and so they share its usage.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.api.services import Services, services
from app.errors import AuthenticationFailed, InvalidRequest, NotFound
from app.rails.api_key import credential
from app.rails.key_store import KeyRecord
from app.rails.label import may_be_id
from app.reconcile.period import parse_moment
from app.reconcile.usage_report import (
    attempt_row,
    request_columns,
    request_row,
    sum_columns,
    sum_row,
    to_csv,
    total_row,
)
from app.reconcile.usage_store import ROWS_PER_PAGE, ROWS_PER_PAGE_MAX, GroupBy, UsageQuery

# Answers are about one payer: no cache may keep them for another.
NO_STORE = {"cache-control": "no-store"}
CURSOR_HEADER = "x-farebox-next-cursor"
FORMATS = ("json", "csv")


async def authenticated(request: Request) -> KeyRecord:
    """The key of the request as its row stands now. Raises `AuthenticationFailed`."""
    secret = credential(dict(request.headers.raw))
    if secret is None:
        raise AuthenticationFailed(
            "no API key: send Authorization: Bearer <key> or x-api-key: <key>", code="missing_api_key"
        )
    return await asyncio.to_thread(services(request).keys.authenticate, secret)


async def key_info(request: Request) -> Response:
    """``GET /v1/key``: this key's label, limits, usage and expiry."""
    key = await authenticated(request)
    rate_limit = {
        "requests_per_minute": key.limits.requests_per_minute,
        "tokens_per_minute": key.limits.tokens_per_minute,
        "requests_this_minute": key.minute_requests,
        "tokens_this_minute": key.minute_tokens,
    }
    return JSONResponse({**key.to_dict(), "rate_limit": rate_limit}, headers=NO_STORE)


async def credits(request: Request) -> Response:
    """``GET /v1/credits`` and ``/v1/balance``: exact USD decimals."""
    key = await authenticated(request)
    customer = await asyncio.to_thread(services(request).customers.read, key.customer_id)
    return JSONResponse(customer.balance(), headers=NO_STORE)


async def usage(request: Request) -> Response:
    """``GET /v1/usage``: rows, newest first, or sums by day, model or key."""
    key = await authenticated(request)
    return await usage_answer(request, account_id=key.account_id, operator=False)


async def generation(request: Request) -> Response:
    """``GET /v1/generations/{id}``: one request, to its owner alone."""
    key = await authenticated(request)
    request_id = request.path_params["request_id"]
    found = await asyncio.to_thread(services(request).usage.generation, request_id) if may_be_id(request_id) else None
    if found is None or found[0].account_id != key.account_id:
        raise NotFound(f"there is no request {request_id[:64]!r}", param="id")
    row, tried = found
    body = request_row(row, operator=False)
    body["attempts"] = [attempt_row(attempt, operator=False) for attempt in tried]
    return JSONResponse(body, headers=NO_STORE)


async def usage_answer(request: Request, *, account_id: str | None, operator: bool) -> Response:
    """Usage as the query asks for it; the admin API answers with the same. Raises `InvalidRequest`."""
    params = request.query_params
    as_csv = _one_of(params, "format", FORMATS) == "csv"
    group_by = _one_of(params, "group_by", get_args(GroupBy))
    query = UsageQuery(
        account_id=account_id,
        key_id=id_of(params, "key_id"),
        from_ms=parse_moment(params["from"], param="from") if "from" in params else None,
        to_ms=parse_moment(params["to"], param="to", end=True) if "to" in params else None,
    )
    if group_by is not None:
        return await _sums(services(request), query, by=group_by, as_csv=as_csv, operator=operator)
    limit, cursor = page_of(params)
    page = await asyncio.to_thread(services(request).usage.rows, query, limit=limit, cursor=cursor)
    rows = [request_row(row, operator=operator) for row in page.rows]
    if as_csv:
        return _csv(rows, columns=request_columns(operator=operator), next_cursor=page.next_cursor)
    return JSONResponse({"object": "list", "data": rows, "next_cursor": page.next_cursor}, headers=NO_STORE)


async def _sums(found: Services, query: UsageQuery, *, by: Any, as_csv: bool, operator: bool) -> Response:
    totals = await asyncio.to_thread(found.usage.sums, query, by=by)
    labels = await asyncio.to_thread(found.usage.labels, [total.group for total in totals]) if by == "key" else None
    rows = [sum_row(total, by=by, operator=operator, labels=labels) for total in totals]
    if as_csv:
        return _csv(rows, columns=sum_columns(by, operator=operator), next_cursor=None)
    body = {"object": "list", "group_by": by, "data": rows, "total": total_row(totals, operator=operator)}
    return JSONResponse(body, headers=NO_STORE)


def page_of(params: Mapping[str, str]) -> tuple[int, str | None]:
    """The page that a query asks for: ``limit`` and ``cursor``. Raises `InvalidRequest`."""
    text = params.get("limit", str(ROWS_PER_PAGE))
    if not (text.isascii() and text.isdigit() and len(text) <= 6 and 0 < int(text) <= ROWS_PER_PAGE_MAX):
        raise InvalidRequest(f"limit must be a number from 1 to {ROWS_PER_PAGE_MAX}", param="limit")
    return int(text), id_of(params, "cursor")


def id_of(params: Mapping[str, str], name: str) -> str | None:
    """An id from a query, if it is there. Raises `InvalidRequest`."""
    text = params.get(name)
    if text is not None and not may_be_id(text):
        raise InvalidRequest(f"{name} is not an id", param=name)
    return text


def _one_of(params: Mapping[str, str], name: str, known: tuple[str, ...]) -> str | None:
    text = params.get(name)
    if text is not None and text not in known:
        raise InvalidRequest(f"{name} must be one of {', '.join(known)}", param=name)
    return text


def _csv(rows: list[dict[str, Any]], *, columns: Sequence[str], next_cursor: str | None) -> Response:
    headers = {**NO_STORE, "content-disposition": 'attachment; filename="usage.csv"'}
    if next_cursor is not None:
        headers[CURSOR_HEADER] = next_cursor
    return Response(to_csv(rows, columns=columns), media_type="text/csv; charset=utf-8", headers=headers)


routes = [
    Route("/v1/key", key_info, methods=["GET"]),
    Route("/v1/credits", credits, methods=["GET"]),
    Route("/v1/balance", credits, methods=["GET"]),
    Route("/v1/usage", usage, methods=["GET"]),
    Route("/v1/generations/{request_id}", generation, methods=["GET"]),
]
