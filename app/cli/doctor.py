"""``farebox doctor``: what is wrong with an installation, and what to do about it. Changes nothing."""

import os
import shutil
import sqlite3
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import typer

from app.cli.output import emit
from app.cli.session import REFUSED, AsJson, Config

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from app.settings import Settings

# The ledger's updates take their rows from VALUES lists (UPDATE ... FROM).
SQLITE_MIN = (3, 33, 0)
PYTHON_MIN = (3, 11)
DISK_FREE_BYTES_WARN = 1024**3
DISK_FREE_BYTES_FAIL = 64 * 1024**2
WAL_BYTES_WARN = 1024**3
TOKEN_CHARACTERS_MIN = 16


@dataclass(frozen=True, slots=True)
class Line:
    """One check: how it went and, if not well, what to do."""

    name: str
    state: Literal["ok", "warn", "fail"]
    message: str
    advice: str = ""


def doctor(config: Config = None, as_json: AsJson = False) -> None:
    """Check the configuration, database, disk, secrets and providers; exit 1 if anything fails."""
    lines = list(_lines(config))
    failed = any(line.state == "fail" for line in lines)
    width = max(len(line.name) for line in lines)
    text = "\n".join(
        f"{line.state.ljust(4)}  {line.name.ljust(width)}  {line.message}"
        + (f"\n{'':4}  {'':{width}}  -> {line.advice}" if line.advice else "")
        for line in lines
    )
    emit({"ok": not failed, "checks": [asdict(line) for line in lines]}, as_json=as_json, text=text)
    if failed:
        raise typer.Exit(REFUSED)


def _lines(config: Path | None) -> Iterator[Line]:
    yield from _versions()
    from app import settings as configuration

    try:
        settings = configuration.load(config)
    except configuration.SettingsError as error:
        yield Line("configuration", "fail", str(error), "mend the file or the variable that it names")
        return
    yield Line("configuration", "ok", f"{len(settings.providers)} providers, database {_shown_url(settings)}")
    yield from _providers(settings)
    yield from _search(settings)
    yield _admin_token(settings)
    yield from _database(settings)


def _versions() -> Iterator[Line]:
    python = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info >= PYTHON_MIN:
        yield Line("python", "ok", python)
    else:
        yield Line("python", "fail", python, "install Python 3.11 or newer")
    if sqlite3.sqlite_version_info >= SQLITE_MIN:
        yield Line("sqlite", "ok", sqlite3.sqlite_version)
    else:
        newer = ".".join(map(str, SQLITE_MIN))
        yield Line("sqlite", "fail", sqlite3.sqlite_version, f"use a Python with SQLite {newer} or newer")


def _providers(settings: "Settings") -> Iterator[Line]:
    for provider in settings.providers:
        name = f"provider {provider.name}"
        if provider.api_key_env and not os.environ.get(provider.api_key_env):
            advice = f"export {provider.api_key_env} before `farebox serve`"
            yield Line(name, "fail", f"its key variable {provider.api_key_env} is not set", advice)
        elif not provider.models:
            yield Line(name, "warn", "serves no models", "add [[providers.models]]")
        else:
            yield Line(name, "ok", f"{len(provider.models)} models")
        for model in provider.models:
            if provider.adapter == "anthropic" and "reasoning" in model.capabilities and not model.hidden_reasoning:
                advice = f"set hidden_reasoning = true for {model.id}: more thinking is billed than is shown"
                yield Line(name, "warn", f"{model.id} thinks, and windows would not see all of it", advice)
    if all(provider.adapter == "sandbox" for provider in settings.providers):
        advice = "add [[providers]] to farebox.toml to sell real models"
        yield Line("providers", "warn", "only the built-in sandbox answers", advice)


def _search(settings: "Settings") -> Iterator[Line]:
    search = settings.search
    if search.backend == "off":
        return
    sold = sum(model.searches for provider in settings.providers for model in provider.models)
    if search.api_key_env and not os.environ.get(search.api_key_env):
        advice = f"export {search.api_key_env} before `farebox serve`"
        yield Line("web search", "fail", f"its key variable {search.api_key_env} is not set", advice)
    elif not sold:
        advice = "give a model the capability 'tools' and price.per_web_search"
        yield Line("web search", "warn", f"{search.backend}, and no model may search", advice)
    else:
        yield Line("web search", "ok", f"{search.backend}, for {sold} models")


