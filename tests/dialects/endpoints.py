"""What upstreams in the wild say on the endpoints beside chat, and what some of them say differently on that.

The model in the body (or in the form) chooses the dialect, as in `tests.dialects.server`.
"""

import base64
import email.parser
import email.policy
import json
import struct
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from tests.dialects import answers
from tests.dialects.answers import event
from tests.dialects.wire import Recorded, Reply

Dialect = Callable[[Reply, str, bool], Awaitable[None]]

DONE = event(b"[DONE]")
COMMENT = b": OPENROUTER PROCESSING\n\n"
VECTORS = ([0.25, -0.5, 1.0], [0.0, 2.0, -0.125], [3.5, 0.75, 1.5])
EMBEDDED_TOKENS = 7
SCORES = (0.125, 0.875, 0.5)
SEARCH_UNITS = 2
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n").decode()
IMAGE_URL = "https://images.upstream.example/1.png?sig=abc"
SAID = "Every tariff has an exception."
SECONDS = 7.5
SPEECH = bytes(range(256)) * 400
SPEECH_BLOCK_BYTES = 10_000
SPEECH_ENDLESS_BYTES = 4 << 20
OPENROUTER_COST = 0.000123
TRIAL_MESSAGE = (
    "You are using a Trial key, which is limited to 10 API calls / minute. Contact us at support@cohere.example"
)


def form_of(recorded: Recorded) -> tuple[dict[str, list[str]], dict[str, tuple[str, str, bytes]]]:
    """A multipart body as the standard library's e-mail parser reads it: fields, and files by field."""
    head = f"Content-Type: {recorded.headers['content-type']}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + recorded.content)
    fields: dict[str, list[str]] = {}
    files: dict[str, tuple[str, str, bytes]] = {}
    for part in message.iter_parts():
        name = str(part.get_param("name", header="content-disposition"))
        content = part.get_payload(decode=True)
        assert isinstance(content, bytes)
        if (filename := part.get_filename()) is None:
            fields.setdefault(name, []).append(content.decode())
        else:
            files[name] = (filename, part.get_content_type(), content)
    return fields, files


def model_of(recorded: Recorded) -> str:
    """The model asked for, in JSON or in a form."""
    if recorded.headers.get("content-type", "").startswith("multipart/form-data"):
        return form_of(recorded)[0].get("model", [""])[0]
    return recorded.model


def _refusing(parameter: str, error: Any, then: Dialect, *, status: int = 400) -> Dialect:
    async def answer(reply: Reply, parameter_of: str, stream: bool) -> None:
        body = reply.recorded.body
        if parameter in (body if isinstance(body, dict) else form_of(reply.recorded)[0]):
            return await reply.json(error, status=status)
        await then(reply, parameter_of, stream)

    return answer


def saying(body: Any, *, status: int = 200) -> Dialect:
    """A server that has one answer."""

    async def answer(reply: Reply, parameter: str, stream: bool) -> None:
        await reply.json(body, status=status)

    return answer


def _plainly(content: bytes, content_type: str, *, status: int = 200) -> Dialect:
    async def answer(reply: Reply, parameter: str, stream: bool) -> None:
        await reply.whole(content, content_type, status=status)

    return answer


# Chat, as some say it.


async def _openrouter(reply: Reply, parameter: str, stream: bool) -> None:
    usage = answers.usage_of(answers.USAGE, "openrouter") | {"cost": OPENROUTER_COST, "is_byok": False}
    if not stream:
        return await reply.json(answers.completion("ok") | {"provider": "Somebody", "usage": usage})
    await reply.begin()
    await reply.write(COMMENT * 3)
    for body in answers.stream("ok", wants_usage=False):
        await reply.write(COMMENT + event(body | {"provider": "Somebody"}), events=1)
    await reply.end(event(answers.chunk({"content": ""}, model="openrouter", usage=usage)) + DONE)


