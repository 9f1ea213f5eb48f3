"""Request schemas of ``/openapi.json`` take what the parsers take, and refuse what the parsers refuse."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jsonschema_rs
import pytest

from app.admission import PaidRequest
from app.api import (
    chat_parameters,
    completion_parameters,
    embedding_parameters,
    image_parameters,
    parameters,
    rerank_parameters,
    simple_chat,
    simple_embeddings,
    simple_generate,
    speech_parameters,
    transcription_parameters,
)
from app.api.discovery_document import schemas
from app.api.incoming import Incoming
from app.errors import InvalidRequest, NotFound
from app.settings import Settings
from tests.api import test_chat_parameters, test_completion_parameters
from tests.api.paid_models import CATALOG, SETTINGS, incoming
from tests.api.test_chat_parameters import HELLO, IMAGE, user

COMPONENTS = {"schemas": schemas(SETTINGS, CATALOG.models, wallets=False)}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A body that is accepted, its parser, what the parser knows, and its schema."""

    schema: str
    path: str
    parse: Callable[[Incoming], PaidRequest]
    body: Mapping[str, Any]
    known: frozenset[str]

    def accepts(self, body: Mapping[str, Any]) -> bool:
        """Whether the parser takes it. A model that is not there is no matter of the body's form."""
        try:
            self.parse(incoming(self.path, copy.deepcopy(dict(body))))
        except NotFound:
            return True
        except InvalidRequest:
            return False
        return True

    def describes(self, body: Mapping[str, Any]) -> bool:
        """Whether the schema takes it."""
        return VALIDATORS[self.schema].is_valid(body)


def known(module: Any) -> frozenset[str]:
    refused = getattr(module, "NOT_OFFERED", None) or parameters.REFUSED
    return frozenset((*module.CHECKS, *refused))


CHAT = Endpoint(
    "ChatRequest",
    "/v1/chat/completions",
    chat_parameters.parse,
    {"model": "m", "messages": HELLO},
    known(chat_parameters) | {"messages"},
)
COMPLETION = Endpoint(
    "CompletionRequest",
    "/v1/completions",
    completion_parameters.parse,
    {"model": "completes", "prompt": "Hello"},
    known(completion_parameters),
)
EMBEDDING = Endpoint(
    "EmbeddingRequest",
    "/v1/embeddings",
    embedding_parameters.parse,
    {"model": "embeds", "input": "Hello"},
    known(embedding_parameters),
)
RERANK = Endpoint(
    "RerankRequest",
    "/v1/rerank",
    rerank_parameters.parse,
    {"model": "reranks", "query": "fare", "documents": ["a"]},
    known(rerank_parameters),
)
IMAGES = Endpoint(
    "ImageRequest",
    "/v1/images/generations",
    image_parameters.parse,
    {"model": "paints", "prompt": "a boat"},
    known(image_parameters),
)
SPEECH = Endpoint(
    "SpeechRequest",
    "/v1/audio/speech",
    speech_parameters.parse,
    {"model": "speaks", "input": "Hello", "voice": "alloy"},
    known(speech_parameters),
)
SIMPLE_CHAT = Endpoint("SimpleChatRequest", "/ai/chat", simple_chat.parse, CHAT.body, CHAT.known)
SIMPLE_TEXT = Endpoint(
    "SimpleTextRequest",
    "/ai/generate",
    simple_generate.parse,
    {"model": "completes", "prompt": "Hello"},
    frozenset(("n", "prompt", "stream", *simple_generate.NOT_TEXT)),
)
SIMPLE_EMBEDDING = Endpoint(
    "EmbeddingRequest", "/ai/embeddings", simple_embeddings.parse, EMBEDDING.body, EMBEDDING.known
)
ENDPOINTS = (CHAT, COMPLETION, EMBEDDING, RERANK, IMAGES, SPEECH, SIMPLE_CHAT, SIMPLE_TEXT, SIMPLE_EMBEDDING)
VALIDATORS = {
    name: jsonschema_rs.validator_for({"$ref": f"#/components/schemas/{name}", "components": COMPONENTS})
    for name in {each.schema for each in ENDPOINTS}
}

