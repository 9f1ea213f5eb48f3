"""The built-in provider: Farebox answers with no account anywhere, exactly and at a real pace.

It stands where any upstream does, behind routing, and answers every endpoint in OpenAI's shape (a rerank in
Cohere's): deterministic text, vectors, scores, transcripts, tones and images, usage that anybody can recount (a
token is 4 bytes of text, `app.upstream.sandbox_text`), tools, reasoning, and on request every way in which
providers fail or misreport. What a caller may ask for is the directive ``[[sandbox key=value ...]]``, described
in `app.upstream.sandbox_script`.

A stream's events have absolute due times, so a reader that is slow for a while is not served slower
afterwards, and a pace of many tokens per millisecond costs no timer per token.
"""

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from itertools import islice
from typing import Any, ClassVar

from app.clock import MS_PER_SECOND, Clock, SystemClock
from app.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, ENDPOINTS, IMAGES, RERANK, SPEECH, TRANSCRIPTIONS
from app.settings import ProviderSettings
from app.upstream.provider import Call, Download
from app.upstream.sandbox_answer import ZERO_USAGE, Answer, answer
from app.upstream.sandbox_audio import Speech, speech, transcription
from app.upstream.sandbox_image import images
from app.upstream.sandbox_request import Asked, understood
from app.upstream.sandbox_script import Script, failure, interrupted, refused, timed_out
from app.upstream.sandbox_stream import (
    BATCH_S,
    CHAT_KIND,
    COMPLETION_KIND,
    Event,
    batches,
    completion,
    events,
    message,
)
from app.upstream.sandbox_vectors import embeddings, rerank

