"""Waiting for what must come true, with a bound."""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

from tests.serving import FareboxServer, Payer

LOOK_EVERY_S = 0.01


async def eventually(condition: Callable[[], object], *, within_s: float = 20, what: str = "it") -> None:
    """Wait until ``condition`` holds; it is asked in a thread."""

    def wait() -> None:
        ends_s = time.monotonic() + within_s
        pause = threading.Event()
        while not condition():
            assert time.monotonic() < ends_s, f"{what} did not come true within {within_s} s"
            pause.wait(LOOK_EVERY_S)

    await asyncio.to_thread(wait)


async def admitted(server: FareboxServer, payer: Payer, *, requests: int = 1) -> None:
    """Wait until so many requests of the payer hold money."""
    statement = "SELECT count(*) AS n FROM requests WHERE key_id = :id"
    await eventually(lambda: server.rows(statement, id=payer.key_id)[0]["n"] >= requests, what="an admission")


async def settled(server: FareboxServer, payer: Payer, *, requests: int) -> list[dict[str, Any]]:
    """Wait until so many requests of the payer are over and nothing is held; gives their outcomes."""
    await asyncio.to_thread(server.wait_settled, payer, requests=requests)
    return server.outcomes(payer)
