"""A gate between a server and its chain: at a chosen question the server dies, or the connection does."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from tests.chain.faulty_node import Drop, FaultyNode

TIMEOUT_S = 60


@dataclass
class Trap:
    """What happens at the ``nth`` question of one method: before the node has it, or after it answered.

    The answer never arrives. ``sprung`` is set when it has happened.
    """

    method: str
    act: Callable[[], None]
    after: bool = False
    nth: int = 1
    sprung: threading.Event = field(default_factory=threading.Event)
    seen: int = 0


class Gate:
    """A node's address that can be watched, closed and booby-trapped; runs in a thread of its own."""

    def __init__(self, upstream: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gate", daemon=True)
        self._upstream = upstream
        self._node: FaultyNode | None = None
        self.trap: Trap | None = None
        self.closed = False
        self.url = ""

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(TIMEOUT_S)
        self._loop.close()

    def _run(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)

    async def _start(self) -> None:
        self._node = FaultyNode(self._upstream)
        await self._node.__aenter__()
        self._node.rules.append(self._rule)
        self.url = self._node.url

    async def _stop(self) -> None:
        if self._node is not None:
            await self._node.__aexit__(None, None, None)

    async def _rule(self, method: str, params: list[Any]) -> Any:
        trap = self.trap
        if trap is not None and method == trap.method and not trap.sprung.is_set():
            trap.seen += 1
            if trap.seen == trap.nth:
                if trap.after and self._node is not None:
                    await self._node.forward(method, params)
                await asyncio.to_thread(trap.act)
                trap.sprung.set()
                return Drop()
        return Drop() if self.closed else None
