"""The tool calls of one round: which are searches, and which are the client's own. Pure.

A stream gives a call in pieces, and its name may be one of them. A piece is held until it is clear whose
call it is; the client sees its own calls alone, numbered as if there were no others.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from app.search.wording import TOOL_NAME, query_of

# Kept of a call's arguments: a query is far shorter.
ARGUMENTS_KEPT_MAX = 8192
CALLS_MAX = 128
HELD_PIECES_MAX = 16
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")


@dataclass(frozen=True, slots=True)
class Search:
    """A call of our tool; ``query`` is None where the model's arguments say none, ``id`` where it has no sane one."""

    id: str | None
    query: str | None

    @classmethod
    def of(cls, given_id: object, arguments: object) -> "Search":
        """What the model asked for."""
        sane = isinstance(given_id, str) and _ID.fullmatch(given_id)
        readable = isinstance(arguments, str) and len(arguments) <= ARGUMENTS_KEPT_MAX
        return cls(str(given_id) if sane else None, query_of(str(arguments)) if readable else None)


@dataclass(slots=True)
class _Call:
    id: str | None = None
    name: str = ""
    arguments: str = ""
    has_arguments: bool = False
    ours: bool | None = None
    shown_index: int = 0
    held: list[dict[str, Any]] = field(default_factory=list)


class ToolCalls:
    """Reads the pieces of a round's tool calls. ``offered``: whether a call of our name is ours."""

    def __init__(self, *, offered: bool) -> None:
        self._offered = offered
        self._calls: list[_Call] = []
        self._by_index: dict[int, _Call] = {}
        self._clients = 0
        self.text_bytes = 0

    @property
    def has_clients(self) -> bool:
        """Whether the client has something to do."""
        return self._clients > 0

    @property
    def has_searches(self) -> bool:
        """Whether the model called our tool."""
        return any(call.ours for call in self._calls)

    def feed(self, piece: Any) -> list[Any]:
        """What the client is to see now."""
        if not self._offered or not isinstance(piece, dict):
            self._clients += not self._offered
            return [piece]
        call = self._call_of(piece)
        if call is None:
            return []
        function = piece.get("function")
        name, arguments = (_string(function, member) for member in ("name", "arguments"))
        self.text_bytes += len(name.encode("utf-8", "replace")) + len(arguments.encode("utf-8", "replace"))
        if call.ours is None:
            call.name = (call.name + name)[: len(TOOL_NAME) + 1]
        call.has_arguments = call.has_arguments or bool(arguments)
        if call.ours is False:
            return [_renumbered(piece, call)]
        if len(call.arguments) <= ARGUMENTS_KEPT_MAX:
            call.arguments += arguments
        if call.ours:
            return []
        call.held.append(piece)
        if not TOOL_NAME.startswith(call.name):
            return self._give(call)
        if call.arguments or len(call.held) > HELD_PIECES_MAX:
            return self._settle(call)
        return []

    def settle(self) -> list[Any]:
        """At the end of the round: what was still held and is the client's."""
        return [piece for call in self._calls if call.ours is None for piece in self._settle(call)]

    def searches(self) -> list[Search]:
        """The calls of our tool, in their order."""
        return [Search.of(call.id, call.arguments) for call in self._calls if call.ours]

    def _call_of(self, piece: dict[str, Any]) -> _Call | None:
        """The call that a piece belongs to; some servers leave the index or the id out, or give every call the same."""
        index, given = piece.get("index"), piece.get("id")
        named = bool(_string(piece.get("function"), "name"))
        index = index if isinstance(index, int) else 0
        call = self._by_index.get(index)
        another = call is not None and named and (given != call.id if given else call.has_arguments)
        if call is None or (another and call.name):
            if len(self._calls) >= CALLS_MAX:
                return None
            call = self._by_index[index] = _Call()
            self._calls.append(call)
        if call.id is None and isinstance(given, str) and given:
            call.id = given[:256]
        return call

    def _settle(self, call: _Call) -> list[Any]:
        if call.name == TOOL_NAME:
            call.ours, call.held = True, []
            return []
        return self._give(call)

    def _give(self, call: _Call) -> list[Any]:
        call.ours, call.shown_index = False, self._clients
        self._clients += 1
        held, call.held = call.held, []
        return [_renumbered(piece, call) for piece in held]


def parted(pieces: Any) -> tuple[list[Any], list[Search]]:
    """The client's calls and the searches among the tool calls of a whole message."""
    clients, searches = [], []
    for piece in pieces[:CALLS_MAX] if isinstance(pieces, list) else ():
        function = piece.get("function") if isinstance(piece, dict) else None
        if _string(function, "name") == TOOL_NAME:
            searches.append(Search.of(piece.get("id"), _string(function, "arguments")))
        else:
            clients.append(piece)
    return clients, searches


def _renumbered(piece: dict[str, Any], call: _Call) -> dict[str, Any]:
    """The same object where its number is right already."""
    index = piece.get("index")
    return piece if index is None or index == call.shown_index else {**piece, "index": call.shown_index}


def _string(owner: Any, member: str) -> str:
    value = owner.get(member) if isinstance(owner, dict) else None
    return value if isinstance(value, str) else ""
