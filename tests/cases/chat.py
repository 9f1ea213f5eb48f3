"""Paid requests as a plain HTTP client makes them, and what each must cost, counted without the product.

Money is counted here from the prices as an operator writes them (`tests.serving.PRICE`), so that an
error in the product's arithmetic cannot hide behind itself.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

import httpx

from tests.serving import ADMIN_TOKEN, PRICE, FareboxServer, Payer

PATH = "/v1/chat/completions"
TIMEOUT_S = 30
# 32 bytes: 8 tokens, by the ratio of a model of which nothing was learned.
PROMPT = "What is the fare to the harbour?"
PROMPT_TOKENS = 8
BYTES_PER_TOKEN = 4
NANO_USD_PER_TOKEN = {unit: int(Decimal(text) * 1000) for unit, text in PRICE.items()}


def owed(*, prompt: int = 0, output: int = 0, cached: int = 0, reasoning: int = 0) -> int:
    """Nano-USD for tokens counted apart: ``prompt`` without what was cached, ``output`` without reasoning."""
    price = NANO_USD_PER_TOKEN
    return (
        prompt * price["input"]
        + cached * price["cached_input"]
        + output * price["output"]
        + reasoning * price["reasoning"]
    )


def estimated(text: str) -> int:
    """Nano-USD for `PROMPT` and this much text where no provider reported usage."""
    return owed(prompt=PROMPT_TOKENS, output=-(-len(text.encode()) // BYTES_PER_TOKEN))


def body(model: str, content: str = PROMPT, **parameters: Any) -> dict[str, Any]:
    """A request body."""
    return {"model": model, "messages": [{"role": "user", "content": content}], **parameters}


def usd(amount: int) -> str:
    """Nano-USD as the API writes it."""
    return f"{Decimal(amount).scaleb(-9).normalize():f}"


@dataclass
class Stream:
    """What a client received of a stream so far."""

    status: int
    headers: httpx.Headers
    raw: bytes = b""
    _read: int = field(default=0, repr=False)
    _source: Iterator[bytes] = field(default_factory=lambda: iter(()), repr=False)

    @property
    def done(self) -> bool:
        """Whether it ended as a success does."""
        return self.raw.endswith(b"data: [DONE]\n\n")

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events but the last marker; every one must be complete and unnamed."""
        parts = self.raw.split(b"\n\n")
        assert parts.pop() == b""
        shown = [part for part in parts if not part.startswith(b":")]
        assert all(part.startswith(b"data: ") and b"\n" not in part for part in shown)
        return [json.loads(part[6:]) for part in shown if part != b"data: [DONE]"]

    @property
    def text(self) -> str:
        """The content of the first choice."""
        choices = [choice for event in self.events for choice in event.get("choices", ())]
        return "".join(choice["delta"].get("content") or "" for choice in choices)

    @property
    def error(self) -> dict[str, Any] | None:
        """The error that ended the stream, if one did."""
        found = [event["error"] for event in self.events if "error" in event]
        return found[0] if found else None

    @property
    def usage(self) -> dict[str, Any] | None:
        """The usage that was shown, if any."""
        found = [event["usage"] for event in self.events if event.get("usage")]
        return found[-1] if found else None

    def read_until(self, seen: Callable[["Stream"], bool]) -> "Stream":
        """Read on until something was seen; fails if the stream ends before."""
        for block in self._source:
            self.raw += block
            if self.raw.endswith(b"\n\n") and seen(self):
                return self
        raise AssertionError(f"the stream ended first: {self.raw[-500:]!r}")

    def read_all(self) -> "Stream":
        """Read to the end."""
        self.raw += b"".join(self._source)
        return self


@contextmanager
def streaming(
    farebox: FareboxServer, payer: Payer, model: str, *, headers: Mapping[str, str] | None = None, **parameters: Any
) -> Iterator[Stream]:
    """A stream that is being read; leaving the context closes the connection, read to its end or not."""
    sent = body(model, **{"stream": True, **parameters})
    with (
        httpx.Client(timeout=TIMEOUT_S) as client,
        client.stream("POST", farebox.url + PATH, json=sent, headers={**payer.headers, **(headers or {})}) as response,
    ):
        yield Stream(response.status_code, response.headers, _source=response.iter_bytes())


def stream(farebox: FareboxServer, payer: Payer, model: str, **parameters: Any) -> Stream:
    """A stream, read to its end."""
    with streaming(farebox, payer, model, **parameters) as found:
        return found.read_all()


def whole(
    farebox: FareboxServer, payer: Payer, model: str, *, headers: Mapping[str, str] | None = None, **parameters: Any
) -> httpx.Response:
    """A whole answer."""
    return httpx.post(
        farebox.url + PATH,
        json=body(model, **parameters),
        headers={**payer.headers, **(headers or {})},
        timeout=TIMEOUT_S,
    )


def charge(farebox: FareboxServer, payer: Payer) -> int:
    """Nano-USD charged for the payer's only request; its books and its balance must say the same."""
    farebox.wait_settled(payer, requests=1)
    (outcome,) = farebox.outcomes(payer)
    account = farebox.balance(payer)
    assert account["debits_posted"] == outcome["charged"]
    assert account["debits_pending"] == 0
    charged: int = outcome["charged"]
    return charged


def attempts(farebox: FareboxServer, payer: Payer) -> list[tuple[str, str]]:
    """Provider and result of every attempt for this payer, in order."""
    rows = farebox.rows(
        "SELECT a.provider, a.result FROM attempts a JOIN requests r ON r.id = a.request_id "
        "WHERE r.account_id = :id ORDER BY r.created_at_ms, r.id, a.number",
        id=f"customer:{payer.customer_id}",
    )
    return [(row["provider"], row["result"]) for row in rows]


def alerts(farebox: FareboxServer, kind: str) -> float:
    """How often the operator was alerted to this."""
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    text = httpx.get(f"{farebox.url}/metrics", headers=headers, timeout=TIMEOUT_S).raise_for_status().text
    name = f'farebox_alerts_total{{kind="{kind}"}} '
    return sum(float(line.removeprefix(name)) for line in text.splitlines() if line.startswith(name))


def eventually(condition: Callable[[], bool], *, timeout_s: float = 20) -> None:
    """Wait for what another process is about to do."""
    ends, pause = time.monotonic() + timeout_s, threading.Event()
    while not condition():
        assert time.monotonic() < ends, "it did not happen"
        pause.wait(0.01)
