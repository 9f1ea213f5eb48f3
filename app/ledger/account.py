"""An account that can refuse: a payer's balance, and what may be done to it. Pure.

The model is the two-phase transfer model that TigerBeetle made known: four counters that only
transfers move. An instance is the row as locked in the current transaction, never a memory of it.
"""

from dataclasses import dataclass

from app.errors import InvariantViolated
from app.money import ZERO, NanoUsd

CUSTOMER_PREFIX = "customer:"
CHANNEL_PREFIX = "channel:"
ESCROW_PREFIX = "escrow:"
REVENUE = "revenue"
TREASURY = "treasury"
ADJUSTMENTS = "adjustments"
REFUNDS = "refunds"
CHAIN_FEES = "fees:chain"


def can_refuse(account_id: str) -> bool:
    """Whether the account keeps a balance row; the others' balances are sums over transfers."""
    return account_id.startswith((CUSTOMER_PREFIX, CHANNEL_PREFIX))


def customer_account(customer_id: str) -> str:
    """The ledger account of a customer."""
    return CUSTOMER_PREFIX + customer_id


def channel_account(channel_id: str) -> str:
    """The ledger account of a channel: what its payer may still spend."""
    return CHANNEL_PREFIX + channel_id


def escrow_account(channel_id: str) -> str:
    """What a channel's accepted vouchers entitle us to on chain."""
    return ESCROW_PREFIX + channel_id


@dataclass(slots=True)
class Account:
    """The counters of one account, in nano-USD."""

    id: str
    debits_pending: NanoUsd = ZERO
    debits_posted: NanoUsd = ZERO
    credits_pending: NanoUsd = ZERO
    credits_posted: NanoUsd = ZERO
    credit_limit: NanoUsd = ZERO
    version: int = 0

    @property
    def available(self) -> NanoUsd:
        """What can still be held or debited; negative only after a credit limit was lowered."""
        return NanoUsd(self.credits_posted - self.debits_posted - self.debits_pending + self.credit_limit)

    def hold(self, amount: NanoUsd) -> None:
        """Pend a debit. The caller has checked that it is available."""
        if not 0 <= amount <= self.available:
            raise InvariantViolated(f"hold of {amount} on {self.id} with {self.available} available")
        self.debits_pending = NanoUsd(self.debits_pending + amount)

    def resolve(self, held: NanoUsd, *, captured: NanoUsd) -> None:
        """Post ``captured`` of a hold and release the rest."""
        if not 0 <= captured <= held <= self.debits_pending:
            raise InvariantViolated(f"capture of {captured} from {held} on {self.id}, pending {self.debits_pending}")
        self.debits_pending = NanoUsd(self.debits_pending - held)
        self.debits_posted = NanoUsd(self.debits_posted + captured)

    def debit(self, amount: NanoUsd) -> None:
        """Post a debit. The caller has checked that it is available."""
        if not 0 <= amount <= self.available:
            raise InvariantViolated(f"debit of {amount} on {self.id} with {self.available} available")
        self.debits_posted = NanoUsd(self.debits_posted + amount)

    def credit(self, amount: NanoUsd) -> None:
        """Post a credit."""
        if amount < 0:
            raise InvariantViolated(f"credit of {amount} on {self.id}")
        self.credits_posted = NanoUsd(self.credits_posted + amount)
