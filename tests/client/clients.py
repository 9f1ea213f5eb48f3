"""Both transports behind one face, so that each story is told blocking and awaited."""

import json
from collections.abc import Callable
from typing import Any, Protocol

import httpx
from farebox_client import AsyncPayingTransport, PayingTransport, Wallet

from tests.client.edge import Edge

# As SDKs send it: what goes out beside the request must not have it.
HEADERS = {"Idempotency-Key": "one-request"}
ASK = {"model": "sandbox/echo", "messages": [{"role": "user", "content": "Hi"}]}
TIMEOUT = httpx.Timeout(20)


class Client(Protocol):
    """What both transports do, awaited by the tests whichever it is."""

    async def ask(self, edge: Edge, **changes: Any) -> httpx.Response: ...
    async def manage(self, name: str, *arguments: Any) -> Any: ...
    async def aclose(self) -> None: ...


class Blocking:
    """`PayingTransport`, whose blocking is no matter: the edge runs in a thread of its own."""

    def __init__(self, wallet: Wallet, **options: Any) -> None:
        self.transport = PayingTransport(wallet, raises=True, **options)
        self.http = httpx.Client(transport=self.transport, timeout=TIMEOUT)

    async def ask(self, edge: Edge, **changes: Any) -> httpx.Response:
        return self.http.post(f"{edge.url}/chat/completions", json={**ASK, **changes}, headers=HEADERS)

    async def manage(self, name: str, *arguments: Any) -> Any:
        return getattr(self.transport, name)(*arguments)

    async def aclose(self) -> None:
        self.http.close()


class Awaited:
    """`AsyncPayingTransport`."""

    def __init__(self, wallet: Wallet, **options: Any) -> None:
        self.transport = AsyncPayingTransport(wallet, raises=True, **options)
        self.http = httpx.AsyncClient(transport=self.transport, timeout=TIMEOUT)

    async def ask(self, edge: Edge, **changes: Any) -> httpx.Response:
        return await self.http.post(f"{edge.url}/chat/completions", json={**ASK, **changes}, headers=HEADERS)

    async def manage(self, name: str, *arguments: Any) -> Any:
        return await getattr(self.transport, name)(*arguments)

    async def aclose(self) -> None:
        await self.http.aclose()


MakeClient = Callable[..., Client]


def text_of(response: httpx.Response) -> str:
    """What an event stream says, which has nothing in it but chunks and its end."""
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    return "".join(chunk["choices"][0]["delta"]["content"] for chunk in chunks)
