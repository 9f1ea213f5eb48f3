"""``farebox serve`` and ``farebox migrate``."""

import typer

from app.cli.output import emit
from app.cli.session import UNUSABLE, AsJson, Config, load_settings, open_books, stop


def serve(config: Config = None, as_json: AsJson = False) -> None:
    """Serve until SIGTERM or Ctrl-C; streams then finish or are billed for what was delivered.

    Example: farebox serve --config farebox.toml
    """
    settings = load_settings(config)

    from sqlalchemy.exc import DBAPIError

    from app.bootstrap import serve as serve_settings
    from app.cli.session import reason
    from app.database import DatabaseUnavailable
    from app.settings import SettingsError

    try:
        code = serve_settings(settings)
    except (SettingsError, DatabaseUnavailable) as error:
        stop(str(error), code=UNUSABLE)
    except DBAPIError as error:
        stop(f"the database: {reason(error)}", code=UNUSABLE)
    raise typer.Exit(code)


def migrate(config: Config = None, as_json: AsJson = False) -> None:
    """Bring the database to this version's schema; every other command does it when needed."""
    with open_books(config, create=True) as books:
        from app.cli.session import describe

        where = describe(books.engine)
        emit({"database": where, "current": True}, as_json=as_json, text=f"{where} is current")
