"""``POST /v1/chat/completions`` over HTTP: the reference pages' examples, what a provider is sent, every refusal."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message

from app.api.inference import ClientGone, read_body
from app.errors import PayloadTooLarge
from app.rails.key_store import KeyLimits
from tests.api.raw import PATH, assert_nothing_charged
from tests.cases.chat import Stream, body, charge, owed, streaming, usd, whole
from tests.cases.chat import stream as read_stream
from tests.dialects.answers import CONTENT, TEXT, USAGE
from tests.dialects.server import DialectServer
from tests.serving import FareboxServer, Payer, model, sandbox, upstream

REPORTED = owed(prompt=USAGE.prompt, output=USAGE.completion)
# The reference pages' own requests, to the letter but for the model's name.
SEARCH_SEARCH: dict[str, Any] = {
    "model": "dialect/ok",
    "messages": [
        {"role": "system", "content": "You are a concise technical assistant."},
        {"role": "user", "content": "Search the web and summarize the current Python 3.13 release status."},
    ],
    "max_tokens": 800,
    "temperature": 0.2,
    "web_search": True,
    "web_search_options": {
        "search_context_size": "medium",
        "user_location": {"type": "approximate", "approximate": {"country": "US"}},
        "safesearch": "moderate",
    },
}
SEARCH_STREAM: dict[str, Any] = {
    "model": "dialect/ok",
    "stream": True,
    "messages": [{"role": "user", "content": "Write a short Python example using requests."}],
}
FINAL_USAGE: dict[str, Any] = {
    "model": "dialect/ok",
    "messages": [{"role": "user", "content": "Hello"}],
    "stream": False,
}
FINAL_USAGE_ROUTING: dict[str, Any] = {
    "temperature": 1,
    "top_p": 0.9,
    "stop": ["END"],
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "timeout_ms": 30_000,
    "routing_strategy": "balanced",
    "allow_external": True,
    "max_input_price_per_million": 100,
    "max_output_price_per_million": 400,
}


@pytest.fixture(scope="module")
def final_usage(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, shared_dialects: DialectServer
) -> Iterator[FareboxServer]:
    """A server in the form that some clients expect: streams by default, with usage in the last chunk."""
    folder = tmp_path_factory.mktemp("page")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'farebox.db')}"
    models = [
        model(f"dialect/{name}", upstream_id=name) for name in ("ok", "azure", "vllm", "gemini", "mistral", "none")
    ]
    with FareboxServer(
        folder,
        database_url=url,
        providers=[upstream("dialects", shared_dialects.base_url, models), sandbox()],
        inference={"stream_default": True, "usage_in_final_chunk": True},
    ) as server:
        yield server


def post(farebox: FareboxServer, payer: Payer | None, content: Any, **headers: str) -> httpx.Response:
    credentials = payer.headers if payer else {}
    return httpx.post(farebox.url + PATH, json=content, headers={**credentials, **headers}, timeout=30)


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    """The error object of a refusal, with what every refusal has."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-request-id"].startswith("req_")
    content = response.json()
    assert set(content) == {"error"}
    error: dict[str, Any] = content["error"]
    assert {"message", "type", "code", "param"} <= set(error)
    assert error["message"]
    return error


# The reference pages.


def test_search_page_without_search_answers_as_shown(farebox: FareboxServer, shared_dialects: DialectServer) -> None:
    payer = farebox.payer()
    sent = {name: value for name, value in SEARCH_SEARCH.items() if not name.startswith("web_search")}
    for key in ({"Authorization": f"Bearer {payer.key}"}, {"x-api-key": payer.key}):
        response = httpx.post(farebox.url + PATH, json={**sent, "web_search": False}, headers=key, timeout=30)
        answer = response.raise_for_status().json()
        assert set(answer) >= {"id", "object", "created", "model", "choices", "usage"}
        assert (answer["object"], answer["model"]) == ("chat.completion", "dialect/ok")
        (choice,) = answer["choices"]
        assert (choice["index"], choice["finish_reason"]) == (0, "stop")
        assert choice["message"]["role"] == "assistant"
        assert choice["message"]["content"] == TEXT
        usage = answer["usage"]
        assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"] == USAGE.total
        seen = shared_dialects.last.body
        assert (seen["model"], seen["messages"], seen["max_tokens"]) == ("ok", sent["messages"], 800)
        assert "web_search" not in seen
    farebox.wait_settled(payer, requests=2)
    farebox.assert_green()


