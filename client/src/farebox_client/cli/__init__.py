"""The command line. What was asked for goes to standard output, all else to standard error.

Exit codes: 0 done; 2 wrong usage; 3 not trusted; 4 a limit was reached; 5 the server misbehaved; 6 the server
refused the payment; 7 no such channel, or not usable now; 8 too little money; 9 the chain; 10 the channel file;
11 the server could not be reached, or failed; 130 interrupted.
"""

import sys

import httpx
import typer

from farebox_client.cli import chat, manage
from farebox_client.errors import PaymentError

UNREACHABLE = 11
INTERRUPTED = 130

app = typer.Typer(
    name="farebox-client",
    help="Pays for LLM tokens from a wallet, through a payment channel: no account and no API key.",
    epilog="Start with: farebox-client chat 'Hello' --rpc-url URL --payee ADDRESS (the server's operator tells both). "
    "Exit codes: 2 usage, 3 not trusted, 4 limit, 5 server misbehaved, 6 refused, 7 channel, 8 money, 9 chain, "
    "10 channel file, 11 server not reached.",
    no_args_is_help=True,
    add_completion=False,
    # Local variables of a traceback could hold a key.
    pretty_exceptions_show_locals=False,
)
app.command("chat")(chat.chat)
app.command("channels")(manage.channels)
app.command("balance")(manage.balance)
app.command("close")(manage.close)
app.command("top-up")(manage.top_up)
app.command("request-close")(manage.request_close)
app.command("withdraw")(manage.withdraw)


def main() -> None:
    """The console script's entry: errors are one sentence and an exit code."""
    try:
        app()
    except PaymentError as error:
        _leave(str(error), error.exit_code)
    except httpx.HTTPError as error:
        _leave(f"the server could not be reached: {error}", UNREACHABLE)
    except KeyboardInterrupt:
        _leave("interrupted", INTERRUPTED)


def _leave(message: str, code: int) -> None:
    typer.echo(f"farebox-client: {message}", err=True)
    sys.exit(code)
