"""Who pays for a request: the one thing that differs between rails.

Everything after "is there an account, and can it hold this much?" is one code path.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from app.ledger.budget import KeyCondition
from app.routing.wishes import Wishes

if TYPE_CHECKING:
    from app.rails.session import Session


@dataclass(frozen=True, slots=True)
class Payer:
    """An account of the ledger, and the conditions that its holds are under."""

    account_id: str
    customer_id: str
    key_id: str | None = None
    key_hash: str = field(default="", repr=False)
    # The credential itself: only to derive the key that stored answers are encrypted with.
    secret: str = field(default="", repr=False)
    # Of a one-shot payment: the receipt that goes out with the answer.
    receipt: str | None = None
    # What only a payer by channel has: a voucher that was presented, receipts, and pauses.
    session: Session | None = field(default=None, repr=False)
    # What the operator says of routing for a key, where its requests say nothing.
    routing: Wishes | None = None

    def condition(self, *, model: str, tokens: int) -> KeyCondition | None:
        """What a hold needs of this payer's key, if it pays by key."""
        return KeyCondition(self.key_id, self.key_hash, model, tokens) if self.key_id else None


class Rail(Protocol):
    """One way to pay."""

    async def authenticate(self, headers: Mapping[bytes, bytes]) -> Payer:
        """The payer of a request. Raises `AuthenticationFailed` or `InvalidRequest`."""
        ...
