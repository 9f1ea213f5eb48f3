"""Requests, responses and events as the page shows them, made from the ones that went over the wire."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import httpx

from docs.payments.stand_ins import EXPIRY, StandIns, decoded

# Of many chunks alike, the first ones and the last are shown.
CHUNKS_BEFORE_GAP = 2
_REQUEST_HEADERS = ("Content-Type", "Authorization", "Accept-Payment", "Payment-Session", "Idempotency-Key")
_RESPONSE_HEADERS = (
    *("Content-Type", "Cache-Control", "Retry-After", "x-should-retry", "x-request-id", "x-farebox-provider"),
    *("x-farebox-cost", "x-farebox-max-tokens", "idempotent-replayed", "Allow", "Payment-Receipt", "WWW-Authenticate"),
)
_PARAMETER = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Event:
    """One server-sent event, or a comment, which has no data."""

    name: str
    data: str

    @property
    def json(self) -> Any:
        """Its data, decoded."""
        return json.loads(self.data)

    @property
    def is_content(self) -> bool:
        """Whether it is a chunk of the answer."""
        return self.name == "message" and self.data.startswith("{") and "choices" in self.json


def events_of(lines: Iterable[str]) -> Iterator[Event]:
    """The events of a stream, with its comments."""
    name, data = "message", ""
    for line in lines:
        if line.startswith(":"):
            yield Event("comment", line)
        elif line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            data = line.removeprefix("data: ")
        elif not line and data:
            yield Event(name, data)
            name, data = "message", ""


def parameters(header: str) -> dict[str, str]:
    """The parameters of one challenge, as they stand on the wire."""
    return {name: value.replace('\\"', '"') for name, value in _PARAMETER.findall(header)}


class Transcript:
    """Makes the page's blocks."""

    def __init__(self, stand_ins: StandIns) -> None:
        self.stand_ins = stand_ins

    def request(self, request: httpx.Request) -> str:
        """A request's head and body."""
        target = request.url.raw_path.decode()
        lines = [f"{request.method} {target} HTTP/1.1", f"Host: {self._host}"]
        for name in _REQUEST_HEADERS:
            if name.lower() in request.headers:
                value = request.headers[name]
                if name == "Authorization" and value.startswith("Payment "):
                    value = "Payment <base64url, decoded below>"
                lines.append(f"{name}: {value}")
        body = request.content.decode()
        if request.method == "POST" and not body:
            lines.append("Content-Length: 0")
        return self._fence("http", [*lines, *(["", body] if body else [])])

    def response(self, response: httpx.Response, *, body: bool = True, challenges: int | None = None) -> str:
        """A response's head, and its body unless it is a stream; of ``challenges`` the first so many."""
        lines = [f"HTTP/1.1 {response.status_code} {HTTPStatus(response.status_code).phrase}"]
        for name in _RESPONSE_HEADERS:
            values = response.headers.get_list(name)
            shown = values[:challenges] if name == "WWW-Authenticate" else values
            lines += [line for value in shown for line in self._header(name, value)]
        if body and response.content:
            lines += ["", self.stand_ins.json(response.json())]
        return self._fence("http", lines)

    def credential(self, request: httpx.Request) -> str:
        """A request's credential, decoded."""
        return self.decoded(request.headers["authorization"].removeprefix("Payment "))

    def payload(self, request: httpx.Request) -> str:
        """The payload alone of a request's credential."""
        credential = decoded(request.headers["authorization"].removeprefix("Payment "))
        return self.json(credential["payload"])

    def receipt(self, response: httpx.Response) -> str:
        """The receipt in a response's head, decoded."""
        return self.decoded(response.headers["payment-receipt"])

    def decoded(self, text: str) -> str:
        """The JSON in a base64url text."""
        return self.json(decoded(text))

    def json(self, value: Any) -> str:
        """A JSON value."""
        return self._fence("json", [self.stand_ins.json(value)])

    def events(self, events: Sequence[Event], *, comments: bool = False) -> str:
        """Part of a stream. Comments are left out, or shown once: how many there are is a matter of time."""
        lines: list[str] = []
        kept = [event for event in events if comments or event.name != "comment"]
        position = 0
        while position < len(kept):
            event = kept[position]
            run = _run_of(kept, position)
            position += len(run)
            if event.name == "comment":
                lines += [event.data, ""]
            elif len(run) > CHUNKS_BEFORE_GAP + 2:
                left = len(run) - CHUNKS_BEFORE_GAP - 1
                for each in run[:CHUNKS_BEFORE_GAP]:
                    lines += self._event(each)
                lines += [f"[{left} more chunks like these]", "", *self._event(run[-1])]
            else:
                for each in run:
                    lines += self._event(each)
        return self._fence("text", lines[:-1])

    def line(self, event: Event) -> str:
        """One event's data on a line."""
        return self.stand_ins.json(event.json, indent=None)

    _host = "api.example.com"

    def _event(self, event: Event) -> list[str]:
        data = event.data if event.data == "[DONE]" else self.line(event)
        return [*([f"event: {event.name}"] if event.name != "message" else []), f"data: {data}", ""]

    def _header(self, name: str, value: str) -> list[str]:
        if name == "WWW-Authenticate" and value.startswith("Payment "):
            return self._challenge(value)
        if name == "Payment-Receipt":
            value = "<base64url, decoded below>"
        if name == "x-request-id":
            value = self.stand_ins.numbered("request", value)
        return [f"{name}: {value}"]

    def _challenge(self, header: str) -> list[str]:
        """A challenge on several lines; its parameters in the order of the wire."""
        lines = []
        for name, value in parameters(header).items():
            shown = {"id": self.stand_ins.numbered("challenge", value)} if name == "id" else {"expires": EXPIRY}
            if name in {"request", "opaque"}:
                shown[name] = "<base64url, decoded below>"
            lines.append(f'    {name}="{shown.get(name, value)}"')
        return ["WWW-Authenticate: Payment", *[line + "," for line in lines[:-1]], lines[-1]]

    def _fence(self, kind: str, lines: Sequence[str]) -> str:
        return self.stand_ins.text("\n".join([f"```{kind}", *lines, "```"]))


def _run_of(events: Sequence[Event], start: int) -> Sequence[Event]:
    """The chunks alike, or the comments, that stand together; any other event stands alone."""
    first = events[start]
    end = start + 1
    while end < len(events) and (
        (first.name == "comment" and events[end].name == "comment") or (_plain(first) and _plain(events[end]))
    ):
        end += 1
    return events[start:end]


def _plain(event: Event) -> bool:
    """A chunk that only carries text."""
    if not event.is_content:
        return False
    choices = event.json["choices"]
    return bool(choices) and choices[0].get("finish_reason") is None and "role" not in choices[0]["delta"]
