"""What every search backend is to the loop, and the error that each of them translates its failures into."""

from dataclasses import dataclass
from typing import Protocol

from app.search.options import SearchOptions


@dataclass(frozen=True, slots=True)
class SearchResult:
    """One page that was found, sanitised: see `app.search.sanitise`. ``published`` is a date, ``YYYY-MM-DD``."""

    title: str
    url: str
    text: str
    published: str | None = None


class SearchFailed(Exception):
    """A search gave no answer.

    ``result`` is one word for logs. ``message`` is told to the model, and so to strangers: it holds nothing of
    the operator's addresses, keys or account.
    """

    def __init__(self, result: str, message: str) -> None:
        super().__init__(message)
        self.result = result
        self.message = message


class SearchBackend(Protocol):
    """Where searches go. ``name`` stands in logs."""

    name: str

    async def search(self, query: str, options: SearchOptions) -> list[SearchResult]:
        """At most ``options.results`` results, best first. Raises `SearchFailed`."""
        ...

    async def close(self) -> None:
        """Close pooled connections."""
        ...
