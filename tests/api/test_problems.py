"""Every error has one shape, and tells a client whether trying again can help."""

import inspect
import json

import pytest

from app import errors
from app.api.problems import problem
from app.errors import FareboxError, MethodNotAllowed, PaymentProblem
from app.shapes import OPENAI

ALL = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, FareboxError)]
CLASSES = [kind for kind in ALL if not issubclass(kind, PaymentProblem)]
PAYMENT = [kind for kind in ALL if issubclass(kind, PaymentProblem)]
RETRIED = {429, 502, 503}


def made(kind: type[FareboxError]) -> FareboxError:
    return kind("why", allow="GET, HEAD") if issubclass(kind, MethodNotAllowed) else kind("why")


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_the_one_shape(kind: type[FareboxError]) -> None:
    error = made(kind)
    status, headers, body = problem(error, request_id="req_1")
    assert json.loads(body) == {
        "error": {"message": "why", "type": error.type, "code": error.default_code, "param": None}
    }
    found = dict(headers)
    assert len(found) == len(headers)
    assert found[b"content-type"] == b"application/json"
    assert int(found[b"content-length"]) == len(body)
    assert found[b"cache-control"] == b"no-store"
    assert found[b"x-request-id"] == b"req_1"
    assert (found.get(b"x-should-retry") == b"false") is (status not in RETRIED)
    assert (b"www-authenticate" in found) is (status == 401)
    assert found.get(b"allow") == (b"GET, HEAD" if status == 405 else None)
    assert b"retry-after" not in found


@pytest.mark.parametrize("kind", PAYMENT)
def test_a_payment_problem_is_a_problem_document_with_the_one_shape_inside(kind: type[PaymentProblem]) -> None:
    error = kind("why", slug="session/delta-too-small", headers=[("WWW-Authenticate", "Payment x")], details={"a": "1"})
    status, headers, body = problem(error, request_id="req_1")
    assert status == kind.status
    assert json.loads(body) == {
        "type": "https://paymentauth.org/problems/session/delta-too-small",
        "title": "Delta too small",
        "status": status,
        "detail": "why",
        "a": "1",
        "error": {"message": "why", "type": error.type, "code": "delta_too_small", "param": None, "a": "1"},
    }
    found = dict(headers)
    assert found[b"content-type"] == b"application/problem+json"
    assert found[b"cache-control"] == b"no-store"
    assert found[b"WWW-Authenticate"] == b"Payment x"


def test_what_an_error_knows_is_said() -> None:
    error = errors.BillingRefused("why", code="c", param="p", retry_after_s=3, details={"available": "0.10"})
    status, headers, body = problem(error)
    assert status == 402
    assert dict(headers)[b"retry-after"] == b"3"
    assert b"x-request-id" not in dict(headers)
    assert json.loads(body)["error"] == {**OPENAI.error(error), "available": "0.10", "code": "c", "param": "p"}


def test_text_that_is_not_ascii_is_said() -> None:
    _, headers, body = problem(errors.NotFound("нет модели «模型» 😀\r\nX-Forged: 1"))
    assert json.loads(body)["error"]["message"] == "нет модели «模型» 😀\r\nX-Forged: 1"
    assert int(dict(headers)[b"content-length"]) == len(body)
    assert not any(b"Forged" in value for _, value in headers)
