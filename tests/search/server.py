"""A real HTTP server that answers as a search service does, or does not."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class SearchServer:
    """What it answers is set by the test; what it was asked is kept."""

    body: Any = None
    status: int = 200
    raw: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict)
    answer: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
    asked: list[web.Request] = field(default_factory=list)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer one request."""
        self.asked.append(request)
        if self.answer is not None:
            try:
                return await self.answer(request)
            except (asyncio.CancelledError, ConnectionResetError):
                self.left.set()
                raise
        if self.raw is not None:
            return web.Response(body=self.raw, status=self.status, headers=self.headers)
        return web.json_response(self.body, status=self.status, headers=self.headers)


@asynccontextmanager
async def serving() -> AsyncIterator[SearchServer]:
    """The server, on loopback."""
    server = SearchServer()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield server
    finally:
        await runner.cleanup()
