"""JSON-RPC to a chain's node, and what is read from it. The only place that translates a node's errors."""

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError
from eth_utils.crypto import keccak

from farebox_client.channel import Parts
from farebox_client.errors import ChainError, InsufficientFunds
from farebox_client.flow import Flow, ask, pause
from farebox_client.hexadecimal import raw

CHANNEL_TUPLE = "(bool,uint64,address,address,address,address,uint128,uint128)"
STATE_TUPLE = "(uint96,uint96,uint32)"
DESCRIPTOR_TUPLE = "(address,address,address,address,bytes32,address,bytes32)"
MINED_POLLS_MAX = 240
MINED_POLL_S = 0.25
# Written out, as every library timeout is.
TIMEOUT = httpx.Timeout(connect=5, read=30, write=10, pool=10)


@dataclass(frozen=True, slots=True)
class ChannelState:
    """A channel on chain. Amounts in base units; ``close_requested_at`` in chain seconds, 0 if it was not."""

    deposit: int
    settled: int
    close_requested_at: int
    finalized: bool


@dataclass(frozen=True, slots=True)
class Mined:
    """A transaction in a block."""

    tx_hash: str
    succeeded: bool


def call_data(signature: str, *values: Any) -> bytes:
    """Calldata of ``signature``, which is written as ``name(type,...)``."""
    types = _split(signature[signature.index("(") + 1 : -1])
    return keccak(signature.encode())[:4] + encode(types, values)


def descriptor_values(parts: Parts) -> tuple[Any, ...]:
    """A descriptor as `DESCRIPTOR_TUPLE`."""
    return (
        *(parts.payer, parts.payee, parts.operator, parts.token),
        *(raw(parts.salt), parts.authorized_signer, raw(parts.expiring_nonce_hash)),
    )


class Node:
    """One chain through one node. Its methods are flows; each may raise `ChainError`."""

    def __init__(self, url: str, *, chain_id: int) -> None:
        self.url = url
        self.chain_id = chain_id
        self._ids = itertools.count(1)
        self._checked = False

    def request(self, method: str, parameters: Sequence[Any]) -> Flow[Any]:
        """The ``result`` of one call. Raises `ChainError` for the node's errors and its silence."""
        body = {"jsonrpc": "2.0", "id": next(self._ids), "method": method, "params": list(parameters)}
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        request = httpx.Request("POST", self.url, headers=headers, json=body, extensions={"timeout": TIMEOUT.as_dict()})
        try:
            answer = json.loads((yield from ask(request)))
        except httpx.HTTPError as error:
            raise ChainError(f"the node of chain {self.chain_id} did not answer {method}: {error}") from error
        except ValueError as error:
            raise ChainError(f"the node of chain {self.chain_id} did not answer {method} with JSON") from error
        if not isinstance(answer, dict) or "result" not in answer:
            said = answer.get("error") if isinstance(answer, dict) else None
            message = said.get("message") if isinstance(said, dict) else answer
            raise ChainError(f"the node of chain {self.chain_id} refused {method}: {message}")
        return answer["result"]

    def check_chain(self) -> Flow[None]:
        """Once: that the node is of the chain it was named for."""
        if not self._checked:
            found = yield from self.number("eth_chainId")
            if found != self.chain_id:
                raise ChainError(f"the node that was named for chain {self.chain_id} is of chain {found}")
            self._checked = True

    def number(self, method: str, *parameters: Any) -> Flow[int]:
        """A quantity."""
        return _number((yield from self.request(method, parameters)), method)

    def call(self, to: str, data: bytes, types: Sequence[str]) -> Flow[tuple[Any, ...]]:
        """What a view returns."""
        result = yield from self.request("eth_call", [{"to": to, "data": "0x" + data.hex()}, "latest"])
        try:
            return tuple(decode(types, bytes.fromhex(str(result)[2:])))
        except (DecodingError, ValueError) as error:
            raise ChainError(f"contract {to} on chain {self.chain_id} is not what it should be") from error

    def channel(self, parts: Parts) -> Flow[ChannelState | None]:
        """A channel's state at the newest block; None for one that never was (or, on tempo-v2, is over)."""
        yield from self.check_chain()
        if parts.kind == "tempo-v2":
            data = call_data("getChannelState(bytes32)", raw(parts.channel_id))
            ((settled, deposit, requested),) = yield from self.call(parts.escrow, data, [STATE_TUPLE])
            return ChannelState(deposit, settled, requested, finalized=False) if deposit else None
        data = call_data("getChannel(bytes32)", raw(parts.channel_id))
        ((finalized, requested, payer, _, _, _, deposit, settled),) = yield from self.call(
            parts.escrow, data, [CHANNEL_TUPLE]
        )
        known = int(payer, 16) != 0
        return ChannelState(deposit, settled, requested, finalized) if known else None

    def grace_s(self, parts: Parts) -> Flow[int]:
        """Seconds between a payer's `requestClose` and its `withdraw`."""
        (seconds,) = yield from self.call(parts.escrow, call_data("CLOSE_GRACE_PERIOD()"), ["uint64"])
        return int(seconds)

    def now(self) -> Flow[int]:
        """The newest block's time, in chain seconds."""
        block = yield from self.request("eth_getBlockByNumber", ["latest", False])
        return _number(block.get("timestamp") if isinstance(block, dict) else None, "eth_getBlockByNumber")

    def check_token(self, token: str, *, holder: str, needed: int) -> Flow[None]:
        """That a token has six decimals and ``holder`` has ``needed`` base units. Raises `InsufficientFunds`."""
        (decimals,) = yield from self.call(token, call_data("decimals()"), ["uint8"])
        if decimals != 6:
            raise ChainError(f"token {token} on chain {self.chain_id} has {decimals} decimals, and must have 6")
        (balance,) = yield from self.call(token, call_data("balanceOf(address)", holder), ["uint256"])
        if balance < needed:
            raise InsufficientFunds(
                f"wallet {holder} holds {balance} base units of token {token} on chain {self.chain_id}, "
                f"and needs {needed}"
            )

    def mined(self, tx_hash: str) -> Flow[Mined | None]:
        """A transaction's outcome; None while it is in no block."""
        receipt = yield from self.request("eth_getTransactionReceipt", [tx_hash])
        if not isinstance(receipt, dict):
            return None
        return Mined(tx_hash, succeeded=_number(receipt.get("status"), "eth_getTransactionReceipt") == 1)

    def wait_mined(self, tx_hash: str, *, what: str) -> Flow[Mined]:
        """`mined`, waited for. Raises `ChainError` if the transaction fails or does not come."""
        for _ in range(MINED_POLLS_MAX):
            mined = yield from self.mined(tx_hash)
            if mined is not None:
                if not mined.succeeded:
                    raise ChainError(f"{what} failed on chain {self.chain_id} in transaction {tx_hash}")
                return mined
            yield from pause(MINED_POLL_S)
        raise ChainError(f"{what} is still not mined on chain {self.chain_id}: transaction {tx_hash}")


def _number(value: object, method: str) -> int:
    try:
        return int(str(value), 16)
    except ValueError as error:
        raise ChainError(f"a node answered {method} with {value!r}") from error


def _split(types: str) -> list[str]:
    """Types at the top level: commas within a tuple separate its members."""
    found, depth, word = [], 0, ""
    for sign in types:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            found.append(word)
            word = ""
        else:
            word += sign
    return [*found, word] if word else found
