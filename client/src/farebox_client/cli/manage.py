"""``farebox-client channels``, ``balance``, ``close``, ``top-up``, ``request-close`` and ``withdraw``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from farebox_client.amounts import show
from farebox_client.channel import Channel
from farebox_client.cli import options
from farebox_client.limits import Limits
from farebox_client.transport import PayingTransport

AMOUNT_HELP = "USD to add to the deposit."


def channels(store: options.StorePath = None, as_json: options.AsJson = False) -> None:
    """List the channels in the channel file, newest first. Asks nobody."""
    opened = options.open_store(store)
    found = opened.channels()
    opened.close()
    if as_json:
        typer.echo(json.dumps({"channels": [_record(channel) for channel in found]}, indent=2))
        return
    if not found:
        typer.echo("no channels")
        return
    lines = [("channel", "status", "kind", "server", "deposit", "signed", "spent")]
    for channel in found:
        amounts = (show(channel.deposit), show(channel.signed), show(channel.spent))
        lines.append((channel.channel_id[:18], channel.status, channel.parts.kind, channel.origin, *amounts))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(map(str.ljust, line, widths)).rstrip())


def balance(
    channel: options.ChannelId = None,
    *,
    wallet_key_env: options.KeyEnv = options.KEY_ENV,
    store: options.StorePath = None,
    rpc_url: options.RpcUrls = None,
    as_json: options.AsJson = False,
) -> None:
    """Show a channel's money as the chain has it now."""
    with _transport(wallet_key_env, store, rpc_url) as transport:
        found = transport.balance(channel)
    members = {
        "channel": found.channel.channel_id,
        "deposit": show(found.deposit),
        "settled": show(found.settled),
        "spent": show(found.spent),
        "signed": show(found.signed),
        "remaining": show(found.remaining),
    }
    _print(members, as_json)


def close(
    channel: options.ChannelId = None,
    *,
    wallet_key_env: options.KeyEnv = options.KEY_ENV,
    store: options.StorePath = None,
    rpc_url: options.RpcUrls = None,
    as_json: options.AsJson = False,
) -> None:
    """Have the server close a channel: it keeps what was spent, the rest of the deposit comes back."""
    with _transport(wallet_key_env, store, rpc_url) as transport:
        receipt = transport.close_channel(channel)
    members = {"channel": receipt.channel_id, "spent": show(receipt.spent), "transaction": receipt.tx_hash}
    _print(members, as_json)


def top_up(
    amount: Annotated[str, typer.Argument(help=AMOUNT_HELP)],
    channel: options.ChannelId = None,
    *,
    wallet_key_env: options.KeyEnv = options.KEY_ENV,
    store: options.StorePath = None,
    rpc_url: options.RpcUrls = None,
    max_deposit: options.MaxDeposit = "10.00",
    max_fee: options.MaxFee = "0.10",
    as_json: options.AsJson = False,
) -> None:
    """Add to a channel's deposit. Cancels a close that was requested."""
    limits = Limits(
        per_channel=options.amount(max_deposit, "--max-deposit"), per_fee=options.amount(max_fee, "--max-fee")
    )
    with _transport(wallet_key_env, store, rpc_url, limits) as transport:
        found = transport.top_up(options.amount(amount, "amount"), channel)
    _print({"channel": found.channel_id, "deposit": show(found.deposit)}, as_json)


def request_close(
    channel: options.ChannelId = None,
    *,
    wallet_key_env: options.KeyEnv = options.KEY_ENV,
    store: options.StorePath = None,
    rpc_url: options.RpcUrls = None,
    max_fee: options.MaxFee = "0.10",
    as_json: options.AsJson = False,
) -> None:
    """Ask the chain for a deposit back, where the server is gone. Then wait, and withdraw."""
    limits = Limits(per_fee=options.amount(max_fee, "--max-fee"))
    with _transport(wallet_key_env, store, rpc_url, limits) as transport:
        _print({"transaction": transport.request_close(channel)}, as_json)


def withdraw(
    channel: options.ChannelId = None,
    *,
    wallet_key_env: options.KeyEnv = options.KEY_ENV,
    store: options.StorePath = None,
    rpc_url: options.RpcUrls = None,
    max_fee: options.MaxFee = "0.10",
    as_json: options.AsJson = False,
) -> None:
    """Take a deposit back after request-close and the escrow's grace period."""
    limits = Limits(per_fee=options.amount(max_fee, "--max-fee"))
    with _transport(wallet_key_env, store, rpc_url, limits) as transport:
        _print({"transaction": transport.withdraw(channel)}, as_json)


def _transport(
    key_env: str, store: Path | None, rpc_urls: Sequence[str] | None, limits: Limits | None = None
) -> PayingTransport:
    trust = options.make_trust(rpc_urls=rpc_urls)
    wallet = options.make_wallet(key_env=key_env, store=store, trust=trust, limits=limits)
    return PayingTransport(wallet, raises=True)


def _print(members: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(members, indent=2))
        return
    width = max(map(len, members))
    for name, value in members.items():
        typer.echo(f"{name.ljust(width)}  {value}")


def _record(channel: Channel) -> dict[str, Any]:
    return {
        "channel": channel.channel_id,
        "status": channel.status,
        "kind": channel.parts.kind,
        "chain_id": channel.parts.chain_id,
        "server": channel.origin,
        "payer": channel.parts.payer,
        "payee": channel.parts.payee,
        "token": channel.parts.token,
        "escrow": channel.parts.escrow,
        "deposit": show(channel.deposit),
        "signed": show(channel.signed),
        "accepted": show(channel.accepted),
        "spent": show(channel.spent),
        "close_transaction": channel.close_tx or None,
    }
