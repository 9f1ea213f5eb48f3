"""The real application in this process, on real books, without a socket."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import httpx
from sqlalchemy import Engine
from starlette.applications import Starlette

from app.api.application import Application
from app.api.services import Services
from app.ledger.journal import Journal
from app.ledger.journal_store import JournalStore
from app.ledger.price_store import PriceStore
from app.proxy import Proxy
from app.rails.api_key import ApiKeyRail
from app.rails.customer_store import CustomerStore
from app.rails.key_store import KeyStore
from app.reconcile.usage_store import UsageStore
from app.routing.candidates import Catalog
from app.routing.router import Router
from app.settings import ServerSettings, Settings
from tests.clocks import FakeClock
from tests.reconcile.books import PEPPER

ADMIN_VARIABLE = "A_TOKEN"
ADMIN_TOKEN = "an admin token that nobody guesses"
JOURNAL_CLOSE_TIMEOUT_S = 10


@asynccontextmanager
async def edge(engine: Engine, clock: FakeClock) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application that serves from ``engine``."""
    settings = Settings(server=ServerSettings(admin_token_env=ADMIN_VARIABLE))
    journal = Journal(JournalStore(engine, clock), settings.ledger)
    journal.start()
    keys = KeyStore(engine, clock, PEPPER)
    proxy = Proxy(
        settings=settings,
        clock=clock,
        journal=journal,
        catalog=Catalog([]),
        router=Router(clock, Random(1), settings.inference),
        search=None,
        owner_id="own_edge",
        pepper=PEPPER,
    )
    application = Application(lifespan=_no_lifespan, allowed_hosts=())
    application.serve_with(
        Services(
            settings=settings,
            engine=engine,
            clock=clock,
            journal=journal,
            proxy=proxy,
            rail=ApiKeyRail(keys),
            keys=keys,
            customers=CustomerStore(engine, clock),
            usage=UsageStore(engine),
            prices=PriceStore(engine, clock),
            secret=PEPPER,
        )
    )
    transport = httpx.ASGITransport(app=application)
    async with httpx.AsyncClient(transport=transport, base_url="http://farebox") as client:
        yield client
    await journal.close(timeout_s=JOURNAL_CLOSE_TIMEOUT_S)


@asynccontextmanager
async def _no_lifespan(_app: Starlette) -> AsyncIterator[None]:
    yield
