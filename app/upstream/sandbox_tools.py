"""Which tools the sandbox calls, with what arguments, and what it makes of their results.

The client's tools are called when the text names them, says "use the tool" or a choice demands it, together
where that is allowed, and never again once one of them has answered. A function ``web_search`` (the proxy puts
it beside the client's tools) is called when the text says "search the web" or names it, once, or in as many
rounds as the directive's ``search=N`` says. Its query is the user's words; from the second round on with the
round's number, so that no two searches are the same. Pure.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.upstream.sandbox_request import since_user
from app.upstream.sandbox_script import Script
from app.upstream.sandbox_text import example_value, message_text, quoted

SEARCH_TOOL = "web_search"
SEARCH_WORDS = "search the web"
QUERY_CHARACTERS_MAX = 200
CITATIONS_MAX = 20
# A result's first line begins with its number (`app.search.wording`); what pages say may hold others.
_NUMBERED = re.compile(r"^\[(\d{1,3})\] ", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool and its arguments as JSON. ASCII, but for a name that the client chose."""

    name: str
    arguments: str


def tools_called(body: Mapping[str, Any], script: Script, prompt: str, *, seed: str) -> list[ToolCall]:
    """What this round of the conversation calls; nothing, and it answers with text."""
    tools = [tool["function"] for tool in body.get("tools") or () if _is_function(tool)]
    choice = body.get("tool_choice") or "auto"
    if not tools or choice == "none" or _answered(body, searches=False):
        return []
    searches = sum(SEARCH_TOOL in _names(message) for message in since_user(body))
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        name = (choice.get("function") or {}).get("name")
        # A choice that forces a search would force it in every round.
        called = [tool for tool in tools if tool.get("name") == name][: 0 if searches and name == SEARCH_TOOL else 1]
    else:
        wanted = _wanted(script, prompt)
        called = _chosen(tools, prompt, forced=choice == "required", searched=searches, wanted=wanted)
    if body.get("parallel_tool_calls") is False:
        called = called[:1]
    return [_call(tool, prompt, searches + 1, seed=f"{seed}\n{position}") for position, tool in enumerate(called)]


def opening(body: Mapping[str, Any], prompt: str) -> str:
    """How the answer begins: what tools answered since the user spoke, with the found pages cited, or the echo."""
    others, found = _answered(body, searches=False), _answered(body, searches=True)
    sentences = []
    if found:
        results = "\n".join(found)
        numbers = sorted({int(number) for number in _NUMBERED.findall(results)})[:CITATIONS_MAX]
        cited = " and ".join(f"[{number}]" for number in numbers)
        told = f"According to {cited}: {quoted(prompt)}." if cited else f"The search said: {quoted(results)}."
        sentences.append(told)
    if others:
        sentences.append(f"The tool answered: {quoted('; '.join(others))}.")
    return " ".join(sentences) or f"You said: {quoted(prompt)}."


def _chosen(
    tools: Sequence[Mapping[str, Any]], prompt: str, *, forced: bool, searched: int, wanted: int
) -> list[Mapping[str, Any]]:
    search = [tool for tool in tools if tool.get("name") == SEARCH_TOOL][:1]
    others = [tool for tool in tools if tool.get("name") != SEARCH_TOOL]
    named = [tool for tool in others if _is_named(str(tool.get("name")), prompt)]
    if not named and (forced or "use the tool" in prompt.casefold()):
        named = others[:1]
    if forced and not others:
        wanted = max(wanted, 1)
    return [*(search if searched < wanted else ()), *named]


def _wanted(script: Script, prompt: str) -> int:
    """Rounds of searching that are asked for."""
    if script.search is not None:
        return script.search
    return int(SEARCH_WORDS in " ".join(prompt.casefold().split()) or _is_named(SEARCH_TOOL, prompt))


def _call(tool: Mapping[str, Any], prompt: str, search: int, *, seed: str) -> ToolCall:
    name = str(tool.get("name"))
    if name == SEARCH_TOOL:
        arguments: Any = {"query": _query(prompt, search)}
    else:
        arguments = example_value({"type": "object", "properties": {}, **(tool.get("parameters") or {})}, seed=seed)
    return ToolCall(name, json.dumps(arguments, separators=(",", ":")))


def _query(prompt: str, search: int) -> str:
    words = " ".join(prompt.split())[:QUERY_CHARACTERS_MAX].encode("utf-8", "replace").decode()
    return words if search == 1 else f"{words} ({search})"


def _answered(body: Mapping[str, Any], *, searches: bool) -> list[str]:
    """What tools answered after the last user message: web searches alone, or all the others."""
    later = since_user(body)
    calls = [call for message in later for call in message.get("tool_calls") or () if isinstance(call, Mapping)]
    ids = {str(call.get("id")) for call in calls if _name(call) == SEARCH_TOOL}
    results = [message for message in later if message.get("role") == "tool"]
    return [message_text(result) for result in results if (str(result.get("tool_call_id")) in ids) is searches]


def _names(message: Mapping[str, Any]) -> set[str]:
    return {_name(call) for call in message.get("tool_calls") or () if isinstance(call, Mapping)}


def _name(call: Mapping[str, Any]) -> str:
    function = call.get("function")
    return str(function.get("name")) if isinstance(function, Mapping) else ""


def _is_function(tool: Mapping[str, Any]) -> bool:
    return tool.get("type", "function") == "function" and isinstance(tool.get("function"), Mapping)


def _is_named(name: str, prompt: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", prompt) is not None
