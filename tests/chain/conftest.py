"""Backends on real chains, each with a payee of its own, so that tests do not see each other's channels."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from app.chain.backend import ChannelBackend
from app.chain.registry import backend_for
from app.clock import SystemClock
from app.money import BaseUnits
from app.settings import ChannelSettings, MppSettings
from tests.chain.wallet import Wallet, new_key
from tests.devnet_fixtures import EvmChain, TempoChain

PAYEE_FUNDS = 10_000_000
PAYER_FUNDS = 20_000_000
Chain = TempoChain | EvmChain


class Budget:
    """A budget of sponsored fees that remembers what it was asked."""

    def __init__(self, limit: int = 1_000_000) -> None:
        self.limit = limit
        self.reserved: dict[str, int] = {}
        self.settled: dict[str, int] = {}

    async def reserve(self, amount: BaseUnits, *, tx_hash: str) -> bool:
        if sum({**self.reserved, tx_hash: amount}.values()) > self.limit:
            return False
        self.reserved[tx_hash] = amount
        return True

    async def settle(self, fee: BaseUnits, *, tx_hash: str) -> None:
        self.settled[tx_hash] = fee


class Bench:
    """A backend, and wallets that pay it."""

    def __init__(self, chain: Chain, backend: ChannelBackend, budget: Budget, payee_key: str) -> None:
        self.chain = chain
        self.backend = backend
        self.budget = budget
        self.payee_key = payee_key

    def wallet(self, funds: int = PAYER_FUNDS) -> Wallet:
        """A fresh account with money."""
        wallet = Wallet(self.backend.offer)
        if funds:
            self.chain.fund(wallet.address, funds)
        return wallet

    async def mine(self, raw: bytes, tx_hash: str) -> Any:
        """Broadcast and wait."""
        await self.backend.broadcast(raw)
        mined = await self.backend.wait(tx_hash, timeout_s=20)
        assert mined is not None
        return mined


BenchMaker = Callable[..., Awaitable[Bench]]


@pytest.fixture
async def make_bench() -> AsyncIterator[BenchMaker]:
    """Makes benches whose connections end with the test."""
    async with AsyncExitStack() as stack:

        async def make(
            chain: Chain,
            kind: str,
            *,
            rpc_url: str | None = None,
            mpp: dict[str, Any] | None = None,
            payee_key: str | None = None,
            budget: Budget | None = None,
            payee_funds: int = PAYEE_FUNDS,
            **settings: Any,
        ) -> Bench:
            key, budget = payee_key or new_key(), budget or Budget()
            escrow = chain.escrow_v2 if kind == "tempo-v2" else chain.escrow_v1
            channel = ChannelSettings(
                **{
                    "backend": kind,
                    "chain_id": chain.chain_id,
                    "rpc_url": rpc_url or chain.rpc_url,
                    "escrow": escrow,
                    "currency": chain.token,
                    **settings,
                }
            )
            backend = backend_for(
                channel,
                MppSettings(**{"rpc_timeout_s": 5, "confirm_timeout_s": 5, **(mpp or {})}),
                payee_key=bytes.fromhex(key[2:]),
                clock=SystemClock(),
                budget=budget,
            )
            stack.push_async_callback(backend.aclose)
            if payee_funds:
                chain.fund(backend.account, payee_funds)
                if kind == "evm":
                    chain.rpc("anvil_setBalance", backend.account, hex(10**18))
            return Bench(chain, backend, budget, key)

        yield make


@pytest.fixture
async def v2(devnet: TempoChain, make_bench: BenchMaker) -> Bench:
    """The reserve on Tempo, with sponsored fees."""
    return await make_bench(devnet, "tempo-v2", fee_payer=True)


@pytest.fixture
async def v1(devnet: TempoChain, make_bench: BenchMaker) -> Bench:
    """Our contract escrow on Tempo, with sponsored fees."""
    return await make_bench(devnet, "tempo-v1", fee_payer=True)


@pytest.fixture
async def evm(evm_chain: EvmChain, make_bench: BenchMaker) -> Bench:
    """Our contract escrow on plain EVM."""
    return await make_bench(evm_chain, "evm", eip3009=True, fee_payer=True)
