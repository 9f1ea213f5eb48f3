"""Farebox's contracts: Solidity sources, and the compiled artifacts that the product deploys and reads.

`artifact` is all that the running product needs; it reads package data, so it works from a wheel.
``python -m contracts.compile`` writes the artifacts and ``python -m contracts.check`` proves that they
are what the sources compile to.
"""

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any


@dataclass(frozen=True, slots=True)
class Artifact:
    """A compiled contract: its ABI, what a deployment sends, and what is on chain afterwards."""

    name: str
    abi: list[dict[str, Any]]
    bytecode: bytes
    deployed_bytecode: bytes


@cache
def artifact(name: str) -> Artifact:
    """The committed artifact of a contract, for example ``StreamChannel``. Raises `FileNotFoundError`."""
    text = resources.files("contracts").joinpath("artifacts", f"{name}.json").read_text("utf-8")
    body = json.loads(text)
    return Artifact(
        name=body["contractName"],
        abi=body["abi"],
        bytecode=bytes.fromhex(body["bytecode"].removeprefix("0x")),
        deployed_bytecode=bytes.fromhex(body["deployedBytecode"].removeprefix("0x")),
    )
