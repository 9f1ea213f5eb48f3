"""What commands about channels share: backends without a server, and whether a server is there.

A command beside a running server only writes what the server then does. Where none is running, the
command is the only process there is and does the work itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.cli.session import Books

if TYPE_CHECKING:
    from app.chain.backend import ChannelBackend
    from app.channels.outbox_store import OutboxStore
    from app.channels.store import ChannelRecord, ChannelStore
    from app.ledger.journal import Journal
    from app.settlement.settler import Settler

CLOSE_S_MAX = 10.0


@dataclass(frozen=True, slots=True)
class ChainBooks:
    """The stores of channels."""

    books: Books

    def channels(self) -> ChannelStore:
        """The channels."""
        from app.channels.store import ChannelStore

        return ChannelStore(self.books.engine, self.books.clock)

    def outbox(self) -> OutboxStore:
        """The outbox."""
        from app.channels.outbox_store import OutboxStore

        return OutboxStore(self.books.engine, self.books.clock)

    def channel(self, channel_id: str) -> ChannelRecord:
        """A channel by its id, or the beginning of it. Raises `NotFound`."""
        from app.errors import NotFound

        found = self.channels().named(channel_id.lower())
        if len(found) > 1:
            raise NotFound(f"{channel_id} begins the ids of several channels; give more of it")
        if not found:
            raise NotFound(f"no channel {channel_id}")
        return found[0]

    @contextmanager
    def no_server(self) -> Iterator[bool]:
        """Whether no server is running; on SQLite none can start while this lasts."""
        from app.database import DatabaseUnavailable, SingleServer, is_sqlite

        if not is_sqlite(self.books.engine):
            ttl_ms = int(self.books.settings.ledger.lease_ttl_s * 1000)
            yield not self.outbox().server_is_running(ttl_ms=ttl_ms)
            return
        lock = SingleServer(self.books.engine)
        try:
            lock.acquire()
        except DatabaseUnavailable:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    @asynccontextmanager
    async def journal(self) -> AsyncIterator[Journal]:
        """A journal of this command's own."""
        from app.ledger.journal import Journal
        from app.ledger.journal_store import JournalStore

        journal = Journal(JournalStore(self.books.engine, self.books.clock), self.books.settings.ledger)
        with _quiet():
            journal.start()
            try:
                yield journal
            finally:
                await journal.close(timeout_s=CLOSE_S_MAX)

    def settler(self, backends: list[ChannelBackend], journal: Journal) -> Settler:
        """A settler of this command's own, for when no server is there."""
        from app.database import is_sqlite
        from app.ledger.ids import new_id
        from app.settlement.settler import Settler

        books = self.books
        return Settler(
            backends=backends,
            outbox=self.outbox(),
            channels=self.channels(),
            journal=journal,
            clock=books.clock,
            settings=books.settings.mpp,
            owner_id=new_id("cli", books.clock.now_ms()),
            lease_ttl_s=books.settings.ledger.lease_ttl_s,
            alone=is_sqlite(books.engine),
        )

    @asynccontextmanager
    async def backends(self, journal: Journal) -> AsyncIterator[list[ChannelBackend]]:
        """The configured backends. Raises `SettingsError`."""
        from app.chain.registry import backend_for
        from app.rails.mpp_secrets import payee_key
        from app.settlement.fees import SponsoredFees

        books, mpp = self.books, self.books.settings.mpp
        made: list[ChannelBackend] = []
        try:
            for entry in mpp.channels:
                budget = SponsoredFees(entry, mpp, store=self.outbox(), journal=journal, clock=books.clock)
                key = payee_key(entry, books.engine)
                made.append(backend_for(entry, mpp, payee_key=key, clock=books.clock, budget=budget))
            yield made
        finally:
            for backend in made:
                await backend.aclose()


@contextmanager
def _quiet() -> Iterator[None]:
    """What a server would log is no answer to a command, which says itself how it went."""
    import logging

    import structlog

    before = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    try:
        yield
    finally:
        structlog.configure(**before)
