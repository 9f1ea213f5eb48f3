import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from app.clock import SystemClock
from app.database import connect
from app.rails.customer_store import CustomerStore
from app.rails.key_store import KeyLimits, KeyStore
from app.rails.secret_store import load_secret, secret_path
from app.settings import DatabaseSettings, ServerSettings, Settings, SettingsError

SETTINGS = Settings(server=ServerSettings(secret_env="A_SECRET"))


@pytest.fixture
def sqlite(sqlite_url: str) -> Iterator[Engine]:
    engine = connect(DatabaseSettings(url=sqlite_url))
    yield engine
    engine.dispose()


def file_of(engine: Engine) -> Path:
    path = secret_path(engine)
    assert path is not None
    return path


def test_the_variable_wins_over_the_file(engine: Engine) -> None:
    text = "0123456789abcdef0123456789abcdef"
    assert load_secret(SETTINGS, engine, environ={"A_SECRET": f" {text}\n"}) == text.encode()
    path = secret_path(engine)
    assert path is None or not path.exists()


def test_a_short_variable_is_refused_without_quoting_it(engine: Engine) -> None:
    with pytest.raises(SettingsError, match="A_SECRET") as caught:
        load_secret(SETTINGS, engine, environ={"A_SECRET": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_on_postgresql_the_variable_must_be_set(postgres_url: str) -> None:
    engine = connect(DatabaseSettings(url=postgres_url))
    with pytest.raises(SettingsError, match="set the environment variable A_SECRET"):
        load_secret(SETTINGS, engine, environ={})
    engine.dispose()


def test_the_file_is_made_once_for_its_owner_alone(sqlite: Engine) -> None:
    first = load_secret(SETTINGS, sqlite, environ={})
    path = file_of(sqlite)
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(first) >= 32
    assert load_secret(SETTINGS, sqlite, environ={}) == first
    assert [each.name for each in path.parent.iterdir() if ".secret" in each.name] == [path.name]


def test_the_files_text_can_be_moved_into_the_variable(sqlite: Engine) -> None:
    secret = load_secret(SETTINGS, sqlite, environ={})
    assert load_secret(SETTINGS, sqlite, environ={"A_SECRET": file_of(sqlite).read_text()}) == secret


def test_two_installations_have_two_secrets(sqlite: Engine, tmp_path: Path) -> None:
    first = load_secret(SETTINGS, sqlite, environ={})
    file_of(sqlite).unlink()
    assert load_secret(SETTINGS, sqlite, environ={}) != first


def test_a_lost_file_is_an_error_while_keys_need_it(sqlite: Engine) -> None:
    secret = load_secret(SETTINGS, sqlite, environ={})
    clock = SystemClock()
    KeyStore(sqlite, clock, secret).create(CustomerStore(sqlite, clock).create("Ada").id, "k", KeyLimits())
    file_of(sqlite).unlink()
    with pytest.raises(SettingsError, match="is gone"):
        load_secret(SETTINGS, sqlite, environ={})
    assert not file_of(sqlite).exists()


def test_a_damaged_file_is_an_error(sqlite: Engine) -> None:
    file_of(sqlite).write_text("short\n")
    with pytest.raises(SettingsError, match="at least 32"):
        load_secret(SETTINGS, sqlite, environ={})


def test_a_file_that_cannot_be_read_is_an_error(sqlite: Engine) -> None:
    file_of(sqlite).mkdir()
    with pytest.raises(SettingsError, match="directory"):
        load_secret(SETTINGS, sqlite, environ={})


def test_another_process_never_sees_half_a_file(sqlite: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment before the file appears, a second process makes it: both then have that one."""
    link = os.link
    rivals: list[bytes] = []

    def raced(source: Path, target: Path) -> None:
        monkeypatch.setattr(os, "link", link)
        assert not target.exists()
        rivals.append(load_secret(SETTINGS, sqlite, environ={}))
        link(source, target)

    monkeypatch.setattr(os, "link", raced)
    assert load_secret(SETTINGS, sqlite, environ={}) == rivals[0]


def _load(url: str, results: "multiprocessing.Queue[bytes]") -> None:
    engine = connect(DatabaseSettings(url=url))
    results.put(load_secret(SETTINGS, engine, environ={}))
    engine.dispose()


def test_processes_that_start_together_have_the_same_secret(sqlite_url: str) -> None:
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[bytes] = context.Queue()
    processes = [context.Process(target=_load, args=(sqlite_url, results)) for _ in range(4)]
    for process in processes:
        process.start()
    found = {results.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(timeout=60)
    results.close()
    results.join_thread()
    assert len(found) == 1
