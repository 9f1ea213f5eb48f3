"""The part of the database that a batch of operations touches, and the rows that its decisions made. Pure."""

from dataclasses import dataclass, field

from app.channels.channel import Channel, ChannelView
from app.clock import EpochMs
from app.errors import InvariantViolated
from app.ledger.account import CHANNEL_PREFIX, Account, channel_account
from app.ledger.budget import KeyBudget
from app.ledger.operation import Row
from app.ledger.transfer import Hold, Transfer
from app.money import BaseUnits, NanoUsd


@dataclass(slots=True)
class ClaimRow:
    """A row of `idempotency_claims`."""

    request_id: str
    body_hash: str
    state: str
    answer: bytes | None
    expires_at_ms: EpochMs


@dataclass(slots=True)
class DeliveryRow:
    """The newest delivery mark of a request."""

    provider: str
    price_version_id: str
    used: NanoUsd
    window: NanoUsd


@dataclass(slots=True)
class Books:
    """The rows that a batch read under lock, and the rows that its decisions made."""

    now: EpochMs
    accounts: dict[str, Account] = field(default_factory=dict)
    keys: dict[str, KeyBudget] = field(default_factory=dict)
    claims: dict[tuple[str, str], ClaimRow] = field(default_factory=dict)
    holds: dict[str, list[Hold]] = field(default_factory=dict)
    amounts_done: dict[str, NanoUsd] = field(default_factory=dict)
    sides_done: dict[str, tuple[str, str]] = field(default_factory=dict)
    outcomes_done: dict[str, tuple[NanoUsd, NanoUsd]] = field(default_factory=dict)
    delivered: set[tuple[str, int]] = field(default_factory=set)
    deliveries: dict[str, DeliveryRow] = field(default_factory=dict)
    heartbeats: dict[str, EpochMs] = field(default_factory=dict)
    channels: dict[str, Channel] = field(default_factory=dict)
    challenges_claimed: set[str] = field(default_factory=set)
    settlements_open: dict[str, str] = field(default_factory=dict)
    settlements_done: dict[str, BaseUnits] = field(default_factory=dict)

    accounts_changed: set[str] = field(default_factory=set)
    keys_changed: set[str] = field(default_factory=set)
    new_transfers: list[Transfer] = field(default_factory=list)
    new_holds: list[Hold] = field(default_factory=list)
    resolved_holds: list[str] = field(default_factory=list)
    new_requests: list[Row] = field(default_factory=list)
    new_deliveries: list[Row] = field(default_factory=list)
    new_outcomes: list[Row] = field(default_factory=list)
    new_attempts: list[Row] = field(default_factory=list)
    new_claims: dict[tuple[str, str], ClaimRow] = field(default_factory=dict)
    resolved_claims: list[tuple[str, bytes | None, str]] = field(default_factory=list)
    forgotten_claims: list[str] = field(default_factory=list)
    channels_changed: set[str] = field(default_factory=set)
    new_vouchers: list[Row] = field(default_factory=list)
    new_challenges: list[Row] = field(default_factory=list)
    new_receipts: list[Row] = field(default_factory=list)
    new_settlements: list[Row] = field(default_factory=list)

    def account(self, account_id: str) -> Account:
        """The locked row. Raises `InvariantViolated` if the account does not exist."""
        try:
            return self.accounts[account_id]
        except KeyError as error:
            raise InvariantViolated(f"no account {account_id}") from error

    def channel_of(self, account_id: str) -> Channel | None:
        """The locked row of the channel that an account belongs to; None for a customer's."""
        return self.channels.get(account_id.removeprefix(CHANNEL_PREFIX)) if account_id[:8] == CHANNEL_PREFIX else None

    def view(self, channel: Channel) -> ChannelView:
        """How a channel stands in this transaction."""
        return channel.view(held=self.account(channel_account(channel.id)).debits_pending)
