"""``farebox serve`` and ``farebox migrate``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Annotated

import typer

from app.cli.output import emit
from app.cli.session import UNUSABLE, AsJson, Config, load_settings, open_books, stop

if TYPE_CHECKING:
    from app.banner import Wallet
    from app.settings import Settings


def serve(
    *,
    config: Config = None,
    devnet: Annotated[
        bool,
        typer.Option(
            "--devnet",
            help="To try everything: where none is configured, a local chain with play money, and made-up web search.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Serve until SIGTERM or Ctrl-C; streams then finish or are billed for what was delivered.

    Example: farebox serve --config farebox.toml
    """
    from app.settings import SearchSettings

    settings = load_settings(config)
    if devnet and settings.search.backend == "off":
        settings = settings.model_copy(update={"search": SearchSettings(backend="sandbox")})
    if devnet and not settings.mpp.channels:
        _serve_with_devnet(settings)
    else:
        _serve(settings)


def _serve(settings: Settings, *, wallet: Wallet | None = None) -> None:
    from sqlalchemy.exc import DBAPIError

    from app.bootstrap import serve as serve_settings
    from app.cli.session import reason
    from app.database import DatabaseUnavailable
    from app.settings import SettingsError

    try:
        code = serve_settings(settings, wallet=wallet)
    except (SettingsError, DatabaseUnavailable) as error:
        stop(str(error), code=UNUSABLE)
    except DBAPIError as error:
        stop(f"the database: {reason(error)}", code=UNUSABLE)
    raise typer.Exit(code)


def _serve_with_devnet(settings: Settings) -> None:
    """With wallets on a local chain; without, where the chain cannot be had: keys work all the same."""
    from app.banner import Wallet
    from app.devnet.chain import TransactionFailed
    from app.devnet.node import NodeFailed
    from app.devnet.rpc import RpcFailed
    from app.devnet.serving import local_payments, state_beside
    from app.devnet.toolchain import ToolchainUnavailable

    with ExitStack() as stack:
        try:
            local = stack.enter_context(local_payments(settings, port=0, state_file=state_beside(settings)))
        except (ToolchainUnavailable, NodeFailed, RpcFailed, TransactionFailed, OSError) as error:
            typer.echo(f"no local chain, so no payments from wallets: {error}", err=True)
            _serve(settings)
        else:
            _serve(local.settings, wallet=Wallet(local.rpc_url, local.payee, local.wallet_key))


def migrate(config: Config = None, as_json: AsJson = False) -> None:
    """Bring the database to this version's schema; every other command does it when needed."""
    with open_books(config, create=True) as books:
        from app.cli.session import describe

        where = describe(books.engine)
        emit({"database": where, "current": True}, as_json=as_json, text=f"{where} is current")
