"""Payment by wallet, put together: backends, channels, the workers on the chain, and the session rail.

Made only where `[[mpp.channels]]` are configured. A node that is away does not keep the process from starting:
keys pay as ever, and wallets as soon as their chain was seen.
"""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy import Engine

from app import database, log, metrics
from app.api.wallets import Wallets
from app.chain.backend import ChainUnavailable, ChannelBackend
from app.chain.registry import backend_for, charge_for
from app.channels.channel import ChannelView
from app.channels.listener_store import Listener
from app.channels.outbox_store import OutboxStore
from app.channels.store import ChannelStore
from app.clock import Clock
from app.ledger.account import channel_account
from app.ledger.journal import Journal
from app.ledger.price_store import PriceStore
from app.mpp.challenge import Challenges
from app.proxy import Proxy
from app.rails.challenger import Challenger
from app.rails.charge_store import ChargeStore
from app.rails.funding import Funder
from app.rails.mpp_charge import ChargeRail
from app.rails.mpp_secrets import challenge_secrets, payee_key
from app.rails.mpp_session import SessionRail
from app.rails.pauses import Pauses
from app.settings import ChannelSettings, Settings, SettingsError
from app.settlement.fees import SponsoredFees
from app.settlement.settler import Settler
from app.settlement.watcher import Watcher

# A chain that answers was seen by then; one that does not is waited for by its users alone.
FIRST_LOOK_S = 3.0
CHECK_AGAIN_S = 2.0

_log = log.get("wallets")


@dataclass(frozen=True, slots=True)
class Parts:
    """What a process has already."""

    settings: Settings
    engine: Engine
    clock: Clock
    journal: Journal
    proxy: Proxy
    prices: PriceStore
    owner_id: str


class _ChainWork:
    """The workers, as the rail sees them. A chain whose node was not checked counts as never seen."""

    def __init__(self, watcher: Watcher, settler: Settler) -> None:
        self._watcher = watcher
        self._settler = settler
        self.checked = False

    def lag_of(self, backend: ChannelBackend) -> float:
        return self._watcher.lag_of(backend) if self.checked else float("inf")

    def close(self, channel_id: str) -> Awaitable[str]:
        return self._settler.close(channel_id)


