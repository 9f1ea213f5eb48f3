"""A process from its settings to its end, without a server around it."""

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest
from sqlalchemy import insert, select

from app import database
from app.bootstrap import Process
from app.clock import SystemClock
from app.database import DatabaseUnavailable
from app.errors import Overloaded
from app.settings import DatabaseSettings, Settings
from app.tables import metadata, owners, price_versions
from tests.serving import SECRET, FareboxServer


@pytest.fixture
def settings(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The defaults, on a fresh database."""
    monkeypatch.setenv("FAREBOX_SECRET", SECRET)
    return Settings(database=DatabaseSettings(url=database_url))


def serving(process: Process) -> contextlib.AbstractAsyncContextManager[None]:
    """The process between its start and its end, as its server runs it."""
    return process.application.rest.router.lifespan_context(process.application.rest)  # type: ignore[return-value]


async def test_it_starts_with_a_lease_and_prices_and_ends_without_a_lease(settings: Settings) -> None:
    process = Process(settings)
    async with serving(process):
        assert process.services is not None
        with process.engine.connect() as connection:
            assert list(connection.scalars(select(owners.c.id))) == [process.owner_id]
            priced = set(connection.scalars(select(price_versions.c.model)))
            assert priced == {model.id for model in settings.providers[0].models}
    engine = database.connect(settings.database)
    with engine.connect() as connection:
        assert list(connection.scalars(select(owners.c.id))) == []
    engine.dispose()


async def test_it_can_start_again_at_once(settings: Settings) -> None:
    for _ in range(2):
        process = Process(settings)
        async with serving(process):
            pass


async def test_its_loops_run_while_it_serves_and_not_afterwards(settings: Settings) -> None:
    process = Process(settings)
    async with serving(process):
        names = {task.get_name() for task in asyncio.all_tasks()}
        assert {"heartbeat", "sweeper", "watch"} <= names
    assert not {"heartbeat", "sweeper", "watch"} & {task.get_name() for task in asyncio.all_tasks()}


async def test_after_its_end_nothing_is_admitted_or_written(settings: Settings) -> None:
    process = Process(settings)
    async with serving(process):
        services = process.services
        assert services is not None
    assert services.proxy.closing
    with pytest.raises(Overloaded):
        services.proxy.make_sure_of_room()
    with pytest.raises(Overloaded):
        await services.journal.submit(None)  # type: ignore[arg-type]


async def test_an_empty_database_is_migrated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAREBOX_SECRET", SECRET)
    settings = Settings(database=DatabaseSettings(url=f"sqlite:///{tmp_path / 'new.db'}"))
    process = Process(settings)
    async with serving(process):
        with process.engine.connect() as connection:
            assert all(process.engine.dialect.has_table(connection, name) for name in metadata.tables)
            assert database.schema_is_current(connection)


async def test_a_second_process_on_one_sqlite_file_is_refused_until_the_first_ends(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAREBOX_SECRET", SECRET)
    settings = Settings(database=DatabaseSettings(url=sqlite_url))
    first = Process(settings)
    async with serving(first):
        with pytest.raises(DatabaseUnavailable, match="another farebox serves"):
            Process(settings)
    second = Process(settings)
    async with serving(second):
        pass


async def test_several_processes_share_a_postgresql_and_leave_each_others_leases(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAREBOX_SECRET", SECRET)
    settings = Settings(database=DatabaseSettings(url=postgres_url))
    first, second = Process(settings), Process(settings)
    async with serving(first):
        async with serving(second):
            pass
        with first.engine.connect() as connection:
            assert list(connection.scalars(select(owners.c.id))) == [first.owner_id]


async def test_leases_of_the_long_dead_are_cleared_when_it_ends(settings: Settings) -> None:
    process = Process(settings)
    async with serving(process):
        with process.engine.connect().execution_options(writes=True) as connection, connection.begin():
            old = SystemClock().now_ms() - 48 * 3600 * 1000
            connection.execute(insert(owners).values(id="own_dead", started_at_ms=old, heartbeat_at_ms=old))
    engine = database.connect(settings.database)
    with engine.connect() as connection:
        assert list(connection.scalars(select(owners.c.id))) == []
    engine.dispose()


def test_a_port_that_is_taken_is_said_and_nothing_is_left_behind(sqlite_url: str, tmp_path: Path) -> None:
    server = FareboxServer(tmp_path, database_url=sqlite_url)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", server.port))
        taken.listen()
        with pytest.raises(AssertionError, match="address already in use"):
            server.start()
    assert server.process is not None
    assert server.process.returncode not in {0, None}
    assert "Traceback" not in server.log.read_text()
    assert server.rows("SELECT id FROM owners") == []
    server.start()
    server.close()
