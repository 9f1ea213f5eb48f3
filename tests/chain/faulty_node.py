"""A node that can go wrong: a JSON-RPC server in front of a real one, with rules that break answers."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import orjson
from aiohttp import web

# Accepting a connection takes the loop four.
LOOP_TURNS = 10

Rule = Callable[[str, list[Any]], Awaitable[Any] | Any]


class Raw:
    """An answer as bytes, whatever they are."""

    def __init__(self, body: bytes, *, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.body = body
        self.status = status
        self.headers = headers or {"Content-Type": "application/json"}


class Drop:
    """The connection ends without an answer."""


class Silence:
    """No answer ever comes."""


class Result:
    """Another result than the real node's."""

    def __init__(self, value: Any) -> None:
        self.value = value


class Refusal:
    """A JSON-RPC error."""

    def __init__(self, code: int, message: str, data: object = None) -> None:
        self.error = {"code": code, "message": message, **({} if data is None else {"data": data})}


class FaultyNode:
    """``rules`` are asked in order with method and parameters; the first that returns something decides.

    ``asked`` lists the methods that were called.
    """

    def __init__(self, upstream: str = "") -> None:
        self.rules: list[Rule] = []
        self.asked: list[str] = []
        self._upstream = upstream
        self._client = httpx.AsyncClient(timeout=30, trust_env=False)
        self._runner: web.AppRunner | None = None
        self._ended = asyncio.Event()
        self._transports: set[asyncio.Transport] = set()
        self.url = ""

    async def __aenter__(self) -> "FaultyNode":
        application = web.Application()
        application.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._ended.set()
        # A client that gave up leaves connections that are not accepted yet, which asyncio forgets to close if
        # the server goes first, and connections that wait to be flushed.
        await _settled()
        for transport in self._transports:
            transport.abort()
        if self._runner is not None:
            await self._runner.cleanup()
        await _settled()
        await self._client.aclose()

    async def forward(self, method: str, params: list[Any]) -> Any:
        """What the real node answers."""
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer = (await self._client.post(self._upstream, json=body)).json()
        if "error" in answer:
            error = answer["error"]
            return Refusal(error["code"], error["message"], error.get("data"))
        return Result(answer["result"])

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        if request.transport is not None:
            self._transports.add(request.transport)
        body = orjson.loads(await request.read())
        method, params = body["method"], body["params"]
        self.asked.append(method)
        for rule in self.rules:
            found = rule(method, params)
            if asyncio.iscoroutine(found):
                found = await found
            if found is not None:
                return await self._broken(request, body["id"], found)
        return await self._broken(request, body["id"], await self.forward(method, params))

    async def _broken(self, request: web.Request, request_id: Any, found: Any) -> web.StreamResponse:
        if isinstance(found, Drop):
            # Whoever asked may be gone already.
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        if isinstance(found, Silence):
            await self._ended.wait()
            return web.Response()
        if isinstance(found, Raw):
            return web.Response(body=found.body, status=found.status, headers=found.headers)
        answer: dict[str, Any] = {"jsonrpc": "2.0", "id": request_id}
        if isinstance(found, Refusal):
            answer["error"] = found.error
        else:
            answer["result"] = found.value
        return web.Response(body=orjson.dumps(answer), content_type="application/json")


async def _settled() -> None:
    """Let the loop finish what is due already."""
    for _ in range(LOOP_TURNS):
        await asyncio.sleep(0)


def times(count: int, rule: Rule) -> Rule:
    """A rule that decides ``count`` times and then never again."""
    left = count

    def limited(method: str, params: list[Any]) -> Any:
        nonlocal left
        if left == 0:
            return None
        found = rule(method, params)
        if found is not None:
            left -= 1
        return found

    return limited


def on(method: str, answer: Any) -> Rule:
    """A rule for one method."""
    return lambda asked, _: answer if asked == method else None
