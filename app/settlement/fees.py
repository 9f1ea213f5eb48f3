"""The budget of fees that are paid for clients: counted by day, in the database, for all replicas."""

import asyncio

from app import log, metrics
from app.channels.outbox_store import OutboxStore
from app.clock import MS_PER_SECOND, Clock, EpochMs
from app.ledger import transfer as transfers
from app.ledger.account import CHAIN_FEES, TREASURY
from app.ledger.journal import Journal
from app.ledger.operation import Post
from app.ledger.transfer import Transfer
from app.money import BaseUnits, base_units_down, nano_usd_of, parse_usd
from app.settings import ChannelSettings, MppSettings

SECONDS_PER_DAY = 86_400

_log = log.get("fees")


class SponsoredFees:
    """An `app.chain.sponsorship.FeeBudget` for one kind of channel. Days are UTC's."""

    def __init__(
        self, entry: ChannelSettings, settings: MppSettings, *, store: OutboxStore, journal: Journal, clock: Clock
    ) -> None:
        self._name = f"{entry.backend}:{entry.chain_id}:{entry.escrow.lower()}:{entry.currency.lower()}"
        self._limit = base_units_down(parse_usd(settings.sponsored_fees_per_day))
        self._store = store
        self._journal = journal
        self._clock = clock

    async def reserve(self, amount: BaseUnits, *, tx_hash: str) -> bool:
        """Set a transaction's worst case aside; false where the day's budget does not allow it."""
        reserved = await asyncio.to_thread(
            self._store.reserve_fee,
            tx_hash,
            backend=self._name,
            day=self._clock.now_ms() // MS_PER_SECOND // SECONDS_PER_DAY,
            amount=amount,
            limit=self._limit,
        )
        if not reserved:
            metrics.alerts.labels("sponsored_fees_used_up").inc()
            _log.warning("sponsored_fees_used_up", channel_kind=self._name)
        return reserved

    async def settle(self, fee: BaseUnits, *, tx_hash: str) -> None:
        """A sponsored transaction was mined: book what it cost us and free the rest of its reservation.

        Booked first: the row that says it is settled is what stops a repetition.
        """
        if await asyncio.to_thread(self._store.fee_is_settled, tx_hash):
            return
        await self._journal.submit(chain_fee(f"{tx_hash}:fee", fee=fee, at=self._clock.now_ms()), must=True)
        await asyncio.to_thread(self._store.settle_fee, tx_hash, fee=fee)


def chain_fee(transfer_id: str, *, fee: BaseUnits, at: EpochMs) -> Post:
    """What a transaction of ours cost, out of the treasury. Doing one id twice books it once."""
    return Post(
        Transfer(
            transfer_id,
            transfers.CHAIN_FEE,
            transfers.POSTED,
            CHAIN_FEES,
            TREASURY,
            nano_usd_of(fee),
            None,
            None,
            None,
            at,
        )
    )
