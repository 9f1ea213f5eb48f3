"""What every adapter is to the rest of the program, and the errors that adapters translate into.

An adapter speaks a provider's dialect and gives back OpenAI's: a parsed answer, or the ``data`` of
each stream event. Adapters are the only place where a provider's errors become ours, and no message
that leaves one carries a key, a URL or anything of the operator's account.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from app.endpoints import CHAT
from app.upstream.safe_text import safe_message

__all__ = ["DONE", "Call", "Download", "Provider", "Upload", "UpstreamError", "safe_message"]

DONE = b"[DONE]"
# The result of an attempt whose answer was past a bound of ours.
TOO_LARGE = "too_large"
# All that a client learns of a provider that refused our account.
UNUSABLE = "the provider cannot be used at the moment"


@dataclass(frozen=True, slots=True)
class Upload:
    """A file of a multipart request."""

    filename: str
    content_type: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Call:
    """One attempt. ``body`` is validated and ours; the adapter re-serialises it once.

    ``endpoint`` is the name of one of `app.endpoints`. A transcription's ``body`` is its form's fields, and
    ``upload`` its file.
    """

    request_id: str
    upstream_model: str
    body: Mapping[str, Any]
    stream: bool
    output_limit: int
    first_byte_timeout_s: float
    endpoint: str = CHAT.name
    upload: Upload | None = None


@dataclass(frozen=True, slots=True)
class Download:
    """An answer of bytes that has begun: what they are, and the blocks as they come."""

    content_type: str
    blocks: AsyncIterator[bytes]


class Provider(Protocol):
    """One configured upstream.

    ``endpoints`` names what the adapter speaks; ``engine_type`` and ``machine_name`` are what clients are told
    of where their answer was made.
    """

    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def engine_type(self) -> str: ...
    @property
    def machine_name(self) -> str: ...
    @property
    def endpoints(self) -> frozenset[str]: ...

    async def complete(self, call: Call) -> dict[str, Any]:
        """A whole answer. Raises `UpstreamError`.

        In OpenAI's shape, whatever the provider's own is; a rerank in Cohere's v2 (``results`` with ``index``
        and ``relevance_score``, ``meta.billed_units.search_units``); a transcription as an object with
        ``text`` and, where they are known, ``duration`` in seconds, ``language``, ``segments``, ``words`` and
        ``usage``, also where the client wants plain text.
        """
        ...

    def stream(self, call: Call) -> AbstractAsyncContextManager[AsyncIterator[list[bytes]]]:
        """The answer's events: each item is the ``data`` of the events of one read, `DONE` included.

        Entering sends the request and returns once the provider has begun to answer; leaving the
        context stops the upstream. Raises `UpstreamError` on entering and while iterating.
        """
        ...

    def download(self, call: Call) -> AbstractAsyncContextManager[Download]:
        """An answer of bytes (`app.endpoints.SPEECH`). Entering, leaving and errors as with `stream`."""
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
