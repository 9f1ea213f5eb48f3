"""What a chat completion says about web search: whether to search, and how. Ours alone: never sent to a provider.

A search sends words of the prompt elsewhere and costs, so a request searches only where it says so itself or the
operator turned searching on for the model.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from app.api.parameters import BOOLEAN, NAME_CHARACTERS_SHOWN, OBJECT, Check, one_of, refuse, unsupported
from app.errors import InvalidRequest
from app.routing.candidates import Candidate
from app.search.options import SearchOptions
from app.settings import SearchSettings

TOOL_NAME = "web_search"
LANGUAGE_CHARACTERS_MAX = 100
PLACE_CHARACTERS_MAX = 200
COUNTRY_LETTERS = 2
CONTEXT_SIZES = ("low", "medium", "high")
SAFE_SEARCHES = ("off", "moderate", "strict")
OPTIONS = ("search_context_size", "user_location", "safesearch", "accept_language")
# Known to OpenAI's clients; no backend here looks nearer than a country.
PLACES_IGNORED = ("city", "region", "timezone")

SEARCH: Mapping[str, Check] = {"web_search": BOOLEAN, "web_search_options": OBJECT}


def asks_to_search(body: Mapping[str, Any], candidates: Sequence[Candidate], settings: SearchSettings) -> bool:
    """Whether the model may search. Raises `InvalidRequest` where the body asks for it and it cannot be.

    ``web_search_options`` alone ask, as in OpenAI's API. A default of the model's asks for nothing: it steps back
    where it cannot be.
    """
    options_given = "web_search_options" in body
    said = body.get("web_search", True if options_given else None)
    if said is False:
        return False
    where = "web_search" if "web_search" in body else "web_search_options"
    obstacle = _obstacle(body, candidates, settings)
    if said is None:
        return obstacle is None and any(candidate.model.web_search for candidate in candidates)
    if obstacle is not None:
        raise InvalidRequest(f"{where}: {obstacle}", code="unsupported_parameter", param=where)
    return True


def _obstacle(body: Mapping[str, Any], candidates: Sequence[Candidate], settings: SearchSettings) -> str | None:
    if settings.backend == "off":
        return "web search is turned off here; leave it out, or let the operator set search.backend"
    if not any(candidate.model.searches for candidate in candidates):
        model = candidates[0].model.id
        return f"{model!r} does not search the web here; GET /v1/models shows which models have a price per_web_search"
    if body.get("n", 1) != 1:
        return "only with n = 1"
    if _functions(body):
        return "not beside the old `functions`; name them in `tools`"
    if any(_tool_name(tool) == TOOL_NAME for tool in body.get("tools", ())):
        return f"a tool of yours is named {TOOL_NAME!r}; rename it, or set web_search to false"
    return None


def _tool_name(tool: Any) -> Any:
    """A tool's name, whether it stands in ``function``, in ``custom`` or (``functions``) by itself."""
    if not isinstance(tool, dict):
        return None
    inner = tool.get(tool.get("type", "function")) if isinstance(tool.get("type", ""), str) else None
    return inner.get("name") if isinstance(inner, dict) else tool.get("name")


def _functions(body: Mapping[str, Any]) -> Sequence[Any]:
    functions = body.get("functions")
    return functions if isinstance(functions, list) else ()


def search_options(body: Mapping[str, Any], settings: SearchSettings) -> SearchOptions:
    """The options, within the operator's bounds. Raises `InvalidRequest` naming the one that is wrong."""
    where = "web_search_options"
    options = {name: value for name, value in body.get(where, {}).items() if value is not None}
    for name in options:
        if name not in OPTIONS:
            raise unsupported(f"{where}.{name[:NAME_CHARACTERS_SHOWN]}")
    size = options.get("search_context_size", "medium")
    one_of(*CONTEXT_SIZES)(f"{where}.search_context_size", size)
    safesearch = options.get("safesearch", "moderate")
    one_of(*SAFE_SEARCHES)(f"{where}.safesearch", safesearch)
    return SearchOptions(
        results={"low": settings.results_low, "high": settings.results_high}.get(size, settings.results_medium),
        result_bytes_max=settings.result_bytes_max,
        rounds_max=settings.rounds_max,
        searches_max=settings.searches_max,
        country=_country(f"{where}.user_location", options.get("user_location")),
        safesearch=safesearch,
        language=_language(f"{where}.accept_language", options.get("accept_language")),
    )


def _country(where: str, location: Any) -> str | None:
    if location is None:
        return None
    OBJECT(where, location)
    for name in location:
        if name not in {"type", "approximate"}:
            raise unsupported(f"{where}.{name[:NAME_CHARACTERS_SHOWN]}")
    one_of("approximate")(f"{where}.type", location.get("type", "approximate"))
    place = location.get("approximate")
    if place is None:
        return None
    where = f"{where}.approximate"
    OBJECT(where, place)
    for name, value in place.items():
        if name != "country" and name not in PLACES_IGNORED:
            raise unsupported(f"{where}.{name[:NAME_CHARACTERS_SHOWN]}")
        if value is not None and (not isinstance(value, str) or len(value) > PLACE_CHARACTERS_MAX):
            raise refuse(f"{where}.{name}", f"must be a string of up to {PLACE_CHARACTERS_MAX} characters")
    country = place.get("country")
    if country is None:
        return None
    if len(country) != COUNTRY_LETTERS or not country.isascii() or not country.isalpha():
        raise refuse(f"{where}.country", "must be a country's two letters (ISO 3166), such as US")
    return str(country).upper()


def _language(where: str, value: Any) -> str | None:
    """It becomes a header of the search: nothing but what such a header is made of."""
    if value is None:
        return None
    fine = isinstance(value, str) and 0 < len(value) <= LANGUAGE_CHARACTERS_MAX and value.isascii()
    if not fine or not all(character.isalnum() or character in "-,;=.* " for character in value):
        raise refuse(where, "must be an Accept-Language value, such as en-US,en;q=0.8")
    return str(value)
