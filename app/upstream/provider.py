"""What every adapter is to the rest of the program, and the errors that adapters translate into.

An adapter speaks a provider's dialect and gives back OpenAI's: a parsed completion, or the ``data`` of
each stream event. Adapters are the only place where a provider's errors become ours, and no message
that leaves one carries a key, a URL or anything of the operator's account.
"""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Protocol

DONE = b"[DONE]"
MESSAGE_CHARACTERS_MAX = 400
_URL = re.compile(r"(?:https?|wss?)://\S+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b")
_SECRET = re.compile(
    r"(?i)\b(?:bearer\s+\S+|(?:sk|pk|key|org|proj|acct|req)[-_][A-Za-z0-9*_.-]{6,}|[A-Za-z0-9+/_-]{32,}={0,2})"
)


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt. ``body`` is validated and ours; the adapter re-serialises it once."""

    request_id: str
    upstream_model: str
    body: Mapping[str, Any]
    stream: bool
    output_limit: int
    first_byte_timeout_s: float


class Provider(Protocol):
    """One configured upstream."""

    name: str
    kind: str

    async def complete(self, call: Call) -> dict[str, Any]:
        """A whole answer in OpenAI's shape. Raises `UpstreamError`."""
        ...

    def stream(self, call: Call) -> AbstractAsyncContextManager[AsyncIterator[list[bytes]]]:
        """The answer's events: each item is the ``data`` of the events of one read, `DONE` included.

        Entering sends the request and returns once the provider has begun to answer; leaving the
        context stops the upstream. Raises `UpstreamError` on entering and while iterating.
        """
        ...

    async def close(self) -> None:
        """Close pooled connections."""
        ...


class UpstreamError(Exception):
    """An attempt failed.

    ``result`` is what the attempt row says. ``fail_over``: the work was surely not done, so another
    provider may be asked. ``callers_fault``: the provider refused the request itself.
    """

    def __init__(
        self,
        result: str,
        message: str,
        *,
        status: int | None = None,
        fail_over: bool = True,
        callers_fault: bool = False,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.result = result
        self.message = message
        self.status = status
        self.fail_over = fail_over
        self.callers_fault = callers_fault
        self.retry_after_s = retry_after_s


def safe_message(text: object) -> str:
    """A provider's words without URLs, addresses and anything that looks like a secret; bounded."""
    if not isinstance(text, str):
        return "the provider gave no reason"
    plain = "".join(character if character.isprintable() else " " for character in text[: 4 * MESSAGE_CHARACTERS_MAX])
    return _SECRET.sub("[removed]", _URL.sub("[removed]", plain)).strip()[:MESSAGE_CHARACTERS_MAX]
