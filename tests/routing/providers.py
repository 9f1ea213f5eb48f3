"""Candidates for tests of routing: providers that are only ever chosen."""

from collections.abc import Iterable, Sequence
from typing import Any, cast

from app.endpoints import CHAT
from app.money import PicoUsd, parse_price_per_million
from app.pricing.price_book import PriceVersion
from app.routing.candidates import RAILS, Candidate
from app.routing.facts import Facts
from app.routing.wishes import PICO_USD_PER_CENT_PER_MILLION
from app.settings import ModelSettings
from app.upstream.provider import Provider, UpstreamError
from tests.serving import model

DOWN = UpstreamError("connect", "the provider cannot be reached")
BROKEN = UpstreamError("server_error", "the provider answered 500", status=500)
ACCOUNT = UpstreamError("refused", "the provider refused the operator's account", status=402)
CALLER = UpstreamError("rejected", "no such role", status=400, fail_over=False, callers_fault=True)
# 1,000 tokens in, 100 out.
FACTS = Facts(CHAT, prompt_tokens_min=10, prompt_tokens_expected=1000, output_tokens_expected=100)


class Named:
    """All that routing reads of a provider."""

    def __init__(self, name: str, kind: str, endpoints: Iterable[str]) -> None:
        self.name = name
        self.kind = kind
        self.endpoints = frozenset(endpoints)


def candidate(
    name: str,
    *,
    kind: str = "native",
    input: str | None = "1.00",
    output: str | None = "4.00",
    units: dict[str, int] | None = None,
    endpoints: Iterable[str] = (CHAT.name,),
    rails: Iterable[str] = RAILS,
    **changes: Any,
) -> Candidate:
    """The model ``m`` at one provider, at USD per million tokens and pico-USD per other unit."""
    settings = ModelSettings.model_validate(model("m", **changes))
    tokens = {"input": input, "output": output}
    prices = {unit: parse_price_per_million(text) for unit, text in tokens.items() if text is not None}
    prices |= {unit: PicoUsd(amount) for unit, amount in (units or {}).items()}
    version = PriceVersion(f"{name}:m:1", name, "m", 1, prices, {})
    return Candidate(cast("Provider", Named(name, kind, endpoints)), settings, version, frozenset(rails))


def cents(amount: int) -> PicoUsd:
    """A price ceiling as callers write it."""
    return PicoUsd(amount * PICO_USD_PER_CENT_PER_MILLION)


def names(candidates: Sequence[Candidate]) -> list[str]:
    """Whom they are of."""
    return [each.name for each in candidates]


def limited(seconds: int | None) -> UpstreamError:
    """A 429 that asks to come back after so long."""
    return UpstreamError("rate_limited", "the provider is busy", status=429, retry_after_s=seconds)
