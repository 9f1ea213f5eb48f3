"""Local chains for tests: real nodes, started when a test asks, at most once a session where they are shared.

- ``devnet``: the session's Tempo chain. Tests share it: take fresh accounts and salts, leave its clock alone.
- ``new_devnet``: makes a Tempo chain of the test's own, whose clock it may move.
- ``evm_chain``: the session's plain EVM chain, with `TestToken` and the escrow of the evm method.
- ``new_evm_chain``: makes a plain EVM chain of the test's own.

Each is a `DevnetThread`: ``rpc_url``, ``chain_id``, ``token``, ``escrow_v1``, ``escrow_v2``, ``accounts``, ``fund``,
``balance``, ``mine``, ``increase_time``, ``snapshot``, ``revert``, ``rpc``.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from app.devnet import Devnet, DevnetThread, EvmDevnet

TempoChain = DevnetThread[Devnet]
EvmChain = DevnetThread[EvmDevnet]


@pytest.fixture(scope="session")
def devnet() -> Iterator[TempoChain]:
    """The session's Tempo chain."""
    with DevnetThread(Devnet()) as chain:
        yield chain


@pytest.fixture
def new_devnet() -> Iterator[Callable[[], TempoChain]]:
    """Makes Tempo chains that are the test's own and end with it."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(DevnetThread(Devnet()))


@pytest.fixture(scope="session")
def evm_chain() -> Iterator[EvmChain]:
    """The session's plain EVM chain."""
    with DevnetThread(EvmDevnet()) as chain:
        yield chain


@pytest.fixture
def new_evm_chain() -> Iterator[Callable[[], EvmChain]]:
    """Makes plain EVM chains that are the test's own and end with it."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(DevnetThread(EvmDevnet()))
