"""How a backend is asked: one bounded GET that gives JSON, or `SearchFailed`.

Redirects are never followed: one would take the operator's key and a client's question to another place.
"""

from collections.abc import Mapping
from typing import Any

import aiohttp
import orjson

from app.search.backend import SearchFailed

ANSWER_BYTES_MAX = 2 * 1024 * 1024
CONNECTIONS_MAX = 64
CONNECT_S_MAX = 5.0
_REDIRECTS = range(300, 400)


class JsonClient:
    """Pooled connections to one backend, each request within ``timeout_s``."""

    def __init__(self, *, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._session: aiohttp.ClientSession | None = None

    async def get(self, url: str, *, query: Mapping[str, str], headers: Mapping[str, str]) -> tuple[int, Any]:
        """The status and the parsed body; None where an error's body is no JSON. Raises `SearchFailed`."""
        try:
            async with self._client().get(url, params=query, headers=headers, allow_redirects=False) as response:
                if response.status in _REDIRECTS:
                    raise SearchFailed("redirected", "the search service is not set up rightly")
                return response.status, _parsed(await _bounded(response), response.status)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise SearchFailed("connect", "the search service cannot be reached") from error
        except TimeoutError as error:
            raise SearchFailed("timeout", "the search service did not answer in time") from error
        except ValueError:
            # A header or an address that cannot be sent: the reason would quote it.
            raise SearchFailed("misconfigured", "the search service is not set up rightly") from None
        except aiohttp.ClientError as error:
            raise SearchFailed("interrupted", "the search service broke off") from error

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=CONNECTIONS_MAX, keepalive_timeout=60),
                timeout=aiohttp.ClientTimeout(
                    total=self._timeout_s,
                    connect=None,
                    sock_connect=min(CONNECT_S_MAX, self._timeout_s),
                    sock_read=self._timeout_s,
                ),
                headers={"Accept": "application/json", "Accept-Encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
                # A compressed answer could be a thousand times what was bounded: none was asked for.
                auto_decompress=False,
            )
        return self._session


async def _bounded(response: aiohttp.ClientResponse) -> bytes:
    content = bytearray()
    async for block in response.content.iter_any():
        content += block
        if len(content) > ANSWER_BYTES_MAX:
            # Not read to its end, so that the connection does not go back to the pool.
            response.close()
            raise SearchFailed("too_large", "the search service answered too much")
    return bytes(content)


def _parsed(content: bytes, status: int) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError as error:
        if status != 200:
            return None
        raise SearchFailed("not_json", "the search service gave no usable answer") from error


def refused(status: int) -> SearchFailed:
    """What a status other than 200 means."""
    if status in {401, 402, 403}:
        return SearchFailed("refused", "the search service is not available")
    if status == 429:
        return SearchFailed("rate_limited", "the search service is busy")
    if status in range(400, 500):
        return SearchFailed("rejected", "the search service did not take the query")
    return SearchFailed("server_error", "the search service failed")