# Something of every kind, around every bound.
POOL: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 10, 11, 16, 17, 20, 21, 100, 101, 2048, 30_000, 30_001, 65_536, 65_537),
    *(1_000_000, 1_000_001, 100_000_001, 2**31 - 1, 2**31, 0.5, -0.5, 0.24, 4.01, 2.01, -2.01),
    *("", "a", "auto", "none", "flex", "cheapest", "low", "url", "mp3", "natural", "png", "float", "default"),
    *("audio", "standard", "transparent", "a" * 201, "a" * 4097),
    *([], ["a"], [1], [""], [[1]], [None], ["a"] * 5, ["a"] * 17, ["a"] * 65, [{"type": "function"}], [{"text": "a"}]),
    *({}, {"a": 1}, {"id": "v"}, {"id": 1}, {"include_usage": True}, {"include_usage": 1}, {"order": ["a"]}),
)
# What no schema of one member can say: it depends on another member, or on the model.
_PAIRED = ("stream_options", "max_input_price_per_million", "max_output_price_per_million", "best_of", "size")


def depends(endpoint: Endpoint, name: str, value: Any) -> bool:
    """Whether the parser looks at more than this member, or a schema would at less."""
    ids = isinstance(value, list) and bool(value) and (type(value[0]) is int or isinstance(value[0], list))
    of_model = endpoint is SPEECH and name == "input" and isinstance(value, str) and len(value) > len("a" * 20)
    # Of which fields the text is made, `rank_fields` says.
    fields = endpoint is RERANK and name == "documents"
    return name in _PAIRED or ids or of_model or fields


def grid() -> Iterator[Any]:
    for endpoint in ENDPOINTS:
        for name in sorted(endpoint.known):
            yield pytest.param(endpoint, name, id=f"{endpoint.path}-{name}")


@pytest.mark.parametrize(("endpoint", "name"), list(grid()))
def test_schema_and_parser_agree_on_every_value(endpoint: Endpoint, name: str) -> None:
    for value in POOL:
        body = {**endpoint.body, name: value}
        accepted = endpoint.accepts(body)
        # A schema that takes what depends on another member says so in words; it never refuses what is taken.
        if depends(endpoint, name, value) and not accepted:
            continue
        assert endpoint.describes(body) == accepted, value


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda endpoint: endpoint.path)
def test_schema_requires_what_the_parser_requires(endpoint: Endpoint) -> None:
    assert endpoint.accepts(endpoint.body)
    for name in endpoint.body:
        body = {each: value for each, value in endpoint.body.items() if each != name}
        assert endpoint.describes(body) == endpoint.accepts(body), name


def properties(name: str) -> set[str]:
    """Every member that a component lists, also by reference."""
    schema = COMPONENTS["schemas"][name]
    inherited = [each["$ref"].rsplit("/", 1)[1] for each in schema.get("allOf", ())]
    return set(schema.get("properties", ())).union(*map(properties, inherited))


@pytest.mark.parametrize("endpoint", [CHAT, COMPLETION, EMBEDDING, RERANK, IMAGES, SPEECH], ids=lambda each: each.path)
def test_schema_lists_every_parameter_that_is_known(endpoint: Endpoint) -> None:
    assert properties(endpoint.schema) == endpoint.known


def test_form_lists_every_field_that_is_sold() -> None:
    sold = set(transcription_parameters.CHECKS) - {"include[]"}
    assert sold | {transcription_parameters.FILE} == properties("TranscriptionRequest")


