"""The OpenAPI 3.1 document: what this process serves, and what a wallet is offered for it.

Source of ``x-service-info`` and ``x-payment-info``: `draft-payment-discovery-00`. The document is advice: a
402 at run time is what counts. The operator's own paths (``/admin/api``, ``/metrics``) are left out: nobody
who needs this document has their token.
"""

from typing import Any

import orjson

from app import __version__
from app.api import discovery_answers as answers
from app.api import discovery_media_requests as media
from app.api import discovery_paid_answers as paid_answers
from app.api import discovery_requests as requests
from app.api.discovery_paid import IDEMPOTENCY, RECEIPT, SOLD, charge, charged_token, paid
from app.api.discovery_parts import (
    CHANNEL_ID,
    COUNT,
    KEYS,
    OBJECT,
    OTHER,
    PAYMENT,
    PROBLEM_JSON,
    PUBLIC,
    SIMPLE,
    STRING,
    USD,
    Operation,
    Schema,
    in_path,
    in_query,
    json_of,
    read,
    ref,
    refusal_components,
    refusals,
)
from app.api.discovery_prices import Models, able
from app.endpoints import CHAT
from app.reconcile.usage_store import ROWS_PER_PAGE, ROWS_PER_PAGE_MAX
from app.settings import Settings

# Registries read no more of a document.
BYTES_MAX = 64 * 1024
# For quotes and backslashes in the names of models, which JSON doubles.
MARGIN_BYTES = 512
MODELS_SHOWN = 2
CATEGORIES = ("compute", "ai")
ACCOUNT: dict[str, Any] = {"tag": "account", "security": KEYS}
TAGS = ("inference", "simple", "catalog", "account", "status")


def build(settings: Settings, models: Models) -> dict[str, Any]:
    """The whole document, with as much of the price lists as there is room for."""
    bare = _document(settings, models, prices_max=0)
    room = BYTES_MAX - len(orjson.dumps(bare)) - MARGIN_BYTES
    return _document(settings, models, prices_max=max(0, room) // len(SOLD))


def _document(settings: Settings, models: Models, *, prices_max: int) -> dict[str, Any]:
    wallets = bool(settings.mpp.channels)
    base_url = (settings.server.public_url or "/").rstrip("/") or "/"
    paths = {**paid(settings, models, prices_max=prices_max), **_catalog(models), **_account(), **_status()}
    if wallets:
        paths |= _wallets(settings)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Farebox", "version": __version__, "description": _about(wallets=wallets)},
        "servers": [{"url": base_url}],
        "x-service-info": _service_info(settings.server.public_url),
        "security": [*KEYS, PAYMENT] if wallets else KEYS,
        "tags": [{"name": name} for name in TAGS],
        "paths": paths,
        "components": {
            "schemas": schemas(settings, models, wallets=wallets),
            "responses": refusal_components(wallets=wallets),
            "parameters": {IDEMPOTENCY["name"]: IDEMPOTENCY},
            "securitySchemes": _security_schemes(wallets=wallets),
        },
    }


def schemas(settings: Settings, models: Models, *, wallets: bool) -> dict[str, Schema]:
    """Every schema by the name that operations refer to."""

    return {
        **requests.shared(settings),
        "ChatRequest": requests.chat_request(settings, models=list(able(models, CHAT))[:MODELS_SHOWN]),
        "CompletionRequest": requests.completion_request(),
        "EmbeddingRequest": media.embedding_request(),
        "RerankRequest": media.rerank_request(),
        "TranscriptionRequest": media.transcription_request(),
        "SpeechRequest": media.speech_request(),
        "ImageRequest": media.image_request(),
        "SimpleChatRequest": requests.simple_chat_request(),
        "SimpleTextRequest": requests.simple_text_request(),
        **paid_answers.COMPONENTS,
        "Error": answers.ERROR,
        "Prices": answers.PRICES,
        "Model": answers.MODEL,
        "Models": answers.MODELS,
        "Key": answers.KEY,
        "Balance": answers.BALANCE,
        "Request": answers.REQUEST,
        "Sum": answers.SUM,
        "Usage": answers.USAGE,
        "Generation": answers.GENERATION,
        **({"Channel": answers.CHANNEL, "TopUp": answers.TOP_UP, "PaymentProblem": answers.PROBLEM} if wallets else {}),
    }


def _about(*, wallets: bool) -> str:
    how = "by API key from a prepaid balance" + (", or from a wallet through a payment channel" if wallets else "")
    managed = (
        " With a Payment credential and no body, a paid path manages the channel: `voucher`, `topUp` and `close`."
        if wallets
        else ""
    )
    return f"OpenAI's API, Cohere's rerank, and a simple shape below `/ai`; paid {how}.{managed}"


def _service_info(public_url: str | None) -> dict[str, Any]:
    """The draft wants absolute URIs, so links are given where the operator said what the base URL is."""
    info: dict[str, Any] = {"categories": list(CATEGORIES)}
    if public_url is not None:
        base = public_url.rstrip("/")
        info["docs"] = {"apiReference": f"{base}/openapi.json", "llms": f"{base}/llms.txt"}
    return info


