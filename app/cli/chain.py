"""``farebox chain``: whether the nodes answer, what is owed, and whether the chain agrees with the books."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from app.cli.output import emit, table
from app.cli.session import REFUSED, AsJson, Config, open_books

if TYPE_CHECKING:
    from app.chain.backend import ChannelBackend
    from app.cli.chain_session import ChainBooks
    from app.reconcile.chain_check import ChainReport

app = typer.Typer(help="The chains that wallets pay on.", no_args_is_help=True)

_NODES = {
    "kind": "KIND",
    "chain_id": "CHAIN",
    "node": "NODE",
    "head": "HEAD",
    "head_age_s": "AGE (S)",
    "blocks_behind": "UNREAD",
    "account": "ACCOUNT",
    "balance": "BALANCE (USD)",
}
_EXPOSURES = {
    "kind": "KIND",
    "chain_id": "CHAIN",
    "open": "OPEN",
    "closing": "CLOSING",
    "deposit": "DEPOSITS (USD)",
    "uncollected": "UNCOLLECTED (USD)",
}
_SETTLEMENTS = {
    "channel_id": "CHANNEL",
    "kind": "KIND",
    "state": "STATE",
    "attempts": "FAILED",
    "transaction": "TRANSACTION",
    "error": "ERROR",
}
_DIFFERENCES = {"channel_id": "CHANNEL", "what": "WHAT", "books": "BOOKS", "chain": "CHAIN"}
CHANNELS_MAX = 100_000


@app.callback()
def chain() -> None:
    """Look at the chains."""


@app.command()
def status(
    check: Annotated[
        bool, typer.Option("--check", help="Compare every channel that is not closed with its escrow.")
    ] = (False),
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show nodes, accounts, the outbox and what is uncollected; exit 1 if a node is away or a channel differs.

    Reads only, and can run beside a busy server.
    """
    with open_books(config) as books:
        import asyncio

        from app.cli.chain_session import ChainBooks

        chain_books = ChainBooks(books)
        nodes, report = asyncio.run(_ask(chain_books, check=check))
        body = _stored(chain_books) | {"nodes": nodes}
        if report is not None:
            body["check"] = _shown(report)
        emit(body, as_json=as_json, text=_text(body))
    if any(node["node"] != "ok" for node in nodes) or (report is not None and not report.green):
        raise typer.Exit(REFUSED)


async def _ask(chain_books: ChainBooks, *, check: bool) -> tuple[list[dict[str, Any]], ChainReport | None]:
    import asyncio

    from app.chain.places import Places
    from app.reconcile.chain_check import compare

    async with chain_books.journal() as journal, chain_books.backends(journal) as backends:
        nodes = list(await asyncio.gather(*(_node(chain_books, backend) for backend in backends)))
        if not check:
            return nodes, None
        places = Places(backends, chain_books.books.settings.mpp)
        store = chain_books.channels()
        records = [*store.list(status="open", limit=CHANNELS_MAX), *store.list(status="closing", limit=CHANNELS_MAX)]
        return nodes, await compare(places, records)


async def _node(chain_books: ChainBooks, backend: ChannelBackend) -> dict[str, Any]:
    """One backend's node: reachable, the right chain, how far it is and how far it was read."""
    from app.chain.backend import ChainUnavailable
    from app.chain.places import watch_name
    from app.clock import MS_PER_SECOND
    from app.settings import SettingsError

    offer = backend.offer
    shown: dict[str, Any] = {
        "kind": offer.backend,
        "chain_id": offer.chain_id,
        "escrow": offer.escrow,
        "account": backend.account,
        "node": "ok",
        "head": None,
        "head_age_s": None,
        "blocks_behind": None,
        "balance": None,
    }
    kept = chain_books.outbox().position(watch_name(backend))
    try:
        await backend.check()
        head = await backend.head()
        shown["balance"] = await _balance(backend)
    except (ChainUnavailable, SettingsError) as error:
        return shown | {"node": str(error)}
    return shown | {
        "head": head.block,
        "head_age_s": max(0, chain_books.books.clock.now_ms() // MS_PER_SECOND - head.timestamp),
        "blocks_behind": None if kept is None else max(0, head.block - kept[0]),
    }


async def _balance(backend: ChannelBackend) -> str | None:
    """What the settlement account has of the token, where the backend can tell: Tempo's fees are paid from it."""
    from app.chain.escrow import EscrowBackend
    from app.money import format_usd, nano_usd_of

    return format_usd(nano_usd_of(await backend.balance())) if isinstance(backend, EscrowBackend) else None


def _stored(chain_books: ChainBooks) -> dict[str, Any]:
    from app.cli.channels import settlement_row
    from app.money import format_usd, nano_usd_of

    outbox = chain_books.outbox()
    exposures = [
        {
            "kind": kind.backend,
            "chain_id": kind.chain_id,
            "escrow": kind.escrow,
            "open": kind.open,
            "closing": kind.closing,
            "deposit": format_usd(nano_usd_of(kind.deposit)),
            "uncollected": format_usd(kind.uncollected),
        }
        for kind in outbox.exposures()
    ]
    rows = [*outbox.open_settlements(), *outbox.failed_settlements()]
    return {
        "exposures": exposures,
        "settlements": [settlement_row(row) | {"channel_id": row.channel_id} for row in rows],
    }


def _shown(report: ChainReport) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "green": report.green,
        "compared": report.compared,
        "differences": [asdict(found) for found in report.differences],
        "unseen": [asdict(found) for found in report.unseen],
    }


def _text(body: dict[str, Any]) -> str:
    parts = [
        table(body["nodes"], _NODES, empty="no [[mpp.channels]] are configured"),
        table(body["exposures"], _EXPOSURES, empty="no channels are open"),
        table(body["settlements"], _SETTLEMENTS, empty="no settlement is under way, and none failed"),
    ]
    if "check" in body:
        found = body["check"]
        agrees = f"the chain agrees with the books ({found['compared']} channels)"
        parts.append(table([*found["differences"], *found["unseen"]], _DIFFERENCES, empty=agrees))
    return "\n\n".join(parts)
