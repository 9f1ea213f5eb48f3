"""What one request says of web search, with the operator's bounds applied. Pure."""

from dataclasses import dataclass
from typing import Literal

SafeSearch = Literal["off", "moderate", "strict"]


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How the web is searched for one request.

    ``results`` and ``result_bytes_max`` bound what one search puts into the conversation; ``country`` is a
    two-letter code in upper case, ``language`` an ``Accept-Language`` value.
    """

    results: int
    result_bytes_max: int
    rounds_max: int
    searches_max: int
    country: str | None = None
    safesearch: SafeSearch = "moderate"
    language: str | None = None
