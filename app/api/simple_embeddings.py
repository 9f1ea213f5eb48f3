"""``POST /ai/embeddings``: one vector for one text, a list of vectors for a list, and how long each is."""

import base64
import binascii
from dataclasses import dataclass, replace
from typing import Any

from app.admission import PaidRequest
from app.api import embedding_parameters
from app.api.incoming import Incoming
from app.api.shapes import BYTES_PER_FLOAT, EmbeddingsShape
from app.api.simple import Read, json_answer, simple_error
from app.errors import FareboxError
from app.shapes import Told


def parse(incoming: Incoming) -> PaidRequest:
    """A validated request. Raises `InvalidRequest` naming the parameter, and `NotFound`."""
    body = incoming.object()
    inputs = body.get("input")
    # A list of numbers is one text, as its tokens.
    several = isinstance(inputs, list) and any(isinstance(each, str | list) for each in inputs)
    request = embedding_parameters.parse(Read.of(incoming, body))
    return replace(request, shape=SimpleEmbeddings(body.get("encoding_format", "float"), several=several))


@dataclass(frozen=True, slots=True)
class SimpleEmbeddings(EmbeddingsShape):
    """``{"embedding", "dimensions", "usage"}``, or ``embeddings`` where a list was asked for."""

    several: bool = False

    def prepared(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body with its vectors in the encoding that was asked for; how long they are is still to be seen."""
        data = body.get("data")
        rows = data if isinstance(data, list) else []
        encoded = [{**row, "embedding": self._encoded(row.get("embedding"))} for row in rows if isinstance(row, dict)]
        return {**body, "data": encoded}

    def whole(self, body: dict[str, Any], told: Told) -> tuple[str, bytes]:
        """The media type and the bytes of a whole answer. What it cost is in the headers: ``usage`` has one member."""
        found = [self._encoded(vector) for vector in _vectors(body.get("data"))]
        first = found[0] if found else []
        vectors = {"embeddings": found} if self.several else {"embedding": first}
        usage = {"total_tokens": told.usage.total_tokens}
        return json_answer({**vectors, "dimensions": _dimensions(first), "usage": usage}, told)

    def error(self, error: FareboxError) -> dict[str, Any]:
        """The object under ``error``."""
        return simple_error(error)


def _vectors(data: Any) -> list[Any]:
    """The vectors in the order of the texts, whatever order the provider gave them in."""
    rows = [row for row in data if isinstance(row, dict)] if isinstance(data, list) else []
    if all(type(row.get("index")) is int for row in rows):
        rows.sort(key=lambda row: row["index"])
    return [row.get("embedding") for row in rows]


def _dimensions(vector: Any) -> int:
    """How many numbers there are, also where they are base64."""
    if isinstance(vector, list):
        return len(vector)
    try:
        return len(base64.b64decode(vector, validate=True)) // BYTES_PER_FLOAT if isinstance(vector, str) else 0
    except (binascii.Error, ValueError):
        return 0
