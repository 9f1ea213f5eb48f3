"""What the flow is played on: local chains, a real server that is paid on them, and wallets with fixed keys."""

import tempfile
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
from mpp import Challenge

from app.chain import abi
from app.devnet import Devnet, DevnetThread, EvmDevnet
from app.mpp.challenge import Challenges
from app.mpp.descriptor import ZERO_ADDRESS, Descriptor
from docs.payments.transcript import Event, events_of
from tests.chain.wallet import Opening, Wallet, evm_nonce
from tests.serving import FareboxServer, model, sandbox
from tests.sessions import TIMEOUT_S, PayingWallet, channel_settings, offer_on, paid_server, receipt_of

REALM = "api.example.com"
CHALLENGE_KEY = "a-challenge-secret-of-thirty-two-bytes-and-more"
# The default is a minute: nobody wants to wait for it here.
VOUCHER_TIMEOUT_S = 5
SILENCE_COMMENT_S = 0.3
# USD per million tokens, which is base units per token; small windows make short examples.
PRICE = {"input": "1.00", "output": "4.00"}
WINDOW_TOKENS = 128
FUNDS = 100_000_000
READY_TRIES_MAX = 300
READY_PAUSE_S = 0.1
_EVM_GAS = 10**18
_TOKEN = {"token_name": "Test USD"}
_OPEN_TYPES = ("address", "address", "address", "bytes32", "address")


def chat(text: str, *, stream: bool = False, max_tokens: int | None = None, usage: bool = False) -> bytes:
    """A request's body, written as people write it: the digest is of these bytes."""
    options = f', "max_tokens": {max_tokens}' if max_tokens else ""
    if stream:
        options += ', "stream": true' + (', "stream_options": {"include_usage": true}' if usage else "")
    return f'{{"model": "sandbox/echo", "messages": [{{"role": "user", "content": "{text}"}}]{options}}}'.encode()


@dataclass
class LiveStream:
    """A paid stream that is read as far as the play has come."""

    response: httpx.Response
    _events: Iterator[Event]
    seen: list[Event] = field(default_factory=list)

    def until(self, name: str) -> list[Event]:
        """The events up to the next one of that name, with it."""
        found: list[Event] = []
        for event in self._events:
            found.append(event)
            self.seen.append(event)
            if event.name == name:
                return found
        raise RuntimeError(f"the stream ended without {name}: {self.seen[-2:]}")

    def rest(self) -> list[Event]:
        """All that is left."""
        found = list(self._events)
        self.seen += found
        return found

    @property
    def receipt(self) -> dict[str, Any]:
        """The last receipt."""
        found: dict[str, Any] = [event.json for event in self.seen if event.name == "payment-receipt"][-1]
        return found


@dataclass
class Actor(PayingWallet):
    """A wallet whose streams are read step by step, and whose funding on plain EVM is its own."""

    evm: Any = None

    @contextmanager
    def listening(self, body: bytes, challenge: Challenge, payload: Mapping[str, Any]) -> Iterator[LiveStream]:
        """A paid stream."""
        headers = {"content-type": "application/json", "authorization": self.credential(challenge, payload)}
        with self.http.stream("POST", self.path, content=body, headers=headers) as response:
            if response.status_code != 200:
                raise RuntimeError(f"{response.status_code}: {response.read().decode()}")
            yield LiveStream(response, events_of(response.iter_lines()))

    def pay(self, body: bytes, amount: int, **headers: str) -> httpx.Response:
        """Ask, and pay with a voucher of ``amount``."""
        self.cumulative = amount
        return self.send(body, self.challenge(body, **headers), self.voucher_payload(amount), **headers)

    def finished(self, body: bytes, payload: Mapping[str, Any]) -> LiveStream:
        """A stream to its end, paying what it asks for."""
        challenge = self.challenge(body)
        with self.listening(body, challenge, payload) as live:
            for event in live._events:
                live.seen.append(event)
                if event.name == "payment-need-voucher":
                    self.update(int(event.json["requiredCumulative"]), challenge)
        return live

    def spent(self) -> int:
        """What the channel was charged in all, by the receipt of an equal voucher."""
        return int(receipt_of(self.update(self.cumulative))["spent"])

    # A plain EVM chain, where the client broadcasts by itself.

    def open_on_evm(self, deposit: int) -> dict[str, Any]:
        """Approve and open; the payload that names the transaction."""
        offer, descriptor = self.wallet.offer, self._described()
        nonce = int(self.evm.rpc("eth_getTransactionCount", self.wallet.address, "latest"), 16)
        self._broadcast(offer.currency, abi.APPROVE.call(offer.escrow, deposit), nonce)
        salt = bytes.fromhex(descriptor.salt[2:])
        call = abi.V1_OPEN.call(offer.recipient, offer.currency, deposit, salt, descriptor.authorized_signer)
        tx_hash = self._broadcast(offer.escrow, call, nonce + 1)
        return self._opening(descriptor, {"type": "hash", "hash": tx_hash}, signature="signature")

    def authorized_on_evm(self, deposit: int) -> dict[str, Any]:
        """The payload with an EIP-3009 authorization, which the server carries to the chain."""
        descriptor = self._described()
        values = (descriptor.payer, descriptor.payee, descriptor.token, bytes.fromhex(descriptor.salt[2:]))
        nonce = evm_nonce(_OPEN_TYPES, (*values, descriptor.authorized_signer))
        authorization, signature = self.wallet.authorize(deposit, nonce, **_TOKEN)
        fields = {"type": "authorization", "authorization": authorization, "signature": signature}
        return self._opening(descriptor, fields, signature="voucherSignature")

    def _described(self) -> Descriptor:
        offer = self.wallet.offer
        salt = "0x" + evm_nonce(("uint256",), (int(self.wallet.key, 16),)).hex()
        return Descriptor(
            payer=self.wallet.address,
            payee=offer.recipient,
            token=offer.currency,
            salt=salt,
            authorized_signer=ZERO_ADDRESS,
        )

    def _opening(self, descriptor: Descriptor, fields: Mapping[str, Any], *, signature: str) -> dict[str, Any]:
        offer = self.wallet.offer
        channel_id = descriptor.channel_id(protocol="v1", escrow=offer.escrow, chain_id=offer.chain_id)
        payload = {
            "action": "open",
            **fields,
            "channelId": channel_id,
            "salt": descriptor.salt,
            "cumulativeAmount": "1",
            signature: self.wallet.voucher(channel_id, 1),
        }
        self.opening, self.cumulative = Opening(payload, descriptor, channel_id), 1
        return payload

    def _broadcast(self, to: str, data: bytes, nonce: int) -> str:
        raw = self.wallet.sign_evm(to, data, nonce=nonce)
        return str(self.evm.rpc("eth_sendRawTransaction", "0x" + raw.hex()))


