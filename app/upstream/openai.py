"""The adapter for any OpenAI-compatible server: vLLM, Ollama, llama.cpp, OpenRouter, OpenAI.

One aiohttp session per provider with pooled connections. Redirects are never followed, nothing of
the client's request but its validated body is sent, and the answer's headers go no further than here.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import orjson
from yarl import URL

from app import log
from app.deadline import Deadline
from app.settings import InferenceSettings, ProviderSettings
from app.upstream.provider import Call, UpstreamError, safe_message
from app.upstream.sse import EventSplitter, EventTooLarge

ERROR_BODY_BYTES_MAX = 65_536
RETRY_AFTER_S_MAX = 3600
# A whole answer may drip, but not longer than so many idle times.
WHOLE_ANSWER_IDLES = 10
CALLERS_FAULT = frozenset({400, 404, 409, 413, 415, 422})
OPERATORS_FAULT = frozenset({401, 402, 403})
# A parameter that a server refuses by name, and what to send instead (None: leave it out).
QUIRKS = {
    "stream_options": None,
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
}

_log = log.get("upstream")


class OpenAIProvider:
    """One OpenAI-compatible upstream."""

    def __init__(self, settings: ProviderSettings, inference: InferenceSettings) -> None:
        self.name = settings.name
        self.kind: str = settings.kind
        self._settings = settings
        self._inference = inference
        self._url = URL((settings.base_url or "").rstrip("/") + "/chat/completions")
        self._session: aiohttp.ClientSession | None = None
        # Learned per model: parameters that this server refuses.
        self._refused: dict[str, set[str]] = {}

    async def complete(self, call: Call) -> dict[str, Any]:
        async with self._answer(call) as response:
            try:
                with Deadline(self._inference.upstream_idle_timeout_s * WHOLE_ANSWER_IDLES):
                    content = await _bounded(response, self._inference.upstream_body_bytes_max)
            except TimeoutError as error:
                raise UpstreamError("timeout", "the provider did not finish in time", fail_over=False) from error
            except aiohttp.ClientError as error:
                raise UpstreamError("interrupted", "the provider's answer was cut off", fail_over=False) from error
        if content is None:
            raise UpstreamError("too_large", "the provider's answer is too large", fail_over=False)
        try:
            body = orjson.loads(content)
        except orjson.JSONDecodeError as error:
            # It may well have done the work: another provider would do it again.
            message = "the provider did not answer in JSON"
            raise UpstreamError("not_json", message, status=200, fail_over=False) from error
        if not isinstance(body, dict) or not isinstance(body.get("choices"), list):
            raise _error_in_body(body)
        return body

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[AsyncIterator[list[bytes]]]:
        async with self._answer(call) as response:
            if "text/event-stream" not in response.headers.get("Content-Type", "text/event-stream"):
                content = await _bounded(response, ERROR_BODY_BYTES_MAX)
                raise _error_in_body(_loaded(content))
            yield self._events(response)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def _events(self, response: aiohttp.ClientResponse) -> AsyncIterator[list[bytes]]:
        splitter = EventSplitter(event_bytes_max=self._inference.upstream_event_bytes_max)
        try:
            async for block in response.content.iter_any():
                events = splitter.feed(block)
                if events:
                    yield events
        except EventTooLarge as error:
            raise UpstreamError("too_large", "the provider sent an event that is too large", fail_over=False) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise UpstreamError("interrupted", "the provider's answer was cut off", fail_over=False) from error

    @asynccontextmanager
    async def _answer(self, call: Call) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send the call; gives a successful response. Learns once from each refused parameter."""
        for _ in range(len(QUIRKS) + 1):
            response = await self._send(call)
            try:
                if response.status == 200:
                    yield response
                    return
                error, learned = await self._refusal(call, response)
                if not learned:
                    raise error
            finally:
                # An answer that was not read to its end must not go back to the pool: this stops it.
                response.close() if not response.content.is_eof() else response.release()
        raise UpstreamError("rejected", "the provider refuses every form of this request", callers_fault=True)

    async def _send(self, call: Call) -> aiohttp.ClientResponse:
        try:
            with Deadline(call.first_byte_timeout_s):
                # A redirect would take the operator's key and the client's words to another place.
                return await self._client().post(
                    self._url, data=self._body(call), headers=self._headers(), allow_redirects=False
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise UpstreamError("connect", "the provider cannot be reached") from error
        except TimeoutError as error:
            # The request may have been taken up: asking another provider could do the work twice.
            message = f"the provider did not begin to answer within {call.first_byte_timeout_s:g} s"
            raise UpstreamError("timeout", message, fail_over=False) from error
        except aiohttp.ClientError as error:
            raise UpstreamError("interrupted", "the provider closed the connection", fail_over=False) from error

    def _body(self, call: Call) -> bytes:
        body = {**call.body, "model": call.upstream_model, "stream": call.stream}
        wanted = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
        body.pop("max_completion_tokens", None)
        body.pop("max_tokens", None)
        refused = self._refused.get(call.upstream_model, ())
        if wanted in refused:
            wanted = QUIRKS[wanted] or wanted
        body[wanted] = call.output_limit
        if call.stream and "stream_options" not in refused:
            body["stream_options"] = {"include_usage": True}
        else:
            body.pop("stream_options", None)
        return orjson.dumps(body)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        key = os.environ.get(self._settings.api_key_env) if self._settings.api_key_env else None
        if key:
            headers["Authorization"] = f"Bearer {key}"
        return headers

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._settings.connections_max, keepalive_timeout=60),
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    connect=None,
                    sock_connect=self._inference.upstream_connect_timeout_s,
                    sock_read=self._inference.upstream_idle_timeout_s,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=65_536,
            )
        return self._session

    async def _refusal(self, call: Call, response: aiohttp.ClientResponse) -> tuple[UpstreamError, bool]:
        """What a status other than 200 means, and whether something was learned that makes a retry right."""
        status = response.status
        try:
            with Deadline(self._inference.upstream_connect_timeout_s):
                body = _loaded(await _bounded(response, ERROR_BODY_BYTES_MAX))
        except (aiohttp.ClientError, TimeoutError):
            body = None
        text = _message(body)
        if status == 400 and self._learn(call, body, text):
            return UpstreamError("rejected", "a parameter was refused", status=status), True
        if status in OPERATORS_FAULT:
            _log.error("provider_refused_us", provider=self.name, status=status)
            return UpstreamError("refused", "the provider refused the operator's account", status=status), False
        if status in CALLERS_FAULT:
            message = safe_message(text)
            return UpstreamError("rejected", message, status=status, fail_over=False, callers_fault=True), False
        if status == 429:
            wait_s = _retry_after(response.headers.get("Retry-After"))
            return UpstreamError("rate_limited", "the provider is busy", status=status, retry_after_s=wait_s), False
        return UpstreamError("server_error", f"the provider answered {status}", status=status), False

    def _learn(self, call: Call, body: Any, text: object) -> bool:
        error = body.get("error") if isinstance(body, dict) else None
        named = error.get("param") if isinstance(error, dict) else None
        words = text if isinstance(text, str) else ""
        refused = self._refused.setdefault(call.upstream_model, set())
        sent = _limit_name(call, refused)
        for parameter in (sent, "stream_options"):
            mentioned = named == parameter or (named is None and f"{parameter}" in words)
            if mentioned and parameter not in refused and (parameter != "stream_options" or call.stream):
                if QUIRKS[parameter] in refused:
                    continue
                refused.add(parameter)
                _log.warning("provider_quirk_learned", provider=self.name, parameter=parameter)
                return True
        return False


