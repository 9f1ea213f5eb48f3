"""Paid chats that Anthropic's dialect answers: cached, written and thought tokens each at their own price."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cases.chat import attempts, charge, eventually, owed, stream, streaming, whole
from tests.dialects import anthropic_answers as answers
from tests.dialects.anthropic import AnthropicServer
from tests.dialects.server import DialectServer
from tests.serving import COST, PRICE, FareboxServer, model, upstream

# Long enough that the hold covers what the dialect reports of it.
MARK = {"type": "ephemeral"}
PART = {"type": "text", "text": "What is the fare to the harbour? " * 100, "cache_control": MARK}
LONG = [{"role": "user", "content": [PART]}]
WRITE_PRICE = "1.25"
NANO_USD_PER_WRITE = 1250
# 11 tokens of prompt, 200 written, 1000 read; 25 tokens of thinking, 15 of answer.
CACHED_COST = owed(prompt=11, cached=1000, output=15, reasoning=25) + 200 * NANO_USD_PER_WRITE
SEARCH = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
WELL = ("ok", "ok/old", "cached", "tools", "gated", "status:400")
# Each at a provider of its own: one that fails is passed over for a while.
FAILING = ("error_first", "error_late", "cut", "status:401")


@pytest.fixture(scope="module")
def server() -> Iterator[AnthropicServer]:
    with AnthropicServer() as server:
        yield server


@pytest.fixture(scope="module")
def farebox(
    server: AnthropicServer,
    shared_dialects: DialectServer,
    sqlite_template: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[FareboxServer]:
    """A serving process with the dialect behind it, and a second provider for what the first fails at."""
    folder = tmp_path_factory.mktemp("anthropic")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'farebox.db')}"
    price = {**PRICE, "cache_write": WRITE_PRICE}

    def claude(name: str) -> dict[str, Any]:
        capabilities = ["chat", "tools", "reasoning"]
        return model(f"claude/{name}", upstream_id=name, price=price, cost=COST, capabilities=capabilities)

    spare = model("claude/error_first", upstream_id="ok", price={"input": "9", "output": "9"})
    providers = [
        upstream("anthropic", server.base_url, [claude(name) for name in WELL], adapter="anthropic"),
        *(upstream(name.replace(":", "-"), server.base_url, [claude(name)], adapter="anthropic") for name in FAILING),
        upstream("spare", shared_dialects.base_url, [spare]),
    ]
    with FareboxServer(folder, database_url=url, providers=providers) as farebox:
        yield farebox


@pytest.mark.parametrize("how", ["whole", "stream"])
def test_cached_written_and_thought_tokens_cost_their_own_prices(
    farebox: FareboxServer, server: AnthropicServer, how: str
) -> None:
    payer = farebox.payer()
    if how == "whole":
        answer = whole(farebox, payer, "claude/cached", messages=LONG).raise_for_status().json()
        assert answer["choices"][0]["message"]["content"] == answers.TEXT
        assert answer["choices"][0]["message"]["reasoning_content"] == answers.THINKING
        usage = answer["usage"]
    else:
        found = stream(farebox, payer, "claude/cached", messages=LONG, stream_options={"include_usage": True})
        assert found.done
        assert found.text == answers.TEXT
        assert {event["model"] for event in found.events} == {"claude/cached"}
        assert found.usage is not None
        usage = found.usage
    assert server.last["messages"] == LONG
    assert usage["prompt_tokens"] == 1211
    assert usage["prompt_tokens_details"]["cached_tokens"] == 1000
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 25
    assert charge(farebox, payer) == CACHED_COST
    farebox.assert_green()


def test_tools_reach_the_client_as_openais(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    answer = whole(farebox, payer, "claude/tools", tools=[SEARCH]).raise_for_status().json()
    calls = answer["choices"][0]["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["get_weather", "get_time"]
    assert answer["choices"][0]["finish_reason"] == "tool_calls"
    assert charge(farebox, payer) == owed(prompt=11, output=9)


def test_form_that_a_model_refuses_costs_nothing_extra(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    whole(farebox, payer, "claude/ok/old", reasoning_effort="high", max_tokens=8000).raise_for_status()
    assert charge(farebox, payer) == owed(prompt=11, output=9)
    assert attempts(farebox, payer) == [("anthropic", "ok")]


@pytest.mark.parametrize(
    ("name", "parameters", "words"),
    [("ok", {"n": 2}, "n: this provider gives one choice"), ("status:400", {}, "cannot do this")],
)
def test_refused_request_is_the_callers_and_free(
    farebox: FareboxServer, name: str, parameters: dict[str, Any], words: str
) -> None:
    payer = farebox.payer()
    answer = whole(farebox, payer, f"claude/{name}", **parameters)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert answers.SECRET_ORGANIZATION not in answer.text
    assert charge(farebox, payer) == 0


def test_operators_trouble_is_not_told_and_free(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    answer = whole(farebox, payer, "claude/status:401")
    assert answer.status_code >= 500
    assert charge(farebox, payer) == 0


def test_error_before_content_is_passed_over_to_the_next_provider(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    found = stream(farebox, payer, "claude/error_first", provider={"order": ["error_first", "spare"]})
    assert found.done
    assert attempts(farebox, payer) == [("error_first", "rate_limited"), ("spare", "ok")]


@pytest.mark.parametrize("name", ["cut", "error_late"])
def test_answer_that_breaks_off_is_no_success_and_costs_no_more_than_was_delivered(
    farebox: FareboxServer, name: str
) -> None:
    payer = farebox.payer()
    found = stream(farebox, payer, f"claude/{name}")
    assert not found.done
    assert found.error is not None
    assert charge(farebox, payer) <= owed(prompt=11, output=9)
    farebox.assert_green()


def test_client_that_leaves_pays_for_the_prompt_as_reported_and_for_what_it_got(
    farebox: FareboxServer, server: AnthropicServer
) -> None:
    payer = farebox.payer()
    server.left.clear()
    half = next(answers.halves(answers.TEXT))
    with streaming(farebox, payer, "claude/gated") as found:
        found.read_until(lambda seen: seen.text == half)
    eventually(server.left.is_set)
    charged = charge(farebox, payer)
    assert owed(prompt=11) < charged <= owed(prompt=11, output=len(half.encode()))
    farebox.assert_green()
