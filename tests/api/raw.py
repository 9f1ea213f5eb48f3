"""HTTP to the byte: what a well-behaved client library refuses to send, and what it does not show."""

import json
import select
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPResponse
from types import TracebackType
from typing import Any, Self

from tests.serving import FareboxServer, Payer

PATH = "/v1/chat/completions"
TIMEOUT_S = 30.0
JSON = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer as it stood on the wire, header names in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error object; the answer must be of the one shape that errors have."""
        assert self.header("content-type") == "application/json"
        content = json.loads(self.body)
        assert set(content) == {"error"}
        error: dict[str, Any] = content["error"]
        assert set(error) >= {"message", "type", "code", "param"}
        return error

    def header(self, name: str) -> str | None:
        """The header, which must not stand there twice."""
        found = [value for key, value in self.headers if key == name]
        assert len(found) <= 1
        return found[0] if found else None


class Connection:
    """One TCP connection to the server."""

    def __init__(self, farebox: FareboxServer) -> None:
        self._socket = socket.create_connection(("127.0.0.1", farebox.port), TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def answer(self, method: str = "POST") -> Answer:
        """Read one whole answer."""
        with HTTPResponse(self._socket, method=method) as response:
            response.begin()
            body = response.read()
            return Answer(response.status, [(name.lower(), value) for name, value in response.getheaders()], body)

    def read_until(self, marker: bytes) -> bytes:
        """Read until the marker has come; fails if the connection ends before."""
        seen = b""
        while marker not in seen:
            data = self._socket.recv(65_536)
            assert data, f"the connection ended first: {seen[-200:]!r}"
            seen += data
        return seen

    def rest(self) -> bytes:
        """Everything until the server closes the connection; fails if it does not."""
        seen = b""
        try:
            while data := self._socket.recv(65_536):
                seen += data
        except ConnectionError:
            # It was closed with something of ours unread.
            pass
        return seen

    def drip(self, data: bytes, *, every_s: float, times: int) -> bool:
        """Send the same bytes again and again until the server says something; whether it did."""
        for _ in range(times):
            if select.select([self._socket], [], [], every_s)[0]:
                return True
            try:
                self._socket.sendall(data)
            except ConnectionError:
                return True
        return False


def head(
    method: str = "POST", path: str = PATH, headers: Mapping[str, str] | None = None, *, lines: bytes = b""
) -> bytes:
    """A request head; ``lines`` are sent as they are."""
    named = {"Host": "127.0.0.1", **(headers or {})}
    written = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"{method} {path} HTTP/1.1\r\n{written}".encode() + lines + b"\r\n"


def post(payer: Payer, content: bytes, *, path: str = PATH, lines: bytes = b"") -> bytes:
    """A whole request with the payer's key."""
    headers = {**JSON, **payer.headers, "Content-Length": str(len(content))}
    return head("POST", path, headers, lines=lines) + content


def ask(farebox: FareboxServer, request: bytes, method: str = "POST") -> Answer:
    """One request on a connection of its own."""
    with Connection(farebox) as connection:
        connection.send(request)
        return connection.answer(method)


def chat(model: str, content: str = "What is the fare?", **parameters: Any) -> bytes:
    """A request body."""
    return json.dumps({"model": model, "messages": [{"role": "user", "content": content}], **parameters}).encode()


def assert_nothing_charged(farebox: FareboxServer, payer: Payer) -> None:
    """The payer has what it had, nothing is held, and the books are proven."""
    farebox.wait_settled(payer)
    account = farebox.balance(payer)
    assert (account["debits_posted"], account["debits_pending"]) == (0, 0)
    assert all(outcome["charged"] == 0 for outcome in farebox.outcomes(payer))
    farebox.assert_green()
