"""What a body says about routing, on every paid endpoint: ours alone, so it never reaches a provider."""

from collections.abc import Mapping
from typing import Any

from app.api.parameters import (
    BOOLEAN,
    NAME_CHARACTERS_SHOWN,
    OBJECT,
    Check,
    integer,
    one_of,
    refuse,
    unsupported,
)
from app.money import PicoUsd, parse_price_per_million
from app.routing.candidates import NO_WISHES, PICO_USD_PER_CENT_PER_MILLION, Wishes

TIMEOUT_MS_MAX = 30_000
MS_PER_SECOND = 1000
CENTS_MAX = 100_000_000
NAMES_MAX = 64
STRATEGIES = ("cheapest", "fastest", "balanced")
PROVIDER_SORTS: Mapping[str, str] = {"price": "cheapest", "throughput": "fastest", "latency": "fastest"}
PROVIDER_MEMBERS = ("order", "only", "ignore", "sort", "max_price", "allow_fallbacks")

ROUTING: Mapping[str, Check] = {
    "routing_strategy": one_of(*STRATEGIES),
    "allow_external": BOOLEAN,
    "max_input_price_per_million": integer(0, CENTS_MAX),
    "max_output_price_per_million": integer(0, CENTS_MAX),
    "timeout_ms": integer(1, TIMEOUT_MS_MAX),
    "provider": OBJECT,
}


def first_byte_timeout_s(body: Mapping[str, Any]) -> float | None:
    """What `timeout_ms` says, already checked."""
    timeout_ms = body.get("timeout_ms")
    return timeout_ms / MS_PER_SECOND if timeout_ms is not None else None


def wishes(body: Mapping[str, Any]) -> Wishes:
    """What a body, already checked by `ROUTING`, says about routing. Raises `InvalidRequest`.

    A strategy goes before `provider.sort`; of two price ceilings the lower counts.
    """
    if not any(name in body for name in ROUTING):
        return NO_WISHES
    prices = [body.get("max_input_price_per_million"), body.get("max_output_price_per_million")]
    if (prices[0] is None) != (prices[1] is None):
        absent = "max_input_price_per_million" if prices[0] is None else "max_output_price_per_million"
        raise refuse(absent, "set both price ceilings or neither")
    provider = body.get("provider") or {}
    ceilings = [PicoUsd(price * PICO_USD_PER_CENT_PER_MILLION) if price is not None else None for price in prices]
    _check_provider(provider)
    max_price = provider.get("max_price") or {}
    sort = provider.get("sort")
    # What is not said is left to the defaults of `Wishes`, which a key may set.
    strategy = body.get("routing_strategy", PROVIDER_SORTS[sort] if sort is not None else None)
    said = {"strategy": strategy} if strategy is not None else {}
    return Wishes(
        **said,
        allow_external=body.get("allow_external"),
        max_input=_lower(ceilings[0], max_price, "prompt"),
        max_output=_lower(ceilings[1], max_price, "completion"),
        order=_names(provider, "order"),
        only=_names(provider, "only"),
        ignore=_names(provider, "ignore"),
        allow_fallbacks=provider.get("allow_fallbacks"),
    )


def _check_provider(provider: Mapping[str, Any]) -> None:
    """A wish that cannot be kept is refused: to ignore it would break a promise about money or privacy."""
    for name, value in provider.items():
        if name not in PROVIDER_MEMBERS and value is not None:
            raise unsupported(f"provider.{name[:NAME_CHARACTERS_SHOWN]}")
    if not isinstance(provider.get("allow_fallbacks", True), bool | None):
        raise refuse("provider.allow_fallbacks", "must be true or false")
    if provider.get("sort") is not None:
        one_of(*PROVIDER_SORTS)("provider.sort", provider["sort"])
    max_price = provider.get("max_price")
    if not isinstance(max_price, dict | None):
        raise refuse("provider.max_price", "must be an object with prompt and completion")
    for name in max_price or ():
        if name not in {"prompt", "completion"}:
            raise unsupported(f"provider.max_price.{name[:NAME_CHARACTERS_SHOWN]}")


def _lower(ceiling: PicoUsd | None, max_price: Mapping[str, Any], name: str) -> PicoUsd | None:
    """The lower of a ceiling and OpenRouter's, which is USD per million tokens as a number or a string."""
    value = max_price.get(name)
    if value is None:
        return ceiling
    where = f"provider.max_price.{name}"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise refuse(where, "must be USD per million tokens")
    try:
        # The shortest text of a JSON number is what the client wrote: no arithmetic on floats.
        price = parse_price_per_million(str(value))
    except ValueError as error:
        raise refuse(where, "must be USD per million tokens with at most six decimal places") from error
    if price < 0:
        raise refuse(where, "must not be negative")
    return price if ceiling is None else min(ceiling, price)


def _names(provider: Mapping[str, Any], name: str) -> tuple[str, ...]:
    names = provider.get(name) or []
    if not isinstance(names, list) or len(names) > NAMES_MAX or not all(isinstance(each, str) for each in names):
        raise refuse(f"provider.{name}", f"must be a list of up to {NAMES_MAX} provider names")
    return tuple(names)