ATTEMPTS_PROMPTS_MAX = 1024
STALL_S_MAX = 3600.0
_FINGERPRINT = "fp_sandbox"
_WRITTEN = frozenset({CHAT.name, COMPLETIONS.name})


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
        self.engine_type: str = settings.engine_type or "sandbox"
        self.machine_name: str = settings.machine_name or settings.name
        self.endpoints: frozenset[str] = frozenset(endpoint.name for endpoint in ENDPOINTS)
        self.emitted_tokens = 0
        self.active_streams = 0
        self._tokens_per_second = settings.tokens_per_second
        self._first_token_s = settings.first_token_ms / MS_PER_SECOND
        self._clock: Clock = clock or SystemClock()
        self._sleep = sleep

    async def complete(self, call: Call) -> dict[str, Any]:
        asked = self._understand(call)
        if call.endpoint in _WRITTEN:
            return await self._write(call, asked)
        await self._begin_whole(call, asked.script, took_s=0)
        # Some of it is work for a whole processor: elsewhere, so that streams keep their pace.
        return await asyncio.to_thread(self._make, call, asked)

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[AsyncIterator[list[bytes]]]:
        self.active_streams += 1
        try:
            if call.endpoint not in _WRITTEN:
                raise refused("the sandbox streams text alone")
            asked = self._understand(call)
            reply = answer(call, asked)
            await self._begin_stream(call, asked.script)
            head = self._head(call, reply, CHAT_KIND if call.endpoint == CHAT.name else COMPLETION_KIND)
            timed = events(head, reply, asked.script, pace=self._pace(asked.script))
            async with aclosing(self._emit(timed, asked.script)) as emitted:
                yield emitted
        finally:
            self.active_streams -= 1

    @asynccontextmanager
    async def download(self, call: Call) -> AsyncIterator[Download]:
        self.active_streams += 1
        try:
            if call.endpoint != SPEECH.name:
                raise refused("the sandbox has no bytes for this")
            asked = self._understand(call)
            said = speech(call, asked)
            await self._begin_stream(call, asked.script)
            async with aclosing(self._speak(said, asked.script)) as blocks:
                yield Download(said.content_type, blocks)
        finally:
            self.active_streams -= 1

    async def close(self) -> None:
        pass

    def _understand(self, call: Call) -> Asked:
        """What is asked, its script without the failure where that is not for this attempt.

        Raises a failure that comes before the first byte.
        """
        asked = understood(call)
        script = asked.script
        if script.fail is None or not self._fails(asked):
            return replace(asked, script=replace(script, fail=None))
        if not script.fails_in_stream and script.fail != "stall":
            raise failure(script.fail)
        return asked

    def _fails(self, asked: Asked) -> bool:
        script = asked.script
        if script.at not in (None, self.name) or script.round not in (None, asked.round):
            return False
        return script.times is None or self.attempts.fail_again(asked.digest, script.times)

    async def _write(self, call: Call, asked: Asked) -> dict[str, Any]:
        script, reply = asked.script, answer(call, asked)
        sent_tokens = [choice.sent_tokens for choice in reply.choices]
        took_s = script.silent_ms / MS_PER_SECOND + max(sent_tokens) / self._pace(script)
        await self._begin_whole(call, script, took_s=took_s)
        self.emitted_tokens += sum(sent_tokens)
        is_chat = call.endpoint == CHAT.name
        body = self._head(call, reply, "chat.completion" if is_chat else COMPLETION_KIND)
        body["choices"] = [message(choice) if is_chat else completion(choice) for choice in reply.choices]
        if script.usage != "none":
            body["usage"] = ZERO_USAGE if script.usage == "zero" else reply.usage()
        return body

    def _make(self, call: Call, asked: Asked) -> dict[str, Any]:
        match call.endpoint:
            case EMBEDDINGS.name:
                return embeddings(call, asked)
            case RERANK.name:
                return rerank(call, asked)
            case TRANSCRIPTIONS.name:
                return transcription(call, asked)
            case IMAGES.name:
                return images(call, asked, created_s=self._now_s())
            case _:
                raise refused("the sandbox has no whole answer for this")

    def _pace(self, script: Script) -> float:
        return script.tps or self._tokens_per_second

    def _first_s(self, script: Script) -> float:
        return self._first_token_s if script.first_ms is None else script.first_ms / MS_PER_SECOND

    async def _begin_whole(self, call: Call, script: Script, *, took_s: float) -> None:
        """Wait until all of an answer is made. Raises `UpstreamError` also where it breaks off."""
        await self._begin(call, math.inf if script.fail == "stall" else self._first_s(script) + took_s)
        if script.fail is not None:
            raise interrupted()

    async def _begin_stream(self, call: Call, script: Script) -> None:
        stalls = script.fail == "stall" and not script.fails_in_stream
        await self._begin(call, math.inf if stalls else self._first_s(script))

    async def _begin(self, call: Call, takes_s: float) -> None:
        """Wait for the first byte. Raises `UpstreamError` where that takes longer than the caller waits."""
        if takes_s >= call.first_byte_timeout_s:
            await self._sleep(call.first_byte_timeout_s)
            raise timed_out()
        if takes_s > 0:
            await self._sleep(takes_s)

    async def _emit(self, timed: Iterable[Event], script: Script) -> AsyncGenerator[list[bytes], None]:
        started_s = self._clock.monotonic_s()
        for batch in batches(timed):
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

    async def _speak(self, said: Speech, script: Script) -> AsyncGenerator[bytes, None]:
        async with aclosing(self._emit(_sounds(said, script, self._pace(script)), script)) as emitted:
            async for blocks in emitted:
                yield b"".join(blocks)
        if script.fail is not None:
            raise interrupted()

    def _head(self, call: Call, reply: Answer, kind: str) -> dict[str, Any]:
        return {
            "id": reply.id,
            "object": kind,
            "created": self._now_s(),
            "model": call.upstream_model,
            "system_fingerprint": _FINGERPRINT,
        }

    def _now_s(self) -> int:
        return self._clock.now_ms() // MS_PER_SECOND


def _sounds(said: Speech, script: Script, pace: float) -> Iterator[Event]:
    """Speech with its due times, up to where the script makes it fail: before its last block at the latest."""
    if script.fail is not None and script.after is None:
        return
    last = said.block_count
    if script.fail is not None:
        last = min(script.after or 0, last - 1)
    if last >= 0 and (header := said.header()):
        yield Event(0.0, header, 0)
    for number, block in enumerate(islice(said.blocks(), max(last, 0))):
        silent_s = script.silent_ms / MS_PER_SECOND if number >= (script.after or 0) else 0.0
        yield Event(number / pace + silent_s, block, 1)
