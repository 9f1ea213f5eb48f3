"""Examples for ``/openapi.json``: bodies that are answered as they stand, and what an answer to each looks like.

A request's example names a model that this process serves: whoever checks a 402 posts it as it is.
"""

from collections.abc import Callable, Mapping
from typing import Any

import orjson

from app.settings import ModelSettings
from app.upstream.sse import frame

Example = dict[str, Any]

TOKENS_MAX = 16
AUDIO_FILE = "speech.wav"
_MODEL = "a-model"
_USAGE = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11, "cost": 0.0000017}
_TEXT = {"index": 0, "finish_reason": "stop"}
_MESSAGE = {"role": "assistant", "content": "Hello!"}
_DONE = b"data: [DONE]\n\n"
_DOCUMENTS = ["Tallinn is the capital of Estonia.", "The fare is two euros."]


def _limited(model: ModelSettings) -> Example:
    return {"model": model.id, "max_tokens": min(TOKENS_MAX, model.output_max)}


def chat(model: ModelSettings) -> Example:
    """A chat, on either surface."""
    return {**_limited(model), "messages": [{"role": "user", "content": "Hello"}]}


def text(model: ModelSettings) -> Example:
    """Text from a prompt, on either surface."""
    return {**_limited(model), "prompt": "Say this is a test"}


def embeddings(model: ModelSettings) -> Example:
    """One text to embed."""
    return {"model": model.id, "input": "Represent this text as a vector."}


def rerank(model: ModelSettings) -> Example:
    """Two documents to rank."""
    return {"model": model.id, "query": "What does a ride cost?", "documents": _DOCUMENTS, "top_n": 2}


def transcription(model: ModelSettings) -> Example:
    """A form; the file is named."""
    return {"model": model.id, "file": AUDIO_FILE, "response_format": "json"}


def speech(model: ModelSettings) -> Example:
    """A text to speak."""
    return {"model": model.id, "input": "Hello", "voice": "alloy", "response_format": "wav"}


def images(model: ModelSettings) -> Example:
    """One image of a size that has a price."""
    sizes = model.price.per_image or {}
    return {"model": model.id, "prompt": "A sunset over the ocean", **({"size": next(iter(sizes))} if sizes else {})}


MAKERS: Mapping[str, Callable[[ModelSettings], Example]] = {
    "chat.completions": chat,
    "completions": text,
    "embeddings": embeddings,
    "rerank": rerank,
    "audio.transcriptions": transcription,
    "audio.speech": speech,
    "images.generations": images,
}

CHAT_ANSWER: Example = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1749110753,
    "model": _MODEL,
    "choices": [{**_TEXT, "message": _MESSAGE}],
    "usage": _USAGE,
}
TEXT_ANSWER: Example = {
    "id": "cmpl-1",
    "object": "text_completion",
    "created": 1749110753,
    "model": _MODEL,
    "choices": [{**_TEXT, "text": "This is a test."}],
    "usage": _USAGE,
}
EMBEDDINGS_ANSWER: Example = {
    "object": "list",
    "data": [{"object": "embedding", "index": 0, "embedding": [0.0123, -0.0456, 0.0789]}],
    "model": _MODEL,
    "usage": {"prompt_tokens": 7, "total_tokens": 7, "cost": 0.00000014},
}
RERANK_ANSWER: Example = {
    "id": "req_1",
    "results": [{"index": 1, "relevance_score": 0.93}, {"index": 0, "relevance_score": 0.02}],
    "meta": {"billed_units": {"search_units": 1}, "cost": 0.002},
}
TRANSCRIPTION_ANSWER: Example = {"text": "Hello.", "usage": {"type": "duration", "seconds": 1, "cost": 0.0001}}
IMAGES_ANSWER: Example = {"created": 1749110753, "data": [{"b64_json": "iVBORw0KGgo="}], "usage": {"cost": 0.04}}
SIMPLE_CHAT_ANSWER: Example = {
    "id": "chat_1",
    "model": _MODEL,
    "message": _MESSAGE,
    "usage": _USAGE,
    "finish_reason": "stop",
}
SIMPLE_TEXT_ANSWER: Example = {
    "id": "gen_1",
    "text": "This is a test.",
    "usage": _USAGE,
    "model": _MODEL,
    "finish_reason": "stop",
}
SIMPLE_EMBEDDINGS_ANSWER: Example = {
    "embedding": [0.0123, -0.0456, 0.0789],
    "dimensions": 3,
    "usage": {"total_tokens": 7},
}


def _events(*chunks: Mapping[str, Any]) -> str:
    return (b"".join(frame(orjson.dumps(chunk)) for chunk in chunks) + _DONE).decode()


def _chunks(kind: str, *choices: Mapping[str, Any]) -> str:
    head = {"id": "chatcmpl-1", "object": kind, "model": _MODEL}
    return _events(*({**head, "choices": [{"index": 0, "finish_reason": None, **choice}]} for choice in choices))


CHAT_EVENTS = _chunks("chat.completion.chunk", {"delta": {"content": "Hello!"}}, {"delta": {}, "finish_reason": "stop"})
TEXT_EVENTS = _chunks("text_completion", {"text": "This is"}, {"text": " a test.", "finish_reason": "stop"})
SIMPLE_CHAT_EVENTS = _events({"delta": {"content": "Hello!"}}, {"delta": {}, "finish_reason": "stop"})
SIMPLE_TEXT_EVENTS = _events({"delta": {"text": "This is a test."}}, {"delta": {}, "finish_reason": "stop"})
