"""``GET /ai/models``: the models in the simple shape. Public; with a key, only what it may use."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app.api.catalog import capabilities, context_window, usable
from app.routing.candidates import Candidate

# What this surface calls otherwise than we do.
NAMES: Mapping[str, str] = {"tools": "function_calling"}


async def list_models(request: Request) -> Response:
    """All models, or those that the key may use."""
    return JSONResponse({"models": [shown(each) for each in await usable(request)]})


def shown(candidates: Sequence[Candidate]) -> dict[str, Any]:
    """One model. ``provider`` is who made it, as ``owned_by`` says on ``/v1/models``; not who serves it."""
    model, context = candidates[0].model, context_window(candidates)
    return {
        "id": model.id,
        "provider": model.owned_by,
        "capabilities": [NAMES.get(name, name) for name in capabilities(candidates)],
        **({"context_length": context} if context is not None else {}),
    }


routes = [
    Route("/ai/models", list_models, methods=["GET"]),
    Route("/ai/models/", list_models, methods=["GET"]),
]
