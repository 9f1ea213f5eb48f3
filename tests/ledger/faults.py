"""Journal stores that fail where a machine can: between two writes, and after a commit nobody heard of."""

import threading
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Engine, Table

from app.clock import Clock
from app.ledger.journal_store import JournalStore
from app.ledger.operation import Operation, Result

# The writes of one batch: transfers, holds, requests, deliveries, outcomes, attempts, claims, COMMIT.
WRITES = 8


class Crash(Exception):
    """The process died here."""


class CrashingStore(JournalStore):
    """Dies before write number ``crash_before``, or after the commit if that is `WRITES`."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        super().__init__(engine, clock)
        self.crash_before: int | None = None

    def crash(self, operations: Sequence[Operation], *, before: int, again: bool) -> None:
        """Apply ``operations`` and die."""
        self.crash_before = before
        try:
            self.apply(operations, again=again)
        finally:
            self.crash_before = None

    def _insert(self, table: Table, rows: Sequence[Sequence[Any]]) -> None:
        self._step()
        super()._insert(table, rows)

    def _finish(self, word: str) -> None:
        if word == "COMMIT":
            self._step()
        super()._finish(word)
        if word == "COMMIT":
            self._step()

    def _step(self) -> None:
        if self.crash_before is None:
            return
        if self.crash_before == 0:
            raise Crash
        self.crash_before -= 1


class WatchedStore(JournalStore):
    """Tells what it went through; its commits can be held at a gate, fail, or lose their answer."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        super().__init__(engine, clock)
        self.gate = threading.Event()
        self.gate.set()
        self.at_gate = threading.Semaphore(0)
        self.failed = threading.Semaphore(0)
        self.failures: list[Exception] = []
        self.away = False
        self.answers_to_lose = 0
        self.lost_with = "OperationalError"

    def commit(self) -> None:
        self.at_gate.release()
        self.gate.wait()
        super().commit()

    def _write_batch(self, operations: Sequence[Operation], *, again: bool, patient: bool) -> list[Result]:
        try:
            return super()._write_batch(operations, again=again, patient=patient)
        except Exception as error:
            self.failures.append(error)
            self.failed.release()
            raise

    def _connect(self) -> None:
        if self.away:
            raise self.driver.OperationalError("connection refused")
        super()._connect()

    def _finish(self, word: str) -> None:
        super()._finish(word)
        if word == "COMMIT" and self.answers_to_lose:
            self.answers_to_lose -= 1
            error: type[Exception] = getattr(self.driver, self.lost_with)
            raise error("the server closed the connection unexpectedly")
