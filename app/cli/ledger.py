"""``farebox ledger``: the proof of the books."""

import sys

import typer

from app.cli.output import emit
from app.cli.session import REFUSED, AsJson, Config, open_books

app = typer.Typer(help="The ledger.", no_args_is_help=True)


@app.callback()
def ledger() -> None:
    """Prove the books."""


@app.command()
def check(config: Config = None, as_json: AsJson = False) -> None:
    """Recompute every balance and compare every row; exit 1 and name the rows that are wrong.

    Reads only, at one moment, and can run beside a busy server.
    """
    with open_books(config) as books:
        from app.reconcile import ledger_check

        ttl_s = books.settings.ledger.lease_ttl_s
        watched = sys.stderr.isatty()
        report = ledger_check.check(books.engine, books.clock, ttl_s, progress=_progress if watched else None)
        emit(report.to_dict(), as_json=as_json, text=report.to_text())
    if not report.green:
        raise typer.Exit(REFUSED)


def _progress(done: int, steps: int, step: str) -> None:
    # One line that is written over, and cleared at the end.
    text = f"{done}/{steps} {step}" if done < steps else ""
    typer.echo(f"\r\x1b[K{text}", err=True, nl=False)
