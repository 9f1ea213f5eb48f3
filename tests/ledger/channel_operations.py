"""Operations on payment channels with plain defaults, and channels as clients' opens leave them."""

from dataclasses import replace
from typing import Any

from sqlalchemy import Engine

from app.channels.channel import Channel
from app.channels.store import ChannelRecord, ChannelStore
from app.clock import EpochMs
from app.ledger.account import Account, channel_account
from app.ledger.books import Books
from app.ledger.operation import (
    AcceptVoucher,
    Admit,
    Capture,
    ChannelCondition,
    Extend,
    Freeze,
    Observe,
    PlanSettlement,
)
from app.money import ZERO, BaseUnits, NanoUsd
from app.mpp.descriptor import Descriptor
from tests.clocks import START_MS, FakeClock
from tests.ledger.operations import admit, capture, extend

CHANNEL = "0x" + "c1" * 32
ESCROW = "0x" + "e5" * 20
TOKEN = "0x" + "70" * 20
PAYEE = "0x" + "9a" * 20
DEPOSIT = 1_000_000
# Of a hold that no exposure stops.
BOUNDLESS = NanoUsd(2**62)
OLD_CHALLENGE = "old"


def descriptor(salt: int = 1, *, payer: str = "0x" + "aa" * 20, token: str = TOKEN, payee: str = PAYEE) -> Descriptor:
    return Descriptor(payer=payer, payee=payee, token=token, salt=f"0x{salt:064x}")


def signature(amount: int) -> str:
    """What stands for a signature where nobody verifies it: as long as one, and different for each amount."""
    return f"0x{amount:0128x}1b"


def channel_condition(
    presented: int, *, challenge_id: str | None = None, channel_id: str = CHANNEL, exposure_max: int = BOUNDLESS
) -> ChannelCondition:
    """``presented`` in base units."""
    expires = EpochMs(START_MS + 300_000) if challenge_id else EpochMs(0)
    return ChannelCondition(channel_id, NanoUsd(presented * 1000), NanoUsd(exposure_max), challenge_id, expires)


def channel_admit(
    request_id: str = "r1",
    *,
    amount: int,
    required: int | None = None,
    presented: int = 2**40,
    challenge_id: str | None = None,
    channel_id: str = CHANNEL,
    exposure_max: int = BOUNDLESS,
    owner_id: str = "o1",
) -> Admit:
    """Amounts in nano-USD, ``presented`` in base units."""
    operation = admit(
        request_id,
        amount=amount,
        required=amount if required is None else required,
        account_id=channel_account(channel_id),
        owner_id=owner_id,
    )
    operation.channel = channel_condition(
        presented, challenge_id=challenge_id, channel_id=channel_id, exposure_max=exposure_max
    )
    return operation


def channel_extend(
    request_id: str = "r1",
    *,
    sequence: int,
    amount: int,
    required: int = 1,
    channel_id: str = CHANNEL,
    exposure_max: int = BOUNDLESS,
    owner_id: str = "o1",
) -> Extend:
    operation = extend(
        request_id,
        sequence=sequence,
        amount=amount,
        required=required,
        account_id=channel_account(channel_id),
        owner_id=owner_id,
    )
    operation.channel = channel_condition(0, channel_id=channel_id, exposure_max=exposure_max)
    return operation


def channel_capture(
    request_id: str = "r1", *, price: int, challenge_id: str | None = None, channel_id: str = CHANNEL, **more: Any
) -> Capture:
    operation = capture(request_id, price=price, account_id=channel_account(channel_id), **more)
    operation.challenge_id = challenge_id
    return operation


def voucher(amount: int, *, channel_id: str = CHANNEL, min_delta: int = 0) -> AcceptVoucher:
    return AcceptVoucher(channel_id, BaseUnits(amount), signature(amount), BaseUnits(min_delta))


def freeze(amount: int | None = None, *, channel_id: str = CHANNEL) -> Freeze:
    return Freeze(
        channel_id, None if amount is None else BaseUnits(amount), None if amount is None else signature(amount)
    )


def observe(
    *,
    deposit: int = DEPOSIT,
    settled: int | None = 0,
    close_requested_at: int = 0,
    finalized: bool = False,
    block: int = 10,
    channel_id: str = CHANNEL,
) -> Observe:
    paid = None if settled is None else BaseUnits(settled)
    return Observe(channel_id, BaseUnits(deposit), paid, close_requested_at, finalized, block)


def plan(
    kind: str, amount: int, *, settlement_id: str = "set_1", channel_id: str = CHANNEL, whole: bool = False
) -> PlanSettlement:
    return PlanSettlement(
        settlement_id, channel_id, kind, BaseUnits(amount), signature(amount) if amount else "", "1:0xabc", whole
    )


def channel(**changes: Any) -> Channel:
    """An open channel with its deposit and nothing else."""
    plain = Channel(
        id=CHANNEL,
        status="open",
        deposit=BaseUnits(DEPOSIT),
        settled=BaseUnits(0),
        close_requested_at=0,
        seen_block=10,
        recovered=ZERO,
        accepted=ZERO,
        spent=ZERO,
        published=BaseUnits(0),
        close_amount=None,
        close_signature=None,
    )
    return replace(plain, **changes)


def channel_books(*, accepted: int = 0, spent: int = 0, held: int = 0, **changes: Any) -> Books:
    """Books with one channel: ``accepted`` in base units; ``spent`` and ``held`` in nano-USD."""
    row = channel(accepted=NanoUsd(accepted * 1000), spent=NanoUsd(spent), **changes)
    account = Account(
        channel_account(CHANNEL),
        debits_pending=NanoUsd(held),
        debits_posted=NanoUsd(spent - row.recovered),
        credits_posted=NanoUsd(row.accepted - row.recovered),
    )
    return Books(now=START_MS, accounts={account.id: account}, channels={CHANNEL: row})


def add_channel(
    engine: Engine,
    channel_id: str = CHANNEL,
    *,
    deposit: int = DEPOSIT,
    settled: int = 0,
    block: int = 10,
    clock: FakeClock | None = None,
) -> ChannelRecord:
    """A channel as an open leaves it, before its first voucher."""
    return ChannelStore(engine, clock or FakeClock()).create(
        channel_id,
        backend="tempo-v1",
        chain_id=1,
        escrow=ESCROW,
        descriptor=descriptor(),
        deposit=BaseUnits(deposit),
        settled=BaseUnits(settled),
        block=block,
    )
