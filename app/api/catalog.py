"""``GET /v1/models``: what can be asked for, and what it costs. Public; with a key, only what it may use."""

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.api.services import services
from app.errors import NotFound
from app.money import PicoUsd
from app.rails.api_key import credential
from app.rails.credential import is_wallet
from app.rails.key_store import KeyLimits
from app.reconcile.price_report import shown_prices
from app.routing.candidates import Candidate
from app.settings import ModelSettings

API_KEY = "api_key"


async def list_models(request: Request) -> Response:
    """All models, or those that the key may use."""
    return JSONResponse({"object": "list", "data": [shown(each) for each in await usable(request)]})


async def read_model(request: Request) -> Response:
    """One model, by id or alias."""
    found = services(request).proxy.catalog.find(request.path_params["id"])
    candidates = usable_of(found, await _limits(request))
    if not candidates:
        raise NotFound("this API key may not use this model", code="model_not_found", param="model")
    return JSONResponse(shown(candidates))


async def usable(request: Request) -> list[Sequence[Candidate]]:
    """The candidates of each model that the request's key may use; without a key, of all."""
    limits = await _limits(request)
    models = services(request).proxy.catalog.models.values()
    return [found for candidates in models if (found := usable_of(candidates, limits))]


def usable_of(candidates: Sequence[Candidate], limits: KeyLimits | None) -> Sequence[Candidate]:
    """Those of a model's candidates that serve whoever pays by a key with these limits; without a key, all."""
    if limits is None:
        return candidates
    if limits.models is not None and candidates[0].model.id not in limits.models:
        return ()
    return [candidate for candidate in candidates if API_KEY in candidate.rails]


def shown(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """A model in OpenAI's shape, with its limits, capabilities and prices. A limit that nobody knows is left out.

    What it can do and how far is what one of its providers can: a request goes to those that can serve it.
    """
    model = candidates[0].model
    context, output = context_window(candidates), most(each.model.max_output_tokens for each in candidates)
    limits = {"context_window": context, "max_model_len": context, "max_output_tokens": output}
    return {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
        "root": model.id,
        "parent": None,
        "aliases": each_once(each.model.aliases for each in candidates),
        **{name: limit for name, limit in limits.items() if limit is not None},
        "capabilities": capabilities(candidates),
        "permission": [_permission(model)],
        "pricing": {"currency": "USD", "unit": "million tokens", **shown_prices(dearest(candidates))},
        "providers": [
            {"name": each.provider.name, "kind": each.provider.kind, "pricing": shown_prices(each.price.prices)}
            for each in candidates
        ],
    }


def capabilities(candidates: Sequence[Candidate]) -> list[str]:
    """What one of the providers can do with it."""
    return each_once(each.model.capabilities for each in candidates)


def context_window(candidates: Sequence[Candidate]) -> int | None:
    """The longest prompt and output together."""
    return most(each.model.context_window for each in candidates)


def dearest(candidates: Sequence[Candidate]) -> dict[str, PicoUsd]:
    """The most that each unit costs: a request is charged by the provider that served it."""
    units = each_once(each.price.prices for each in candidates)
    return {unit: max(each.price.price(unit) for each in candidates if each.price.sells((unit,))) for unit in units}


def each_once(several: Iterable[Iterable[str]]) -> list[str]:
    """All of them, in the order in which they first come."""
    return list(dict.fromkeys(each for some in several for each in some))


def most(limits: Iterable[int | None]) -> int | None:
    """The highest of those that are known."""
    return max((limit for limit in limits if limit is not None), default=None)


def _permission(model: ModelSettings) -> dict[str, Any]:
    """What old SDKs expect in a list of permissions: one that says that the model may be used."""
    return {
        "id": f"modelperm-{model.id}-{model.created}",
        "object": "model_permission",
        "created": model.created,
        "allow_create_engine": False,
        "allow_sampling": True,
        "allow_logprobs": True,
        "allow_search_indices": False,
        "allow_view": True,
        "allow_fine_tuning": False,
        "organization": "*",
        "group": None,
        "is_blocking": False,
    }


async def _limits(request: Request) -> KeyLimits | None:
    """The limits of the request's key as they stand now; None where it has none. Raises `AuthenticationFailed`."""
    headers = dict(request.scope["headers"])
    secret = None if is_wallet(headers) else credential(headers)
    if secret is None:
        return None
    return (await asyncio.to_thread(services(request).keys.authenticate, secret)).limits


routes = [
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/", list_models, methods=["GET"]),
    Route("/v1/models/{id:path}", read_model, methods=["GET"]),
]