@dataclass
class Stage:
    """A server, its chains, and who plays."""

    server: FareboxServer
    tempo: DevnetThread[Devnet]
    evm: DevnetThread[EvmDevnet]
    _players: int = 0

    def actor(self, backend: str = "tempo-v2") -> Actor:
        """A new wallet with a fixed key and money."""
        self._players += 1
        on_evm = backend == "evm"
        chain: Any = self.evm if on_evm else self.tempo
        key = f"0x{self._players:064x}"
        changes: dict[str, Any] = {"eip3009": True, "fee_payer": True} if on_evm else {}
        wallet = Wallet(offer_on(chain, backend, **changes), key)
        chain.fund(wallet.address, FUNDS)
        if on_evm:
            chain.rpc("anvil_setBalance", wallet.address, hex(_EVM_GAS))
        http = httpx.Client(base_url=self.server.url, timeout=TIMEOUT_S)
        return Actor(self.server, wallet, http, evm=self.evm if on_evm else None)

    def chain_balance(self, address: str) -> int:
        """What an account has on the Tempo chain."""
        return self.tempo.balance(address)


def own_challenges() -> Challenges:
    """The server's own, made outside: one that has expired would be waited for otherwise."""
    return Challenges(realm=REALM, secret=CHALLENGE_KEY)


@contextmanager
def stage() -> Iterator[Stage]:
    """Everything started; ended afterwards."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="farebox-docs-")))
        tempo, evm = _chains(stack)
        settings = {
            "realm": REALM,
            "watch_every_s": 0.2,
            "voucher_timeout_s": VOUCHER_TIMEOUT_S,
            "channels": [
                channel_settings(tempo, "tempo-v2"),
                channel_settings(tempo, "tempo-v1"),
                channel_settings(evm, "evm", eip3009=True, fee_payer=True),
            ],
        }
        server = paid_server(
            folder,
            tempo,
            database_url=f"sqlite:///{folder}/farebox.db",
            mpp=settings,
            environ={"FAREBOX_MPP_SECRET": CHALLENGE_KEY},
            server={"silence_comment_s": SILENCE_COMMENT_S},
            ledger={"window_tokens_min": WINDOW_TOKENS},
            providers=[sandbox(models=[model("sandbox/echo", capabilities=["chat"], price=PRICE)])],
        )
        found = Stage(stack.enter_context(server), tempo, evm)
        _wait_until_chains_are_seen(found)
        yield found


def _wait_until_chains_are_seen(found: Stage) -> None:
    """A server that is ready may not have looked at its chains yet: then it tells a payer to try again later."""
    body, pause = chat("Hello"), threading.Event()
    for backend in ("tempo-v2", "tempo-v1", "evm"):
        stranger = found.actor(backend)
        stranger.open_payload(1)
        challenge, voucher = stranger.challenge(body), stranger.voucher_payload(1)
        for _ in range(READY_TRIES_MAX):
            if stranger.send(body, challenge, voucher).status_code == HTTPStatus.GONE:
                break
            pause.wait(READY_PAUSE_S)


def _chains(stack: ExitStack) -> tuple[DevnetThread[Devnet], DevnetThread[EvmDevnet]]:
    """Both chains, started at once: most of it is waiting."""
    tempo, evm = DevnetThread(Devnet()), DevnetThread(EvmDevnet())
    with ThreadPoolExecutor() as pool:
        started = (pool.submit(stack.enter_context, tempo), pool.submit(stack.enter_context, evm))
        return started[0].result(), started[1].result()
