"""A journal on a real database, with a customer to serve."""

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import Engine

from app.ledger.journal import Journal
from app.ledger.journal_store import JournalStore
from app.settings import LedgerSettings
from tests.clocks import FakeClock
from tests.ledger.faults import WatchedStore

WAIT_S_MAX = 20
CLOSE_S_MAX = 10


async def reached(event: threading.Semaphore) -> None:
    """Wait until another thread got somewhere; fails instead of hanging."""
    assert await asyncio.to_thread(event.acquire, timeout=WAIT_S_MAX)


@asynccontextmanager
async def running(store: JournalStore, **settings: float) -> AsyncIterator[Journal]:
    """A started journal, closed at the end."""
    journal = Journal(store, LedgerSettings.model_validate(settings))
    journal.start()
    try:
        yield journal
    finally:
        if isinstance(store, WatchedStore):
            # A test that failed half-way must not leave the writer behind the gate.
            store.away = False
            store.gate.set()
        await journal.close(timeout_s=CLOSE_S_MAX)


@pytest.fixture
def store(engine: Engine, clock: FakeClock) -> Iterator[WatchedStore]:
    """A watched store; the journal's thread gives its connection back."""
    store = WatchedStore(engine, clock)
    yield store
    store.close()
