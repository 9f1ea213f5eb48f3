"""Which providers are passed over for a moment, by model. One process's own view."""

from app.clock import Clock


class Health:
    """A provider that failed is passed over until its cooldown has passed."""

    def __init__(self, clock: Clock, *, cooldown_s: float) -> None:
        self._clock = clock
        self._cooldown_s = cooldown_s
        self._down_until_s: dict[tuple[str, str], float] = {}

    def failed(self, provider: str, model: str, *, retry_after_s: int | None = None) -> None:
        """An attempt failed through the provider's fault."""
        until_s = self._clock.monotonic_s() + max(self._cooldown_s, retry_after_s or 0)
        self._down_until_s[provider, model] = until_s

    def worked(self, provider: str, model: str) -> None:
        """An attempt succeeded."""
        self._down_until_s.pop((provider, model), None)

    def is_well(self, provider: str, model: str) -> bool:
        """Whether the provider is not cooling down."""
        until_s = self._down_until_s.get((provider, model))
        return until_s is None or self._clock.monotonic_s() >= until_s
