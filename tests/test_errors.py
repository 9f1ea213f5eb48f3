"""The tree of errors is the one that its module draws, and each class says what it is."""

import inspect
import re

import pytest

from app import errors
from app.errors import FareboxError

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FareboxError)]
# What the API promises for each status; a status that is not here is not promised.
TYPES = {
    400: "invalid_request_error",
    401: "auth_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    405: "not_found_error",
    408: "invalid_request_error",
    409: "idempotency_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    500: "server_error",
    502: "server_error",
    503: "server_error",
}


def test_drawn_tree_is_the_real_one() -> None:
    drawn = re.findall(r"^\s+[│├└── ]*(\w+)\s+(\d{3})\b", errors.__doc__ or "", re.MULTILINE)
    assert {name: int(status) for name, status in drawn} == {
        kind.__name__: kind.status for kind in CLASSES if kind is not FareboxError
    }


@pytest.mark.parametrize("kind", CLASSES)
def test_type_is_the_one_of_its_status(kind: type[FareboxError]) -> None:
    wallet = "rate_limit_error" if kind.status == 429 else "payment_required"
    assert kind.type == (wallet if issubclass(kind, errors.PaymentProblem) else TYPES[kind.status])
    assert kind.default_code or kind is FareboxError


@pytest.mark.parametrize("kind", CLASSES)
def test_only_what_may_pass_is_tried_again(kind: type[FareboxError]) -> None:
    assert kind.retry_helps is (kind.status in {429, 502, 503})


def test_error_keeps_what_it_was_made_with() -> None:
    error = errors.RateLimited("slow down", param="p", retry_after_s=5, details={"limit": 1})
    assert (str(error), error.message, error.code) == ("slow down", "slow down", "rate_limit_exceeded")
    assert (error.param, error.retry_after_s, error.details) == ("p", 5, {"limit": 1})
    assert errors.NotFound("no", code="mine").code == "mine"
