"""Searches at a SearXNG instance, by its JSON API.

The API: https://docs.searxng.org/dev/search_api.html. The instance must list ``json`` under
``search.formats``, or it answers 403.
"""

from typing import Any

from app.search.backend import SearchFailed, SearchResult
from app.search.json_client import JsonClient, refused
from app.search.locale import searxng_language
from app.search.options import SearchOptions
from app.search.sanitise import sanitised
from app.settings import SearchSettings

SAFESEARCH = {"off": "0", "moderate": "1", "strict": "2"}
# A word that begins so chooses engines, languages and timeouts: the instance's operator's to choose, not a
# model's that reads strangers' pages.
_SYNTAX = "!?:<"


class SearxngBackend:
    """One SearXNG instance."""

    name = "searxng"

    def __init__(self, settings: SearchSettings) -> None:
        self._url = (settings.url or "").rstrip("/") + "/search"
        self._client = JsonClient(timeout_s=settings.timeout_s)

    async def search(self, query: str, options: SearchOptions) -> list[SearchResult]:
        plain = " ".join(filter(None, (word.lstrip(_SYNTAX) for word in query.split())))
        if not plain:
            return []
        asked = {"q": plain, "format": "json", "safesearch": SAFESEARCH[options.safesearch], "pageno": "1"}
        language = searxng_language(options.language, options.country)
        if language is not None:
            asked["language"] = language
        status, body = await self._client.get(self._url, query=asked, headers={})
        if status != 200:
            raise refused(status)
        return _results(body, options)

    async def close(self) -> None:
        await self._client.close()


def _results(body: Any, options: SearchOptions) -> list[SearchResult]:
    found = body.get("results") if isinstance(body, dict) else None
    if not isinstance(found, list):
        raise SearchFailed("not_json", "the search service gave no usable answer")
    if not found and body.get("unresponsive_engines"):
        # Nobody was asked: that is not the same as nothing there.
        raise SearchFailed("server_error", "the search service failed")
    raw = (
        (page.get("title"), page.get("url"), page.get("content"), page.get("publishedDate"))
        for page in found
        if isinstance(page, dict)
    )
    return sanitised(raw, options)
