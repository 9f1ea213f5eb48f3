"""Bounded periodic loops: each runs one function again and again, and outlives its failures."""

import asyncio
from collections.abc import Awaitable, Callable

from app import log, metrics

_log = log.get("workers")


class Worker:
    """Runs ``work`` every ``every_s`` seconds until stopped; a failure is logged and counted."""

    def __init__(self, name: str, work: Callable[[], Awaitable[object]], *, every_s: float) -> None:
        self._name = name
        self._work = work
        self._every_s = every_s
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin, in the running event loop."""
        self._task = asyncio.create_task(self._run(), name=self._name)

    async def stop(self) -> None:
        """End the loop and wait for it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._every_s)
            try:
                await self._work()
            except Exception as error:
                metrics.alerts.labels(f"worker_{self._name}").inc()
                _log.error("worker_failed", worker=self._name, exc_info=error)