def _security_schemes(*, wallets: bool) -> dict[str, Any]:
    schemes: dict[str, Any] = {
        "bearer": {"type": "http", "scheme": "bearer", "description": "an API key"},
        "api_key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    if wallets:
        schemes["payment"] = {
            "type": "http",
            "scheme": "Payment",
            "description": "a credential for a challenge of a 402 (draft-httpauth-payment-00)",
        }
    return schemes


def _catalog(models: Models) -> dict[str, Any]:
    words = "an id or alias; its slashes as they are or as %2F"
    name = in_path("id", {"type": "string", "description": words}, next(iter(models), "a-model"))
    words = "Models in the simple shape; with a key, what it may use"
    simple = read(words, ref("SimpleModels"), tag="simple", security=PUBLIC)
    simple["get"]["responses"] |= {"401": {"$ref": f"#/components/responses/{SIMPLE}"}}
    return {
        "/v1/models": read(
            "Models and prices; with a key, what it may use", ref("Models"), 401, tag="catalog", security=PUBLIC
        ),
        "/v1/models/{id}": read("One model", ref("Model"), 401, 404, tag="catalog", security=PUBLIC, parameters=[name]),
        "/ai/models": simple,
    }


def _account() -> dict[str, Any]:
    moment = {"type": "string", "description": "an RFC 3339 moment or a UTC day"}
    limit = {**COUNT, "minimum": 1, "maximum": ROWS_PER_PAGE_MAX, "default": ROWS_PER_PAGE}
    query = [
        in_query("from", moment, "from this moment on"),
        in_query("to", moment, "before this moment, or to the end of this day"),
        in_query("key_id", STRING, "of one key"),
        in_query("group_by", {"enum": ["day", "model", "key"]}, "sums instead of rows"),
        in_query(
            "format", {"enum": ["json", "csv"], "default": "json"}, "CSV has the next cursor in x-farebox-next-cursor"
        ),
        in_query("limit", limit, "rows"),
        in_query("cursor", STRING, "`next_cursor` of the page before"),
    ]
    usage = read(
        "What was used: rows, newest first, or sums",
        ref("Usage"),
        400,
        401,
        tag="account",
        security=KEYS,
        parameters=query,
    )
    usage["get"]["responses"]["200"]["content"]["text/csv"] = {"schema": STRING}
    words = "`x-request-id` of the answer"
    request = in_path("request_id", {"type": "string", "description": words}, "req_01")
    balance = {"available": "4.999985", "held": "0.00", "spent": "0.000015", "credit_limit": "0.00", "currency": "USD"}
    return {
        "/v1/key": read("This key: limits, usage, expiry", ref("Key"), 401, **ACCOUNT),
        "/v1/credits": read("The balance", ref("Balance"), 401, **ACCOUNT, example=balance),
        "/v1/balance": read("The same", ref("Balance"), 401, **ACCOUNT),
        "/v1/usage": usage,
        "/v1/generations/{request_id}": read(
            "One request with its attempts",
            ref("Generation"),
            401,
            404,
            tag="account",
            security=KEYS,
            parameters=[request],
        ),
    }


def _status() -> dict[str, Any]:
    state = {"type": "object", "properties": {"status": STRING}, "required": ["status"]}
    ready = read("Whether it takes requests", state, tag="status", security=[], example={"status": "ready"})
    ready["get"]["responses"]["503"] = {"description": "not ready", "content": json_of(state)}
    text = read("The service in words, for language models", {}, tag="status", security=[])
    text["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": STRING}}
    return {
        "/healthz": read("Whether the process runs", state, tag="status", security=[], example={"status": "ok"}),
        "/readyz": ready,
        "/openapi.json": read("This document", OBJECT, tag="status", security=[]),
        "/llms.txt": text,
    }


def _wallets(settings: Settings) -> dict[str, Any]:
    """What there is only where channels are offered."""
    channel = read(
        "A payment channel; to its payer, also what was accepted and spent",
        ref("Channel"),
        400,
        404,
        tag="account",
        security=[{}, PAYMENT],
        parameters=[in_path("channelId", CHANNEL_ID, f"0x{'ab' * 32}")],
    )
    channel["get"]["responses"]["402"] = {
        "description": "the credential is not good",
        "content": {PROBLEM_JSON: {"schema": ref("PaymentProblem")}},
    }
    paths: dict[str, Any] = {"/v1/channels/{channelId}": channel}
    token = charged_token(settings.mpp.channels)
    if token is not None:
        paths["/v1/topups"] = {"post": _top_up(token)}
    return paths


def _top_up(token: str) -> Operation:
    body = {"type": "object", "properties": {"amount": USD}, "required": ["amount"]}
    return {
        "summary": "Add to a key's balance from a wallet",
        "description": "With the key, a 402 has the challenge; the same body with its credential is credited once.",
        "tags": ["account"],
        "requestBody": {"required": True, "content": json_of(body, {"amount": "5.00"})},
        "responses": {
            "200": {
                "description": "paid and credited",
                "headers": {RECEIPT: {"schema": STRING}},
                "content": json_of(ref("TopUp")),
            },
            **refusals(400, 401, 402, OTHER),
        },
        "x-payment-info": {"offers": [charge(token, "The amount that the body asks for")]},
    }
