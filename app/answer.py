"""What goes back besides the provider's words: errors in our terms, and answers kept for a replay."""

from collections.abc import Sequence

import orjson

from app.admission import PaidRequest
from app.delivery import EVENT_STREAM, Client
from app.errors import (
    AllProvidersFailed,
    FareboxError,
    IdempotencyConflict,
    InvalidRequest,
    InvariantViolated,
    NotFound,
    PayloadTooLarge,
    Unprocessable,
)
from app.ledger.operation import Claim, ClaimFound
from app.rails import idempotency
from app.rails.idempotency import StoredAnswer
from app.rails.rail import Payer
from app.shapes import OPENAI, Shape
from app.upstream.provider import UpstreamError
from app.upstream.sse import frame

Headers = list[tuple[str, str]]

# A replay must not end like a success where the first answer did not.
_CUT_OFF = {
    "message": "the client left here; this is all that was delivered and billed",
    "type": "server_error",
    "code": "stream_interrupted",
    "param": None,
}
_REJECTIONS: dict[int, type[FareboxError]] = {404: NotFound, 413: PayloadTooLarge, 422: Unprocessable}


def error_event(error: FareboxError, shape: Shape = OPENAI) -> bytes:
    """An error in mid-stream: SDKs raise it, where a stream that just ends would look like success."""
    return frame(orjson.dumps({"error": shape.error(error)}))


def as_ours(failed: UpstreamError, *, attempts: int, delivered: bool) -> FareboxError:
    """A provider's failure as the client sees it."""
    if failed.callers_fault:
        kind = _REJECTIONS.get(failed.status or 400, InvalidRequest)
        return kind(f"the provider refused the request: {failed.message}", code="upstream_rejected")
    if delivered:
        return AllProvidersFailed(f"the provider failed in mid-answer: {failed.message}", code="upstream_interrupted")
    tries = f"{attempts} attempt{'s' if attempts != 1 else ''}"
    return AllProvidersFailed(
        f"all providers failed after {tries}; the last: {failed.message}",
        retry_after_s=failed.retry_after_s,
        details={"attempts": attempts},
    )


class Transcript:
    """The answer to a request with an idempotency key, kept up to a bound and sealed for its payer."""

    def __init__(self, *, payer: Payer, key: str, bytes_max: int) -> None:
        self._payer = payer
        self._key = key
        self._bytes_max = bytes_max
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, data: bytes) -> None:
        """Part of a stream that was handed to the client."""
        self._size += len(data)
        if self._size <= self._bytes_max:
            self._parts.append(data)

    def sealed_whole(self, media_type: str, body: bytes, headers: Headers) -> bytes | None:
        """A whole answer, or None if it is past the bound."""
        return self._sealed(media_type, body, headers)

    def sealed_bytes(self, media_type: str, tail: bytes, headers: Headers) -> bytes | None:
        """An answer of bytes that was delivered but for its ``tail``; None if it is past the bound."""
        if self._size > self._bytes_max:
            return None
        return self._sealed(media_type, b"".join((*self._parts, tail)), headers)

    def sealed_stream(self, tail: Sequence[bytes], headers: Headers) -> bytes | None:
        """A stream as far as it was delivered, with its end; None if it is past the bound."""
        if self._size > self._bytes_max:
            return None
        end = tail or [frame(orjson.dumps({"error": _CUT_OFF}))]
        return self._sealed(EVENT_STREAM, b"".join((*self._parts, *end)), headers)

    def _sealed(self, kind: str, body: bytes, headers: Headers) -> bytes | None:
        if len(body) > self._bytes_max:
            return None
        return idempotency.seal(StoredAnswer(200, kind, headers, body), payer=self._payer, key=self._key)


async def replay(found: ClaimFound, *, claim: Claim | None, request: PaidRequest, payer: Payer, client: Client) -> None:
    """Answer from the store: nothing is charged and no provider is asked. Raises `IdempotencyConflict`."""
    key, param = request.idempotency_key, "Idempotency-Key"
    if claim is None or key is None:
        raise InvariantViolated("a claim was found that was not made")
    if found.body_hash != claim.body_hash:
        message = "this Idempotency-Key was used for another body"
        raise IdempotencyConflict(message, code="idempotency_body_differs", param=param)
    if found.state == "running":
        message = "the request with this Idempotency-Key is still running"
        raise IdempotencyConflict(message, code="idempotency_running", param=param, retry_after_s=1)
    answer = idempotency.unseal(found.answer, payer=payer, key=key) if found.answer else None
    if answer is None:
        raise IdempotencyConflict(
            f"the request with this Idempotency-Key ended, but its answer was not kept; see request "
            f"{found.request_id} at /v1/generations and use a new key to ask again",
            code="idempotency_answer_not_kept",
            param=param,
        )
    headers = [*answer.headers, ("idempotent-replayed", "true")]
    if not answer.content_type.startswith(EVENT_STREAM.split(";")[0]):
        await client.respond(answer.status, [*headers, ("content-type", answer.content_type)], answer.body)
        return
    await client.begin(headers)
    await client.send(answer.body)
    await client.end()