class WalletService:
    """Everything about wallets in one process, started and ended in order."""

    def __init__(self, parts: Parts) -> None:
        settings, engine, clock = parts.settings, parts.engine, parts.clock
        secret, previous = challenge_secrets(settings.mpp, engine)
        self._parts = parts
        self.channels = ChannelStore(engine, clock)
        outbox = OutboxStore(engine, clock)
        self._backends = [self._backend(entry, outbox) for entry in settings.mpp.channels]
        self._checking: asyncio.Task[None] | None = None
        self._watcher = Watcher(
            backends=self._backends,
            outbox=outbox,
            channels=self.channels,
            journal=parts.journal,
            clock=clock,
            settings=settings.mpp,
        )
        self._settler = Settler(
            backends=self._backends,
            outbox=outbox,
            channels=self.channels,
            journal=parts.journal,
            clock=clock,
            settings=settings.mpp,
            owner_id=parts.owner_id,
            lease_ttl_s=settings.ledger.lease_ttl_s,
            alone=database.is_sqlite(engine),
        )
        self._chain = _ChainWork(self._watcher, self._settler)
        challenges = Challenges(realm=settings.mpp.realm, secret=secret, previous=previous)
        self.rail = self._rail(challenges)
        self.charge = self._charge(challenges)
        self.wallets = Wallets(self.rail, parts.proxy, parts.prices, self.charge)
        self._listener = (
            None
            if database.is_sqlite(engine)
            else Listener(engine, on_changed=self.rail.changed, on_missed=self.rail.missed)
        )
        self._watcher.on_changed = self._settler.on_changed = self._changed

    def _backend(self, entry: ChannelSettings, outbox: OutboxStore) -> ChannelBackend:
        parts = self._parts
        budget = SponsoredFees(entry, parts.settings.mpp, store=outbox, journal=parts.journal, clock=parts.clock)
        key = payee_key(entry, parts.engine)
        return backend_for(entry, parts.settings.mpp, payee_key=key, clock=parts.clock, budget=budget)

    def _rail(self, challenges: Challenges) -> SessionRail:
        parts = self._parts
        mpp = parts.settings.mpp
        challenger = Challenger(challenges, [backend.offer for backend in self._backends], mpp, parts.clock)
        funder = Funder(
            store=self.channels,
            journal=parts.journal,
            settings=mpp,
            challenger=challenger,
            lend_nonce=self._settler.lend_nonce,
            confirmations={
                backend.offer: entry.confirmations for entry, backend in zip(mpp.channels, self._backends, strict=True)
            },
        )
        rail = SessionRail(
            challenger=challenger,
            backends=self._backends,
            store=self.channels,
            journal=parts.journal,
            settings=mpp,
            clock=parts.clock,
            pauses=Pauses(),
            funder=funder,
            chain=self._chain,
            silence_comment_s=parts.settings.server.silence_comment_s,
        )
        rail.on_stopped = lambda channel_id: parts.proxy.halt(channel_account(channel_id))
        return rail

    def _charge(self, challenges: Challenges) -> ChargeRail | None:
        """One-shot payments on the first Tempo chain, if there is one."""
        parts = self._parts
        mpp = parts.settings.mpp
        for entry, backend in zip(mpp.channels, self._backends, strict=True):
            if backend.offer.method != "tempo":
                continue
            store = ChargeStore(parts.engine, parts.clock)
            return ChargeRail(
                challenges=challenges,
                offer=backend.offer,
                collector=charge_for(entry, mpp, backend=backend, claims=store, clock=parts.clock),
                store=store,
                journal=parts.journal,
                settings=mpp,
                clock=parts.clock,
            )
        return None

    def _changed(self, view: ChannelView) -> None:
        self.rail.changed(view.id, view.status != "open" or view.close_requested_at != 0)

    async def start(self) -> None:
        """Check the backends, listen, watch and settle. Raises `SettingsError` for a chain that is another one.

        Nothing is believed of a chain, and nothing signed for it, before every node named the chain that is meant.
        """
        if self._listener is not None:
            await self._listener.start()
        try:
            async with asyncio.timeout(FIRST_LOOK_S):
                await asyncio.gather(*(backend.check() for backend in self._backends))
        except (ChainUnavailable, TimeoutError) as error:
            _log.warning("chain_not_seen", reason=str(error) or type(error).__name__)
            self._checking = asyncio.create_task(self._check_again(), name="check")
            return
        await self._begin()

    async def _begin(self) -> None:
        with suppress(ChainUnavailable, TimeoutError):
            async with asyncio.timeout(FIRST_LOOK_S):
                await self._watcher.look()
        self._watcher.start()
        self._settler.start()
        self._chain.checked = True

    async def _check_again(self) -> None:
        """Until every node answers. A chain that turns out to be another one is never served."""
        while True:
            await asyncio.sleep(CHECK_AGAIN_S)
            try:
                for backend in self._backends:
                    await backend.check()
            except ChainUnavailable:
                continue
            except SettingsError as error:
                metrics.alerts.labels("chain_settings").inc()
                _log.error("chain_is_not_the_one_named", reason=str(error))
                return
            await self._begin()
            return

    async def stop(self) -> None:
        """End the workers; what is under way is in the outbox."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait((self._checking,))
        if self._listener is not None:
            await self._listener.stop()
        await self._settler.stop()
        await self._watcher.stop()
        for backend in self._backends:
            with suppress(ChainUnavailable):
                await backend.aclose()
        if self.charge is not None:
            await self.charge.aclose()
