"""``farebox contracts``: put the channel escrow on a chain."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from app.cli.output import emit
from app.cli.session import REFUSED, UNUSABLE, AsJson, stop

if TYPE_CHECKING:
    from contracts.deploy import Deployment

app = typer.Typer(help="The channel escrow contract: deploy it to a chain.", no_args_is_help=True)

_BACKENDS = {"tempo": "tempo-v1", "evm": "evm"}


@app.callback()
def contracts() -> None:
    """The channel escrow contract: deploy it to a chain."""


@app.command(
    epilog="Example: DEPLOYER_KEY=0x... farebox contracts deploy --rpc-url https://node.example --chain-id 196 "
    "--domain evm --key-env DEPLOYER_KEY --currency 0x..."
)
def deploy(
    *,
    rpc_url: Annotated[str, typer.Option("--rpc-url", metavar="URL", help="JSON-RPC of a node of the chain.")],
    chain_id: Annotated[int, typer.Option("--chain-id", metavar="ID", help="The chain that it must be.")],
    domain: Annotated[
        Literal["tempo", "evm"],
        typer.Option("--domain", help="Whose clients will sign: of the tempo method (v1), or of the evm method."),
    ],
    key_env: Annotated[
        str, typer.Option("--key-env", metavar="NAME", help="The variable that holds the deployer's private key.")
    ] = "FAREBOX_DEPLOYER_KEY",
    currency: Annotated[
        str | None,
        typer.Option("--currency", metavar="ADDRESS", help="The USD token of your channels; for what is printed."),
    ] = None,
    fee_token: Annotated[
        str | None,
        typer.Option("--fee-token", metavar="ADDRESS", help="tempo: the token to pay the fee in; else the account's."),
    ] = None,
    confirmations: Annotated[
        int, typer.Option("--confirmations", metavar="N", min=1, help="Wait for so many blocks.")
    ] = 1,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Deploy the escrow, check it, and print what goes into farebox.toml.

    The contract has no owner and cannot be changed; whoever deploys it has no power over it. It costs one
    transaction: on an EVM chain in the native coin, on Tempo in a stablecoin.
    """
    private_key = os.environ.get(key_env)
    if not private_key:
        stop(f"{key_env} is not set: it must hold the private key to deploy with", code=UNUSABLE)
    if not yes and sys.stdin.isatty():
        typer.confirm(f"Deploy the escrow of the {domain} method to chain {chain_id}?", abort=True, err=True)

    from contracts.deploy import DeploymentFailed
    from contracts.deploy import deploy as deploy_escrow

    try:
        done = deploy_escrow(
            rpc_url,
            chain_id=chain_id,
            private_key=private_key,
            domain=domain,
            fee_token=fee_token,
            confirmations=confirmations,
        )
    except DeploymentFailed as error:
        stop(str(error), code=REFUSED)
    block = channel_block(
        backend=_BACKENDS[domain],
        chain_id=chain_id,
        rpc_url=rpc_url,
        escrow=done.address,
        currency=currency or "ADDRESS OF YOUR USD TOKEN",
    )
    emit(_body(done, block), as_json=as_json, text=_text(done, block))


def channel_block(*, backend: str, chain_id: int, rpc_url: str, escrow: str, currency: str) -> str:
    """The lines of farebox.toml that offer channels on an escrow."""
    return "\n".join(
        (
            "[[mpp.channels]]",
            f'backend = "{backend}"',
            f"chain_id = {chain_id}",
            f'rpc_url = "{rpc_url}"',
            f'escrow = "{escrow}"',
            f'currency = "{currency}"',
        )
    )


def _body(done: Deployment, block: str) -> dict[str, str | int]:
    return {
        "address": done.address,
        "chain_id": done.chain_id,
        "domain": done.domain,
        "transaction": done.transaction_hash,
        "block": done.block_number,
        "deployer": done.deployer,
        "config": block,
    }


def _text(done: Deployment, block: str) -> str:
    said = f"{done.address} on chain {done.chain_id}, in block {done.block_number} ({done.transaction_hash})"
    return f"{said}\n\nFor farebox.toml:\n\n{block}"
