"""A client that knows exactly what it received: one connection a request, and every byte kept.

Ordinary clients drop what they have not yet handed on when a connection breaks. Here a broken connection
ends an answer, and what came before it counts as seen.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any, Self

from tests.serving import Payer

DONE = b"[DONE]"
ANSWER_TIMEOUT_S = 60
TOKEN_BYTES = 4
# What `tests.serving` configures, in nano-USD a token.
INPUT_PRICE = 1_000
OUTPUT_PRICE = 4_000


def chat(script: str, *, stream: bool = False, **more: Any) -> dict[str, Any]:
    """A body for the sandbox; streams show their usage."""
    body = {"model": "sandbox", "messages": [{"role": "user", "content": f"hello [[sandbox {script}]]"}], **more}
    return {**body, "stream": True, "stream_options": {"include_usage": True}} if stream else body


@dataclass(slots=True)
class Seen:
    """What one request's client received."""

    stream: bool = False
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    texts: dict[int, str] = field(default_factory=dict)
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    done: bool = False
    left: bool = False

    @property
    def request_id(self) -> str | None:
        return self.headers.get("x-request-id")

    @property
    def replayed(self) -> bool:
        return self.headers.get("idempotent-replayed") == "true"

    @property
    def whole(self) -> bool:
        """Whether a good answer was received to its end."""
        return self.status == 200 and self.done

    @property
    def tokens(self) -> int:
        """The sandbox's tokens of the text that was received: each begun 4 bytes of a choice."""
        return sum(-(-len(text.encode()) // TOKEN_BYTES) for text in self.texts.values())

    def take(self, data: bytes) -> None:
        """One event of a stream."""
        if data == DONE:
            self.done = True
            return
        event = json.loads(data)
        self.error = event.get("error", self.error)
        self.usage = event.get("usage") or self.usage
        for choice in event.get("choices", ()):
            self.say(choice["index"], choice["delta"])

    def take_whole(self, body: bytes) -> None:
        """A whole body."""
        answer = json.loads(body)
        self.done = "error" not in answer
        self.error, self.usage = answer.get("error"), answer.get("usage")
        for choice in answer.get("choices", ()):
            self.say(choice["index"], choice["message"])

    def say(self, index: int, words: dict[str, Any]) -> None:
        """Part of a choice."""
        self.texts[index] = self.texts.get(index, "") + (words.get("content") or "")


class Exchange:
    """One request on a connection of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, stream: bool) -> None:
        self.seen = Seen(stream=stream)
        self.reader = reader
        self.writer = writer
        self._reads = self._read()

    @classmethod
    async def send(
        cls, port: int, payer: Payer, body: dict[str, Any], *, key: str | None = None, buffer_bytes: int | None = None
    ) -> Self:
        """Connect and send the whole request. Raises `OSError` if nobody listens."""
        connection = socket.socket()
        connection.setblocking(False)
        if buffer_bytes is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        try:
            await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", port))
        except OSError:
            connection.close()
            raise
        reader, writer = await asyncio.open_connection(sock=connection, limit=2**20 if buffer_bytes is None else 2**12)
        exchange = cls(reader, writer, stream=bool(body.get("stream")))
        exchange.write(payer, body, key=key)
        return exchange

    def write(self, payer: Payer, body: dict[str, Any], *, key: str | None = None) -> None:
        """Send a request on the connection."""
        content = json.dumps(body).encode()
        lines = [
            "POST /v1/chat/completions HTTP/1.1",
            "Host: 127.0.0.1",
            f"Authorization: Bearer {payer.key}",
            "Content-Type: application/json",
            f"Content-Length: {len(content)}",
            *([f"Idempotency-Key: {key}"] if key else []),
        ]
        self.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + content)

    def reads(self) -> AsyncGenerator[Seen, None]:
        """Read on, giving what was seen after each read. Raises what a broken connection raises."""
        return self._reads

    async def _read(self) -> AsyncGenerator[Seen, None]:
        seen = self.seen
        await self._head()
        if "content-length" in seen.headers:
            size = int(seen.headers["content-length"])
            while len(seen.body) < size:
                seen.body += await self._some(size - len(seen.body))
            seen.take_whole(seen.body)
            yield seen
            return
        waiting = b""
        while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
            while size:
                piece = await self._some(size)
                size -= len(piece)
                seen.body += piece
                *events, waiting = (waiting + piece).split(b"\n\n")
                for event in events:
                    if event.startswith(b"data: "):
                        seen.take(event.removeprefix(b"data: "))
                yield seen
            await self.reader.readexactly(2)

    async def finish(self) -> Seen:
        """Read to the end, however it ends."""
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                async for _ in self.reads():
                    pass
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            await self.leave(quietly=True)
        return self.seen

    async def first(self) -> Seen:
        """Read until there is some text."""
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            async for seen in self.reads():
                if any(seen.texts.values()):
                    return seen
        raise AssertionError(f"the answer ended without text: {self.seen}")

    async def leave(self, *, quietly: bool = False) -> None:
        """Break the connection: at once, unless ``quietly``."""
        await self._reads.aclose()
        if not quietly:
            self.seen.left = True
            self.writer.transport.abort()
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def _head(self) -> None:
        head = await self.reader.readuntil(b"\r\n\r\n")
        status, *lines = head.decode("latin-1").rstrip().split("\r\n")
        self.seen.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines) if name}
        self.seen.status = int(status.split()[1])

    async def _some(self, size: int) -> bytes:
        data = await self.reader.read(size)
        if not data:
            raise asyncio.IncompleteReadError(b"", size)
        return data


async def ask(port: int, payer: Payer, body: dict[str, Any], *, key: str | None = None) -> Seen:
    """Send one request and read whatever comes back."""
    try:
        exchange = await Exchange.send(port, payer, body, key=key)
    except OSError:
        return Seen(stream=bool(body.get("stream")))
    return await exchange.finish()


def price(*, prompt_tokens: int, completion_tokens: int) -> int:
    """What usage costs, reckoned here once more, in nano-USD."""
    return prompt_tokens * INPUT_PRICE + completion_tokens * OUTPUT_PRICE


def shown_price(seen: Seen) -> int:
    """What the usage that a client was shown costs."""
    assert seen.usage is not None, seen
    return price(prompt_tokens=seen.usage["prompt_tokens"], completion_tokens=seen.usage["completion_tokens"])


def assert_billed(seen: Seen, row: dict[str, Any]) -> None:
    """A whole answer has this one outcome, charged as it was shown."""
    assert row["status"] == "completed", (row, seen.headers)
    assert row["charged"] == row["price"] == shown_price(seen), (row, seen.usage)
    assert seen.usage is not None
    assert round(seen.usage["cost"] * 10**9) == row["charged"], (row, seen.usage)
    assert seen.usage["completion_tokens"] == seen.tokens, (row, seen)
