"""The OpenAPI 3.1 document: what this process serves, and what a wallet is offered for it.

Source of ``x-service-info`` and ``x-payment-info``: `draft-payment-discovery-00`. The document is advice: a
402 at run time is what counts. The operator's own paths (``/admin/api``, ``/metrics``) are left out: nobody
who needs this document has their token.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from app import __version__
from app.api.discovery_prices import Models, price_lines, within
from app.api.discovery_schemas import CHANNEL_ID, USD, Schema, components
from app.reconcile.usage_store import ROWS_PER_PAGE, ROWS_PER_PAGE_MAX
from app.settings import ChannelSettings, Settings

# Registries read no more than 64 KiB of a document; this is what the price lists of all offers may take of it.
PRICES_CHARACTERS_MAX = 24_000
MODELS_SHOWN = 5
EXAMPLE_TOKENS_MAX = 16
CATEGORIES = ("compute", "ai")

Operation = dict[str, Any]

KEYS: list[dict[str, list[str]]] = [{"bearer": []}, {"api_key": []}]
_REFUSALS = {
    400: "a parameter is wrong; `error.param` names it",
    401: "the key is missing, unknown, revoked or expired",
    402: "an API key's balance or spend limit cannot hold what the request may cost: `error.required`, "
    "`error.available`, and how many tokens that buys",
    404: "there is no such thing, or this key may not see it",
    408: "the request came too slowly",
    409: "the Idempotency-Key is in use, or was used for another body",
    413: "the body is too large",
    415: "the body is not JSON",
    422: "the provider cannot process it",
    429: "the key's requests or tokens per minute are used up",
    502: "the providers failed; `error.attempts` says how often",
    503: "no provider can be tried, or this process takes no more",
}
_MANAGED = "With a Payment credential and no body, this path manages the channel: `voucher`, `topUp` and `close`."
_UNPAID = "without a payment, `WWW-Authenticate` has a Payment challenge for each offer that the request can be paid by"
_ONCE = (
    "A whole answer by one transfer of the most that it can cost; what it does not use stays on the wallet's account. "
    "Prices as in sessions"
)


def method_of(channel: ChannelSettings) -> str:
    """The payment method's registered name."""
    return "evm" if channel.backend == "evm" else "tempo"


def build(settings: Settings, models: Models) -> dict[str, Any]:
    """The whole document."""
    wallets = bool(settings.mpp.channels)
    ids = list(models)[:MODELS_SHOWN]
    base_url = (settings.server.public_url or "/").rstrip("/") or "/"
    paths = {**_inference(settings, models), **_catalog(), **_account(), **_status()}
    if wallets:
        paths |= _wallets(settings)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Farebox", "version": __version__, "description": _about(wallets=wallets)},
        "servers": [{"url": base_url}],
        "x-service-info": _service_info(settings.server.public_url),
        "tags": [{"name": name} for name in ("inference", "catalog", "account", "status")],
        "paths": paths,
        "components": {
            "schemas": components(settings, models=ids, wallets=wallets),
            "securitySchemes": _security_schemes(wallets=wallets),
        },
    }


def _about(*, wallets: bool) -> str:
    how = "by API key from a prepaid balance" + (", or from a wallet through a payment channel" if wallets else "")
    return f"An LLM inference proxy that sells tokens: OpenAI's API, paid {how}."


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


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _get(
    summary: str,
    schema: Schema,
    *refusals: int,
    tag: str,
    security: Sequence[Mapping[str, Any]] = KEYS,
    parameters: Sequence[Schema] = (),
) -> dict[str, Operation]:
    operation: Operation = {
        "summary": summary,
        "tags": [tag],
        "responses": {"200": {"description": "as asked", "content": _json(schema)}, **_refusals(*refusals)},
        "security": list(security),
    }
    if parameters:
        operation["parameters"] = list(parameters)
    return {"get": operation}


def _refusals(*statuses: int) -> dict[str, Any]:
    return {str(status): {"description": _REFUSALS[status], "content": _json(_ref("Error"))} for status in statuses}


def _path(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema}


def _query(name: str, schema: Schema, description: str) -> Schema:
    return {"name": name, "in": "query", "schema": schema, "description": description}