async def _openrouter_failed(reply: Reply, parameter: str, stream: bool) -> None:
    """The work had begun, so it is a 200; the error stands beside what was said, and in the choice."""
    error = {"code": 502, "message": f"Provider returned error for {answers.SECRET_ACCOUNT}"}
    if not stream:
        body = answers.completion("ok")
        body["choices"][0] |= {"error": error, "finish_reason": "error"}
        return await reply.json(body)
    await reply.begin()
    for body in answers.stream("ok", wants_usage=False)[:2]:
        await reply.write(event(body), events=1)
    failed = answers.chunk({"content": ""}, model="openrouter", finish="error") | {"error": error}
    await reply.end(event(failed) + DONE)


async def _llama(reply: Reply, parameter: str, stream: bool) -> None:
    timings = {"prompt_n": 11, "predicted_n": 5, "predicted_per_second": 61.25}
    if not stream:
        return await reply.json(answers.completion("ok") | {"timings": timings})
    await reply.begin()
    *chunks, usage = answers.stream("ok", wants_usage=True)
    for body in chunks:
        await reply.write(event(body), events=1)
    await reply.end(event(usage | {"timings": timings}) + DONE)


async def _echo(reply: Reply, parameter: str, stream: bool) -> None:
    """A server that refuses `stop`, in the words of who sent it."""
    message = f"Invalid value: {reply.recorded.body.get('stop')!r} (max_completion_tokens too)"
    await reply.json({"error": {"message": message, "type": "invalid_request_error"}}, status=400)


_MODERATED = {
    "error": {
        "code": 403,
        "message": "Your chosen model requires moderation and your input was flagged",
        "metadata": {"reasons": ["violence"], "flagged_input": "the input", "provider_name": "Somebody"},
    },
    "user_id": "user_2abcDEF34567",
}
_HANDED_ON = {
    "error": {
        "code": 400,
        "message": "Provider returned error",
        "metadata": {
            "provider_name": "Somebody",
            "raw": json.dumps({"error": {"message": "top_k must be at least 1", "type": "invalid_request_error"}}),
        },
    }
}
_TOO_LONG = {
    "error": {
        "code": 400,
        "message": "the request exceeds the available context size, try increasing it",
        "type": "exceed_context_size_error",
        "n_prompt_tokens": 9000,
        "n_ctx": 4096,
    }
}
_VLLM_OLD = {"object": "error", "message": "top_p must be in (0, 1], got 0.0.", "type": "BadRequestError", "code": 400}
_OLLAMA = {"error": 'model "llama3:8b" not found, try pulling it first'}
_GEMINI_KEY = [{"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.", "status": "X"}}]
_NO_CREDIT = {"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too low"}}
_QUOTA = {
    "error": {
        "message": "You exceeded your current quota, please check your plan and billing details.",
        "type": "insufficient_quota",
        "param": None,
        "code": "insufficient_quota",
    }
}

CHAT: Mapping[str, Dialect] = {
    "echo": _echo,
    "openrouter": _openrouter,
    "openrouter_failed": _openrouter_failed,
    "openrouter_moderated": saying(_MODERATED, status=403),
    "openrouter_handed_on": saying(_HANDED_ON, status=400),
    "llama": _llama,
    "llama_too_long": saying(_TOO_LONG, status=400),
    "vllm_old": saying(_VLLM_OLD, status=400),
    "ollama_missing": saying(_OLLAMA, status=404),
    "gemini_key": saying(_GEMINI_KEY, status=400),
    "no_credit": saying(_NO_CREDIT, status=400),
    "quota": saying(_QUOTA, status=429),
}


# Completions.


async def _completions(reply: Reply, parameter: str, stream: bool) -> None:
    head = {"id": "cmpl-ok", "object": "text_completion", "created": 1_760_000_000, "model": "upstream-ok"}
    usage = answers.usage_of(answers.USAGE, "ok")
    if not stream:
        choice = {"index": 0, "text": answers.TEXT, "logprobs": None, "finish_reason": "stop"}
        return await reply.json({**head, "choices": [choice], "usage": usage})
    await reply.begin()
    for piece in answers.CONTENT:
        choice = {"index": 0, "text": piece, "logprobs": None, "finish_reason": None}
        await reply.write(event({**head, "choices": [choice]}), events=1)
    await reply.end(event({**head, "choices": [], "usage": usage}) + DONE)


