"""A wallet in front of a real Farebox process: unpaid, challenged, and then whatever a test wants to send.

Nothing here is clever, so that a test can also do what no honest client would.
"""

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
from mpp import Challenge, Credential

from app.chain.backend import Offer
from app.chain.registry import offer_of
from app.mpp.descriptor import Descriptor
from app.settings import ChannelSettings
from tests.chain.wallet import Opening, Wallet
from tests.serving import FareboxServer

PATH = "/v1/chat/completions"
MODEL = "sandbox/echo"
FUNDS = 100_000_000
DEPOSIT = 1_000_000
TIMEOUT_S = 60


def channel_settings(chain: Any, backend: str = "tempo-v2", **changes: Any) -> dict[str, Any]:
    """A ``[[mpp.channels]]`` entry for a local chain."""
    escrow = chain.escrow_v2 if backend == "tempo-v2" else chain.escrow_v1
    entry = {
        "backend": backend,
        "chain_id": chain.chain_id,
        "rpc_url": chain.rpc_url,
        "escrow": escrow.lower(),
        "currency": chain.token.lower(),
    }
    return {**entry, **changes}


def paid_server(
    folder: Path,
    chain: Any,
    *,
    database_url: str,
    backends: Sequence[str] = ("tempo-v2", "tempo-v1"),
    mpp: Mapping[str, Any] | None = None,
    channel: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    **sections: Any,
) -> FareboxServer:
    """A server that is paid on a local chain, with the chain's operator as the payee. Not started."""
    settings = {
        "realm": "test.farebox.example",
        "watch_every_s": 0.2,
        "channels": [channel_settings(chain, backend, **(channel or {})) for backend in backends],
        **(mpp or {}),
    }
    keys = {
        "FAREBOX_MPP_SECRET": "a-challenge-secret-of-thirty-two-bytes-and-more",
        "FAREBOX_PAYEE_KEY": chain.accounts[0].private_key,
        **(environ or {}),
    }
    return FareboxServer(folder, database_url=database_url, mpp=settings, environ=keys, **sections)


def offer_on(chain: Any, backend: str = "tempo-v2", *, payee: str | None = None, **changes: Any) -> Offer:
    """What a server of `paid_server` offers; ``payee`` where it is not the chain's operator."""
    settings = ChannelSettings.model_validate(channel_settings(chain, backend, **changes))
    return offer_of(settings, account=(payee or chain.accounts[0].address).lower())


def chat(text: str = "hello", **changes: Any) -> bytes:
    """A chat request's body."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": text}], **changes}
    return json.dumps(body).encode()


@dataclass(frozen=True)
class Event:
    """One server-sent event."""

    name: str
    data: str

    @property
    def json(self) -> Any:
        """Its data, decoded."""
        return json.loads(self.data)


def events_of(lines: Iterator[str]) -> Iterator[Event]:
    """The events of a stream, comments left out."""
    name, data = "message", []
    for line in lines:
        if line.startswith("event: "):
            name = line[7:]
        elif line.startswith("data: "):
            data.append(line[6:])
        elif not line and data:
            yield Event(name, "\n".join(data))
            name, data = "message", []


def receipt_of(response: httpx.Response) -> dict[str, Any]:
    """The receipt in a response's head."""
    text = response.headers["payment-receipt"]
    receipt: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return receipt


def challenges_of(response: httpx.Response) -> list[Challenge]:
    """The challenges of a 402."""
    values = response.headers.get_list("www-authenticate")
    return [Challenge.from_www_authenticate(value) for value in values if value.startswith("Payment ")]


