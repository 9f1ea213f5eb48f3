"""Group commit: all operations that wait are committed at once, and each caller wakes after the commit.

Idle, one operation commits at once; busy, hundreds share an fsync. The event loop takes turns: it
gathers what waits, and a thread makes it durable. On SQLite the statements themselves run on the loop
(they are microseconds of work, and a thread would wait for the interpreter's lock at each of them) and
the thread does the fsync; on PostgreSQL, and whenever SQLite's write lock is taken, the thread does it all.

A batch that fails for the database's reasons (busy, a deadlock, a lost connection) is tried again whole,
which is safe because every operation's id is unique; one that fails for its own reasons is split, so that
a bad operation never fails its neighbours.
"""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from app import log
from app.errors import FareboxError, InvariantViolated, Overloaded
from app.ledger.journal_store import JournalStore
from app.ledger.operation import Operation, Result
from app.settings import LedgerSettings

RETRY_PAUSE_S = 0.02
RETRY_PAUSE_S_MAX = 1.0
# A commit that was shared by so many is followed by a pause, measured to pay: fewer and fuller commits.
BUSY_OPERATIONS = 4
BUSY_PAUSE_S = 0.001

_log = log.get("journal")


@dataclass(slots=True)
class _Entry:
    operation: Operation
    future: asyncio.Future[Result]
    must: bool
    expires_s: float


Answer = tuple[_Entry, Result | Exception]


