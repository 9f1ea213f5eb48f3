"""A real Farebox process for tests: started, asked over HTTP, killed, and its books checked.

`FareboxServer` writes a configuration, runs ``farebox serve`` as a child and knows how to make payers.
Money is put in and looked at through the stores, on the same database as the child's.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from sqlalchemy import Engine, text

from app import database
from app.clock import SystemClock
from app.ledger.account import ADJUSTMENTS, customer_account
from app.ledger.ids import new_id
from app.ledger.journal_store import JournalStore
from app.ledger.operation import Post
from app.ledger.transfer import GRANT, POSTED, Transfer
from app.money import NanoUsd, parse_usd
from app.rails.customer_store import CustomerStore
from app.rails.key_store import KeyLimits, KeyStore
from app.reconcile.ledger_check import Report, check
from app.settings import DatabaseSettings

SECRET = "test-secret-of-thirty-two-bytes-or-more"
ADMIN_TOKEN = "test-admin-token-of-some-length"
START_TIMEOUT_S = 60
# Whoever else has the port may take a connection and never answer.
READY_TIMEOUT_S = 1
STOP_TIMEOUT_S = 60
LEASE_TTL_S = 2.0

# Fast leases, so that what a killed process leaves behind is resolved while a test waits.
# Tests share servers, and make providers fail: none is left alone for it, unless a test is of that.
TIRELESS = {"breaker_requests_min": 1_000_000, "rest_s_max": 0}
QUICK = {"heartbeat_s": 0.5, "lease_ttl_s": LEASE_TTL_S, "sweep_interval_s": 0.5}
PRICE = {"input": "1.00", "cached_input": "0.25", "output": "4.00", "reasoning": "6.00"}
COST = {"input": "0.50", "cached_input": "0.10", "output": "2.00"}


@dataclass(frozen=True, slots=True)
class Payer:
    """A customer with a key."""

    customer_id: str
    key_id: str
    key: str

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


def model(name: str, **changes: Any) -> dict[str, Any]:
    """A model entry with known prices."""
    entry = {
        "id": name,
        "capabilities": ["chat", "tools"],
        "context_window": 1_000_000,
        "max_output_tokens": 500_000,
        "price": PRICE,
        "cost": COST,
    }
    return {**entry, **changes}


def sandbox(name: str = "sandbox", *, models: Sequence[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """A sandbox provider that is as fast as it can be."""
    served = list(models) if models is not None else [model("sandbox/echo", aliases=["sandbox"])]
    fast = {"tokens_per_second": 1e9, "first_token_ms": 0}
    return {"name": name, "adapter": "sandbox", **fast, "models": served, **changes}


def upstream(name: str, base_url: str, models: Sequence[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    """An OpenAI-compatible provider."""
    return {"name": name, "adapter": "openai", "base_url": base_url, "models": list(models), **changes}


class FareboxServer:
    """One serving process, on a port of its own."""

    def __init__(
        self,
        folder: Path,
        *,
        database_url: str,
        providers: Sequence[Mapping[str, Any]] | None = None,
        server: Mapping[str, Any] | None = None,
        ledger: Mapping[str, Any] | None = None,
        inference: Mapping[str, Any] | None = None,
        mpp: Mapping[str, Any] | None = None,
        search: Mapping[str, Any] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.database_url = database_url
        self._folder = folder
        self._environ = dict(environ or {})
        self.port = _free_port()
        self._reserved: socket.socket | None = None
        self.url = f"http://127.0.0.1:{self.port}"
        self.config = folder / f"farebox-{self.port}.toml"
        sections = {
            "server": {"host": "127.0.0.1", "port": self.port, **(server or {})},
            "database": {"url": database_url},
            "ledger": {**QUICK, **(ledger or {})},
            "inference": {**TIRELESS, **(inference or {})},
            "mpp": dict(mpp or {}),
            "search": dict(search or {}),
        }
        self.config.write_text(_toml(sections, providers if providers is not None else [sandbox()]))
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / f"farebox-{self.port}.log"
        self.engine: Engine = database.connect(DatabaseSettings(url=database_url))
        self._clock = SystemClock()

    # The process.

    def start(self) -> Self:
        """Start the process and wait until it is ready."""
        self._reserve()
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("FAREBOX_")},
            "FAREBOX_SECRET": SECRET,
            "FAREBOX_ADMIN_TOKEN": ADMIN_TOKEN,
            **self._environ,
        }
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "app.cli", "serve", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environ,
                cwd=Path(__file__).parent.parent,
            )
        self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until ``/readyz`` says so; fails with the log if the process ends."""
        ends = time.monotonic() + START_TIMEOUT_S
        pause = threading.Event()
        while time.monotonic() < ends:
            if self.process is not None and self.process.poll() is not None:
                raise AssertionError(f"the server ended:\n{self.log.read_text()}")
            try:
                if httpx.get(f"{self.url}/readyz", timeout=READY_TIMEOUT_S).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            pause.wait(0.05)
        raise AssertionError(f"the server is not ready:\n{self.log.read_text()}")

    def kill(self) -> None:
        """SIGKILL, and reap."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_TIMEOUT_S)

    def terminate(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process is None:
            raise AssertionError("not started")
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(STOP_TIMEOUT_S)

    def close(self) -> None:
        """Stop the process, however it is."""
        if self.process is not None and self.process.poll() is None:
            self.terminate()
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None
        self.engine.dispose()

    def _reserve(self) -> None:
        """Keep the port while the process is down: nobody else's socket is given it before a restart.

        A bound socket that does not listen refuses connections, and Linux lets the process listen beside it.
        """
        if self._reserved is not None or sys.platform != "linux":
            return
        reserved = socket.socket()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            reserved.bind(("127.0.0.1", self.port))
        except OSError:
            # The port is taken: the process will say so.
            reserved.close()
        else:
            self._reserved = reserved

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Payers and books.

    def payer(self, credit: str = "5.00", *, limits: KeyLimits | None = None, credit_limit: str = "0") -> Payer:
        """A new customer with so many USD and one key."""
        customers = CustomerStore(self.engine, self._clock)
        customer = customers.create("test", credit_limit=parse_usd(credit_limit))
        record, secret = self.keys.create(customer.id, "test", limits or KeyLimits())
        amount = parse_usd(credit)
        if amount:
            self.post(GRANT, ADJUSTMENTS, customer_account(customer.id), amount)
        return Payer(customer.id, record.id, secret)

    @property
    def keys(self) -> KeyStore:
        """The key store, on the server's database."""
        return KeyStore(self.engine, self._clock, SECRET.encode())

    def post(self, kind: str, debit: str, credit: str, amount: NanoUsd) -> None:
        """Commit one posted transfer."""
        now = self._clock.now_ms()
        store = JournalStore(self.engine, self._clock)
        store.apply([Post(Transfer(new_id("t", now), kind, POSTED, debit, credit, amount, None, None, None, now))])
        store.close()

    def rows(self, statement: str, **parameters: Any) -> list[dict[str, Any]]:
        """Rows of the server's database."""
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(text(statement), parameters).mappings()]

    def balance(self, payer: Payer) -> dict[str, Any]:
        """The payer's account row."""
        (row,) = self.rows("SELECT * FROM accounts WHERE id = :id", id=customer_account(payer.customer_id))
        return row

    def outcomes(self, payer: Payer) -> list[dict[str, Any]]:
        """The outcomes of a payer's requests, oldest first."""
        return self.rows(
            "SELECT o.*, r.stream, r.model FROM outcomes o JOIN requests r ON r.id = o.request_id "
            "WHERE r.account_id = :id ORDER BY r.created_at_ms, r.id",
            id=customer_account(payer.customer_id),
        )

    def wait_settled(self, payer: Payer | None = None, *, requests: int | None = None, timeout_s: float = 30) -> None:
        """Wait until no hold is open (of this payer), and so many requests have ended."""
        ends = time.monotonic() + timeout_s
        pause = threading.Event()
        while time.monotonic() < ends:
            held = self.rows("SELECT count(*) AS n FROM holds")[0]["n"]
            if payer is not None:
                account = customer_account(payer.customer_id)
                held = self.rows("SELECT count(*) AS n FROM holds WHERE account_id = :id", id=account)[0]["n"]
            done = requests is None or (payer is not None and len(self.outcomes(payer)) >= requests)
            if not held and done:
                return
            pause.wait(0.02)
        raise AssertionError(f"holds are still open:\n{self.log.read_text()[-4000:]}")

    def check(self) -> Report:
        """The report of ``ledger check``."""
        return check(self.engine, self._clock, LEASE_TTL_S)

    def assert_green(self) -> None:
        """The books are proven."""
        report = self.check()
        assert report.green, report.findings[:10]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _toml(sections: Mapping[str, Mapping[str, Any]], providers: Sequence[Mapping[str, Any]]) -> str:
    lines: list[str] = []
    for name, section in sections.items():
        lines += [f"[{name}]", *(f"{key} = {_value(value)}" for key, value in section.items())]
    for provider in providers:
        lines.append("[[providers]]")
        lines += [f"{key} = {_value(value)}" for key, value in provider.items() if key != "models"]
        for entry in provider["models"]:
            lines += ["[[providers.models]]", *(f"{key} = {_value(value)}" for key, value in entry.items())]
    return "\n".join(lines) + "\n"


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case str():
            return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
        case dict():
            return "{ " + ", ".join(f"{key} = {_value(each)}" for key, each in value.items()) + " }"
        case _:
            return "[" + ", ".join(_value(each) for each in value) + "]"
