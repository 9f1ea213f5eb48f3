"""The dialect server itself: the other tests compare with what it says, so it must say just that."""

import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

import pytest

from tests.dialects import answers
from tests.dialects.fixtures import dialects
from tests.dialects.server import DIALECTS, GATED_AFTER, DialectServer

__all__ = ["dialects"]

STREAMS = ("ok", "azure", "vllm", "gemini", "mistral", "deepseek", "none", "zero", "bytewise", "big", "no_done")


@pytest.fixture
def connection(dialects: DialectServer) -> Iterator[HTTPConnection]:
    connection = HTTPConnection("127.0.0.1", dialects.port, timeout=20)
    yield connection
    connection.close()


def post(connection: HTTPConnection, model: str, *, stream: bool = True, **body: Any) -> HTTPResponse:
    content = json.dumps({"model": model, "stream": stream, **body})
    connection.request("POST", "/v1/chat/completions", content, {"Content-Type": "application/json"})
    return connection.getresponse()


def chunks(content: bytes) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in content.decode().split("\n") if line]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def text_of(stream: list[dict[str, Any]], key: str = "content") -> str:
    return "".join(choice["delta"].get(key) or "" for chunk in stream for choice in chunk["choices"])


@pytest.mark.parametrize("dialect", STREAMS)
def test_stream_and_whole_answer_say_the_known_text_and_usage(dialect: str, connection: HTTPConnection) -> None:
    content = post(connection, dialect, stream_options={"include_usage": True}).read()
    stream = chunks(content)
    whole = json.loads(post(connection, dialect, stream=False).read())
    known = answers.USAGES[dialect]
    expected = None if known is None else answers.usage_of(known, dialect)
    assert text_of(stream) == whole["choices"][0]["message"]["content"] == answers.TEXTS.get(dialect, answers.TEXT)
    assert [chunk["usage"] for chunk in stream if "usage" in chunk][-1:] == ([expected] if expected else [])
    assert whole.get("usage") == expected
    assert content.endswith(b"data: [DONE]\n\n") == (dialect != "no_done")


def test_dialects_place_usage_as_their_names_say(connection: HTTPConnection) -> None:
    def placed(dialect: str) -> list[tuple[bool, bool]]:
        stream = chunks(post(connection, dialect, stream_options={"include_usage": True}).read())
        return [(bool(chunk["choices"]), "usage" in chunk) for chunk in stream]

    content = [(True, False)] * len(answers.CONTENT)
    assert placed("azure") == [(False, False), *content, (True, False), (False, True)]
    assert placed("vllm") == [(True, True)] * (len(content) + 1) + [(False, True)]
    assert placed("gemini") == [(True, True)] * len(content)
    assert placed("mistral") == [*content, (True, True)]
    assert placed("none") == [*content, (True, False)]


def test_usage_is_sent_only_to_who_asks(connection: HTTPConnection) -> None:
    assert all("usage" not in chunk for chunk in chunks(post(connection, "ok").read()))


@pytest.mark.parametrize(
    ("dialect", "parameter"),
    [("strict", "stream_options"), ("strict_limit", "max_tokens"), ("strict_limit_old", "max_completion_tokens")],
)
def test_strict_dialects_refuse_their_parameter_alone(dialect: str, parameter: str, connection: HTTPConnection) -> None:
    body: dict[str, Any] = {parameter: 5}
    refused = post(connection, dialect, **body)
    error = json.loads(refused.read())["error"]
    assert (refused.status, error["param"]) == (400, parameter)
    assert text_of(chunks(post(connection, dialect).read())) == answers.TEXT


def test_errors_come_inside_a_200(connection: HTTPConnection) -> None:
    first = chunks(post(connection, "error200").read())
    late = chunks(post(connection, "error_late").read())
    assert first == [answers.ERROR]
    assert late[GATED_AFTER:] == [answers.ERROR]
    assert text_of(late[:GATED_AFTER])


@pytest.mark.parametrize(("dialect", "end"), [("crlf", b"\r\n"), ("cr", b"\r")])
def test_odd_lines_end_as_named_and_carry_the_hostile_text(
    dialect: str, end: bytes, connection: HTTPConnection
) -> None:
    content = post(connection, dialect).read()
    events = [event.split(end) for event in content.split(end + end) if event]
    data = [b"\n".join(line[5:] for line in event if line.startswith(b"data:")) for event in events]
    assert b": ping" in events[1]
    assert (b"\n" in content) == (end == b"\r\n")
    assert data[-1] == b"[DONE]"
    assert [item.strip() for item in data].count(answers.FORGED_DATA.encode()) == 1
    stream = [json.loads(item) for item in data[:-1] if item and b"forged" not in item]
    assert text_of(stream) == answers.HOSTILE_TEXT


