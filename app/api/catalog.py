"""``GET /v1/models``: what can be asked for, and what it costs. Public; with a key, only what it may use."""

import asyncio
from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.api.services import Services, services
from app.errors import NotFound
from app.money import format_price_per_million
from app.rails.api_key import credential
from app.routing.candidates import Candidate


async def list_models(request: Request) -> Response:
    """All models, or those that the key may use."""
    allowed = await _allowed(request)
    models = services(request).proxy.catalog.models
    data = [shown(candidates) for model, candidates in models.items() if allowed is None or model in allowed]
    return JSONResponse({"object": "list", "data": data})


async def read_model(request: Request) -> Response:
    """One model, by id or alias."""
    candidates = services(request).proxy.catalog.find(request.path_params["id"])
    allowed = await _allowed(request)
    if allowed is not None and candidates[0].model.id not in allowed:
        raise NotFound("this API key may not use this model", code="model_not_found", param="model")
    return JSONResponse(shown(candidates))


def shown(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """A model in OpenAI's shape, with its limits, capabilities and prices."""
    model = candidates[0].model
    return {
        "id": model.id,
        "object": "model",
        "created": 0,
        "owned_by": model.owned_by,
        "root": model.id,
        "parent": None,
        "aliases": list(model.aliases),
        "context_window": model.context_window,
        "max_model_len": model.context_window,
        "max_output_tokens": model.max_output_tokens,
        "capabilities": list(model.capabilities),
        "permission": [],
        "pricing": {"currency": "USD", "unit": "million tokens", **_prices(candidates[0])},
        "providers": [
            {"name": each.provider.name, "kind": each.provider.kind, "pricing": _prices(each)} for each in candidates
        ],
    }


def _prices(candidate: Candidate) -> dict[str, str]:
    return {unit: format_price_per_million(price) for unit, price in candidate.price.prices.items()}


async def _allowed(request: Request) -> frozenset[str] | None:
    """The models of the request's key; None: all."""
    found: Services = services(request)
    secret = credential(dict(request.scope["headers"]))
    if secret is None:
        return None
    record = await asyncio.to_thread(found.keys.authenticate, secret)
    return frozenset(record.limits.models) if record.limits.models is not None else None


routes = [
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/", list_models, methods=["GET"]),
    Route("/v1/models/{id:path}", read_model, methods=["GET"]),
]
