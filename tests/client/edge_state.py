"""What the strict edge keeps, what it does wrong when a test asks, and how it refuses."""

from dataclasses import dataclass
from typing import Any


@dataclass
class Lies:
    """What the edge does wrong. Each is off by default."""

    receipt_accepted: int | None = None
    receipt_spent: int | None = None
    receipt_channel: str | None = None
    need_channel: str | None = None
    need_required: int | None = None
    need_accepted: int | None = None
    prices_later: str | None = None
    payee_later: str | None = None
    # The same event so many times.
    need_times: int = 1
    # A snapshot that claims so much more than was accepted.
    snapshot_adds: int = 0
    # Answer so many voucher requests with this status instead.
    voucher_status: int = 0
    voucher_status_times: int = 0
    # Fail after the credential was taken: the client sees a 500 without a receipt.
    fail_after_voucher: bool = False
    # Let go of a stream in the middle, without a receipt.
    cut_stream: bool = False
    # Forget a channel that is on chain.
    forget_opens: int = 0
    expired_management: int = 0
    takes_no_top_up: bool = False
    # Not a lie: serve nothing while less of the deposit is left, and say so without an amount.
    left_min: int = 0


@dataclass
class Reserve:
    """A channel on the edge's chain and in its books. Amounts in base units."""

    kind: str
    payer: str
    descriptor: dict[str, str]
    deposit: int
    accepted: int = 0
    spent: int = 0
    settled: int = 0
    closed: bool = False
    close_requested_at: int = 0


class Refused(Exception):
    """A problem document, with fresh challenges where a 402 needs them."""

    def __init__(self, status: int, slug: str, detail: str, **members: Any) -> None:
        super().__init__(detail)
        self.status, self.slug, self.detail, self.members = status, slug, detail, members
