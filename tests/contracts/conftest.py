"""A plain chain of these tests' own, put back as it was after each: they move its clock."""

from collections.abc import Iterator

import pytest

from app.devnet import DevnetThread, EvmDevnet
from tests.contracts.bench import Bench
from tests.contracts.node import node_of


@pytest.fixture(scope="package")
def escrow_bench() -> Iterator[Bench]:
    """A node with a token and the escrow, and who uses them."""
    with DevnetThread(EvmDevnet()) as chain:
        node = node_of(chain)
        yield Bench(chain, node)
        node.close()


@pytest.fixture
def bench(escrow_bench: Bench) -> Iterator[Bench]:
    """The same, as it was at first."""
    snapshot = escrow_bench.node.rpc("evm_snapshot")
    yield escrow_bench
    escrow_bench.node.rpc("evm_revert", snapshot)
