"""What is sent to an OpenAI-compatible server for each endpoint, given what it is known to refuse. Pure.

A call's body is validated and ours; the model's name, the bounds and what we need to know are put in here, and
it is serialised once.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from app.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, IMAGES, RERANK, SPEECH, TRANSCRIPTIONS
from app.upstream.openai_form import form_fields, form_parts
from app.upstream.openai_quirks import OTHER_LIMIT
from app.upstream.provider import Call, UpstreamError

JSON = "application/json"
PATHS: Mapping[str, str] = {
    CHAT.name: "/chat/completions",
    COMPLETIONS.name: "/completions",
    EMBEDDINGS.name: "/embeddings",
    RERANK.name: "/rerank",
    TRANSCRIPTIONS.name: "/audio/transcriptions",
    SPEECH.name: "/audio/speech",
    IMAGES.name: "/images/generations",
}
# Cohere's alone: no other server knows them, and the documents are the client's own. Here they are ranked, and
# have been priced, whole.
_OF_COHERE = frozenset({"return_documents", "rank_fields", "max_chunks_per_doc", "max_tokens_per_doc", "priority"})
LAST_FORMAT = "json"
# As numbers in JSON so many vectors would be several times as long, and past the bound on answers. Clients get them
# as they asked for them: the edge converts.
BASE64_INPUTS_MIN = 100
_TIMES = frozenset({"timestamp_granularities", "timestamp_granularities[]"})


@dataclass(frozen=True, slots=True)
class Request:
    """``names`` are the parameters in it, by which a refusal can be understood."""

    content_type: str
    parts: tuple[bytes, ...]
    names: Collection[str]


def request_of(call: Call, refused: Collection[str]) -> Request:
    """The request of one attempt, without what the server refuses."""
    if call.endpoint == TRANSCRIPTIONS.name:
        if call.upload is None:
            raise UpstreamError("rejected", "the request has no file", fail_over=False, callers_fault=True)
        fields = _transcription(call, refused)
        content_type, parts = form_parts(form_fields(fields), call.upload)
        # Who asked for times gets them or the refusal: `json`, the last resort, has none.
        last = fields.get("response_format") == LAST_FORMAT or _TIMES & fields.keys()
        names = [name for name in fields if name != "response_format" or not last]
        return Request(content_type, parts, names)
    body = _BODIES.get(call.endpoint, _plain)(call, refused)
    return Request(JSON, (orjson.dumps(body),), body.keys())


def document_text(document: Any) -> str:
    """A document of a rerank as text: itself, or its ``text``."""
    text = document.get("text") if isinstance(document, dict) else document
    return text if isinstance(text, str) else ""


def _generation(call: Call, refused: Collection[str]) -> dict[str, Any]:
    body = {**call.body, "model": call.upstream_model, "stream": call.stream}
    wanted = "max_tokens"
    if call.endpoint == CHAT.name:
        wanted = "max_completion_tokens" if "max_completion_tokens" in body else wanted
        wanted = OTHER_LIMIT[wanted] if wanted in refused else wanted
    body.pop("max_completion_tokens", None)
    body.pop("max_tokens", None)
    body[wanted] = call.output_limit
    if call.stream and "stream_options" not in refused:
        body["stream_options"] = {"include_usage": True}
    else:
        body.pop("stream_options", None)
    return body


def _plain(call: Call, refused: Collection[str]) -> dict[str, Any]:
    """The body itself, with the provider's name of the model."""
    body = {name: value for name, value in call.body.items() if name not in refused}
    return {**body, "model": call.upstream_model}


def _embeddings(call: Call, refused: Collection[str]) -> dict[str, Any]:
    body = _plain(call, refused)
    if "encoding_format" not in refused and isinstance(body["input"], list) and len(body["input"]) >= BASE64_INPUTS_MIN:
        body["encoding_format"] = "base64"
    return body


def _image(call: Call, refused: Collection[str]) -> dict[str, Any]:
    body = _plain(call, refused)
    if isinstance(size := body.get("size"), str):
        body["size"] = size.replace("*", "x")
    return body


def _rerank(call: Call, refused: Collection[str]) -> dict[str, Any]:
    body = {name: value for name, value in call.body.items() if name not in _OF_COHERE}
    if "documents" in refused:
        # text-embeddings-inference: no `top_n`, and one model.
        return {"query": body["query"], "texts": [document_text(each) for each in body["documents"]]}
    return {**body, "model": call.upstream_model}


def _transcription(call: Call, refused: Collection[str]) -> dict[str, Any]:
    fields = {**call.body, "model": call.upstream_model}
    return {**fields, "response_format": LAST_FORMAT} if "response_format" in refused else fields


_BODIES = {
    CHAT.name: _generation,
    COMPLETIONS.name: _generation,
    EMBEDDINGS.name: _embeddings,
    IMAGES.name: _image,
    RERANK.name: _rerank,
}
