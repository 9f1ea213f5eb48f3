"""What the dialects say: texts, usage and chunks, known to the byte so that tests can compare."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

CONTENT = ("Hello", " from", " the", " upstream", ".")
REASONING = ("Let", " me", " think")
HOSTILE = ("line one\n", "line two\r\n\r\n", "event: payment-receipt\r\n", "data: [DONE]\n\n", "über 東京 😀")
ERROR_MESSAGE = "The engine is overloaded"
FORGED_EVENT = "payment-receipt"
FORGED_DATA = '{"reference":"0xforged","amount":"0"}'
SECRET_KEY = "sk-live-4f9a8b7c6d5e4f3a2b1c"
SECRET_ACCOUNT = "org-Zk81mPq2Lw9Rt4"
SECRET_URL = "https://platform.upstream.example/account/api-keys"
BIG_BYTES = 1 << 20
HUGE_EVENT_BYTES_MAX = 8 << 20
HUGE_BODY_BYTES_MAX = 64 << 20
FLOOD_EVENTS_MAX = 200_000
FLOOD_PIECE = "tick"
RETRY_AFTER_S = 7


@dataclass(frozen=True, slots=True)
class Known:
    """The usage that a dialect reports. ``reasoning`` is inside ``completion`` except at Gemini."""

    prompt: int
    completion: int
    total: int
    reasoning: int = 0
    cached: int = 0


USAGE = Known(prompt=11, completion=5, total=16)
USAGES: Mapping[str, Known | None] = {
    "azure": USAGE,
    "vllm": USAGE,
    "gemini": Known(prompt=11, completion=5, total=25, reasoning=9),
    "mistral": USAGE,
    "deepseek": Known(prompt=11, completion=8, total=19, reasoning=3, cached=4),
    "none": None,
    "zero": Known(prompt=0, completion=0, total=0),
    "strict": None,
    "no_done": USAGE,
    "crlf": USAGE,
    "cr": USAGE,
    "bytewise": USAGE,
    "big": Known(prompt=11, completion=BIG_BYTES // 4, total=11 + BIG_BYTES // 4),
    "ok": USAGE,
}
TEXT = "".join(CONTENT)
REASONING_TEXT = "".join(REASONING)
HOSTILE_TEXT = "".join(HOSTILE)
BIG_TEXT = "x" * BIG_BYTES
TEXTS: Mapping[str, str] = {"crlf": HOSTILE_TEXT, "cr": HOSTILE_TEXT, "big": BIG_TEXT}

ERROR = {"error": {"message": ERROR_MESSAGE, "type": "server_error", "param": None, "code": "overloaded"}}
REFUSALS: Mapping[str, dict[str, Any]] = {
    "stream_options": {
        "message": "Unrecognized request argument supplied: stream_options",
        "type": "invalid_request_error",
        "param": "stream_options",
        "code": None,
    },
    "max_tokens": {
        "message": "Unsupported parameter: 'max_tokens' is not supported with this model. "
        "Use 'max_completion_tokens' instead.",
        "type": "invalid_request_error",
        "param": "max_tokens",
        "code": "unsupported_parameter",
    },
    "max_completion_tokens": {
        "message": "Unrecognized request argument supplied: max_completion_tokens",
        "type": "invalid_request_error",
        "param": "max_completion_tokens",
        "code": None,
    },
}
STATUS_MESSAGES: Mapping[int, str] = {
    401: f"Incorrect API key provided: {SECRET_KEY}. You can find your API key at {SECRET_URL} "
    f"(account {SECRET_ACCOUNT}, balance -12.30 USD).",
    402: f"Insufficient balance on account {SECRET_ACCOUNT}, see {SECRET_URL}",
    403: f"Project {SECRET_ACCOUNT} has no access to this model",
    429: f"Rate limit reached in organization {SECRET_ACCOUNT} on tokens per min",
}


def usage_of(known: Known, dialect: str, *, sent: int | None = None) -> dict[str, Any]:
    """A usage object in the dialect's own words; ``sent`` tokens so far where it is cumulative."""
    completion = known.completion if sent is None else sent
    total = known.total if sent is None else known.total - known.completion + sent
    usage: dict[str, Any] = {
        "prompt_tokens": known.prompt,
        "completion_tokens": completion,
        "total_tokens": total,
    }
    if dialect == "deepseek":
        usage["prompt_cache_hit_tokens"] = known.cached
        usage["prompt_cache_miss_tokens"] = known.prompt - known.cached
        usage["completion_tokens_details"] = {"reasoning_tokens": known.reasoning}
    return usage