MORE: list[tuple[Endpoint, str, list[Any]]] = [
    (
        CHAT,
        "provider",
        [
            {"order": ["a"], "only": None, "ignore": [], "sort": "price", "allow_fallbacks": None, "unknown": None},
            {"max_price": {"prompt": 1, "completion": "0.5"}},
            {"unknown": 1},
            {"sort": "beauty"},
            {"order": "a"},
            {"only": [1]},
            {"ignore": ["a"] * 65},
            {"allow_fallbacks": 1},
            {"max_price": 1},
            {"max_price": {"total": 1}},
            {"max_price": {"prompt": True}},
        ],
    ),
    (
        CHAT,
        "messages",
        [
            *([{"role": role, "content": None}] for role in chat_parameters.ROLES),
            [{"role": "assistant", "tool_calls": []}],
            user({"type": "text", "text": "a"}, {"type": "refusal", "refusal": "b"}),
            user({"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "image_url", "image_url": IMAGE}),
            user({"type": "image_url", "image_url": "https://images.example/a.png"}),
            user({"type": "image_url", "image_url": "http://images.example/a.png"}),
            user({"type": "image_url", "image_url": {}}),
            user({"type": "input_audio", "input_audio": {"data": "AAAA"}}),
            user({"type": "input_audio", "input_audio": "AAAA"}),
            user({"type": "input_audio", "input_audio": {"data": "data:;base64,AAAA"}}),
            user({"type": "input_audio", "input_audio": {"data": "https://images.example/a.wav"}}),
            user({"type": "video", "video": "a"}),
            user("a"),
            user({"type": "text"}),
            user({"type": "text", "text": 1}),
            [1],
            [{"content": "a"}],
            [{"role": "robot", "content": "a"}],
            [{"role": "user", "content": 1}],
        ],
    ),
    (CHAT, "tools", [[1], [{"type": "web_search"}], [{"googleSearch": {}}], [{"function": {}, "strict": True}]]),
    (CHAT, "search_parameters", [{"mode": "off"}, {"mode": "on"}, {}, None]),
    (IMAGES, "width", [None, 1024]),
    (IMAGES, "n_predict", [None, 1]),
    (SPEECH, "text", [None, "a"]),
    (CHAT, "logit_bias", [{"a": 100}, {"a": 101}, {"a": "1"}]),
    (
        CHAT,
        "web_search_options",
        [
            {"search_context_size": "low", "safesearch": "off", "accept_language": "en"},
            {"user_location": {"type": "approximate", "approximate": {"country": "US", "city": None}}},
            {"search_context_size": "huge"},
            {"safesearch": "maybe"},
            {"user_location": "US"},
            {"user_location": {"approximate": {"street": "x"}}},
            {"user_location": {"type": "exact"}},
            {"unknown": 1},
        ],
    ),
    (SIMPLE_CHAT, "messages", [[{"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]}]]),
    (RERANK, "documents", [[{"text": "a"}], [1], [], "a"]),
    (SPEECH, "voice", [{"id": "v"}, {"id": "v", "more": 1}, {"id": ""}]),
]


@pytest.mark.parametrize(("endpoint", "name", "values"), MORE)
def test_schema_and_parser_agree_inside_objects(endpoint: Endpoint, name: str, values: list[Any]) -> None:
    for value in values:
        body = {**endpoint.body, name: value}
        assert endpoint.describes(body) == endpoint.accepts(body), value


@pytest.mark.parametrize(
    ("endpoint", "tables"), [(CHAT, test_chat_parameters), (COMPLETION, test_completion_parameters)]
)
def test_schema_takes_what_the_parsers_tests_take(endpoint: Endpoint, tables: Any) -> None:
    for name, values in tables.ACCEPTED.items():
        for value in values:
            body = {**endpoint.body, name: value}
            assert endpoint.describes(body), (name, value)


def test_remote_images_are_described_where_they_are_fetched() -> None:
    sent = {"model": "m", "messages": user({"type": "image_url", "image_url": "https://images.example/a.png"})}
    assert CHAT.describes(sent)
    elsewhere = {"schemas": schemas(Settings(), {}, wallets=False)}
    assert not jsonschema_rs.is_valid({"$ref": "#/components/schemas/ChatRequest", "components": elsewhere}, sent)
