"""Engines and migrations: SQLite in WAL mode with full fsync, or PostgreSQL."""

import fcntl
import os
import sqlite3
import time
from pathlib import Path
from typing import Any, TextIO

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event, make_url, text
from sqlalchemy.dialects import postgresql as postgresql_dialect
from sqlalchemy.dialects import sqlite as sqlite_dialect

from app.settings import DatabaseSettings

BUSY_TIMEOUT_MS = 10_000
STATEMENT_TIMEOUT_MS = 30_000
CONNECT_TIMEOUT_S = 5
WAL_PAUSE_S = 0.02
WAL_TRIES_MAX = 500
WAL_PAGES = 8000
MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"
# Two replicas that start together migrate one after the other.
MIGRATION_LOCK = 8402_0001


class DatabaseUnavailable(Exception):
    """The database cannot be reached, or is not at the version this program needs."""


def connect(settings: DatabaseSettings) -> Engine:
    """An engine for ``settings``; opens no connection by itself."""
    url = make_url(settings.url)
    if url.get_backend_name() == "sqlite":
        return _sqlite(url)
    return create_engine(
        url.set(drivername="postgresql+psycopg"),
        pool_size=settings.pool_size,
        max_overflow=settings.pool_size,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}",
            "prepare_threshold": 5,
        },
    )


def _sqlite(url: URL) -> Engine:
    engine = create_engine(
        url,
        hide_parameters=True,
        # The driver's own transactions are off: BEGIN IMMEDIATE is ours to say.
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "isolation_level": None, "cached_statements": 512},
    )

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        _write_ahead(cursor)
        # A checkpoint copies the same few pages back each time: seldom is cheaper, and 32 MB is little.
        settings = (f"wal_autocheckpoint={WAL_PAGES}", f"busy_timeout={BUSY_TIMEOUT_MS}")
        for pragma in ("synchronous=FULL", "foreign_keys=ON", *settings):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A deferred transaction that reads first can fail to write: take the write lock at once.
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _write_ahead(cursor: sqlite3.Cursor) -> None:
    """Switch to WAL, which on a new file that others are opening too is refused without waiting."""
    for _ in range(WAL_TRIES_MAX):
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError:
            time.sleep(WAL_PAUSE_S)
    cursor.execute("PRAGMA journal_mode=WAL")


def is_sqlite(engine: Engine) -> bool:
    """Whether the engine is the embedded default."""
    return engine.dialect.name == "sqlite"


def insert_or_ignore(engine: Engine, table: Table) -> Any:
    """An insert that leaves a row that is there as it is."""
    if is_sqlite(engine):
        return sqlite_dialect.insert(table).on_conflict_do_nothing()
    return postgresql_dialect.insert(table).on_conflict_do_nothing()


def migrate(engine: Engine) -> None:
    """Bring the schema to the newest version; safe when several processes start at once."""
    from alembic import command

    if not is_sqlite(engine):
        with engine.connect() as connection, connection.begin():
            connection.execute(text("SELECT pg_advisory_xact_lock(:n)"), {"n": MIGRATION_LOCK})
            command.upgrade(_alembic(connection), "head")
        return
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        command.upgrade(_alembic(connection), "head")


def schema_is_current(connection: Connection) -> bool:
    """Whether the newest migration has been applied."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    heads = ScriptDirectory(str(MIGRATIONS)).get_heads()
    return set(MigrationContext.configure(connection).get_current_heads()) == set(heads)


def _alembic(connection: Connection) -> Any:
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


class SingleServer:
    """An exclusive lock beside an SQLite file: one serving process, so its holds are its own."""

    def __init__(self, engine: Engine) -> None:
        self._path = f"{engine.url.database}.lock" if is_sqlite(engine) and engine.url.database else None
        self._file: TextIO | None = None

    def acquire(self) -> None:
        """Take the lock. Raises `DatabaseUnavailable` if another process serves from the same file."""
        if self._path is None:
            return
        self._file = open(self._path, "a")  # noqa: SIM115 - held until release
        os.chmod(self._path, 0o600)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            self._file = None
            raise DatabaseUnavailable(
                "another farebox serves from this SQLite file; use PostgreSQL for several replicas"
            ) from error

    def release(self) -> None:
        """Give the lock back; a killed process gives it back too."""
        if self._file is not None:
            self._file.close()
            self._file = None
