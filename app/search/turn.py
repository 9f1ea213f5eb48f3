"""One round of a stream: what the client is shown of it, and what the model wants to be searched.

The client sees one answer, whatever happened behind it: the first round's chunks as they came, the text of
later ones under the first one's id and model, and one finish. Searches are held back; so are the finish of
a round that is followed by another, and its role.
"""

from typing import Any

import orjson

from app.search.bill import Bill
from app.search.calls import Search, ToolCalls
from app.search.conversation import last_bytes
from app.search.sources import Citations, Sources
from app.upstream.provider import DONE

# A finish that may have searches behind it: some servers say "stop" where they call tools.
SEARCHING = frozenset({None, "tool_calls", "function_call", "stop"})
_HEAD = ("id", "object", "created", "model", "system_fingerprint")
_BREAK = "\n\n"


class Shown:
    """What all rounds of an answer have in common: its head, its usage and its citations."""

    def __init__(self, sources: Sources) -> None:
        self.bill = Bill()
        self.citations = Citations(sources)
        self._head: dict[str, Any] = {}
        # Whether every chunk is written anew: the meter takes the first one's spacing for that of all.
        self.spaced = False

    def learn(self, data: bytes, chunk: dict[str, Any]) -> None:
        """Take the head from the first round's chunks; some servers leave the first one's empty."""
        self.spaced = self.spaced or (not self._head and b'"model": ' in data)
        self._head |= {name: chunk[name] for name in _HEAD if chunk.get(name)}

    def headed(self, chunk: dict[str, Any]) -> bytes:
        """A chunk of a later round as one of the first."""
        return orjson.dumps(chunk | self._head)

    def said(self, delta: dict[str, Any], finish: str | None = None) -> bytes:
        """A chunk of ours."""
        return orjson.dumps({**self._head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

    def usage(self) -> bytes:
        """A chunk with the usage so far."""
        return orjson.dumps({**self._head, "choices": [], "usage": self.bill.total()})

    def annotated(self) -> list[bytes]:
        """The chunk with the citations, if there are any."""
        citations = self.citations.annotations
        return [self.said({"annotations": citations})] if citations else []

    def joined(self, text: str) -> str:
        """The first text of a later round, set off from what was said before it."""
        return text if not self.citations.characters or self.citations.ends_in_space else _BREAK + text


class Turn:
    """Reads one round. ``may_search``: whether searches asked for in it will be made."""

    def __init__(self, shown: Shown, *, first: bool, offered: bool, may_search: bool, echo_bytes_max: int) -> None:
        self._shown = shown
        self._first = first
        self._may_search = may_search
        self._echo_bytes_max = echo_bytes_max
        self._calls = ToolCalls(offered=offered)
        self._text = ""
        self._text_bytes = 0
        self._has_spoken = first
        self._finish: str | None = None
        self.done = False

    @property
    def ended(self) -> bool:
        """Whether the model ended its round: a stream that just stops has failed."""
        return self.done or self._finish is not None

    @property
    def searching(self) -> bool:
        """Whether the round ends in searches, and in nothing for the client to do."""
        calls = self._calls
        return self._may_search and calls.has_searches and not calls.has_clients and self._finish in SEARCHING

    @property
    def searches(self) -> list[Search]:
        """What is to be searched."""
        return self._calls.searches()

    @property
    def text(self) -> str:
        """The end of what the model said in this round."""
        return last_bytes(self._text, self._echo_bytes_max)

    @property
    def text_bytes(self) -> int:
        """Bytes of everything that it said, shown or not."""
        return self._text_bytes + self._calls.text_bytes

    def read(self, data: bytes) -> list[bytes]:
        """What the client is shown of one event; the end of the stream is shown by `end`."""
        if data == DONE:
            self.done = True
            left = self._calls.settle()
            return [self._shown.said({"tool_calls": left})] if left else []
        try:
            chunk = orjson.loads(data)
        except orjson.JSONDecodeError:
            return [data]
        if not isinstance(chunk, dict) or chunk.get("error"):
            # For the meter to refuse.
            return [data]
        if self._first:
            self._shown.learn(data, chunk)
        reports = isinstance(chunk.get("usage"), dict)
        if reports:
            self._shown.bill.report(chunk["usage"])
            chunk["usage"] = self._shown.bill.total()
        choices = chunk.get("choices")
        if not isinstance(choices, list) or not choices:
            return [self._shown.usage()] if reports else [data] if self._first and not self._shown.spaced else []
        changed, closing = reports or not self._first or self._shown.spaced, None
        for choice in choices:
            if isinstance(choice, dict):
                edited, closing = self._read_choice(choice)
                changed = changed or edited
        if not changed:
            return [data]
        shown = [self._shown.headed(chunk)] if any(map(_says_something, choices)) else []
        if reports and not shown:
            shown = [self._shown.usage()]
        return shown if closing is None else [*shown, *self._closing(closing)]

    def end(self) -> list[bytes]:
        """What is still to be shown once the stream is over and no searches follow."""
        if not self.ended:
            return []
        shown = self._shown.annotated() if self._finish is None else []
        if not self._shown.bill.reported:
            self._shown.bill.end_round(text_bytes=self.text_bytes)
            shown.append(self._shown.usage())
        return [*shown, DONE] if self.done else shown

    def cut(self) -> list[bytes]:
        """The end of an answer whose searches cannot be made, because nothing more may be said."""
        return [*self._closing("length"), DONE]

    def _read_choice(self, choice: dict[str, Any]) -> tuple[bool, str | None]:
        """Edit a choice into what is shown of it; whether it was, and the finish that is to be shown after it."""
        delta, reason = choice.get("delta"), choice.get("finish_reason")
        changed = False
        if isinstance(delta, dict):
            if not self._first:
                delta.pop("role", None)
            self._read_text(delta)
            changed = self._read_calls(delta, ends=reason is not None)
        if not isinstance(reason, str):
            return changed, None
        self._finish = reason
        if self.searching:
            choice["finish_reason"] = None
            return True, None
        if self._calls.has_searches and not self._calls.has_clients and reason in SEARCHING:
            # Called although it was not to be: the client has nothing to do.
            reason = "stop"
        if self._shown.citations.annotations:
            choice["finish_reason"] = None
            return True, reason
        changed = changed or reason != choice["finish_reason"]
        choice["finish_reason"] = reason
        return changed, None

    def _closing(self, reason: str) -> list[bytes]:
        return [*self._shown.annotated(), self._shown.said({}, reason)]

    def _read_text(self, delta: dict[str, Any]) -> None:
        reasoning = max(_bytes(delta.get("reasoning_content")), _bytes(delta.get("reasoning")))
        content = delta.get("content")
        self._text_bytes += reasoning + _bytes(delta.get("refusal")) + _bytes(content)
        if not isinstance(content, str) or not content:
            return
        if not self._has_spoken:
            self._has_spoken = True
            content = delta["content"] = self._shown.joined(content)
        self._text = (self._text + content)[-self._echo_bytes_max :] if self._echo_bytes_max else ""
        self._shown.citations.read(content)

    def _read_calls(self, delta: dict[str, Any], *, ends: bool) -> bool:
        given = delta.get("tool_calls")
        pieces = given if isinstance(given, list) else []
        kept = [shown for piece in pieces for shown in self._calls.feed(piece)]
        if ends:
            kept += self._calls.settle()
        if len(kept) == len(pieces) and all(map(_is, kept, pieces)):
            return False
        if kept:
            delta["tool_calls"] = kept
        else:
            delta.pop("tool_calls", None)
        return True


def _is(one: object, other: object) -> bool:
    return one is other


def _bytes(text: Any) -> int:
    if not isinstance(text, str):
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def _says_something(choice: Any) -> bool:
    """Whether anything is left in a choice that a client could want."""
    if not isinstance(choice, dict) or choice.get("finish_reason") is not None:
        return True
    delta = choice.get("delta")
    return not isinstance(delta, dict) or any(value not in (None, "", [], {}) for value in delta.values())