@dataclass
class PayingWallet:
    """One wallet, one channel, one server."""

    server: FareboxServer
    wallet: Wallet
    http: httpx.Client
    opening: Opening | None = None
    cumulative: int = 0
    path: str = PATH
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def on(cls, server: FareboxServer, chain: Any, backend: str = "tempo-v2", **changes: Any) -> Self:
        """A funded wallet with no channel yet."""
        wallet = Wallet(offer_on(chain, backend, **changes))
        chain.fund(wallet.address, FUNDS)
        return cls(server, wallet, httpx.Client(base_url=server.url, timeout=TIMEOUT_S))

    @property
    def channel_id(self) -> str:
        """The channel's id."""
        if self.opening is None:
            raise RuntimeError("no channel was opened")
        return self.opening.channel_id

    @property
    def descriptor(self) -> Descriptor:
        """The channel's descriptor."""
        if self.opening is None:
            raise RuntimeError("no channel was opened")
        return self.opening.descriptor

    def unpaid(self, body: bytes, *, method: str = "POST", **headers: str) -> httpx.Response:
        """Ask without a credential."""
        kind = {"content-type": "application/json"} if body else {}
        return self.http.request(method, self.path, content=body, headers={**kind, **self.headers, **headers})

    def challenge(self, body: bytes, **headers: str) -> Challenge:
        """The challenge of this wallet's protocol."""
        response = self.unpaid(body, **headers)
        assert response.status_code == 402, response.text
        return self.pick(response)

    def pick(self, response: httpx.Response) -> Challenge:
        """This wallet's among the challenges of a 402."""
        offer = self.wallet.offer
        for challenge in challenges_of(response):
            details = challenge.request["methodDetails"]
            if challenge.method == offer.method and details["escrowContract"] == offer.escrow:
                return challenge
        raise AssertionError(f"no challenge for {offer.backend} in {response.headers}")

    def credential(self, challenge: Challenge, payload: Mapping[str, Any], *, source: str | None = None) -> str:
        """The value of ``Authorization``."""
        return Credential(challenge.to_echo(), dict(payload), source or self.wallet.source).to_authorization()

    def open_payload(self, deposit: int = DEPOSIT, *, amount: int = 1, **changes: Any) -> dict[str, Any]:
        """Sign an open of this wallet's channel."""
        v2 = self.wallet.offer.protocol == "v2"
        self.opening = self.wallet.open_v2(deposit, **changes) if v2 else self.wallet.open_v1(deposit, **changes)
        self.cumulative = amount
        signature = self.wallet.voucher(self.opening.channel_id, amount)
        return {**self.opening.payload, "cumulativeAmount": str(amount), "signature": signature}

    def voucher_payload(self, amount: int, *, action: str = "voucher", key: str | None = None) -> dict[str, Any]:
        """A voucher, or the close that carries one."""
        payload: dict[str, Any] = {
            "action": action,
            "channelId": self.channel_id,
            "cumulativeAmount": str(amount),
            "signature": self.wallet.voucher(self.channel_id, amount, key=key),
        }
        if self.wallet.offer.protocol == "v2":
            payload["descriptor"] = self.descriptor.to_wire()
        return payload

    def send(
        self, body: bytes, challenge: Challenge, payload: Mapping[str, Any], *, method: str = "POST", **headers: str
    ) -> httpx.Response:
        """Send a credential, with a body or without."""
        kind = {"content-type": "application/json"} if body else {}
        authorization = {"authorization": self.credential(challenge, payload)}
        return self.http.request(method, self.path, content=body, headers={**kind, **authorization, **headers})

    def open(self, deposit: int = DEPOSIT, *, amount: int = 1) -> httpx.Response:
        """Open the channel without content."""
        challenge = self.challenge(b"")
        return self.send(b"", challenge, self.open_payload(deposit, amount=amount))

    def update(self, amount: int, challenge: Challenge | None = None) -> httpx.Response:
        """Send a voucher without content."""
        self.cumulative = max(self.cumulative, amount)
        return self.send(b"", challenge or self.challenge(b""), self.voucher_payload(amount))

    def top_up(self, amount: int) -> httpx.Response:
        """Add to the deposit."""
        if self.opening is None:
            raise RuntimeError("no channel was opened")
        v2 = self.wallet.offer.protocol == "v2"
        build = self.wallet.top_up_v2 if v2 else self.wallet.top_up_v1
        return self.send(b"", self.challenge(b""), build(self.opening, amount))

    def close(self, amount: int | None = None) -> httpx.Response:
        """Close the channel."""
        payload = self.voucher_payload(self.cumulative if amount is None else amount, action="close")
        return self.send(b"", self.challenge(b""), payload)

    def complete(self, body: bytes, **headers: str) -> httpx.Response:
        """A whole answer: pay what each 402 asks until it is there, as clients do."""
        response = self.unpaid(body, **headers)
        for _ in range(3):
            if response.status_code != 402:
                break
            challenge = self.pick(response)
            self.cumulative += int(challenge.request["amount"])
            response = self.send(body, challenge, self.voucher_payload(self.cumulative), **headers)
        return response

    @contextmanager
    def streaming(
        self, body: bytes, challenge: Challenge, payload: Mapping[str, Any]
    ) -> Iterator[tuple[httpx.Response, Iterator[Event]]]:
        """A stream whose events the caller reads."""
        headers = {"content-type": "application/json", "authorization": self.credential(challenge, payload)}
        with self.http.stream("POST", self.path, content=body, headers=headers) as response:
            yield response, events_of(response.iter_lines())

    def stream(self, body: bytes, *, payload: Mapping[str, Any] | None = None, ahead: int = 0) -> "Streamed":
        """A stream to its end, paying whenever it pauses; ``ahead`` base units more than asked."""
        challenge = self.challenge(body)
        if payload is None:
            self.cumulative += int(challenge.request["amount"])
            payload = self.voucher_payload(self.cumulative)
        seen: list[Event] = []
        with self.streaming(body, challenge, payload) as (response, events):
            assert response.status_code == 200, response.read()
            for event in events:
                seen.append(event)
                if event.name == "payment-need-voucher":
                    self.answer(event, challenge, ahead=ahead)
        return Streamed(seen, response.headers)

    def answer(self, event: Event, challenge: Challenge, *, ahead: int = 0) -> httpx.Response:
        """Do what a pause asks for: top up if it must be, then sign."""
        required, deposit = int(event.json["requiredCumulative"]), int(event.json["deposit"])
        if required > deposit:
            topped = self.top_up(max(DEPOSIT, required - deposit))
            assert topped.status_code == 200, topped.text
        answer = self.update(required + ahead, challenge)
        assert answer.status_code == 200, answer.text
        return answer

    def state(self) -> dict[str, Any]:
        """``GET /v1/channels/{id}``, proven."""
        challenge = self.challenge(b"")
        headers = {"authorization": self.credential(challenge, self.voucher_payload(self.cumulative))}
        response = self.http.get(f"/v1/channels/{self.channel_id}", headers=headers)
        assert response.status_code == 200, response.text
        state: dict[str, Any] = response.json()
        return state


@dataclass(frozen=True)
class Streamed:
    """A stream that was read to its end."""

    events: list[Event]
    headers: httpx.Headers

    @property
    def receipt(self) -> dict[str, Any]:
        """The last receipt."""
        found: dict[str, Any] = [event.json for event in self.events if event.name == "payment-receipt"][-1]
        return found

    @property
    def pauses(self) -> int:
        """How often it waited for a voucher."""
        return sum(event.name == "payment-need-voucher" for event in self.events)

    @property
    def text(self) -> str:
        """The answer's text."""
        said = [event.json for event in self.events if event.name == "message" and event.data != "[DONE]"]
        choices = [choice for each in said for choice in each.get("choices", [])]
        return "".join(choice.get("delta", {}).get("content") or "" for choice in choices)

    @property
    def error(self) -> dict[str, Any] | None:
        """The error that ended it."""
        for event in self.events:
            if event.name == "message" and event.data != "[DONE]" and "error" in event.json:
                found: dict[str, Any] = event.json["error"]
                return found
        return None
