"""A shop on a real chain: channels that wallets opened, books that know of them, and workers that settle."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from app.chain.backend import ChannelBackend, ChannelState
from app.channels.channel import ChannelView
from app.channels.outbox_store import OutboxStore, SettlementRecord
from app.channels.store import ChannelRecord, ChannelStore, FundingRecord
from app.database import connect
from app.ledger.account import channel_account
from app.ledger.journal import Journal
from app.ledger.journal_store import JournalStore
from app.ledger.operation import AcceptVoucher, Admitted, Captured, Changed, Freeze
from app.money import BaseUnits
from app.mpp.voucher import Voucher
from app.settings import ChannelSettings, DatabaseSettings, LedgerSettings, MppSettings
from app.settlement.settler import Settler
from app.settlement.watcher import Watcher
from tests.chain.conftest import Bench, BenchMaker, Chain, make_bench
from tests.chain.wallet import Opening, Wallet
from tests.clocks import FakeClock
from tests.devnet_fixtures import TempoChain
from tests.ledger.channel_operations import channel_admit, channel_capture

__all__ = ["make_bench"]

DEPOSIT = 1_000_000
CLOSE_S_MAX = 10
TURNS_MAX = 50
LEASE_S = 30.0


class Shop:
    """One seller's books and backend. ``clock`` is the seller's; the chain has its own."""

    def __init__(self, bench: Bench, engine: Engine, journal: Journal, clock: FakeClock, settings: MppSettings) -> None:
        self.bench = bench
        self.engine = engine
        self.journal = journal
        self.clock = clock
        self.settings = settings
        self.channels = ChannelStore(engine, clock)
        self.outbox = OutboxStore(engine, clock)
        self.changed: list[ChannelView] = []
        self._requests = 0
        self._opened: dict[str, tuple[Wallet, Opening]] = {}

    @property
    def backend(self) -> ChannelBackend:
        return self.bench.backend

    def settler(
        self, backend: ChannelBackend | None = None, *, owner_id: str = "own_a", alone: bool = False
    ) -> Settler:
        """A settler as a process has it after its start; ``backend`` by another way to the node."""
        return Settler(
            backends=[backend or self.backend],
            outbox=self.outbox,
            channels=self.channels,
            journal=self.journal,
            clock=self.clock,
            settings=self.settings,
            owner_id=owner_id,
            lease_ttl_s=LEASE_S,
            alone=alone,
            on_changed=self.changed.append,
        )

    def watcher(self, backend: ChannelBackend | None = None) -> Watcher:
        """A watcher likewise."""
        return Watcher(
            backends=[backend or self.backend],
            outbox=self.outbox,
            channels=self.channels,
            journal=self.journal,
            clock=self.clock,
            settings=self.settings,
            on_changed=self.changed.append,
        )

    def signed_open(self, deposit: int = DEPOSIT, *, funds: int | None = None) -> tuple[Wallet, Opening]:
        """A wallet and its signed open, which nobody has seen."""
        wallet = self.bench.wallet(*(() if funds is None else (funds,)))
        made = wallet.open_v2(deposit) if self.backend.offer.protocol == "v2" else wallet.open_v1(deposit)
        self._opened[made.channel_id] = (wallet, made)
        return wallet, made

    async def fund(self, opening: Opening, wallet: Wallet, *, voucher: int | None = None, mine: bool = True) -> str:
        """Keep an open and have it mined, as far as the process lived; returns its hash."""
        funding = await self.backend.prepare(self.backend.decode_open(opening.payload, source=wallet.source))
        assert funding.tx_hash is not None
        assert funding.raw is not None
        first = (
            Voucher(opening.channel_id, voucher, wallet.voucher(opening.channel_id, voucher))
            if voucher is not None
            else None
        )
        offer = self.backend.offer
        self.channels.keep_funding(
            FundingRecord(
                funding.tx_hash,
                funding.channel_id,
                "open",
                offer.backend,
                offer.escrow,
                funding.descriptor,
                funding.amount,
                funding.raw,
                first,
            )
        )
        if mine:
            assert (await self.bench.mine(funding.raw, funding.tx_hash)).succeeded
        return funding.tx_hash

    async def open(self, deposit: int = DEPOSIT, *, voucher: int | None = None) -> str:
        """A channel on chain and in the books; returns its id."""
        wallet, opening = self.signed_open(deposit)
        tx_hash = await self.fund(opening, wallet)
        offer, state = self.backend.offer, await self.on_chain(opening.channel_id)
        self.channels.create(
            opening.channel_id,
            backend=offer.backend,
            chain_id=offer.chain_id,
            escrow=offer.escrow,
            descriptor=opening.descriptor,
            deposit=state.deposit,
            settled=state.settled,
            block=state.block,
        )
        self.channels.end_funding(tx_hash, state="mined")
        if voucher is not None:
            await self.accept(opening.channel_id, voucher)
        return opening.channel_id

    async def accept(self, channel_id: str, amount: int) -> None:
        """The payer signs a voucher of ``amount`` in all."""
        wallet, _ = self._opened[channel_id]
        operation = AcceptVoucher(channel_id, BaseUnits(amount), wallet.voucher(channel_id, amount))
        assert isinstance(await self.journal.submit(operation), Changed)

    async def hold(self, channel_id: str, amount: int) -> str:
        """A request that holds ``amount`` nano-USD; returns its id."""
        self._requests += 1
        request_id = f"r{self._requests}"
        operation = channel_admit(request_id, amount=amount, channel_id=channel_id)
        assert isinstance(await self.journal.submit(operation), Admitted)
        return request_id

    async def capture(self, channel_id: str, request_id: str, price: int) -> None:
        """The request ends and costs ``price`` nano-USD."""
        operation = channel_capture(request_id, price=price, channel_id=channel_id)
        assert isinstance(await self.journal.submit(operation), Captured)

    async def spend(self, channel_id: str, price: int) -> None:
        """One request of ``price`` nano-USD."""
        await self.capture(channel_id, await self.hold(channel_id, price), price)

    async def freeze(self, channel_id: str, amount: int | None = None) -> None:
        """A cooperative close, with the payer's closing voucher."""
        wallet, _ = self._opened[channel_id]
        signature = None if amount is None else wallet.voucher(channel_id, amount)
        closing = None if amount is None else BaseUnits(amount)
        assert isinstance(await self.journal.submit(Freeze(channel_id, closing, signature)), Changed)

    async def request_close(self, channel_id: str) -> None:
        """The payer asks the escrow to close."""
        wallet, opening = self._opened[channel_id]
        raw = wallet.request_close(opening)
        assert (await self.bench.mine(raw, transaction_hash(raw))).succeeded

    async def top_up(self, channel_id: str, amount: int) -> None:
        """The payer adds to the deposit and tells nobody."""
        wallet, opening = self._opened[channel_id]
        v2 = self.backend.offer.protocol == "v2"
        payload = wallet.top_up_v2(opening, amount) if v2 else wallet.top_up_v1(opening, amount)
        funding = self.backend.decode_top_up(payload, channel_id=channel_id, descriptor=opening.descriptor)
        assert funding.raw is not None
        assert funding.tx_hash is not None
        assert (await self.bench.mine(funding.raw, funding.tx_hash)).succeeded

    async def on_chain(self, channel_id: str) -> ChannelState:
        """What the escrow says."""
        state = await self.backend.channel(channel_id)
        assert state is not None
        return state

    def record(self, channel_id: str) -> ChannelRecord:
        """What the books say."""
        record = self.channels.find(channel_id)
        assert record is not None
        return record

    def settlements(self, channel_id: str) -> list[SettlementRecord]:
        """The channel's outbox, the oldest first."""
        return list(reversed(self.outbox.settlements_of(channel_id)))

    async def until_done(self, settler: Settler) -> None:
        """Take turns until nothing is under way; the clock goes on a little each time."""
        for _ in range(TURNS_MAX):
            if not await settler.turn() and not self.outbox.open_settlements():
                return
            self.clock.advance(1000)
        raise AssertionError([row.error for row in self.outbox.open_settlements()])

    def payee_has(self) -> int:
        """The payee's balance on chain."""
        return self.bench.chain.balance(self.backend.offer.recipient)

    def account(self, channel_id: str) -> str:
        return channel_account(channel_id)


