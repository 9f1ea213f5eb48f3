"""``/admin/api/*``: what the command line does, for operators' programs.

Off until the admin token is set. Every movement of money carries an id that the caller chose and goes
through the journal, so that a repeated call moves nothing twice.
"""

import asyncio
import hmac
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from functools import wraps
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.api.account import NO_STORE, id_of, page_of, usage_answer
from app.api.json_body import parse_object
from app.api.services import Services, services
from app.errors import (
    AuthenticationFailed,
    InvalidRequest,
    Overloaded,
    PayloadTooLarge,
    PermissionDenied,
    RequestTimeout,
)
from app.ledger.account import customer_account
from app.ledger.operation import Post
from app.ledger.transfer import GRANT, Transfer
from app.money import format_usd, parse_usd
from app.rails import funds
from app.rails.funds_store import FundsStore
from app.rails.key_store import KeyLimits
from app.reconcile import ledger_check
from app.reconcile.period import parse_moment
from app.reconcile.price_report import model_rows, price_row
from app.routing.defaults import wishes_of
from app.routing.wishes import NO_WISHES, Wishes

BODY_BYTES_MAX = 65_536
BODY_DEPTH_MAX = 8
REALM = "Bearer "

Handler = Callable[[Request], Awaitable[Response]]


def _usd(text: str) -> str:
    parse_usd(text)
    return text


# Amounts are decimal strings: a JSON number would pass through a float somewhere.
Usd = Annotated[str, AfterValidator(_usd)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)


class NewCustomer(_Body):
    name: str
    credit_limit: Usd = "0"


class CreditLimit(_Body):
    credit_limit: Usd


class Limits(_Body):
    """A key's limits and routing; in a change, what is left out stays, and null takes away.

    ``routing`` is replaced as a whole.
    """

    spend_limit: Usd | None = None
    spend_limit_month: Usd | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    models: list[str] | None = None
    expires_at: str | None = None
    routing: dict[str, Any] | None = None

    def wishes(self) -> Wishes | None:
        """What ``routing`` says; None where it is left out. Raises `InvalidRequest`."""
        return wishes_of(self.routing or {}) if "routing" in self.model_fields_set else None

    def over(self, limits: KeyLimits) -> KeyLimits:
        """``limits`` with the given ones in their place. Raises `InvalidRequest`."""

        def chosen(name: str, old: Any, new: Callable[[Any], Any]) -> Any:
            value = getattr(self, name)
            return old if name not in self.model_fields_set else None if value is None else new(value)

        return KeyLimits(
            spend_limit=chosen("spend_limit", limits.spend_limit, parse_usd),
            spend_limit_month=chosen("spend_limit_month", limits.spend_limit_month, parse_usd),
            requests_per_minute=chosen("requests_per_minute", limits.requests_per_minute, int),
            tokens_per_minute=chosen("tokens_per_minute", limits.tokens_per_minute, int),
            models=chosen("models", limits.models, tuple),
            expires_at_ms=chosen(
                "expires_at", limits.expires_at_ms, lambda text: parse_moment(text, param="expires_at")
            ),
        )


class NewKey(Limits):
    customer_id: str
    label: str = "key"


class Credit(_Body):
    id: str
    customer_id: str
    amount: Usd
    kind: str = GRANT
    note: str | None = None


class Refund(_Body):
    id: str
    customer_id: str
    amount: Usd
    note: str | None = None


class Paid(_Body):
    note: Annotated[str | None, Field(description="how it was paid out")] = None


Model = TypeVar("Model", bound=_Body)

# The books are read whole: two proofs at once would only slow each other down.
_checking = threading.Lock()


def require_admin(request: Request) -> None:
    """That the request carries the admin token. Raises `PermissionDenied` or `AuthenticationFailed`."""
    variable = services(request).settings.server.admin_token_env
    token = os.environ.get(variable, "").strip()
    if not token:
        raise PermissionDenied(
            f"the admin API is off: set the environment variable {variable} to a long random token and restart",
            code="admin_api_off",
        )
    given = request.headers.get("authorization", "")
    if given[: len(REALM)].lower() != REALM.lower() or not hmac.compare_digest(
        given[len(REALM) :].strip().encode(), token.encode(errors="surrogateescape")
    ):
        raise AuthenticationFailed("the admin token is missing or wrong", code="invalid_admin_token")


def _admin(handler: Handler) -> Handler:
    @wraps(handler)
    async def guarded(request: Request) -> Response:
        require_admin(request)
        return await handler(request)

    return guarded


