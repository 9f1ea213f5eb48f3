"""One request on its way: what is sent, and what its refusals say.

Source: RFC 9457 and `draft-tempo-session-00`, "Rejection and Error Responses" and "Voucher Submission Transport".
"""

import json
from dataclasses import dataclass, field
from typing import Any

import httpx

from farebox_client.amounts import wire_amount
from farebox_client.challenge import Offer
from farebox_client.channel import Channel
from farebox_client.channels import Bill
from farebox_client.errors import PaymentRefused
from farebox_client.trust import origin_of
from farebox_client.wallet import Wallet

PROBLEMS = "https://paymentauth.org/problems/"
FINALIZED = PROBLEMS + "session/channel-finalized"
GONE = frozenset({FINALIZED, PROBLEMS + "session/channel-not-found"})
REQUIRED = PROBLEMS + "payment-required"
EXCEEDS_DEPOSIT = PROBLEMS + "session/amount-exceeds-deposit"
# No other voucher would do better.
FATAL = frozenset(
    PROBLEMS + name
    for name in (
        *("session/invalid-signature", "session/signer-mismatch"),
        *("invalid-payload", "malformed-credential", "method-unsupported", "verification-failed"),
    )
)
INSUFFICIENT = PROBLEMS + "session/insufficient-balance"
DELTA_TOO_SMALL = PROBLEMS + "session/delta-too-small"
# Sending the same credential again, with another challenge or later, would not do better.
FINAL = FATAL | GONE | {EXCEEDS_DEPOSIT, DELTA_TOO_SMALL, INSUFFICIENT}
# Of the request's own headers, those that a request without its body must not have.
_BODY_HEADERS = ("content-length", "content-type", "content-encoding", "transfer-encoding", "idempotency-key", "accept")
PLACEHOLDER = "wallet"
RETRY_AFTER_MAX_S = 10.0


@dataclass(slots=True)
class Payment:
    """One request on its way, and afterwards its stream."""

    url: str
    origin: str
    headers: httpx.Headers
    extensions: dict[str, Any]
    method: str
    body: bytes
    bill: Bill = field(default_factory=Bill)
    offer: Offer | None = None
    channel: Channel | None = None
    # What the credential of the round before said.
    presented: int = 0
    prices: dict[str, str] = field(default_factory=dict)
    # How often in a row the server asked for nothing more than it was shown, in a stream and before one.
    repeats: int = 0
    stuck: int = 0
    delivered: int = 0


@dataclass(frozen=True, slots=True)
class Problem:
    """A refusal's RFC 9457 document, as far as it was one."""

    status: int
    type: str | None
    text: str
    # In base units; what this server adds to the document for channels whose challenges have no snapshot.
    required: int = 0
    # "Per-Request Processing": by how much the balance is short.
    top_up: int = 0

    def error(self) -> PaymentRefused:
        """As an exception."""
        return PaymentRefused(
            f"the server refused the payment ({self.status}): {self.text}", status=self.status, problem_type=self.type
        )


def begin(request: httpx.Request, body: bytes) -> Payment:
    """A payment for a request whose body has been read."""
    headers = httpx.Headers(request.headers)
    # The body is whole now, and is sent with its length.
    for name in ("transfer-encoding", "content-length", "payment-session"):
        headers.pop(name, None)
    # What stands in for a key in SDKs that insist on one is no credential.
    if headers.get("authorization", "").lower() == f"bearer {PLACEHOLDER}":
        del headers["authorization"]
    if headers.get("x-api-key", "").lower() == PLACEHOLDER:
        del headers["x-api-key"]
    # Payment events could not be seen in a compressed stream.
    headers["accept-encoding"] = "identity"
    url = str(request.url)
    return Payment(url, origin_of(url), headers, dict(request.extensions), request.method, body)


def request_of(
    wallet: Wallet,
    payment: Payment,
    *,
    offer: Offer | None = None,
    payload: dict[str, Any] | None = None,
    session: str | None = None,
    manage: bool = False,
) -> httpx.Request:
    """The request unpaid, or with a credential; with ``manage``, the credential alone, by POST and without a body."""
    headers = httpx.Headers(payment.headers)
    if manage:
        for name in _BODY_HEADERS:
            headers.pop(name, None)
    if session is None and payment.channel is not None:
        session = payment.channel.channel_id
    if session is not None:
        headers["payment-session"] = session
    if offer is not None and payload is not None:
        headers.pop("x-api-key", None)
        headers["authorization"] = offer.authorization(payload, payer=wallet.address)
    body = b"" if manage else payment.body
    method = "POST" if manage else payment.method
    if body or method in {"POST", "PUT", "PATCH"}:
        headers["content-length"] = str(len(body))
    return httpx.Request(method, payment.url, headers=headers, content=body, extensions=payment.extensions)


def read_problem(status: int, content: bytes) -> Problem:
    """A refusal's body, whatever it is."""
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        return Problem(status, None, content[:200].decode("utf-8", "replace").strip() or "it said nothing more")
    nested = document.get("error")
    message = nested.get("message") if isinstance(nested, dict) else None
    text = document.get("detail") or message or document.get("title") or "it said nothing more"
    kind = document.get("type")
    amounts = [_amount(document.get(name)) for name in ("requiredCumulative", "requiredTopUp")]
    return Problem(status, kind if isinstance(kind, str) else None, str(text)[:1000], *amounts)


def _amount(value: object) -> int:
    try:
        return wire_amount(value)
    except ValueError:
        return 0


def retry_after(response: httpx.Response) -> float:
    """Seconds that the server asks to wait, within reason; 0 where it does not."""
    text = response.headers.get("retry-after", "")
    return min(float(text), RETRY_AFTER_MAX_S) if text.isascii() and text.isdigit() else 0.0
