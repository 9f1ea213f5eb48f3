"""Which tools the sandbox calls, round by round, and how it cites what a search found."""

import json
from typing import Any

import pytest

from app.upstream.sandbox import SandboxProvider
from app.upstream.sandbox_tools import CITATIONS_MAX, QUERY_CHARACTERS_MAX
from tests.upstream.sandboxes import call, chunks, error_of, finishes, sandbox, text_of

SEARCH = {
    "type": "function",
    "function": {
        "name": "web_search",
        "parameters": {"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
    },
}
WEATHER = {"type": "function", "function": {"name": "get_weather"}}
ASKED = "Search the web and summarize the Python 3.13 release."
FOUND = "[1] Python 3.13\nhttps://python.example\nIt is out.\n\n[2] News\nhttps://news.example\nNotes."


@pytest.fixture(autouse=True)
def _forget_attempts() -> None:
    SandboxProvider.attempts.clear()


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


async def choice_of(messages: list[dict[str, Any]], **body: Any) -> dict[str, Any]:
    whole = await sandbox().complete(call(messages=messages, **({"tools": [SEARCH]} | body)))
    choice: dict[str, Any] = whole["choices"][0]
    return choice


async def called(messages: list[dict[str, Any]], **body: Any) -> list[tuple[str, Any]]:
    """The tools that are called, with their arguments."""
    choice = await choice_of(messages, **body)
    calls = choice["message"].get("tool_calls", [])
    assert choice["finish_reason"] == ("tool_calls" if calls else "stop")
    return [(each["function"]["name"], json.loads(each["function"]["arguments"])) for each in calls]


def searched(content: str, *results: str) -> list[dict[str, Any]]:
    """A conversation after so many searches."""
    messages = [user(content)]
    for number, result in enumerate(results):
        function = {"name": "web_search", "arguments": "{}"}
        messages += [
            {"role": "assistant", "content": None, "tool_calls": [{"id": f"call_{number}", "function": function}]},
            {"role": "tool", "tool_call_id": f"call_{number}", "content": result},
        ]
    return messages


class TestSearch:
    @pytest.mark.parametrize("text", [ASKED, "please search  THE\nweb", "use web_search for it"])
    async def test_web_is_searched_once_with_the_users_words(self, text: str) -> None:
        assert await called([user(text)]) == [("web_search", {"query": " ".join(text.split())})]
        assert await called(searched(text, FOUND)) == []

    @pytest.mark.parametrize(
        ("text", "body"),
        [
            ("hello", {}),
            (ASKED, {"tools": []}),
            (ASKED, {"tools": [WEATHER]}),
            (ASKED, {"tool_choice": "none"}),
            ("[[sandbox search=0]]" + ASKED, {}),
        ],
    )
    async def test_web_is_not_searched_unasked_or_without_the_function(self, text: str, body: dict[str, Any]) -> None:
        assert await called([user(text)], **body) == []

    async def test_only_the_last_user_message_asks(self) -> None:
        assert await called([*searched(ASKED, FOUND), {"role": "assistant", "content": "ok"}, user("thanks")]) == []

    async def test_search_says_the_rounds_and_each_has_its_query(self) -> None:
        text = "fares [[sandbox search=3]]today"
        found = [await called(searched(text, *[FOUND] * rounds)) for rounds in range(4)]
        queries = [arguments["query"] for calls in found for _, arguments in calls]
        assert queries == ["fares today", "fares today (2)", "fares today (3)"]

    async def test_query_is_bounded_and_can_be_sent(self) -> None:
        ((_, arguments),) = await called([user(f"search the web \ud800 caf\u00e9 {'x' * 1000}")])
        assert arguments["query"].startswith("search the web ? caf\u00e9 x")
        assert len(arguments["query"].encode()) <= QUERY_CHARACTERS_MAX + 1

    async def test_search_streams_like_any_tool(self) -> None:
        stream = await chunks(sandbox(), call(ASKED, tools=[SEARCH]))
        assert finishes(stream) == ["tool_calls"]
        assert text_of(stream) == ""

    @pytest.mark.parametrize(
        ("results", "opening"),
        [
            ([FOUND], "According to [1] and [2]: Search the web"),
            ([FOUND, "[3] More\nsee [99] and\n[12]there"], "According to [1] and [2] and [3]: Search"),
            (["The search failed: see [7]."], "The search said: The search failed: see [7]."),
        ],
    )
    async def test_answer_cites_what_was_found(self, results: list[str], opening: str) -> None:
        messages = searched(ASKED, *results)
        choice = await choice_of(messages)
        assert choice["message"]["content"].startswith(opening)
        assert choice == await choice_of(messages)

    async def test_citations_are_bounded(self) -> None:
        everything = "\n".join(f"[{number}] page" for number in range(1, 500))
        choice = await choice_of(searched("[[sandbox tokens=400 search=1]]", everything))
        assert choice["message"]["content"].count("[") == CITATIONS_MAX


class TestOtherTools:
    BOTH = ASKED + " Then get_weather."

    async def test_named_tools_are_called_beside_the_search(self) -> None:
        tools = [WEATHER, SEARCH]
        assert [name for name, _ in await called([user(self.BOTH)], tools=tools)] == ["web_search", "get_weather"]

    async def test_one_at_a_time_searches_first(self) -> None:
        body: dict[str, Any] = {"tools": [WEATHER, SEARCH], "parallel_tool_calls": False}
        assert [name for name, _ in await called([user(self.BOTH)], **body)] == ["web_search"]
        assert [name for name, _ in await called(searched(self.BOTH, FOUND), **body)] == ["get_weather"]

    async def test_clients_tool_that_answered_ends_the_rounds(self) -> None:
        function = {"name": "get_weather", "arguments": "{}"}
        messages = [
            *searched(self.BOTH, FOUND),
            {"role": "assistant", "content": None, "tool_calls": [{"id": "w", "function": function}]},
            {"role": "tool", "tool_call_id": "w", "content": "12 degrees"},
        ]
        choice = await choice_of(messages, tools=[WEATHER, SEARCH])
        assert choice["message"]["content"].startswith("According to [1] and [2]: ")
        messages[2]["content"] = "nothing"
        content = (await choice_of([messages[0], *messages[3:]], tools=[WEATHER, SEARCH]))["message"]["content"]
        assert content.startswith("The tool answered: 12 degrees.")

    async def test_required_is_the_clients_tool_unless_there_is_none(self) -> None:
        both = await called([user("hello")], tools=[SEARCH, WEATHER], tool_choice="required")
        assert [name for name, _ in both] == ["get_weather"]
        assert [name for name, _ in await called([user("hello")], tool_choice="required")] == ["web_search"]
        assert await called(searched("hello", FOUND), tool_choice="required") == []

    async def test_forced_search_is_made_once(self) -> None:
        forced = {"type": "function", "function": {"name": "web_search"}}
        assert [name for name, _ in await called([user("hello")], tool_choice=forced)] == ["web_search"]
        assert await called(searched("hello", FOUND), tool_choice=forced) == []


class TestFailuresPerRound:
    async def test_round_fails_that_one_alone(self) -> None:
        text = "[[sandbox fail=status:503 round=2 search=2]] fares"
        assert len(await called([user(text)])) == 1
        error = await error_of(sandbox(), call(messages=searched(text, FOUND), tools=[SEARCH]))
        assert error.status == 503
        assert await called(searched(text, FOUND, FOUND)) == []

    async def test_times_counts_the_attempts_of_each_round(self) -> None:
        text = "[[sandbox fail=connect times=1]] " + ASKED
        for messages in ([user(text)], searched(text, FOUND)):
            asked = call(messages=messages, tools=[SEARCH])
            assert (await error_of(sandbox(), asked)).result == "connect"
            assert len(finishes(await chunks(sandbox(), asked))) == 1

    async def test_every_round_fails_where_none_is_named(self) -> None:
        text = "[[sandbox fail=error_event after=1]] " + ASKED
        for messages in ([user(text)], searched(text, FOUND)):
            error = await error_of(sandbox(), call(messages=messages, tools=[SEARCH]))
            assert error.result == "interrupted"
