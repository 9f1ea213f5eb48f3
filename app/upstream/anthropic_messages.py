"""A chat's conversation in the words of the Messages API: what `app.upstream.anthropic_request` sends of it. Pure.

- System and developer messages, wherever they stand, become ``system``, in their order.
- Messages of one role in a row become one. The results of tools are blocks of a user's message, those of
  parallel calls of the same one.
- Text without a visible character, which the API refuses, is left out, and with it a message that has
  nothing else. So is white space at the end of an assistant's message that is to be continued.
- An assistant's reasoning is left out: without its signature, which a chat completion does not carry, the
  API takes none.
- ``cache_control`` passes through from a part, a tool's result or a message. A lifetime of an hour, which
  costs more than the price of a cache write says, is refused.
- Names of participants are left out. Audio and files, calls of custom tools and the old ``function_call``
  cannot be said: they are refused.
"""

import re
from collections.abc import Iterable, Mapping
from hashlib import sha256
from typing import Any

import orjson

from app.upstream.provider import UpstreamError

Block = dict[str, Any]
# Members are looked for in tuples, not sets: what a client sends may not be hashable.

IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
CACHE_LIFETIME = "5m"
_JPEG = "image/jpg"
_CALL_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_DATA_URL = re.compile(r"data:([a-z0-9.+/-]{1,64})((?:;[a-z0-9=._-]{1,64}){0,4});base64,", re.IGNORECASE)


def malformed(where: str, message: str) -> UpstreamError:
    """The caller's mistake: no provider would take it."""
    return UpstreamError("rejected", f"{where}: {message}", status=400, fail_over=False, callers_fault=True)


def unsupported(where: str, message: str) -> UpstreamError:
    """What the Messages API cannot do: another provider may."""
    return UpstreamError("rejected", f"{where}: {message}", status=400, callers_fault=True)


def conversation(messages: Iterable[Mapping[str, Any]]) -> tuple[list[Block], list[Block]]:
    """The blocks of ``system``, and the messages. Raises `UpstreamError`, the caller's fault."""
    system: list[Block] = []
    turns: list[Block] = []
    for index, message in enumerate(messages):
        where, role = f"messages[{index}]", message.get("role")
        if role in ("system", "developer"):
            system += _marked(where, message, _texts(where, message.get("content")))
            continue
        if role == "user":
            speaker, blocks = "user", _marked(where, message, _parts(where, message.get("content")))
        elif role == "tool":
            speaker, blocks = "user", _marked(where, message, [_result(where, message)])
        elif role == "assistant":
            speaker, blocks = "assistant", _marked(where, message, _said(where, message))
        else:
            raise unsupported(f"{where}.role", "the model of this provider takes no such message; use tools")
        if blocks and turns and turns[-1]["role"] == speaker:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": speaker, "content": blocks})
    _trim_end(turns)
    if not turns:
        raise malformed("messages", "there is no text to answer")
    return system, turns


def cache_mark(where: str, holder: Mapping[str, Any]) -> Block:
    """The ``cache_control`` of a part, message or tool as a member to add; empty if it has none."""
    mark = holder.get("cache_control")
    if mark is None:
        return {}
    if not isinstance(mark, Mapping) or mark.get("type") != "ephemeral":
        raise malformed(f"{where}.cache_control", "must be an object with type ephemeral")
    if mark.get("ttl") not in (None, CACHE_LIFETIME):
        raise malformed(f"{where}.cache_control.ttl", f"only {CACHE_LIFETIME} is offered here")
    return {"cache_control": {"type": "ephemeral"}}


def _marked(where: str, message: Mapping[str, Any], blocks: list[Block]) -> list[Block]:
    if blocks and message.get("cache_control") is not None:
        blocks[-1] |= cache_mark(where, message)
    return blocks


def _texts(where: str, content: Any) -> list[Block]:
    """Blocks of text alone: what a system message may hold."""
    blocks = _parts(where, content)
    if any(block["type"] != "text" for block in blocks):
        raise unsupported(where, "only a user's message or a tool's result can hold an image")
    return blocks


