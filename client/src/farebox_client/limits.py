"""How much this wallet pays at most: per request, per channel, per day, per price and per fee. Pure.

Limits bound what is *signed*. A server can take what was signed and no more, so these are bounds on
losses, whatever it says.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal

from farebox_client.amounts import show, usd
from farebox_client.errors import LimitReached

# "qwen/qwen3.5-9b: 0.10 USD for input and 0.15 USD for output per million tokens"
_PRICE = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?) USD for ([a-z][a-z_]*)")


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds in base units (`usd` makes them). ``None`` is no bound.

    ``per_request``: what the vouchers of one request may add to what the channel has signed.
    ``per_channel``: the largest deposit, top-ups included.
    ``per_day``: what all vouchers of this wallet's store add in one UTC day.
    ``per_fee``: the most that one transaction may cost in fees on Tempo.
    ``per_fee_native``: the same on other EVM chains, in wei.
    ``prices``: the highest prices in USD per million tokens, ``{"input": "0.50", "output": "2.00"}``, held
    against the price list in each challenge's description. A list that does not name one of them is refused.
    """

    per_request: int | None = usd("1.00")
    per_channel: int | None = usd("10.00")
    per_day: int | None = usd("10.00")
    per_fee: int | None = usd("0.10")
    per_fee_native: int | None = 10**16
    prices: Mapping[str, str | Decimal] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "prices", {name: Decimal(price) for name, price in self.prices.items()})

    def check_voucher(self, *, added: int, today: int) -> None:
        """``added`` by this request and ``today`` by all, this voucher included. Raises `LimitReached`."""
        _check(added, self.per_request, "this request", "per_request", "--max-cost")
        _check(today, self.per_day, "today's requests", "per_day", "--max-day")

    def check_deposit(self, deposit: int) -> None:
        """A channel's deposit in all. Raises `LimitReached`."""
        _check(deposit, self.per_channel, "the channel's deposit", "per_channel", "--max-deposit")

    def deposit(self, *, suggested: int, needed: int) -> int:
        """What to put into a new channel. Raises `LimitReached` if what is needed is too much."""
        self.check_deposit(needed)
        wanted = max(suggested, needed)
        return wanted if self.per_channel is None else min(wanted, self.per_channel)

    def check_fee(self, fee: int) -> None:
        """The most that a Tempo transaction may cost. Raises `LimitReached`."""
        _check(fee, self.per_fee, "the fee", "per_fee", "--max-fee")

    def check_fee_native(self, fee_wei: int) -> None:
        """The most that an EVM transaction may cost, in wei. Raises `LimitReached`."""
        if self.per_fee_native is not None and fee_wei > self.per_fee_native:
            raise LimitReached(
                f"the fee could be {fee_wei} wei, above the limit of {self.per_fee_native}: raise Limits.per_fee_native"
            )

    def check_prices(self, description: str) -> None:
        """A challenge's price list. Raises `LimitReached`, also for a list that does not name what is limited."""
        for name, highest in self.prices.items():
            price = price_of(description, name)
            if price is None:
                raise LimitReached(
                    f"the server's price list names no price for {name!r}, which Limits.prices bounds: {description!r}"
                )
            if price > Decimal(highest):
                raise LimitReached(f"the server's price for {name} is {price} USD, above the limit of {highest}")


def price_of(description: str, name: str) -> Decimal | None:
    """The highest price that a price list gives to ``name``; None where it gives none."""
    found = [Decimal(price) for price, label in _PRICE.findall(description) if label == name]
    return max(found) if found else None


def _check(amount: int, limit: int | None, what: str, name: str, option: str) -> None:
    if limit is not None and amount > limit:
        raise LimitReached(
            f"{what} would come to {show(amount)} USD, above the limit of {show(limit)}: "
            f"raise Limits.{name}, or {option} on the command line"
        )
