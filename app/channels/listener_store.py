"""What other processes do to channels, heard from PostgreSQL: a voucher that lands there wakes a stream here.

Notifications are sent by the journal in the commit that changes a channel. They are hints: what is true is
read from the rows. One that is lost with its connection is made up for by looking at everything again.
"""

import asyncio
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import Engine

from app import log

CHANNEL_CHANGED = "farebox_channel"
RETRY_PAUSE_S = 1.0
CONNECT_TIMEOUT_S = 5
SILENCE_S = 15

_log = log.get("listener")


class Listener:
    """One connection that listens, for as long as the process serves.

    ``on_changed`` is given a channel's id and whether it stopped; ``on_missed`` is called when there may
    have been changes that nobody heard of.
    """

    def __init__(
        self, engine: Engine, *, on_changed: Callable[[str, bool], None], on_missed: Callable[[], None]
    ) -> None:
        self._conninfo = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
        self._on_changed = on_changed
        self._on_missed = on_missed
        self._task: asyncio.Task[None] | None = None
        self._listening = asyncio.Event()

    async def start(self) -> None:
        """Listen; returns once the connection does."""
        self._task = asyncio.create_task(self._run(), name="listener")
        with suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._listening.wait()

    async def stop(self) -> None:
        """Hang up."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait((self._task,))

    async def _run(self) -> None:
        # An SQLite server has no use for it, and waits for nobody else's driver.
        import psycopg

        while True:
            try:
                await self._listen()
            except (psycopg.Error, OSError, TimeoutError) as error:
                _log.warning("listening_interrupted", error=type(error).__name__)
            await asyncio.sleep(RETRY_PAUSE_S)

    async def _listen(self) -> None:
        import psycopg

        async with await psycopg.AsyncConnection.connect(
            self._conninfo,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_S,
            keepalives_idle=SILENCE_S,
            keepalives_interval=5,
            keepalives_count=3,
        ) as connection:
            await connection.execute(f"LISTEN {CHANNEL_CHANGED}")
            self._listening.set()
            self._on_missed()
            while True:
                async for notify in connection.notifies(timeout=SILENCE_S):
                    channel_id, _, word = notify.payload.partition(" ")
                    self._on_changed(channel_id, word != "open")
                # Silence may be a dead connection: asked, it says so.
                async with asyncio.timeout(CONNECT_TIMEOUT_S):
                    await connection.execute("SELECT 1")
