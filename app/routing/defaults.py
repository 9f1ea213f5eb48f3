"""What an operator says about the routing of a key: the routing parameters of a request, as a JSON object.

They are kept with the key and stand in where its requests say nothing. What is kept was checked here when
it was given, and is read back by the same rules.
"""

import re
from collections.abc import Mapping
from typing import Any

from app.errors import InvalidRequest
from app.money import PicoUsd
from app.routing.wishes import PICO_USD_PER_CENT_PER_MILLION, STRATEGIES, Wishes

CENTS_MAX = 100_000_000
NAMES_MAX = 64
CEILINGS = ("max_input_price_per_million", "max_output_price_per_million")
LISTS = ("order", "only", "ignore")
# By its path, what each parameter is: `provider` holds those of OpenRouter that name providers.
PARAMETERS = (
    "routing_strategy",
    "allow_external",
    *CEILINGS,
    *(f"provider.{name}" for name in LISTS),
    "provider.allow_fallbacks",
)
_PROVIDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


def wishes_of(parameters: Mapping[str, Any], *, param: str = "routing") -> Wishes:
    """The wishes that a JSON object of routing parameters says. Raises `InvalidRequest` naming the member."""
    given = _flat(parameters, param=param)
    ceilings = [_cents(given, name, param=param) for name in CEILINGS]
    if (ceilings[0] is None) != (ceilings[1] is None):
        missing = CEILINGS[0] if ceilings[0] is None else CEILINGS[1]
        raise _refused(f"{param}.{missing}", "set both price ceilings or neither")
    strategy = given.get("routing_strategy")
    if strategy is not None and (not isinstance(strategy, str) or strategy not in STRATEGIES):
        raise _refused(f"{param}.routing_strategy", f"must be one of {', '.join(STRATEGIES)}")
    return Wishes(
        strategy=strategy,
        allow_external=_boolean(given, "allow_external", param=param),
        max_input=ceilings[0],
        max_output=ceilings[1],
        order=_names(given, "provider.order", param=param),
        only=_names(given, "provider.only", param=param),
        ignore=_names(given, "provider.ignore", param=param),
        allow_fallbacks=_boolean(given, "provider.allow_fallbacks", param=param),
    )


def parameters_of(wishes: Wishes) -> dict[str, Any]:
    """The JSON object that says these wishes, without what they leave open."""
    provider = {
        **{name: list(names) for name in LISTS if (names := getattr(wishes, name))},
        **({"allow_fallbacks": wishes.allow_fallbacks} if wishes.allow_fallbacks is not None else {}),
    }
    ceilings = zip(CEILINGS, (wishes.max_input, wishes.max_output), strict=True)
    said = {
        "routing_strategy": wishes.strategy,
        "allow_external": wishes.allow_external,
        **{name: price // PICO_USD_PER_CENT_PER_MILLION for name, price in ceilings if price is not None},
        "provider": provider or None,
    }
    return {name: value for name, value in said.items() if value is not None}


def _flat(parameters: Mapping[str, Any], *, param: str) -> dict[str, Any]:
    """The members by their paths. Null is the same as left out."""
    given = {name: value for name, value in parameters.items() if name != "provider"}
    provider = parameters.get("provider")
    if provider is not None and not isinstance(provider, Mapping):
        raise _refused(f"{param}.provider", "must be an object")
    given |= {f"provider.{name}": value for name, value in (provider or {}).items()}
    for name in given:
        if name not in PARAMETERS:
            raise _refused(f"{param}.{name[:100]}", f"is not known; there is {', '.join(PARAMETERS)}")
    return given


def _cents(given: Mapping[str, Any], name: str, *, param: str) -> PicoUsd | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= CENTS_MAX:
        raise _refused(f"{param}.{name}", f"must be cents per million tokens, an integer from 0 to {CENTS_MAX}")
    return PicoUsd(value * PICO_USD_PER_CENT_PER_MILLION)


def _boolean(given: Mapping[str, Any], name: str, *, param: str) -> bool | None:
    value = given.get(name)
    if value is not None and not isinstance(value, bool):
        raise _refused(f"{param}.{name}", "must be true or false")
    return value


def _names(given: Mapping[str, Any], name: str, *, param: str) -> tuple[str, ...]:
    value = given.get(name)
    if value is None:
        return ()
    if (
        not isinstance(value, list)
        or not 0 < len(value) <= NAMES_MAX
        or not all(isinstance(each, str) and _PROVIDER.fullmatch(each) for each in value)
    ):
        raise _refused(f"{param}.{name}", f"must be a list of 1 to {NAMES_MAX} provider names")
    return tuple(value)


def _refused(param: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{param}: {message}", code="invalid_parameter", param=param)
