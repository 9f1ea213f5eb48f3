"""How the sandbox's words become a stream: OpenAI's chunks, each with the time when it is due.

From finished choices (`app.upstream.sandbox_answer`) to events that the provider sends at their times; and
the same choices as one whole answer. Pure.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from typing import Any

import orjson

from app.clock import MS_PER_SECOND
from app.upstream.provider import DONE
from app.upstream.sandbox_answer import ZERO_USAGE, Answer, Choice, Part
from app.upstream.sandbox_script import Script
from app.upstream.sandbox_text import TOKEN_BYTES, token_count

BATCH_EVENTS_MAX = 64
BATCH_S = 0.001
CHAT_KIND = "chat.completion.chunk"
COMPLETION_KIND = "text_completion"


@dataclass(frozen=True, slots=True)
class Event:
    """Bytes that are due so long after the first of them, and how many tokens they carry."""

    due_s: float
    data: bytes
    tokens: int


@dataclass(frozen=True, slots=True)
class _Delta:
    """A step of one choice, due after ``step`` tokens of it; ``finish`` is set on its last."""

    step: float
    choice: int
    delta: dict[str, Any]
    tokens: int = 0
    finish: str | None = None


def events(head: dict[str, Any], reply: Answer, script: Script, *, pace: float) -> Iterator[Event]:
    """The stream's events with their due times, up to where the script makes it fail.

    ``head`` is what all chunks have; its ``object`` says whether they are a chat's or a completion's.
    """
    if script.fail is not None and script.after is None:
        return
    silent_s, sent_tokens, unfinished, due_s = 0.0, 0, len(reply.choices), 0.0
    is_chat = head["object"] != COMPLETION_KIND
    deltas = (_deltas(choice, script.chunk) for choice in reply.choices)
    for delta in merge(*deltas, key=_order):
        if not is_chat and "role" in delta.delta:
            continue
        unfinished -= delta.finish is not None
        if not unfinished or (delta.tokens and sent_tokens >= (script.after or 0)):
            if script.fail is not None:
                return
            silent_s = script.silent_ms / MS_PER_SECOND
        sent_tokens += delta.tokens
        due_s = delta.step / pace + silent_s
        chunk = {**head, "choices": [_chunk_choice(delta) if is_chat else _text_choice(delta)]}
        match script.usage:
            case "chunk":
                chunk["usage"] = None
            case "cumulative":
                chunk["usage"] = reply.usage(sent_tokens)
            case "beside" if not unfinished:
                chunk["usage"] = reply.usage()
        yield Event(due_s, orjson.dumps(chunk), delta.tokens)
    if script.usage in {"chunk", "cumulative", "zero"}:
        usage = ZERO_USAGE if script.usage == "zero" else reply.usage()
        yield Event(due_s, orjson.dumps({**head, "choices": [], "usage": usage}), 0)
    yield Event(due_s, DONE, 0)


def _order(delta: _Delta) -> tuple[float, bool]:
    """By time, and roles before what is said."""
    return delta.step, "role" not in delta.delta


def _deltas(choice: Choice, chunk_bytes: int) -> Iterator[_Delta]:
    tools = [part for part in choice.parts if part.kind == "tool"]
    yield _Delta(0, choice.index, {"role": "assistant", "content": None if tools else "", "refusal": None})
    step = 0
    for part in choice.parts:
        number = tools.index(part) if part.kind == "tool" else 0
        if part.kind == "tool":
            call = {"index": number, **_tool_call(part, arguments="")}
            yield _Delta(step, choice.index, {"tool_calls": [call]})
        for start in range(0, len(part.text), chunk_bytes):
            end = min(start + chunk_bytes, len(part.text))
            tokens = -(-end // TOKEN_BYTES) - -(-start // TOKEN_BYTES)
            delta = _piece(part, part.text[start:end], number)
            yield _Delta(step + start / TOKEN_BYTES, choice.index, delta, tokens)
        step += token_count(part.text)
    yield _Delta(step, choice.index, {}, finish=choice.finish)


def _piece(part: Part, text: str, number: int) -> dict[str, Any]:
    match part.kind:
        case "reasoning":
            return {"reasoning_content": text}
        case "tool":
            return {"tool_calls": [{"index": number, "function": {"arguments": text}}]}
        case _:
            return {"content": text}


def _tool_call(part: Part, *, arguments: str) -> dict[str, Any]:
    return {"id": part.call_id, "type": "function", "function": {"name": part.name, "arguments": arguments}}


def _chunk_choice(delta: _Delta) -> dict[str, Any]:
    return {"index": delta.choice, "delta": delta.delta, "logprobs": None, "finish_reason": delta.finish}


def _text_choice(delta: _Delta) -> dict[str, Any]:
    text = delta.delta.get("content", "")
    return {"index": delta.choice, "text": text, "logprobs": None, "finish_reason": delta.finish}


def completion(choice: Choice) -> dict[str, Any]:
    """One choice of a whole completion."""
    return {"index": choice.index, "text": choice.text("content"), "logprobs": None, "finish_reason": choice.finish}


def message(choice: Choice) -> dict[str, Any]:
    """One choice of a whole chat completion."""
    calls = [_tool_call(part, arguments=part.text) for part in choice.parts if part.kind == "tool"]
    said: dict[str, Any] = {"role": "assistant", "content": choice.text("content"), "refusal": None}
    if calls:
        said |= {"content": None, "tool_calls": calls}
    if reasoning := choice.text("reasoning"):
        said["reasoning_content"] = reasoning
    return {"index": choice.index, "message": said, "logprobs": None, "finish_reason": choice.finish}


def batches(events: Iterable[Event]) -> Iterator[list[Event]]:
    """Events that are due within a millisecond of each other, at most `BATCH_EVENTS_MAX` of them."""
    batch: list[Event] = []
    for event in events:
        if batch and (event.due_s - batch[0].due_s >= BATCH_S or len(batch) == BATCH_EVENTS_MAX):
            yield batch
            batch = []
        batch.append(event)
    if batch:
        yield batch
