"""What the sandbox answers: from a call and its script to finished choices and what they are billed as.

Pure: the same call gets the same answer. Pacing and failing are `app.upstream.sandbox`'s.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Literal

from app.upstream.provider import Call
from app.upstream.sandbox_script import Script, refused
from app.upstream.sandbox_text import (
    TOKEN_BYTES,
    byte_count,
    example_value,
    message_text,
    prose,
    quoted,
    token_count,
)

DEFAULT_TOKENS = 60
DEFAULT_REASONING_TOKENS = 32
REASONING_TOKENS: Mapping[str, int] = {"minimal": 4, "low": 16, "medium": 32, "high": 64, "xhigh": 128}
CHOICES_MAX = 128
_JSON_WRAPPER_TOKENS = 4  # {"answer":""}, begun
_DIGEST_BYTES = 12


@dataclass(frozen=True, slots=True)
class Part:
    """One stretch of output: reasoning, content, or the arguments of one tool call. ASCII."""

    kind: Literal["reasoning", "content", "tool"]
    text: str
    name: str = ""
    call_id: str = ""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of the ``n`` answers, cut at the output limit."""

    index: int
    parts: tuple[Part, ...]
    finish: str
    hidden_tokens: int

    @property
    def sent_tokens(self) -> int:
        """Tokens that are streamed."""
        return sum(token_count(part.text) for part in self.parts)

    @property
    def reasoning_tokens(self) -> int:
        """Reasoning, streamed and hidden."""
        return self.hidden_tokens + sum(token_count(part.text) for part in self.parts if part.kind == "reasoning")

    def text(self, kind: str) -> str:
        """The text of one kind of part."""
        return "".join(part.text for part in self.parts if part.kind == kind)


@dataclass(frozen=True, slots=True)
class Answer:
    """All of it. The id is the same for the same request, as it is at some providers."""

    id: str
    prompt_tokens: int
    cached_tokens: int
    choices: tuple[Choice, ...]
    reported_tokens: int | None

    def usage(self, sent_tokens: int | None = None) -> dict[str, Any]:
        """The bill: of everything, or of the ``sent_tokens`` streamed so far."""
        if sent_tokens is not None:
            return _usage(self.prompt_tokens, sent_tokens, cached=self.cached_tokens)
        billed = sum(choice.sent_tokens + choice.hidden_tokens for choice in self.choices)
        return _usage(
            self.prompt_tokens,
            billed if self.reported_tokens is None else self.reported_tokens,
            cached=self.cached_tokens,
            reasoning=sum(choice.reasoning_tokens for choice in self.choices),
        )


def _usage(prompt: int, completion: int, *, cached: int = 0, reasoning: int = 0) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
    }


ZERO_USAGE: Mapping[str, Any] = _usage(0, 0)


def last_user_text(body: Mapping[str, Any]) -> str:
    """The text of the last user message, where the script is."""
    users = (message for message in reversed(body["messages"]) if message.get("role") == "user")
    return message_text(next(users, {}))


