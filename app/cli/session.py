"""What commands share: the options that each takes, and the books that they open.

Errors become one line on standard error here, so that no command shows a traceback for a wrong
setting, a database that is away, or a refusal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from app.clock import Clock
    from app.ledger.transfer import Transfer
    from app.money import NanoUsd
    from app.rails.customer_store import CustomerStore
    from app.rails.key_store import KeyStore
    from app.settings import Settings

REFUSED = 1
UNUSABLE = 2
_CONFIG = "app.cli.config"
_JSON = "app.cli.json"


def _remembered(name: str) -> Callable[[typer.Context, Any], Any]:
    """An option may stand before or after the command: what was said before is the default after."""

    def callback(context: typer.Context, value: Any) -> Any:
        if value:
            context.meta[name] = value
        return value or context.meta.get(name, value)

    return callback


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        help="The configuration file; else FAREBOX_CONFIG, else farebox.toml.",
        callback=_remembered(_CONFIG),
        show_default=False,
    ),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object and nothing else.", callback=_remembered(_JSON)),
]


@dataclass(frozen=True, slots=True)
class Books:
    """An open, current database and the settings that name it."""

    settings: Settings
    engine: Engine
    clock: Clock

    def keys(self) -> KeyStore:
        """The keys, with the secret that they are hashed with."""
        from app.rails.key_store import KeyStore
        from app.rails.secret_store import load_secret

        return KeyStore(self.engine, self.clock, load_secret(self.settings, self.engine))

    def customers(self) -> CustomerStore:
        """The customers."""
        from app.rails.customer_store import CustomerStore

        return CustomerStore(self.engine, self.clock)

    def customer_id(self, customer_or_key: str) -> str:
        """The customer that an argument names, directly or by one of its keys. Raises `NotFound`."""
        if customer_or_key.startswith("key_"):
            return self.keys().read(customer_or_key).customer_id
        return self.customers().read(customer_or_key).id

    def post(self, transfer: Transfer) -> bool:
        """Post a transfer on the journal's own conditional path; false if it had been done before."""
        from app.ledger.journal_store import JournalStore
        from app.ledger.operation import Post
        from app.rails import funds
        from app.rails.funds_store import FundsStore

        if FundsStore(self.engine).was_done(transfer):
            return False
        store = JournalStore(self.engine, self.clock)
        try:
            first = funds.check_posted(store.apply([Post(transfer)])[0])
        finally:
            store.close()
        if not first:
            FundsStore(self.engine).was_done(transfer)
        return first


def load_settings(config: Path | None) -> Settings:
    """The settings, or one line on standard error and exit code 2."""
    from app import settings

    try:
        return settings.load(config)
    except settings.SettingsError as error:
        stop(str(error), code=UNUSABLE)


@contextmanager
def open_books(config: Path | None, *, create: bool = False) -> Iterator[Books]:
    """The books of a configuration, migrated if they need it.

    Without ``create``, an SQLite file that is not there is an error: an empty new one would look like
    books that balance.
    """
    from alembic.util import CommandError
    from sqlalchemy.exc import DBAPIError

    from app import database
    from app.clock import SystemClock
    from app.errors import FareboxError
    from app.settings import SettingsError

    settings = load_settings(config)
    engine = database.connect(settings.database)
    try:
        _must_exist(engine, create=create)
        with engine.connect() as connection:
            current = database.schema_is_current(connection)
        if not current:
            database.migrate(engine)
        yield Books(settings, engine, SystemClock())
    except FareboxError as error:
        stop(error.message, code=REFUSED)
    except (SettingsError, database.DatabaseUnavailable) as error:
        stop(str(error), code=UNUSABLE)
    except CommandError as error:
        stop(f"{describe(engine)}: its schema is not known to this version of farebox ({error})", code=UNUSABLE)
    except (DBAPIError, engine.dialect.loaded_dbapi.Error) as error:
        stop(f"{describe(engine)}: {reason(error)}", code=UNUSABLE)
    finally:
        engine.dispose()


def describe(engine: Engine) -> str:
    """The database's URL without its password."""
    return engine.url.render_as_string(hide_password=True)


def reason(error: BaseException) -> str:
    """The driver's own first line, without the statement and its parameters."""
    original = getattr(error, "orig", None) or error
    return str(original).strip().partition("\n")[0] or type(original).__name__


def _must_exist(engine: Engine, *, create: bool) -> None:
    from app.database import DatabaseUnavailable, is_sqlite

    path = engine.url.database
    if not create and is_sqlite(engine) and path and not Path(path).exists():
        raise DatabaseUnavailable(
            f"{path} does not exist yet: start with `farebox serve` or `farebox keys create`, or name another --config"
        )


def amount(text: str, *, param: str) -> NanoUsd:
    """An amount in USD as typed. Raises `InvalidRequest`."""
    from app.errors import InvalidRequest
    from app.money import parse_usd

    try:
        return parse_usd(text)
    except ValueError as error:
        raise InvalidRequest(f"{param}: {error}", param=param) from error


def stop(message: str, *, code: int) -> NoReturn:
    """End with one line on standard error."""
    typer.echo(f"farebox: {message}", err=True)
    raise typer.Exit(code)
