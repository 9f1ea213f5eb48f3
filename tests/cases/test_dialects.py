"""Every upstream in the wild, streaming and whole: its text arrives as it was said, and costs what it must."""

from typing import Any

import pytest

from tests.cases.chat import PROMPT, attempts, charge, estimated, owed, stream, whole
from tests.dialects import answers
from tests.dialects.server import GATED_AFTER, DialectServer
from tests.serving import FareboxServer

REPORTED = owed(prompt=11, output=5)
STREAM_COSTS = {
    "ok": REPORTED,
    "azure": REPORTED,
    "vllm": REPORTED,
    # 9 tokens of reasoning stand in no count but the total.
    "gemini": owed(prompt=11, output=5, reasoning=9),
    "mistral": REPORTED,
    "deepseek": owed(prompt=7, cached=4, output=5, reasoning=3),
    "none": estimated(answers.TEXT),
    "zero": 0,
    "strict": estimated(answers.TEXT),
    "strict_limit": REPORTED,
    "strict_limit_old": REPORTED,
    "no_done": REPORTED,
    "crlf": REPORTED,
    "cr": REPORTED,
    "bytewise": REPORTED,
    "big": owed(prompt=11, output=(1 << 20) // 4),
    "cookie": REPORTED,
    "slow_head:50": REPORTED,
    "flood:1000": owed(prompt=11, output=1000),
    "openrouter": REPORTED,
    "llama": REPORTED,
}
# Only a stream can be refused its options, and only a stream has framing.
WHOLE_COSTS = {**STREAM_COSTS, "strict": REPORTED, "flood:1000": REPORTED}
TEXTS = {**answers.TEXTS, "flood:1000": answers.FLOOD_PIECE * 1000}
# Sent so that the one which the server refuses is among them.
LIMITS: dict[str, dict[str, Any]] = {
    "strict_limit": {"max_tokens": 100},
    "strict_limit_old": {"max_completion_tokens": 100},
    # A mebibyte of text is no answer of a few thousand tokens.
    "big": {"max_tokens": 100_000},
}
INTERRUPTED, FAILED = "upstream_interrupted", "all_providers_failed"


@pytest.mark.parametrize("dialect", STREAM_COSTS)
def test_stream_arrives_whole_and_costs_exactly(dialect: str, farebox: FareboxServer) -> None:
    payer = farebox.payer()
    found = stream(farebox, payer, f"dialect/{dialect}", **LIMITS.get(dialect, {}))
    assert found.status == 200
    assert found.text == TEXTS.get(dialect, answers.TEXT)
    assert found.done
    assert {event["model"] for event in found.events} == {f"dialect/{dialect}"}
    assert found.usage is None
    assert charge(farebox, payer) == STREAM_COSTS[dialect]
    assert attempts(farebox, payer) == [("dialects", "ok")]
    farebox.assert_green()


@pytest.mark.parametrize("dialect", STREAM_COSTS)
def test_usage_chunk_comes_last_and_alone_for_who_asked(dialect: str, farebox: FareboxServer) -> None:
    payer = farebox.payer()
    parameters: dict[str, Any] = {"stream_options": {"include_usage": True}, **LIMITS.get(dialect, {})}
    found = stream(farebox, payer, f"dialect/{dialect}", **parameters)
    assert ["usage" in event and event["usage"] is not None for event in found.events[-2:]] == [False, True]
    assert found.events[-1]["choices"] == []
    assert found.usage is not None
    charged = charge(farebox, payer)
    assert charged == STREAM_COSTS[dialect]
    assert round(found.usage["cost"] * 10**9) == charged
    farebox.assert_green()


@pytest.mark.parametrize("dialect", WHOLE_COSTS)
def test_whole_answer_costs_exactly(dialect: str, farebox: FareboxServer) -> None:
    payer = farebox.payer()
    answer = whole(farebox, payer, f"dialect/{dialect}", **LIMITS.get(dialect, {}))
    assert answer.status_code == 200
    expected = answers.TEXT if dialect == "flood:1000" else TEXTS.get(dialect, answers.TEXT)
    assert answer.json()["choices"][0]["message"]["content"] == expected
    assert answer.json()["model"] == f"dialect/{dialect}"
    charged = charge(farebox, payer)
    assert charged == WHOLE_COSTS[dialect]
    assert round(answer.json()["usage"]["cost"] * 10**9) == charged
    farebox.assert_green()


@pytest.mark.parametrize("dialect", ["error_late", "cut", "cut_clean"])
def test_stream_that_fails_in_the_middle_ends_in_an_error_and_costs_what_was_delivered(
    dialect: str, farebox: FareboxServer
) -> None:
    payer = farebox.payer()
    found = stream(farebox, payer, f"dialect/{dialect}")
    assert found.text
    assert answers.TEXT.startswith(found.text)
    if dialect == "error_late":
        assert found.text == "".join(answers.CONTENT[:GATED_AFTER])
    assert found.error is not None
    assert found.error["code"] == INTERRUPTED
    assert not found.done
    assert charge(farebox, payer) == estimated(found.text)
    (outcome,) = farebox.outcomes(payer)
    assert (outcome["status"], outcome["estimated"]) == ("failed", 1)
    farebox.assert_green()


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    ("dialect", "result"),
    [
        ("error200", None),
        ("redirect", "server_error"),
        ("reset", "interrupted"),
        ("hangup", "interrupted"),
        ("status:401", "refused"),
        ("status:429", "rate_limited"),
        ("status:503", "server_error"),
        ("quota", "refused"),
        ("gemini_key", "refused"),
        ("no_credit", "refused"),
        ("huge_event", None),
    ],
)
def test_upstream_that_never_answers_costs_nothing(
    dialect: str, result: str | None, streams: bool, farebox: FareboxServer, shared_dialects: DialectServer
) -> None:
    payer = farebox.payer()
    shared_dialects.clear()
    answer = whole(farebox, payer, f"dialect/{dialect}", stream=streams)
    assert answer.status_code == 502
    error = answer.json()["error"]
    assert (error["code"], error["attempts"]) == (FAILED, 1)
    secrets = (answers.SECRET_KEY, answers.SECRET_ACCOUNT, answers.SECRET_URL, "quota", "credit", "key")
    assert all(secret not in answer.text for secret in secrets)
    assert charge(farebox, payer) == 0
    assert [name for name, _ in attempts(farebox, payer)] == ["dialects"]
    if result is not None:
        assert attempts(farebox, payer) == [("dialects", result)]
    assert [recorded.path for recorded in shared_dialects.requests] == ["/v1/chat/completions"]
    farebox.assert_green()


