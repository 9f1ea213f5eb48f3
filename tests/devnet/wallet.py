"""Transactions as a Tempo wallet signs them."""

from typing import Any

import httpx
from eth_abi.abi import encode
from eth_utils.crypto import keccak
from pytempo import Call, TempoTransaction  # type: ignore[import-untyped]

from app.clock import SystemClock
from tests.devnet_fixtures import TempoChain

EXPIRING = 2**256 - 1
GWEI = 10**9
OPEN = ("address", "address", "address", "uint96", "bytes32", "address")
ZERO = "0x" + "0" * 40


def request(url: str, method: str, *params: Any) -> dict[str, Any]:
    """The whole answer."""
    body = {"jsonrpc": "2.0", "id": 7, "method": method, "params": params}
    answer: dict[str, Any] = httpx.post(url, json=body, timeout=60).json()
    return answer


def rpc(url: str, method: str, *params: Any) -> Any:
    """The result."""
    answer = request(url, method, *params)
    assert "result" in answer, answer
    return answer["result"]


def now(chain: TempoChain) -> int:
    """The newest block's time, or ours where the chain was idle for a while."""
    newest = int(rpc(chain.rpc_url, "eth_getBlockByNumber", "latest", False)["timestamp"], 16)
    return max(newest, SystemClock().now_ms() // 1000)


def data_of(signature: str, types: tuple[str, ...], values: list[Any]) -> bytes:
    """The data of a call."""
    return keccak(text=signature)[:4] + encode(types, values)


def transfer(token: str, to: str, amount: int) -> Any:
    """A call that moves money."""
    data = data_of("transfer(address,uint256)", ("address", "uint256"), [to, amount])
    return Call.create(to=token, data=data)


def open_call(chain: TempoChain, *, deposit: int, salt: bytes, payee: str, escrow: str | None = None) -> Any:
    """A call that opens a channel at the reserve."""
    values = [payee, ZERO, chain.token, deposit, salt, ZERO]
    return Call.create(to=escrow or chain.escrow_v2, data=data_of(f"open({','.join(OPEN)})", OPEN, values))


def transaction(chain: TempoChain, *calls: Any, **changes: Any) -> Any:
    """An unsigned one of the lane that expires, good for twenty seconds."""
    fields = {
        "chain_id": chain.chain_id,
        "gas_limit": 1_900_000,
        "max_fee_per_gas": 25 * GWEI,
        "max_priority_fee_per_gas": GWEI,
        "nonce_key": EXPIRING,
        "nonce": 0,
        "valid_before": now(chain) + 20,
        "fee_token": chain.token,
        "calls": calls,
    }
    return TempoTransaction.create(**{**fields, **changes})


def send(chain: TempoChain, signed: Any) -> dict[str, Any]:
    """Send and wait; the receipt."""
    receipt: dict[str, Any] = rpc(chain.rpc_url, "eth_sendRawTransactionSync", "0x" + signed.encode().hex())
    return receipt
