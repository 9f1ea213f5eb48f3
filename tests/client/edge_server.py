"""Serves strict edges over loopback."""

import threading
import traceback
from itertools import count
from typing import Any, Self

import uvicorn

from tests.client.edge import Edge
from tests.client.edge_http import Receive, Send


class EdgeServer:
    """Serves any number of edges over loopback from a thread."""

    def __init__(self) -> None:
        self.edges: dict[str, Edge] = {}
        self._numbers = count(1)
        config = uvicorn.Config(
            self._app,
            host="127.0.0.1",
            port=0,
            log_config=None,
            lifespan="off",
            ws="none",
            interface="asgi3",
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def edge(self, **settings: Any) -> Edge:
        """A new edge."""
        name = f"edge{next(self._numbers)}"
        edge = self.edges[name] = Edge(name, self.host, **settings)
        return edge

    @property
    def host(self) -> str:
        """Scheme, host and port."""
        port = self._server.servers[0].sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    def __enter__(self) -> Self:
        self._thread.start()
        pause = threading.Event()
        while not self._server.started:
            assert self._thread.is_alive()
            pause.wait(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    async def _app(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        edge = self.edges[scope["path"].split("/")[1]]
        try:
            await edge.handle(scope, body, send)
        except AssertionError as error:
            edge.failures.append(traceback.format_exc())
            raise ConnectionAbortedError from error
