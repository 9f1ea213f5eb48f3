"""The sandbox's script: what a caller may ask the built-in provider to do, and how its failures look.

The last user message may hold one directive, which is taken out of the text before it is answered but
counts as prompt like every other byte::

    [[sandbox tokens=200 tps=50 fail=status:503 times=1]]

So may the ``prompt`` of a completion or an image, the ``input`` of embeddings and of speech (of several texts
the first that has one), the ``query`` of a rerank, and the ``prompt`` or the file name of a transcription. Keys that an
endpoint has no use for are let be.

Length and pace
    ``tokens=N``     length of the answer's text in tokens (not of tool calls or of a JSON schema's value)
    ``reasoning=N``  reasoning tokens that are streamed before it, whatever ``reasoning_effort`` says
    ``hidden=N``     reasoning tokens that are billed and not streamed (they take no time)
    ``overrun=N``    N tokens beyond the output limit, finished with ``length``
    ``chunk=N``      bytes of text in one event (4, one token, when left out)
    ``finish=WORD``  this finish reason
    ``tps=F``        tokens per second of each choice
    ``first_ms=N``   time to the first event
    ``silent_ms=N``  silence after ``after=M`` tokens (0)

What is said
    ``search=N``     N rounds of one web search each before the text, where the request has a function
                     ``web_search``; without it one round if the text says "search the web" or names it
    ``say=WORDS``    what a transcription hears, with ``_`` for spaces

A token of speech is the sound of 4 characters. ``tokens``, ``tps`` and ``after`` hold for it, for chat and
for completions; of a transcription ``tokens`` is the length of the text.

Usage
    ``usage=chunk|none|zero|cumulative|beside``  a last chunk with empty ``choices`` (the default); none at all;
                     explicit zeros; so far, in each chunk and the last one; in the chunk with the last finish reason
    ``cached=N``     cached prompt tokens, at most the prompt
    ``lie=N``        N completion tokens are reported, whatever was sent; of embeddings N prompt tokens, of a rerank
                     N search units, of a transcription N seconds; and N images are made (128 at most)

``usage=none`` also leaves out a rerank's ``billed_units`` and a transcription's ``duration``.

Failures
    ``fail=connect``      no connection
    ``fail=status:N``     refused with this HTTP status, 400 to 599
    ``fail=timeout``      the first byte is given up on, at once
    ``fail=stall``        silence until the caller's time for the first byte, or in mid-stream until it leaves
    ``fail=cut``          the stream ends without a finish reason and without ``[DONE]``
    ``fail=error_event``  an error as an event of the stream
    ``after=N``           fail in mid-stream after N tokens of all choices together
    ``times=N``           fail the first N attempts of the same prompt in this process, then answer
    ``at=NAME``           fail at the provider of that name alone
    ``round=N``           fail in the Nth round alone, where tools were called N - 1 times since the user spoke;
                          without it each round fails, and ``times`` counts each round's own attempts

``cut`` and ``error_event`` without ``after`` come before the first event. Where there is no stream, a
failure in mid-stream is an answer that was interrupted; so is speech that is cut, because HTTP shows it.
A key or value that is not listed is refused with 400.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from app.upstream.provider import UNUSABLE, UpstreamError

COUNT_MAX = 1_000_000
RETRY_AFTER_S = 1
_DIRECTIVE = re.compile(r"\[\[sandbox\b([^\[\]]*)\]\]")
_FAILURES = frozenset({"connect", "timeout", "stall", "cut", "error_event"})
_STREAM_FAILURES = frozenset({"cut", "error_event"})
_CALLERS_FAULT = frozenset({400, 404, 409, 413, 415, 422})
_OPERATORS_FAULT = frozenset({401, 402, 403})
_USAGES = frozenset({"chunk", "none", "zero", "cumulative", "beside"})


@dataclass(frozen=True, slots=True)
class Script:
    """A parsed directive; the defaults are a provider that behaves."""

    tokens: int | None = None
    reasoning: int | None = None
    hidden: int = 0
    overrun: int = 0
    chunk: int = 4
    finish: str | None = None
    tps: float | None = None
    first_ms: int | None = None
    silent_ms: int = 0
    usage: str = "chunk"
    cached: int = 0
    lie: int | None = None
    fail: str | None = None
    after: int | None = None
    times: int | None = None
    at: str | None = None
    round: int | None = None
    search: int | None = None
    say: str | None = None

    @property
    def fails_in_stream(self) -> bool:
        """Whether the failure comes once the provider has begun to answer."""
        return self.fail is not None and (self.after is not None or self.fail in _STREAM_FAILURES)


def parse(text: str) -> tuple[Script, str]:
    """The script in a message, and the message without it. Raises `UpstreamError`, the caller's fault."""
    found = _DIRECTIVE.search(text)
    if found is None:
        return Script(), text
    values: dict[str, Any] = {}
    for word in found[1].split():
        key, _, value = word.partition("=")
        read = _KEYS.get(key)
        if read is None:
            raise refused(f"unknown key {key!r} in the sandbox directive")
        try:
            values[key] = read(value)
        except ValueError as error:
            raise refused(f"bad value {value!r} for {key!r} in the sandbox directive") from error
    return Script(**values), text[: found.start()] + text[found.end() :]


