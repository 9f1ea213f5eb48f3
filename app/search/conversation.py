"""The conversation with the model, round by round: what is sent next, and what is left to spend. Pure.

The client's words stay as they are. Behind them stand our instruction, and for each round so far what the
model said, the searches it made and what was found.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from app.clock import EpochMs
from app.endpoints import CHAT
from app.search.backend import SearchResult
from app.search.bounds import REFUSED_CALLS_MAX, echo_bytes_max, rounds_max
from app.search.calls import Search
from app.search.options import SearchOptions
from app.search.sources import Sources
from app.search.wording import LAST, NO_ROOM, NONE_LEFT, TOOL, TOOL_NAME, arguments_of, instructed, instruction, told
from app.upstream.provider import Call

# Ours: a provider that knows them would search, and bill, by itself.
OUR_PARAMETERS = frozenset({"web_search", "web_search_options"})


# Of text, as tokenizers make them of most languages: an estimate, and rather too few bytes.
BYTES_PER_TOKEN = 3
# Kept free for the answer where results are long.
ANSWER_TOKENS = 1024
NUMBER_MAX = 999


class Conversation:
    """One request's rounds. ``offered``: whether the model may search at all.

    ``context_window`` is the model's, in tokens: results that would overflow it are left out.
    """

    def __init__(self, call: Call, options: SearchOptions, *, now: EpochMs, context_window: int) -> None:
        self._call = call
        self._options = options
        self._context_window = context_window
        self._body = {name: value for name, value in call.body.items() if name not in OUR_PARAMETERS}
        self.offered = _offered(call, self._body)
        self._rounds = 0
        self._left = options.searches_max
        self._output_left = call.output_limit
        self._window_left = call.output_limit
        self._ids: set[str] = set()
        self._messages: list[Any] = list(self._body.get("messages") or ())
        if self.offered:
            self._messages = instructed(self._messages, instruction(now))
        self.sources = Sources()

    @property
    def first(self) -> bool:
        """Whether the round that was asked for last is the first."""
        return self._rounds == 1

    @property
    def may_search(self) -> bool:
        """Whether searches asked for in this round will be made: another round can still follow."""
        return self.offered and self._rounds < rounds_max(self._options) and self._left > 0

    @property
    def output_is_used_up(self) -> bool:
        """Whether nothing more may be said."""
        return self._output_left <= 0

    @property
    def echo_bytes_max(self) -> int:
        """The most bytes of a round's text that are sent back."""
        return echo_bytes_max(self._call.output_limit)

    def next_call(self) -> Call:
        """Ask once more."""
        self._rounds += 1
        if not self.offered:
            return replace(self._call, body=self._body)
        body = {**self._body, "messages": self._messages}
        clients = self._body.get("tools") or []
        if self.may_search:
            body["tools"] = [*clients, TOOL]
            if not self.first and not clients:
                body.pop("tool_choice", None)
        elif not clients:
            # Still listed: some providers refuse a conversation with calls of a tool that they are not told of.
            body |= {"tools": [TOOL], "tool_choice": "none"}
        return replace(self._call, body=body, output_limit=min(self._output_left, self._window_left))

    def used(self, output_tokens: int) -> None:
        """Take what a round has used from what may still be said."""
        self._output_left -= output_tokens

    def to_make(self, searches: Sequence[Search]) -> list[Search]:
        """The searches of a round that are made, as far as any are left."""
        return list(searches[: self._left])

    def heard(
        self,
        text: str,
        searches: Sequence[Search],
        found: Sequence[list[SearchResult] | str],
        *,
        context_tokens: int | None,
    ) -> None:
        """Add what the model said and asked for, and what came of each search in `to_make`.

        ``context_tokens``: how long the conversation was before, where the provider said so.
        """
        self._left -= len(found)
        outcomes = self._told(found, context_tokens)
        kept = searches[: len(found) + REFUSED_CALLS_MAX]
        outcomes += [NONE_LEFT] * (len(kept) - len(outcomes))
        if self._left <= 0 or self._rounds + 1 >= rounds_max(self._options):
            outcomes[-1] += f"\n\n{LAST}"
        ids = [self._own_id(search.id) for search in kept]
        calls = [
            {"id": own, "type": "function", "function": {"name": TOOL_NAME, "arguments": arguments_of(search.query)}}
            for own, search in zip(ids, kept, strict=True)
        ]
        self._messages = [
            *self._messages,
            {"role": "assistant", "content": last_bytes(text, self.echo_bytes_max) or None, "tool_calls": calls},
            *(
                {"role": "tool", "tool_call_id": own, "content": outcome}
                for own, outcome in zip(ids, outcomes, strict=True)
            ),
        ]

    def _told(self, found: Sequence[list[SearchResult] | str], context_tokens: int | None) -> list[str]:
        """What the model is told, as far as its context window has room beside an answer."""
        room = self._context_window if context_tokens is None else self._context_window - context_tokens
        room = (room - min(self._output_left, ANSWER_TOKENS)) * BYTES_PER_TOKEN
        outcomes = []
        for result in found:
            outcome = result if isinstance(result, str) else self._fitting(result, room)
            outcomes.append(outcome)
            room -= len(outcome.encode())
        if context_tokens is not None:
            self._window_left = max(1, room // BYTES_PER_TOKEN + min(self._output_left, ANSWER_TOKENS))
        return outcomes

    def _fitting(self, results: list[SearchResult], room_bytes: int) -> str:
        kept = list(results)
        while kept and len(told([(NUMBER_MAX, result) for result in kept]).encode()) > room_bytes:
            kept.pop()
        return told(self.sources.numbered(kept)) if kept or not results else NO_ROOM

    def _own_id(self, given: str | None) -> str:
        """The model's own id, unless that is none or was there before; ours suit the strictest server."""
        own = given if given and given not in self._ids else f"search{len(self._ids):03d}"
        self._ids.add(own)
        return own


def last_bytes(text: str, bytes_max: int) -> str:
    """The end of a text, at most so many bytes of UTF-8."""
    content = text.encode("utf-8", "replace")
    return content[max(0, len(content) - bytes_max) :].decode("utf-8", "ignore")


def _offered(call: Call, body: dict[str, Any]) -> bool:
    """Whether the model can be given the tool.

    Not beside a tool of the client with the same name, nor where the client wants no tool, one of its own,
    several answers, or the old way of calling functions.
    """
    choice = body.get("tool_choice")
    return (
        call.endpoint == CHAT.name
        and body.get("n") in (None, 1)
        and choice in (None, "auto", "required")
        and not body.get("functions")
        and not any(_is_named_like_ours(tool) for tool in body.get("tools") or ())
    )


def _is_named_like_ours(tool: Any) -> bool:
    """Whatever its kind: where a tool's name stands differs."""
    places = (tool, *tool.values()) if isinstance(tool, dict) else ()
    return any(isinstance(place, dict) and place.get("name") == TOOL_NAME for place in places)
