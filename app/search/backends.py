"""The backend that the operator chose."""

from app.search.backend import SearchBackend
from app.search.brave import BraveBackend
from app.search.sandbox import SandboxBackend
from app.search.searxng import SearxngBackend
from app.settings import SearchSettings


def backend_of(settings: SearchSettings) -> SearchBackend | None:
    """The backend of these settings, or None where web search is off."""
    match settings.backend:
        case "searxng":
            return SearxngBackend(settings)
        case "brave":
            return BraveBackend(settings)
        case "sandbox":
            return SandboxBackend()
        case "off":
            return None
