"""A provider's refusal: what it means to us, and which of its words a client may read. Pure.

Where a status says that something is wrong with the operator's account, and where the words do, the client is
told nothing of it. All other words go through `app.upstream.safe_text`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from app.clock import MS_PER_SECOND
from app.upstream.provider import UNUSABLE, UpstreamError
from app.upstream.safe_text import NO_REASON, safe_message

RETRY_AFTER_S_MAX = 3600
HEADER_CHARACTERS_MAX = 64
TEXT_CHARACTERS_MAX = 2000
DETAILS_MAX = 3
CALLERS_FAULT = frozenset({400, 404, 409, 413, 415, 422})
OPERATORS_FAULT = frozenset({401, 402, 403})
# What providers call an account that cannot pay, whatever the status.
_ACCOUNT_CODES = frozenset(
    {
        *("insufficient_quota", "insufficient_balance", "insufficient_credits", "billing_error", "billing_not_active"),
        *("billing_hard_limit_reached", "account_deactivated", "access_terminated", "invalid_api_key"),
        *("authentication_error", "permission_error", "exceeded_current_quota_error"),
    }
)
# The same where no code says so. From the first word on: what a caller sent may be echoed further behind, and a
# caller must not be able to open a provider's breaker.
_ACCOUNT_WORDS = re.compile(
    r"(?i)you(?:r| have)? (?:exceeded your current quota|credit balance|account|organi[sz]ation must)"
    r"|insufficient (?:balance|quota|credits|funds)|(?:invalid|incorrect) api key|api key (?:not valid|expired)"
    r"|billing (?:hard limit|is not active)|this (?:organi[sz]ation|account|project) "
)


@dataclass(frozen=True, slots=True)
class Told:
    """A refusal as it arrived, and which names in it are the operator's own."""

    status: int
    content: bytes = field(repr=False)
    retry_after_s: int | None
    host: str
    upstream_model: str
    asked_model: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refusal understood. ``named`` is the parameter that it names, ``text`` all its words as they came."""

    error: UpstreamError
    status: int
    named: str | None = None
    text: str = field(default="", repr=False)

    @property
    def of_parameter(self) -> bool:
        """Whether it may be one parameter that was refused, before any work was done."""
        return self.status in {400, 422}


def refusal_of(told: Told) -> Refusal:
    """What a status other than 200 means."""
    body = _loaded(told.content)
    error = _inner(body)
    named, text = _named(error), _text(error, told.content if body is None else b"")
    return Refusal(_error(told, error, text), told.status, named, text)


def retry_after_s(headers: Mapping[str, str]) -> int | None:
    """How long to wait: seconds, a date by the provider's own clock, or OpenAI's milliseconds; bounded."""
    milliseconds = _count(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return min(-(-milliseconds // MS_PER_SECOND), RETRY_AFTER_S_MAX)
    said = headers.get("Retry-After")
    seconds = _count(said)
    if seconds is None and said and (date := headers.get("Date")):
        try:
            wait = parsedate_to_datetime(said[:HEADER_CHARACTERS_MAX]) - parsedate_to_datetime(
                date[:HEADER_CHARACTERS_MAX]
            )
        except (ValueError, TypeError, OverflowError):
            return None
        seconds = max(0, wait.days * 86_400 + wait.seconds)
    return None if seconds is None else min(seconds, RETRY_AFTER_S_MAX)


def _error(told: Told, error: Any, text: str) -> UpstreamError:
    status = told.status
    if status == 403 and _moderated(error):
        # OpenRouter's word for a prompt that it does not pass on.
        message = "the provider's moderation refused the input"
        return UpstreamError("rejected", message, status=status, fail_over=False, callers_fault=True)
    if status in OPERATORS_FAULT or (400 <= status < 500 and _of_account(error, text)):
        return UpstreamError("refused", UNUSABLE, status=status)
    if status in CALLERS_FAULT:
        message = _shown(told, text)
        return UpstreamError("rejected", message, status=status, fail_over=False, callers_fault=True)
    wait_s = told.retry_after_s
    if status == 429:
        return UpstreamError("rate_limited", "the provider is busy", status=status, retry_after_s=wait_s)
    return UpstreamError("server_error", f"the provider answered {status}", status=status, retry_after_s=wait_s)


def _shown(told: Told, text: str) -> str:
    """The words that a client may read: the model by the name it asked for, and not where the provider is."""
    for name, instead in ((told.upstream_model, told.asked_model), (told.host, "[removed]")):
        if name and name != instead:
            text = instead.join(re.split(rf"(?<![\w./-]){re.escape(name)}(?![\w/-])", text))
    return safe_message(text) if text else NO_REASON


def _loaded(content: bytes) -> Any:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return None


def _inner(body: Any) -> Any:
    """What holds the words: the object under ``error``, or the whole; Gemini sends a list of one."""
    if isinstance(body, list) and body:
        body = body[0]
    error = body.get("error") or body if isinstance(body, dict) else None
    if not isinstance(error, dict):
        return error
    # OpenRouter hands on what a provider told it as text inside its own "Provider returned error".
    raw = _loaded_text(_member(error, "metadata", "raw"))
    inner = raw.get("error") if isinstance(raw, dict) else None
    return inner if isinstance(inner, dict) and inner.get("message") else error


def _loaded_text(text: Any) -> Any:
    return _loaded(text.encode("utf-8", "replace")) if isinstance(text, str) else None


def _member(found: Any, *names: str) -> Any:
    for name in names:
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _text(error: Any, content: bytes) -> str:
    """The words: OpenAI's ``message``, Ollama's and TEI's text, FastAPI's ``detail``, or a body that is plain text."""
    found = error
    if isinstance(error, dict):
        found = error.get("message") or error.get("detail") or error.get("error")
    if isinstance(found, list):
        places = [f"{_place(each)}: {each.get('msg')}" for each in found[:DETAILS_MAX] if isinstance(each, dict)]
        found = "; ".join(places)
    if not isinstance(found, str):
        found = content.decode("utf-8", "replace") if not content.lstrip().startswith(b"<") else ""
    return found[:TEXT_CHARACTERS_MAX]


def _named(error: Any) -> str | None:
    named = _member(error, "param")
    details = _member(error, "detail")
    if named is None and isinstance(details, list) and details:
        named = _place(details[0])
    return named if isinstance(named, str) and named else None


def _place(detail: Any) -> str:
    """The parameter that one of FastAPI's details is about."""
    places = _member(detail, "loc")
    return str(places[-1]) if isinstance(places, list) and places else ""


def _of_account(error: Any, text: str) -> bool:
    if any(
        _member(error, name) in _ACCOUNT_CODES for name in ("code", "type") if isinstance(_member(error, name), str)
    ):
        return True
    if isinstance(_member(error, "detail"), list):
        # FastAPI's words begin with the names of members, which are the client's.
        return False
    return _ACCOUNT_WORDS.match(text.strip()) is not None


def _moderated(error: Any) -> bool:
    metadata = _member(error, "metadata")
    return isinstance(metadata, dict) and "reasons" in metadata and "flagged_input" in metadata


def _count(text: str | None) -> int | None:
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 9 else None
