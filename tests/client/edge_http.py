"""How the strict edge writes to its socket."""

import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

from mpp import Receipt

Send = Callable[[dict[str, Any]], Awaitable[None]]
Receive = Callable[[], Awaitable[dict[str, Any]]]


def header(receipt: dict[str, Any]) -> bytes:
    """A receipt's header."""
    names = ("intent", "challengeId", "channelId", "acceptedCumulative", "spent", "units", "txHash")
    stamp = datetime.fromisoformat(receipt["timestamp"].replace("Z", "+00:00"))
    extensions = {name: receipt[name] for name in names if name in receipt}
    header = Receipt("success", stamp, receipt["reference"], extensions=extensions).to_payment_receipt()
    return header.encode()


async def event(send: Send, name: str | None, data: dict[str, Any]) -> None:
    """Send one event of a stream."""
    text = f"event: {name}\n" if name else ""
    body = f"{text}data: {json.dumps(data)}\n\n".encode()
    await send({"type": "http.response.body", "body": body, "more_body": True})


async def answer(send: Send, status: int, document: Any, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    """Send a whole response."""
    body = b"" if document is None else json.dumps(document).encode()
    kind = b"application/json" if status < 400 else b"application/problem+json"
    lines = [(b"content-type", kind), (b"cache-control", b"no-store"), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": lines})
    await send({"type": "http.response.body", "body": body})