def _admin_token(settings: "Settings") -> Line:
    variable = settings.server.admin_token_env
    token = os.environ.get(variable, "").strip()
    if not token:
        return Line(
            "admin token", "warn", f"{variable} is not set: the admin API is off", f"export {variable} to use it"
        )
    if len(token) < TOKEN_CHARACTERS_MIN:
        advice = "use a long random one, for example: openssl rand -hex 32"
        return Line("admin token", "warn", f"{variable} is short enough to be guessed", advice)
    return Line("admin token", "ok", f"{variable} is set")


def _database(settings: "Settings") -> Iterator[Line]:
    from sqlalchemy import text
    from sqlalchemy.exc import DBAPIError

    from app import database
    from app.cli.session import describe, reason

    engine = database.connect(settings.database)
    try:
        yield from _disk(engine)
        if database.is_sqlite(engine) and not Path(engine.url.database or "").exists():
            yield Line("database", "warn", f"{engine.url.database} does not exist yet", "`farebox serve` makes it")
            yield from _secret(settings, engine)
            return
        with engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            yield Line("database", "ok", f"{describe(engine)} answers")
            yield _schema(connection)
            if database.is_sqlite(engine):
                yield from _sqlite_modes(connection)
        yield from _secret(settings, engine)
    except DBAPIError as error:
        advice = "check that it runs and that database.url is right"
        yield Line("database", "fail", f"{describe(engine)}: {reason(error)}", advice)
    finally:
        engine.dispose()


def _schema(connection: "Connection") -> Line:
    from app.database import schema_is_current

    if schema_is_current(connection):
        return Line("migrations", "ok", "the schema is current")
    return Line("migrations", "warn", "the schema is not current", "run `farebox migrate`; `farebox serve` does it too")


def _sqlite_modes(connection: "Connection") -> Iterator[Line]:
    from sqlalchemy import text

    mode = connection.execute(text("PRAGMA journal_mode")).scalar_one()
    if mode == "wal":
        yield Line("journal mode", "ok", "WAL")
    else:
        advice = "put the database on a local disk: WAL needs shared memory, which network disks lack"
        yield Line("journal mode", "fail", f"{mode}, not WAL", advice)
    wal = Path(f"{connection.engine.url.database}-wal")
    size = wal.stat().st_size if wal.exists() else 0
    if size > WAL_BYTES_WARN:
        advice = "something reads for very long: look for a hung `ledger check` or backup"
        yield Line("wal", "warn", f"{size // 1024**2} MiB", advice)
    else:
        yield Line("wal", "ok", f"{size // 1024} KiB")


def _disk(engine: "Engine") -> Iterator[Line]:
    from app.database import is_sqlite

    if not is_sqlite(engine) or not engine.url.database:
        return
    folder = Path(engine.url.database).resolve().parent
    if not folder.is_dir():
        yield Line("disk", "fail", f"{folder} does not exist", f"mkdir -p {folder}")
    elif not os.access(folder, os.W_OK):
        yield Line("disk", "fail", f"{folder} cannot be written", "give the folder to the user that runs farebox")
    else:
        free = shutil.disk_usage(folder).free
        state: Literal["ok", "warn", "fail"] = "ok"
        if free < DISK_FREE_BYTES_WARN:
            state = "fail" if free < DISK_FREE_BYTES_FAIL else "warn"
        advice = "make room: a full disk stops every paid request" if state != "ok" else ""
        yield Line("disk", state, f"{free // 1024**2} MiB free in {folder}", advice)


def _secret(settings: "Settings", engine: "Engine") -> Iterator[Line]:
    from app.rails.secret_store import SECRET_BYTES_MIN, SECRET_FILE_MODE, secret_path

    variable = settings.server.secret_env
    text = os.environ.get(variable, "").strip()
    path = secret_path(engine)
    if text:
        long_enough = len(os.fsencode(text)) >= SECRET_BYTES_MIN
        message = f"{variable} is set" if long_enough else f"{variable} is shorter than {SECRET_BYTES_MIN} bytes"
        yield Line("secret", "ok" if long_enough else "fail", message, "" if long_enough else "openssl rand -hex 32")
    elif path is None:
        advice = f"export {variable}, the same for every replica: openssl rand -hex 32"
        yield Line("secret", "fail", f"{variable} is not set, and PostgreSQL has no file for it", advice)
    elif not path.exists():
        yield Line("secret", "ok", f"{path} will be made on first use")
    elif path.stat().st_mode & 0o777 & ~SECRET_FILE_MODE:
        mode = path.stat().st_mode & 0o777
        yield Line("secret", "fail", f"{path} can be read by others (mode {mode:o})", f"chmod 600 {path}")
    else:
        yield Line("secret", "ok", f"{path}, for its owner alone")


def _shown_url(settings: "Settings") -> str:
    from sqlalchemy import make_url

    return make_url(settings.database.url).render_as_string(hide_password=True)
