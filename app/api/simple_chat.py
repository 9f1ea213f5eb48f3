"""``POST /ai/chat``: a chat completion with its one message at the top, and streams of bare deltas."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from app.admission import PaidRequest
from app.api import chat_parameters
from app.api.incoming import Incoming
from app.api.simple import (
    DeltaShape,
    answer_id,
    ending,
    first_choice,
    json_answer,
    member,
    refuse_choices,
    streams_when_asked,
    usage_of,
)
from app.shapes import Told


def parse(incoming: Incoming) -> PaidRequest:
    """A validated request. Raises `InvalidRequest` naming the parameter, and `NotFound`."""
    body = incoming.object()
    refuse_choices(body)
    streams_when_asked(body)
    messages = body.get("messages")
    if isinstance(messages, list):
        body["messages"] = [_with_types(message) for message in messages]
    return replace(chat_parameters.parse_body(body, incoming), shape=CHAT)


def _with_types(message: Any) -> Any:
    """A message with the calls of an earlier answer, which came without ``type`` and need one upstream."""
    calls = message.get("tool_calls") if isinstance(message, dict) else None
    if not isinstance(calls, list):
        return message
    typed = [
        {"type": "custom" if "custom" in call else "function", **call} if isinstance(call, dict) else call
        for call in calls
    ]
    return {**message, "tool_calls": typed}


class SimpleChat(DeltaShape):
    """``{"id": "chat_...", "model", "message", "usage", "finish_reason"}``."""

    def whole(self, body: dict[str, Any], told: Told) -> tuple[str, bytes]:
        """The media type and the bytes of a whole answer."""
        choice = first_choice(body)
        said = {
            "id": answer_id("chat", told.request_id),
            "model": told.model,
            "message": _message(member(choice, "message")),
            "usage": usage_of(told),
            "finish_reason": None,
        }
        return json_answer(said | ending(choice), told)

    def delta(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """Text, calls, reasoning: what there is, without the role."""
        return _without_types({name: value for name, value in _said(member(choice, "delta")) if name != "role"})


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """The role first, then the text; a message that only calls tools has no text."""
    found = _without_types(dict(_said(message)))
    content = {} if found.get("tool_calls") else {"content": ""}
    return {"role": "assistant", **content, **found}


def _said(message: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """The members that say something: null, and the empty text of a first chunk, do not."""
    return [(name, value) for name, value in message.items() if value is not None and value not in ("", [])]


def _without_types(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        message["tool_calls"] = [
            {name: value for name, value in call.items() if name != "type"} if isinstance(call, dict) else call
            for call in calls
        ]
    return message


CHAT = SimpleChat()
