"""The options that several commands share, and the wallet that they make."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

from farebox_client.amounts import usd
from farebox_client.channel import PATH_USD
from farebox_client.flow import run
from farebox_client.limits import Limits
from farebox_client.node import Node
from farebox_client.store import Store
from farebox_client.trust import Trust
from farebox_client.wallet import STORE_ENV, OnReceipt, OnVoucher, Wallet, default_store

_WHO, _WHOM, _MUCH = "Who pays", "Whom to trust", "How much at most"

KeyEnv = Annotated[
    str, typer.Option(help="Variable that holds the wallet's private key in hexadecimal.", rich_help_panel=_WHO)
]
StorePath = Annotated[
    Path | None,
    typer.Option("--store", envvar=STORE_ENV, help="Channel file; shared by all processes.", rich_help_panel=_WHO),
]
BaseUrl = Annotated[
    str,
    typer.Option(envvar="FAREBOX_CLIENT_BASE_URL", help="The server's API.", rich_help_panel=_WHOM),
]
RpcUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--rpc-url",
        envvar="FAREBOX_CLIENT_RPC_URL",
        help="JSON-RPC of a node to trust; its chain is the one that is paid on. May be repeated.",
        rich_help_panel=_WHOM,
    ),
]
Payees = Annotated[
    list[str] | None,
    typer.Option(
        "--payee",
        envvar="FAREBOX_CLIENT_PAYEE",
        help="Address that the server may be paid at. May be repeated.",
        rich_help_panel=_WHOM,
    ),
]
Tokens = Annotated[
    list[str] | None,
    typer.Option(
        "--token",
        envvar="FAREBOX_CLIENT_TOKEN",
        help="USD token to pay in, with six decimals; pathUSD by default. May be repeated.",
        rich_help_panel=_WHOM,
    ),
]
Escrows = Annotated[
    list[str] | None,
    typer.Option(
        "--escrow",
        envvar="FAREBOX_CLIENT_ESCROW",
        help="Escrow contract to trust with deposits, beside Tempo's channel reserve. May be repeated.",
        rich_help_panel=_WHOM,
    ),
]
FirstUse = Annotated[
    bool,
    typer.Option(
        "--trust-on-first-use",
        help="Take the payee that a server names first, and no other afterwards.",
        rich_help_panel=_WHOM,
    ),
]
MaxCost = Annotated[str, typer.Option(help="USD that this request may cost.", rich_help_panel=_MUCH)]
MaxDeposit = Annotated[str, typer.Option(help="USD in one channel's deposit.", rich_help_panel=_MUCH)]
MaxDay = Annotated[str, typer.Option(help="USD that may be signed in one UTC day.", rich_help_panel=_MUCH)]
MaxFee = Annotated[str, typer.Option(help="USD in fees for one transaction.", rich_help_panel=_MUCH)]
MaxInput = Annotated[
    str | None, typer.Option("--max-input-price", help="USD per million input tokens.", rich_help_panel=_MUCH)
]
MaxOutput = Annotated[
    str | None, typer.Option("--max-output-price", help="USD per million output tokens.", rich_help_panel=_MUCH)
]
ChannelId = Annotated[
    str | None, typer.Argument(help="The channel's id or how it begins; not needed where there is only one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object on standard output.")]
KEY_ENV = "FAREBOX_WALLET_KEY"
BASE_URL = "http://127.0.0.1:8402/v1"


def amount(text: str, option: str) -> int:
    """An amount that was typed. Raises `typer.BadParameter`."""
    try:
        return usd(text)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint=option) from error


def make_wallet(
    *,
    key_env: str,
    store: Path | None,
    trust: Trust,
    limits: Limits | None = None,
    on_receipt: OnReceipt | None = None,
    on_voucher: OnVoucher | None = None,
) -> Wallet:
    """The wallet of the key in a variable. Raises `typer.BadParameter` without showing it."""
    key = os.environ.get(key_env)
    if not key:
        raise typer.BadParameter(f"set ${key_env} to the wallet's private key", param_hint="--wallet-key-env")
    try:
        return Wallet.from_key(
            key, trust=trust, limits=limits, store=store, on_receipt=on_receipt, on_voucher=on_voucher
        )
    except ValueError as error:
        raise typer.BadParameter(f"${key_env}: {error}", param_hint="--wallet-key-env") from error


def make_trust(
    *,
    rpc_urls: Sequence[str] | None,
    tokens: Sequence[str] | None = None,
    escrows: Sequence[str] | None = None,
    payees: dict[str, Sequence[str]] | None = None,
    first_use: bool = False,
) -> Trust:
    """What the options trust: each node is asked for its chain. Raises `typer.BadParameter` and `ChainError`."""
    chains = {_chain_id(url): url for url in rpc_urls or ()}
    named: dict[str, Any] = {
        "rpc_urls": chains,
        "tokens": {chain: tokens or [PATH_USD] for chain in chains},
        "escrows": {chain: escrows or [] for chain in chains},
        "payees": {url: names for url, names in (payees or {}).items() if names},
    }
    try:
        return Trust(**named, trust_on_first_use=first_use)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--payee, --token or --escrow") from error


def open_store(path: Path | None) -> Store:
    """The channel file that was named, or the usual one."""
    return Store(path or default_store())


def _chain_id(url: str) -> int:
    try:
        Trust(rpc_urls={1: url}, tokens={})
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--rpc-url") from error
    with httpx.HTTPTransport() as node:
        return run(Node(url, chain_id=0).number("eth_chainId"), node, node)
