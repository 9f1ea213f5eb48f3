"""``farebox devnet``: a local chain for wallets to pay on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.contracts import channel_block
from app.cli.output import emit
from app.cli.session import UNUSABLE, AsJson, stop

if TYPE_CHECKING:
    from app.devnet import Devnet

DEFAULT_PORT = 8545
_PARTS = {0: "operator (payee)", 1: "user's wallet", 2: "sponsor of fees"}


def devnet(
    *,
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port to serve on; 0 picks a free one.")
    ] = DEFAULT_PORT,
    state_file: Annotated[
        Path | None, typer.Option("--state-file", metavar="PATH", help="Keep the chain here, and go on with it.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run a local Tempo chain until Ctrl-C: a real node, both channel escrows, and wallets with play money.

    The first run installs the node with npm. Everybody knows the keys: never send anything of value there.

    Example: farebox devnet --port 8545
    """
    import asyncio

    from app.devnet.chain import TransactionFailed
    from app.devnet.node import NodeFailed
    from app.devnet.rpc import RpcFailed
    from app.devnet.toolchain import ToolchainUnavailable

    try:
        asyncio.run(_run(port=port, state_file=state_file, as_json=as_json))
    except (ToolchainUnavailable, NodeFailed, RpcFailed, TransactionFailed) as error:
        stop(str(error), code=UNUSABLE)
    except OSError as error:
        stop(f"port {port}: {os.strerror(error.errno) if error.errno else error}", code=UNUSABLE)


async def _run(*, port: int, state_file: Path | None, as_json: bool) -> None:
    import asyncio
    import signal

    from app.devnet import Devnet

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    async with Devnet(port=port, state_file=state_file) as chain:
        emit(_body(chain), as_json=as_json, text=_text(chain))
        await ended.wait()


def _body(chain: Devnet) -> dict[str, Any]:
    return {
        "rpc_url": chain.rpc_url,
        "chain_id": chain.chain_id,
        "token": chain.token,
        "escrow_v1": chain.escrow_v1,
        "escrow_v2": chain.escrow_v2,
        "accounts": [
            {"address": account.address, "private_key": account.private_key, "part": _PARTS.get(index, "user's wallet")}
            for index, account in enumerate(chain.accounts)
        ],
    }


def _text(chain: Devnet) -> str:
    accounts = "\n".join(
        f"  {account.address}  {account.private_key}  {_PARTS.get(index, '')}".rstrip()
        for index, account in enumerate(chain.accounts)
    )
    blocks = "\n\n".join(
        channel_block(
            backend=backend, chain_id=chain.chain_id, rpc_url=chain.rpc_url, escrow=escrow, currency=chain.token
        )
        for backend, escrow in (("tempo-v2", chain.escrow_v2), ("tempo-v1", chain.escrow_v1))
    )
    return f"""A local Tempo chain

  RPC        {chain.rpc_url}
  chain id   {chain.chain_id}
  token      {chain.token}  (pathUSD, 6 decimals)
  escrow v2  {chain.escrow_v2}  (a stand-in for the channel reserve)
  escrow v1  {chain.escrow_v1}

Accounts with play money, and their keys, which everybody knows:

{accounts}

For farebox.toml:

{blocks}

Stop with Ctrl-C."""
