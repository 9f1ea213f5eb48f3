"""``GET /openapi.json`` and ``GET /llms.txt``: what is sold here, for which price, and how to pay. Public.

Both are made once, when they are first asked for: settings, models and prices stay what they are while a
process runs.
"""

import hashlib
from dataclasses import dataclass

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from app.api.services import Services, services

# As the draft recommends: a new process may have new prices.
MAX_AGE_S = 300
ETAG_CHARACTERS = 32


@dataclass(frozen=True, slots=True)
class Page:
    """A page as it goes out."""

    body: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, body: bytes, media_type: str) -> "Page":
        """A page that is named by what it says."""
        return cls(body, media_type, f'"{hashlib.sha256(body).hexdigest()[:ETAG_CHARACTERS]}"')


@dataclass(frozen=True, slots=True)
class Pages:
    """Both pages, and the services that they describe."""

    found: Services
    document: Page
    text: Page

    @classmethod
    def of(cls, found: Services) -> "Pages":
        """Make them."""
        # Needed once somebody asks, and not by a server that starts.
        from app.api import discovery_document, discovery_text

        models = found.proxy.catalog.models
        document = orjson.dumps(discovery_document.build(found.settings, models))
        text = discovery_text.build(found.settings, models)
        return cls(
            found,
            Page.of(document, "application/json"),
            Page.of(text.encode(), "text/plain; charset=utf-8"),
        )


async def read_document(request: Request) -> Response:
    """``GET /openapi.json``."""
    return _answer(request, _pages(request).document)


async def read_text(request: Request) -> Response:
    """``GET /llms.txt``."""
    return _answer(request, _pages(request).text)


def _pages(request: Request) -> Pages:
    found, state = services(request), request.app.state
    pages: Pages | None = getattr(state, "discovery", None)
    if pages is None or pages.found is not found:
        pages = state.discovery = Pages.of(found)
    return pages


def _answer(request: Request, page: Page) -> Response:
    headers = {
        "cache-control": f"public, max-age={MAX_AGE_S}",
        "etag": page.etag,
        # Agents in browsers ask from other origins; nothing here depends on who asks.
        "access-control-allow-origin": "*",
    }
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    if page.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(page.body, media_type=page.media_type, headers=headers)


routes = [
    Route("/openapi.json", read_document, methods=["GET"]),
    Route("/llms.txt", read_text, methods=["GET"]),
]