def refused(message: str) -> UpstreamError:
    """The request itself is wrong."""
    return UpstreamError("rejected", message, status=400, fail_over=False, callers_fault=True)


def timed_out() -> UpstreamError:
    """No first byte in time; the work may have been done, so nobody else is asked."""
    return UpstreamError("timeout", "the sandbox did not answer in time", fail_over=False)


def interrupted() -> UpstreamError:
    """The answer had begun and did not end."""
    return UpstreamError("interrupted", "the sandbox stopped in mid-answer", fail_over=False)


def failure(kind: str) -> UpstreamError:
    """What ``fail=KIND`` is when it comes before the first byte."""
    if kind == "connect":
        return UpstreamError("connect", "the sandbox could not be reached")
    if not kind.startswith("status:"):
        return timed_out()
    status = int(kind.removeprefix("status:"))
    message = f"the sandbox answered {status}"
    if status == 429:
        return UpstreamError("rate_limited", message, status=status, retry_after_s=RETRY_AFTER_S)
    if status in _OPERATORS_FAULT:
        return UpstreamError("refused", UNUSABLE, status=status)
    if status in _CALLERS_FAULT:
        return UpstreamError("rejected", message, status=status, fail_over=False, callers_fault=True)
    return UpstreamError("server_error", message, status=status)


def _count(value: str) -> int:
    if not (value.isascii() and value.isdigit()) or len(value) > len(str(COUNT_MAX)) or int(value) > COUNT_MAX:
        raise ValueError
    return int(value)


def _positive(value: str) -> int:
    return _count(value) or _fault()


def _pace(value: str) -> float:
    pace = float(value)
    return pace if math.isfinite(pace) and pace > 0 else _fault()


def _word(value: str) -> str:
    return value or _fault()


def _usage(value: str) -> str:
    return value if value in _USAGES else _fault()


def _failure_kind(value: str) -> str:
    if value in _FAILURES:
        return value
    kind, _, status = value.partition(":")
    return value if kind == "status" and 400 <= _count(status) <= 599 else _fault()


def _fault() -> Any:
    raise ValueError


_KEYS: Mapping[str, Callable[[str], Any]] = {
    "tokens": _count,
    "reasoning": _count,
    "hidden": _count,
    "overrun": _count,
    "chunk": _positive,
    "finish": _word,
    "tps": _pace,
    "first_ms": _count,
    "silent_ms": _count,
    "usage": _usage,
    "cached": _count,
    "lie": _count,
    "fail": _failure_kind,
    "after": _count,
    "times": _positive,
    "at": _word,
    "round": _positive,
    "search": _count,
    "say": _word,
}
