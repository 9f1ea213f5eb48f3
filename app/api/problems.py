"""Errors as the OpenAI surface says them: ``{"error": {"message", "type", "code", "param"}}``."""

import orjson

from app.answer import error_body
from app.errors import FareboxError, MethodNotAllowed

Headers = list[tuple[bytes, bytes]]


def problem(error: FareboxError, *, request_id: str | None = None) -> tuple[int, Headers, bytes]:
    """Status, headers and body of an error."""
    body = orjson.dumps({"error": error_body(error)})
    headers: Headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if not error.retry_helps and error.retry_after_s is None:
        # SDKs try 409 and 5xx again by themselves, which is useless here.
        headers.append((b"x-should-retry", b"false"))
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(error.retry_after_s).encode()))
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    if request_id is not None:
        headers.append((b"x-request-id", request_id.encode()))
    return error.status, headers, body
