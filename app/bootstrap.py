"""The composition root: settings become a serving process, and a signal ends it in order.

Start: migrate, prices, lease, sweep, listen. Stop: refuse, finish or bill what runs, close the ledger's
writer, give up the lease, exit 0.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import AsyncIterator, Coroutine
from random import Random
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn
from sqlalchemy import Engine
from starlette.applications import Starlette

from app import database, log, metrics
from app.api.application import Application
from app.api.http_protocol import bounded_protocol
from app.api.services import Services
from app.banner import Wallet, announce
from app.clock import Clock, SystemClock
from app.ledger.ids import new_id
from app.ledger.journal import Journal
from app.ledger.journal_store import JournalStore
from app.ledger.lease_store import LeaseStore
from app.ledger.price_store import PriceStore
from app.ledger.sweeper import Sweeper
from app.proxy import Proxy
from app.rails.api_key import ApiKeyRail
from app.rails.customer_store import CustomerStore
from app.rails.key_store import KeyStore
from app.rails.secret_store import load_secret
from app.reconcile.usage_store import UsageStore
from app.routing.candidates import Candidate, Catalog
from app.routing.router import Router
from app.search.backends import backend_of
from app.settings import ProviderSettings, Settings
from app.upstream.anthropic import AnthropicProvider
from app.upstream.cohere import CohereProvider
from app.upstream.openai import OpenAIProvider
from app.upstream.provider import Provider
from app.upstream.sandbox import SandboxProvider
from app.workers import Worker

if TYPE_CHECKING:
    from app.wallet_service import WalletService

WATCH_EVERY_S = 0.5
# What a client has not taken this long after the last answer was written, it will not take.
FLUSH_S = 2.0
SHUTDOWN_POLL_S = 0.1
# The writer's thread must get its turn while the event loop is busy: CPython's default is 5 ms.
SWITCH_INTERVAL_S = 0.0005
BACKLOG = 2048
GC_ALLOCATIONS = 20_000

_log = log.get("bootstrap")


class Process:
    """One serving process and everything that it must end in order."""

    def __init__(self, settings: Settings, *, clock: Clock | None = None) -> None:
        self.settings = settings
        self.clock = clock or SystemClock()
        self.engine: Engine = database.connect(settings.database)
        self._lock = database.SingleServer(self.engine)
        self._lock.acquire()
        database.migrate(self.engine)
        self._secret = load_secret(settings, self.engine)
        self.owner_id = new_id("own", self.clock.now_ms())
        self._providers: list[Provider] = []
        self._search = backend_of(settings.search)
        self._workers: list[Worker] = []
        self._sweeper: Sweeper | None = None
        self._wallets: WalletService | None = None
        self.services: Services | None = None
        self.application = Application(lifespan=self._lifespan, allowed_hosts=settings.server.allowed_hosts)

    @contextlib.asynccontextmanager
    async def _lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        self.services = await self._start()
        self.application.serve_with(self.services)
        yield
        await self._stop(self.services)

    async def _start(self) -> Services:
        settings, engine, clock = self.settings, self.engine, self.clock
        prices = PriceStore(engine, clock)
        book = prices.sync(settings.providers)
        candidates: list[Candidate] = []
        for provider_settings in settings.providers:
            provider = _provider(provider_settings, settings)
            self._providers.append(provider)
            candidates += [
                Candidate(provider, model, book[provider.name, model.id], rails=frozenset(provider_settings.rails))
                for model in provider_settings.models
            ]
        journal = Journal(JournalStore(engine, clock), settings.ledger)
        journal.on_commit = _count_commit
        journal.start()
        proxy = Proxy(
            settings=settings,
            clock=clock,
            journal=journal,
            catalog=Catalog(candidates),
            router=Router(clock, Random(), settings.inference),
            search=self._search,
            owner_id=self.owner_id,
            pepper=self._secret,
        )
        sweeper = Sweeper(
            store=LeaseStore(engine),
            journal=journal,
            clock=clock,
            settings=settings.ledger,
            owner_id=self.owner_id,
            alone=database.is_sqlite(engine),
            in_flight=lambda: proxy.in_flight,
        )
        await sweeper.register()
        self._sweeper = sweeper
        self._begin_workers(proxy, sweeper)
        keys = KeyStore(engine, clock, self._secret)
        wallets = await self._start_wallets(journal, proxy, prices)
        return Services(
            settings=settings,
            engine=engine,
            clock=clock,
            journal=journal,
            proxy=proxy,
            rail=ApiKeyRail(keys),
            keys=keys,
            customers=CustomerStore(engine, clock),
            usage=UsageStore(engine),
            prices=prices,
            secret=self._secret,
            wallets=wallets.wallets if wallets is not None else None,
            channels=wallets.channels if wallets is not None else None,
        )

    async def _start_wallets(self, journal: Journal, proxy: Proxy, prices: PriceStore) -> WalletService | None:
        """Payment from wallets, where it is configured. Raises `SettingsError`."""
        if not self.settings.mpp.channels:
            return None
        # What it needs takes a while to import, and nobody else needs it.
        from app.wallet_service import Parts, WalletService

        parts = Parts(self.settings, self.engine, self.clock, journal, proxy, prices, self.owner_id)
        self._wallets = WalletService(parts)
        await self._wallets.start()
        return self._wallets

    def _begin_workers(self, proxy: Proxy, sweeper: Sweeper) -> None:
        ledger = self.settings.ledger

        async def watch() -> None:
            proxy.watch()

        self._workers = [
            Worker("heartbeat", sweeper.beat, every_s=ledger.heartbeat_s),
            Worker("sweeper", sweeper.sweep, every_s=ledger.sweep_interval_s),
            Worker("watch", watch, every_s=WATCH_EVERY_S),
        ]
        for worker in self._workers:
            worker.start()

    async def _stop(self, services: Services) -> None:
        await services.proxy.drain(timeout_s=self.settings.server.shutdown_timeout_s)
        if self._wallets is not None:
            await self._wallets.stop()
        for worker in self._workers:
            await worker.stop()
        for provider in self._providers:
            await provider.close()
        if self._search is not None:
            await self._search.close()
        await services.journal.close(timeout_s=self.settings.ledger.commit_timeout_s)
        if self._sweeper is not None:
            await self._sweeper.retire()
        self.engine.dispose()
        self._lock.release()
        _log.info("stopped")


def _provider(provider: ProviderSettings, settings: Settings) -> Provider:
    match provider.adapter:
        case "sandbox":
            return SandboxProvider(provider)
        case "anthropic":
            return AnthropicProvider(provider, settings.inference)
        case "cohere":
            return CohereProvider(provider, settings.inference)
        case "openai":
            return OpenAIProvider(provider, settings.inference)


def _count_commit(operations: int, seconds: float) -> None:
    metrics.commit_operations.observe(operations)
    metrics.commit_seconds.observe(seconds)


class Server(uvicorn.Server):
    """uvicorn whose shutdown lets paid work end first: the lifespan does it, before connections close."""

    def __init__(self, config: uvicorn.Config, process: Process, *, human: bool, wallet: Wallet | None = None) -> None:
        super().__init__(config)
        self._wallet = wallet
        self._process = process
        self._human = human

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            # What was made until now stays: collections need not look at it again.
            gc.collect()
            gc.freeze()
            gc.set_threshold(GC_ALLOCATIONS, 20, 50)
            port = self.servers[0].sockets[0].getsockname()[1]
            await announce(self._process.services, port=port, human=self._human, wallet=self._wallet)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # New connections are refused by closing the listeners; new requests on kept ones by `closing`.
        for server in self.servers:
            server.close()
        if self._process.services is not None:
            drain = self._process.services.proxy.drain(timeout_s=self._process.settings.server.shutdown_timeout_s)
            await self._unless_forced(drain)
        await self._unless_forced(self._flush())
        if self.force_exit:
            for connection in list(self.server_state.connections):
                _abort(connection)
        await super().shutdown(sockets)

    async def _unless_forced(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        while not task.done() and not self.force_exit:
            await asyncio.wait((task,), timeout=SHUTDOWN_POLL_S)
        task.cancel()
        await asyncio.wait((task,))

    async def _flush(self) -> None:
        """Let clients take what was written, and leave those that do not: uvicorn would wait for them."""
        ends_s = self._process.clock.monotonic_s() + FLUSH_S
        while any(_unread(connection) for connection in self.server_state.connections):
            if self._process.clock.monotonic_s() > ends_s:
                for connection in list(self.server_state.connections):
                    if _unread(connection):
                        _abort(connection)
                return
            await asyncio.sleep(SHUTDOWN_POLL_S)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._process.services is not None:
            self._process.services.proxy.closing = True
        # Asked twice by a person: leave at once; what runs is billed by the next start's sweep.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _unread(connection: Any) -> int:
    """Bytes that were written to a connection and are still here."""
    unread: int = connection.transport.get_write_buffer_size()
    return unread


def _abort(connection: Any) -> None:
    connection.transport.abort()


def serve(settings: Settings, *, wallet: Wallet | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code."""
    human = sys.stderr.isatty()
    log.configure(human=human, level=settings.server.log_level)
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    process = Process(settings)
    server = settings.server
    config = uvicorn.Config(
        process.application,
        host=server.host,
        port=server.port,
        http=bounded_protocol(
            head_bytes_max=server.head_bytes_max,
            head_timeout_s=server.head_timeout_s,
            write_timeout_s=server.client_write_timeout_s,
        ),
        loop="uvloop",
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        log_config=None,
        backlog=BACKLOG,
        proxy_headers=bool(server.trusted_proxies),
        forwarded_allow_ips=list(server.trusted_proxies),
        server_header=False,
        date_header=True,
        timeout_keep_alive=int(server.keep_alive_s),
        timeout_graceful_shutdown=int(server.shutdown_timeout_s) + 5,
    )
    Server(config, process, human=human, wallet=wallet).run()
    return 0 if process.services is not None else 1
