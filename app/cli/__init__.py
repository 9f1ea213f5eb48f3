"""The command line. Every command takes ``--config`` and ``--json``; with ``--json``, standard output
is one JSON object and nothing else.

Exit codes: 0 done; 1 refused, not found, or the books do not balance; 2 wrong usage, a configuration
that cannot be used, or no database. What is heavy to import is imported by the command that needs it.
"""

from typing import Annotated

import typer

from app import __version__
from app.cli import (
    catalog,
    chain,
    channels,
    contracts,
    customers,
    devnet,
    doctor,
    keys,
    ledger,
    money,
    secret,
    server,
    usage,
)
from app.cli.session import AsJson, Config

app = typer.Typer(
    name="farebox",
    help="Farebox sells LLM tokens from prepaid balances, and can prove its books.",
    epilog="Start with: farebox serve. Then: farebox keys create --credit 5.00",
    no_args_is_help=True,
    add_completion=False,
    # Local variables of a traceback could hold a key.
    pretty_exceptions_show_locals=False,
)
app.command("serve")(server.serve)
app.add_typer(keys.app, name="keys")
app.add_typer(customers.app, name="customers")
app.command("credit")(money.credit)
app.add_typer(money.refunds, name="refund")
app.command("models")(catalog.models)
app.command("prices")(catalog.prices)
app.command("usage")(usage.usage)
app.add_typer(ledger.app, name="ledger")
app.command("doctor")(doctor.doctor)
app.command("migrate")(server.migrate)
app.add_typer(secret.app, name="secret")
app.add_typer(channels.app, name="channels")
app.add_typer(chain.app, name="chain")
app.add_typer(contracts.app, name="contracts")
app.command("devnet")(devnet.devnet)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"farebox {__version__}")
        raise typer.Exit


@app.callback()
def options(
    config: Config = None,
    as_json: AsJson = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = (
        False
    ),
) -> None:
    """Take the options that stand before the command."""


def main() -> None:
    """The console script's entry."""
    app()
