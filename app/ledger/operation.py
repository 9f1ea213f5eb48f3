"""The operations that the journal commits, and what each may answer. Pure data.

An operation is a list of transfers and rows that commits whole or not at all, conditional on the
account's state in the database. Its id is the caller's: applied twice, it returns its first result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.channels.channel import ChannelView
from app.clock import EpochMs
from app.ledger.budget import KeyCondition
from app.ledger.transfer import Transfer
from app.money import ZERO, BaseUnits, NanoUsd

Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """An ``Idempotency-Key`` to claim in the commit of the hold."""

    key_hash: str
    body_hash: str
    expires_at_ms: EpochMs


@dataclass(frozen=True, slots=True)
class ChannelCondition:
    """What a hold needs of its channel, besides funds.

    ``presented`` is what the voucher that came with the request covers; ``challenge_id`` is claimed in the
    commit of the hold, so that a challenge buys content once.
    """

    channel_id: str
    presented: NanoUsd
    exposure_max: NanoUsd
    challenge_id: str | None = None
    challenge_expires_at_ms: EpochMs = EpochMs(0)


@dataclass(slots=True)
class Admit:
    """Hold the first part of a request's ceiling, with its row, its key's limits and its claim.

    ``amount`` is held as far as funds go; with less than ``required`` free, it is refused.
    """

    request_id: str
    account_id: str
    credit_account: str
    owner_id: str
    amount: NanoUsd
    required: NanoUsd
    request: Row
    key: KeyCondition | None = None
    claim: Claim | None = None
    channel: ChannelCondition | None = None


@dataclass(slots=True)
class Deliver:
    """Mark, before content is delivered, what a crash from here on may bill: ``used + window``."""

    request_id: str
    account_id: str
    row: Row


@dataclass(slots=True)
class Extend:
    """Hold one more window of a running stream: up to ``amount``, refused below ``required``."""

    request_id: str
    sequence: int
    account_id: str
    credit_account: str
    owner_id: str
    amount: NanoUsd
    required: NanoUsd
    delivery: Callable[[NanoUsd], Row]
    key: KeyCondition | None = None
    channel: ChannelCondition | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request ended. ``price`` is what its usage costs; the journal decides what is charged."""

    status: str
    provider: str | None
    upstream_model: str | None
    price_version_id: str | None
    tokens: tuple[int, int, int, int, int, int, int]
    estimated: bool
    price: NanoUsd
    cost: NanoUsd
    finish_reason: str | None
    error_code: str | None
    first_token_ms: int | None
    duration_ms: int
    # What is no token, as the JSON object of its column.
    units: str | None = None


@dataclass(slots=True)
class Capture:
    """Resolve every hold of a request, charging ``outcome.price`` as far as funds go."""

    request_id: str
    account_id: str
    key_id: str | None
    outcome: Outcome
    attempts: Sequence[Row] = ()
    tokens_admitted: int = 0
    tokens_used: int = 0
    admitted_at_ms: EpochMs = EpochMs(0)
    claimed: bool = False
    # Makes the answer that a replay returns, once the charge is known; None: not stored.
    answer: Callable[["Captured"], bytes | None] | None = None
    # A failed request that charged nothing gives its idempotency key back.
    forget_claim: bool = False
    # The challenge that a channel's request was paid by: its receipt is a row of the capture's commit.
    challenge_id: str | None = None


@dataclass(slots=True)
class Sweep:
    """Resolve the holds of a request whose owner is gone: what was delivered is billed, never more."""

    request_id: str
    account_id: str
    key_id: str | None
    owner_id: str
    # The owner must have been silent since this moment; None for one's own lost jobs.
    silent_since_ms: EpochMs | None


@dataclass(slots=True)
class Post:
    """One posted transfer: a top-up, a grant, a refund. Debits of payers are refused without funds."""

    transfer: Transfer


@dataclass(slots=True)
class AcceptVoucher:
    """Persist a voucher with its signature and its credit. An equal one changes nothing."""

    channel_id: str
    amount: BaseUnits
    signature: str = field(repr=False)
    min_delta: BaseUnits = BaseUnits(0)


@dataclass(slots=True)
class Freeze:
    """Stop service on a channel for good; ``amount`` and ``signature`` are the payer's closing voucher."""

    channel_id: str
    amount: BaseUnits | None = None
    signature: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class Observe:
    """What the chain says of a channel at ``block``; of an older word than the last only ``settled`` counts.

    ``settled`` None: the chain forgot it (a finalized channel), so that the last word stands.
    """

    channel_id: str
    deposit: BaseUnits
    settled: BaseUnits | None
    close_requested_at: int
    finalized: bool
    block: int


@dataclass(slots=True)
class PlanSettlement:
    """An intent of the outbox: ``settle`` a voucher that is spent, or ``close`` a frozen channel without holds.

    ``amount`` and ``signature`` are the voucher to show; a close captures exactly what was spent, except
    ``whole``: on an escrow that pays every voucher in full.
    """

    settlement_id: str
    channel_id: str
    kind: str
    amount: BaseUnits
    signature: str = field(repr=False)
    account: str = ""
    whole: bool = False


Operation = Admit | Deliver | Extend | Capture | Sweep | Post | AcceptVoucher | Freeze | Observe | PlanSettlement


@dataclass(frozen=True, slots=True)
class Admitted:
    """The hold is durable: ``granted`` of it, with ``free`` what was free before it."""

    granted: NanoUsd
    free: NanoUsd
    channel: ChannelView | None = None


@dataclass(frozen=True, slots=True)
class Delivered:
    """The mark is durable."""


@dataclass(frozen=True, slots=True)
class Extended:
    """One more window of ``granted`` is held."""

    granted: NanoUsd


@dataclass(frozen=True, slots=True)
class Captured:
    """The request is over: what was charged, and what it cost beyond anyone's funds."""

    charged: NanoUsd
    loss: NanoUsd = ZERO
    first: bool = True
    channel: ChannelView | None = None


@dataclass(frozen=True, slots=True)
class Posted:
    """The transfer is durable; ``first`` is false if it had been done before."""

    first: bool = True


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was done: why, and the amounts that decided; for a channel, how it stands."""

    reason: str
    available: NanoUsd = ZERO
    required: NanoUsd = ZERO
    retry_after_s: int | None = None
    limit: int | None = None
    channel: ChannelView | None = None


@dataclass(frozen=True, slots=True)
class Changed:
    """A channel's row as it is now; ``first`` is false if nothing changed.

    ``capture`` is what a planned settlement takes in all, in base units; ``accepted_before`` is what the
    highest voucher was until now.
    """

    channel: ChannelView
    first: bool = True
    accepted_before: NanoUsd = ZERO
    capture: BaseUnits = BaseUnits(0)


@dataclass(frozen=True, slots=True)
class ClaimFound:
    """The idempotency key is taken: by a running, finished or interrupted request."""

    request_id: str
    body_hash: str
    state: str
    answer: bytes | None = field(repr=False, default=None)


Result = Admitted | Delivered | Extended | Captured | Posted | Changed | Refused | ClaimFound
