"""What every local chain has: a node, accounts, money, time."""

import asyncio
from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any, Self

import rlp  # type: ignore[import-untyped]
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

from app.devnet.accounts import DevAccount, dev_accounts
from app.devnet.node import AnvilProcess
from app.devnet.rpc import Rpc
from app.devnet.toolchain import anvil

MINED_TIMEOUT_S = 30
_POLL_S = 0.02


class TransactionFailed(Exception):
    """A transaction of the set-up was mined and did nothing, or was not mined."""


class LocalChain(ABC):
    """A chain of one's own. An asynchronous context manager: it is there inside, and gone afterwards.

    ``rpc_url`` is where clients and servers connect. The accounts' keys are known to everybody.
    """

    rpc_url: str
    chain_id: int
    token: str
    escrow_v1: str

    def __init__(self) -> None:
        self._node: AnvilProcess | None = None
        self._rpc: Rpc | None = None

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def node_url(self) -> str:
        """The node itself, behind what is served to clients."""
        if self._node is None:
            raise RuntimeError("the chain is not running")
        return self._node.url

    @property
    def accounts(self) -> tuple[DevAccount, ...]:
        """Development accounts with money: the operator, a user, a sponsor, more users, the deployer."""
        return dev_accounts()

    @abstractmethod
    async def start(self) -> None:
        """Start the node and put on it what clients need."""

    async def stop(self) -> None:
        """Stop the node. Harmless when it is not running."""
        if self._rpc is not None:
            await self._rpc.close()
            self._rpc = None
        if self._node is not None:
            await self._node.stop()
            self._node = None

    @abstractmethod
    async def fund(self, address: str, base_units: int) -> None:
        """Give an account so much more of the token."""

    async def balance(self, address: str, token: str | None = None) -> int:
        """What an account has of the token, or of another."""
        data = "0x70a08231" + address.removeprefix("0x").lower().rjust(64, "0")
        answer = await self.rpc("eth_call", {"to": token or self.token, "data": data}, "latest")
        return int(answer, 16)

    async def mine(self) -> None:
        """Mine a block."""
        await self.rpc("evm_mine")

    async def increase_time(self, seconds: int) -> None:
        """Move the chain's clock, and mine. Clients' transactions expire by their own clocks: only on a
        chain that nobody else uses."""
        await self.rpc("evm_increaseTime", seconds)
        await self.rpc("evm_mine")

    async def snapshot(self) -> str:
        """Remember the state; the id is for `revert`."""
        return str(await self.rpc("evm_snapshot"))

    async def revert(self, snapshot: str) -> None:
        """Go back to a snapshot, which is used up by it."""
        await self.rpc("evm_revert", snapshot)

    async def rpc(self, method: str, *params: Any) -> Any:
        """The result of a method, from the node itself. Raises `RpcFailed`."""
        if self._rpc is None:
            raise RuntimeError("the chain is not running")
        return await self._rpc.call(method, *params)

    async def _start_node(self, *arguments: str) -> None:
        binary = await asyncio.to_thread(anvil)
        self._node = await AnvilProcess.start(binary, *arguments)
        self._rpc = Rpc(self._node.url)
        self.chain_id = int(await self.rpc("eth_chainId"), 16)

    async def _has_code(self, address: str) -> bool:
        return bool(await self.rpc("eth_getCode", address, "latest") != "0x")

    async def _deploy(self, sender: DevAccount, code: bytes, *, gas: int) -> str:
        """Create a contract from an account that the node has the key of; its address."""
        receipt = await self._transact({"from": sender.address, "data": "0x" + code.hex(), "gas": hex(gas)})
        return to_checksum_address(receipt["contractAddress"])

    async def _transact(self, transaction: dict[str, str]) -> dict[str, Any]:
        transaction_hash = await self.rpc("eth_sendTransaction", transaction)
        async with asyncio.timeout(MINED_TIMEOUT_S):
            while True:
                receipt: dict[str, Any] | None = await self.rpc("eth_getTransactionReceipt", transaction_hash)
                if receipt is not None:
                    break
                await asyncio.sleep(_POLL_S)
        if int(receipt["status"], 16) != 1:
            raise TransactionFailed(transaction_hash)
        return receipt


def created_address(sender: str, nonce: int) -> str:
    """Where the contract that an account creates with a nonce will be."""
    body = rlp.encode([bytes.fromhex(sender.removeprefix("0x")), nonce])
    return to_checksum_address(keccak(body)[-20:])