@pytest.mark.parametrize("left_out", ["web_search", "web_search_options"])
def test_search_page_search_is_refused_by_name(left_out: str, farebox: FareboxServer) -> None:
    payer = farebox.payer()
    sent = {name: value for name, value in SEARCH_SEARCH.items() if name != left_out}
    error = refused(post(farebox, payer, sent), 400)
    assert error["param"] == ({"web_search", "web_search_options"} - {left_out}).pop()
    assert error["code"] == "unsupported_parameter"
    assert_nothing_charged(farebox, payer)


def test_search_page_stream_answers_as_shown(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    with httpx.stream("POST", farebox.url + PATH, json=SEARCH_STREAM, headers=payer.headers, timeout=30) as response:
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache, no-transform"
        assert response.headers["x-accel-buffering"] == "no"
        found = Stream(response.status_code, response.headers, response.read())
    assert found.done
    assert {event["object"] for event in found.events} == {"chat.completion.chunk"}
    assert found.events[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [event["choices"][0]["finish_reason"] for event in found.events] == [None] * len(CONTENT) + ["stop"]
    assert found.events[-1]["choices"][0]["delta"] == {}
    assert (found.text, found.usage) == (TEXT, None)
    assert charge(farebox, payer) == REPORTED
    farebox.assert_green()


def test_final_usage_request_answers_as_shown(farebox: FareboxServer, shared_dialects: DialectServer) -> None:
    payer = farebox.payer()
    response = post(farebox, payer, {**FINAL_USAGE, **FINAL_USAGE_ROUTING, "max_tokens": 100})
    answer = response.raise_for_status().json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": TEXT}
    assert answer["usage"]["total_tokens"] == USAGE.total
    assert response.headers["x-farebox-provider"] == "dialects"
    assert response.headers["x-farebox-cost"] == usd(REPORTED)
    seen = shared_dialects.last.body
    assert set(seen) == {
        *("model", "messages", "stream", "max_tokens", "temperature", "top_p", "stop"),
        *("frequency_penalty", "presence_penalty"),
    }
    assert charge(farebox, payer) == REPORTED
    farebox.assert_green()


@pytest.mark.parametrize("name", ["ok", "azure", "vllm", "gemini", "mistral", "none"])
def test_final_usage_stream_has_usage_in_its_last_chunk(name: str, final_usage: FareboxServer) -> None:
    payer = final_usage.payer()
    sent = {"model": f"dialect/{name}", "messages": FINAL_USAGE["messages"]}
    response = httpx.post(final_usage.url + PATH, json=sent, headers=payer.headers, timeout=30)
    assert response.headers["content-type"].startswith("text/event-stream")
    found = Stream(response.status_code, response.headers, response.content)
    *earlier, last = found.events
    assert found.done
    assert found.text == TEXT
    assert all(event["choices"] and not event.get("usage") for event in earlier if event["choices"])
    assert [choice["finish_reason"] for choice in last["choices"]] == ["stop"]
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"] > 0
    charged = charge(final_usage, payer)
    assert usd(charged) == f"{last['usage']['cost']:f}".rstrip("0")
    final_usage.assert_green()


def test_final_usage_server_still_answers_whole_when_asked(final_usage: FareboxServer) -> None:
    payer = final_usage.payer()
    answer = post(final_usage, payer, FINAL_USAGE).raise_for_status().json()
    assert answer["object"] == "chat.completion"
    assert charge(final_usage, payer) == REPORTED


# What a provider is sent.


def test_usage_is_always_asked_for_and_shown_only_on_request(
    farebox: FareboxServer, shared_dialects: DialectServer
) -> None:
    for options, shown in ((None, False), ({"include_usage": False}, False), ({"include_usage": True}, True)):
        payer = farebox.payer()
        parameters = {"stream_options": options} if options is not None else {}
        found = read_stream(farebox, payer, "dialect/ok", **parameters)
        assert shared_dialects.last.body["stream_options"] == {"include_usage": True}
        assert (found.usage is not None) is shown
        assert charge(farebox, payer) == REPORTED
    farebox.assert_green()


def test_whole_answer_is_asked_for_without_stream_options(
    farebox: FareboxServer, shared_dialects: DialectServer
) -> None:
    payer = farebox.payer()
    whole(farebox, payer, "dialect/ok", stream_options={}).raise_for_status()
    assert "stream_options" not in shared_dialects.last.body
    assert shared_dialects.last.body["stream"] is False


def test_parameters_pass_and_ours_are_taken_out(farebox: FareboxServer, shared_dialects: DialectServer) -> None:
    payer = farebox.payer()
    passed: dict[str, Any] = {
        "temperature": 0.5,
        "n": 2,
        "stop": "END",
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "logit_bias": {"11": 5},
        "user": "me",
        "seed": -7,
        "logprobs": True,
        "top_logprobs": 2,
        "reasoning_effort": "low",
        "response_format": {"type": "json_object"},
        "tools": [{"type": "function", "function": {"name": "fare", "parameters": {}}}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "something_new": {"a": [1, "é"]},
    }
    ours = {**FINAL_USAGE_ROUTING, "provider": {"only": ["dialects"]}, "store": False, "best_of": 1, "top_p": -1}
    sent = {name: value for name, value in ours.items() if name not in passed}
    whole(farebox, payer, "dialect/ok", max_completion_tokens=64, **passed, **sent).raise_for_status()
    seen = shared_dialects.last.body
    assert {name: seen[name] for name in passed} == passed
    assert not {"top_p", "store", "best_of", "provider", "timeout_ms", "routing_strategy", "allow_external"} & set(seen)
    assert seen["max_completion_tokens"] == 64
    farebox.assert_green()


# Refusals.


def test_missing_key_is_401(farebox: FareboxServer) -> None:
    for headers in ({}, {"Authorization": ""}, {"Authorization": "Bearer"}, {"x-api-key": ""}):
        response = post(farebox, None, FINAL_USAGE, **headers)
        error = refused(response, 401)
        assert (error["type"], error["code"], error["param"]) == ("auth_error", "missing_api_key", None)
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.headers["x-should-retry"] == "false"


@pytest.mark.parametrize("key", ["sk-fb-unknown", "sk-fb-" + "A" * 43, "wallet", "x" * 1000])
def test_unknown_key_is_401(key: str, farebox: FareboxServer) -> None:
    for headers in ({"Authorization": f"Bearer {key}"}, {"x-api-key": key}):
        response = post(farebox, None, FINAL_USAGE, **headers)
        error = refused(response, 401)
        assert (error["type"], error["code"]) == ("auth_error", "invalid_api_key")
        assert key not in response.text


@pytest.mark.parametrize("scheme", ["Basic", "Payment", "Token"])
def test_other_scheme_is_401(scheme: str, farebox: FareboxServer) -> None:
    assert refused(post(farebox, None, FINAL_USAGE, Authorization=f"{scheme} abc"), 401)["type"] == "auth_error"


def test_revoked_and_expired_keys_are_401(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    post(farebox, payer, FINAL_USAGE).raise_for_status()
    farebox.wait_settled(payer, requests=1)
    farebox.keys.revoke(payer.key_id)
    error = refused(post(farebox, payer, FINAL_USAGE), 401)
    assert (error["type"], error["code"]) == ("auth_error", "api_key_revoked")
    farebox.wait_settled(payer)
    farebox.assert_green()


def test_two_credentials_are_400(farebox: FareboxServer) -> None:
    payer, other = farebox.payer(), farebox.payer()
    error = refused(post(farebox, payer, FINAL_USAGE, **{"x-api-key": other.key}), 400)
    assert (error["type"], error["param"]) == ("invalid_request_error", "x-api-key")
    assert_nothing_charged(farebox, payer)
    assert_nothing_charged(farebox, other)


def test_one_credential_in_both_places_is_one(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    post(farebox, payer, FINAL_USAGE, **{"x-api-key": payer.key}).raise_for_status()


@pytest.mark.parametrize("streamed", [False, True])
def test_empty_balance_is_402_and_says_what_helps(streamed: bool, farebox: FareboxServer) -> None:
    payer = farebox.payer("0")
    response = post(farebox, payer, body("dialect/ok", max_tokens=100, stream=streamed))
    error = refused(response, 402)
    assert (error["type"], error["code"], error["currency"]) == ("billing_error", "insufficient_balance", "USD")
    assert error["available"] == "0.00"
    assert float(error["required"]) > 0
    assert "top up" in error["message"]
    assert response.headers["x-should-retry"] == "false"
    assert_nothing_charged(farebox, payer)


def test_model_that_the_key_may_not_use_is_403(farebox: FareboxServer) -> None:
    payer = farebox.payer(limits=KeyLimits(models=("sandbox/echo",)))
    error = refused(post(farebox, payer, FINAL_USAGE), 403)
    assert (error["type"], error["code"]) == ("permission_error", "model_not_allowed")
    assert_nothing_charged(farebox, payer)


def test_unknown_model_is_404(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    error = refused(post(farebox, payer, {**FINAL_USAGE, "model": "nothing"}), 404)
    assert (error["type"], error["code"], error["param"]) == ("not_found_error", "model_not_found", "model")
    assert_nothing_charged(farebox, payer)


def test_used_idempotency_key_is_409(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    post(farebox, payer, FINAL_USAGE, **{"Idempotency-Key": "one"}).raise_for_status()
    response = post(farebox, payer, {**FINAL_USAGE, "seed": 1}, **{"Idempotency-Key": "one"})
    error = refused(response, 409)
    assert (error["type"], error["code"], error["param"]) == (
        "idempotency_error",
        "idempotency_body_differs",
        "Idempotency-Key",
    )
    assert response.headers["x-should-retry"] == "false"
    assert charge(farebox, payer) == REPORTED


def test_used_up_rate_is_429_with_a_time(farebox: FareboxServer) -> None:
    payer = farebox.payer(limits=KeyLimits(requests_per_minute=1))
    # Two minutes may begin while three requests are sent; a third in one of them is refused.
    responses = [post(farebox, payer, FINAL_USAGE) for _ in range(4)]
    limited = [response for response in responses if response.status_code != 200]
    assert limited
    for response in limited:
        error = refused(response, 429)
        assert (error["type"], error["code"]) == ("rate_limit_error", "requests_per_minute")
        assert 1 <= int(response.headers["retry-after"]) <= 60
        assert "x-should-retry" not in response.headers
    farebox.wait_settled(payer)
    farebox.assert_green()


@pytest.mark.parametrize("streamed", [False, True])
def test_failed_providers_are_502_and_counted(streamed: bool, farebox: FareboxServer) -> None:
    payer = farebox.payer()
    response = post(farebox, payer, body("dialect/status:429", stream=streamed))
    error = refused(response, 502)
    assert (error["type"], error["code"], error["attempts"]) == ("server_error", "all_providers_failed", 1)
    assert "1 attempt" in error["message"]
    assert response.headers["retry-after"] == "7"
    assert "x-should-retry" not in response.headers
    assert_nothing_charged(farebox, payer)


@pytest.mark.parametrize(
    ("wishes", "code", "said"),
    [
        ({"max_input_price_per_million": 1, "max_output_price_per_million": 1}, "no_provider_under_price", "1.00 USD"),
        ({"provider": {"max_price": {"completion": "3.999999"}}}, "no_provider_under_price", "4.00 USD"),
        ({"provider": {"only": ["elsewhere"]}}, "no_provider_available", "provider"),
        ({"provider": {"ignore": ["dialects"]}}, "no_provider_available", "provider"),
    ],
)
def test_wishes_that_nobody_meets_are_503(wishes: dict[str, Any], code: str, said: str, farebox: FareboxServer) -> None:
    payer = farebox.payer()
    error = refused(post(farebox, payer, {**FINAL_USAGE, **wishes}), 503)
    assert (error["type"], error["code"]) == ("server_error", code)
    assert said in error["message"]
    assert_nothing_charged(farebox, payer)


def test_answers_to_others_are_told_apart(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    with streaming(farebox, payer, "dialect/ok") as found:
        first = found.read_all().headers["x-request-id"]
    second = whole(farebox, payer, "dialect/ok").headers["x-request-id"]
    rows = farebox.rows("SELECT id FROM requests WHERE account_id = :id", id=f"customer:{payer.customer_id}")
    assert {row["id"] for row in rows} == {first, second}


# Reading a body.


def parts(*messages: Message) -> Any:
    waiting = list(messages)

    async def receive() -> Message:
        return waiting.pop(0)

    return receive


def part(content: bytes, *, more: bool) -> Message:
    return {"type": "http.request", "body": content, "more_body": more}


async def test_body_is_put_together() -> None:
    receive = parts(part(b"a", more=True), part(b"", more=True), part(b"bc", more=False))
    assert await read_body(receive, {}, bytes_max=3, timeout_s=1) == b"abc"


@pytest.mark.parametrize("sizes", [(4,), (4, 0), (2, 2), (0, 4, 1)])
async def test_body_is_refused_with_the_part_that_is_too_much(sizes: tuple[int, ...]) -> None:
    receive = parts(*(part(b"x" * size, more=True) for size in sizes))
    with pytest.raises(PayloadTooLarge):
        await read_body(receive, {}, bytes_max=3, timeout_s=1)


async def test_client_that_leaves_in_mid_body_is_gone() -> None:
    with pytest.raises(ClientGone):
        await read_body(parts(part(b"a", more=True), {"type": "http.disconnect"}), {}, bytes_max=3, timeout_s=1)
