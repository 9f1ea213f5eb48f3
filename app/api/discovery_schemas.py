"""What the API takes and gives as JSON Schema, for ``/openapi.json``.

The request's schema takes whatever `chat_parameters` takes: bounds and names are read from there, and tests
hold the two together. What no schema can say (a price ceiling needs the other one) stands in a description.
"""

from typing import Any

from app.api import chat_parameters as chat
from app.settings import Settings

Schema = dict[str, Any]

USD = {"type": "string", "description": "exact USD decimal", "examples": ["4.999985"]}
PRICE = {"type": "string", "description": "USD per million tokens", "examples": ["0.10"]}
MOMENT = {"type": "string", "format": "date-time"}
COUNT = {"type": "integer", "minimum": 0}
STRING = {"type": "string"}
BOOLEAN = {"type": "boolean"}
OBJECT = {"type": "object"}


def _or_null(schema: Schema) -> Schema:
    return {**schema, "type": [schema["type"], "null"]}


def _described(schema: Schema, description: str) -> Schema:
    return {**schema, "description": description}


def _range(kind: str, least: float, most: float) -> Schema:
    return {"type": [kind, "null"], "minimum": least, "maximum": most}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _some(**properties: Schema) -> Schema:
    """An object whose members may be left out."""
    return {"type": "object", "properties": properties}


def _members(**properties: Schema) -> Schema:
    """An object whose members are all there."""
    return {**_some(**properties), "required": list(properties)}


def _part(kind: str, **members: Schema) -> Schema:
    return _members(type={"const": kind}, **members)


def _message(settings: Settings) -> Schema:
    remote = bool(settings.inference.media_hosts)
    url = {
        "type": "string",
        "pattern": "^(data:image/|https://)" if remote else "^data:image/",
        "description": "a data:image/... URL" + (", or one of a host that the operator listed" if remote else ""),
    }
    parts = [
        *(_part(kind, **{kind: STRING}) for kind in chat.TEXT_PARTS),
        _part("image_url", image_url={"anyOf": [url, _members(url=url)]}),
        _part("input_audio", input_audio=_members(data=STRING)),
    ]
    content = {"anyOf": [{"type": ["string", "null"]}, _list({"anyOf": parts})]}
    return {
        "type": "object",
        "properties": {"role": {"enum": list(chat.ROLES)}, "content": content},
        "required": ["role"],
    }


def _provider() -> Schema:
    names = {"type": ["array", "null"], "items": STRING, "maxItems": chat.NAMES_MAX}
    price = {"type": ["number", "string", "null"], "description": "USD per million tokens"}
    max_price = {**_some(prompt=price, completion=price), "additionalProperties": False}
    members = {
        **dict.fromkeys(("order", "only", "ignore"), names),
        "sort": {"enum": [*chat.PROVIDER_SORTS, None]},
        "max_price": _or_null(max_price),
        "allow_fallbacks": {"type": ["boolean", "null"]},
    }
    return {
        "type": ["object", "null"],
        "description": "routing wishes in OpenRouter's form; never sent to a provider",
        "properties": members,
        "additionalProperties": {"type": "null"},
    }


def _chat_parameters(settings: Settings) -> dict[str, Schema]:
    tokens = _range("integer", 1, 2**31 - 1)
    cents = _range("integer", 0, chat.CENTS_MAX)
    default = settings.inference.default_max_tokens
    limit = f"output limit; without one, {default} or the model's own if that is lower"
    function = {"type": "object", "properties": {"type": {"enum": list(chat.TOOL_TYPES)}}}
    stops = {"type": "array", "items": STRING, "maxItems": chat.STOPS_MAX}
    bias = {"type": "number", "minimum": -chat.LOGIT_BIAS_MAX, "maximum": chat.LOGIT_BIAS_MAX}
    return {
        "stream": {"type": ["boolean", "null"], "default": settings.inference.stream_default},
        "stream_options": {
            **_or_null(_some(include_usage=BOOLEAN)),
            "description": "only where stream is true",
        },
        "max_tokens": _described(tokens, limit),
        "max_completion_tokens": _described(tokens, "the same, and goes before max_tokens"),
        "temperature": _range("number", 0, 2),
        "top_p": {"anyOf": [_range("number", 0, 1), {"const": -1}], "description": "-1 leaves it out"},
        "n": _described(_range("integer", 1, chat.CHOICES_MAX), "choices; each is charged"),
        "stop": {"anyOf": [{"type": ["string", "null"]}, stops]},
        "presence_penalty": _range("number", -2, 2),
        "frequency_penalty": _range("number", -2, 2),
        "logit_bias": {"type": ["object", "null"], "additionalProperties": bias},
        "user": {"type": ["string", "null"]},
        "tools": {"type": ["array", "null"], "items": function, "maxItems": chat.TOOLS_MAX},
        "tool_choice": {"anyOf": [{"enum": [*chat.TOOL_CHOICES, None]}, OBJECT]},
        "parallel_tool_calls": {"type": ["boolean", "null"]},
        "response_format": {"type": ["object", "null"]},
        "seed": _range("integer", -(2**63), 2**63 - 1),
        "logprobs": {"type": ["boolean", "null"]},
        "top_logprobs": _range("integer", 0, 20),
        "reasoning_effort": {"enum": [*chat.EFFORTS, None]},
        "modalities": {"type": ["array", "null"]},
        "routing_strategy": {"enum": [*chat.STRATEGIES, None]},
        "allow_external": _described({"type": ["boolean", "null"]}, "whether external providers may serve"),
        "max_input_price_per_million": _described(cents, "US cents; together with the one for output, or not at all"),
        "max_output_price_per_million": _described(cents, "US cents; together with the one for input, or not at all"),
        "timeout_ms": _described(_range("integer", 1, chat.TIMEOUT_MS_MAX), "time to the first byte"),
        "provider": _provider(),
    }


