"""What paid endpoints answer, as JSON Schema for ``/openapi.json``.

Words are a provider's, so objects are open: what is listed is there, and more may be.
"""

from app.api.discovery_parts import (
    COUNT,
    NUMBER,
    OBJECT,
    STRING,
    Schema,
    described,
    list_of,
    members,
    open_members,
    or_null,
    ref,
)

_COST: Schema = {"type": "number", "minimum": 0, "description": "what was charged, in USD"}
USAGE_OF_ANSWER = open_members(
    {"prompt_tokens": COUNT, "total_tokens": COUNT},
    {
        "completion_tokens": COUNT,
        "prompt_tokens_details": OBJECT,
        "completion_tokens_details": OBJECT,
        "reasoning_tokens": COUNT,
        "cost": _COST,
        "estimated": described({"const": True}, "we counted, because the provider did not say"),
    },
)
BACKEND = described({"type": "object", "additionalProperties": STRING}, "where the answer was made")
_FINISH = or_null(STRING)
_SAID: Schema = {"id": STRING, "created": COUNT, "model": STRING, "backend": BACKEND}
_MESSAGE = open_members({"role": STRING}, {"content": _FINISH, "tool_calls": list_of(OBJECT)})
CHAT = open_members(
    {
        "object": {"const": "chat.completion"},
        "choices": list_of(open_members({"message": _MESSAGE}, {"index": COUNT, "finish_reason": _FINISH})),
        "usage": ref("TokenUsage"),
    },
    _SAID,
)
TEXT = open_members(
    {
        "object": {"const": "text_completion"},
        "choices": list_of(open_members({"text": STRING}, {"index": COUNT, "finish_reason": _FINISH})),
        "usage": ref("TokenUsage"),
    },
    _SAID,
)
# Numbers, or base64 of 32-bit floats.
_VECTOR: Schema = {"type": ["array", "string"], "items": NUMBER}
EMBEDDINGS = open_members(
    {
        "object": {"const": "list"},
        "data": list_of(open_members({"index": COUNT, "embedding": _VECTOR})),
        "model": STRING,
        "usage": ref("TokenUsage"),
    },
    {"backend": BACKEND},
)
RERANK = open_members(
    {
        "results": list_of(open_members({"index": COUNT, "relevance_score": NUMBER}, {"document": OBJECT})),
        "meta": open_members({"billed_units": open_members({"search_units": NUMBER})}),
    },
    {"id": STRING, "backend": BACKEND},
)
TRANSCRIPTION = open_members({"text": STRING}, {"backend": BACKEND})
IMAGES = open_members(
    {"created": COUNT, "data": list_of({"anyOf": [open_members({"b64_json": STRING}), open_members({"url": STRING})]})},
    {"backend": BACKEND},
)

SIMPLE_ERROR = members(
    error=open_members(
        {
            "code": STRING,
            "message": STRING,
            "retry_after": described(or_null(COUNT), "seconds; null where nobody knows"),
            "status": COUNT,
        }
    )
)
_CALL = open_members({"id": STRING, "function": members(name=STRING, arguments=STRING)})
_SIMPLE_MESSAGE = open_members({"role": STRING}, {"content": STRING, "tool_calls": list_of(_CALL)})
SIMPLE_CHAT = open_members(
    {
        "id": {"type": "string", "pattern": "^chat_"},
        "model": STRING,
        "message": described(_SIMPLE_MESSAGE, "where it calls tools it may have no content; calls have no type"),
        "usage": ref("TokenUsage"),
        "finish_reason": _FINISH,
    },
    {"backend": BACKEND},
)
SIMPLE_GENERATE = open_members(
    {"id": {"type": "string", "pattern": "^gen_"}, "text": STRING, "usage": ref("TokenUsage")},
    {"model": STRING, "finish_reason": _FINISH, "backend": BACKEND},
)
_SIMPLE_USAGE = members(total_tokens=COUNT)
SIMPLE_EMBEDDINGS: Schema = {
    **open_members(
        {"dimensions": COUNT, "usage": _SIMPLE_USAGE},
        {"embedding": _VECTOR, "embeddings": list_of(_VECTOR), "backend": BACKEND},
    ),
    "description": "`embedding` for a string, `embeddings` for a list",
    "oneOf": [{"required": ["embedding"]}, {"required": ["embeddings"]}],
}
_SIMPLE_MODEL: Schema = {
    "type": "object",
    "properties": {
        "id": STRING,
        "provider": described(STRING, "who made it"),
        "capabilities": list_of(STRING),
        "context_length": COUNT,
    },
    "required": ["id", "provider", "capabilities"],
}
SIMPLE_MODELS = members(models=list_of(_SIMPLE_MODEL))

COMPONENTS: dict[str, Schema] = {
    "TokenUsage": USAGE_OF_ANSWER,
    "ChatCompletion": CHAT,
    "Completion": TEXT,
    "Embeddings": EMBEDDINGS,
    "Rerank": RERANK,
    "Transcription": TRANSCRIPTION,
    "Images": IMAGES,
    "SimpleError": SIMPLE_ERROR,
    "SimpleChat": SIMPLE_CHAT,
    "SimpleText": SIMPLE_GENERATE,
    "SimpleEmbeddings": SIMPLE_EMBEDDINGS,
    "SimpleModels": SIMPLE_MODELS,
}
