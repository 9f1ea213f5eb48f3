"""What routing knows of a request: what it needs, and how much it is expected to use. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from app.endpoints import Endpoint

RailName = Literal["api_key", "wallet"]


@dataclass(frozen=True, slots=True)
class Facts:
    """One request. Token counts are totals over all choices, except ``output_limit``, which is of one.

    ``needs`` are capabilities beside the endpoint's own. ``prompt_tokens_min`` is what the prompt has at
    least, ``output_limit`` what the caller asked for, and ``units`` the expected use of what is no token.
    """

    endpoint: Endpoint
    needs: frozenset[str] = frozenset()
    prompt_tokens_min: int = 0
    prompt_tokens_expected: int = 0
    output_tokens_expected: int = 0
    output_limit: int | None = None
    units: Mapping[str, int] = field(default_factory=dict)
    rail: RailName = "api_key"
    stream: bool = False
    search: bool = False