def _limit_name(call: Call, refused: set[str]) -> str:
    wanted = "max_completion_tokens" if "max_completion_tokens" in call.body else "max_tokens"
    return (QUIRKS[wanted] or wanted) if wanted in refused else wanted


async def _bounded(response: aiohttp.ClientResponse, bytes_max: int) -> bytes | None:
    """The body, or None if it is past the bound."""
    if (response.content_length or 0) > bytes_max:
        return None
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > bytes_max:
            return None
        parts.append(part)
    return b"".join(parts)


def _loaded(content: bytes | None) -> Any:
    try:
        return orjson.loads(content or b"")
    except orjson.JSONDecodeError:
        return None


def _message(body: Any) -> object:
    error = body.get("error", body) if isinstance(body, dict) else None
    if isinstance(error, dict):
        return error.get("message") or error.get("detail")
    return error


def _error_in_body(body: Any) -> UpstreamError:
    """A 200 that is not a completion: an error in disguise, or nonsense."""
    if isinstance(body, dict) and body.get("error"):
        return UpstreamError("error_in_body", "the provider answered with an error", status=200)
    return UpstreamError("not_a_completion", "the provider's answer is not a completion", status=200)


def _retry_after(text: str | None) -> int | None:
    return min(int(text), RETRY_AFTER_S_MAX) if text and text.isascii() and text.isdigit() and len(text) < 9 else None
