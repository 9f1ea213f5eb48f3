"""The adapter for any OpenAI-compatible server: vLLM, Ollama, llama.cpp, OpenRouter, OpenAI, Jina, TEI.

Each endpoint is one request (`app.upstream.openai_request`) over the provider's pooled connections
(`app.upstream.http`), without the parameters that this server is known to refuse (`app.upstream.openai_quirks`),
and a whole answer is checked before it is given on (`app.upstream.openai_answer`).
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, cast

import aiohttp

from app.deadline import Deadline
from app.endpoints import ENDPOINTS
from app.settings import InferenceSettings, ProviderSettings
from app.upstream.http import Body, HttpUpstream
from app.upstream.openai_answer import checked
from app.upstream.openai_quirks import ATTEMPTS_MAX, Quirks, refused_parameter
from app.upstream.openai_request import PATHS, request_of
from app.upstream.provider import Call, Download, UpstreamError

EVENT_STREAM = "text/event-stream"
SPEECH_FORMAT = "mp3"
# What speech may come as, by the format that was asked for; the first is said where a server says only "bytes".
SPEECH_TYPES: Mapping[str, tuple[str, ...]] = {
    "mp3": ("audio/mpeg", "audio/mp3"),
    "opus": ("audio/opus", "audio/ogg"),
    "aac": ("audio/aac", "audio/x-aac", "audio/mp4"),
    "flac": ("audio/flac", "audio/x-flac"),
    "wav": ("audio/wav", "audio/x-wav", "audio/wave", "audio/vnd.wave"),
    "pcm": ("audio/pcm", "audio/l16", "audio/x-pcm"),
}
_SPEECH_TYPES = frozenset(kind for kinds in SPEECH_TYPES.values() for kind in kinds)
_BYTES_TYPES = frozenset({"", "application/octet-stream", "binary/octet-stream"})


class OpenAIProvider:
    """One OpenAI-compatible upstream."""

    endpoints = frozenset(endpoint.name for endpoint in ENDPOINTS)

    def __init__(self, settings: ProviderSettings, inference: InferenceSettings) -> None:
        self._http = HttpUpstream(settings, inference, engine="openai")
        self.name = self._http.name
        self.kind = self._http.kind
        self.engine_type = self._http.engine_type
        self.machine_name = self._http.machine_name
        self._quirks = Quirks(self.name)
        self._urls = {endpoint: self._http.url(path) for endpoint, path in PATHS.items()}

    async def complete(self, call: Call) -> dict[str, Any]:
        async with self._answer(call) as response:
            return cast("dict[str, Any]", await self._http.whole(response, check=partial(checked, call)))

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[AsyncIterator[list[bytes]]]:
        async with self._answer(call) as response:
            if EVENT_STREAM not in response.headers.get("Content-Type", EVENT_STREAM):
                message = "the provider's answer is no stream"
                raise await self._http.other(response, result="not_a_completion", message=message)
            yield self._http.events(response)

    @asynccontextmanager
    async def download(self, call: Call) -> AsyncIterator[Download]:
        async with self._answer(call) as response:
            media_type = _speech_type(response.headers.get("Content-Type", ""), call.body.get("response_format"))
            if media_type is None:
                message = "the provider's answer is not audio"
                raise await self._http.other(response, result="not_audio", message=message)
            async with aclosing(self._http.blocks(response)) as blocks:
                try:
                    # Servers that speak while they think send the head at once.
                    with Deadline(call.first_byte_timeout_s):
                        first = await anext(blocks, b"")
                except TimeoutError as error:
                    message = f"the provider did not begin to answer within {call.first_byte_timeout_s:g} s"
                    raise UpstreamError("timeout", message, fail_over=False) from error
                if not first:
                    raise UpstreamError("not_audio", "the provider's answer is empty", status=200)
                yield Download(media_type, _from(first, blocks))

    async def close(self) -> None:
        await self._http.close()

    @asynccontextmanager
    async def _answer(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send the call; gives a successful response. Asks again without a parameter that was refused by name."""
        known = refused = self._quirks.refused(call)
        key, url = self._http.key(), self._urls[call.endpoint]
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        for _ in range(ATTEMPTS_MAX):
            request = request_of(call, refused)
            body = Body(*request.parts, content_type=request.content_type)
            async with self._http.post(call, url, body=body, headers=headers) as response:
                if response.status == 200:
                    if refused != known:
                        self._quirks.remember(call, refused)
                    yield response
                    return
                refusal = await self._http.refusal(call, response)
            parameter = refused_parameter(call, refusal, sent=request.names, refused=refused)
            if parameter is None:
                raise refusal.error
            refused |= {parameter}
        message = "the provider refuses every form of this request"
        raise UpstreamError("rejected", message, fail_over=False, callers_fault=True)


async def _from(first: bytes, blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for block in blocks:
        yield block


def _speech_type(said: str, asked: Any) -> str | None:
    """The media type of an answer that is speech; None for any other. Nothing else of the header is kept."""
    said = said.partition(";")[0].strip().lower()
    if said in _BYTES_TYPES:
        return SPEECH_TYPES.get(asked or SPEECH_FORMAT, SPEECH_TYPES[SPEECH_FORMAT])[0]
    return said if said in _SPEECH_TYPES else None
