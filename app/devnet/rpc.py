"""JSON-RPC to a local node: one call, one answer."""

from itertools import count
from typing import Any

import aiohttp

CALL_TIMEOUT_S = 60


class RpcFailed(Exception):
    """The node answered with an error; ``error`` is its JSON-RPC error object."""

    def __init__(self, method: str, error: dict[str, Any]) -> None:
        super().__init__(f"{method}: {error.get('message')}")
        self.error = error


class Rpc:
    """A client of one node."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S))
        self._ids = count(1)

    async def call(self, method: str, *params: Any) -> Any:
        """The result of a method. Raises `RpcFailed`."""
        answer = await self.forward({"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": params})
        if "error" in answer:
            raise RpcFailed(method, answer["error"])
        return answer["result"]

    async def forward(self, request: dict[str, Any]) -> dict[str, Any]:
        """A whole request, and the whole answer with its result or error."""
        async with self._session.post(self.url, json=request) as response:
            answer: dict[str, Any] = await response.json(content_type=None)
        return answer

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()
