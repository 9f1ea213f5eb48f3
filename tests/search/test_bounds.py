"""The hold covers all rounds: nothing that the loop sends is more than its bound says."""

import asyncio
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.pricing.quote import TOKENS_PER_MESSAGE
from app.search.backend import SearchFailed, SearchResult
from app.search.bounds import ECHO_BYTES_MAX, prompt_tokens_max
from app.search.options import SearchOptions
from app.search.wording import (
    ARGUMENTS_BYTES_MAX,
    INSTRUCTION_BYTES_MAX,
    LAST,
    NO_QUERY,
    NO_ROOM,
    NONE_LEFT,
    NOTHING_FOUND,
    NOTICE_BYTES_MAX,
    QUERY_BYTES_MAX,
    arguments_of,
    failed,
    instruction,
    query_of,
    told,
    told_bytes_max,
)
from tests.clocks import START_MS
from tests.search.scripted import (
    Round,
    ScriptedBackend,
    ScriptedProvider,
    call,
    search,
    searching,
    streamed,
    tool_call,
    usage,
)

TEXT = st.one_of(st.text(max_size=40), st.integers(0, 3000).map('é"\\'.__mul__))
OPTIONS = st.builds(
    SearchOptions,
    results=st.integers(1, 20),
    result_bytes_max=st.integers(100, 2000),
    rounds_max=st.integers(1, 4),
    searches_max=st.integers(1, 6),
)
PAGES = st.lists(
    st.builds(
        SearchResult,
        TEXT,
        st.integers(0, 99).map(lambda number: f"https://example.org/{number}/" + "x" * 450),
        TEXT,
        st.sampled_from([None, "2025-10-07"]),
    ),
    max_size=25,
)


@st.composite
def rounds(draw: st.DrawFn) -> Round:
    """A round of a model that says and calls anything."""
    calls = []
    for index in range(draw(st.integers(0, 9))):
        own = draw(st.sampled_from(["", "x" * 64, "x" * 65, "call"]))
        if draw(st.booleans()):
            calls.append(search(draw(TEXT), call_id=own, index=index))
        else:
            calls.append(tool_call("web_search", draw(TEXT), call_id=own, index=index))
    report = draw(st.one_of(st.none(), st.builds(usage, st.integers(0, 99), st.integers(0, 40))))
    return Round([draw(TEXT)], calls, usage=report)


def tokens_max(body: Any) -> int:
    """The most tokens that a prompt can be: one a byte of its text, and what frames each message."""
    texts = sum(len(text.encode("utf-8", "replace")) for message in body["messages"] for text in strings(message))
    tools = len(orjson.dumps(body["tools"])) if "tools" in body else 0
    return texts + tools + TOKENS_PER_MESSAGE * len(body["messages"])


def strings(value: Any) -> list[str]:
    """Every text in a message."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [text for member in value.values() for text in strings(member)]
    return [text for member in value for text in strings(member)] if isinstance(value, list) else []


@settings(max_examples=60)
@given(
    said=st.lists(rounds(), min_size=6, max_size=6),
    options=OPTIONS,
    pages=PAGES,
    limit=st.integers(1, 400),
    fails=st.booleans(),
    stream=st.booleans(),
    window=st.sampled_from([1, 900, 3000, 10**6]),
)
def test_no_conversation_is_longer_than_its_bound(
    said: list[Round],
    options: SearchOptions,
    pages: list[SearchResult],
    limit: int,
    fails: bool,
    stream: bool,
    window: int,
) -> None:
    backend = ScriptedBackend(*pages, failure=SearchFailed("connect", "the search service failed") if fails else None)
    provider = ScriptedProvider(*said)
    asked = call(stream=stream, limit=limit)
    wrapped = searching(provider, backend, options=options, context_window=window)
    asyncio.run(streamed(wrapped, asked) if stream else wrapped.complete(asked))
    used = sum(tokens_max(sent.body) for sent in provider.asked)
    own = tokens_max(asked.body)
    bound = prompt_tokens_max(own, options=options, output_limit=limit, context_window=2**31)
    assert used <= bound
    assert len(provider.asked) <= options.rounds_max + 1
    assert len(backend.queries) <= options.searches_max
    reported = [(sent.usage or {}).get("completion_tokens", 0) for sent in said[: len(provider.asked)]]
    limits = [sent.output_limit for sent in provider.asked]
    assert limits[0] == limit
    assert all(left > 0 for left in limits)
    assert all(after <= before - tokens for before, after, tokens in zip(limits, limits[1:], reported, strict=False))


@given(st.integers(0, 10**6), OPTIONS, st.integers(1, 10**5), st.integers(1, 10**6))
def test_no_round_is_more_than_the_model_can_take(prompt: int, options: SearchOptions, limit: int, window: int) -> None:
    bound = prompt_tokens_max(prompt, options=options, output_limit=limit, context_window=window)
    assert bound <= (options.rounds_max + 1) * window
    assert bound >= min(prompt, window) * (options.rounds_max + 1)


@given(TEXT)
def test_query_is_one_visible_line_within_its_bounds(text: str) -> None:
    query = query_of(orjson.dumps({"query": text.encode("utf-8", "replace").decode()}).decode())
    if query is not None:
        assert query == " ".join(query.split())
        assert 0 < len(query) <= 400
        assert len(query.encode()) <= QUERY_BYTES_MAX
        assert query_of(arguments_of(query)) == query
    assert len(arguments_of(query).encode()) <= ARGUMENTS_BYTES_MAX


@pytest.mark.parametrize(
    "message", [NO_QUERY, NO_ROOM, NONE_LEFT, NOTHING_FOUND, failed("the search service did not take it")]
)
def test_notices_fit_into_their_share(message: str) -> None:
    assert len(f"{message}\n\n{LAST}".encode()) <= NOTICE_BYTES_MAX


def test_instruction_fits_into_its_share() -> None:
    assert len(instruction(START_MS).encode()) + 2 <= INSTRUCTION_BYTES_MAX


def test_fullest_results_fit_into_their_share() -> None:
    options = SearchOptions(results=20, result_bytes_max=1000, rounds_max=1, searches_max=1)
    fullest = SearchResult("t" * 200, "u" * 500, "x" * 1000, "2025-10-07")
    message = told([(640, fullest)] * 20)
    assert len(message.encode()) + len(LAST) + 2 <= told_bytes_max(options)


@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_what_each_round_says_is_counted_in_every_later_one(rounds: int) -> None:
    options = SearchOptions(results=1, result_bytes_max=100, rounds_max=rounds, searches_max=1)
    silent, talkative = (
        prompt_tokens_max(100, options=options, output_limit=limit, context_window=2**31) for limit in (0, 10**6)
    )
    assert talkative - silent == ECHO_BYTES_MAX * sum(range(rounds + 1))


def test_query_of_wide_characters_is_cut_by_its_bytes() -> None:
    query = query_of(orjson.dumps({"query": "\U0001f600" * 400}).decode())
    assert query == "\U0001f600" * (QUERY_BYTES_MAX // 4)
