"""What adapters share that call a provider over HTTP: pooled connections, bounds, and what failures mean.

One aiohttp session per provider. Redirects are never followed: one would take the operator's key and the
client's words to another place. Nothing of an answer but its body goes further than an adapter, and of a
refusal no more than its words without what they give away (`app.upstream.refusal`).
"""

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager
from functools import lru_cache
from types import TracebackType
from typing import Any

import aiohttp
import orjson
from aiohttp.abc import AbstractStreamWriter
from yarl import URL

from app import log
from app.deadline import Deadline
from app.nesting import is_deep
from app.settings import InferenceSettings, ProviderSettings
from app.upstream.provider import TOO_LARGE, Call, UpstreamError
from app.upstream.refusal import Refusal, Told, refusal_of, retry_after_s
from app.upstream.sse import EventSplitter, EventTooLarge

ERROR_BODY_BYTES_MAX = 65_536
# What is written at once of a long request: the loop serves others in between.
WRITE_BYTES = 65_536
READ_BYTES = 65_536
# A larger answer is read in a thread: everybody else would wait for it.
INLINE_BYTES_MAX = 262_144
KEEP_ALIVE_S = 60
# Kept ready: making one costs more than a short request's writing.
TIMEOUTS_MAX = 256
# A whole answer may drip, but not longer than so many idle times.
WHOLE_ANSWER_IDLES = 10
JSON = "application/json"
_VERSION_END = re.compile(r"/v\d{1,2}$")
_VERSION_START = re.compile(r"/v\d{1,2}/")

_log = log.get("upstream")


class Body(aiohttp.Payload):
    """A request's body in parts that are written as they are, in blocks. ``begun``: some of it may have been sent."""

    _autoclose = True

    def __init__(self, *parts: bytes, content_type: str = JSON) -> None:
        super().__init__(parts, content_type=content_type)
        self._parts = parts
        self._size = sum(map(len, parts))
        self.begun = False

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return b"".join(self._parts).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        self.begun = True
        for part in self._parts:
            if len(part) <= WRITE_BYTES:
                await writer.write(part)
                continue
            view = memoryview(part)
            for start in range(0, len(part), WRITE_BYTES):
                await writer.write(view[start : start + WRITE_BYTES])
                # A fast reader never makes a write wait, and neighbours must not starve meanwhile.
                await asyncio.sleep(0)


class _Sent:
    """A request's time with its provider. A class, as a generator would cost every request microseconds."""

    __slots__ = ("_begun", "_response")

    def __init__(self, begun: Coroutine[Any, Any, aiohttp.ClientResponse]) -> None:
        self._begun = begun

    async def __aenter__(self) -> aiohttp.ClientResponse:
        self._response = await self._begun
        return self._response

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # An answer that was not read to its end must not go back to the pool: this stops it.
        self._response.close() if not self._response.content.is_eof() else self._response.release()


