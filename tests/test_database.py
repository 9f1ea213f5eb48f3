import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import CheckConstraint, Engine, select, text
from sqlalchemy.exc import DBAPIError

from app import database
from app.database import DatabaseUnavailable, SingleServer, connect, is_sqlite, migrate, schema_is_current
from app.settings import DatabaseSettings
from app.tables import accounts, customers, metadata
from tests.conftest import PostgresServer

WAIT_S_MAX = 30


def test_migrations_make_the_schema_that_the_tables_describe(engine: Engine) -> None:
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, metadata) == []


def test_migrations_make_every_check_that_the_tables_describe(engine: Engine) -> None:
    # Alembic compares no CHECK constraints, and the ledger's are its last line of defence.
    catalogue = (
        "SELECT sql FROM sqlite_master WHERE type = 'table'"
        if is_sqlite(engine)
        else "SELECT conname FROM pg_constraint WHERE contype = 'c'"
    )
    described = {
        str(constraint.name)
        for table in metadata.tables.values()
        for constraint in table.constraints
        if isinstance(constraint, CheckConstraint)
    }
    with engine.connect() as connection:
        made = "\n".join(row[0] for row in connection.execute(text(catalogue)))
    assert described
    assert {name for name in described if name not in made} == set()


def test_migrating_twice_keeps_the_rows(engine: Engine) -> None:
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(customers.insert().values(id="c", name="C", created_at_ms=1))
    migrate(engine)
    with engine.connect() as connection:
        assert connection.execute(select(customers.c.id)).scalars().all() == ["c"]
        assert schema_is_current(connection)


def test_an_empty_database_is_not_current_until_it_is_migrated(tmp_path: Path) -> None:
    engine = connect(DatabaseSettings(url=f"sqlite:///{tmp_path / 'new.db'}"))
    with engine.connect() as connection:
        assert not schema_is_current(connection)
    migrate(engine)
    with engine.connect() as connection:
        assert schema_is_current(connection)
    engine.dispose()


def _migrate_all_at_once(urls: list[str]) -> None:
    engines = [connect(DatabaseSettings(url=url)) for url in urls]
    with ThreadPoolExecutor(len(engines)) as pool:
        for done in [pool.submit(migrate, engine) for engine in engines]:
            done.result()
    with engines[0].connect() as connection:
        assert schema_is_current(connection)
    for engine in engines:
        engine.dispose()


def test_replicas_that_start_together_migrate_postgresql_once(postgres: PostgresServer) -> None:
    url = postgres.create(empty=True)
    _migrate_all_at_once([url] * 4)
    postgres.drop(url)


def test_commands_that_start_together_migrate_sqlite_once(tmp_path: Path) -> None:
    _migrate_all_at_once([f"sqlite:///{tmp_path / 'new.db'}"] * 4)


def test_a_new_sqlite_file_that_another_process_is_writing_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, waited = tmp_path / "new.db", threading.Event()
    monkeypatch.setattr(database, "time", SimpleNamespace(sleep=lambda _seconds: waited.set()))
    monkeypatch.setattr(database, "WAL_TRIES_MAX", 10**9)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    other.execute("CREATE TABLE elsewhere (id)")
    engine = connect(DatabaseSettings(url=f"sqlite:///{path}"))
    with ThreadPoolExecutor(1) as pool:
        migrating = pool.submit(migrate, engine)
        was_waited_for = waited.wait(WAIT_S_MAX)
        other.execute("COMMIT")
        migrating.result()
    other.close()
    engine.dispose()
    assert was_waited_for


def test_a_balance_cannot_go_below_zero_even_by_hand(engine: Engine) -> None:
    row = {"debits_pending": -1, "debits_posted": 0, "credits_pending": 0, "credits_posted": 0, "credit_limit": 0}
    with (
        engine.connect().execution_options(writes=True) as connection,
        connection.begin(),
        pytest.raises(DBAPIError, match="never_negative"),
    ):
        connection.execute(accounts.insert().values(id="customer:c", version=0, created_at_ms=1, **row))


def test_sqlite_loses_no_commit_to_a_power_cut(sqlite_url: str) -> None:
    engine = connect(DatabaseSettings(url=sqlite_url))
    with engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in ("journal_mode", "synchronous")
        }
    engine.dispose()
    assert pragmas == {"journal_mode": "wal", "synchronous": 2}


def test_errors_show_no_parameters(engine: Engine) -> None:
    secret = "hunter2"
    with engine.connect() as connection, pytest.raises(DBAPIError) as caught:
        connection.execute(text("SELECT :secret FROM nowhere"), {"secret": secret})
    assert secret not in str(caught.value)


def test_a_second_server_on_an_sqlite_file_is_refused(sqlite_url: str) -> None:
    engine = connect(DatabaseSettings(url=sqlite_url))
    first, second = SingleServer(engine), SingleServer(engine)
    first.acquire()
    with pytest.raises(DatabaseUnavailable, match="use PostgreSQL"):
        second.acquire()
    first.release()
    second.acquire()
    second.release()
    engine.dispose()


def test_a_killed_server_gives_its_sqlite_file_back(sqlite_url: str) -> None:
    program = (
        "import sys; from app.database import *; from app.settings import DatabaseSettings;"
        "lock = SingleServer(connect(DatabaseSettings(url=sys.argv[1]))); lock.acquire();"
        "print('locked', flush=True); sys.stdin.read()"
    )
    engine = connect(DatabaseSettings(url=sqlite_url))
    with subprocess.Popen(
        [sys.executable, "-c", program, sqlite_url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        lock = SingleServer(engine)
        with pytest.raises(DatabaseUnavailable):
            lock.acquire()
        other.kill()
    lock.acquire()
    lock.release()
    engine.dispose()


def test_many_servers_share_a_postgresql_database(postgres_url: str) -> None:
    engine = connect(DatabaseSettings(url=postgres_url))
    locks = [SingleServer(engine), SingleServer(engine)]
    for lock in locks:
        lock.acquire()
    for lock in locks:
        lock.release()
    engine.dispose()
