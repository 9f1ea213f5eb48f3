"""A server that is paid on a local chain beside it: what `make run` starts, so that both rails can be tried."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from app.devnet.accounts import OPERATOR, USER
from app.devnet.tempo import Devnet
from app.devnet.thread import DevnetThread
from app.settings import ChannelSettings, Settings

DEFAULT_PORT = 8545


@dataclass(frozen=True, slots=True)
class LocalPayments:
    """Settings that take payments on the local chain, and the key of a wallet with play money there."""

    settings: Settings
    rpc_url: str
    payee: str
    wallet_key: str


@contextmanager
def local_payments(settings: Settings, *, port: int, state_file: Path | None) -> Iterator[LocalPayments]:
    """Runs the chain. Its operator is the payee: everybody has the key, and there is nothing to take."""
    with DevnetThread(Devnet(port=port, state_file=state_file)) as chain:
        channels = tuple(
            ChannelSettings(
                backend=backend,
                chain_id=chain.chain_id,
                rpc_url=chain.rpc_url,
                escrow=escrow.lower(),
                currency=chain.token.lower(),
                payee_key_env="FAREBOX_DEVNET_PAYEE_KEY",
            )
            for backend, escrow in (("tempo-v2", chain.chain.escrow_v2), ("tempo-v1", chain.chain.escrow_v1))
        )
        os.environ["FAREBOX_DEVNET_PAYEE_KEY"] = chain.accounts[OPERATOR].private_key
        mpp = settings.mpp.model_copy(update={"channels": channels})
        yield LocalPayments(
            settings.model_copy(update={"mpp": mpp}),
            chain.rpc_url,
            chain.accounts[OPERATOR].address,
            chain.accounts[USER].private_key,
        )


def state_beside(settings: Settings) -> Path | None:
    """Where the chain is kept: beside an SQLite database, whose channels are on it."""
    url, prefix = settings.database.url, "sqlite:///"
    return Path(url.removeprefix(prefix) + ".devnet.json") if url.startswith(prefix) else None
