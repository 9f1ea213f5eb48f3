"""What the client's tests ask for: ``edges`` makes strict servers, ``wallet_for`` makes wallets that trust one."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from eth_account import Account
from farebox_client import Limits, Trust, Wallet, usd

from tests.client.clients import Awaited, Blocking, Client, MakeClient
from tests.client.edge import Edge
from tests.client.edge_chain import CHAIN_ID, ESCROW_V1, PAYEE, TOKEN
from tests.client.edge_server import EdgeServer

KEY = "0x" + "42" * 32
PAYER = Account.from_key(KEY).address.lower()

MakeEdge = Callable[..., Edge]
MakeWallet = Callable[..., Wallet]


@pytest.fixture(scope="session")
def edge_server() -> Iterator[EdgeServer]:
    """The server that all edges share."""
    with EdgeServer() as server:
        yield server


@pytest.fixture
def make_edge(edge_server: EdgeServer) -> Iterator[MakeEdge]:
    """Makes edges; at the end none of them may have seen a client break the protocol."""
    made: list[Edge] = []

    def make(**settings: Any) -> Edge:
        made.append(edge_server.edge(**settings))
        return made[-1]

    yield make
    for edge in made:
        assert not edge.failures, edge.failures[0]


@pytest.fixture
def edge(make_edge: MakeEdge) -> Edge:
    """An edge as most tests want it."""
    return make_edge()


@pytest.fixture
def wallet_for(tmp_path: Path) -> Iterator[MakeWallet]:
    """Makes wallets that trust an edge; all share one channel file unless another is named."""
    made: list[Wallet] = []

    def make(edge: Edge, *, store: Path | None = None, key: str = KEY, **changes: Any) -> Wallet:
        limits = changes.pop("limits", Limits(per_request=usd("0.05"), per_channel=usd("1.00"), per_day=usd("2.00")))
        trust = changes.pop("trust", trust_for(edge))
        wallet = Wallet.from_key(key, trust=trust, limits=limits, store=store or tmp_path / "channels.db", **changes)
        made.append(wallet)
        return wallet

    yield make
    for wallet in made:
        wallet.store.close()


def trust_for(edge: Edge, **changes: Any) -> Trust:
    """All that an edge asks for."""
    named: dict[str, Any] = {
        "rpc_urls": {CHAIN_ID: edge.rpc_url},
        "tokens": {CHAIN_ID: [TOKEN]},
        "escrows": {CHAIN_ID: [ESCROW_V1]},
        "payees": {edge.url: [PAYEE]},
    }
    return Trust(**{**named, **changes})


@pytest.fixture(params=[Blocking, Awaited], ids=["sync", "async"])
async def make_client(request: pytest.FixtureRequest) -> AsyncIterator[MakeClient]:
    """Makes clients of a wallet on either transport."""
    made: list[Client] = []

    def make(wallet: Wallet, **options: Any) -> Client:
        made.append(request.param(wallet, **options))
        return made[-1]

    yield make
    for client in made:
        await client.aclose()