COMPLETIONS: Mapping[str, Dialect] = {
    "ok": _completions,
    "strict": _refusing("stream_options", {"error": answers.REFUSALS["stream_options"]}, _completions),
}


# Embeddings.


def _vectors(reply: Reply) -> list[Any]:
    given = reply.recorded.body["input"]
    vectors: list[Any] = list(VECTORS[: 1 if isinstance(given, str) or isinstance(given[0], int) else len(given)])
    if reply.recorded.body.get("encoding_format") == "base64":
        return [base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode() for vector in vectors]
    return vectors


def _embeddings(change: Callable[[list[dict[str, Any]]], list[Any]] = list) -> Dialect:
    async def answer(reply: Reply, parameter: str, stream: bool) -> None:
        data = [
            {"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(_vectors(reply))
        ]
        usage = {"prompt_tokens": EMBEDDED_TOKENS, "total_tokens": EMBEDDED_TOKENS}
        await reply.json({"object": "list", "data": change(data), "model": "upstream-ok", "usage": usage})

    return answer


def _first(**members: Any) -> Callable[[list[dict[str, Any]]], list[Any]]:
    return lambda data: [data[0] | members, *data[1:]]


_EXTRA = {
    "detail": [{"type": "extra_forbidden", "loc": ["body", "encoding_format"], "msg": "Extra inputs are not permitted"}]
}
_DIMENSIONS = {
    "error": {
        "message": 'Model "upstream-ok" does not support matryoshka representation, changing output dimensions will '
        "lead to poor results.",
        "type": "BadRequestError",
        "param": "dimensions",
        "code": 400,
    }
}
EMBEDDINGS: Mapping[str, Dialect] = {
    "ok": _embeddings(),
    "shuffled": _embeddings(lambda data: data[::-1]),
    "no_index": _embeddings(lambda data: [{"embedding": each["embedding"]} for each in data]),
    "strict": _refusing("encoding_format", _EXTRA, _embeddings(), status=422),
    "no_dimensions": _refusing("dimensions", _DIMENSIONS, _embeddings()),
    "short": _embeddings(lambda data: data[1:]),
    "long": _embeddings(lambda data: [*data, data[0]]),
    "more": _embeddings(lambda data: [*data, data[0] | {"index": "more"}]),
    "twice": _embeddings(lambda data: [data[0]] * len(data)),
    "ragged": _embeddings(_first(embedding=[1.0])),
    "hollow": _embeddings(lambda data: [each | {"embedding": []} for each in data]),
    "texts": _embeddings(_first(embedding=["1", "2", "3"])),
    "switches": _embeddings(_first(embedding=[True, False, True])),
    "nested": _embeddings(_first(embedding=[[1.0, 2.0, 3.0]])),
    "infinite": _embeddings(_first(embedding=base64.b64encode(struct.pack("<3f", 1, float("inf"), 2)).decode())),
    "nan": _embeddings(_first(embedding=base64.b64encode(struct.pack("<3f", 1, float("nan"), 2)).decode())),
    "odd_base64": _embeddings(_first(embedding="AAAAAAAA!AAAAAAAA")),
    "no_list": saying({"object": "list", "data": {"embedding": [1.0]}}),
    "nan_json": _plainly(b'{"data":[{"index":0,"embedding":[NaN]}]}', "application/json"),
    "huge_number": _plainly(b'{"data":[{"index":0,"embedding":[1e999]}]}', "application/json"),
    "error200": saying({"error": "the model crashed"}),
}


# Rerank.


def _ranking(key: str = "relevance_score", **more: Any) -> Callable[[Reply], Any]:
    def made(reply: Reply) -> Any:
        documents = reply.recorded.body["documents"]
        results: list[dict[str, Any]] = [
            {"index": index, key: SCORES[index], "document": {"text": document}}
            for index, document in enumerate(documents)
        ]
        results.sort(key=lambda result: -result[key])
        return {"id": "rerank-1", "results": results[: reply.recorded.body.get("top_n")], **more}

    return made


def _making(make: Callable[[Reply], Any]) -> Dialect:
    async def answer(reply: Reply, parameter: str, stream: bool) -> None:
        await reply.json(make(reply))

    return answer


async def tei_rerank(reply: Reply, parameter: str, stream: bool) -> None:
    """text-embeddings-inference: other names, a bare list of all, and words instead of JSON where they are wrong."""
    body = reply.recorded.body
    if "texts" not in body:
        message = b"Failed to deserialize the JSON body into the target type: missing field `texts` at line 1 column 99"
        return await reply.whole(message, "text/plain; charset=utf-8", status=422)
    results = [{"index": index, "score": SCORES[index]} for index in range(len(body["texts"]))]
    await reply.json(sorted(results, key=lambda result: -result["score"]))


_BILLED = {"api_version": {"version": "2", "is_experimental": False}, "billed_units": {"search_units": SEARCH_UNITS}}
RERANK: Mapping[str, Dialect] = {
    "vllm": _making(_ranking(model="upstream-vllm", usage={"total_tokens": 56})),
    "jina": _making(_ranking(object="list", usage={"total_tokens": 56, "prompt_tokens": 56})),
    "llama": _making(_ranking(key="score", object="list", usage={"prompt_tokens": 56, "total_tokens": 56})),
    "billed": _making(_ranking(meta=_BILLED)),
    # It is told no model, after it refused the first form.
    "tei": tei_rerank,
    "": tei_rerank,
    "out_of_range": saying({"results": [{"index": 3, "relevance_score": 0.5}]}),
    "negative": saying({"results": [{"index": -1, "relevance_score": 0.5}]}),
    "twice": saying({"results": [{"index": 0, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.4}]}),
    "no_score": saying({"results": [{"index": 0}]}),
    "switch": saying({"results": [{"index": 0, "relevance_score": True}]}),
    "too_many": saying({"results": [{"index": index, "relevance_score": 0.5} for index in range(4)]}),
    "none": saying({"results": []}),
    "words": saying({"results": "none"}),
    "error200": saying({"error": {"message": "no"}}),
}


# Images.


def _images(*items: Any) -> Dialect:
    return saying({"created": 1_760_000_000, "data": list(items)})


async def _as_many(reply: Reply, parameter: str, stream: bool) -> None:
    body = reply.recorded.body
    item = {"url": IMAGE_URL} if body.get("response_format") == "url" else {"b64_json": PNG}
    items = [item | {"revised_prompt": "A red cube", "seed": 7}] * body.get("n", 1)
    await reply.json({"created": 1_760_000_000, "data": items})


_UNKNOWN_FORMAT = {
    "error": {
        "message": "Unknown parameter: 'response_format'.",
        "type": "invalid_request_error",
        "param": "response_format",
        "code": "unknown_parameter",
    }
}
IMAGES: Mapping[str, Dialect] = {
    "ok": _as_many,
    "strict": _refusing("response_format", _UNKNOWN_FORMAT, _as_many),
    "more": _images(*[{"b64_json": PNG}] * 3),
    "none": _images(),
    "empty": _images({}),
    "odd_base64": _images({"b64_json": "<svg>"}),
    "script": _images({"url": "javascript:alert(1)"}),
    "file": _images({"url": "file:///etc/passwd"}),
    "lines": _images({"url": "https://a.example/\r\nX: y"}),
    "error200": saying({"error": {"message": "no"}}),
}


# Transcriptions.


async def _whisper(reply: Reply, parameter: str, stream: bool) -> None:
    wanted = form_of(reply.recorded)[0].get("response_format", ["json"])[0]
    if wanted == "json":
        return await reply.json({"text": SAID, "usage": {"type": "duration", "seconds": 8}})
    segments = [{"id": 0, "start": 0.0, "end": SECONDS, "text": SAID}]
    body = {"task": "transcribe", "language": "english", "duration": SECONDS, "text": SAID, "segments": segments}
    await reply.json(body)


async def _json_alone(reply: Reply, parameter: str, stream: bool) -> None:
    wanted = form_of(reply.recorded)[0].get("response_format", ["json"])[0]
    if wanted == "verbose_json":
        message = f"response_format 'verbose_json' is not compatible with model '{reply.recorded.path}'. Use 'json'."
        error = {"message": message, "type": "invalid_request_error", "param": "response_format"}
        return await reply.json({"error": error}, status=400)
    await _whisper(reply, parameter, stream)


TRANSCRIPTIONS: Mapping[str, Dialect] = {
    "whisper": _whisper,
    "json_alone": _json_alone,
    "odd": saying({"text": SAID, "duration": [7], "segments": "none", "words": None, "usage": 8, "language": 5}),
    "duration_text": saying({"text": SAID, "duration": "7.5"}),
    "no_text": saying({"duration": 7.5}),
    "plain": _plainly(SAID.encode(), "text/plain"),
    "error200": saying({"error": {"message": "no"}}),
}


# Speech.


def _speaking(content_type: str = "audio/mpeg", content: bytes = SPEECH) -> Dialect:
    async def answer(reply: Reply, parameter: str, stream: bool) -> None:
        await reply.begin(content_type)
        for start in range(0, len(content), SPEECH_BLOCK_BYTES):
            await reply.write(content[start : start + SPEECH_BLOCK_BYTES])
        await reply.end()

    return answer


async def _speech_gated(reply: Reply, parameter: str, stream: bool) -> None:
    await reply.begin("audio/mpeg")
    await reply.write(SPEECH[:SPEECH_BLOCK_BYTES])
    await reply.recorded.gate()
    await reply.write(SPEECH[SPEECH_BLOCK_BYTES:])
    await reply.end()


async def _speech_head_alone(reply: Reply, parameter: str, stream: bool) -> None:
    await reply.begin("audio/mpeg")
    await reply.recorded.left()


async def _speech_cut(reply: Reply, parameter: str, stream: bool) -> None:
    await reply.begin("audio/mpeg")
    await reply.write(SPEECH[:SPEECH_BLOCK_BYTES])
    reply.hang_up()


SPOKEN: Mapping[str, Dialect] = {
    "ok": _speaking(),
    "wav": _speaking('audio/x-wav; codec="1"; filename=secret.wav'),
    "bytes": _speaking("application/octet-stream"),
    "html": _plainly(b"<!doctype html>", "text/html"),
    "script": _plainly(b"alert(1)", "text/javascript"),
    "events": _plainly(b"data: {}\n\n", "text/event-stream"),
    "error200": saying({"error": {"message": "no"}}),
    "empty": _speaking(content=b""),
    "endless": _speaking(content=bytes(SPEECH_ENDLESS_BYTES)),
    "gated": _speech_gated,
    "head_alone": _speech_head_alone,
    "cut": _speech_cut,
}


# Cohere's own.


async def _cohere_embed(reply: Reply, parameter: str, stream: bool) -> None:
    body = reply.recorded.body
    vectors = [vector[: body.get("output_dimension")] for vector in VECTORS[: len(body["texts"])]]
    meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": EMBEDDED_TOKENS}}
    found = {"id": "e1", "embeddings": {"float": vectors}, "texts": body["texts"], "meta": meta}
    await reply.json(found | {"response_type": "embeddings_by_type"})


COHERE_RERANK: Mapping[str, Dialect] = {
    "ok": _making(_ranking(meta=_BILLED)),
    "unbilled": _making(_ranking()),
    "wrong": saying({"id": "1", "message": "invalid request: top_n must be at least 1"}, status=400),
    "trial": saying({"message": TRIAL_MESSAGE}, status=429),
    "no_key": saying({"message": "invalid api token"}, status=401),
    "none": saying({"message": "no results"}),
}
COHERE_EMBED: Mapping[str, Dialect] = {
    "ok": _cohere_embed,
    "old": saying({"embeddings": [[1.0]]}),
    "unbilled": saying({"embeddings": {"float": [[1.0, 2.0]]}}),
    "nothing": saying([]),
}

ENDPOINTS: Mapping[str, Mapping[str, Dialect]] = {
    "/v1/completions": COMPLETIONS,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/rerank": RERANK,
    "/v1/images/generations": IMAGES,
    "/v1/audio/transcriptions": TRANSCRIPTIONS,
    "/v1/audio/speech": SPOKEN,
    "/v2/rerank": COHERE_RERANK,
    "/v2/embed": COHERE_EMBED,
}
