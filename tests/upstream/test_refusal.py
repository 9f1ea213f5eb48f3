"""What a refusal means, which of its words are shown, and that a caller cannot make it mean something else."""

from email.utils import formatdate
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.upstream.provider import UNUSABLE
from app.upstream.refusal import RETRY_AFTER_S_MAX, Refusal, Told, refusal_of, retry_after_s
from app.upstream.safe_text import NO_REASON, NOT_SHOWN

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "detail", "param", "code", "type", "metadata", "raw", "loc", "msg"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def refused(status: int, body: Any, *, retry_after_s: int | None = None) -> Refusal:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return refusal_of(
        Told(
            status=status,
            content=content,
            retry_after_s=retry_after_s,
            host="gpu-7.rack",
            upstream_model="acme-deployment",
            asked_model="good/model",
        )
    )


@given(body=JSON | st.binary(max_size=50), status=st.integers(300, 599))
def test_any_body_is_understood_somehow(body: Any, status: int) -> None:
    found = refused(status, body)
    assert found.error.status == status
    assert found.error.message
    assert found.error.message.isprintable()
    # What was refused may be tried elsewhere, or the caller is told: never both.
    assert found.error.fail_over is not found.error.callers_fault


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"error": {"message": "words"}}, "words"),
        ({"error": "words"}, "words"),
        ({"message": "words", "code": 400}, "words"),
        ({"detail": "words"}, "words"),
        ({"detail": [{"loc": ["body", "top_k"], "msg": "too small"}]}, "top_k: too small"),
        ([{"error": {"message": "words"}}], "words"),
        (b"plain words", "plain words"),
        (b"<html>Bad</html>", NO_REASON),
        (b"", NO_REASON),
        ({"error": {"message": None}}, NO_REASON),
        ({"error": {"message": "no acme-deployment here"}}, "no good/model here"),
        ({"error": {"message": "gpu-7.rack said no"}}, "[removed] said no"),
    ],
)
def test_words_are_found_and_the_operators_names_are_not_among_them(body: Any, message: str) -> None:
    assert refused(400, body).error.message == message


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"error": {"message": "x", "param": "top_p"}}, "top_p"),
        ({"detail": [{"loc": ["body", "top_k"], "msg": "x"}]}, "top_k"),
        ({"error": {"message": "x", "param": None}}, None),
        ({"error": {"message": "x", "param": 7}}, None),
    ],
)
def test_parameter_that_is_named_is_found(body: Any, named: str | None) -> None:
    assert refused(422, body).named == named


@pytest.mark.parametrize("status", [400, 403, 404, 422, 429])
@pytest.mark.parametrize(
    "error",
    [
        {"message": "You exceeded your current quota, please check your plan and billing details."},
        {"message": "Your credit balance is too low to access the API."},
        {"message": "Your account is not active, please check your billing details on our website."},
        {"message": "Your organization must be verified to stream this model."},
        {"message": "Insufficient Balance"},
        {"message": "API key not valid. Please pass a valid API key."},
        {"message": "x", "code": "insufficient_quota"},
        {"message": "x", "type": "insufficient_quota"},
        {"message": "x", "code": "billing_hard_limit_reached"},
    ],
)
def test_state_of_the_account_is_the_operators_matter_and_not_told(status: int, error: dict[str, Any]) -> None:
    found = refused(status, {"error": error}).error
    assert (found.result, found.fail_over, found.callers_fault) == ("refused", True, False)
    assert found.message == UNUSABLE


@pytest.mark.parametrize(
    "echo", ["You exceeded your current quota", "insufficient_quota", "Your credit balance is too low", "api key"]
)
def test_words_of_a_caller_that_are_echoed_open_no_breaker(echo: str) -> None:
    found = refused(400, {"error": {"message": f"Invalid value: '{echo}'", "param": "stop", "code": "invalid_value"}})
    assert (found.error.result, found.error.callers_fault) == ("rejected", True)


@pytest.mark.parametrize(
    "message",
    [
        "This request would exceed the rate limit reached by your organization",
        "The request failed as your account is on the free tier",
        "Please check your billing details",
        "No payment method on file",
    ],
)
def test_words_on_the_account_inside_a_refusal_are_not_shown(message: str) -> None:
    assert refused(400, {"error": {"message": f"Sorry. {message}"}}).error.message == NOT_SHOWN


def test_busy_provider_is_busy_in_our_words() -> None:
    error = {"message": "Rate limit reached for org-abc on tokens per min. Limit 30000, visit https://x.example/limits"}
    found = refused(429, {"error": error}, retry_after_s=7).error
    assert (found.result, found.message, found.retry_after_s) == ("rate_limited", "the provider is busy", 7)
    assert refused(503, {"error": error}, retry_after_s=9).error.retry_after_s == 9


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": "99999"}, RETRY_AFTER_S_MAX),
        ({"Retry-After": "999999999999"}, None),
        ({"Retry-After": "-1"}, None),
        ({"Retry-After": "soon", "Date": "now"}, None),
        ({"retry-after-ms": "1500"}, 2),
        ({"Retry-After": formatdate(1_000_030, usegmt=True), "Date": formatdate(1_000_000, usegmt=True)}, 30),
        ({"Retry-After": formatdate(999_000, usegmt=True), "Date": formatdate(1_000_000, usegmt=True)}, 0),
        ({"Retry-After": formatdate(1_000_030, usegmt=True)}, None),
        ({}, None),
    ],
)
def test_wait_is_read_in_each_of_its_forms(headers: dict[str, str], expected: int | None) -> None:
    assert retry_after_s(headers) == expected


@given(st.text(max_size=80), st.text(max_size=80))
def test_any_wait_is_bounded(said: str, date: str) -> None:
    found = retry_after_s({"Retry-After": said, "Date": date})
    assert found is None or 0 <= found <= RETRY_AFTER_S_MAX


def test_name_of_a_member_that_a_client_made_up_says_nothing_of_the_account() -> None:
    detail = [{"loc": ["body", "Invalid API key"], "msg": "Extra inputs are not permitted", "type": "extra_forbidden"}]
    found = refused(422, {"detail": detail}).error
    assert (found.result, found.callers_fault) == ("rejected", True)
