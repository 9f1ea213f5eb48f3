"""The node's process: started on a free port, stopped with its owner."""

import asyncio
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from collections import deque
from pathlib import Path

from app.devnet import guard

HOST = "127.0.0.1"
START_TIMEOUT_S = 30
LINES_KEPT = 50
CHUNK_BYTES = 65_536
LINE_BYTES_MAX = 65_536
_LISTENING = "Listening on "


class NodeFailed(Exception):
    """The node did not start; the message is the end of what it printed."""


class AnvilProcess:
    """One running anvil."""

    def __init__(self, process: Process, port: int, lines: deque[str], drain: asyncio.Task[None]) -> None:
        self.url = f"http://{HOST}:{port}"
        self._process = process
        self._lines = lines
        self._drain = drain

    @property
    def pid(self) -> int:
        """The guard's process id, for tests."""
        return self._process.pid

    @classmethod
    async def start(cls, binary: Path, *arguments: str) -> "AnvilProcess":
        """Start it on a free port and wait until it listens. Raises `NodeFailed`."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", guard.__file__),
            *(str(binary), "--host", HOST, "--port", "0", *arguments),
            stdin=PIPE,
            stdout=PIPE,
            stderr=STDOUT,
            # Ctrl-C is for the owner, which stops the node when it is done with it.
            start_new_session=True,
        )
        lines: deque[str] = deque(maxlen=LINES_KEPT)
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        drain = asyncio.create_task(_read(process, lines, listening))
        try:
            port = await asyncio.wait_for(listening, START_TIMEOUT_S)
        except (TimeoutError, EOFError) as error:
            await cls(process, 0, lines, drain).stop()
            raise NodeFailed("\n".join(lines)) from error
        return cls(process, port, lines, drain)

    async def stop(self) -> None:
        """Let go of it, and wait until it ended."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        await self._process.wait()
        await self._drain


async def _read(process: Process, lines: deque[str], listening: asyncio.Future[int]) -> None:
    # What is not read would block the node; the last lines are kept for when it fails.
    if process.stdout is None:
        return
    rest = b""
    while chunk := await process.stdout.read(CHUNK_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        rest = rest[-LINE_BYTES_MAX:]
        for raw in whole:
            line = raw.decode(errors="replace").rstrip()
            lines.append(line)
            if line.startswith(_LISTENING) and not listening.done():
                listening.set_result(int(line.rpartition(":")[2]))
    if not listening.done():
        listening.set_exception(EOFError())
