"""Streams of the simple surface from a real process, over an upstream that may break off."""

import json
from typing import Any

import httpx
import pytest

from tests.dialects.server import DialectServer
from tests.serving import FareboxServer

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 64, "stream": True}
TEXT: dict[str, Any] = {"prompt": "Hello", "max_tokens": 64, "stream": True}


def events(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200
    return [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line.startswith("data: ")]


def ask(farebox: FareboxServer, path: str, **body: Any) -> httpx.Response:
    payer = farebox.payer()
    return httpx.post(farebox.url + path, json=body, headers=payer.headers, timeout=30)


@pytest.mark.parametrize(("path", "body", "member"), [("/ai/chat", BODY, "content"), ("/ai/generate", TEXT, "text")])
def test_text_comes_in_bare_deltas(path: str, body: dict[str, Any], member: str, farebox: FareboxServer) -> None:
    *deltas, ending, done = events(ask(farebox, path, model="sandbox", **body))
    assert done == "[DONE]"
    assert all(set(json.loads(each)) == {"delta"} for each in deltas)
    assert "".join(json.loads(each)["delta"][member] for each in deltas).startswith("You said: Hello")
    assert json.loads(ending)["delta"] == {}
    assert json.loads(ending)["finish_reason"] in {"stop", "length"}


def test_usage_is_shown_last_where_it_is_asked_for(farebox: FareboxServer) -> None:
    told = events(ask(farebox, "/ai/chat", model="sandbox", **BODY, stream_options={"include_usage": True}))
    last = json.loads(told[-2])
    assert (last["delta"], told[-1]) == ({}, "[DONE]")
    assert last["usage"]["cost"] > 0
    assert last["usage"]["total_tokens"] == last["usage"]["prompt_tokens"] + last["usage"]["completion_tokens"]


@pytest.mark.parametrize(("path", "body"), [("/ai/chat", BODY), ("/ai/generate", TEXT)])
def test_error_in_mid_stream_is_said_in_the_simple_shape(
    path: str, body: dict[str, Any], farebox: FareboxServer, shared_dialects: DialectServer
) -> None:
    told = events(ask(farebox, path, model="dialect/error_late", **body))
    assert "[DONE]" not in told
    error = json.loads(told[-1])["error"]
    assert set(error) >= {"code", "message", "retry_after", "status"}
    assert error["status"] == 502


def test_replay_is_the_same_stream(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    headers = {**payer.headers, "Idempotency-Key": "simple-stream"}
    url, body = f"{farebox.url}/ai/chat", {"model": "sandbox", **BODY}
    first, second = (httpx.post(url, json=body, headers=headers, timeout=30) for _ in range(2))
    assert second.headers["idempotent-replayed"] == "true"
    assert second.content == first.content


def test_tool_calls_come_back_as_they_went_out(farebox: FareboxServer) -> None:
    tool = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
    messages = [{"role": "user", "content": "What is the weather in Tokyo?"}]
    body = {"model": "sandbox", "messages": messages, "tools": [tool], "tool_choice": "required", "max_tokens": 256}
    message = ask(farebox, "/ai/chat", **body).raise_for_status().json()["message"]
    (call,) = message["tool_calls"]
    assert set(call) == {"id", "function"}
    result = {"role": "tool", "tool_call_id": call["id"], "content": "22"}
    body = {"model": "sandbox", "messages": [*messages, message, result], "tools": [tool], "max_tokens": 64}
    answer = ask(farebox, "/ai/chat", **body).raise_for_status().json()
    assert answer["message"]["content"]
