"""What embeddings, reranks, images, speech and transcriptions take, as JSON Schema for ``/openapi.json``."""

from app.api import embedding_parameters as embedding
from app.api import image_parameters as image
from app.api import rerank_parameters as rerank
from app.api import speech_parameters as speech
from app.api import transcription_parameters as transcription
from app.api.discovery_parts import NUMBER, OBJECT, STRING, Schema, described, members, ranged
from app.api.discovery_requests import (
    MODEL,
    NOTHING_ELSE,
    NULL_OR_BOOLEAN,
    NULL_OR_STRING,
    TOKEN_IDS,
    TOKENS_TAKEN,
    body,
    not_offered,
    sharing,
)

TEXT: Schema = {"type": "string", "minLength": 1}


def _up_to(characters: int) -> Schema:
    return {**TEXT, "maxLength": characters}


def embedding_request() -> Schema:
    """The body of embeddings."""
    texts = {"type": "array", "items": {"anyOf": [TEXT, TOKEN_IDS]}, "minItems": 1, "maxItems": embedding.INPUTS_MAX}
    given = described({"anyOf": [TEXT, texts, TOKEN_IDS]}, TOKENS_TAKEN)
    optional = {
        "model": described(NULL_OR_STRING, "without one, the operator's default"),
        "dimensions": ranged("integer", 1, embedding.DIMENSIONS_MAX),
        "encoding_format": {"enum": ["float", "base64", None]},
        "user": NULL_OR_STRING,
        **not_offered(embedding.NOT_OFFERED),
    }
    return sharing(body({"input": given}, optional, "OpenAI's embeddings"), "Routing", "NotOffered")


def rerank_request() -> Schema:
    """The body of a rerank, of either version of Cohere's API."""
    document = {"anyOf": [STRING, described(OBJECT, "its `text`, or what `rank_fields` name, is ranked")]}
    fields = {"type": ["array", "null"], "items": STRING, "maxItems": rerank.FIELDS_MAX}
    documents = {"type": "array", "items": document, "minItems": 1, "maxItems": rerank.DOCUMENTS_MAX}
    optional = {
        "model": described(NULL_OR_STRING, "an id or alias; required in version 2"),
        "top_n": ranged("integer", 1, rerank.TOP_N_MAX),
        "max_chunks_per_doc": ranged("integer", 1, rerank.PER_DOCUMENT_MAX),
        "max_tokens_per_doc": described(ranged("integer", 1, rerank.PER_DOCUMENT_MAX), "for providers that cut"),
        "rank_fields": fields,
        "return_documents": NULL_OR_BOOLEAN,
        **not_offered(rerank.NOT_OFFERED),
    }
    required = {"query": _up_to(rerank.QUERY_CHARACTERS_MAX), "documents": documents}
    return sharing(body(required, optional, "Cohere's rerank"), "Routing", "NotOffered")


def image_request() -> Schema:
    """The body of images."""
    optional = {
        "n": ranged("integer", 1, image.IMAGES_MAX),
        "size": described(NULL_OR_STRING, "one that the model has a price for, with x or *"),
        "response_format": {"enum": ["url", "b64_json", None], "default": "b64_json"},
        "style": {"enum": ["vivid", "natural", None]},
        "output_format": {"enum": ["png", "jpeg", "webp", None]},
        "output_compression": ranged("integer", 0, 100),
        "background": {"enum": ["auto", "opaque", "transparent", None]},
        "moderation": {"enum": ["auto", "low", None]},
        "negative_prompt": {**_up_to(image.PROMPT_CHARACTERS_MAX), "type": ["string", "null"]},
        "seed": ranged("integer", -(2**63), 2**63 - 1),
        "user": NULL_OR_STRING,
        **not_offered(image.NOT_OFFERED),
    }
    required = {"model": MODEL, "prompt": _up_to(image.PROMPT_CHARACTERS_MAX)}
    return sharing(body(required, optional, "OpenAI's images"), "Routing", "NotOffered") | NOTHING_ELSE


def speech_request() -> Schema:
    """The body of speech."""
    voice = _up_to(speech.VOICE_CHARACTERS_MAX)
    own = {**members(id=voice), "additionalProperties": False}
    optional = {
        "response_format": {"enum": [*speech.FORMATS, None]},
        "speed": ranged("number", 0.25, 4),
        "instructions": {"type": ["string", "null"], "maxLength": speech.INSTRUCTIONS_CHARACTERS_MAX},
        "stream_format": {"enum": ["audio", None]},
        "user": NULL_OR_STRING,
        **not_offered(speech.NOT_OFFERED),
    }
    required = {"model": MODEL, "input": TEXT, "voice": {"anyOf": [voice, own]}}
    return sharing(body(required, optional, "OpenAI's speech"), "Routing", "NotOffered") | NOTHING_ELSE


def transcription_request() -> Schema:
    """The form of a transcription."""
    language = "an ISO 639 code, such as en"
    fields = {
        "language": described(STRING, language),
        "prompt": {"type": "string", "maxLength": transcription.PROMPT_CHARACTERS_MAX},
        "response_format": {"enum": list(transcription.FORMATS), "default": "json"},
        "temperature": {**NUMBER, "minimum": 0, "maximum": 1},
        transcription.GRANULARITY: {
            "type": "array",
            "items": {"enum": list(transcription.GRANULARITIES)},
            "uniqueItems": True,
            "description": f"only where response_format is {transcription.VERBOSE}",
        },
        "stream": {"const": False},
    }
    kinds = ", ".join(transcription.EXTENSIONS)
    file = {"type": "string", "format": "binary", "description": f"audio whose name ends in {kinds}"}
    required = {transcription.FILE: file, "model": MODEL}
    return sharing(body(required, fields, "Whisper's form, with no other fields; an empty one is left out"), "Routing")
