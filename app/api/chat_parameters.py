"""The parameters of a chat completion: each is checked, priced, taken out or refused; the rest pass.

Routing parameters and those of web search are ours and never reach a provider. What multiplies output, chooses
models or tiers, keeps data or adds paid tools is priced or refused, never passed on blindly.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson

from app.admission import PaidRequest
from app.api.incoming import Incoming
from app.api.parameters import (
    BOOLEAN,
    GENERATION,
    LIST,
    NAME_CHARACTERS_SHOWN,
    OBJECT,
    REFUSED,
    Check,
    capable,
    check_all,
    integer,
    named_model,
    one_of,
    refuse,
    unknown_bytes,
    unsupported,
)
from app.api.routing_parameters import ROUTING, first_byte_timeout_s, wishes
from app.api.search_parameters import SEARCH, asks_to_search, search_options
from app.endpoints import CHAT
from app.errors import InvalidRequest
from app.pricing.quote import PromptSize
from app.settings import Settings
from app.units import WEB_SEARCH

MESSAGES_MAX = 10_000
TOOLS_MAX = 512
# Tuples, not sets: what a client sends may not be hashable.
ROLES = ("assistant", "developer", "function", "system", "tool", "user")
TOOL_TYPES = ("function", "custom")
TOOL_CHOICES = ("none", "auto", "required")
TEXT_PARTS = ("text", "refusal")
TOOL_MEMBERS = ("type", "function", "custom", "strict", "cache_control")
# Members beside the content of a part, with the values that are no prompt. Anything else may become one.
_CACHED: tuple[Any, ...] = tuple({"type": "ephemeral", **ttl} for ttl in ({}, {"ttl": "5m"}, {"ttl": "1h"}))
_OF_PART: Mapping[str, tuple[Any, ...]] = {"cache_control": (None, *_CACHED)}
_OF_IMAGE: Mapping[str, tuple[Any, ...]] = {"detail": (None, "auto", "low", "high", "original")}
_OF_AUDIO: Mapping[str, tuple[Any, ...]] = {
    "format": (None, "wav", "mp3", "flac", "opus", "aac", "pcm16", "m4a", "ogg")
}
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def _tools(name: str, value: Any) -> None:
    if not isinstance(value, list) or len(value) > TOOLS_MAX:
        raise refuse(name, f"must be a list of up to {TOOLS_MAX} tools")
    for index, tool in enumerate(value):
        if not isinstance(tool, dict) or tool.get("type", "function") not in TOOL_TYPES:
            raise refuse(f"{name}[{index}]", "only function tools can be used here")
        # A tool that some server has under a name of its own is neither ours nor the caller's.
        other = next((member for member in tool if member not in TOOL_MEMBERS), None)
        if other is not None:
            raise unsupported(f"{name}[{index}].{other[:NAME_CHARACTERS_SHOWN]}")


def _tool_choice(name: str, value: Any) -> None:
    if not isinstance(value, dict) and value not in TOOL_CHOICES:
        raise refuse(name, "must be none, auto, required or a tool")


CHECKS: Mapping[str, Check] = {
    **GENERATION,
    **ROUTING,
    **SEARCH,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": BOOLEAN,
    "response_format": OBJECT,
    "logprobs": BOOLEAN,
    "top_logprobs": integer(0, 20),
    "reasoning_effort": one_of(*EFFORTS),
    "modalities": LIST,
}
# Checked, and counted as prompt too: they become part of it.
PROMPT_PARAMETERS = ("tools", "tool_choice", "response_format")
NOT_OFFERED = REFUSED
OURS = (*ROUTING, *SEARCH)


def parse(incoming: Incoming) -> PaidRequest:
    """A validated request. Raises `InvalidRequest` naming the parameter, and `NotFound`."""
    return parse_body(incoming.object(), incoming)


def parse_body(body: dict[str, Any], incoming: Incoming) -> PaidRequest:
    """The same for a body of this shape that was made from another one. It is changed in place."""
    settings = incoming.settings
    check_all(body, CHECKS, NOT_OFFERED)
    model = named_model(body)
    size = _prompt_size(body, settings)
    limit_param = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    stream = body.get("stream", settings.inference.stream_default)
    options = body.get("stream_options") or {}
    if options and not stream:
        raise refuse("stream_options", "only allowed when stream is true")
    audio = bool(size.audio_bytes) or "audio" in body.get("modalities", ())
    candidates = capable(incoming, model, CHAT)
    search = search_options(body, settings.search) if asks_to_search(body, candidates, settings.search) else None
    needs = {
        "tools": bool(body.get("tools") or body.get("functions") or search),
        "vision": bool(size.images),
        "audio": audio,
    }
    return PaidRequest(
        endpoint=CHAT,
        path=incoming.path,
        model=model,
        body=_upstream(body),
        content=incoming.content,
        stream=stream,
        size=size,
        choices=body.get("n", 1),
        output_limit=body.get(limit_param),
        output_limit_param=limit_param,
        include_usage=bool(options.get("include_usage")),
        audio=audio,
        wishes=wishes(body),
        first_byte_timeout_s=first_byte_timeout_s(body),
        idempotency_key=incoming.idempotency_key,
        needs=frozenset(need for need, needed in needs.items() if needed),
        units={WEB_SEARCH: search.searches_max} if search else {},
        search=search,
    )


def _upstream(body: Mapping[str, Any]) -> dict[str, Any]:
    upstream = {name: value for name, value in body.items() if name not in OURS and name not in NOT_OFFERED}
    if upstream.get("top_p") == -1:
        del upstream["top_p"]
    return upstream


def _prompt_size(body: Mapping[str, Any], settings: Settings) -> PromptSize:
    messages = body.get("messages")
    if not isinstance(messages, list) or not 0 < len(messages) <= MESSAGES_MAX:
        raise InvalidRequest(
            f"messages: must be a list of 1 to {MESSAGES_MAX} messages", code="invalid_parameter", param="messages"
        )
    text = images = audio = 0
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise refuse(f"messages[{index}].role", f"must be one of {', '.join(ROLES)}")
        content = message.get("content")
        if isinstance(content, str):
            text += len(content.encode())
        elif isinstance(content, list):
            for number, part in enumerate(content):
                sizes = _part_size(f"messages[{index}].content[{number}]", part, settings)
                text, images, audio = text + sizes[0], images + sizes[1], audio + sizes[2]
        elif content is not None:
            raise refuse(f"messages[{index}].content", "must be a string or a list of parts")
        others = {name: value for name, value in message.items() if name not in {"role", "content"}}
        if others:
            text += len(orjson.dumps(others))
    text += sum(len(orjson.dumps(body[name])) for name in PROMPT_PARAMETERS if isinstance(body.get(name), dict | list))
    text += unknown_bytes(body, {**CHECKS, "messages": None}, NOT_OFFERED)
    return PromptSize(text, len(messages), images, audio, tools=bool(body.get("tools")))


def _part_size(where: str, part: Any, settings: Settings) -> tuple[int, int, int]:
    """Text bytes, images and audio bytes of one content part."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in TEXT_PARTS and isinstance(part.get(kind), str):
        return len(part[kind].encode()) + _beside(part, ("type", kind), _OF_PART), 0, 0
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        _media_url(f"{where}.image_url.url", url, settings)
        more = _beside(image, ("url",), _OF_IMAGE) if isinstance(image, dict) else 0
        return more + _beside(part, ("type", kind), _OF_PART), 1, 0
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        audio = part["input_audio"]
        data = audio.get("data")
        # Some servers fetch what is at a URL here: audio of any length, from inside the operator's network.
        if isinstance(data, str) and (":" not in data or data.startswith("data:")):
            more = _beside(audio, ("data",), _OF_AUDIO)
            return more + _beside(part, ("type", kind), _OF_PART), 0, len(data)
    raise refuse(
        where, "must be a part of type text, refusal, image_url or input_audio, with its content, not a link to it"
    )


def _beside(members: Mapping[str, Any], counted: tuple[str, ...], free: Mapping[str, tuple[Any, ...]]) -> int:
    """Bytes of members that are counted nowhere else: a provider may make prompt of them."""
    others = {
        name: value
        for name, value in members.items()
        if name not in counted and not any(value == harmless for harmless in free.get(name, ()))
    }
    return len(orjson.dumps(others)) if others else 0


def _media_url(where: str, url: Any, settings: Settings) -> None:
    """Providers of ours would fetch it from inside the operator's network: data only, unless listed."""
    if not isinstance(url, str):
        raise refuse(where, "must be a string")
    if url.startswith("data:image/"):
        return
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise refuse(where, "must be a URL") from error
    if parts.scheme == "https" and parts.hostname in settings.inference.media_hosts:
        return
    raise refuse(where, "must be a data:image/... URL; remote media are not fetched here")
