"""What chat and plain completions take, as JSON Schema for ``/openapi.json``.

Schemas take whatever the parsers take: bounds and names are read from there, and tests hold the two together.
What no schema can say (a price ceiling needs the other one) stands in a description. The bodies of the other
endpoints are in `discovery_media_requests`.
"""

from collections.abc import Mapping
from typing import Any

from app.api import chat_parameters as chat
from app.api import completion_parameters as completion
from app.api import parameters, routing_parameters, search_parameters, simple_generate
from app.api.discovery_parts import (
    BOOLEAN,
    OBJECT,
    STRING,
    Schema,
    described,
    list_of,
    members,
    or_null,
    ranged,
    ref,
    some,
)
from app.settings import Settings

TOKENS_MAX = 2**31 - 1
TOKENS_TAKEN = "token ids are taken where the model declares its tokenizer"
# Beside what is listed, and what `Routing` and `NotOffered` list.
NOTHING_ELSE: Schema = {"unevaluatedProperties": {"type": "null"}}
SENT_ON = "Members that are not listed are sent on and count as prompt."
NULL_OR_STRING: Schema = {"type": ["string", "null"]}
NULL_OR_BOOLEAN: Schema = {"type": ["boolean", "null"]}
TOKEN_IDS: Schema = {
    "type": "array",
    "items": {"type": "integer", "minimum": 0, "maximum": parameters.TOKEN_ID_MAX},
    "minItems": 1,
}


MODEL: Schema = {"type": "string", "minLength": 1, "description": "an id or alias of GET /v1/models"}


# What is sold nowhere. Endpoints differ on the others: some take more of their values.
_NOWHERE: Mapping[str, tuple[Any, ...]] = {
    name: values for name, values in parameters.REFUSED.items() if name not in {"best_of", "background"}
}


def not_offered(refused: Mapping[str, tuple[Any, ...]]) -> dict[str, Schema]:
    """What an endpoint knows and does not sell, beside what none does: only values that ask for nothing are taken."""
    return {name: {"enum": list(values)} for name, values in refused.items() if _NOWHERE.get(name) != values}


def body(required: Mapping[str, Schema], optional: Mapping[str, Schema], description: str) -> Schema:
    """A request's body."""
    return {
        "type": "object",
        "description": description,
        "properties": {**required, **optional},
        "required": list(required),
    }


def routing() -> Schema:
    """What any inference request may say of who serves it; never sent to a provider."""
    cents = ranged("integer", 0, routing_parameters.CENTS_MAX)
    return some(
        routing_strategy={"enum": [*routing_parameters.STRATEGIES, None]},
        allow_external=described(NULL_OR_BOOLEAN, "whether external providers may serve"),
        max_input_price_per_million=described(cents, "US cents; together with the one for output, or not at all"),
        max_output_price_per_million=described(cents, "US cents; together with the one for input, or not at all"),
        timeout_ms=described(ranged("integer", 1, routing_parameters.TIMEOUT_MS_MAX), "time to the first byte"),
        provider=_provider(),
    )


def _provider() -> Schema:
    names = {"type": ["array", "null"], "items": STRING, "maxItems": routing_parameters.NAMES_MAX}
    price = {"type": ["number", "string", "null"], "description": "USD per million tokens"}
    max_price = {**some(prompt=price, completion=price), "additionalProperties": False}
    return {
        "type": ["object", "null"],
        "description": "routing wishes in OpenRouter's form",
        "properties": {
            **dict.fromkeys(("order", "only", "ignore"), names),
            "sort": {"enum": [*routing_parameters.PROVIDER_SORTS, None]},
            "max_price": or_null(max_price),
            "allow_fallbacks": NULL_OR_BOOLEAN,
        },
        "additionalProperties": {"type": "null"},
    }


def sampling(settings: Settings) -> Schema:
    """What every request for text may say."""
    tokens = ranged("integer", 1, TOKENS_MAX)
    default = settings.inference.default_max_tokens
    stops = {"type": "array", "items": STRING, "maxItems": parameters.STOPS_MAX}
    bias = {"type": "number", "minimum": -parameters.LOGIT_BIAS_MAX, "maximum": parameters.LOGIT_BIAS_MAX}
    return some(
        stream={**NULL_OR_BOOLEAN, "default": settings.inference.stream_default},
        stream_options=described(or_null(some(include_usage=BOOLEAN)), "only where stream is true"),
        max_tokens=described(tokens, f"output limit; without one, {default} or the model's own if that is lower"),
        max_completion_tokens=described(tokens, "the same, and goes before max_tokens"),
        temperature=ranged("number", 0, 2),
        top_p={"anyOf": [ranged("number", 0, 1), {"const": -1}], "description": "-1 leaves it out"},
        n=described(ranged("integer", 1, parameters.CHOICES_MAX), "choices; each is charged"),
        stop={"anyOf": [NULL_OR_STRING, stops]},
        presence_penalty=ranged("number", -2, 2),
        frequency_penalty=ranged("number", -2, 2),
        logit_bias={"type": ["object", "null"], "additionalProperties": bias},
        user=NULL_OR_STRING,
        seed=ranged("integer", -(2**63), 2**63 - 1),
    )


