"""JSON-RPC with a chain's node: the one place that talks to it and turns its failures into ours.

A node may be slow, behind, restarting, somebody else's, or not a node at all. Every wait and every
answer's size is bounded, what it says is checked before it is believed, and no message carries its
URL, which may hold a key.
"""

import asyncio
import re
from collections.abc import Sequence
from typing import Any

import httpx
import orjson

from app import log
from app.chain.backend import ChainUnavailable

RESPONSE_BYTES_MAX = 8 * 1024 * 1024
MESSAGE_CHARACTERS_MAX = 300
ATTEMPTS = 3
RETRY_AFTER_S = 0.1
CONNECT_TIMEOUT_S = 5.0
CONNECTIONS_MAX = 16
# EIP-1474 and what go-ethereum says of a call that reverted.
REVERTED = 3

_QUANTITY = re.compile(r"0x[0-9a-fA-F]+")
_log = log.get("chain")


class NodeRefused(ChainUnavailable):
    """The node answered, with an error. ``data`` is what a reverted call returned, where it says so."""

    def __init__(self, message: str, *, code: int, data: bytes | None = None) -> None:
        super().__init__(f"the node refused ({code}): {message}")
        self.code = code
        self.reason = message
        self.data = data

    @property
    def reverted(self) -> bool:
        """Whether a call was carried out and reverted: asking again gives the same."""
        return self.code == REVERTED or "execution reverted" in self.reason.lower()


class Rpc:
    """One node. Calls are safe from any number of tasks."""

    def __init__(
        self,
        url: str,
        *,
        chain_id: int,
        timeout_s: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.chain_id = chain_id
        self.timeout_s = timeout_s
        self._url = url
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._next_id = 0

    async def call(self, method: str, *params: Any, retry: bool = True) -> Any:
        """The result of a method. Raises `NodeRefused` for an error, `ChainUnavailable` for no sensible answer.

        What does not answer is asked again a few times unless ``retry`` is off; an error is not.
        """
        attempts = ATTEMPTS if retry else 1
        for attempt in range(1, attempts + 1):
            try:
                return await self._once(method, params)
            except NodeRefused:
                raise
            except ChainUnavailable as error:
                _log.warning(
                    "node_failed", chain_id=self.chain_id, method=method, attempt=attempt, reason=str(error)[:200]
                )
                if attempt == attempts:
                    raise
            await asyncio.sleep(RETRY_AFTER_S * attempt)
        raise ChainUnavailable("no attempt was made")

    async def aclose(self) -> None:
        """Close pooled connections."""
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    async def _once(self, method: str, params: Sequence[Any]) -> Any:
        self._next_id += 1
        request_id = self._next_id
        body = orjson.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": list(params)})
        try:
            # Over all of it: a node that drips one byte a second never runs into httpx's read timeout.
            async with asyncio.timeout(self.timeout_s):
                text = await self._exchange(body)
        except TimeoutError as error:
            raise ChainUnavailable(f"the node did not answer {method} within {self.timeout_s} s") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            # The class only: messages of this library may hold the URL.
            raise ChainUnavailable(f"the node cannot be reached ({type(error).__name__})") from error
        return _result(text, request_id=request_id, method=method)

    async def _exchange(self, body: bytes) -> bytes:
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        async with self._open().stream("POST", self._url, content=body, headers=headers) as response:
            received = bytearray()
            # Raw: an answer that is compressed although nobody asked for it is not unpacked.
            async for chunk in response.aiter_raw():
                received += chunk
                if len(received) > RESPONSE_BYTES_MAX:
                    raise ChainUnavailable(f"the node's answer is larger than {RESPONSE_BYTES_MAX} bytes")
            # Some nodes send JSON-RPC errors with a 4xx status; those are read like any other.
            if response.status_code >= 500 or (response.status_code != 200 and not received.startswith(b"{")):
                raise ChainUnavailable(f"the node answered with HTTP status {response.status_code}")
            return bytes(received)

    def _open(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                timeout=httpx.Timeout(self.timeout_s, connect=min(CONNECT_TIMEOUT_S, self.timeout_s)),
                limits=httpx.Limits(
                    max_connections=CONNECTIONS_MAX,
                    max_keepalive_connections=CONNECTIONS_MAX,
                    keepalive_expiry=30.0,
                ),
                follow_redirects=False,
                trust_env=False,
                transport=self._transport,
            )
        return self._client


def quantity(value: object, *, bits: int = 64) -> int:
    """A JSON-RPC quantity. Raises `ChainUnavailable` for anything else: a node that makes no sense."""
    if isinstance(value, str) and len(value) <= 2 + bits // 4 and _QUANTITY.fullmatch(value):
        return int(value, 16)
    raise ChainUnavailable("the node answered with something that is no quantity")


def data(value: object) -> bytes:
    """JSON-RPC bytes. Raises `ChainUnavailable`."""
    if isinstance(value, str) and value.startswith("0x"):
        try:
            return bytes.fromhex(value[2:])
        except ValueError:
            pass
    raise ChainUnavailable("the node answered with something that is no data")


def record(value: object) -> dict[str, Any]:
    """A JSON object. Raises `ChainUnavailable`."""
    if isinstance(value, dict):
        return value
    raise ChainUnavailable("the node answered with something that is no object")


def plain(text: object) -> str:
    """A node's words on one line, bounded."""
    if not isinstance(text, str):
        return "no reason given"
    shown = "".join(character if character.isprintable() else " " for character in text[:MESSAGE_CHARACTERS_MAX])
    return shown.strip() or "no reason given"


def _result(text: bytes, *, request_id: int, method: str) -> Any:
    try:
        answer = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise ChainUnavailable(f"the node's answer to {method} is no JSON") from error
    if not isinstance(answer, dict):
        raise ChainUnavailable(f"the node's answer to {method} is no JSON-RPC response")
    # An error may come without the request's id: of a request that could not be read, or from a gateway.
    if answer.get("error") is not None:
        raise _refusal(answer["error"])
    if "result" not in answer or answer.get("id") != request_id:
        raise ChainUnavailable(f"the node's answer to {method} is not to this request")
    return answer["result"]


def _refusal(error: object) -> ChainUnavailable:
    """An error of the node; a gateway's, which is none of JSON-RPC, says nothing about the request."""
    if not isinstance(error, dict) or not isinstance(error.get("code"), int):
        return ChainUnavailable(f"a gateway refused: {plain(error)}")
    returned = None
    if isinstance(error.get("data"), str):
        try:
            returned = data(error["data"])
        except ChainUnavailable:
            returned = None
    return NodeRefused(plain(error.get("message")), code=error["code"], data=returned)
