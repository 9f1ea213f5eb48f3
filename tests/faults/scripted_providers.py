"""Providers that do what a script says: fail in every way that providers do, misreport, or answer well.

They stand where an adapter does (`app.upstream.provider.Provider`) and keep a record of every call, so that the
books can be compared with what providers saw. No time is slept: waiting moves a fake clock and yields.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import orjson

from app.endpoints import CHAT, EMBEDDINGS, ENDPOINTS, IMAGES
from app.upstream.provider import DONE, Call, Download, UpstreamError
from tests.clocks import FakeClock

CONTENT_TYPE = "audio/wav"
TOKEN = "oká"  # Four bytes, so that a token counted by the ratio of an unknown model is a token.
BLOCK = b"sound"
# What is reported beyond what was used, by providers that lie.
LIE = 1000
# More events without content than the product waits for: it hands them on.
PRELUDE_LONG = 70
# Before anything is answered: result, status, and whether the work was surely not done.
BEFORE: Mapping[str, tuple[str, int | None, bool]] = {
    "connect": ("connect", None, True),
    "limited": ("rate_limited", 429, True),
    "wait": ("rate_limited", 429, True),
    "refused": ("refused", 401, True),
    "broken": ("server_error", 500, True),
    "timeout": ("timeout", None, False),
    "rejected": ("rejected", 400, False),
}
RETRY_AFTER_S = 90
# After the answer has begun: the result, and whether another may be asked while there is no content.
WITHIN: Mapping[str, tuple[str, bool]] = {
    "cut": ("interrupted", True),
    "error_event": ("error_event", True),
    "nonsense": ("not_json", True),
    "hangup": ("interrupted", False),
}
REPORTS = ("honest", "none", "zero", "lie", "nonsense")


@dataclass(frozen=True, slots=True)
class Act:
    """What one attempt meets. ``after`` tokens or blocks come before a fault within the answer.

    ``heeds``: whether the output limit is kept. ``turns`` of the loop and ``slow_ms`` pass before each piece.
    """

    fault: str = ""
    after: int = 0
    tokens: int = 5
    report: str = "honest"
    heeds: bool = True
    prelude: int = 1
    together: int = 1
    turns: int = 0
    slow_ms: int = 0


@dataclass(slots=True)
class Called:
    """One call that a provider saw. ``tokens`` it would give if nobody left."""

    provider: str
    call: Call
    act: Act
    tokens: int
    held: int
    begun: bool = False
    closed: bool = True

    @property
    def result(self) -> str:
        """What the books must call it, if the client stayed and could pay."""
        act, fault = self.act, self.act.fault
        if fault in BEFORE:
            return BEFORE[fault][0]
        if not fault:
            return "empty" if self.call.endpoint == "audio.speech" and not act.tokens else "ok"
        return WITHIN[fault][0] if self.call.stream else "interrupted"

    @property
    def content(self) -> bool:
        """Whether a client could have got something of it."""
        act = self.act
        if act.fault in BEFORE or not self.in_parts:
            return False
        given = act.after if act.fault else act.tokens
        return given > 0 or (self.call.stream and (act.prelude >= PRELUDE_LONG or not act.fault))

    @property
    def in_parts(self) -> bool:
        return self.call.stream or self.call.endpoint == "audio.speech"

    @property
    def another_may_serve(self) -> bool:
        """Whether the work was surely not done and the client has nothing of it."""
        act = self.act
        if self.content:
            return False
        if act.fault in BEFORE:
            return BEFORE[act.fault][2]
        if not act.fault:
            return self.result == "empty"
        return self.call.stream and WITHIN[act.fault][1]

    @property
    def honest(self) -> bool:
        """Whether no more is reported than was admitted."""
        return self.act.report != "lie" and self.act.heeds


@dataclass
class Stage:
    """What all providers of a run share: the clock, the scripts, and the record of what happened."""

    clock: FakeClock
    held: Callable[[str], int]
    watch: Callable[[], None] = lambda: None
    # By request; an attempt without a script is answered well.
    scripts: dict[str, deque[Act]] = field(default_factory=dict)
    calls: dict[str, list[Called]] = field(default_factory=dict)
    # Some provider has begun to answer.
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait(self, act: Act) -> None:
        """Let time pass, as far as this run is concerned."""
        if act.slow_ms:
            self.clock.advance(act.slow_ms)
            self.watch()
        for _ in range(act.turns):
            await asyncio.sleep(0)

    def called(self, provider: str, call: Call) -> Called:
        """A provider is asked: what it will do."""
        script = self.scripts.get(call.request_id)
        act = script.popleft() if script else Act()
        tokens = act.tokens
        if call.endpoint == CHAT.name and act.heeds:
            limit = call.output_limit * call.body.get("n", 1)
            tokens, act = min(tokens, limit), replace(act, after=min(act.after, limit))
        called = Called(provider, call, act, tokens, self.held(call.request_id))
        self.calls.setdefault(call.request_id, []).append(called)
        return called


class ScriptedProvider:
    """One provider of a run."""

    def __init__(self, name: str, kind: str, stage: Stage) -> None:
        self.name = name
        self.kind = kind
        self.engine_type = "scripted"
        self.machine_name = name
        self.endpoints = frozenset(endpoint.name for endpoint in ENDPOINTS)
        self._stage = stage

    async def complete(self, call: Call) -> dict[str, Any]:
        called = await self._begin(call)
        if called.act.fault:
            raise _hung_up()
        match call.endpoint:
            case IMAGES.name:
                return _images(called)
            case EMBEDDINGS.name:
                vector = {"object": "embedding", "index": 0, "embedding": [0.5, 0.25]}
                return {"object": "list", "data": [vector], **_reported(called, output=0)}
            case _:
                return _completion(called)

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[AsyncIterator[list[bytes]]]:
        called = await self._begin(call)
        called.closed = False
        try:
            async with aclosing(self._events(called)) as events:
                yield events
        finally:
            called.closed = True

    @asynccontextmanager
    async def download(self, call: Call) -> AsyncIterator[Download]:
        called = await self._begin(call)
        called.closed = False
        try:
            async with aclosing(self._blocks(called)) as blocks:
                yield Download(CONTENT_TYPE, blocks)
        finally:
            called.closed = True

    async def close(self) -> None:
        pass

    async def _begin(self, call: Call) -> Called:
        called = self._stage.called(self.name, call)
        act = called.act
        await self._stage.wait(act)
        if act.fault in BEFORE:
            result, status, fails_over = BEFORE[act.fault]
            raise UpstreamError(
                result,
                f"{self.name} failed",
                status=status,
                fail_over=fails_over,
                callers_fault=act.fault == "rejected",
                retry_after_s=RETRY_AFTER_S if act.fault == "wait" else None,
            )
        called.begun = True
        self._stage.begun.set()
        return called

    async def _events(self, called: Called) -> AsyncGenerator[list[bytes], None]:
        act, waiting = called.act, []
        pieces = [_chunk(called, {"role": "assistant", "content": ""})] * act.prelude
        choices = called.call.body.get("n", 1)
        given = act.after if act.fault else called.tokens
        pieces += [_chunk(called, {"content": TOKEN}, index=number % choices) for number in range(given)]
        for piece in pieces:
            waiting.append(piece)
            if len(waiting) >= act.together:
                await self._stage.wait(act)
                yield waiting
                waiting = []
        if act.fault in {"", "error_event", "nonsense"}:
            yield [*waiting, *_last(called)]
        elif waiting:
            yield waiting
        if act.fault == "hangup":
            raise _hung_up()

    async def _blocks(self, called: Called) -> AsyncGenerator[bytes, None]:
        act = called.act
        for _ in range(act.after if act.fault else act.tokens):
            await self._stage.wait(act)
            yield BLOCK
        if act.fault:
            raise _hung_up()


def _hung_up() -> UpstreamError:
    return UpstreamError("interrupted", "the provider's answer was cut off", fail_over=False)


def prompt_tokens(body: Mapping[str, Any]) -> int:
    """What an honest provider counts of a prompt."""
    text: str = body["messages"][0]["content"] if "messages" in body else body["input"]
    return -(-len(text.encode()) // 4)


def report(called: Called, *, output: int) -> dict[str, Any] | None:
    """The usage that a provider reports of a prompt and so many tokens."""
    prompt = prompt_tokens(called.call.body)
    match called.act.report:
        case "none":
            return None
        case "zero":
            prompt = output = 0
        case "lie":
            prompt, output = prompt + LIE, output + LIE
        case "nonsense":
            return {"prompt_tokens": -prompt, "completion_tokens": "many"}
    return {"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output}


def _reported(called: Called, *, output: int) -> dict[str, Any]:
    found = report(called, output=output)
    return {} if found is None else {"usage": found}


def _chunk(called: Called, delta: Mapping[str, Any], *, index: int = 0, finish: str | None = None) -> bytes:
    choices = [{"index": index, "delta": delta, "finish_reason": finish}]
    return orjson.dumps({**_head(called, "chat.completion.chunk"), "choices": choices})


def _head(called: Called, kind: str) -> dict[str, Any]:
    return {"id": "answer", "object": kind, "created": 1, "model": called.call.upstream_model}


def _last(called: Called) -> list[bytes]:
    if called.act.fault == "error_event":
        return [orjson.dumps({"error": {"message": "out of memory"}})]
    if called.act.fault == "nonsense":
        return [b"{nonsense"]
    finish = _chunk(called, {}, finish="stop")
    usage = _reported(called, output=called.tokens)
    if not usage:
        return [finish, DONE]
    return [finish, orjson.dumps({**_head(called, "chat.completion.chunk"), "choices": [], **usage}), DONE]


def _completion(called: Called) -> dict[str, Any]:
    choices = called.call.body.get("n", 1)
    texts = [TOKEN * (called.tokens // choices + (number < called.tokens % choices)) for number in range(choices)]
    messages = [
        {"index": number, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
        for number, text in enumerate(texts)
    ]
    return {**_head(called, "chat.completion"), "choices": messages, **_reported(called, output=called.tokens)}


def images_made(called: Called) -> int | None:
    """How many images an answer has; None if it does not say."""
    asked: int = called.call.body["n"]
    return {"none": None, "nonsense": None, "zero": 0, "lie": asked + LIE}.get(called.act.report, asked)


def _images(called: Called) -> dict[str, Any]:
    made = images_made(called)
    if made is None:
        return {"created": 1, **({"data": "many"} if called.act.report == "nonsense" else {})}
    return {"created": 1, "data": [{"b64_json": "AAAA"}] * made}
