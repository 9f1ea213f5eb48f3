"""A strict server of the session protocol, and a node whose chain is its memory, on a real socket.

It does what `draft-tempo-session-00` says a server must, checks every signature and hash by other code than
the client's, and counts what it sees. `Lies` makes it break the rules, one at a time.
"""

import asyncio
import base64
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from eth_abi.abi import encode
from eth_account import Account
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from mpp import BodyDigest, Challenge, Credential

from tests.client.edge_chain import (
    CHAIN_ID,
    DESCRIPTOR,
    DESCRIPTOR_NAMES,
    ESCROW_V1,
    PAYEE,
    RESERVE,
    TOKEN,
    arguments,
    decoded,
    hexed,
    selector,
    voucher_domain,
    voucher_message,
)
from tests.client.edge_http import Send, answer, event, header
from tests.client.edge_state import Lies, Refused, Reserve

SECRET = "a secret of the edge that nobody else has"
REALM = "edge.test"
PROBLEMS = "https://paymentauth.org/problems/"
PAUSE_S = 20
PRICES = "sandbox/echo: 1.00 USD for input and 4.00 USD for output per million tokens"


_NONCES = count(1)


@dataclass
class Edge:
    """One server and its chain. ``chunks`` are what an answer consists of, each with its price."""

    name: str
    host: str
    chunks: list[tuple[str, int]] = field(default_factory=lambda: [("Hello", 100), (" there", 100)])
    kinds: tuple[str, ...] = ("tempo-v2", "tempo-v1")
    suggested_deposit: int = 100_000
    min_delta: int = 0
    fee_payer: bool = False
    lies: Lies = field(default_factory=Lies)
    balance: int = 10**12
    chain: dict[str, Reserve] = field(default_factory=dict)
    books: dict[str, Reserve] = field(default_factory=dict)
    # What was seen: (action, cumulative or deposit), and the bodies and headers of requests.
    seen: list[tuple[str, int]] = field(default_factory=list)
    unpaid: int = 0
    sessions: list[str | None] = field(default_factory=list)
    paid_authorizations: set[str] = field(default_factory=set)
    now: int = 1_700_000_000
    # What a client did that no client may do.
    failures: list[str] = field(default_factory=list)
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)

    @property
    def url(self) -> str:
        """The base URL that an SDK is given."""
        return f"{self.host}/{self.name}/v1"

    @property
    def rpc_url(self) -> str:
        """Where its node answers."""
        return f"{self.host}/{self.name}/rpc"

    @property
    def channel(self) -> Reserve:
        """The only channel."""
        (channel,) = self.chain.values()
        return channel

    def actions(self, name: str) -> list[int]:
        """The amounts of one action, in order."""
        return [amount for action, amount in self.seen if action == name]

    # HTTP.

    async def handle(self, scope: dict[str, Any], body: bytes, send: Send) -> None:
        if scope["path"].endswith("/rpc"):
            question = json.loads(body)
            await answer(send, 200, {"jsonrpc": "2.0", "id": question["id"], "result": self.rpc(question)})
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        try:
            await self.payments(scope["method"], headers, body, send)
        except Refused as refused:
            document = {
                "type": PROBLEMS + refused.slug,
                "title": refused.slug,
                "status": refused.status,
                "detail": refused.detail,
                **refused.members,
            }
            fresh = self.challenges(headers, body) if refused.status in {402, 410} else []
            await answer(send, refused.status, document, [(b"www-authenticate", each.encode()) for each in fresh])

    async def payments(self, method: str, headers: dict[str, str], body: bytes, send: Send) -> None:
        authorization = headers.get("authorization", "")
        assert "wallet" not in authorization.lower()
        assert headers["accept-encoding"] == "identity"
        if not authorization.startswith("Payment "):
            self.unpaid += 1
            self.sessions.append(headers.get("payment-session"))
            raise Refused(402, "payment-required", "pay with a channel")
        credential = Credential.from_authorization(authorization)
        self._check_challenge(credential, body)
        payload = credential.payload
        action = payload["action"]
        channel_id = payload["channelId"]
        if action == "voucher" and not body and self.lies.voucher_status_times:
            self.lies.voucher_status_times -= 1
            raise Refused(self.lies.voucher_status, "try-again", "not now")
        if action == "voucher" and not body and self.lies.expired_management:
            self.lies.expired_management -= 1
            raise Refused(402, "session/challenge-not-found", "the challenge has expired")
        match action:
            case "open":
                self._open(credential)
            case "topUp":
                await self._top_up(payload)
            case "close":
                await self._close(credential, payload, send)
                return
        if action in {"open", "voucher"}:
            await self._voucher(credential, content=bool(body))
        channel = self.books[channel_id]
        assert credential.source == f"did:pkh:eip155:{CHAIN_ID}:{to_checksum_address(channel.payer)}"
        if not body:
            assert method == "POST"
            assert "content-type" not in headers
            assert "idempotency-key" not in headers
            await answer(send, 204, None, [self._receipt_header(credential)])
            return
        # A challenge buys content once.
        assert credential.challenge.id not in self.paid_authorizations
        self.paid_authorizations.add(credential.challenge.id)
        if self.lies.fail_after_voucher:
            self.lies.fail_after_voucher = False
            await answer(send, 500, {"error": {"message": "the provider failed"}})
            return
        await self._content(credential, json.loads(body), send)

    # Challenges.

    def challenges(self, headers: dict[str, str], body: bytes) -> list[str]:
        """Fresh ones; for a channel of protocol v2 that the client names, the one that continues it."""
        session = self._session_of(headers)
        known = self.books.get(session) if session else None
        later = bool(headers.get("authorization", "").startswith("Payment "))
        kinds = (known.kind,) if known is not None and not known.closed else self.kinds
        found = []
        for kind in kinds:
            details: dict[str, Any] = {
                "chainId": CHAIN_ID,
                "escrowContract": RESERVE if kind == "tempo-v2" else ESCROW_V1,
                "sessionProtocol": kind.removeprefix("tempo-"),
            }
            if self.min_delta:
                details["minVoucherDelta"] = str(self.min_delta)
            if self.fee_payer:
                details["feePayer"] = True
            amount = 1
            if known is not None and session is not None and not known.closed:
                details["channelId"] = session
                short = known.deposit - known.spent < self.lies.left_min
                required = self._required(known) if later and not short else known.accepted + 1
                amount = max(1, required - known.accepted) if later else 1
                if kind == "tempo-v2":
                    details["sessionSnapshot"] = self._snapshot(known, session, required)
            request = {
                "amount": str(amount),
                "currency": TOKEN,
                "recipient": self.lies.payee_later if later and self.lies.payee_later else PAYEE,
                "suggestedDeposit": str(self.suggested_deposit),
                "unitType": "request",
                "methodDetails": details,
            }
            expires = (datetime.now(UTC) + timedelta(minutes=5)).strftime("%Y-%m-%dT%H:%M:%SZ")
            challenge = Challenge.create(
                secret_key=SECRET,
                realm=REALM,
                method="tempo",
                intent="session",
                request=request,
                expires=expires,
                digest=BodyDigest.compute(body) if body else None,
                description=self.lies.prices_later if later and self.lies.prices_later else PRICES,
                meta={"nonce": base64.b64encode(str(next(_NONCES)).encode()).decode()},
            )
            found.append(challenge.to_www_authenticate(REALM))
        return found

    def _session_of(self, headers: dict[str, str]) -> str | None:
        authorization = headers.get("authorization", "")
        if authorization.startswith("Payment "):
            return str(Credential.from_authorization(authorization).payload["channelId"])
        return headers.get("payment-session")

    def _required(self, channel: Reserve) -> int:
        return channel.spent + sum(price for _, price in self.chunks)

    def _snapshot(self, channel: Reserve, channel_id: str, required: int) -> dict[str, Any]:
        return {
            "acceptedCumulative": str(channel.accepted + self.lies.snapshot_adds),
            "chainId": CHAIN_ID,
            "channelId": channel_id,
            "deposit": str(channel.deposit),
            "descriptor": channel.descriptor,
            "escrow": RESERVE,
            "requiredCumulative": str(required + self.lies.snapshot_adds),
            "settled": str(channel.settled),
            "spent": str(channel.spent),
        }

    def _check_challenge(self, credential: Credential, body: bytes) -> None:
        echo = credential.challenge
        request = json.loads(base64.urlsafe_b64decode(echo.request + "=="))
        opaque = json.loads(base64.urlsafe_b64decode((echo.opaque or "") + "=="))
        again = Challenge.create(
            secret_key=SECRET,
            realm=REALM,
            method=echo.method,
            intent=echo.intent,
            request=request,
            expires=echo.expires,
            digest=echo.digest,
            meta=opaque,
        )
        assert again.id == echo.id, "the challenge was changed"
        if body:
            assert echo.digest is not None
            assert BodyDigest.verify(echo.digest, body), "the challenge was for another body"

    # Actions.

    def _open(self, credential: Credential) -> None:
        payload = credential.payload
        channel_id = payload["channelId"]
        calls, payer, signing, valid_before = decoded(payload["transaction"], sponsored=self.fee_payer)
        if self.fee_payer:
            assert payload["transaction"].startswith("0x78")
        assert credential.source is not None
        assert credential.source.lower().endswith(payer)
        kind = "tempo-v2" if "descriptor" in payload else "tempo-v1"
        if kind == "tempo-v2":
            ((to, data),) = calls
            assert to == RESERVE
            payee, operator, token, deposit, salt, signer = arguments(
                "open(address,address,address,uint96,bytes32,address)", data
            )
            descriptor = payload["descriptor"]
            nonce_hash = keccak(signing + bytes.fromhex(payer[2:]))
            expected = (payer, payee, operator, token, "0x" + salt.hex(), signer, "0x" + nonce_hash.hex())
            assert descriptor == dict(zip(DESCRIPTOR_NAMES, expected, strict=True))
            encoded = encode(
                (*("address",) * 4, "bytes32", "address", "bytes32", "address", "uint256"),
                (payer, payee, operator, token, salt, signer, nonce_hash, RESERVE, CHAIN_ID),
            )
        else:
            (approved, approval), (to, data) = calls
            assert (approved, to) == (TOKEN, ESCROW_V1)
            payee, token, deposit, salt, signer = arguments("open(address,address,uint128,bytes32,address)", data)
            assert arguments("approve(address,uint256)", approval) == (ESCROW_V1, deposit)
            descriptor = {}
            encoded = encode(
                ("address", "address", "address", "bytes32", "address", "address", "uint256"),
                (payer, payee, token, salt, signer, ESCROW_V1, CHAIN_ID),
            )
        assert "0x" + keccak(encoded).hex() == channel_id
        assert (payee, token) == (PAYEE, TOKEN)
        assert valid_before > 0
        self.seen.append(("open", deposit))
        channel = self.chain.setdefault(channel_id, Reserve(kind, payer, descriptor, deposit))
        if self.lies.forget_opens:
            self.lies.forget_opens -= 1
            raise Refused(503, "unavailable", "the process died here")
        self.books[channel_id] = channel

    async def _top_up(self, payload: dict[str, Any]) -> None:
        channel = self._known(payload["channelId"])
        calls, payer, _, _ = decoded(payload["transaction"], sponsored=self.fee_payer)
        assert payer == channel.payer
        if channel.kind == "tempo-v2":
            ((to, data),) = calls
            descriptor, amount = arguments(f"topUp({DESCRIPTOR},uint96)", data)
            assert to == RESERVE
            assert list(map(hexed, descriptor)) == [channel.descriptor[name] for name in DESCRIPTOR_NAMES]
        else:
            (_, approval), (to, data) = calls
            channel_id, amount = arguments("topUp(bytes32,uint256)", data)
            assert (to, "0x" + channel_id.hex()) == (ESCROW_V1, payload["channelId"])
            assert arguments("approve(address,uint256)", approval) == (ESCROW_V1, amount)
        assert payload["additionalDeposit"] == str(amount)
        self.seen.append(("topUp", amount))
        if not self.lies.takes_no_top_up:
            channel.deposit += amount
        async with self.changed:
            self.changed.notify_all()

    async def _voucher(self, credential: Credential, *, content: bool) -> None:
        payload = credential.payload
        channel = self._known(payload["channelId"])
        amount = int(payload["cumulativeAmount"])
        self._verify(channel, payload, amount)
        if payload["action"] == "voucher":
            self.seen.append(("voucher", amount))
        if amount > channel.deposit:
            raise Refused(402, "session/amount-exceeds-deposit", "more than the deposit")
        delta = amount - channel.accepted
        if 0 < delta < self.min_delta and amount < channel.deposit and payload["action"] != "open":
            raise Refused(402, "session/delta-too-small", "too little more")
        if delta < 0 and not content:
            raise Refused(402, "session/delta-too-small", "lower than before")
        channel.accepted = max(amount, channel.accepted)
        async with self.changed:
            self.changed.notify_all()

    async def _close(self, credential: Credential, payload: dict[str, Any], send: Send) -> None:
        channel = self._known(payload["channelId"])
        amount = int(payload["cumulativeAmount"])
        self._verify(channel, payload, amount)
        self.seen.append(("close", amount))
        if amount < channel.spent:
            raise Refused(402, "session/insufficient-balance", f"{channel.spent} were spent")
        channel.settled, channel.closed = channel.spent, True
        receipt = self._receipt(credential, tx_hash="0x" + "ab" * 32)
        if channel.kind == "tempo-v2":
            receipt["acceptedCumulative"] = str(amount)
        await answer(send, 200, {}, [(b"payment-receipt", header(receipt))])

    def _known(self, channel_id: str) -> Reserve:
        channel = self.books.get(channel_id)
        if channel is None:
            raise Refused(410, "session/channel-not-found", "no such channel")
        if channel.closed:
            raise Refused(410, "session/channel-finalized", "the channel is closed")
        return channel

    def _verify(self, channel: Reserve, payload: dict[str, Any], amount: int) -> None:
        domain = voucher_domain(channel.kind, CHAIN_ID, RESERVE if channel.kind == "tempo-v2" else ESCROW_V1)
        signable = voucher_message(domain, channel.kind, payload["channelId"], amount)
        assert Account.recover_message(signable, signature=payload["signature"]).lower() == channel.payer
        assert payload.get("descriptor", {}) == channel.descriptor

    # Content.

    async def _content(self, credential: Credential, body: dict[str, Any], send: Send) -> None:
        channel = self.books[credential.payload["channelId"]]
        if channel.deposit - channel.spent < self.lies.left_min:
            raise Refused(402, "session/insufficient-balance", "the deposit is used up")
        if not body.get("stream"):
            required = self._required(channel)
            if channel.accepted < required:
                raise Refused(402, "session/insufficient-balance", "sign more", requiredCumulative=str(required))
            channel.spent = required
            text = "".join(piece for piece, _ in self.chunks)
            completion = {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": 1,
                "model": "m",
                "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            }
            await answer(send, 200, completion, [self._receipt_header(credential)])
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), self._receipt_header(credential)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number, (piece, price) in enumerate(self.chunks):
            if self.lies.cut_stream and number == 1:
                self.lies.cut_stream = False
                raise ConnectionAbortedError
            await self._pay_for(channel, credential, price, send)
            delta = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
            chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [delta]}
            await event(send, None, chunk)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
        await event(send, "payment-receipt", self._receipt(credential))
        await send({"type": "http.response.body", "body": b""})

    async def _pay_for(self, channel: Reserve, credential: Credential, price: int, send: Send) -> None:
        lies, said = self.lies, 0
        async with asyncio.timeout(PAUSE_S), self.changed:
            while channel.accepted < (required := channel.spent + price):
                need = {
                    "channelId": lies.need_channel or credential.payload["channelId"],
                    "requiredCumulative": str(lies.need_required or required),
                    "acceptedCumulative": str(lies.need_accepted or channel.accepted),
                    "deposit": str(channel.deposit),
                }
                # Another stream may have used the voucher that this one waited for.
                for _ in range(lies.need_times if required != said else 0):
                    await event(send, "payment-need-voucher", need)
                said = required
                await self.changed.wait()
            channel.spent += price
            self.changed.notify_all()

    def _receipt(self, credential: Credential, *, tx_hash: str | None = None) -> dict[str, Any]:
        channel_id = credential.payload["channelId"]
        channel, lies = self.books[channel_id], self.lies
        accepted = channel.accepted if channel.kind == "tempo-v2" else channel.spent
        receipt = {
            "method": "tempo",
            "intent": "session",
            "status": "success",
            "timestamp": "2025-01-06T12:08:30Z",
            "reference": channel_id,
            "challengeId": credential.challenge.id,
            "channelId": lies.receipt_channel or channel_id,
            "acceptedCumulative": str(lies.receipt_accepted or accepted),
            "spent": str(lies.receipt_spent or channel.spent),
            "units": 1,
        }
        return receipt if tx_hash is None else {**receipt, "txHash": tx_hash}

    def _receipt_header(self, credential: Credential) -> tuple[bytes, bytes]:
        return (b"payment-receipt", header(self._receipt(credential)))

    # The chain.

    def rpc(self, question: dict[str, Any]) -> Any:
        """What the node says."""
        match question["method"]:
            case "eth_chainId":
                return hex(CHAIN_ID)
            case "eth_gasPrice":
                return hex(20_000_000_000)
            case "eth_getBlockByNumber":
                return {"timestamp": hex(self.now)}
            case "eth_sendRawTransaction":
                return self._sent(question["params"][0])
            case "eth_getTransactionReceipt":
                return {"status": "0x1"}
            case _:
                return "0x" + self._view(bytes.fromhex(question["params"][0]["data"][2:])).hex()

    def _view(self, data: bytes) -> bytes:
        if data[:4] == selector("decimals()"):
            return encode(["uint8"], [6])
        if data[:4] == selector("balanceOf(address)"):
            return encode(["uint256"], [self.balance])
        if data[:4] == selector("CLOSE_GRACE_PERIOD()"):
            return encode(["uint64"], [900])
        channel = self.chain.get("0x" + data[4:].hex())
        if data[:4] == selector("getChannelState(bytes32)"):
            if channel is None or channel.closed:
                return encode(["(uint96,uint96,uint32)"], [(0, 0, 0)])
            values = (channel.settled, channel.deposit, channel.close_requested_at)
            return encode(["(uint96,uint96,uint32)"], [values])
        assert data[:4] == selector("getChannel(bytes32)")
        types = "(bool,uint64,address,address,address,address,uint128,uint128)"
        zero = "0x" + "00" * 20
        if channel is None:
            return encode([types], [(False, 0, zero, zero, zero, zero, 0, 0)])
        ends = (PAYEE, TOKEN, zero, channel.deposit, channel.settled)
        return encode([types], [(channel.closed, channel.close_requested_at, channel.payer, *ends)])

    def _sent(self, raw: str) -> str:
        calls, payer, _, _ = decoded(raw, sponsored=False)
        ((_, data),) = calls
        channel = self.channel
        assert payer == channel.payer
        if data[:4] in {selector(f"requestClose({DESCRIPTOR})"), selector("requestClose(bytes32)")}:
            channel.close_requested_at = self.now
        else:
            assert data[:4] in {selector(f"withdraw({DESCRIPTOR})"), selector("withdraw(bytes32)")}
            assert self.now >= channel.close_requested_at + 900
            channel.closed = True
        return "0x" + "cd" * 32