def answer(call: Call, script: Script, prompt: str) -> Answer:
    """The answer to ``prompt``, the last user text without its script. Raises `UpstreamError`."""
    body = call.body
    count = body.get("n") or 1
    if not isinstance(count, int) or not 1 <= count <= CHOICES_MAX:
        raise refused(f"'n' must be between 1 and {CHOICES_MAX}")
    spoken = [message_text(message) for message in body["messages"]]
    prompt_tokens = max(1, -(-sum(map(byte_count, spoken)) // TOKEN_BYTES))
    digest = prompt_digest(body, call.upstream_model)
    return Answer(
        id=f"chatcmpl-sandbox-{digest}",
        prompt_tokens=prompt_tokens,
        cached_tokens=min(script.cached, prompt_tokens),
        choices=tuple(_choice(call, script, prompt, digest, index=index) for index in range(count)),
        reported_tokens=script.lie,
    )


def prompt_digest(body: Mapping[str, Any], model: str) -> str:
    """What "the same prompt" means: model, messages and seed."""
    identity = json.dumps([model, body["messages"], body.get("seed")], default=str)
    return blake2b(identity.encode(), digest_size=_DIGEST_BYTES).hexdigest()


def _choice(call: Call, script: Script, prompt: str, digest: str, *, index: int) -> Choice:
    budget = call.output_limit + script.overrun
    hidden = min(script.hidden, budget)
    seed = f"{prompt}\n{call.body.get('seed')}\n{index}"
    reasoning = _reasoning(call.body, script, seed)
    left = budget - hidden - sum(token_count(part.text) for part in reasoning)
    tools = _tools_called(call.body, prompt)
    if tools and not script.overrun:
        natural, spoken = "tool_calls", _tool_parts(tools, seed, f"{digest}-{index}")
    else:
        tokens = max(left, 0) if script.overrun else script.tokens
        natural, spoken = "stop", [_content(call.body, prompt, seed, tokens)]
    parts, was_cut = _fitted([*reasoning, *spoken], budget - hidden)
    finish = script.finish or ("length" if was_cut or script.overrun else natural)
    return Choice(index, parts, finish, hidden)


def _fitted(parts: Sequence[Part], budget_tokens: int) -> tuple[tuple[Part, ...], bool]:
    """The parts that fit, and whether anything was lost."""
    fitted: list[Part] = []
    for part in parts:
        text = part.text[: budget_tokens * TOKEN_BYTES]
        budget_tokens -= token_count(text)
        if text or not part.text:
            fitted.append(Part(part.kind, text, part.name, part.call_id))
        if text != part.text:
            return tuple(fitted), True
    return tuple(fitted), False


def _reasoning(body: Mapping[str, Any], script: Script, seed: str) -> list[Part]:
    effort = body.get("reasoning_effort") or "none"
    tokens = script.reasoning
    if tokens is None:
        tokens = 0 if effort == "none" else REASONING_TOKENS.get(str(effort), DEFAULT_REASONING_TOKENS)
    return [Part("reasoning", prose("Let me think:", tokens=tokens, seed=f"{seed}\nreasoning"))] if tokens else []


def _content(body: Mapping[str, Any], prompt: str, seed: str, tokens: int | None) -> Part:
    wanted = DEFAULT_TOKENS if tokens is None else tokens
    results = _tool_results(body)
    opening = f"The tool answered: {quoted(results)}." if results is not None else f"You said: {quoted(prompt)}."
    layout = body.get("response_format") or {}
    kind = layout.get("type") if isinstance(layout, Mapping) else None
    if kind == "json_schema":
        schema = (layout.get("json_schema") or {}).get("schema") or {}
        return Part("content", json.dumps(example_value(schema, seed=seed)))
    if kind == "json_object":
        inner = prose(opening, tokens=max(wanted - _JSON_WRAPPER_TOKENS, 1), seed=seed)
        return Part("content", json.dumps({"answer": inner}, separators=(",", ":")))
    return Part("content", _stopped(prose(opening, tokens=wanted, seed=seed), body.get("stop")))


def _stopped(text: str, stop: Any) -> str:
    """The text before the first stop sequence in it."""
    stops = [stop] if isinstance(stop, str) else stop or ()
    ends = [text.find(word) for word in stops if word]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def _tool_results(body: Mapping[str, Any]) -> str | None:
    """What tools answered after the last user message; none did: nothing."""
    results: list[str] = []
    for message in reversed(body["messages"]):
        if message.get("role") == "user":
            break
        if message.get("role") == "tool":
            results.append(message_text(message))
    return "; ".join(reversed(results)) if results else None


def _tools_called(body: Mapping[str, Any], prompt: str) -> list[Mapping[str, Any]]:
    tools = [tool["function"] for tool in body.get("tools") or () if tool.get("type") == "function"]
    choice = body.get("tool_choice") or "auto"
    if not tools or choice == "none" or _tool_results(body) is not None:
        return []
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        wanted = (choice.get("function") or {}).get("name")
        return [tool for tool in tools if tool.get("name") == wanted][:1]
    called = [tool for tool in tools if re.search(rf"(?<!\w){re.escape(str(tool.get('name')))}(?!\w)", prompt)]
    if not called and (choice == "required" or "use the tool" in prompt.casefold()):
        called = tools[:1]
    return called[:1] if body.get("parallel_tool_calls") is False else called


def _tool_parts(tools: Sequence[Mapping[str, Any]], seed: str, digest: str) -> list[Part]:
    parts = []
    for position, tool in enumerate(tools):
        schema = {"type": "object", "properties": {}, **(tool.get("parameters") or {})}
        arguments = json.dumps(example_value(schema, seed=f"{seed}\n{position}"), separators=(",", ":"))
        parts.append(Part("tool", arguments, str(tool.get("name")), f"call_{digest}-{position}"))
    return parts
