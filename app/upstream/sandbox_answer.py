"""What the sandbox writes, in a chat or as a completion: finished choices and what they are billed as.

Pure: the same call gets the same answer. Pacing and failing are `app.upstream.sandbox`'s.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from app.endpoints import COMPLETIONS
from app.upstream.provider import Call
from app.upstream.sandbox_request import Asked, count, prompts_of
from app.upstream.sandbox_script import Script, parse, refused
from app.upstream.sandbox_text import TOKEN_BYTES, byte_count, example_value, message_text, prose, quoted, token_count
from app.upstream.sandbox_tools import ToolCall, opening, tools_called

DEFAULT_TOKENS = 60
DEFAULT_REASONING_TOKENS = 32
REASONING_TOKENS: Mapping[str, int] = {"minimal": 4, "low": 16, "medium": 32, "high": 64, "xhigh": 128}
CHOICES_MAX = 128
_JSON_WRAPPER_TOKENS = 4  # {"answer":""}, begun


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


def answer(call: Call, asked: Asked) -> Answer:
    """The answer to what was asked. Raises `UpstreamError`."""
    body = call.body
    is_completion = call.endpoint == COMPLETIONS.name
    number = count(body, "n", default=1, most=CHOICES_MAX)
    if is_completion:
        spoken = prompts_of(body)
        prompts = [parse(prompt)[1] for prompt in spoken]
    else:
        spoken = [message_text(message) for message in body["messages"]]
        prompts = [asked.text]
    if number * len(prompts) > CHOICES_MAX:
        raise refused(f"'n' for each prompt makes more than {CHOICES_MAX} choices")
    prompt_tokens = max(1, -(-sum(map(byte_count, spoken)) // TOKEN_BYTES))
    return Answer(
        id=f"{'cmpl' if is_completion else 'chatcmpl'}-sandbox-{asked.digest}",
        prompt_tokens=prompt_tokens,
        cached_tokens=min(asked.script.cached, prompt_tokens),
        choices=tuple(
            _choice(call, asked, prompts[index // number], index=index) for index in range(number * len(prompts))
        ),
        reported_tokens=asked.script.lie,
    )


def _choice(call: Call, asked: Asked, prompt: str, *, index: int) -> Choice:
    script, body = asked.script, call.body
    budget = call.output_limit + script.overrun
    hidden = min(script.hidden, budget)
    seed = f"{prompt}\n{body.get('seed')}\n{index}"
    is_chat = call.endpoint != COMPLETIONS.name
    # A completion has no place for reasoning.
    reasoning = _reasoning(body, script, seed) if is_chat else []
    left = budget - hidden - sum(token_count(part.text) for part in reasoning)
    tools = tools_called(body, script, prompt, seed=seed) if is_chat else []
    if tools and not script.overrun:
        natural, spoken = "tool_calls", _tool_parts(tools, f"{asked.digest}-{index}")
    else:
        tokens = max(left, 0) if script.overrun else script.tokens
        start = opening(body, prompt) if is_chat else f"You wrote: {quoted(prompt)}."
        natural, spoken = "stop", [_content(body, start, seed, tokens)]
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


def _content(body: Mapping[str, Any], start: str, seed: str, tokens: int | None) -> Part:
    wanted = DEFAULT_TOKENS if tokens is None else tokens
    layout = body.get("response_format") or {}
    kind = layout.get("type") if isinstance(layout, Mapping) else None
    if kind == "json_schema":
        schema = (layout.get("json_schema") or {}).get("schema") or {}
        return Part("content", json.dumps(example_value(schema, seed=seed)))
    if kind == "json_object":
        inner = prose(start, tokens=max(wanted - _JSON_WRAPPER_TOKENS, 1), seed=seed)
        return Part("content", json.dumps({"answer": inner}, separators=(",", ":")))
    return Part("content", _stopped(prose(start, tokens=wanted, seed=seed), body.get("stop")))


def _stopped(text: str, stop: Any) -> str:
    """The text before the first stop sequence in it."""
    stops = [stop] if isinstance(stop, str) else stop or ()
    ends = [text.find(each) for each in stops if each]
    return text[: min((end for end in ends if end >= 0), default=len(text))]


def _tool_parts(calls: Sequence[ToolCall], digest: str) -> list[Part]:
    return [Part("tool", call.arguments, call.name, f"call_{digest}-{position}") for position, call in enumerate(calls)]
