"""The yardstick: a pass-through with nothing in it, `python -m bench.bare --port P --upstream URL`.

The same Starlette, uvicorn, uvloop, httptools and pooled aiohttp client as Farebox, a raw ASGI endpoint, and no
payment, no validation, no parsing of the answer. What Farebox loses against it is the price of selling the request.

A provider flushes token by token, so a pass-through does one read and one write per chunk: the default here. The
benchmark's upstream sends its chunks in a burst to save its own time, and with `--coalesce` the pass-through profits
from that by forwarding whatever has arrived in one write: the most that any proxy could do on this burst.
"""

import argparse
import contextlib
from collections.abc import AsyncIterator

import aiohttp
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from bench.wire import PATH

REQUEST_BYTES_MAX = 1 << 20


class Forward:
    """Raw ASGI: Starlette's Request and StreamingResponse would add the very costs this is meant to leave out."""

    def __init__(self, upstream: str, *, coalesce: bool) -> None:
        self._url = upstream + PATH
        self._coalesce = coalesce
        self._client: aiohttp.ClientSession | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Opens the one pooled client; limit=0 since the number of clients is the bound here."""
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=75),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5, sock_read=60),
            auto_decompress=False,
            headers={"Accept-Encoding": "identity", "Content-Type": "application/json"},
        )
        async with self._client:
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._client is None:
            raise RuntimeError("the lifespan has not started")
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            if len(body) > REQUEST_BYTES_MAX:
                raise ValueError("request too large")
            if not message.get("more_body", False):
                break
        try:
            async with self._client.post(self._url, data=body) as answer:
                await self._relay(answer, send)
        except aiohttp.ClientConnectionError:
            await send({"type": "http.response.start", "status": 502, "headers": []})
            await send({"type": "http.response.body", "body": b""})

    async def _relay(self, answer: aiohttp.ClientResponse, send: Send) -> None:
        headers = [(b"content-type", answer.headers["Content-Type"].encode())]
        if answer.content_length is not None:
            headers.append((b"content-length", str(answer.content_length).encode()))
            content = await answer.read()
            await send({"type": "http.response.start", "status": answer.status, "headers": headers})
            await send({"type": "http.response.body", "body": content})
            return
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        if self._coalesce:
            async for piece in answer.content.iter_any():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        else:
            async for piece, _ in answer.content.iter_chunks():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


def main() -> None:
    """The command line of the bare server."""
    parser = argparse.ArgumentParser(prog="python -m bench.bare")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--coalesce", action="store_true", help="forward what has arrived, not chunk by chunk")
    arguments = parser.parse_args()
    forward = Forward(arguments.upstream, coalesce=arguments.coalesce)
    # Starlette takes an instance as an ASGI application; its type only foresees functions.
    app = Starlette(routes=[Route(PATH, endpoint=forward, methods=["POST"])], lifespan=forward.lifespan)
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=arguments.port,
        loop="uvloop",
        http="httptools",
        ws="none",
        access_log=False,
        log_level="warning",
        server_header=False,
        date_header=False,
        timeout_keep_alive=75,
        backlog=2048,
    )


if __name__ == "__main__":
    main()
