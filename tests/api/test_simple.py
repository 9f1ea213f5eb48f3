"""The simple surface: its bodies become OpenAI's, its answers are the page's, and nothing is paid for unseen."""

import json
import sys
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api import simple, simple_chat
from app.api.incoming import Incoming
from app.api.problems import problem
from app.api.simple import SIMPLE, answer_id, shape_of, simple_error
from app.errors import (
    AllProvidersFailed,
    BillingRefused,
    FareboxError,
    InvalidRequest,
    InvariantViolated,
    NotFound,
    PaymentGone,
    PaymentProblem,
    RateLimited,
)
from app.money import NanoUsd
from app.pricing.price_book import Usage
from app.settings import InferenceSettings, Settings
from app.shapes import OPENAI, Told
from tests.api.paid_models import CATALOG
from tests.api.test_chat_parameters import HELLO

DEPTH = 1000
TOLD = Told("req_01abc", "gemini-2.5-flash", Usage(25, 150), NanoUsd(12_345))


def incoming(*, path: str = "/ai/chat", settings: Settings | None = None, **body: Any) -> Incoming:
    """A request as the edge gives it to a parser."""
    content = orjson.dumps({"model": "m", **body})
    return Incoming(path, content, "application/json", settings or Settings(), CATALOG)


def chunk(**choice: Any) -> bytes:
    """A provider's chunk with one choice."""
    head = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return orjson.dumps({**head, "choices": [{"index": 0, "finish_reason": None, **choice}]})


def answer(shape: Any, body: dict[str, Any], told: Told = TOLD) -> dict[str, Any]:
    media_type, content = shape.whole(body, told)
    assert media_type == "application/json"
    found: dict[str, Any] = json.loads(content)
    return found


