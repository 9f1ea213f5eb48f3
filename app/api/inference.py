"""Paid endpoints: raw ASGI, one task per job, and a client's disconnect that is seen at once.

The request waits for the job and for ``receive()``; a disconnect ends a stream, while a whole answer
is finished and billed once. Nothing here awaits money: the job does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.types import Message, Receive, Scope, Send

from app import log, metrics
from app.admission import PaidRequest
from app.api.incoming import Incoming, Parse
from app.api.problems import problem
from app.deadline import Deadline
from app.delivery import EVENT_STREAM
from app.errors import (
    FareboxError,
    IdempotencyConflict,
    InvalidRequest,
    InvariantViolated,
    MethodNotAllowed,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from app.ledger.ids import new_id
from app.proxy import PaidJob, Proxy
from app.rails import idempotency
from app.rails.credential import is_payment, is_wallet
from app.rails.credential import parse as parse_credential
from app.rails.rail import Rail
from app.shapes import OPENAI, Shape

if TYPE_CHECKING:
    from app.api.wallets import Wallets

STREAM_HEADERS = [
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
]

_log = log.get("inference")


class ClientGone(Exception):
    """The client left before its request was read."""


class AsgiClient:
    """The client of one request, over ASGI."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def respond(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.started = True
        head = [
            (b"content-length", str(len(body)).encode()),
            *((name.encode(), value.encode("latin-1", "replace")) for name, value in headers),
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": head})
        await self._send({"type": "http.response.body", "body": body})

    async def begin(self, headers: list[tuple[str, str]], *, media_type: str = EVENT_STREAM) -> None:
        self.started = True
        # What is said of a cache for this answer stands before what is said for all streams.
        general = [pair for pair in STREAM_HEADERS if pair[0].decode() not in dict(headers)]
        head = [(b"content-type", media_type.encode("latin-1", "replace")), *general]
        head += [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers]
        await self._send({"type": "http.response.start", "status": 200, "headers": head})

    async def send(self, data: bytes) -> None:
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b""})


@dataclass(frozen=True, slots=True)
class Route:
    """One paid endpoint of a surface: how its bodies are read, and how its answers and errors look.

    ``untyped``: a body without a Content-Type is taken for what it must be.
    """

    parse: Parse
    shape: Shape = OPENAI
    multipart: bool = False
    untyped: bool = False


