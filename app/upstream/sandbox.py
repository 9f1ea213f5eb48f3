"""The built-in provider: Farebox answers with no account anywhere, exactly and at a real pace.

It stands where any upstream does, behind routing, and gives what OpenAI gives: deterministic text,
usage that anybody can recount (a token is 4 bytes of text, `app.upstream.sandbox_text`), tools,
reasoning, and on request every way in which providers fail or misreport. What a caller may ask for is
the directive ``[[sandbox key=value ...]]``, described in `app.upstream.sandbox_script`.

A stream's events have absolute due times, so a reader that is slow for a while is not served slower
afterwards, and a pace of many tokens per millisecond costs no timer per token.
"""

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from heapq import merge
from typing import Any, ClassVar

import orjson

from app.clock import MS_PER_SECOND, Clock, SystemClock
from app.settings import ProviderSettings
from app.upstream.provider import DONE, Call
from app.upstream.sandbox_answer import ZERO_USAGE, Answer, Choice, Part, answer, last_user_text, prompt_digest
from app.upstream.sandbox_script import Script, failure, interrupted, parse, timed_out
from app.upstream.sandbox_text import TOKEN_BYTES, token_count

ATTEMPTS_PROMPTS_MAX = 1024
BATCH_EVENTS_MAX = 64
BATCH_S = 0.001
STALL_S_MAX = 3600.0
_FINGERPRINT = "fp_sandbox"


class Attempts:
    """How often a prompt was made to fail; the prompts longest unseen are forgotten first."""

    def __init__(self) -> None:
        self._failed: OrderedDict[str, int] = OrderedDict()

    def fail_again(self, prompt: str, times: int) -> bool:
        """Count one more failure of a prompt, unless it has failed ``times`` times."""
        failed = self._failed.get(prompt, 0)
        self._failed[prompt] = min(failed + 1, times)
        self._failed.move_to_end(prompt)
        if len(self._failed) > ATTEMPTS_PROMPTS_MAX:
            self._failed.popitem(last=False)
        return failed < times

    def clear(self) -> None:
        """Forget all of them."""
        self._failed.clear()


@dataclass(frozen=True, slots=True)
class _Delta:
    """A step of one choice, due after ``step`` tokens of it; ``finish`` is set on its last."""

    step: float
    choice: int
    delta: dict[str, Any]
    tokens: int = 0
    finish: str | None = None


@dataclass(frozen=True, slots=True)
class _Event:
    due_s: float
    data: bytes
    tokens: int


