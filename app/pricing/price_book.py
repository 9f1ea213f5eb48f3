"""What a unit costs: billable units, usage, and the price version that a request pins.

A kind of token without a price of its own bills at its parent's. Any other unit (an image of one size, a
second, a character, a search) without a price is not sold: nothing that was used is ever free by omission.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from app.money import NanoUsd, PicoUsd, cost_nano_usd
from app.units import PARENT, ROOTS


@dataclass(frozen=True, slots=True)
class Usage:
    """What one request used. Tokens are OpenAI's way: totals that include their details.

    ``units`` are pairs of a unit that is no token and how many were used; ``estimated`` marks our own count,
    where the provider reported none.
    """

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    audio_input_tokens: int = 0
    reasoning_tokens: int = 0
    audio_output_tokens: int = 0
    estimated: bool = False
    units: tuple[tuple[str, int], ...] = ()

    @property
    def plain(self) -> bool:
        """Whether all tokens are of the two root units: the usual case, and the quick one."""
        return not (
            self.cached_tokens
            or self.cache_write_tokens
            or self.audio_input_tokens
            or self.reasoning_tokens
            or self.audio_output_tokens
            or self.units
        )

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def by_unit(self) -> dict[str, int]:
        """Amounts by billable unit; the totals' details are taken out of them, so nothing bills twice.

        Details may overlap (cached audio is reported as both): a token bills as the first of them here.
        """
        details = {
            "cached_input": self.cached_tokens,
            "cache_write": self.cache_write_tokens,
            "audio_input": self.audio_input_tokens,
            "reasoning": self.reasoning_tokens,
            "audio_output": self.audio_output_tokens,
        }
        tokens = {"input": self.prompt_tokens, "output": self.completion_tokens}
        for unit, reported in details.items():
            tokens[unit] = min(reported, tokens[PARENT[unit]])
            tokens[PARENT[unit]] -= tokens[unit]
        for unit, amount in self.units:
            tokens[unit] = tokens.get(unit, 0) + amount
        return tokens


@dataclass(frozen=True, slots=True)
class PriceVersion:
    """One immutable version of a provider's price for a model, in pico-USD per unit."""

    id: str
    provider: str
    model: str
    version: int
    prices: Mapping[str, PicoUsd]
    costs: Mapping[str, PicoUsd]
    _dearest: Mapping[tuple[str, bool], PicoUsd] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        dearest = {}
        for root in ROOTS:
            units = [root, *(unit for unit, parent in PARENT.items() if parent == root)]
            if root in self.prices:
                for audio in (False, True):
                    dearest[root, audio] = max(
                        self.price(unit) for unit in units if audio or not unit.startswith("audio")
                    )
        object.__setattr__(self, "_dearest", dearest)

    def price(self, unit: str) -> PicoUsd:
        """The unit's own price, else its parent's. Raises `KeyError` if neither is set."""
        own = self.prices.get(unit)
        return own if own is not None else self.prices[PARENT[unit]]

    def sells(self, units: Iterable[str]) -> bool:
        """Whether every one of these units has a price."""
        return all(unit in self.prices or PARENT.get(unit) in self.prices for unit in units)

    def charge(self, usage: Usage) -> NanoUsd:
        """What the payer owes for ``usage``, rounded up once."""
        if usage.plain:
            prices = self.prices
            if not usage.completion_tokens:
                return cost_nano_usd(((usage.prompt_tokens, prices["input"]),)) if usage.prompt_tokens else NanoUsd(0)
            return cost_nano_usd(((usage.prompt_tokens, prices["input"]), (usage.completion_tokens, prices["output"])))
        return cost_nano_usd((tokens, self.price(unit)) for unit, tokens in usage.by_unit().items() if tokens)

    def upstream_cost(self, usage: Usage) -> NanoUsd:
        """What we owe the provider; units without a cost anywhere cost nothing (our own machines)."""
        return cost_nano_usd(
            (tokens, self.costs.get(unit, self.costs.get(PARENT.get(unit, unit), PicoUsd(0))))
            for unit, tokens in usage.by_unit().items()
            if tokens
        )

    def unpriced(self, usage: Usage) -> tuple[str, ...]:
        """Reported units that billed at their parent's price: worth an operator's look."""
        if usage.plain:
            return ()
        return tuple(
            unit for unit, tokens in usage.by_unit().items() if tokens and unit in PARENT and unit not in self.prices
        )

    def dearest(self, root: str, *, audio: bool) -> PicoUsd:
        """The highest price a token under ``root`` can have, with or without audio."""
        return self._dearest[root, audio]

    def ceiling(self, *, prompt_tokens: int, output_tokens: int, audio: bool = False) -> NanoUsd:
        """The most that so many tokens can cost."""
        return cost_nano_usd(
            (
                (prompt_tokens, self.dearest("input", audio=audio)),
                (output_tokens, self.dearest("output", audio=audio)),
            )
        )
