"""What the Messages dialect says: whole messages in the shapes of its public reference, and their events.

https://platform.claude.com/docs/en/api/messages and https://platform.claude.com/docs/en/build-with-claude/streaming.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Message = dict[str, Any]
Event = dict[str, Any]
Cut = Callable[[str], Iterable[str]]

TEXT = "Hello! 🎉 \n\nHow can I help you today?"
THINKING = "Let me solve this step by step:\n\n27 * 453 = 12,231"
SIGNATURE = "EqQBCgIYAhIM1gbcDa9GJwZA2b3hGgxBdjrkzLoky3dl1pkiMOYds" * 3
TOOL_ID = "toolu_01T1x1fJ34qAmk2tNTrN7Up6"
USAGE: Mapping[str, Any] = {
    "input_tokens": 11,
    "cache_creation_input_tokens": 0,
    "cache_read_input_tokens": 0,
    "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
    "output_tokens": 9,
    "service_tier": "standard",
}
CACHED: Mapping[str, Any] = {
    "cache_creation_input_tokens": 200,
    "cache_read_input_tokens": 1000,
    "output_tokens": 40,
    "output_tokens_details": {"thinking_tokens": 25},
}
STATUS_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}
SECRET_ORGANIZATION = "7d6f1b2e-3c4a-4f5b-8a9c-0d1e2f3a4b5c"
# A 400 each, and none of them the caller's fault.
ACCOUNT_WORDS = (
    "Your credit balance is too low to access the Anthropic API. Please go to Plans & Billing to upgrade or purchase "
    "credits.",
    "You have reached your specified API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
    "You have reached your specified workspace API usage limits. You will regain access on 2026-12-01 at 00:00 UTC.",
    "This organization has been disabled.",
)


def text(words: str) -> Event:
    """A block of text."""
    return {"type": "text", "text": words, "citations": None}


def thinking(words: str) -> Event:
    """A block of thinking with its signature."""
    return {"type": "thinking", "thinking": words, "signature": SIGNATURE}


def tool(name: str, arguments: Mapping[str, Any], *, call_id: str = TOOL_ID) -> Event:
    """A call of a tool."""
    return {"type": "tool_use", "id": call_id, "name": name, "input": dict(arguments)}


REDACTED: Event = {"type": "redacted_thinking", "data": "EmwKAhgBEgy3va3pzix/LafPsn4aDFIT2Xlxh0L5L8rLVyIwxtE3rAFBa8"}


def message(
    *content: Event, stop: str = "end_turn", model: str = "claude-test", usage: Mapping[str, Any] | None = None
) -> Message:
    """A whole message."""
    return {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": list(content),
        "stop_reason": stop,
        "stop_sequence": None,
        "stop_details": None,
        "usage": {**USAGE, **(usage or {})},
    }


MESSAGES: Mapping[str, Message] = {
    "ok": message(text(TEXT)),
    "cached": message(thinking(THINKING), REDACTED, text(TEXT), usage=CACHED),
    "tools": message(
        text("I'll look both up."),
        tool("get_weather", {"location": "San Francisco, CA", "unit": "c"}),
        tool("get_time", {}, call_id="toolu_01A09q90qw90lq917835lq9"),
        stop="tool_use",
    ),
    "nothing": message(),
}


def halves(words: str) -> Iterator[str]:
    """A text in two pieces."""
    middle = len(words) // 2
    yield words[:middle]
    yield words[middle:]


def events(whole: Message, *, cut: Cut = halves) -> Iterator[Event]:
    """The events that stream a message, each text of it in the pieces of ``cut``."""
    usage = whole["usage"]
    start = {**usage, "output_tokens": 1}
    start.pop("output_tokens_details", None)
    yield {
        "type": "message_start",
        "message": {**whole, "content": [], "stop_reason": None, "usage": start},
    }
    for index, block in enumerate(whole["content"]):
        first, *rest = _block(index, block, cut)
        yield first
        if not index:
            yield {"type": "ping"}
        yield from rest
    ending = {name: usage[name] for name in ("output_tokens", "output_tokens_details") if name in usage}
    delta = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield {"type": "message_delta", "delta": delta, "usage": ending}
    yield {"type": "message_stop"}


def _block(index: int, block: Event, cut: Cut) -> Iterator[Event]:
    deltas: list[Event]
    match block["type"]:
        case "text":
            begun = {**block, "text": ""}
            deltas = [{"type": "text_delta", "text": piece} for piece in cut(block["text"])]
        case "thinking":
            begun = {**block, "thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in cut(block["thinking"])]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        case "tool_use":
            begun = {**block, "input": {}}
            arguments = json.dumps(block["input"], separators=(",", ":"), ensure_ascii=False) if block["input"] else ""
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in ("", *cut(arguments))]
        case _:
            begun, deltas = block, []
    yield {"type": "content_block_start", "index": index, "content_block": begun}
    for delta in deltas:
        yield {"type": "content_block_delta", "index": index, "delta": delta}
    yield {"type": "content_block_stop", "index": index}


def encoded(event: Event) -> bytes:
    """An event as it is sent, named."""
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False)}\n\n".encode()


def error(kind: str, words: str) -> Event:
    """An error, as a body or an event."""
    return {"type": "error", "error": {"type": kind, "message": words}, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}
