"""The paid paths: what reads the bodies of each, and how its answers look."""

from collections.abc import Mapping

from app.api import (
    chat_parameters,
    completion_parameters,
    embedding_parameters,
    image_parameters,
    rerank_parameters,
    simple_chat,
    simple_embeddings,
    simple_generate,
    speech_parameters,
    transcription_parameters,
)
from app.api.inference import Route
from app.api.simple import SIMPLE

_RERANK = Route(rerank_parameters.parse)

PAID: Mapping[str, Route] = {
    "/v1/chat/completions": Route(chat_parameters.parse),
    "/v1/completions": Route(completion_parameters.parse),
    "/v1/embeddings": Route(embedding_parameters.parse),
    "/v1/rerank": _RERANK,
    "/v2/rerank": _RERANK,
    # The Cohere SDK appends its own version to a base URL that has one already.
    "/v1/v1/rerank": _RERANK,
    "/v1/v2/rerank": _RERANK,
    "/v1/audio/transcriptions": Route(transcription_parameters.parse, multipart=True),
    "/v1/audio/speech": Route(speech_parameters.parse),
    "/v1/images/generations": Route(image_parameters.parse),
    "/ai/chat": Route(simple_chat.parse, shape=SIMPLE, untyped=True),
    "/ai/generate": Route(simple_generate.parse, shape=SIMPLE, untyped=True),
    "/ai/embeddings": Route(simple_embeddings.parse, shape=SIMPLE, untyped=True),
}
