"""``farebox channels``: look at payment channels, and settle or close them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.output import emit, record, table
from app.cli.session import REFUSED, AsJson, Config, open_books

if TYPE_CHECKING:
    from app.channels.outbox_store import SettlementRecord
    from app.channels.store import ChannelRecord
    from app.cli.chain_session import ChainBooks
    from app.ledger.journal import Journal

app = typer.Typer(help="Payment channels: what wallets pay by.", no_args_is_help=True)

WAIT_S = 60.0
TURN_S = 0.25
_COLUMNS = {
    "id": "CHANNEL",
    "kind": "KIND",
    "status": "STATUS",
    "deposit": "DEPOSIT",
    "accepted": "ACCEPTED",
    "spent": "SPENT",
    "held": "HELD",
    "settled": "SETTLED",
    "opened_at": "OPENED",
}
_SETTLEMENT_COLUMNS = {
    "id": "ID",
    "kind": "KIND",
    "state": "STATE",
    "capture": "IN ALL",
    "nonce": "NONCE",
    "attempts": "FAILED",
    "transaction": "TRANSACTION",
    "updated_at": "SINCE",
    "error": "ERROR",
}

ChannelId = Annotated[str, typer.Argument(metavar="CHANNEL_ID", help="The channel's id, 0x..., or its beginning.")]
Wait = Annotated[
    float,
    typer.Option("--wait", metavar="SECONDS", min=0, help="Without a running server: how long to wait for the chain."),
]


@app.command("list")
def list_channels(
    status: Annotated[str | None, typer.Option("--status", help="Only open, closing or closed ones.")] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=10_000, help="At most so many.")] = 1000,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """List channels, the newest first. Amounts are USD."""
    with open_books(config) as books:
        from app.cli.chain_session import ChainBooks
        from app.errors import InvalidRequest

        if status not in {None, "open", "closing", "closed"}:
            raise InvalidRequest("--status is open, closing or closed", param="--status")
        rows = [_row(channel) for channel in ChainBooks(books).channels().list(status=status, limit=limit)]
        emit({"channels": rows}, as_json=as_json, text=table(rows, _COLUMNS, empty="no channels"))


@app.command()
def show(channel_id: ChannelId, config: Config = None, as_json: AsJson = False) -> None:
    """Show one channel and its settlements. Amounts are USD."""
    with open_books(config) as books:
        from app.cli.chain_session import ChainBooks

        chain = ChainBooks(books)
        channel = chain.channel(channel_id)
        settlements = [settlement_row(row) for row in chain.outbox().settlements_of(channel.id)]
        body = _row(channel) | {
            "uncollected": _usd(channel.view.spent - channel.view.settled * 1000),
            "chain_id": channel.chain_id,
            "escrow": channel.escrow,
            "token": channel.descriptor.token,
            "payer": channel.descriptor.payer,
            "payee": channel.descriptor.payee,
            "close_requested_at": channel.view.close_requested_at or None,
        }
        text = record(body) + "\n\n" + table(settlements, _SETTLEMENT_COLUMNS, empty="no settlements")
        emit(body | {"settlements": settlements}, as_json=as_json, text=text)


@app.command(epilog="Example: farebox channels settle 0x5f0c...")
def settle(channel_id: ChannelId, wait: Wait = WAIT_S, config: Config = None, as_json: AsJson = False) -> None:
    """Collect what a channel owes now, as far as its vouchers are spent, and leave it open.

    A running server does it; where none runs, this command does.
    """
    with open_books(config) as books:
        from app.cli.chain_session import ChainBooks

        chain = ChainBooks(books)
        _carry_out(chain, chain.channel(channel_id), kind="settle", wait_s=wait, as_json=as_json)


@app.command(epilog="Example: farebox channels close 0x5f0c...")
def close(channel_id: ChannelId, wait: Wait = WAIT_S, config: Config = None, as_json: AsJson = False) -> None:
    """Stop service on a channel for good, collect what was spent, and give the payer the rest.

    What runs on it is captured first. A running server closes it; where none runs, this command does.
    """
    with open_books(config) as books:
        from app.cli.chain_session import ChainBooks

        chain = ChainBooks(books)
        _carry_out(chain, chain.channel(channel_id), kind="close", wait_s=wait, as_json=as_json)


def _carry_out(chain: ChainBooks, channel: ChannelRecord, *, kind: str, wait_s: float, as_json: bool) -> None:
    import asyncio

    from app.errors import NotFound

    if channel.view.status == "closed":
        raise NotFound(f"{channel.id} is closed already")
    with chain.no_server() as alone:
        message, done = asyncio.run(_work(chain, channel, kind=kind, alone=alone, wait_s=wait_s))
    after = chain.channel(channel.id)
    last = next(iter(chain.outbox().settlements_of(channel.id, limit=1)), None)
    body = _row(after) | {"message": message, "settlement": settlement_row(last) if last else None}
    emit(body, as_json=as_json, text=f"{channel.id}: {message}")
    if not done:
        raise typer.Exit(REFUSED)


async def _work(
    chain: ChainBooks, channel: ChannelRecord, *, kind: str, alone: bool, wait_s: float
) -> tuple[str, bool]:
    """Write the intent, and do the work where no server will; what to say, and whether all went well."""
    from app.ledger.operation import Freeze

    async with chain.journal() as journal:
        if kind == "close":
            # All that a running server needs: it closes what is frozen.
            await journal.submit(Freeze(channel.id))
            held = chain.channel(channel.id).view.held
            if not alone:
                return "frozen; the running server closes it as soon as nothing runs on it", True
            if held:
                left = f"{_usd(held)} USD are held by requests of a server that was killed"
                return f"frozen; {left}: `farebox serve` resolves them and then closes it", False
            if any(row.state in {"intent", "signed"} for row in chain.outbox().settlements_of(channel.id, limit=1)):
                return await _finish(chain, channel, journal, wait_s=wait_s, kind=kind)
        async with chain.backends(journal) as backends:
            settler = chain.settler(backends, journal)
            await settler.order(channel.id, kind=kind)
        if not alone:
            return "planned; the running server settles it", True
        return await _finish(chain, channel, journal, wait_s=wait_s, kind=kind)


async def _finish(
    chain: ChainBooks, channel: ChannelRecord, journal: Journal, *, wait_s: float, kind: str
) -> tuple[str, bool]:
    """Take the outbox on until the channel's settlement has ended."""
    import asyncio

    clock = chain.books.clock
    ends_s = clock.monotonic_s() + wait_s
    async with chain.backends(journal) as backends:
        settler = chain.settler(backends, journal)
        try:
            while True:
                await settler.turn()
                last = chain.outbox().settlements_of(channel.id, limit=1)[0]
                if last.state == "failed":
                    return f"it failed: {last.error}", False
                if last.state == "confirmed" and kind in {last.kind, "settle"}:
                    done = "closed" if last.kind == "close" else "settled"
                    return f"{done} by {last.tx_hash}; {_usd(last.capture * 1000)} USD in all", True
                if clock.monotonic_s() >= ends_s:
                    return f"not mined yet ({last.error or 'no error'}); `farebox serve` goes on with it", False
                await asyncio.sleep(TURN_S)
        finally:
            await settler.stop()


def _row(channel: ChannelRecord) -> dict[str, Any]:
    from app.clock import to_rfc3339

    view = channel.view
    return {
        "id": channel.id,
        "kind": channel.backend,
        "status": "close requested" if view.status == "open" and view.close_requested_at else view.status,
        "deposit": _usd(view.deposit * 1000),
        "accepted": _usd(view.accepted),
        "spent": _usd(view.spent),
        "held": _usd(view.held),
        "settled": _usd(view.settled * 1000),
        "opened_at": to_rfc3339(channel.created_at),
    }


def settlement_row(row: SettlementRecord) -> dict[str, Any]:
    """A row of the outbox as it is shown; amounts are USD."""
    from app.clock import to_rfc3339

    return {
        "id": row.id,
        "kind": row.kind,
        "state": row.state,
        "capture": _usd(row.capture * 1000),
        "nonce": row.nonce,
        "attempts": row.attempts,
        "transaction": row.tx_hash,
        "fee": None if row.fee is None else _usd(row.fee * 1000),
        "updated_at": to_rfc3339(row.updated_at),
        "error": row.error,
    }


def _usd(amount: int) -> str:
    from app.money import NanoUsd, format_usd

    return format_usd(NanoUsd(amount))