async def _body(request: Request, model: type[Model]) -> Model:
    """The request's JSON body, bounded in size and time. Raises `InvalidRequest` naming what is wrong."""
    content = bytearray()
    try:
        async with asyncio.timeout(services(request).settings.server.body_timeout_s):
            async for chunk in request.stream():
                content += chunk
                if len(content) > BODY_BYTES_MAX:
                    raise PayloadTooLarge(f"the body is larger than {BODY_BYTES_MAX} bytes")
    except TimeoutError as error:
        raise RequestTimeout("the body did not arrive in time") from error
    try:
        return model.model_validate(parse_object(bytes(content), depth_max=BODY_DEPTH_MAX))
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        param = ".".join(map(str, first["loc"])) or None
        raise InvalidRequest(f"{param or 'the body'}: {first['msg']}", param=param) from error


def _answer(body: dict[str, Any], *, status: int = 200) -> Response:
    return JSONResponse(body, status_code=status, headers=NO_STORE)


def _list(rows: Sequence[dict[str, Any]], *, limit: int) -> Response:
    # A full page may have a successor; the last row's id is where it begins.
    cursor = rows[-1]["id"] if len(rows) == limit else None
    return _answer({"object": "list", "data": rows, "next_cursor": cursor})


async def create_customer(request: Request) -> Response:
    """``POST customers``."""
    body = await _body(request, NewCustomer)
    store = services(request).customers
    customer = await asyncio.to_thread(store.create, body.name, credit_limit=parse_usd(body.credit_limit))
    return _answer(customer.to_dict(), status=201)


async def list_customers(request: Request) -> Response:
    """``GET customers``."""
    limit, cursor = page_of(request.query_params)
    found = await asyncio.to_thread(services(request).customers.list, after=cursor or "", limit=limit)
    return _list([customer.to_dict() for customer in found], limit=limit)


async def show_customer(request: Request) -> Response:
    """``GET customers/{id}``."""
    customer = await asyncio.to_thread(services(request).customers.read, request.path_params["id"])
    return _answer(customer.to_dict())


async def change_customer(request: Request) -> Response:
    """``PATCH customers/{id}``: the credit limit."""
    limit = parse_usd((await _body(request, CreditLimit)).credit_limit)
    store = services(request).customers
    return _answer((await asyncio.to_thread(store.set_credit_limit, request.path_params["id"], limit)).to_dict())


async def create_key(request: Request) -> Response:
    """``POST keys``: the answer is the only place where the key ever stands."""
    body = await _body(request, NewKey)
    keys, limits, wishes = services(request).keys, body.over(KeyLimits()), body.wishes() or NO_WISHES
    record, secret = await asyncio.to_thread(keys.create, body.customer_id, body.label, limits, routing=wishes)
    return _answer({**record.to_dict(), "key": secret}, status=201)


async def list_keys(request: Request) -> Response:
    """``GET keys``, of one customer with ``customer_id``."""
    limit, cursor = page_of(request.query_params)
    customer_id = id_of(request.query_params, "customer_id")
    found = await asyncio.to_thread(services(request).keys.list, customer_id, after=cursor or "", limit=limit)
    return _list([key.to_dict() for key in found], limit=limit)


async def show_key(request: Request) -> Response:
    """``GET keys/{id}``."""
    return _answer((await asyncio.to_thread(services(request).keys.read, request.path_params["id"])).to_dict())


async def change_key(request: Request) -> Response:
    """``PATCH keys/{id}``: its limits and its routing."""
    body = await _body(request, Limits)
    keys, key_id, wishes = services(request).keys, request.path_params["id"], body.wishes()

    def change() -> dict[str, Any]:
        return keys.set_limits(key_id, body.over(keys.read(key_id).limits), routing=wishes).to_dict()

    return _answer(await asyncio.to_thread(change))


async def rotate_key(request: Request) -> Response:
    """``POST keys/{id}/rotate``: a new secret, shown here alone."""
    record, secret = await asyncio.to_thread(services(request).keys.rotate, request.path_params["id"])
    return _answer({**record.to_dict(), "key": secret})


async def revoke_key(request: Request) -> Response:
    """``POST keys/{id}/revoke``."""
    return _answer((await asyncio.to_thread(services(request).keys.revoke, request.path_params["id"])).to_dict())


async def create_credit(request: Request) -> Response:
    """``POST credits``: give a customer money, once per ``id``."""
    body, found = await _body(request, Credit), services(request)
    transfer = funds.credit(
        credit_id=body.id,
        customer_id=body.customer_id,
        amount=parse_usd(body.amount),
        kind=body.kind,
        note=body.note,
        at=found.clock.now_ms(),
    )
    first = await _post(found, transfer)
    customer = await asyncio.to_thread(found.customers.read, body.customer_id)
    moved = {"id": body.id, "kind": transfer.kind, "amount": format_usd(transfer.amount), "first": first}
    return _answer({**moved, "customer": customer.to_dict()}, status=201 if first else 200)


async def create_refund(request: Request) -> Response:
    """``POST refunds``: take what is to be paid out, once per ``id``."""
    body, found = await _body(request, Refund), services(request)
    transfer = funds.refund(
        refund_id=body.id,
        customer_id=body.customer_id,
        amount=parse_usd(body.amount),
        note=body.note,
        at=found.clock.now_ms(),
    )
    first = await _post(found, transfer)
    return _answer(await _refund(found, body.id, first=first), status=201 if first else 200)


