"""An API key's own limits, decided on the row locked with the hold. Pure.

Revocation, expiry, the model list, spend limits and rates are conditions of the hold, so they take
effect at once in every process and hold across replicas.
"""

import hmac
from dataclasses import dataclass

import orjson

from app.clock import MS_PER_MINUTE, EpochMs, month_of
from app.money import NanoUsd

UNLIMITED = NanoUsd(2**62)


@dataclass(frozen=True, slots=True)
class KeyCondition:
    """What a hold needs of its key: that it is still this secret, and may use this model."""

    key_id: str
    key_hash: str
    model: str
    tokens: int


@dataclass(frozen=True, slots=True)
class BudgetRefusal:
    """Why a key may not: a reason, and for rates how long to wait."""

    reason: str
    retry_after_s: int | None = None
    limit: int | None = None


@dataclass(slots=True)
class KeyBudget:
    """The columns of `api_keys` that decide. Amounts in nano-USD."""

    id: str
    hash: str
    revoked_at_ms: EpochMs | None
    expires_at_ms: EpochMs | None
    models: str | None
    spend_limit: NanoUsd | None
    spend_limit_month: NanoUsd | None
    requests_per_minute: int | None
    tokens_per_minute: int | None
    spent: NanoUsd
    held: NanoUsd
    month: int
    spent_month: NanoUsd
    minute: int
    minute_requests: int
    minute_tokens: int
    version: int

    def roll(self, now: EpochMs) -> None:
        """Start a new month or minute where the clock has passed into one.

        Never an earlier one: a replica whose clock is behind must not reset what others counted.
        """
        month, minute = month_of(now), now // MS_PER_MINUTE
        if month > self.month:
            self.month, self.spent_month = month, NanoUsd(0)
        if minute > self.minute:
            self.minute, self.minute_requests, self.minute_tokens = minute, 0, 0

    def usable(self, condition: KeyCondition, *, now: EpochMs) -> BudgetRefusal | None:
        """Whether the key may still be used for the model at all."""
        if self.revoked_at_ms is not None or not hmac.compare_digest(self.hash, condition.key_hash):
            return BudgetRefusal("revoked")
        if self.expires_at_ms is not None and now >= self.expires_at_ms:
            return BudgetRefusal("expired")
        if self.models is not None and condition.model not in orjson.loads(self.models):
            return BudgetRefusal("model_not_allowed")
        return None

    def within_rates(self, condition: KeyCondition, *, now: EpochMs) -> BudgetRefusal | None:
        """Whether this minute has room for one more request of so many tokens."""
        wait_s = -(-(MS_PER_MINUTE - now % MS_PER_MINUTE) // 1000)
        if self.requests_per_minute is not None and self.minute_requests + 1 > self.requests_per_minute:
            return BudgetRefusal("requests_per_minute", wait_s, self.requests_per_minute)
        if self.tokens_per_minute is not None and self.minute_tokens + condition.tokens > self.tokens_per_minute:
            return BudgetRefusal("tokens_per_minute", wait_s, self.tokens_per_minute)
        return None

    @property
    def free(self) -> NanoUsd:
        """What the key's spend limits still let it hold."""
        free = UNLIMITED
        if self.spend_limit is not None:
            free = min(free, NanoUsd(self.spend_limit - self.spent - self.held))
        if self.spend_limit_month is not None:
            free = min(free, NanoUsd(self.spend_limit_month - self.spent_month - self.held))
        return free

    def hold(self, amount: NanoUsd) -> None:
        """Reserve ``amount`` of the spend limits."""
        self.held = NanoUsd(self.held + amount)

    def count(self, tokens: int) -> None:
        """Count one admitted request against this minute."""
        self.minute_requests += 1
        self.minute_tokens += tokens

    def resolve(self, held: NanoUsd, *, charged: NanoUsd, tokens_over: int) -> None:
        """Turn what was held into what was charged, and correct this minute's token count."""
        self.held = NanoUsd(self.held - held)
        self.spent = NanoUsd(self.spent + charged)
        self.spent_month = NanoUsd(self.spent_month + charged)
        self.minute_tokens = max(0, self.minute_tokens + tokens_over)