def chunk(
    delta: dict[str, Any] | None, *, model: str, finish: str | None = None, usage: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A chunk with one choice, or (no ``delta``) with none."""
    choices = [] if delta is None else [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}]
    body: dict[str, Any] = {
        "id": f"chatcmpl-{model}",
        "object": "chat.completion.chunk",
        "created": 1_760_000_000,
        "model": f"upstream-{model}",
        "choices": choices,
    }
    return body if usage is None else body | {"usage": usage}


def contents(pieces: Iterable[str], *, model: str, key: str = "content") -> list[dict[str, Any]]:
    """The chunks of a text, the role on the first."""
    deltas: list[dict[str, Any]] = [{key: piece} for piece in pieces]
    deltas[0] = {"role": "assistant", **deltas[0]}
    return [chunk(delta, model=model) for delta in deltas]


def stream(dialect: str, *, wants_usage: bool) -> list[dict[str, Any]]:
    """The chunks of a dialect whose bytes are ordinary."""
    known = USAGES.get(dialect, USAGE)
    pieces = {"crlf": HOSTILE, "cr": HOSTILE, "big": (BIG_TEXT,)}.get(dialect, CONTENT)
    chunks = contents(pieces, model=dialect)
    finish = chunk({}, model=dialect, finish="stop")
    last = [] if known is None else [chunk(None, model=dialect, usage=usage_of(known, dialect))]
    match dialect:
        case "azure":
            filtered = chunk(None, model="") | {"id": "", "model": "", "created": 0, "object": ""}
            filtered["prompt_filter_results"] = [{"prompt_index": 0, "content_filter_results": {}}]
            return [filtered, *chunks, finish, *(last if wants_usage else [])]
        case "vllm":
            known = known or USAGE
            for sent, body in enumerate(chunks, 1):
                body["usage"] = usage_of(known, dialect, sent=sent)
            return [*chunks, finish | {"usage": usage_of(known, dialect)}, *last]
        case "gemini":
            known = known or USAGE
            for sent, body in enumerate(chunks, 1):
                body["usage"] = usage_of(known, dialect, sent=sent)
            chunks[-1]["choices"][0]["finish_reason"] = "stop"
            return chunks
        case "mistral":
            return [*chunks, finish | last[0] | {"choices": finish["choices"]}]
        case "deepseek":
            return [*contents(REASONING, model=dialect, key="reasoning_content"), *chunks, finish, *last]
        case "zero":
            return [*chunks, finish, *last]
    return [*chunks, finish, *(last if wants_usage else [])]


def completion(dialect: str) -> dict[str, Any]:
    """A whole answer in the dialect."""
    known = USAGES.get(dialect, USAGE)
    message: dict[str, Any] = {"role": "assistant", "content": TEXTS.get(dialect, TEXT)}
    if dialect == "deepseek":
        message["reasoning_content"] = REASONING_TEXT
    body: dict[str, Any] = {
        "id": f"chatcmpl-{dialect}",
        "object": "chat.completion",
        "created": 1_760_000_000,
        "model": f"upstream-{dialect}",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
    }
    # Only a streaming request can have its `stream_options` refused: a whole answer has usage there too.
    known = USAGE if dialect == "strict" else known
    return body if known is None else body | {"usage": usage_of(known, dialect)}


def event(body: Any) -> bytes:
    """One ordinary event."""
    return b"data: %s\n\n" % (body if isinstance(body, bytes) else json.dumps(body).encode())


def odd_event(body: Any, end: bytes) -> bytes:
    """The same event in unusual spelling: no space, JSON over several ``data`` lines, a comment before it."""
    lines = json.dumps(body, indent=1, ensure_ascii=False).encode().split(b"\n")
    return b": ping" + end + b"".join(b"data:" + line + end for line in lines) + end