class Journal:
    """The ledger's writer. Everything but the commit itself belongs to one event loop."""

    def __init__(self, store: JournalStore, settings: LedgerSettings) -> None:
        self._store = store
        self._settings = settings
        self._retryable = store_errors(store)
        self._waiting: deque[_Entry] = deque()
        self._work: queue.SimpleQueue[Callable[[], list[Answer]] | None] = queue.SimpleQueue()
        self._turning = False
        self._closing = False
        self._stopped = False
        self._idle = asyncio.Event()
        self._close_by_s = float("inf")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self.commits = 0
        self.operations = 0
        self.invariants_violated = 0
        self.on_commit: Callable[[int, float], None] | None = None

    @property
    def waiting(self) -> int:
        """Operations that wait for the next commit."""
        return len(self._waiting)

    def start(self) -> None:
        """Start the writer for the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._idle.set()
        self._thread = threading.Thread(target=self._run, name="ledger-journal", daemon=True)
        self._thread.start()

    def submit(self, operation: Operation, *, must: bool = False) -> asyncio.Future[Result]:
        """Queue an operation; the future is done once it is durable.

        ``must`` operations (captures) are taken even when the queue is full, and wait out a database
        that is away; others are refused with `Overloaded` after ``commit_timeout_s``.
        """
        if self._loop is None:
            raise InvariantViolated("the journal was not started")
        future: asyncio.Future[Result] = self._loop.create_future()
        if self._stopped or (not must and (self._closing or len(self._waiting) >= self._settings.queue_max)):
            future.set_exception(Overloaded("the ledger is busy; try again", retry_after_s=1))
            return future
        expires_s = time.monotonic() + self._settings.commit_timeout_s
        self._waiting.append(_Entry(operation, future, must, expires_s))
        if not self._turning:
            self._turning = True
            self._idle.clear()
            # Not at once: whatever else is ready in this turn of the loop shares the commit.
            self._loop.call_soon(self._turn)
        return future

    async def close(self, *, timeout_s: float) -> None:
        """Commit what waits, then stop the thread and give the connection back."""
        if self._thread is None:
            return
        self._closing = True
        self._close_by_s = time.monotonic() + timeout_s
        try:
            async with asyncio.timeout(timeout_s + RETRY_PAUSE_S_MAX):
                await self._idle.wait()
        except TimeoutError:
            _log.error("journal_closed_with_operations", operations=len(self._waiting))
        self._stopped = True
        self._expire([])
        self._work.put(None)
        await asyncio.to_thread(self._thread.join, timeout_s)

    def _turn(self) -> None:
        """Take what waits as one batch and have it made durable."""
        if not self._waiting:
            self._turning = False
            self._idle.set()
            return
        batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._settings.batch_max))]
        started_s = time.perf_counter()
        if self._store.writes_inline:
            try:
                results = self._store.write([entry.operation for entry in batch])
            except Exception:
                # The write lock is taken, or an operation is bad: the thread can wait and can split.
                self._work.put(partial(self._apply, batch, started_s))
            else:
                self._work.put(partial(self._commit, batch, results, started_s))
        else:
            self._work.put(partial(self._apply, batch, started_s))

    def _answer(self, answers: list[Answer]) -> None:
        for entry, result in answers:
            if entry.future.done():
                continue
            if isinstance(result, Exception):
                entry.future.set_exception(result)
            else:
                entry.future.set_result(result)
        if self._loop is None:
            return
        if len(answers) >= BUSY_OPERATIONS:
            # Busy: the callers that were just woken will have more, and it shares the next commit.
            self._loop.call_later(BUSY_PAUSE_S, self._turn)
        else:
            self._loop.call_soon(self._turn)

    def _late(self, entry: _Entry) -> bool:
        now_s = time.monotonic()
        return now_s > self._close_by_s or (not entry.must and now_s > entry.expires_s)

    def _expire(self, late: list[_Entry]) -> None:
        """Refuse ``late`` and what waits in vain behind it; holds that were made after all are swept."""
        waiting = list(self._waiting)
        self._waiting.clear()
        for entry in waiting:
            (late if self._stopped or self._late(entry) else self._waiting).append(entry)
        for entry in late:
            if not entry.future.done():
                message = "the ledger did not answer in time; nothing was charged"
                entry.future.set_exception(Overloaded(message, retry_after_s=5))

    # Below: the thread.

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            answers = work()
            if self._loop is not None and not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._answer, answers)
        self._store.close()

    def _commit(self, batch: list[_Entry], results: list[Result], started_s: float) -> list[Answer]:
        try:
            self._store.commit()
        except Exception as error:
            _log.warning("commit_retried", operations=len(batch), error=type(error).__name__)
            return self._apply(batch, started_s, again=True)
        self._count(len(batch), started_s)
        return list(zip(batch, results, strict=True))

    def _apply(self, batch: list[_Entry], started_s: float, *, again: bool = False) -> list[Answer]:
        """Commit a batch whole, waiting out what is the database's fault and splitting what is not."""
        pause_s, conflicted = RETRY_PAUSE_S, False
        while batch:
            try:
                results = self._store.apply([entry.operation for entry in batch], again=again)
            except self._retryable as error:
                _log.warning("commit_retried", operations=len(batch), error=type(error).__name__)
                batch, again = self._in_time(batch), True
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_PAUSE_S_MAX)
            except Exception as error:
                if len(batch) == 1 and isinstance(error, self._store.driver.IntegrityError) and not conflicted:
                    # Another replica wrote the same id at the same moment: what it wrote decides now.
                    conflicted = again = True
                    continue
                if len(batch) == 1:
                    return [(batch[0], self._failure(batch[0], error))]
                answers: list[Answer] = []
                for entry in batch:
                    answers += self._apply([entry], started_s, again=again)
                return answers
            else:
                self._count(len(batch), started_s)
                return list(zip(batch, results, strict=True))
        return []

    def _in_time(self, batch: list[_Entry]) -> list[_Entry]:
        """The entries that still wait; the others are answered now, not when their neighbours are done."""
        kept: list[_Entry] = []
        late: list[_Entry] = []
        for entry in batch:
            (late if self._late(entry) else kept).append(entry)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._expire, late)
        return kept

    def _failure(self, entry: _Entry, error: Exception) -> Exception:
        if isinstance(error, InvariantViolated):
            self.invariants_violated += 1
        _log.error("operation_failed", operation=type(entry.operation).__name__, exc_info=error)
        return error if isinstance(error, FareboxError) else InvariantViolated("the ledger refused an operation")

    def _count(self, operations: int, started_s: float) -> None:
        self.commits += 1
        self.operations += operations
        if self.on_commit is not None:
            self.on_commit(operations, time.perf_counter() - started_s)


def store_errors(store: JournalStore) -> tuple[type[Exception], ...]:
    """The driver's errors that say nothing about the operations themselves."""
    driver = store.driver
    return (driver.OperationalError, driver.InterfaceError)
