"""Every error a caller can meet, and how each surface of the API says it.

::

    FareboxError
    ├── InvalidRequest              400  a body or parameter, named
    │   ├── UnsupportedMediaType    415
    │   ├── PayloadTooLarge         413
    │   └── Unprocessable           422
    ├── AuthenticationFailed        401  a missing, unknown or revoked key
    ├── PermissionDenied            403  a key that may not do this
    ├── BillingRefused              402  balance or spend limit
    ├── PaymentProblem              402  a wallet must pay, or its proof is not good (RFC 9457)
    │   ├── PaymentMalformed        400
    │   ├── PaymentGone             410  a channel that is closed or was never there
    │   └── PaymentTooFast          429  vouchers of one channel, faster than they are verified
    ├── NotFound                    404
    │   └── MethodNotAllowed        405
    ├── IdempotencyConflict         409
    ├── RequestTimeout              408  the client sent its request too slowly
    ├── RateLimited                 429
    ├── AllProvidersFailed          502
    ├── NoProviderAvailable         503
    ├── Overloaded                  503  a bound of ours was reached
    └── InvariantViolated           500  a bug: stops the operation, never caught to carry on

Each class owns its HTTP status, its OpenAI ``type`` and ``code``, and whether a retry can help
(SDKs retry 409, 429 and 5xx on their own; ``x-should-retry: false`` stops them).
"""

from collections.abc import Sequence
from typing import ClassVar

# Types of payment problems stand below it (RFC 9457).
PROBLEMS = "https://paymentauth.org/problems/"


class FareboxError(Exception):
    """The root: a message for people and the fields of the error body."""

    status: ClassVar[int] = 500
    type: ClassVar[str] = "server_error"
    default_code: ClassVar[str | None] = None
    retry_helps: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
        details: dict[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.default_code
        self.param = param
        self.retry_after_s = retry_after_s
        self.details = details or {}


class InvalidRequest(FareboxError):
    """The request itself is wrong; ``param`` names what."""

    status = 400
    type = "invalid_request_error"
    default_code = "invalid_request"


class UnsupportedMediaType(InvalidRequest):
    """The body is not of a type this endpoint reads."""

    status = 415
    default_code = "unsupported_media_type"


class PayloadTooLarge(InvalidRequest):
    """The body is past its bound."""

    status = 413
    default_code = "payload_too_large"


class Unprocessable(InvalidRequest):
    """Well-formed, and a provider says that it cannot be processed."""

    status = 422
    default_code = "unprocessable"


class AuthenticationFailed(FareboxError):
    """No key, an unknown key, or one that was revoked or has expired."""

    status = 401
    type = "auth_error"
    default_code = "invalid_api_key"


class PermissionDenied(FareboxError):
    """The key is good and may not do this."""

    status = 403
    type = "permission_error"
    default_code = "permission_denied"


class BillingRefused(FareboxError):
    """The account or the key's limit cannot hold what the request may cost."""

    status = 402
    type = "billing_error"
    default_code = "insufficient_balance"


class PaymentProblem(FareboxError):
    """What stands between a wallet and what it asked for, with the challenges that would be accepted.

    ``slug`` is the problem type below `https://paymentauth.org/problems/`; ``headers`` go out with it.
    """

    status = 402
    type = "payment_required"
    default_code = "payment_required"

    def __init__(
        self,
        message: str,
        *,
        slug: str = "payment-required",
        headers: Sequence[tuple[str, str]] = (),
        retry_after_s: int | None = None,
        details: dict[str, object] | None = None,
    ) -> None:
        code = slug.rsplit("/", 1)[-1].replace("-", "_")
        super().__init__(message, code=code, retry_after_s=retry_after_s, details=details)
        self.slug = slug
        self.headers = tuple(headers)


class PaymentMalformed(PaymentProblem):
    """The credential cannot be read."""

    status = 400


class PaymentGone(PaymentProblem):
    """The channel is closed, or nobody knows it."""

    status = 410


class PaymentTooFast(PaymentProblem):
    """One channel's vouchers come faster than they are verified."""

    status = 429
    type = "rate_limit_error"
    retry_helps = True


class NotFound(FareboxError):
    """No such model, request or path."""

    status = 404
    type = "not_found_error"
    default_code = "not_found"


class MethodNotAllowed(NotFound):
    """The path exists, with another method."""

    status = 405
    default_code = "method_not_allowed"

    def __init__(self, message: str, *, allow: str) -> None:
        super().__init__(message)
        self.allow = allow


class RequestTimeout(InvalidRequest):
    """The client sent its request slower than the bound allows."""

    status = 408
    default_code = "request_timeout"


class IdempotencyConflict(FareboxError):
    """An ``Idempotency-Key`` that is in use, or was used for another body."""

    status = 409
    type = "idempotency_error"
    default_code = "idempotency_conflict"


class RateLimited(FareboxError):
    """Requests or tokens per minute of the key are used up."""

    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"
    retry_helps = True


class AllProvidersFailed(FareboxError):
    """Every candidate was tried, or the one that may have done the work failed."""

    status = 502
    default_code = "all_providers_failed"
    retry_helps = True


class NoProviderAvailable(FareboxError):
    """No candidate could be tried at all."""

    status = 503
    default_code = "no_provider_available"
    retry_helps = True


class Overloaded(FareboxError):
    """A bound of this process was reached, or it is shutting down."""

    status = 503
    default_code = "overloaded"
    retry_helps = True


class InvariantViolated(FareboxError):
    """A state that cannot be: a bug. Logged, counted, and never caught to carry on."""

    default_code = "internal_error"