def chat_request(settings: Settings, *, models: list[str]) -> Schema:
    """The body of a chat completion; ``models`` are examples of ids."""
    model = {"type": "string", "minLength": 1, "description": "an id or alias of GET /v1/models", "examples": models}
    messages = {"type": "array", "minItems": 1, "maxItems": chat.MESSAGES_MAX, "items": _message(settings)}
    not_offered = {name: {"enum": list(allowed), "deprecated": True} for name, allowed in chat.REFUSED.items()}
    return {
        "type": "object",
        "description": "OpenAI's chat completion. Members that are not listed are sent on and count as prompt.",
        "properties": {"model": model, "messages": messages, **_chat_parameters(settings), **not_offered},
        "required": ["model", "messages"],
    }


ERROR = _members(
    error={
        **_members(
            message=STRING,
            type=STRING,
            code=_or_null(STRING),
            param=_described(_or_null(STRING), "the parameter that is wrong"),
        ),
        "additionalProperties": True,
    }
)
PROBLEM = {
    "type": "object",
    "description": "RFC 9457; `error` says the same to SDKs",
    "properties": {"type": STRING, "title": STRING, "status": COUNT, "detail": STRING},
    "required": ["type", "title", "status"],
}
COMPLETION = {
    "type": "object",
    "description": "OpenAI's chat completion; `usage.cost` is what was charged, in USD",
    "properties": {
        "id": STRING,
        "object": {"const": "chat.completion"},
        "created": COUNT,
        "model": STRING,
        "choices": _list(_some(index=COUNT, message=OBJECT, finish_reason=_or_null(STRING))),
        "usage": {
            "type": "object",
            "properties": {
                "prompt_tokens": COUNT,
                "completion_tokens": COUNT,
                "total_tokens": COUNT,
                "cost": {"type": "number", "minimum": 0},
            },
            "required": ["prompt_tokens", "completion_tokens", "total_tokens"],
        },
    },
    "required": ["choices", "usage"],
}
PRICES = {"type": "object", "additionalProperties": PRICE}
MODEL = _members(
    id=STRING,
    object={"const": "model"},
    created=COUNT,
    owned_by=STRING,
    root=STRING,
    parent={"type": "null"},
    aliases=_list(STRING),
    context_window=COUNT,
    max_model_len=COUNT,
    max_output_tokens=COUNT,
    capabilities=_list(STRING),
    permission={"type": "array"},
    pricing={
        **_members(currency={"const": "USD"}, unit={"const": "million tokens"}, input=PRICE, output=PRICE),
        "required": ["currency", "unit"],
        "additionalProperties": PRICE,
    },
    providers=_list(_members(name=STRING, kind={"enum": ["native", "quota", "external"]}, pricing=PRICES)),
)
MODELS = _members(object={"const": "list"}, data=_list({"$ref": "#/components/schemas/Model"}))
KEY = _members(
    id=STRING,
    customer_id=STRING,
    label=STRING,
    hint=STRING,
    created_at=MOMENT,
    revoked_at=_or_null(MOMENT),
    expires_at=_or_null(MOMENT),
    models={"type": ["array", "null"], "items": STRING, "description": "what it may use; null: all"},
    spend_limit=_or_null(USD),
    spend_limit_month=_or_null(USD),
    requests_per_minute=_or_null(COUNT),
    tokens_per_minute=_or_null(COUNT),
    spent=USD,
    spent_month=USD,
    held=USD,
    rate_limit=_members(
        requests_per_minute=_or_null(COUNT),
        tokens_per_minute=_or_null(COUNT),
        requests_this_minute=COUNT,
        tokens_this_minute=COUNT,
    ),
)
BALANCE = _members(available=USD, held=USD, spent=USD, credit_limit=USD, currency={"const": "USD"})
_TOKENS = (
    *("prompt_tokens", "cached_tokens", "cache_write_tokens", "audio_input_tokens", "completion_tokens"),
    *("reasoning_tokens", "audio_output_tokens"),
)
_SUMMED = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
REQUEST = _members(
    id=STRING,
    created_at=MOMENT,
    status=STRING,
    model=STRING,
    endpoint=STRING,
    stream=BOOLEAN,
    key_id=_or_null(STRING),
    provider=_or_null(STRING),
    **dict.fromkeys(_TOKENS, COUNT),
    estimated=_described(BOOLEAN, "whether we counted, because the provider did not say"),
    cost=USD,
    finish_reason=_or_null(STRING),
    error_code=_or_null(STRING),
    first_token_ms=_or_null(COUNT),
    duration_ms=_or_null(COUNT),
    finished_at=_or_null(MOMENT),
    price_version_id=_or_null(STRING),
)
SUM = {
    **_members(requests=COUNT, **dict.fromkeys(_SUMMED, COUNT), cost=USD),
    "description": "a sum; in groups also by `day`, `model` or `key`, a key with its `label`",
}
ATTEMPT = _members(
    number=COUNT,
    provider=STRING,
    result=STRING,
    status=_or_null(COUNT),
    started_at=MOMENT,
    duration_ms=_or_null(COUNT),
)
GENERATION = {
    **REQUEST,
    "properties": {**REQUEST["properties"], "attempts": _list(ATTEMPT)},
    "required": [*REQUEST["required"], "attempts"],
}
USAGE = {
    "anyOf": [
        _members(
            object={"const": "list"},
            data=_list({"$ref": "#/components/schemas/Request"}),
            next_cursor=_or_null(STRING),
        ),
        _members(
            object={"const": "list"},
            group_by={"enum": ["day", "model", "key"]},
            data=_list({"$ref": "#/components/schemas/Sum"}),
            total={"$ref": "#/components/schemas/Sum"},
        ),
    ]
}
AMOUNT = {"type": "string", "pattern": "^(0|[1-9][0-9]*)$", "description": "base units of the token: 0.000001 USD"}
CHANNEL_ID = {"type": "string", "pattern": "^0x[0-9a-fA-F]{64}$"}
_CHANNEL = _members(
    object={"const": "channel"},
    channelId=CHANNEL_ID,
    backend=STRING,
    chainId=COUNT,
    escrow=STRING,
    descriptor=_described(OBJECT, "what the channel's id is computed from"),
    status=STRING,
    deposit=AMOUNT,
    settled=AMOUNT,
    closeRequestedAt=_described(_or_null(STRING), "chain time at which its payer asked to close"),
    createdAt=MOMENT,
)
_RECEIPT = _members(
    requestId=STRING, challengeId=STRING, acceptedCumulative=AMOUNT, spent=AMOUNT, units=COUNT, at=MOMENT
)
_PROVEN = _some(acceptedCumulative=AMOUNT, spent=AMOUNT, held=AMOUNT, available=AMOUNT, receipts=_list(_RECEIPT))
CHANNEL = {
    **_CHANNEL,
    "description": "accepted, spent, held, available and receipts are for its payer, proven by a voucher",
    "properties": {**_CHANNEL["properties"], **_PROVEN["properties"]},
}
TOP_UP = _members(
    object={"const": "topup"},
    amount=USD,
    payer=_described(STRING, "the wallet's address"),
    **BALANCE["properties"],
)


def components(settings: Settings, *, models: list[str], wallets: bool) -> dict[str, Schema]:
    """Every schema by the name that operations refer to."""
    return {
        "ChatRequest": chat_request(settings, models=models),
        "ChatCompletion": COMPLETION,
        "Error": ERROR,
        "Model": MODEL,
        "Models": MODELS,
        "Key": KEY,
        "Balance": BALANCE,
        "Request": REQUEST,
        "Sum": SUM,
        "Usage": USAGE,
        "Generation": GENERATION,
        **({"Channel": CHANNEL, "TopUp": TOP_UP, "PaymentProblem": PROBLEM} if wallets else {}),
    }
