"""The paid operations of the OpenAPI document: what each takes and answers, and what a wallet is offered for it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from app.api import discovery_examples as examples
from app.api.discovery_parts import (
    EVENTS,
    JSON,
    OTHER,
    STRING,
    Operation,
    Schema,
    json_of,
    ref,
    refusals,
    simple_refusals,
)
from app.api.discovery_prices import Models, able, billed_by, price_lines, within
from app.api.simple import PREFIX
from app.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, IMAGES, RERANK, SPEECH, TRANSCRIPTIONS, Endpoint
from app.settings import ChannelSettings, Settings

FORM = "multipart/form-data"
_ONCE = "A whole answer by one transfer of the most that it can cost"
_BINARY: Schema = {"type": "string", "format": "binary"}
_EVENTS: Mapping[str, str] = {
    "/v1/chat/completions": examples.CHAT_EVENTS,
    "/v1/completions": examples.TEXT_EVENTS,
    "/ai/chat": examples.SIMPLE_CHAT_EVENTS,
    "/ai/generate": examples.SIMPLE_TEXT_EVENTS,
}


@dataclass(frozen=True, slots=True)
class Sold:
    """One paid path: ``request`` and ``answer`` are components, ``answered`` an example.

    ``also`` serves the models that ``endpoint`` does not.
    """

    path: str
    endpoint: Endpoint
    summary: str
    request: str
    answer: str | None = None
    answered: Any = None
    also: Endpoint | None = None

    def served(self, models: Models, *, rail: str | None = None) -> Models:
        """The models that can be asked for here."""
        others = able(models, self.also, rail=rail) if self.also is not None else {}
        # What stands here twice is the endpoint's own.
        return {**(found := able(models, self.endpoint, rail=rail)), **others, **found}

    @property
    def simple(self) -> bool:
        """Whether errors are the simple surface's."""
        return self.path.startswith(PREFIX)

    @property
    def form(self) -> bool:
        """Whether the body is a form."""
        return self.endpoint is TRANSCRIPTIONS


_RERANK = (RERANK, "Rank documents by how well they answer a query", "RerankRequest", "Rerank", examples.RERANK_ANSWER)
SOLD = (
    Sold(
        "/v1/chat/completions",
        CHAT,
        "Chat completion, whole or as a stream",
        "ChatRequest",
        "ChatCompletion",
        examples.CHAT_ANSWER,
    ),
    Sold(
        "/v1/completions",
        COMPLETIONS,
        "Completion of a prompt, whole or as a stream",
        "CompletionRequest",
        "Completion",
        examples.TEXT_ANSWER,
    ),
    Sold(
        "/v1/embeddings",
        EMBEDDINGS,
        "Vectors for texts",
        "EmbeddingRequest",
        "Embeddings",
        examples.EMBEDDINGS_ANSWER,
    ),
    Sold("/v1/rerank", *_RERANK),
    Sold("/v2/rerank", *_RERANK[:-1]),
    Sold(
        "/v1/audio/transcriptions",
        TRANSCRIPTIONS,
        "Text of speech",
        "TranscriptionRequest",
        "Transcription",
        examples.TRANSCRIPTION_ANSWER,
    ),
    Sold("/v1/audio/speech", SPEECH, "Speech of a text: bytes as they are made", "SpeechRequest"),
    Sold("/v1/images/generations", IMAGES, "Images of a prompt", "ImageRequest", "Images", examples.IMAGES_ANSWER),
    Sold(
        "/ai/chat",
        CHAT,
        "Chat in the simple shape, whole or as a stream of deltas",
        "SimpleChatRequest",
        "SimpleChat",
        examples.SIMPLE_CHAT_ANSWER,
    ),
    Sold(
        "/ai/generate",
        CHAT,
        "Text from a prompt in the simple shape, whole or as a stream of deltas",
        "SimpleTextRequest",
        "SimpleText",
        examples.SIMPLE_TEXT_ANSWER,
        also=COMPLETIONS,
    ),
    Sold(
        "/ai/embeddings",
        EMBEDDINGS,
        "A vector for a text, or vectors for texts, in the simple shape",
        "EmbeddingRequest",
        "SimpleEmbeddings",
        examples.SIMPLE_EMBEDDINGS_ANSWER,
    ),
)
# Cohere's SDK appends its version to a base URL that has one already.
ALIASES: Mapping[str, str] = {"/v1/v1/rerank": "/v1/rerank", "/v1/v2/rerank": "/v2/rerank"}
HEADERS = ("x-request-id", "x-farebox-provider", "x-farebox-cost", "id", "backend")
LIMIT = "x-farebox-max-tokens"
RECEIPT = "Payment-Receipt"
IDEMPOTENCY: Schema = {
    "name": "Idempotency-Key",
    "in": "header",
    "schema": STRING,
    "description": "the same key and body get the same answer again, and nothing is charged",
}