def transaction_hash(raw: bytes) -> str:
    from eth_utils.crypto import keccak

    return "0x" + keccak(raw).hex()


ShopMaker = Callable[..., Awaitable[Shop]]


@pytest.fixture
async def make_shop(make_bench: BenchMaker, sqlite_template: Path, tmp_path: Path) -> AsyncIterator[ShopMaker]:
    """Makes shops, on SQLite unless ``url`` says otherwise."""
    async with AsyncExitStack() as stack:
        count = 0

        async def make(
            chain: Chain,
            kind: str = "tempo-v1",
            *,
            url: str | None = None,
            mpp: dict[str, Any] | None = None,
            **settings: Any,
        ) -> Shop:
            nonlocal count
            count += 1
            bench = await make_bench(chain, kind, mpp=mpp, **settings)
            offer = bench.backend.offer
            entry = ChannelSettings(
                **{
                    "backend": kind,
                    "chain_id": offer.chain_id,
                    "rpc_url": chain.rpc_url,
                    "escrow": offer.escrow,
                    "currency": offer.currency,
                    **settings,
                }
            )
            engine = connect(
                DatabaseSettings(url=url or f"sqlite:///{shutil.copy(sqlite_template, tmp_path / f'shop{count}.db')}")
            )
            stack.callback(engine.dispose)
            clock = FakeClock()
            journal = Journal(JournalStore(engine, clock), LedgerSettings())
            journal.start()
            stack.push_async_callback(journal.close, timeout_s=CLOSE_S_MAX)
            return Shop(bench, engine, journal, clock, MppSettings(channels=(entry,), **(mpp or {})))

        yield make


@pytest.fixture
async def shop(make_shop: ShopMaker, devnet: TempoChain) -> Shop:
    """Our own escrow on Tempo, settled at an exposure of 0.50 USD."""
    return await make_shop(devnet, mpp={"exposure_max": "0.50"})


@pytest.fixture
async def reserve(make_shop: ShopMaker, devnet: TempoChain) -> Shop:
    """The channel reserve, likewise."""
    return await make_shop(devnet, "tempo-v2", mpp={"exposure_max": "0.50"})
