"""Whole answers: the rounds of one become one answer, as a stream of the same would read. Pure."""

from typing import Any

from app.metering import completion_text_bytes
from app.search.calls import Search, parted
from app.search.turn import SEARCHING, Shown

_REASONING = ("reasoning_content", "reasoning")
_KEPT = ("id", "created", "model")


class WholeAnswer:
    """Puts the rounds of a whole answer together."""

    def __init__(self, shown: Shown) -> None:
        self._shown = shown
        self._first: dict[str, Any] = {}
        self._text = ""
        self._reasoning = dict.fromkeys(_REASONING, "")
        self._has_clients = False
        self._has_searches = False
        self.searches: list[Search] = []
        self.text_bytes = 0
        self.said = ""

    def read(self, body: dict[str, Any], *, offered: bool, may_search: bool) -> None:
        """One round's answer; ``searches`` and ``said`` are of this round afterwards."""
        self._first = self._first or {name: body[name] for name in _KEPT if name in body}
        self._shown.bill.report(body.get("usage"))
        self.text_bytes, self.searches, self.said = completion_text_bytes(body), [], ""
        choice = _choice(body)
        message = choice.get("message") if choice else None
        if not offered or choice is None or not isinstance(message, dict):
            return
        clients, searches = parted(message.get("tool_calls"))
        self._has_clients, self._has_searches = bool(clients), bool(searches)
        if may_search and not clients and _finish(choice) in SEARCHING:
            self.searches = searches
        message.pop("tool_calls", None)
        if clients:
            message["tool_calls"] = clients
        for name in _REASONING:
            if isinstance(message.get(name), str):
                self._reasoning[name] += message[name]
        content = message.get("content")
        if isinstance(content, str) and content:
            self.said = content
            content = self._shown.joined(content)
            self._shown.citations.read(content)
            self._text += content

    def answer(self, body: dict[str, Any], *, finish: str | None = None) -> dict[str, Any]:
        """The answer, made of the last round's ``body``."""
        choice = _choice(body)
        message = choice.get("message") if choice else None
        if choice is not None and isinstance(message, dict):
            if self._text:
                message["content"] = self._text
            message |= {name: text for name, text in self._reasoning.items() if text}
            if self._shown.citations.annotations:
                message["annotations"] = self._shown.citations.annotations
            if finish is not None:
                choice["finish_reason"] = finish
            elif self._has_searches and not self._has_clients and _finish(choice) in SEARCHING:
                choice["finish_reason"] = "stop"
        return {**body, **self._first, "usage": self._shown.bill.total()}


def _choice(body: dict[str, Any]) -> dict[str, Any] | None:
    choices = body.get("choices")
    found = choices[0] if isinstance(choices, list) and choices else None
    return found if isinstance(found, dict) else None


def _finish(choice: dict[str, Any]) -> str | None:
    reason = choice.get("finish_reason")
    return reason if isinstance(reason, str) else None
