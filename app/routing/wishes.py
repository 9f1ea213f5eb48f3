"""What a caller, or the operator for a key, said about routing. Pure."""

from dataclasses import dataclass, replace
from typing import Final

from app.money import PicoUsd

CHEAPEST: Final = "cheapest"
FASTEST: Final = "fastest"
BALANCED: Final = "balanced"
STRATEGIES = (CHEAPEST, FASTEST, BALANCED)
# One integer cent per million tokens, in pico-USD per token.
PICO_USD_PER_CENT_PER_MILLION = 10_000


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was said about routing; None, and an empty tuple, is what was not said.

    Prices are of plain prompt and completion tokens.
    """

    strategy: str | None = None
    allow_external: bool | None = None
    max_input: PicoUsd | None = None
    max_output: PicoUsd | None = None
    order: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    allow_fallbacks: bool | None = None

    @property
    def chosen(self) -> str:
        """The strategy to follow: the one named, else `BALANCED`."""
        return self.strategy or BALANCED

    @property
    def external(self) -> bool:
        """Whether external providers may serve: unless said, for every strategy but `cheapest`."""
        return self.allow_external if self.allow_external is not None else self.chosen != CHEAPEST

    @property
    def falls_back(self) -> bool:
        """Whether another provider may be tried beside the first (with ``order``: beside those named)."""
        return self.allow_fallbacks is not False

    def over(self, defaults: "Wishes | None") -> "Wishes":
        """These wishes, and where nothing was said, ``defaults``.

        The two price ceilings go together. Who names providers with ``only`` has said everything about who may
        serve, so the default's ``ignore`` is dropped.
        """
        if defaults is None or defaults == NO_WISHES:
            return self
        if self == NO_WISHES:
            return defaults
        ceilings = defaults if self.max_input is None and self.max_output is None else self
        return replace(
            self,
            strategy=self.strategy or defaults.strategy,
            allow_external=self.allow_external if self.allow_external is not None else defaults.allow_external,
            max_input=ceilings.max_input,
            max_output=ceilings.max_output,
            order=self.order or defaults.order,
            only=self.only or defaults.only,
            ignore=self.ignore or (() if self.only else defaults.ignore),
            allow_fallbacks=self.allow_fallbacks if self.allow_fallbacks is not None else defaults.allow_fallbacks,
        )


NO_WISHES = Wishes()
