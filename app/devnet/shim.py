"""A JSON-RPC server in front of the node that closes the gaps between it and a Tempo network.

- Gas: the node's estimates ignore the calls of a Tempo transaction. It gets a fixed, ample limit.
- Clock: an idle node's time stands still, and what clients sign expires seconds after their own. A block
  is mined before what looks at the clock.
- Channel reserve: its stand-in is told what it cannot know, see `app.devnet.reserve`.
- Refusals: the node takes a transaction that can never be mined and says nothing for half a minute. What
  a network refuses at once is refused at once.

Everything else goes through untouched. For clients and servers alike: it is the chain's only address.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from app.clock import Clock, SystemClock
from app.devnet import reserve
from app.devnet.rpc import Rpc, RpcFailed
from app.devnet.tempo_transaction import EXPIRING_NONCE_KEY, RawCall, RawTransaction, Undecodable, decode

# Sponsors of fees refuse above 2M; opening a channel in the contract escrow takes 1.6M.
GAS_LIMIT: Final = 1_900_000
# The clock of the newest block may be this old before a block is mined.
CLOCK_AGE_MAX_S = 2
# TIP-1009, at the hardfork that the node has.
EXPIRY_MAX_S = 30
BODY_BYTES_MAX = 8 * 1024 * 1024
INVALID_REQUEST = -32600
PARSE_ERROR = -32700
TRANSACTION_REJECTED = -32003

Json = dict[str, Any]
_TEMPO_MEMBERS = ("calls", "feeToken", "nonceKey", "validBefore", "validAfter", "feePayer")


class Shim:
    """One server in front of one node."""

    def __init__(self, node: Rpc, *, clock: Clock | None = None) -> None:
        self._node = node
        self._clock = clock or SystemClock()
        self._runner: web.AppRunner | None = None
        self.port = 0
        self._methods: dict[str, Callable[[Json], Awaitable[Json]]] = {
            "eth_fillTransaction": self._fill,
            "eth_estimateGas": self._estimate,
            "eth_call": self._call,
            "eth_sendRawTransaction": self._send,
            "eth_sendRawTransactionSync": self._send,
        }

    async def start(self, host: str, port: int) -> None:
        """Listen; port 0 picks a free one, and ``port`` says which."""
        application = web.Application(client_max_size=BODY_BYTES_MAX)
        application.router.add_post("/{path:.*}", self._post)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        addresses: list[Any] = self._runner.addresses
        self.port = addresses[0][1]

    async def stop(self) -> None:
        """Close the server."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _post(self, request: web.Request) -> web.Response:
        try:
            body = await request.json()
        except ValueError:
            return web.json_response(_error(None, PARSE_ERROR, "not JSON"))
        if isinstance(body, list):
            return web.json_response([await self._answer(entry) for entry in body])
        return web.json_response(await self._answer(body))

    async def _answer(self, request: Any) -> Json:
        if not isinstance(request, dict) or not isinstance(request.get("method"), str):
            return _error(None, INVALID_REQUEST, "not a JSON-RPC request")
        handle = self._methods.get(request["method"], self._node.forward)
        try:
            return await handle(request)
        except RpcFailed as error:
            return {"jsonrpc": "2.0", "id": request.get("id"), "error": error.error}

    # Requests that prepare a transaction.

    async def _fill(self, request: Json) -> Json:
        wanted = _first(request)
        await self._refresh_clock()
        # Without the calls: the node would run what is not there, and refuse what only the stand-in knows.
        bare = {name: wanted[name] for name in ("from", "chainId", "nonce") if wanted.get(name) is not None}
        bare |= {"to": wanted.get("from"), "gas": hex(GAS_LIMIT)}
        answer = await self._node.forward({**request, "params": [bare]})
        if "error" in answer:
            return answer
        filled = answer["result"]["tx"]
        filled |= {
            "gas": wanted.get("gas") or hex(GAS_LIMIT),
            "to": wanted.get("to"),
            "input": wanted.get("data") or wanted.get("input") or "0x",
            "value": wanted.get("value") or "0x0",
        }
        if any(wanted.get(name) is not None for name in _TEMPO_MEMBERS):
            filled |= {name: wanted[name] for name in _TEMPO_MEMBERS if name in wanted}
            filled |= {"type": "0x76", "calls": wanted.get("calls") or [_as_call(wanted)]}
        return answer

    async def _estimate(self, request: Json) -> Json:
        wanted = _first(request)
        if wanted.get("calls"):
            return {"jsonrpc": "2.0", "id": request.get("id"), "result": hex(GAS_LIMIT)}
        return await self._call(request)

    async def _call(self, request: Json) -> Json:
        wanted = _first(request)
        calls = wanted.get("calls") or []
        if len(calls) == 1 and not wanted.get("to"):
            # The node ignores calls; a single one is the same as a plain transaction.
            wanted = {**wanted, **calls[0]}
            wanted.pop("calls")
        told = await self._told(wanted)
        params = [wanted, *request.get("params", ())[1:]]
        if told:
            block = params[1] if len(params) > 1 else "latest"
            params = [wanted, block, _merged(params[2] if len(params) > 2 else None, told)]
        return await self._node.forward({**request, "params": params})

    async def _told(self, wanted: Json) -> list[reserve.StorageWrite]:
        """What the stand-in must be told to simulate a call; nothing is written."""
        try:
            target, sender = _bytes(wanted.get("to")), _bytes(wanted.get("from"))
            data = _bytes(wanted.get("data") or wanted.get("input"))
        except ValueError:
            return []
        # There is no transaction yet whose hash this could be.
        return reserve.writes(sender, (RawCall(target, data),), b"\1" * 32)

    # Signed transactions.

    async def _send(self, request: Json) -> Json:
        params = request.get("params") or [""]
        try:
            transaction = decode(_bytes(params[0]))
        except (Undecodable, ValueError):
            return await self._node.forward(request)
        await self._refresh_clock()
        refusal = await self._refusal(transaction)
        if refusal:
            return _error(request.get("id"), TRANSACTION_REJECTED, refusal)
        told = reserve.writes(transaction.sender, transaction.calls, transaction.expiring_nonce_hash)
        for write in told:
            await self._node.call("anvil_setStorageAt", _hex(write.address), _hex(write.slot), _hex(write.value))
        return await self._node.forward(request)

    async def _refusal(self, transaction: RawTransaction) -> str | None:
        if transaction.nonce_key != EXPIRING_NONCE_KEY:
            return None
        if transaction.nonce:
            return "expiring nonce transaction must have nonce 0"
        now = await self._chain_time_s()
        if transaction.valid_before <= now:
            return f"transaction expired: valid_before {transaction.valid_before} is not after {now}"
        if transaction.valid_before > now + EXPIRY_MAX_S:
            return f"valid_before {transaction.valid_before} is more than {EXPIRY_MAX_S} s after {now}"
        return None

    async def _refresh_clock(self) -> None:
        if self._clock.now_ms() // 1000 - await self._chain_time_s() > CLOCK_AGE_MAX_S:
            await self._node.call("evm_mine")

    async def _chain_time_s(self) -> int:
        block = await self._node.call("eth_getBlockByNumber", "latest", False)
        return int(block["timestamp"], 16)


def _first(request: Json) -> Json:
    params = request.get("params")
    found = params[0] if isinstance(params, list) and params else None
    return found if isinstance(found, dict) else {}


def _as_call(wanted: Json) -> Json:
    data = wanted.get("data") or wanted.get("input") or "0x"
    return {"to": wanted.get("to"), "value": wanted.get("value") or "0x0", "input": data}


def _merged(overrides: Any, told: list[reserve.StorageWrite]) -> Json:
    merged: Json = dict(overrides) if isinstance(overrides, dict) else {}
    for write in told:
        account = dict(merged.get(_hex(write.address), {}))
        account["stateDiff"] = {**account.get("stateDiff", {}), _hex(write.slot): _hex(write.value)}
        merged[_hex(write.address)] = account
    return merged


def _error(request_id: Any, code: int, message: str) -> Json:
    return {"jsonrpc": "2.0", "id": request_id, "error": {"code": code, "message": message}}


def _hex(value: bytes) -> str:
    return "0x" + value.hex()


def _bytes(text: Any) -> bytes:
    return bytes.fromhex(str(text or "").removeprefix("0x"))