class PaidEndpoint:
    """One paid path; with a ``Payment`` credential and no body, any method manages a channel."""

    def __init__(self, proxy: Proxy, rail: Rail, route: Route, wallets: Wallets | None = None) -> None:
        self._proxy = proxy
        self._rail = rail
        self._route = route
        self._wallets = wallets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        client = AsgiClient(send)
        job: PaidJob | None = None
        try:
            headers: Mapping[bytes, bytes] = dict(scope["headers"])
            if self._wallets is not None and is_payment(headers):
                job = await self._paid_by_wallet(self._wallets, scope, headers, receive, client)
            else:
                job = await self._job(scope, headers, receive, client)
            if job is not None:
                await self._run(job, receive)
        except ClientGone:
            return
        except FareboxError as error:
            if error.retry_after_s is None and isinstance(error, IdempotencyConflict):
                metrics.refusals.labels("idempotency").inc()
            await self._refuse(send, error, job, started=client.started, head=scope["method"] == "HEAD")
        except Exception as error:
            metrics.alerts.labels("internal_error").inc()
            _log.error("request_failed", request_id=job.id if job else None, exc_info=error)
            await self._refuse(send, InvariantViolated("an internal error"), job, started=client.started)

    async def _job(self, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, client: AsgiClient) -> PaidJob:
        """A request paid by key, or by nothing yet: then the answer is what a wallet must do."""
        wallets = self._wallets if is_wallet(headers) else None
        if scope["method"] != "POST":
            if wallets is not None and scope["method"] in {"GET", "HEAD"}:
                raise await wallets.required(scope["path"], headers, None)
            raise MethodNotAllowed(f"{scope['method'][:20]} is not allowed here; use POST", allow="POST")
        payer = await self._rail.authenticate(headers) if wallets is None else None
        content = await self._content(headers, receive, typed=wallets is None)
        if wallets is not None and not content:
            raise await wallets.required(scope["path"], headers, None)
        request = self._parsed(scope["path"], headers, content)
        if payer is None or wallets is not None:
            if self._wallets is None:
                raise InvariantViolated("a request without a payer where no wallet is served")
            raise await self._wallets.required(scope["path"], headers, request)
        return self._proxy.job(request, payer, client)

    async def _paid_by_wallet(
        self, wallets: Wallets, scope: Scope, headers: Mapping[bytes, bytes], receive: Receive, client: AsgiClient
    ) -> PaidJob | None:
        """Content that a channel pays for; or an action on the channel, answered here: then there is no job."""
        credential = parse_credential(headers)
        content = b"" if scope["method"] == "HEAD" else await self._content(headers, receive, typed=False)
        if not content or wallets.manages(credential):
            await wallets.manage(credential, scope["path"], headers, client)
            return None
        if scope["method"] != "POST":
            raise MethodNotAllowed(f"{scope['method'][:20]} is not allowed here; use POST", allow="POST")
        self._media_type(headers)
        request = self._parsed(scope["path"], headers, content)
        # Everything that can be refused without the payer's money is refused before it moves.
        self._proxy.make_sure_of_room()
        if wallets.pays_once(credential):
            payer, request = await wallets.paid_once(credential, scope["path"], headers, request)
        else:
            payer, request = await wallets.authenticate(credential, scope["path"], headers, request)
        return self._proxy.job(request, payer, client)

    async def _content(self, headers: Mapping[bytes, bytes], receive: Receive, *, typed: bool) -> bytes:
        if typed:
            self._media_type(headers)
        server, inference = self._proxy.settings.server, self._proxy.settings.inference
        bytes_max = inference.upload_bytes_max if self._route.multipart else server.body_bytes_max
        content = await read_body(receive, headers, bytes_max=bytes_max, timeout_s=server.body_timeout_s)
        if content and not typed:
            self._media_type(headers)
        return content

    def _media_type(self, headers: Mapping[bytes, bytes]) -> None:
        value = headers.get(b"content-type", b"")
        kind = value.split(b";", 1)[0].strip().lower()
        if self._route.multipart:
            if kind != b"multipart/form-data":
                raise UnsupportedMediaType("send the body as multipart/form-data", param="Content-Type")
        elif kind != b"application/json" and not kind.endswith(b"+json") and (kind or not self._route.untyped):
            raise UnsupportedMediaType("send the body with Content-Type: application/json", param="Content-Type")

    def _parsed(self, path: str, headers: Mapping[bytes, bytes], content: bytes) -> PaidRequest:
        key = headers.get(b"idempotency-key")
        return self._route.parse(
            Incoming(
                path.rstrip("/"),
                content,
                headers.get(b"content-type", b"").decode("latin-1"),
                self._proxy.settings,
                self._proxy.catalog,
                idempotency.parse_key(key.decode("latin-1") if key is not None else None),
            )
        )

    @staticmethod
    async def _run(job: PaidJob, receive: Receive) -> None:
        task = job.start()
        gone = asyncio.ensure_future(receive())
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                job.stop("client gone")
                if not job.finishes_alone:
                    await asyncio.wait((task,))
            if task.done():
                task.result()
            else:
                task.add_done_callback(_log_failure)
        finally:
            gone.cancel()

    async def _refuse(
        self, send: Send, error: FareboxError, job: PaidJob | None, *, started: bool, head: bool = False
    ) -> None:
        if started:
            return
        request_id = job.id if job else new_id("req", self._proxy.clock.now_ms())
        status, headers, body = problem(error, request_id=request_id, shape=self._route.shape)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if head else body})


def _log_failure(task: asyncio.Task[None]) -> None:
    """Nobody waits for this job any more: its refusal goes to the log."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, FareboxError):
        _log.error("abandoned_request_failed", exc_info=error)


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], *, bytes_max: int, timeout_s: float) -> bytes:
    """The whole body, bounded in bytes and time. Raises `PayloadTooLarge`, `RequestTimeout`, `ClientGone`."""
    encoding = headers.get(b"content-encoding", b"identity").lower()
    if encoding != b"identity":
        raise UnsupportedMediaType("send the body without Content-Encoding", param="Content-Encoding")
    declared = headers.get(b"content-length", b"0")
    if not declared.isdigit():
        raise InvalidRequest("Content-Length is not a number", param="Content-Length")
    if len(declared) > 18 or int(declared) > bytes_max:
        raise PayloadTooLarge(f"the body is larger than {bytes_max} bytes")
    loop = asyncio.get_running_loop()
    ends_s = loop.time() + timeout_s
    parts: list[bytes] = []
    size = 0
    while True:
        message = await _receive(receive, ends_s - loop.time())
        part = message.get("body", b"")
        size += len(part)
        if size > bytes_max:
            raise PayloadTooLarge(f"the body is larger than {bytes_max} bytes")
        if not message.get("more_body"):
            return b"".join((*parts, part)) if parts else part
        parts.append(part)


async def _receive(receive: Receive, timeout_s: float) -> Message:
    try:
        with Deadline(timeout_s):
            message = await receive()
    except TimeoutError as error:
        raise RequestTimeout("the body arrived too slowly") from error
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message
