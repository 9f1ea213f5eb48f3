"""Providers that are only ever chosen, for the benches of routing: a name, a kind and prices."""

from typing import cast

from app.endpoints import CHAT
from app.money import PicoUsd
from app.pricing.price_book import PriceVersion
from app.provider_settings import ModelSettings, Prices
from app.routing.candidates import Candidate
from app.upstream.provider import Provider

MODEL = "bench"
_SETTINGS = ModelSettings(
    id=MODEL,
    capabilities=("chat", "tools"),
    context_window=128_000,
    max_output_tokens=8192,
    price=Prices(input="1", output="1"),
)


class Named:
    """All that routing reads of a provider."""

    endpoints = frozenset({CHAT.name})

    def __init__(self, name: str, kind: str) -> None:
        self.name = name
        self.kind = kind


def provided(name: str, *, input: int, output: int, kind: str = "native") -> Candidate:
    """The bench's model at a provider, at so many pico-USD per token."""
    prices = {"input": PicoUsd(input), "output": PicoUsd(output)}
    version = PriceVersion(f"{name}:{MODEL}:1", name, MODEL, 1, prices, {})
    return Candidate(cast("Provider", Named(name, kind)), _SETTINGS, version)
