"""Errors as their surface says them; OpenAI's: ``{"error": {"message", "type", "code", "param"}}``."""

import orjson

from app.errors import PROBLEMS, FareboxError, MethodNotAllowed, PaymentProblem
from app.shapes import OPENAI, Shape

Headers = list[tuple[bytes, bytes]]


def problem(error: FareboxError, *, request_id: str | None = None, shape: Shape = OPENAI) -> tuple[int, Headers, bytes]:
    """Status, headers and body of an error."""
    kind = b"application/json"
    content: dict[str, object] = {"error": shape.error(error)}
    if isinstance(error, PaymentProblem):
        # RFC 9457, with the OpenAI error object beside it for SDKs that have no wallet.
        kind, content = b"application/problem+json", problem_details(error) | content
    body = orjson.dumps(content)
    headers: Headers = [
        (b"content-type", kind),
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
    if isinstance(error, PaymentProblem):
        headers += [(name.encode(), value.encode("latin-1", "replace")) for name, value in error.headers]
    return error.status, headers, body


def problem_details(error: PaymentProblem) -> dict[str, object]:
    """The members of RFC 9457, and what else the problem's type has."""
    title = error.slug.rsplit("/", 1)[-1].replace("-", " ").capitalize()
    return {
        "type": PROBLEMS + error.slug,
        "title": title,
        "status": error.status,
        "detail": error.message,
        **error.details,
    }
