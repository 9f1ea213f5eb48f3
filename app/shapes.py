"""How an answer looks to its client: OpenAI's shape here, and what another surface overrides.

A provider's words come in OpenAI's shape (`app.upstream.provider`); what is added to them (usage, cost, the
backend) and how errors are said is the surface's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import orjson

from app.errors import FareboxError
from app.metering import shown_usage
from app.money import NanoUsd
from app.pricing.price_book import Usage

JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Told:
    """What a whole answer says besides the provider's words."""

    request_id: str
    model: str
    usage: Usage
    cost: NanoUsd
    backend: Mapping[str, str] = field(default_factory=dict)


class Shape:
    """OpenAI's shape. A subclass is another surface, or another kind of answer."""

    # Whether `chunk` does anything: streams of OpenAI's shape go out as they came in.
    rewrites_chunks: ClassVar[bool] = False

    def whole(self, body: dict[str, Any], told: Told) -> tuple[str, bytes]:
        """The media type and the bytes of a whole answer."""
        more = {"model": told.model, "usage": shown_usage(told.usage, told.cost), "backend": told.backend}
        return JSON, orjson.dumps(body | more)

    def is_large(self, body: Mapping[str, Any]) -> bool:
        """Whether `prepared` would hold the event loop for long."""
        return False

    def prepared(self, body: dict[str, Any]) -> dict[str, Any]:
        """A whole answer's body with the heavy part of `whole` done."""
        return body

    def chunk(self, data: bytes) -> bytes | None:
        """One event of a stream as this surface shows it, or None to leave it out. ``[DONE]`` is not asked for."""
        return data

    def error(self, error: FareboxError) -> dict[str, Any]:
        """The object under ``error``."""
        return {"message": error.message, "type": error.type, "code": error.code, "param": error.param, **error.details}


OPENAI = Shape()
