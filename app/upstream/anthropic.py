"""The adapter for the Messages API: Anthropic, and whoever else speaks its dialect.

A chat completion goes out as `app.upstream.anthropic_request` says and comes back as
`app.upstream.anthropic_answer` says. Models differ in what they take (adaptive thinking or a budget, an effort,
a temperature): a form that a model refuses is left out and the request sent again, and once that has worked the
model is never asked in that form again. A refusal that does not go away teaches nothing.

Thinking is asked for in summary, so more of it is billed than is shown: models that think are configured with
``hidden_reasoning``.

Errors: https://platform.claude.com/docs/en/api/errors. No caller chooses path or model here, so 404 is the
operator's matter, as is a limit of spending, which is told with 400.
"""

import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp
import orjson

from app import log
from app.clock import MS_PER_SECOND, Clock, SystemClock
from app.endpoints import CHAT
from app.settings import InferenceSettings, ProviderSettings
from app.upstream.anthropic_answer import Translation, completion
from app.upstream.anthropic_request import FORMS, refused_form, request_content
from app.upstream.http import ERROR_BODY_BYTES_MAX, Body, HttpUpstream, bounded, not_what_was_asked
from app.upstream.provider import UNUSABLE, Call, Download, UpstreamError
from app.upstream.refusal import Refusal

VERSION = "2023-06-01"
OVERLOADED = 529
EVENT_STREAM = "text/event-stream"
# The operator's own limits, in the words of a 400. From the first word on: what a caller sent stands further behind.
_LIMIT_WORDS = re.compile(r"(?i)you have reached your (?:specified )?(?:\w+ ){0,3}(?:usage|spend\w*) limit")

_log = log.get("upstream")


class AnthropicProvider(HttpUpstream):
    """One upstream that speaks the Messages API."""

    endpoints = frozenset({CHAT.name})

    def __init__(self, settings: ProviderSettings, inference: InferenceSettings, *, clock: Clock | None = None) -> None:
        super().__init__(settings, inference, engine="anthropic")
        self._clock: Clock = clock or SystemClock()
        self._url = self.url("/v1/messages")
        # Learned per model: the forms that it refuses.
        self._refused: dict[str, frozenset[str]] = {}

    async def complete(self, call: Call) -> dict[str, Any]:
        async with self._answer(call) as response:
            body = await self.whole(response)
        if not isinstance(body, dict) or "content" not in body:
            raise _not_a_message(body)
        return completion(body, request_id=call.request_id, model=call.upstream_model, created=self._now_s())

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[AsyncIterator[list[bytes]]]:
        async with self._answer(call) as response:
            if EVENT_STREAM not in response.headers.get("Content-Type", EVENT_STREAM):
                raise _not_a_message(await _shown(response))
            yield self._chunks(call, response)

    def download(self, call: Call) -> AbstractAsyncContextManager[Download]:
        raise UpstreamError("rejected", "the provider has no such endpoint", status=404, callers_fault=True)

    async def _chunks(self, call: Call, response: aiohttp.ClientResponse) -> AsyncIterator[list[bytes]]:
        translation = Translation(request_id=call.request_id, model=call.upstream_model, created=self._now_s())
        async for events in self.events(response):
            chunks: list[bytes] = []
            failure: UpstreamError | None = None
            try:
                translation.read(events, chunks)
            except UpstreamError as error:
                failure = error
            if chunks:
                yield chunks
            if failure is not None:
                # What came before it is the client's, and was paid for.
                raise failure

    @asynccontextmanager
    async def _answer(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send the call, in other forms where the model refuses one; gives a successful response."""
        refused = self._refused.get(call.upstream_model, frozenset())
        for _ in range(len(FORMS) + 1):
            sent, content = request_content(call, refused)
            async with self.post(call, self._url, body=Body(content), headers=self._headers()) as response:
                if response.status == 200:
                    self._learn(call.upstream_model, refused)
                    yield response
                    return
                refusal = await self.refusal(call, response)
            form = refused_form(sent, refusal.text) if refusal.of_parameter else None
            if form is None or form in refused:
                raise self._failure(refusal)
            refused |= {form}
        raise UpstreamError("rejected", "the provider refuses every form of this request", callers_fault=True)

    def _learn(self, model: str, refused: frozenset[str]) -> None:
        known = self._refused.get(model, frozenset())
        if not refused <= known:
            self._refused[model] = known | refused
            _log.warning("provider_quirk_learned", provider=self.name, parameter=",".join(sorted(refused - known)))

    def _failure(self, refusal: Refusal) -> UpstreamError:
        """The error to raise: what every provider means by a status, but for what this one means by it."""
        error, status = refusal.error, refusal.status
        if error.result == "rejected" and (status == 404 or _LIMIT_WORDS.match(refusal.text)):
            return UpstreamError("refused", UNUSABLE, status=status)
        if status == OVERLOADED:
            wait_s = error.retry_after_s
            return UpstreamError("rate_limited", "the provider is busy", status=status, retry_after_s=wait_s)
        return error

    def _headers(self) -> dict[str, str]:
        key = self.key()
        return {"anthropic-version": VERSION, **({"x-api-key": key} if key else {})}

    def _now_s(self) -> int:
        return self._clock.now_ms() // MS_PER_SECOND


def _not_a_message(body: Any) -> UpstreamError:
    return not_what_was_asked(body, result="not_a_completion", message="the provider's answer is not a message")


async def _shown(response: aiohttp.ClientResponse) -> Any:
    """What came instead of a stream, if it is JSON."""
    try:
        return orjson.loads(await bounded(response, ERROR_BODY_BYTES_MAX) or b"")
    except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError):
        return None