@pytest.mark.parametrize(
    ("dialect", "streams"),
    [("notjson", True), ("notjson", False), ("deep", True), ("deep", False), ("cut", False), ("cut_clean", False)],
)
def test_answer_that_is_no_completion_costs_nothing(dialect: str, streams: bool, farebox: FareboxServer) -> None:
    payer = farebox.payer()
    answer = whole(farebox, payer, f"dialect/{dialect}", stream=streams)
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, FAILED)
    assert "10.1.2.3" not in answer.text
    assert charge(farebox, payer) == 0
    farebox.assert_green()


def test_answer_past_the_bound_is_stopped_and_costs_nothing(
    farebox: FareboxServer, shared_dialects: DialectServer
) -> None:
    payer = farebox.payer()
    answer = whole(farebox, payer, "dialect/huge_body")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, FAILED)
    assert shared_dialects.last.wait_closed()
    assert shared_dialects.last.bytes_written < answers.HUGE_BODY_BYTES_MAX
    assert charge(farebox, payer) == 0
    farebox.assert_green()


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize(
    "dialect", ["status:400", "openrouter_moderated", "openrouter_handed_on", "vllm_old", "llama_too_long"]
)
def test_refusal_of_the_request_itself_is_the_callers_and_costs_nothing(
    dialect: str, farebox: FareboxServer, streams: bool
) -> None:
    payer = farebox.payer()
    answer = whole(farebox, payer, f"dialect/{dialect}", stream=streams)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "upstream_rejected")
    assert answer.headers["x-should-retry"] == "false"
    assert charge(farebox, payer) == 0
    farebox.assert_green()


def test_usage_is_always_asked_of_the_upstream_and_nothing_else_is_added(
    farebox: FareboxServer, shared_dialects: DialectServer
) -> None:
    payer = farebox.payer()
    stream(farebox, payer, "dialect/ok", max_tokens=50, temperature=0.5)
    assert shared_dialects.last.body == {
        "model": "ok",
        "messages": [{"role": "user", "content": PROMPT}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 50,
        "temperature": 0.5,
    }
    assert payer.key not in str(shared_dialects.last.headers)
    assert charge(farebox, payer) == REPORTED
    farebox.assert_green()