def _payment_required() -> dict[str, Any]:
    return {
        "402": {
            "description": f"Payment required: {_UNPAID}. Otherwise {_REFUSALS[402]}",
            "headers": {"WWW-Authenticate": {"schema": {"type": "string"}, "description": _UNPAID}},
            "content": {**_json(_ref("Error")), "application/problem+json": {"schema": _ref("PaymentProblem")}},
        }
    }


def _inference(settings: Settings, models: Models) -> dict[str, Any]:
    channels = settings.mpp.channels
    body: dict[str, Any] = {"schema": _ref("ChatRequest")}
    example = _example(settings, models)
    if example is not None:
        body["example"] = example
    key = {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string"},
        "description": "the same key and body get the same answer again, and nothing is charged",
    }
    text = {"schema": {"type": "string"}}
    headers = {"x-request-id": text, "x-farebox-provider": text, "x-farebox-cost": text, "x-farebox-max-tokens": text}
    if channels:
        headers["Payment-Receipt"] = text
    operation: Operation = {
        "summary": "Chat completion, whole or as a stream",
        "tags": ["inference"],
        "security": [*KEYS, {"payment": []}] if channels else KEYS,
        "parameters": [key],
        "requestBody": {"required": True, "content": {"application/json": body}},
        "responses": {
            "200": {
                "description": "the answer; a stream where `stream` is true",
                "headers": headers,
                "content": {**_json(_ref("ChatCompletion")), "text/event-stream": text},
            },
            **_refusals(400, 401),
            **(_payment_required() if channels else _refusals(402)),
            **_refusals(404, 408, 409, 413, 415, 422, 429, 502, 503),
        },
    }
    if channels:
        responses = operation["responses"]
        responses["410"] = {"description": "the payment channel is closed, or nobody knows it", "content": {}}
        for status in ("400", "410", "429"):
            responses[status]["content"]["application/problem+json"] = {"schema": _ref("PaymentProblem")}
        operation["description"] = _MANAGED
        operation["x-payment-info"] = {"offers": _offers(channels, models)}
    return {"/v1/chat/completions": {"post": operation}}


def _example(settings: Settings, models: Models) -> dict[str, Any] | None:
    """A body that is answered as it stands; None where no model chats. It is posted by whoever checks the 402."""
    served = [candidates[0].model for candidates in models.values() if "chat" in candidates[0].model.capabilities]
    if not served:
        return None
    example: dict[str, Any] = {
        "model": served[0].id,
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": min(EXAMPLE_TOKENS_MAX, served[0].max_output_tokens),
    }
    channels = settings.mpp.channels
    if channels:
        # A whole answer is asked for by a second challenge where the first was short, which validators take for
        # a change of price; and escrows whose close pays whole vouchers sell nothing but streams.
        example["stream"] = True
    return example


def _offers(channels: Sequence[ChannelSettings], models: Models) -> list[dict[str, Any]]:
    prices = within(
        price_lines(models),
        PRICES_CHARACTERS_MAX // len(channels),
        separator="; ",
        more="and {} more models in GET /v1/models",
    )
    offers = [
        {
            "intent": "session",
            "method": method_of(channel),
            # What a request costs depends on its model and tokens.
            "amount": None,
            "currency": channel.currency.lower(),
            "description": f"{_channel_name(channel)}. USD per million tokens: {prices}",
        }
        for channel in channels
    ]
    token = charged_token(channels)
    return offers if token is None else [*offers, _charge(token, _ONCE)]


def _channel_name(channel: ChannelSettings) -> str:
    kinds = {"tempo-v2": "Session channel v2", "tempo-v1": "Session channel v1", "evm": "Payment channel"}
    streams = ", streams only" if channel.foreign_escrow else ""
    return f"{kinds[channel.backend]} on chain {channel.chain_id}{streams}"


def _catalog() -> dict[str, Any]:
    public = [{}, *KEYS]
    name = _path("id", {"type": "string", "description": "an id or alias; its slashes as they are or as %2F"})
    return {
        "/v1/models": _get(
            "Models and prices; with a key, what it may use", _ref("Models"), 401, tag="catalog", security=public
        ),
        "/v1/models/{id}": _get(
            "One model", _ref("Model"), 401, 404, tag="catalog", security=public, parameters=[name]
        ),
    }