def test_cut_ends_without_the_end_of_the_body(connection: HTTPConnection) -> None:
    response = post(connection, "cut")
    with pytest.raises(HTTPException):
        response.read()
    connection.close()
    assert b'finish_reason": "stop' not in post(connection, "cut_clean").read()


@pytest.mark.parametrize("dialect", ["reset", "hangup"])
def test_no_answer_at_all(dialect: str, connection: HTTPConnection, dialects: DialectServer) -> None:
    with pytest.raises(ConnectionError):
        post(connection, dialect)
    assert dialects.last.finished
    assert not dialects.last.closed


def test_gated_waits_for_its_release(connection: HTTPConnection, dialects: DialectServer) -> None:
    response = post(connection, "gated")
    received = [response.readline() for _ in range(2 * GATED_AFTER)]
    assert not dialects.last.finished
    dialects.last.release()
    content = b"".join(received) + response.read()
    assert text_of(chunks(content)) == answers.TEXT
    assert dialects.last.wait_finished()


@pytest.mark.parametrize("dialect", ["midline", "gated", "slow_head", "flood", "huge_event", "huge_body"])
def test_client_that_leaves_is_seen(dialect: str, dialects: DialectServer) -> None:
    content = json.dumps({"model": dialect, "stream": True}).encode()
    with socket.create_connection(("127.0.0.1", dialects.port), timeout=20) as client:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        client.sendall(head.encode() + content)
        assert dialects.wait_for_requests(1)
        if dialect != "slow_head":
            assert client.recv(100)
        assert not dialects.last.closed
    assert dialects.last.wait_closed()
    assert not dialects.last.finished


def test_flood_writes_what_it_says(connection: HTTPConnection, dialects: DialectServer) -> None:
    stream = chunks(post(connection, "flood:250").read())
    assert text_of(stream) == answers.FLOOD_PIECE * 250
    assert stream[-1]["usage"]["completion_tokens"] == dialects.last.events_written == 250


def test_huge_event_never_ends_and_is_bounded(connection: HTTPConnection) -> None:
    content = post(connection, "huge_event").read()
    assert b"\n" not in content
    assert answers.HUGE_EVENT_BYTES_MAX < len(content) < answers.HUGE_EVENT_BYTES_MAX + 1000


def test_refused_account_gives_away_what_it_should_not(connection: HTTPConnection) -> None:
    response = post(connection, "status:401")
    message = json.loads(response.read())["error"]["message"]
    assert response.status == 401
    assert all(part in message for part in (answers.SECRET_KEY, answers.SECRET_URL, answers.SECRET_ACCOUNT))
    busy = post(connection, "status:429")
    assert (busy.status, busy.headers["Retry-After"]) == (429, str(answers.RETRY_AFTER_S))


def test_answers_that_are_no_stream(connection: HTTPConnection) -> None:
    redirect = post(connection, "redirect")
    redirect.read()
    assert (redirect.status, redirect.headers["Location"]) == (302, "/v1/elsewhere")
    html = post(connection, "notjson")
    assert html.read().startswith(b"<!doctype html>")
    cookie = post(connection, "cookie")
    assert text_of(chunks(cookie.read())) == answers.TEXT
    assert len(cookie.headers.get_all("Set-Cookie") or []) == 2
    unknown = post(connection, "nobody")
    assert (unknown.status, json.loads(unknown.read())["error"]["code"]) == (404, "model_not_found")


def test_requests_are_recorded_in_order(connection: HTTPConnection, dialects: DialectServer) -> None:
    for model in ("ok", "none"):
        post(connection, model, stream=False, marker=model).read()
    assert [recorded.body["marker"] for recorded in dialects.requests] == ["ok", "none"]
    assert dialects.last.headers["content-type"] == "application/json"
    dialects.clear()
    assert dialects.requests == []


def test_models_lists_every_dialect(connection: HTTPConnection) -> None:
    connection.request("GET", "/v1/models")
    listed = json.loads(connection.getresponse().read())
    assert {model["id"] for model in listed["data"]} == set(DIALECTS)
