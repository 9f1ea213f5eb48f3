"""Searches with Brave's Web Search API.

The API: https://api-dashboard.search.brave.com/api-reference/web/search/get. A query has at most 400
characters and 50 words. Extra snippets belong to some plans only: a refusal is learned.
"""

import os
from typing import Any

from app import log, metrics
from app.search.backend import SearchFailed, SearchResult
from app.search.json_client import JsonClient, refused
from app.search.locale import brave_country, brave_language
from app.search.options import SearchOptions
from app.search.sanitise import sanitised
from app.settings import SearchSettings

URL = "https://api.search.brave.com"
PATH = "/res/v1/web/search"
QUERY_CHARACTERS_MAX = 400
QUERY_WORDS_MAX = 50
RESULTS_MAX = 20
SNIPPETS_MAX = 6
NOT_IN_PLAN = "OPTION_NOT_IN_PLAN"

_log = log.get("search")


class BraveBackend:
    """Brave's API, with the operator's key."""

    name = "brave"

    def __init__(self, settings: SearchSettings) -> None:
        self._url = (settings.url or URL).rstrip("/") + PATH
        self._key_env = settings.api_key_env or ""
        self._client = JsonClient(timeout_s=settings.timeout_s)
        self._extra_snippets = True

    async def search(self, query: str, options: SearchOptions) -> list[SearchResult]:
        key = os.environ.get(self._key_env)
        if not key:
            raise self._refused("no_key")
        headers = {"X-Subscription-Token": key}
        with_extra = self._extra_snippets
        status, body = await self._client.get(self._url, query=_asked(query, options, with_extra), headers=headers)
        if with_extra and status in {400, 403, 422} and _code(body) == NOT_IN_PLAN:
            self._extra_snippets = False
            status, body = await self._client.get(self._url, query=_asked(query, options, False), headers=headers)
        if status in {401, 402, 403} or str(_code(body)).startswith("SUBSCRIPTION_"):
            raise self._refused("refused")
        if status != 200:
            raise refused(status)
        return _results(body, options)

    async def close(self) -> None:
        await self._client.close()

    def _refused(self, result: str) -> SearchFailed:
        metrics.alerts.labels("search_refused").inc()
        _log.error("search_refused_us", backend=self.name, result=result)
        return SearchFailed(result, "the search service is not available")


def _asked(query: str, options: SearchOptions, extra_snippets: bool) -> dict[str, str]:
    asked = {
        "q": " ".join(query[:QUERY_CHARACTERS_MAX].split()[:QUERY_WORDS_MAX]),
        "country": brave_country(options.country),
        "safesearch": options.safesearch,
        "count": str(min(options.results, RESULTS_MAX)),
        "result_filter": "web",
        "text_decorations": "false",
    }
    language = brave_language(options.language, options.country)
    if language is not None:
        asked["search_lang"] = language
    if extra_snippets:
        asked["extra_snippets"] = "true"
    return asked


def _results(body: Any, options: SearchOptions) -> list[SearchResult]:
    if not isinstance(body, dict):
        raise SearchFailed("not_json", "the search service gave no usable answer")
    # Left out where nothing was found.
    web = body.get("web") or {}
    found = web.get("results", []) if isinstance(web, dict) else None
    if not isinstance(found, list):
        raise SearchFailed("not_json", "the search service gave no usable answer")
    raw = (
        (page.get("title"), page.get("url"), _text(page), page.get("page_age"))
        for page in found
        if isinstance(page, dict)
    )
    return sanitised(raw, options)


def _text(page: dict[str, Any]) -> str:
    extra = page.get("extra_snippets")
    snippets = [page.get("description"), *(extra if isinstance(extra, list) else ())]
    return " … ".join(snippet for snippet in snippets[:SNIPPETS_MAX] if isinstance(snippet, str) and snippet)


def _code(body: Any) -> Any:
    error = body.get("error") if isinstance(body, dict) else None
    return error.get("code") if isinstance(error, dict) else None
