"""Which page has which number, and where an answer cites it. Pure."""

import re
from collections.abc import Iterable
from typing import Any

from app.search.backend import SearchResult
from app.search.sanitise import same_page

CITATIONS_MAX = 256
_MARKER = re.compile(r"\[(\d{1,4})\]")
# The beginning of a marker whose end is still to come.
_OPEN_MARKER = re.compile(r"\[\d{0,4}\Z")


class Sources:
    """Numbers from 1, in the order in which pages were found; a page found again keeps its number."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._pages: list[SearchResult] = []

    def __len__(self) -> int:
        return len(self._pages)

    def numbered(self, results: Iterable[SearchResult]) -> list[tuple[int, SearchResult]]:
        """Each result with its number."""
        found = []
        for result in results:
            number = self._numbers.setdefault(same_page(result.url), len(self._pages) + 1)
            if number > len(self._pages):
                self._pages.append(result)
            found.append((number, result))
        return found

    def page(self, number: int) -> SearchResult | None:
        """The page with this number."""
        return self._pages[number - 1] if 1 <= number <= len(self._pages) else None


class Citations:
    """Reads the text of an answer as it comes, and finds the markers of sources in it."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._found: list[dict[str, Any]] = []
        self._tail = ""
        self.characters = 0
        self.ends_in_space = True

    def read(self, text: str) -> None:
        """The next piece of the answer's text."""
        if not text:
            return
        if self._tail or "[" in text:
            self._find(text)
        self.characters += len(text)
        self.ends_in_space = text[-1].isspace()

    def _find(self, text: str) -> None:
        looked_at, start = self._tail + text, self.characters - len(self._tail)
        for marker in _MARKER.finditer(looked_at):
            page = self._sources.page(int(marker[1]))
            if page is not None and len(self._found) < CITATIONS_MAX:
                place = {"start_index": start + marker.start(), "end_index": start + marker.end()}
                citation = {"url": page.url, "title": page.title, **place}
                self._found.append({"type": "url_citation", "url_citation": citation})
        unfinished = _OPEN_MARKER.search(looked_at)
        self._tail = unfinished[0] if unfinished else ""

    @property
    def annotations(self) -> list[dict[str, Any]]:
        """The citations so far, in the order of the text."""
        return self._found