class SandboxProvider:
    """`Provider` without a provider. ``emitted_tokens`` and ``active_streams`` are for tests to watch."""

    # Shared by all sandboxes of the process: a prompt that failed at one is answered by the next.
    attempts: ClassVar[Attempts] = Attempts()

    def __init__(
        self,
        settings: ProviderSettings,
        *,
        clock: Clock | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.name: str = settings.name
        self.kind: str = settings.kind
        self.emitted_tokens = 0
        self.active_streams = 0
        self._tokens_per_second = settings.tokens_per_second
        self._first_token_s = settings.first_token_ms / MS_PER_SECOND
        self._clock: Clock = clock or SystemClock()
        self._sleep = sleep

    async def complete(self, call: Call) -> dict[str, Any]:
        script, reply = self._understand(call)
        pace = script.tps or self._tokens_per_second
        took_s = script.silent_ms / MS_PER_SECOND + max(choice.sent_tokens for choice in reply.choices) / pace
        await self._begin(call, math.inf if script.fail == "stall" else self._first_s(script) + took_s)
        if script.fail is not None:
            raise interrupted()
        self.emitted_tokens += sum(choice.sent_tokens for choice in reply.choices)
        body = self._head(call, reply, "chat.completion")
        body["choices"] = [_message(choice) for choice in reply.choices]
        if script.usage != "none":
            body["usage"] = ZERO_USAGE if script.usage == "zero" else reply.usage()
        return body

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[AsyncIterator[list[bytes]]]:
        self.active_streams += 1
        try:
            script, reply = self._understand(call)
            stalls = script.fail == "stall" and not script.fails_in_stream
            await self._begin(call, math.inf if stalls else self._first_s(script))
            async with aclosing(self._emit(call, script, reply)) as events:
                yield events
        finally:
            self.active_streams -= 1

    async def close(self) -> None:
        pass

    def _understand(self, call: Call) -> tuple[Script, Answer]:
        """The script, without its failure where that is not for this attempt, and the answer.

        Raises a failure that comes before the first byte.
        """
        script, prompt = parse(last_user_text(call.body))
        reply = answer(call, script, prompt)
        if script.fail is None or not self._fails(script, call):
            return replace(script, fail=None), reply
        if not script.fails_in_stream and script.fail != "stall":
            raise failure(script.fail)
        return script, reply

    def _fails(self, script: Script, call: Call) -> bool:
        if script.at is not None and script.at != self.name:
            return False
        return script.times is None or self.attempts.fail_again(
            prompt_digest(call.body, call.upstream_model), script.times
        )

    def _first_s(self, script: Script) -> float:
        return self._first_token_s if script.first_ms is None else script.first_ms / MS_PER_SECOND

    async def _begin(self, call: Call, takes_s: float) -> None:
        """Wait for the first byte. Raises `UpstreamError` where that takes longer than the caller waits."""
        if takes_s >= call.first_byte_timeout_s:
            await self._sleep(call.first_byte_timeout_s)
            raise timed_out()
        if takes_s > 0:
            await self._sleep(takes_s)

    async def _emit(self, call: Call, script: Script, reply: Answer) -> AsyncGenerator[list[bytes], None]:
        started_s = self._clock.monotonic_s()
        pace = script.tps or self._tokens_per_second
        head = self._head(call, reply, "chat.completion.chunk")
        for batch in _batches(_events(head, reply, script, pace)):
            # Also where nothing is due later: a reader that never waits must not starve its neighbours.
            wait_s = started_s + batch[0].due_s - self._clock.monotonic_s()
            await self._sleep(wait_s if wait_s >= BATCH_S / 2 else 0)
            self.emitted_tokens += sum(event.tokens for event in batch)
            yield [event.data for event in batch]
        if script.fail is None or script.fail == "cut":
            return
        if script.fail == "stall":
            await self._sleep(STALL_S_MAX)
        raise interrupted()

    def _head(self, call: Call, reply: Answer, kind: str) -> dict[str, Any]:
        return {
            "id": reply.id,
            "object": kind,
            "created": self._clock.now_ms() // MS_PER_SECOND,
            "model": call.upstream_model,
            "system_fingerprint": _FINGERPRINT,
        }


def _events(head: dict[str, Any], reply: Answer, script: Script, pace: float) -> Iterator[_Event]:
    """The stream's events with their due times, up to where the script makes it fail."""
    if script.fail is not None and script.after is None:
        return
    silent_s, sent_tokens, unfinished, due_s = 0.0, 0, len(reply.choices), 0.0
    for delta in merge(*(_deltas(choice, script.chunk) for choice in reply.choices), key=_order):
        unfinished -= delta.finish is not None
        if not unfinished or (delta.tokens and sent_tokens >= (script.after or 0)):
            if script.fail is not None:
                return
            silent_s = script.silent_ms / MS_PER_SECOND
        sent_tokens += delta.tokens
        due_s = delta.step / pace + silent_s
        chunk = {**head, "choices": [_chunk_choice(delta)]}
        match script.usage:
            case "chunk":
                chunk["usage"] = None
            case "cumulative":
                chunk["usage"] = reply.usage(sent_tokens)
            case "beside" if not unfinished:
                chunk["usage"] = reply.usage()
        yield _Event(due_s, orjson.dumps(chunk), delta.tokens)
    if script.usage in {"chunk", "cumulative", "zero"}:
        usage = ZERO_USAGE if script.usage == "zero" else reply.usage()
        yield _Event(due_s, orjson.dumps({**head, "choices": [], "usage": usage}), 0)
    yield _Event(due_s, DONE, 0)


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


def _message(choice: Choice) -> dict[str, Any]:
    calls = [_tool_call(part, arguments=part.text) for part in choice.parts if part.kind == "tool"]
    message: dict[str, Any] = {"role": "assistant", "content": choice.text("content"), "refusal": None}
    if calls:
        message |= {"content": None, "tool_calls": calls}
    if reasoning := choice.text("reasoning"):
        message["reasoning_content"] = reasoning
    return {"index": choice.index, "message": message, "logprobs": None, "finish_reason": choice.finish}


def _batches(events: Iterable[_Event]) -> Iterator[list[_Event]]:
    """Events that are due within a millisecond of each other, at most `BATCH_EVENTS_MAX` of them."""
    batch: list[_Event] = []
    for event in events:
        if batch and (event.due_s - batch[0].due_s >= BATCH_S or len(batch) == BATCH_EVENTS_MAX):
            yield batch
            batch = []
        batch.append(event)
    if batch:
        yield batch