def _search() -> Schema:
    place = some(country=NULL_OR_STRING, **dict.fromkeys(search_parameters.PLACES_IGNORED, NULL_OR_STRING))
    location = some(type={"const": "approximate"}, approximate=or_null({**place, "additionalProperties": False}))
    options = some(
        search_context_size={"enum": [*search_parameters.CONTEXT_SIZES, None]},
        user_location=or_null({**location, "additionalProperties": False}),
        safesearch={"enum": [*search_parameters.SAFE_SEARCHES, None]},
        accept_language=NULL_OR_STRING,
    )
    return some(
        web_search=described(NULL_OR_BOOLEAN, "whether the model may search the web; each search is charged"),
        web_search_options=or_null({**options, "additionalProperties": False}),
    )


def _chat() -> Schema:
    known: Schema = {**{name: {} for name in chat.TOOL_MEMBERS}, "type": {"enum": list(chat.TOOL_TYPES)}}
    function = {**some(**known), "additionalProperties": False}
    return some(
        tools={"type": ["array", "null"], "items": function, "maxItems": chat.TOOLS_MAX},
        tool_choice={"anyOf": [{"enum": [*chat.TOOL_CHOICES, None]}, OBJECT]},
        parallel_tool_calls=NULL_OR_BOOLEAN,
        response_format={"type": ["object", "null"]},
        logprobs=NULL_OR_BOOLEAN,
        top_logprobs=ranged("integer", 0, 20),
        reasoning_effort={"enum": [*chat.EFFORTS, None]},
        modalities={"type": ["array", "null"]},
    )


def messages(settings: Settings) -> Schema:
    """A conversation."""
    remote = bool(settings.inference.media_hosts)
    url = {
        "type": "string",
        "pattern": "^(data:image/|https://)" if remote else "^data:image/",
        "description": "a data:image/... URL" + (", or one of a host that the operator listed" if remote else ""),
    }
    parts = [
        *(_part(kind, **{kind: STRING}) for kind in chat.TEXT_PARTS),
        _part("image_url", image_url={"anyOf": [url, members(url=url)]}),
        _part("input_audio", input_audio=members(data={"type": "string", "pattern": "^(data:|[^:]*$)"})),
    ]
    content = {"anyOf": [NULL_OR_STRING, list_of({"anyOf": parts})]}
    message = {**some(role={"enum": list(chat.ROLES)}, content=content), "required": ["role"]}
    return {"type": "array", "minItems": 1, "maxItems": chat.MESSAGES_MAX, "items": message}


def _part(kind: str, **more: Schema) -> Schema:
    return members(type={"const": kind}, **more)


def sharing(request: Schema, *names: str) -> Schema:
    """A body that also has the members of these components."""
    return {"allOf": [ref(name) for name in names], **request}


def chat_request(settings: Settings, *, models: list[str]) -> Schema:
    """The body of a chat completion; ``models`` are examples of ids."""
    required = {"model": {**MODEL, "examples": models}, "messages": messages(settings)}
    optional = {**_chat()["properties"], **not_offered(parameters.REFUSED)}
    request = body(required, optional, f"OpenAI's chat completion. {SENT_ON}")
    return sharing(request, "Routing", "Sampling", "WebSearch", "NotOffered")


def completion_request() -> Schema:
    """The body of a plain completion."""
    several = {
        "type": "array",
        "items": {"anyOf": [STRING, TOKEN_IDS]},
        "minItems": 1,
        "maxItems": completion.PROMPTS_MAX,
    }
    prompt = described(
        {"anyOf": [STRING, several, TOKEN_IDS]}, "tokens are taken where the model declares its tokenizer"
    )
    optional = {
        "suffix": NULL_OR_STRING,
        "logprobs": ranged("integer", 0, completion.LOGPROBS_MAX),
        "best_of": described(ranged("integer", 1, parameters.CHOICES_MAX), "1, or as many as n"),
        "echo": {"enum": [False, None]},
        **not_offered(completion.NOT_OFFERED),
    }
    request = body({"model": MODEL, "prompt": prompt}, optional, f"OpenAI's completion. {SENT_ON}")
    return sharing(request, "Routing", "Sampling", "NotOffered")


def simple_chat_request() -> Schema:
    """A chat on the simple surface."""
    members_ = {
        "n": {"enum": [1, None]},
        "stream": {**NULL_OR_BOOLEAN, "default": False},
    }
    return {
        "allOf": [ref("ChatRequest")],
        "description": "The same members as /v1/chat/completions, for one message. Calls may lack their type.",
        "properties": members_,
    }


def simple_text_request() -> Schema:
    """Text from one prompt on the simple surface."""
    optional = {
        "n": {"enum": [1, None]},
        "stream": {**NULL_OR_BOOLEAN, "default": False},
        **{name: {"type": "null"} for name in simple_generate.NOT_TEXT},
    }
    required = {"model": MODEL, "prompt": STRING}
    request = body(required, optional, f"A prompt, and the members of a chat but its messages and tools. {SENT_ON}")
    return sharing(request, "Routing", "Sampling")


def shared(settings: Settings) -> dict[str, Schema]:
    """The components that bodies share."""
    return {
        "Routing": described(routing(), "who serves a request; never sent to a provider"),
        "Sampling": sampling(settings),
        "WebSearch": _search(),
        "NotOffered": described(
            some(**{name: {"enum": list(values)} for name, values in _NOWHERE.items()}),
            "not sold: values that ask for nothing",
        ),
    }