class HttpUpstream:
    """One provider over HTTP, for an adapter to speak its dialect through.

    ``name``, ``kind``, ``engine_type`` and ``machine_name`` are those of `app.upstream.provider.Provider`;
    ``engine`` is what clients are told of the engine where the operator does not say.
    """

    def __init__(self, settings: ProviderSettings, inference: InferenceSettings, *, engine: str) -> None:
        self.name: str = settings.name
        self.kind: str = settings.kind
        self.engine_type: str = settings.engine_type or engine
        self.machine_name: str = settings.machine_name or settings.name
        self._settings = settings
        self._inference = inference
        self._base = (settings.base_url or "").rstrip("/")
        self._host = URL(self._base).host or ""
        self._session: aiohttp.ClientSession | None = None

    def url(self, path: str) -> URL:
        """``path`` under the configured base; a version that it begins with replaces one at the base's end."""
        base = _VERSION_END.sub("", self._base) if _VERSION_START.match(path) else self._base
        return URL(base + path)

    def key(self) -> str | None:
        """The operator's key at this provider, read anew each time."""
        name = self._settings.api_key_env
        return (os.environ.get(name) or "").strip() or None if name else None

    def post(
        self, call: Call, url: URL, *, body: Body, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Send a request; gives the answer once it has begun, whatever its status. Leaving stops the provider.

        The operator's key is for the caller to put into ``headers``. Entering raises `UpstreamError`; another
        provider may be asked only where surely nothing of the request was sent.
        """
        return _Sent(self._begun(call, url, body=body, headers=headers or {}))

    async def whole(self, response: aiohttp.ClientResponse, *, check: Callable[[Any], Any] | None = None) -> Any:
        """A whole answer's JSON, and what ``check`` makes of it; a large one is read off the event loop.

        Raises `UpstreamError` where it is late, cut off, too large or no JSON, and what ``check`` raises.
        """
        try:
            with Deadline(self._inference.upstream_idle_timeout_s * WHOLE_ANSWER_IDLES):
                content = await bounded(response, self._inference.upstream_body_bytes_max)
        except TimeoutError as error:
            raise UpstreamError("timeout", "the provider did not finish in time", fail_over=False) from error
        except aiohttp.ClientError as error:
            raise _cut_off() from error
        if content is None:
            raise _too_large("answer is")
        if len(content) > INLINE_BYTES_MAX:
            return await asyncio.to_thread(_read, content, check)
        return _read(content, check)

    async def events(self, response: aiohttp.ClientResponse) -> AsyncIterator[list[bytes]]:
        """The ``data`` of a stream's events, those of one read together. Raises `UpstreamError`."""
        splitter = EventSplitter(event_bytes_max=self._inference.upstream_event_bytes_max)
        try:
            async for block in response.content.iter_any():
                events = splitter.feed(block)
                if any(map(is_deep, events)):
                    raise _not_json("the provider sent an event that is nested absurdly deep")
                if events:
                    yield events
        except EventTooLarge as error:
            raise _too_large("event is") from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _cut_off() from error

    async def blocks(self, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
        """An answer's bytes as they come, within the bound of a whole answer. Raises `UpstreamError`."""
        left = self._inference.upstream_body_bytes_max
        try:
            async for block in response.content.iter_any():
                left -= len(block)
                if left < 0:
                    raise _too_large("answer is")
                if block:
                    yield block
        except (aiohttp.ClientError, TimeoutError) as error:
            raise _cut_off() from error

    async def refusal(self, call: Call, response: aiohttp.ClientResponse) -> Refusal:
        """What a status other than 200 means: the error to raise, and its words, for an adapter to learn from."""
        try:
            with Deadline(self._inference.upstream_connect_timeout_s):
                content = await bounded(response, ERROR_BODY_BYTES_MAX)
        except (aiohttp.ClientError, TimeoutError):
            content = None
        told = Told(
            status=response.status,
            content=content or b"",
            retry_after_s=retry_after_s(response.headers),
            host=self._host,
            upstream_model=call.upstream_model,
            asked_model=str(call.body.get("model") or ""),
        )
        return refusal_of(told)

    async def other(self, response: aiohttp.ClientResponse, *, result: str, message: str) -> UpstreamError:
        """A 200 of another kind than was asked for: an error in disguise, or nonsense."""
        try:
            with Deadline(self._inference.upstream_connect_timeout_s):
                body = orjson.loads(await bounded(response, ERROR_BODY_BYTES_MAX) or b"")
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError):
            body = None
        return not_what_was_asked(body, result=result, message=message)

    async def close(self) -> None:
        """Close pooled connections."""
        if self._session is not None:
            await self._session.close()

    async def _begun(self, call: Call, url: URL, *, body: Body, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        first_s, idle_s = call.first_byte_timeout_s, self._inference.upstream_idle_timeout_s
        try:
            with Deadline(first_s):
                response = await self._client().post(
                    url,
                    data=body,
                    headers={"Accept-Encoding": "identity", **headers},
                    allow_redirects=False,
                    # Silence before the first byte is the call's own matter, and may be longer.
                    timeout=_timeout(self._inference.upstream_connect_timeout_s, max(first_s, idle_s)),
                )
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise UpstreamError("connect", "the provider cannot be reached") from error
        except TimeoutError as error:
            # The request may have been taken up: asking another provider could do the work twice.
            message = f"the provider did not begin to answer within {first_s:g} s"
            raise UpstreamError("timeout", message, fail_over=not body.begun) from error
        except aiohttp.ClientError as error:
            message = "the provider closed the connection"
            raise UpstreamError("interrupted", message, fail_over=not body.begun) from error
        if first_s > idle_s:
            _limit_silence(response, idle_s)
        return response

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=self._settings.connections_max, keepalive_timeout=KEEP_ALIVE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=READ_BYTES,
            )
        return self._session


@lru_cache(maxsize=TIMEOUTS_MAX)
def _timeout(connect_s: float, silence_s: float) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=None, sock_connect=connect_s, sock_read=silence_s)


async def bounded(response: aiohttp.ClientResponse, bytes_max: int) -> bytes | None:
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


def not_what_was_asked(body: Any, *, result: str, message: str) -> UpstreamError:
    """A 200 that is not its endpoint's answer: an error in disguise, or nonsense. Nothing of it is repeated."""
    if isinstance(body, dict) and body.get("error"):
        return UpstreamError("error_in_body", "the provider answered with an error", status=200)
    return UpstreamError(result, message, status=200)


def _limit_silence(response: aiohttp.ClientResponse, idle_s: float) -> None:
    """From here on the provider may be silent for ``idle_s``; nothing where its answer is complete."""
    connection = response.connection
    if connection is None or connection.protocol is None:
        return
    connection.protocol.read_timeout = idle_s
    transport = connection.transport
    # While reading is paused the silence is ours, and its end starts the time by itself.
    if transport is not None and transport.is_reading():
        connection.protocol.start_timeout()


def _read(content: bytes, check: Callable[[Any], Any] | None) -> Any:
    if is_deep(content):
        raise _not_json("the provider's answer is nested absurdly deep")
    try:
        body = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        raise _not_json("the provider did not answer in JSON") from error
    return check(body) if check is not None else body


def _not_json(message: str) -> UpstreamError:
    # It may well have done the work: another provider would do it again.
    return UpstreamError("not_json", message, status=200, fail_over=False)


def _cut_off() -> UpstreamError:
    return UpstreamError("interrupted", "the provider's answer was cut off", fail_over=False)


def _too_large(what: str) -> UpstreamError:
    return UpstreamError(TOO_LARGE, f"the provider's {what} too large", fail_over=False)
