"""Leases: a heartbeat while this process lives, and an end for the holds of those that do not.

No stream is swept while its process lives, however long it runs. An orphaned hold is captured up to
what the delivered window could have used (see `Deliver`), or released if nothing was delivered.
"""

import asyncio
from collections.abc import Callable, Collection

from app import log
from app.clock import Clock, EpochMs
from app.errors import Overloaded
from app.ledger.journal import Journal
from app.ledger.lease_store import HeldRequest, LeaseStore
from app.ledger.operation import Captured, Sweep
from app.settings import LedgerSettings

# One's own holds are left alone this long: a job that was just admitted may not be listed yet.
OWN_GRACE_MS = 120_000

_log = log.get("sweeper")


class Sweeper:
    """Keeps one process's lease and resolves orphaned holds."""

    def __init__(
        self,
        *,
        store: LeaseStore,
        journal: Journal,
        clock: Clock,
        settings: LedgerSettings,
        owner_id: str,
        alone: bool,
        in_flight: Callable[[], Collection[str]],
    ) -> None:
        self._store = store
        self._journal = journal
        self._clock = clock
        self._settings = settings
        self._owner_id = owner_id
        self._alone = alone
        self._in_flight = in_flight
        self._judges_from_s = float("-inf")
        self.swept = 0

    async def register(self) -> None:
        """Begin the lease, then sweep what a crash left behind."""
        await asyncio.to_thread(self._store.register, self._owner_id, now=self._clock.now_ms())
        await self.sweep()

    async def beat(self) -> None:
        """Renew the lease."""
        now, began_s = self._clock.now_ms(), self._clock.monotonic_s()
        in_time = False
        try:
            if not await asyncio.to_thread(self._store.beat, self._owner_id, now=now):
                await asyncio.to_thread(self._store.register, self._owner_id, now=now)
            in_time = self._clock.monotonic_s() - began_s < self._settings.heartbeat_s
        finally:
            if not in_time:
                # The others could not renew theirs either: what looks dead has a whole lease to show that it is not.
                self._judges_from_s = self._clock.monotonic_s() + self._settings.lease_ttl_s

    async def sweep(self) -> int:
        """Resolve the holds of silent owners and of one's own lost jobs; returns how many requests."""
        now = self._clock.now_ms()
        # Alone on an SQLite file, whoever else owned a hold is gone: no need to wait for its lease.
        silent_since = EpochMs(now - (0 if self._alone else int(self._settings.lease_ttl_s * 1000)))
        judges = self._alone or self._clock.monotonic_s() >= self._judges_from_s
        orphans = await asyncio.to_thread(self._store.orphaned, silent_since=silent_since) if judges else []
        count = 0
        for orphan in orphans:
            if orphan.owner_id != self._owner_id:
                count += await self._resolve(orphan, silent_since=silent_since)
        own = await asyncio.to_thread(self._store.owned, self._owner_id, created_before=EpochMs(now - OWN_GRACE_MS))
        running = set(self._in_flight())
        for lost in own:
            if lost.request_id not in running:
                _log.error("own_hold_lost", request_id=lost.request_id)
                count += await self._resolve(lost, silent_since=None)
        await asyncio.to_thread(self._store.forget_claims, now=now)
        self.swept += count
        return count

    async def retire(self) -> None:
        """End the lease of a process that leaves in order."""
        silent = EpochMs(self._clock.now_ms() - 24 * 3600 * 1000)
        await asyncio.to_thread(self._store.retire, self._owner_id, silent_since=silent)

    async def _resolve(self, held: HeldRequest, *, silent_since: EpochMs | None) -> int:
        sweep = Sweep(held.request_id, held.account_id, held.key_id, held.owner_id, silent_since)
        try:
            result = await self._journal.submit(sweep)
        except Overloaded:
            return 0
        if isinstance(result, Captured) and result.first:
            _log.warning("orphaned_hold_resolved", request_id=held.request_id, charged_nano_usd=result.charged)
            return 1
        return 0