def completion(**message: Any) -> dict[str, Any]:
    """A provider's whole chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}
    return {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "x", "choices": [choice]}


# Chat: what is asked.


def test_chat_is_read_like_openais() -> None:
    asked = incoming(messages=HELLO, temperature=0.7, max_tokens=500)
    request = simple_chat.parse(asked)
    assert (request.endpoint.name, request.path, request.model) == ("chat.completions", "/ai/chat", "m")
    assert (request.output_limit, request.stream, request.shape) == (500, False, simple_chat.CHAT)
    assert (request.body["messages"], request.body["temperature"]) == (HELLO, 0.7)
    assert request.content is asked.content


@pytest.mark.parametrize(("said", "streams"), [({}, False), ({"stream": None}, False), ({"stream": True}, True)])
def test_stream_is_asked_for_whatever_the_default_of_v1_is(said: dict[str, Any], streams: bool) -> None:
    settings = Settings(inference=InferenceSettings(stream_default=True))
    assert simple_chat.parse(incoming(settings=settings, messages=HELLO, **said)).stream is streams


@pytest.mark.parametrize("n", [2, 0, True, "1", [1]])
def test_choices_that_could_not_be_shown_are_refused(n: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        simple_chat.parse(incoming(messages=HELLO, n=n))
    assert refused.value.param == "n"
    assert simple_chat.parse(incoming(messages=HELLO, n=1)).choices == 1


def test_calls_of_an_earlier_answer_get_their_type_back() -> None:
    call = {"id": "call_abc", "function": {"name": "get_weather", "arguments": "{}"}}
    custom = {"id": "call_def", "custom": {"name": "sql", "input": "SELECT 1"}}
    typed = {"id": "call_ghi", "type": "function", "function": {"name": "x", "arguments": ""}}
    said = {"role": "assistant", "tool_calls": [call, custom, typed]}
    result = {"role": "tool", "tool_call_id": "call_abc", "content": "22"}
    body = simple_chat.parse(incoming(messages=[*HELLO, said, result])).body
    calls = body["messages"][1]["tool_calls"]
    assert [each["type"] for each in calls] == ["function", "custom", "function"]
    assert calls[0] == {**call, "type": "function"}
    assert body["messages"][2] == result


@pytest.mark.parametrize("messages", [None, [], "Hello", [1], [{"role": "user", "content": 1}]])
def test_messages_that_are_wrong_are_named(messages: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        simple_chat.parse(incoming(messages=messages))
    assert str(refused.value.param).startswith("messages")


# Chat: what is answered.


def test_answer_has_its_message_at_the_top() -> None:
    found = answer(simple_chat.CHAT, completion(content="Machine learning is"))
    usage = found.pop("usage")
    assert list(found) == ["id", "model", "message", "finish_reason"]
    assert found == {
        "id": "chat_01abc",
        "model": "gemini-2.5-flash",
        "message": {"role": "assistant", "content": "Machine learning is"},
        "finish_reason": "stop",
    }
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (25, 150, 175)
    assert usage["cost"] == 0.000012345


def test_calls_are_shown_without_a_type_and_without_an_empty_text() -> None:
    function = {"name": "get_weather", "arguments": '{"location": "Tokyo"}'}
    body = completion(content=None, tool_calls=[{"id": "call_abc", "type": "function", "function": function}])
    assert answer(simple_chat.CHAT, body)["message"] == {
        "role": "assistant",
        "tool_calls": [{"id": "call_abc", "function": function}],
    }


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ({"content": None}, {"content": ""}),
        ({"content": "", "tool_calls": []}, {"content": ""}),
        ({"content": None, "refusal": "no"}, {"content": "", "refusal": "no"}),
        ({"content": "a", "reasoning_content": "b", "annotations": []}, {"content": "a", "reasoning_content": "b"}),
    ],
)
def test_message_says_what_there_is(said: dict[str, Any], shown: dict[str, Any]) -> None:
    assert answer(simple_chat.CHAT, completion(**said))["message"] == {"role": "assistant", **shown}


def test_where_it_was_made_and_what_was_asked_for_is_kept() -> None:
    told = Told("req_1", "m", Usage(1, 1), NanoUsd(0), {"engine_type": "vllm", "machine_name": "ma02"})
    body = completion(content="a")
    body["choices"][0]["logprobs"] = {"content": []}
    found = answer(simple_chat.CHAT, body, told)
    assert (found["backend"], found["logprobs"]) == ({"engine_type": "vllm", "machine_name": "ma02"}, {"content": []})


# Streams.


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (chunk(delta={"role": "assistant", "content": ""}), None),
        (chunk(delta={"role": "assistant"}), None),
        (chunk(delta={"content": "Once"}), {"delta": {"content": "Once"}}),
        (chunk(delta={"role": "assistant", "content": " upon"}), {"delta": {"content": " upon"}}),
        (chunk(delta={"content": None, "reasoning_content": "hm"}), {"delta": {"reasoning_content": "hm"}}),
        (chunk(delta={}, finish_reason="stop"), {"delta": {}, "finish_reason": "stop"}),
        (chunk(delta={"content": "a"}, finish_reason="length"), {"delta": {"content": "a"}, "finish_reason": "length"}),
        (
            chunk(delta={"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f"}}]}),
            {"delta": {"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f"}}]}},
        ),
        (b'{"choices":[],"usage":{"cost":0.0000001}}', {"delta": {}, "usage": {"cost": 1e-7}}),
        (
            b'{"choices":[{"delta":{},"finish_reason":"stop"}],"usage":{"total_tokens":3}}',
            {"delta": {}, "finish_reason": "stop", "usage": {"total_tokens": 3}},
        ),
        (b'{"choices":[],"usage":null}', None),
        (b'{"choices":"x"}', None),
        (b'{"choices":[1]}', None),
        (b'{"choices":[{"delta":[]}]}', None),
        (b"[]", None),
        (b"x", None),
    ],
)
def test_event_is_a_bare_delta(data: bytes, shown: Any) -> None:
    said = simple_chat.CHAT.chunk(data)
    assert (None if said is None else json.loads(said)) == shown


def test_exact_cost_stays_as_it_is_written() -> None:
    said = simple_chat.CHAT.chunk(b'{"choices":[],"usage":{"cost":0.000000100}}')
    assert said == b'{"delta":{},"usage":{"cost":0.000000100}}'


def test_chunk_nested_beyond_sense_is_left_out() -> None:
    # Some libraries of tests raise the interpreter's limit a hundredfold.
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(DEPTH)
    try:
        deep = b'{"choices":[{"delta":{"content":' + b"[" * DEPTH + b"]" * DEPTH + b"}}]}"
        assert simple_chat.CHAT.chunk(deep) is None
    finally:
        sys.setrecursionlimit(limit)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(codec="utf-8"), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "choices",
                    "delta",
                    "message",
                    "content",
                    "text",
                    "tool_calls",
                    "type",
                    "usage",
                    "finish_reason",
                    "data",
                ]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=15,
)


@given(values)
def test_whatever_a_provider_says_an_event_is_a_delta_or_nothing(value: Any) -> None:
    said = simple_chat.CHAT.chunk(json.dumps(value).encode())
    if said is not None:
        assert isinstance(json.loads(said)["delta"], dict)


# Errors.


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RateLimited("slow down", code="requests_per_minute", retry_after_s=60),
            {"code": "rate_limit_exceeded", "message": "slow down", "retry_after": 60, "status": 429},
        ),
        (
            NotFound("no", code="model_not_found"),
            {"code": "model_not_found", "message": "no", "retry_after": None, "status": 404},
        ),
        (
            BillingRefused("poor", details={"available": "0.00", "status": "x"}),
            {
                "code": "insufficient_balance",
                "message": "poor",
                "retry_after": None,
                "status": 402,
                "available": "0.00",
            },
        ),
        (
            AllProvidersFailed("down", details={"attempts": 2}),
            {"code": "all_providers_failed", "message": "down", "retry_after": None, "status": 502, "attempts": 2},
        ),
        (
            PaymentGone("closed", slug="session/channel-finalized"),
            {"code": "channel_finalized", "message": "closed", "retry_after": None, "status": 410},
        ),
        (
            InvariantViolated("a bug"),
            {"code": "internal_error", "message": "a bug", "retry_after": None, "status": 500},
        ),
        (FareboxError("odd"), {"code": "server_error", "message": "odd", "retry_after": None, "status": 500}),
    ],
)
def test_error_says_code_message_retry_after_and_status(error: FareboxError, said: dict[str, Any]) -> None:
    assert simple_error(error) == said == SIMPLE.error(error) == simple_chat.CHAT.error(error)
    assert list(simple_error(error))[:4] == ["code", "message", "retry_after", "status"]


def test_payment_problem_says_the_same_in_both_forms() -> None:
    required = PaymentProblem("pay", headers=[("WWW-Authenticate", "Payment x")], details={"requiredTopUp": "5"})
    status, headers, body = problem(required, request_id="req_1", shape=SIMPLE)
    assert (status, dict(headers)[b"content-type"]) == (402, b"application/problem+json")
    said = json.loads(body)
    assert (said["type"], said["status"]) == ("https://paymentauth.org/problems/payment-required", 402)
    assert said["error"] == {
        "code": "payment_required",
        "message": "pay",
        "retry_after": None,
        "status": 402,
        "requiredTopUp": "5",
    }


@pytest.mark.parametrize("path", ["/ai/chat", "/ai/", "/ai", "/ai/nothing"])
def test_errors_below_ai_are_simple(path: str) -> None:
    assert shape_of(path) is SIMPLE


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/aid", "/", "/v1/ai/chat"])
def test_errors_elsewhere_are_openais(path: str) -> None:
    assert shape_of(path) is OPENAI


def test_answer_is_named_by_its_request() -> None:
    assert answer_id("chat", "req_abc") == "chat_abc"
    assert answer_id("gen", "other") == "gen_other"
    assert simple.ID_PREFIX == "req_"
