"""What the routes are given: made once in the composition root, read from ``request.app.state.services``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import Engine
from starlette.requests import Request

from app.clock import Clock
from app.ledger.journal import Journal
from app.ledger.price_store import PriceStore
from app.proxy import Proxy
from app.rails.customer_store import CustomerStore
from app.rails.key_store import KeyStore
from app.rails.rail import Rail
from app.reconcile.usage_store import UsageStore
from app.settings import Settings

if TYPE_CHECKING:
    from app.api.wallets import Wallets
    from app.channels.store import ChannelStore


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one serving process."""

    settings: Settings
    engine: Engine
    clock: Clock
    journal: Journal
    proxy: Proxy
    rail: Rail
    keys: KeyStore
    customers: CustomerStore
    usage: UsageStore
    prices: PriceStore
    secret: bytes = field(repr=False)
    wallets: Wallets | None = None
    channels: ChannelStore | None = None


def services(request: Request) -> Services:
    """The services of the application that a request came to."""
    found = request.app.state.services
    if not isinstance(found, Services):
        raise TypeError("the application was assembled without services")
    return found
