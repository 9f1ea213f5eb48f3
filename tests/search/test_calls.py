"""Tool calls in pieces: the client's go on at once, ours are kept, and neither can be without end."""

from typing import Any

import pytest

from app.search.calls import ARGUMENTS_KEPT_MAX, CALLS_MAX, HELD_PIECES_MAX, ToolCalls
from tests.search.scripted import search, tool_call


def piece(index: int = 0, **function: str) -> dict[str, Any]:
    return {"index": index, "function": function}


def test_clients_call_goes_on_with_its_first_piece() -> None:
    calls = ToolCalls(offered=True)
    first, second = piece(name="weather"), piece(arguments="{")
    assert calls.feed(first) == [first]
    assert calls.feed(second) == [second]
    assert calls.has_clients
    assert not calls.has_searches


def test_name_without_an_end_is_not_held_for_ever() -> None:
    calls = ToolCalls(offered=True)
    held = [calls.feed(piece(name="")) for _ in range(HELD_PIECES_MAX + 1)]
    assert held[:-1] == [[]] * HELD_PIECES_MAX
    assert len(held[-1]) == HELD_PIECES_MAX + 1


def test_what_is_held_at_the_end_is_the_clients_unless_it_is_named_like_ours() -> None:
    calls = ToolCalls(offered=True)
    web, ours = piece(0, name="web"), piece(1, name="web_search")
    assert calls.feed(web) == calls.feed(ours) == []
    assert calls.settle() == [web]
    assert calls.has_searches


@pytest.mark.parametrize("known", [{}, {"index": 0}], ids=["nothing", "an index"])
def test_calls_that_nothing_tells_apart_are_told_apart_by_their_names(known: dict[str, Any]) -> None:
    calls = ToolCalls(offered=True)
    for query in "ab":
        calls.feed({**known, "function": {"name": "web_search", "arguments": f'{{"query": "{query}"'}})
        calls.feed({**known, "function": {"arguments": "}"}})
    other = {**known, "function": {"name": "weather", "arguments": "{}"}}
    assert calls.feed(other) == [other]
    assert [made.query for made in calls.searches()] == ["a", "b"]


def test_call_that_says_its_id_and_name_with_every_piece_is_one_call() -> None:
    calls = ToolCalls(offered=True)
    for arguments in ('{"query"', ': "a"', "}"):
        said = {"index": 0, "id": "call_1", "function": {"name": "web_search", "arguments": arguments}}
        assert calls.feed(said) == []
    assert [(made.id, made.query) for made in calls.searches()] == [("call_1", "a")]


def test_calls_without_end_are_not_kept() -> None:
    calls = ToolCalls(offered=True)
    for index in range(2 * CALLS_MAX):
        calls.feed(search("a", index=index))
    assert len(calls.searches()) == CALLS_MAX


def test_arguments_without_end_are_no_query() -> None:
    calls = ToolCalls(offered=True)
    calls.feed(piece(name="web_search", arguments='{"query": "'))
    for _ in range(3):
        calls.feed(piece(arguments="x" * ARGUMENTS_KEPT_MAX))
    calls.feed(piece(arguments='"}'))
    (made,) = calls.searches()
    assert made.query is None
    assert calls.text_bytes == len("web_search") + 3 * ARGUMENTS_KEPT_MAX + len('{"query": ""}')


@pytest.mark.parametrize("odd", [None, 7, "x", []])
def test_piece_of_another_shape_is_left_to_the_client(odd: Any) -> None:
    assert ToolCalls(offered=True).feed(odd) == [odd]


def test_nothing_is_held_where_no_search_is_offered() -> None:
    calls = ToolCalls(offered=False)
    call = tool_call("web_search", "{}")
    assert calls.feed(call) == [call]
    assert calls.has_clients
