"""A contract on a local node: sent to, called, and refused by. Accounts are the node's own, or impersonated."""

from typing import Any

import httpx
from eth_abi.abi import encode

from tests.contracts.codec import Codec, Event
from tests.devnet_fixtures import EvmChain, TempoChain

GAS = 3_000_000


class Reverted(Exception):
    """A call was refused; ``error`` names why."""

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error


class Node:
    """A node, called over one kept connection."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._client = httpx.Client(timeout=30)

    def request(self, method: str, *params: Any) -> dict[str, Any]:
        """The whole answer."""
        body = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
        answer: dict[str, Any] = self._client.post(self.url, json=body).json()
        return answer

    def rpc(self, method: str, *params: Any) -> Any:
        """The result of a method."""
        answer = self.request(method, *params)
        if "error" in answer:
            raise AssertionError(f"{method}: {answer['error']}")
        return answer["result"]

    def calls(self, *calls: dict[str, str]) -> list[str]:
        """Several simulations in one exchange."""
        bodies = [
            {"jsonrpc": "2.0", "id": number, "method": "eth_call", "params": [call, "latest"]}
            for number, call in enumerate(calls)
        ]
        answers = sorted(self._client.post(self.url, json=bodies).json(), key=lambda answer: int(answer["id"]))
        return [answer["result"] for answer in answers]

    def now(self) -> int:
        """The time of the newest block."""
        return int(self.rpc("eth_getBlockByNumber", "latest", False)["timestamp"], 16)

    def next_block_at(self, timestamp: int) -> None:
        """Say when the next block is."""
        self.rpc("evm_setNextBlockTimestamp", timestamp)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def node_of(chain: EvmChain | TempoChain) -> Node:
    """The node itself, past a shim."""
    return Node(chain.node_url)


class Contract:
    """A deployed contract."""

    def __init__(self, node: Node, name: str, address: str, *, gas: int = GAS) -> None:
        self.node = node
        self.codec = Codec(name)
        self.address = address
        self._gas = gas

    @classmethod
    def deploy(cls, node: Node, name: str, sender: str, *arguments: Any) -> "Contract":
        """Create one."""
        codec = Codec(name)
        types = [
            part["type"] for entry in codec.artifact.abi if entry["type"] == "constructor" for part in entry["inputs"]
        ]
        data = "0x" + (codec.artifact.bytecode + encode(types, arguments)).hex()
        receipt = _mined(node, {"from": sender, "data": data, "gas": hex(GAS)})
        return cls(node, name, receipt["contractAddress"])

    def call(self, name: str, *arguments: Any, sender: str | None = None) -> Any:
        """Simulate on the newest state. Raises `Reverted`."""
        transaction = {"to": self.address, "data": self.codec.call_data(name, arguments)}
        if sender is not None:
            transaction["from"] = sender
        answer = self.node.request("eth_call", transaction, "latest")
        if "error" in answer:
            raise Reverted(self.codec.error(answer["error"].get("data") or answer["error"]["message"]))
        return self.codec.result(name, answer["result"])

    def request(self, name: str, *arguments: Any) -> dict[str, str]:
        """A call to be made by `Node.calls`."""
        return {"to": self.address, "data": self.codec.call_data(name, arguments)}

    def send(self, name: str, *arguments: Any, sender: str) -> list[Event]:
        """Send and mine; its events. Raises `Reverted`."""
        transaction = {"from": sender, "to": self.address, "data": self.codec.call_data(name, arguments)}
        receipt = _mined(self.node, {**transaction, "gas": hex(self._gas)})
        if int(receipt["status"], 16) != 1:
            before = hex(int(receipt["blockNumber"], 16) - 1)
            answer = self.node.request("eth_call", transaction, before)
            error = answer.get("error", {"message": "reverted in its block alone"})
            raise Reverted(self.codec.error(error.get("data") or error["message"]))
        found = [self.codec.event(log) for log in receipt["logs"] if log["address"].lower() == self.address.lower()]
        return [event for event in found if event is not None]


def _mined(node: Node, transaction: dict[str, Any]) -> dict[str, Any]:
    receipt: dict[str, Any] = node.rpc("eth_sendTransactionSync", transaction)
    return receipt
