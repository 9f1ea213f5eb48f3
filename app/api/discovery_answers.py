"""What the API answers, as JSON Schema for ``/openapi.json``: the catalog, the account, errors and channels.

What paid endpoints answer is in `discovery_paid_answers`.
"""

from typing import get_args

from app.api.discovery_parts import (
    BOOLEAN,
    CHANNEL_ID,
    COUNT,
    MOMENT,
    OBJECT,
    STRING,
    USD,
    Schema,
    described,
    list_of,
    members,
    or_null,
    ref,
    some,
)
from app.provider_settings import Capability
from app.units import FLAT_UNITS, UNITS

CAPABILITIES = get_args(Capability)

ERROR = members(
    error={
        **members(
            message=STRING,
            type=STRING,
            code=or_null(STRING),
            param=described(or_null(STRING), "the parameter that is wrong"),
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
PRICES: Schema = {
    "type": "object",
    "description": "exact USD decimals: kinds of tokens per million, anything else per unit; an image's by its size",
    "properties": {
        **dict.fromkeys((*UNITS, *(f"per_{unit}" for unit in FLAT_UNITS)), STRING),
        "per_image": {"type": "object", "additionalProperties": STRING},
    },
}
_MODEL = members(
    id=STRING,
    object={"const": "model"},
    created=COUNT,
    owned_by=STRING,
    root=STRING,
    parent={"type": "null"},
    aliases=list_of(STRING),
    capabilities=list_of({"enum": list(CAPABILITIES)}),
    permission=list_of(OBJECT),
    pricing={
        "allOf": [ref("Prices")],
        "description": "the highest of its providers: a request is charged by the one that served it",
        "properties": {"currency": {"const": "USD"}, "unit": {"const": "million tokens"}},
        "required": ["currency", "unit"],
    },
    providers=list_of(members(name=STRING, kind={"enum": ["native", "quota", "external"]}, pricing=ref("Prices"))),
)
_LIMITS = dict.fromkeys(("context_window", "max_model_len", "max_output_tokens"), COUNT)
MODEL: Schema = {
    **_MODEL,
    "description": "a limit that nobody knows is left out",
    "properties": {**_MODEL["properties"], **_LIMITS},
}
MODELS = members(object={"const": "list"}, data=list_of(ref("Model")))
KEY = members(
    id=STRING,
    customer_id=STRING,
    label=STRING,
    hint=STRING,
    created_at=MOMENT,
    revoked_at=or_null(MOMENT),
    expires_at=or_null(MOMENT),
    models={"type": ["array", "null"], "items": STRING, "description": "what it may use; null: all"},
    spend_limit=or_null(USD),
    spend_limit_month=or_null(USD),
    requests_per_minute=or_null(COUNT),
    tokens_per_minute=or_null(COUNT),
    routing=described(or_null(OBJECT), "routing parameters where its requests say nothing"),
    spent=USD,
    spent_month=USD,
    held=USD,
    rate_limit=members(
        requests_per_minute=or_null(COUNT),
        tokens_per_minute=or_null(COUNT),
        requests_this_minute=COUNT,
        tokens_this_minute=COUNT,
    ),
)
BALANCE = members(available=USD, held=USD, spent=USD, credit_limit=USD, currency={"const": "USD"})
_TOKENS = (
    *("prompt_tokens", "cached_tokens", "cache_write_tokens", "audio_input_tokens", "completion_tokens"),
    *("reasoning_tokens", "audio_output_tokens"),
)
_SUMMED = ("prompt_tokens", "cached_tokens", "completion_tokens", "reasoning_tokens")
REQUEST = members(
    id=STRING,
    created_at=MOMENT,
    status=STRING,
    model=STRING,
    endpoint=STRING,
    stream=BOOLEAN,
    key_id=or_null(STRING),
    provider=or_null(STRING),
    **dict.fromkeys(_TOKENS, COUNT),
    units=described({"type": "object", "additionalProperties": COUNT}, "what is no token, by unit"),
    estimated=described(BOOLEAN, "whether we counted, because the provider did not say"),
    cost=USD,
    finish_reason=or_null(STRING),
    error_code=or_null(STRING),
    first_token_ms=or_null(COUNT),
    duration_ms=or_null(COUNT),
    finished_at=or_null(MOMENT),
    price_version_id=or_null(STRING),
)
SUM = {
    **members(requests=COUNT, **dict.fromkeys(_SUMMED, COUNT), cost=USD),
    "description": "a sum; in groups also by `day`, `model` or `key`, a key with its `label`",
}
ATTEMPT = members(
    number=COUNT,
    provider=STRING,
    result=STRING,
    status=or_null(COUNT),
    started_at=MOMENT,
    duration_ms=or_null(COUNT),
)
GENERATION = {"allOf": [ref("Request")], **members(attempts=list_of(ATTEMPT))}
USAGE = {
    "anyOf": [
        members(
            object={"const": "list"},
            data=list_of(ref("Request")),
            next_cursor=or_null(STRING),
        ),
        members(
            object={"const": "list"},
            group_by={"enum": ["day", "model", "key"]},
            data=list_of(ref("Sum")),
            total=ref("Sum"),
        ),
    ]
}
AMOUNT = {"type": "string", "pattern": "^(0|[1-9][0-9]*)$", "description": "base units of the token: 0.000001 USD"}
_CHANNEL = members(
    object={"const": "channel"},
    channelId=CHANNEL_ID,
    backend=STRING,
    chainId=COUNT,
    escrow=STRING,
    descriptor=described(OBJECT, "what the channel's id is computed from"),
    status=STRING,
    deposit=AMOUNT,
    settled=AMOUNT,
    closeRequestedAt=described(or_null(STRING), "chain time at which its payer asked to close"),
    createdAt=MOMENT,
)
_RECEIPT = members(
    requestId=STRING, challengeId=STRING, acceptedCumulative=AMOUNT, spent=AMOUNT, units=COUNT, at=MOMENT
)
_PROVEN = some(acceptedCumulative=AMOUNT, spent=AMOUNT, held=AMOUNT, available=AMOUNT, receipts=list_of(_RECEIPT))
CHANNEL = {
    **_CHANNEL,
    "description": "accepted, spent, held, available and receipts are for its payer, proven by a voucher",
    "properties": {**_CHANNEL["properties"], **_PROVEN["properties"]},
}
TOP_UP = members(
    object={"const": "topup"},
    amount=USD,
    payer=described(STRING, "the wallet's address"),
    **BALANCE["properties"],
)