def _account() -> dict[str, Any]:
    text, moment = {"type": "string"}, {"type": "string", "description": "an RFC 3339 moment or a UTC day"}
    query = [
        _query("from", moment, "from this moment on"),
        _query("to", moment, "before this moment, or to the end of this day"),
        _query("key_id", text, "of one key"),
        _query("group_by", {"enum": ["day", "model", "key"]}, "sums instead of rows"),
        _query(
            "format", {"enum": ["json", "csv"], "default": "json"}, "CSV has the next cursor in x-farebox-next-cursor"
        ),
        _query(
            "limit", {"type": "integer", "minimum": 1, "maximum": ROWS_PER_PAGE_MAX, "default": ROWS_PER_PAGE}, "rows"
        ),
        _query("cursor", text, "`next_cursor` of the page before"),
    ]
    usage = _get("What was used: rows, newest first, or sums", _ref("Usage"), 400, 401, tag="account", parameters=query)
    usage["get"]["responses"]["200"]["content"]["text/csv"] = {"schema": text}
    request = _path("request_id", {"type": "string", "description": "`x-request-id` of the answer"})
    return {
        "/v1/key": _get("This key: limits, usage, expiry", _ref("Key"), 401, tag="account"),
        "/v1/credits": _get("The balance", _ref("Balance"), 401, tag="account"),
        "/v1/balance": _get("The balance", _ref("Balance"), 401, tag="account"),
        "/v1/usage": usage,
        "/v1/generations/{request_id}": _get(
            "One request with its attempts", _ref("Generation"), 401, 404, tag="account", parameters=[request]
        ),
    }


def _status() -> dict[str, Any]:
    state = {"type": "object", "properties": {"status": {"type": "string"}}, "required": ["status"]}
    ready = _get("Whether it takes requests", state, tag="status", security=[])
    ready["get"]["responses"]["503"] = {"description": "not ready", "content": _json(state)}
    document = _get("This document", {"type": "object"}, tag="status", security=[])
    text = _get("The service in words, for language models", {}, tag="status", security=[])
    text["get"]["responses"]["200"]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "/healthz": _get("Whether the process runs", state, tag="status", security=[]),
        "/readyz": ready,
        "/openapi.json": document,
        "/llms.txt": text,
    }


def _wallets(settings: Settings) -> dict[str, Any]:
    """What there is only where channels are offered."""
    channel = _get(
        "A payment channel; to its payer, also what was accepted and spent",
        _ref("Channel"),
        400,
        404,
        tag="account",
        security=[{}, {"payment": []}],
        parameters=[_path("channelId", CHANNEL_ID)],
    )
    channel["get"]["responses"]["402"] = {
        "description": "the credential is not good",
        "content": {"application/problem+json": {"schema": _ref("PaymentProblem")}},
    }
    paths: dict[str, Any] = {"/v1/channels/{channelId}": channel}
    token = charged_token(settings.mpp.channels)
    if token is not None:
        paths["/v1/topups"] = {"post": _top_up(token)}
    return paths


def charged_token(channels: Sequence[ChannelSettings]) -> str | None:
    """The token of one-shot payments, which are made on the first Tempo chain; None where there is none."""
    return next((channel.currency.lower() for channel in channels if method_of(channel) == "tempo"), None)


def _charge(token: str, description: str) -> dict[str, Any]:
    return {"intent": "charge", "method": "tempo", "amount": None, "currency": token, "description": description}


def _top_up(token: str) -> Operation:
    body = {"type": "object", "properties": {"amount": USD}, "required": ["amount"]}
    return {
        "summary": "Add to a key's balance from a wallet",
        "description": "With the key, a 402 has the challenge; the same body with its credential is credited once.",
        "tags": ["account"],
        "security": [*KEYS, {"payment": []}],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": body, "example": {"amount": "5.00"}}},
        },
        "responses": {
            "200": {
                "description": "paid and credited",
                "headers": {"Payment-Receipt": {"schema": {"type": "string"}}},
                "content": _json(_ref("TopUp")),
            },
            **_refusals(400, 401),
            **_payment_required(),
            **_refusals(408, 413),
        },
        "x-payment-info": {"offers": [_charge(token, "The amount that the body asks for")]},
    }