async def pay_refund(request: Request) -> Response:
    """``POST refunds/{id}/paid``: say that it was paid out, once."""
    body, found = await _body(request, Paid), services(request)
    refund_id = request.path_params["id"]
    record = await asyncio.to_thread(FundsStore(found.engine).refund, refund_id)
    paid = funds.refund_paid(record.recorded, note=body.note, at=found.clock.now_ms())
    first = await _post(found, paid)
    return _answer(await _refund(found, refund_id, first=first))


async def show_refund(request: Request) -> Response:
    """``GET refunds/{id}``."""
    record = await asyncio.to_thread(FundsStore(services(request).engine).refund, request.path_params["id"])
    return _answer(record.to_dict())


async def list_refunds(request: Request) -> Response:
    """``GET refunds``; ``unpaid=true`` leaves out those that were paid."""
    unpaid = request.query_params.get("unpaid") == "true"
    found = await asyncio.to_thread(FundsStore(services(request).engine).refunds, unpaid_only=unpaid)
    return _answer({"object": "list", "data": [record.to_dict() for record in found]})


async def _refund(found: Services, refund_id: str, *, first: bool) -> dict[str, Any]:
    record = await asyncio.to_thread(FundsStore(found.engine).refund, refund_id)
    return {**record.to_dict(), "first": first}


async def _post(found: Services, transfer: Transfer) -> bool:
    """Post through the journal; true if it was done now. A repeated id must say the same thing."""
    if await asyncio.to_thread(FundsStore(found.engine).was_done, transfer):
        return False
    first = funds.check_posted(await found.journal.submit(Post(transfer)))
    if not first:
        await asyncio.to_thread(FundsStore(found.engine).was_done, transfer)
    return first


async def list_models(request: Request) -> Response:
    """``GET models``: as configured, with prices and costs."""
    return _answer({"object": "list", "data": model_rows(services(request).settings.providers)})


async def list_providers(request: Request) -> Response:
    """``GET providers``: how each does with each model, as this process sees it: breakers, pace, success."""
    proxy = services(request).proxy
    states = [state for candidates in proxy.catalog.models.values() for state in proxy.router.state(candidates)]
    return _answer({"object": "list", "data": [asdict(state) for state in states]})


async def list_prices(request: Request) -> Response:
    """``GET prices``: the current versions; ``history=true`` for all, of one ``model`` if given."""
    store, params = services(request).prices, request.query_params
    model = id_of(params, "model")
    if params.get("history") == "true":
        rows = [price_row(version, at) for version, at in await asyncio.to_thread(store.history, model)]
    else:
        current = await asyncio.to_thread(store.current)
        rows = [price_row(version) for version in current if model in (None, version.model)]
    return _answer({"object": "list", "data": rows})


async def usage(request: Request) -> Response:
    """``GET usage``: like ``/v1/usage``, of all customers or of ``customer_id``."""
    customer_id = id_of(request.query_params, "customer_id")
    account_id = customer_account(customer_id) if customer_id is not None else None
    return await usage_answer(request, account_id=account_id, operator=True)


async def check_ledger(request: Request) -> Response:
    """``GET ledger/check``: the proof of the books; green or not is in the answer. One at a time."""
    found = services(request)

    def check() -> dict[str, Any]:
        if not _checking.acquire(blocking=False):
            raise Overloaded("a ledger check is already running", retry_after_s=10)
        try:
            return ledger_check.check(found.engine, found.clock, found.settings.ledger.lease_ttl_s).to_dict()
        finally:
            _checking.release()

    return _answer(await asyncio.to_thread(check))


def _route(path: str, handler: Handler, method: str) -> Route:
    return Route(f"/admin/api/{path}", _admin(handler), methods=[method])


routes = [
    _route("customers", create_customer, "POST"),
    _route("customers", list_customers, "GET"),
    _route("customers/{id}", show_customer, "GET"),
    _route("customers/{id}", change_customer, "PATCH"),
    _route("keys", create_key, "POST"),
    _route("keys", list_keys, "GET"),
    _route("keys/{id}", show_key, "GET"),
    _route("keys/{id}", change_key, "PATCH"),
    _route("keys/{id}/rotate", rotate_key, "POST"),
    _route("keys/{id}/revoke", revoke_key, "POST"),
    _route("credits", create_credit, "POST"),
    _route("refunds", create_refund, "POST"),
    _route("refunds", list_refunds, "GET"),
    _route("refunds/{id}", show_refund, "GET"),
    _route("refunds/{id}/paid", pay_refund, "POST"),
    _route("models", list_models, "GET"),
    _route("providers", list_providers, "GET"),
    _route("prices", list_prices, "GET"),
    _route("usage", usage, "GET"),
    _route("ledger/check", check_ledger, "GET"),
]
