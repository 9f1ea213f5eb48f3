"""The ASGI application: paid endpoints as raw ASGI, everything else as Starlette routes.

Edges that every answer shares are here: the Host allow-list, CORS, and errors as JSON, also for paths
that do not exist.
"""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app import log, metrics
from app.api import account, admin, catalog, channels, discovery, simple_models, status, topups
from app.api.inference import PaidEndpoint
from app.api.paid_routes import PAID
from app.api.problems import problem
from app.api.services import Services
from app.api.simple import shape_of
from app.clock import Clock, SystemClock
from app.errors import FareboxError, InvalidRequest, InvariantViolated, MethodNotAllowed, NotFound
from app.ledger.ids import new_id
from app.shapes import OPENAI

EXPOSED = (
    "WWW-Authenticate, Payment-Receipt, Payment-Session, Retry-After, x-should-retry, x-request-id, "
    "x-farebox-provider, x-farebox-cost, x-farebox-max-tokens, x-farebox-next-cursor, idempotent-replayed, "
    "id, backend"
)
# The wildcard is for the headers that SDKs add of themselves; it does not cover Authorization.
ALLOWED_HEADERS = "Authorization, Content-Type, Idempotency-Key, x-api-key, Accept-Payment, Payment-Session, *"
ALLOWED_METHODS = "GET, HEAD, POST, PATCH, OPTIONS"
PREFLIGHT_HEADERS = [
    (b"access-control-allow-origin", b"*"),
    (b"access-control-allow-methods", ALLOWED_METHODS.encode()),
    (b"access-control-allow-headers", ALLOWED_HEADERS.encode()),
    (b"access-control-expose-headers", EXPOSED.encode()),
    (b"access-control-max-age", b"600"),
    (b"content-length", b"0"),
]
CORS_HEADERS = [(b"access-control-allow-origin", b"*"), (b"access-control-expose-headers", EXPOSED.encode())]
STATELESS_PATHS = ("/v1/", "/v2/", "/ai/")
# Sent twice, one of them would be believed by us and the other by whoever stands between.
SINGLE_HEADERS = (b"authorization", b"x-api-key", b"idempotency-key", b"content-type", b"content-encoding", b"host")

_log = log.get("api")

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


class Application:
    """Dispatches paid paths directly and hands the rest to Starlette."""

    def __init__(self, *, lifespan: Lifespan, allowed_hosts: tuple[str, ...]) -> None:
        self._hosts = frozenset(host.lower().encode() for host in allowed_hosts)
        self._clock: Clock = SystemClock()
        self._paid: dict[str, ASGIApp] = {}
        self.rest = Starlette(
            routes=[
                *catalog.routes,
                *simple_models.routes,
                *account.routes,
                *channels.routes,
                *topups.routes,
                *discovery.routes,
                *admin.routes,
                *status.routes,
            ],
            lifespan=lifespan,
            exception_handlers={FareboxError: _handle, 404: _not_found, 405: _wrong_method, Exception: _handle},
        )
        self.rest.router.redirect_slashes = False

    def serve_with(self, found: Services) -> None:
        """Begin to serve: called once everything is ready."""
        self.rest.state.services = found
        self._clock = found.clock
        for path, route in PAID.items():
            endpoint = PaidEndpoint(found.proxy, found.rail, route, found.wallets)
            self._paid |= {path: endpoint, path + "/": endpoint}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.rest(scope, receive, send)
            return
        refused = self._refusal(scope)
        if refused is not None:
            await _answer(send, *problem(refused, request_id=self._new_id(), shape=shape_of(scope["path"])))
            return
        if scope["path"].startswith(STATELESS_PATHS):
            if scope["method"] == "OPTIONS":
                await _answer(send, 204, [*PREFLIGHT_HEADERS, (b"x-request-id", self._new_id().encode())], b"")
                return
            if any(name == b"origin" for name, _ in scope["headers"]):
                send = _with_headers(send, CORS_HEADERS)
        paid = self._paid.get(scope["path"])
        if paid is not None:
            await paid(scope, receive, send)
        else:
            await self.rest(scope, receive, _with_headers(send, [(b"x-request-id", self._new_id().encode())]))

    def _refusal(self, scope: Scope) -> FareboxError | None:
        """What is wrong with any request, wherever it goes."""
        names = [name for name, _ in scope["headers"]]
        if len(set(names)) != len(names):
            for name in SINGLE_HEADERS:
                if names.count(name) > 1:
                    return InvalidRequest(f"send the header {name.decode()} once", param=name.decode())
        if self._hosts and not self._host_is_allowed(scope):
            return InvalidRequest("this Host is not served here", param="Host")
        return None

    def _new_id(self) -> str:
        return new_id("req", self._clock.now_ms())

    def _host_is_allowed(self, scope: Scope) -> bool:
        hosts = [value.lower() for name, value in scope["headers"] if name == b"host"]
        return len(hosts) == 1 and (hosts[0] in self._hosts or hosts[0].rsplit(b":", 1)[0] in self._hosts)


def _with_headers(send: Send, more: list[tuple[bytes, bytes]]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return sending


async def _answer(send: Send, status_code: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    await send({"type": "http.response.start", "status": status_code, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _response(request: Request, error: FareboxError) -> Response:
    status_code, headers, body = problem(error, shape=shape_of(request.scope["path"]))
    response = Response(body, status_code=status_code)
    response.raw_headers = headers
    return response


async def _handle(request: Request, error: Exception) -> Response:
    if isinstance(error, FareboxError):
        return _response(request, error)
    metrics.alerts.labels("internal_error").inc()
    _log.error("request_failed", exc_info=error)
    return _response(request, InvariantViolated("an internal error"))


async def _not_found(request: Request, _error: Exception) -> Response:
    # Not from `request.url`, which is made of the Host header and so of anything.
    path = request.scope["path"]
    shape = shape_of(path)
    there = ", ".join(known for known in PAID if shape_of(known) is shape)
    models = "/v1/models, /v1/key" if shape is OPENAI else "/ai/models"
    message = f"nothing is at {path[:200]!r}; there is {there}, {models}, and /openapi.json says it all"
    return _response(request, NotFound(message, code="unknown_path"))


async def _wrong_method(request: Request, error: Exception) -> Response:
    allowed = dict(getattr(error, "headers", None) or {}).get("Allow", "")
    error = MethodNotAllowed(f"{request.method} is not allowed here; use {allowed}", allow=allowed)
    return _response(request, error)