def paid(settings: Settings, models: Models, *, prices_max: int) -> dict[str, dict[str, Operation]]:
    """Every paid path; ``prices_max`` bounds the characters of each one's price list."""
    return {sold.path: {"post": _operation(sold, settings, models, prices_max=prices_max)} for sold in SOLD}


def _operation(sold: Sold, settings: Settings, models: Models, *, prices_max: int) -> Operation:
    channels = settings.mpp.channels
    names = [*HEADERS, *([LIMIT] if sold.endpoint.output_tokens else []), *([RECEIPT] if channels else [])]
    operation: Operation = {
        "summary": sold.summary,
        "tags": ["simple" if sold.simple else "inference"],
        "parameters": [{"$ref": "#/components/parameters/Idempotency-Key"}],
        "requestBody": {"required": True, "content": _content(sold, channels, models)},
        "responses": {
            "200": {
                "description": "the answer" + ("; a stream where `stream` is true" if sold.path in _EVENTS else ""),
                "headers": {name: {"schema": {}} for name in names},
                "content": _answer(sold),
            },
            **(simple_refusals() if sold.simple else refusals(400, 401, 402, 404, 429, OTHER)),
        },
    }
    aliases = [alias for alias, path in ALIASES.items() if path == sold.path]
    if aliases:
        operation["description"] = f"Also at {', '.join(aliases)}, for an SDK that adds its version to a base URL."
    offers = _offers(sold, channels, models, prices_max=prices_max) if channels else []
    if offers:
        operation["x-payment-info"] = {"offers": offers}
    return operation


def _content(sold: Sold, channels: Sequence[ChannelSettings], models: Models) -> dict[str, Any]:
    """The body, with an example that is answered as it stands; without one where no model can do it."""
    content: dict[str, Any] = {"schema": ref(sold.request)}
    served = sold.served(models)
    if served:
        example = dict(
            examples.text(_first(served))
            if sold.path == "/ai/generate"
            else examples.MAKERS[sold.endpoint.name](_first(served))
        )
        if channels and sold.path in _EVENTS:
            # A whole answer is asked for by a second challenge where the first was short, which validators take
            # for a change of price; and escrows whose close pays whole vouchers sell nothing but streams.
            example["stream"] = True
        content["example"] = example
    return {FORM if sold.form else JSON: content}


def _first(served: Models) -> Any:
    return next(iter(served.values()))[0].model


def _answer(sold: Sold) -> dict[str, Any]:
    if sold.answer is None:
        return {"audio/*": {"schema": _BINARY}}
    content = json_of(ref(sold.answer), sold.answered)
    if sold.path in _EVENTS:
        content[EVENTS] = {"schema": STRING, "example": _EVENTS[sold.path]}
    if sold.form:
        content |= {"text/plain": {"schema": STRING}, "text/vtt": {"schema": STRING}}
    return content


def _offers(
    sold: Sold, channels: Sequence[ChannelSettings], models: Models, *, prices_max: int
) -> list[dict[str, Any]]:
    served = sold.served(models, rail="wallet")
    if not served:
        return []
    prices = within(
        price_lines(served, billed=billed_by(sold.endpoint)),
        prices_max,
        separator="; ",
        more="and {} more models in GET /v1/models",
    )
    unit = "USD per million tokens" if sold.endpoint.input_tokens else "USD"
    # Every kind of channel pays the same: prices are said once.
    said = [f". {unit}: {prices}", *[""] * (len(channels) - 1)]
    offers = [
        {
            "intent": "session",
            "method": method_of(channel),
            # What a request costs depends on its model and what it uses.
            "amount": None,
            "currency": channel.currency.lower(),
            "description": _channel_name(channel) + words,
        }
        for channel, words in zip(channels, said, strict=True)
    ]
    token = charged_token(channels)
    return offers if token is None else [*offers, charge(token, _ONCE)]


def method_of(channel: ChannelSettings) -> str:
    """The payment method's registered name."""
    return "evm" if channel.backend == "evm" else "tempo"


def _channel_name(channel: ChannelSettings) -> str:
    kinds = {"tempo-v2": "Session channel v2", "tempo-v1": "Session channel v1", "evm": "Payment channel"}
    streams = ", streams only" if channel.foreign_escrow else ""
    return f"{kinds[channel.backend]} on chain {channel.chain_id}{streams}"


def charged_token(channels: Sequence[ChannelSettings]) -> str | None:
    """The token of one-shot payments, which are made on the first Tempo chain; None where there is none."""
    return next((channel.currency.lower() for channel in channels if method_of(channel) == "tempo"), None)


def charge(token: str, description: str) -> dict[str, Any]:
    """The offer of a one-shot payment."""
    return {"intent": "charge", "method": "tempo", "amount": None, "currency": token, "description": description}
