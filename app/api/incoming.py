"""What a paid endpoint's parser is given: a body as it came, and what it is read with."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from app.admission import PaidRequest
from app.api.json_body import parse_object
from app.routing.candidates import Catalog
from app.settings import Settings


@dataclass(frozen=True, slots=True)
class Incoming:
    """A request's body, whole and within its bound."""

    path: str
    content: bytes
    content_type: str
    settings: Settings
    catalog: Catalog
    idempotency_key: str | None = None

    def object(self) -> dict[str, Any]:
        """The body as a JSON object. Raises `InvalidRequest`."""
        return parse_object(self.content, depth_max=self.settings.server.body_depth_max)


# Raises `InvalidRequest` naming the parameter, and `NotFound`.
Parse = Callable[[Incoming], PaidRequest]
