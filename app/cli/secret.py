"""``farebox secret``: the secret that payment challenges are bound with."""

import typer

from app.cli.output import emit
from app.cli.session import UNUSABLE, AsJson, Config, open_books, stop

app = typer.Typer(help="The secret of payment challenges.", no_args_is_help=True)


@app.callback()
def group() -> None:
    """Commands about secrets."""


@app.command()
def rotate(config: Config = None, as_json: AsJson = False) -> None:
    """Make a new challenge secret; challenges that are out stay valid until they expire. Restart the server after it.

    With the secret in the environment, rotate it there: put the old one into FAREBOX_MPP_SECRET_PREVIOUS.
    """
    from app.rails.mpp_secrets import rotate_challenge_secret
    from app.settings import SettingsError

    with open_books(config, create=True) as books:
        try:
            path = rotate_challenge_secret(books.engine)
        except SettingsError as error:
            stop(str(error), code=UNUSABLE)
    emit({"secret": path, "rotated": True}, as_json=as_json, text=f"{path} is new; restart the server")
