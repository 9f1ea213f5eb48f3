"""A client of protocol v2: it opens a channel, streams, pays and closes."""

import base64
import json
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

import httpx
from eth_abi.abi import encode
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils.crypto import keccak
from pytempo import Call, TempoTransaction  # type: ignore[import-untyped]

NOBODY = "0x" + "00" * 20
OPEN = keccak(b"open(address,address,address,uint96,bytes32,address)")[:4]
CHAT = "/v1/chat/completions"
PARAMETER = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def decoded(text: str) -> Any:
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


class Wallet:
    def __init__(self, base_url: str, key: str) -> None:
        self.http = httpx.Client(base_url=base_url, timeout=90)
        self.key, self.address = key, str(Account.from_key(key).address).lower()
        self.channel: dict[str, Any] = {}  # terms, descriptor and id; to be kept, with `signed`
        self.signed = 0

    def challenge(self, response: httpx.Response) -> dict[str, str]:
        for header in response.headers.get_list("www-authenticate"):
            found = {name: re.sub(r"\\(.)", r"\1", value) for name, value in PARAMETER.findall(header)}
            details = decoded(found["request"])["methodDetails"]
            if found["intent"] == "session" and details.get("sessionProtocol") == "v2":
                return found
        raise RuntimeError(f"{response.status_code} without a challenge: {response.text}")

    def request(self, body: bytes, challenge: Mapping[str, str], payload: Mapping[str, Any]) -> httpx.Request:
        credential = "Payment " + encoded({"challenge": challenge, "payload": payload})
        headers = {"authorization": credential, "content-type": "application/json"}
        return self.http.build_request("POST", CHAT, content=body, headers=headers)

    def voucher(self, action: str, amount: int) -> dict[str, Any]:
        self.signed = max(self.signed, amount)
        details = self.channel["terms"]["methodDetails"]
        domain = {"name": "TIP20 Channel Reserve", "version": "1", "chainId": details["chainId"]}
        domain["verifyingContract"] = details["escrowContract"]
        fields = [{"name": "channelId", "type": "bytes32"}, {"name": "cumulativeAmount", "type": "uint96"}]
        message = {"channelId": bytes.fromhex(self.channel["id"][2:]), "cumulativeAmount": self.signed}
        signed = Account.sign_message(encode_typed_data(domain, {"Voucher": fields}, message), self.key)
        return {
            "action": action,
            "channelId": self.channel["id"],
            "descriptor": self.channel["descriptor"],
            "cumulativeAmount": str(self.signed),
            "signature": "0x" + bytes(signed.signature).hex(),
        }

    def open(self, terms: Mapping[str, Any]) -> dict[str, Any]:
        details, salt = terms["methodDetails"], secrets.token_bytes(32)
        payee, operator, token = terms["recipient"], details.get("operator", NOBODY), terms["currency"]
        arguments = ("address", "address", "address", "uint96", "bytes32", "address")
        values = (payee, operator, token, int(terms["suggestedDeposit"]), salt, self.address)
        transaction = TempoTransaction.create(
            chain_id=details["chainId"],
            gas_limit=1_900_000,
            max_fee_per_gas=25 * 10**9,
            nonce_key=2**256 - 1,
            valid_before=int(time.time()) + 25,
            fee_token=token,
            calls=(Call.create(to=details["escrowContract"], data=OPEN + encode(arguments, values)),),
        ).sign(self.key)
        nonce_hash = keccak(transaction.encode_for_signing() + bytes.fromhex(self.address[2:]))
        types = ("address",) * 4 + ("bytes32", "address", "bytes32", "address", "uint256")
        parts = (self.address, payee, operator, token, salt, self.address, nonce_hash)
        channel_id = keccak(encode(types, (*parts, details["escrowContract"], details["chainId"])))
        names = ("payer", "payee", "operator", "token", "salt", "authorizedSigner", "expiringNonceHash")
        shown = ("0x" + part.hex() if isinstance(part, bytes) else part for part in parts)
        descriptor = dict(zip(names, shown, strict=True))
        self.channel = {"terms": terms, "id": "0x" + channel_id.hex(), "descriptor": descriptor}
        raw = "0x" + transaction.encode().hex()
        return {**self.voucher("open", int(terms["amount"])), "type": "transaction", "transaction": raw}

    def stream(self, messages: list[dict[str, str]]) -> Iterator[str]:
        body = json.dumps({"model": "sandbox/echo", "messages": messages, "stream": True}).encode()
        unpaid = self.http.post(CHAT, content=body, headers={"content-type": "application/json"})
        challenge = self.challenge(unpaid)
        terms = decoded(challenge["request"])
        payload = self.voucher("voucher", self.signed + int(terms["amount"])) if self.channel else self.open(terms)
        response = self.http.send(self.request(body, challenge, payload), stream=True)
        if response.status_code != 200:
            raise RuntimeError(response.read().decode())
        name = "message"
        for line in response.iter_lines():
            if line.startswith("event: "):
                name = line[7:]
            elif line.startswith("data: ") and line != "data: [DONE]":
                event = json.loads(line[6:])
                if name == "payment-need-voucher":
                    payload = self.voucher("voucher", int(event["requiredCumulative"]))
                    self.http.send(self.request(b"", challenge, payload)).raise_for_status()
                elif "error" in event:
                    raise RuntimeError(event["error"]["message"])
                elif name == "message" and event["choices"]:
                    yield event["choices"][0]["delta"].get("content") or ""
                name = "message"
        response.close()

    def close(self) -> dict[str, Any]:
        challenge = self.challenge(self.http.post(CHAT))
        answer = self.http.send(self.request(b"", challenge, self.voucher("close", self.signed)))
        answer.raise_for_status()
        receipt: dict[str, Any] = decoded(answer.headers["payment-receipt"])
        return receipt


def talk(base_url: str, key: str) -> tuple[list[str], dict[str, Any]]:
    wallet = Wallet(base_url, key)
    questions = ("Hello", "How are you?")
    answers = ["".join(wallet.stream([{"role": "user", "content": question}])) for question in questions]
    return answers, wallet.close()