def _parts(where: str, content: Any) -> list[Block]:
    if content is None:
        return []
    if isinstance(content, str):
        return _text(content)
    if not isinstance(content, list):
        raise malformed(f"{where}.content", "must be a string or a list of parts")
    blocks: list[Block] = []
    for number, part in enumerate(content):
        blocks += _part(f"{where}.content[{number}]", part)
    return blocks


def _part(where: str, part: Any) -> list[Block]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in ("text", "refusal") and isinstance(part.get(kind), str):
        blocks = _text(part[kind])
    elif kind == "image_url":
        image = part.get("image_url")
        blocks = [_image(f"{where}.image_url", image.get("url") if isinstance(image, dict) else image)]
    else:
        raise unsupported(where, "this provider takes parts of type text and image_url")
    if blocks:
        blocks[-1] |= cache_mark(where, part)
    return blocks


def _text(text: str) -> list[Block]:
    return [{"type": "text", "text": text}] if text and not text.isspace() else []


def _image(where: str, url: Any) -> Block:
    if not isinstance(url, str):
        raise malformed(where, "must have a url")
    if url.startswith("https://"):
        return {"type": "image", "source": {"type": "url", "url": url}}
    head = _DATA_URL.match(url)
    if head is None:
        raise malformed(where, "must be a data URL in base64")
    media_type = head[1].lower().replace(_JPEG, IMAGE_TYPES[0])
    if media_type not in IMAGE_TYPES:
        raise unsupported(where, f"must be one of {', '.join(IMAGE_TYPES)}")
    return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": url[head.end() :]}}


def _result(where: str, message: Mapping[str, Any]) -> Block:
    blocks = _parts(where, message.get("content"))
    result: Block = {"type": "tool_result", "tool_use_id": _call_id(f"{where}.tool_call_id", message, "tool_call_id")}
    marks = [block.pop("cache_control") for block in blocks if "cache_control" in block]
    if blocks:
        result["content"] = blocks
    if marks:
        # A mark stands on the whole result: the parts in it are one step of the conversation.
        result["cache_control"] = marks[-1]
    return result


def _said(where: str, message: Mapping[str, Any]) -> list[Block]:
    """What an assistant said and called."""
    if message.get("function_call") is not None:
        raise unsupported(f"{where}.function_call", "this provider takes tool_calls instead")
    content = message.get("content")
    blocks = _texts(where, content if content is not None else message.get("refusal"))
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise malformed(f"{where}.tool_calls", "must be a list")
    return blocks + [_call(f"{where}.tool_calls[{number}]", call) for number, call in enumerate(calls)]


def _call(where: str, call: Any) -> Block:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise unsupported(where, "must be a call of a function, with its name")
    text = function.get("arguments")
    if text is not None and not isinstance(text, str):
        raise malformed(f"{where}.function.arguments", "must be a string with a JSON object")
    try:
        arguments = orjson.loads(text) if text and not text.isspace() else {}
    except orjson.JSONDecodeError as error:
        raise malformed(f"{where}.function.arguments", "must be valid JSON") from error
    if not isinstance(arguments, dict):
        raise malformed(f"{where}.function.arguments", "must be a JSON object")
    return {
        "type": "tool_use",
        "id": _call_id(f"{where}.id", call, "id"),
        "name": function["name"],
        "input": arguments,
        **cache_mark(where, call),
    }


def _call_id(where: str, holder: Mapping[str, Any], name: str) -> str:
    """The id of a call, the same for the call and its result: one that the API would refuse is digested."""
    text = holder.get(name)
    if not isinstance(text, str) or not text:
        raise malformed(where, "must be a string")
    return text if _CALL_ID.fullmatch(text) else f"call_{sha256(text.encode()).hexdigest()[:32]}"


def _trim_end(turns: list[Block]) -> None:
    if not turns or turns[-1]["role"] != "assistant":
        return
    last = turns[-1]["content"][-1]
    if last["type"] == "text":
        last["text"] = last["text"].rstrip()
