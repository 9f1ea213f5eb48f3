"""What the OpenAPI document is built of: small schemas, and the pieces that operations share.

Errors, headers and parameters that many operations have stand once under ``components`` and are referred to:
registries read no more than 64 KiB of a document.
"""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

Schema = dict[str, Any]
Operation = dict[str, Any]

USD: Schema = {"type": "string", "description": "exact USD decimal"}
MOMENT: Schema = {"type": "string", "format": "date-time"}
COUNT: Schema = {"type": "integer", "minimum": 0}
NUMBER: Schema = {"type": "number"}
STRING: Schema = {"type": "string"}
BOOLEAN: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
CHANNEL_ID: Schema = {"type": "string", "pattern": "^0x[0-9a-fA-F]{64}$"}

JSON = "application/json"
PROBLEM_JSON = "application/problem+json"
EVENTS = "text/event-stream"
KEYS: list[dict[str, list[str]]] = [{"bearer": []}, {"api_key": []}]
PUBLIC: list[dict[str, list[str]]] = [{}, *KEYS]
PAYMENT: dict[str, list[str]] = {"payment": []}

REFUSALS: Mapping[int, str] = {
    400: "a parameter is wrong, and named",
    401: "the key is missing, unknown, revoked or expired",
    402: "an API key's balance or spend limit cannot hold what the request may cost: `error.required`, "
    "`error.available`, and how many tokens that buys",
    404: "there is no such thing, or this key may not see it",
    429: "the key's requests or tokens per minute are used up",
}
OTHERS = (
    "403: this key may not use this model. 408: the request came too slowly. 409: the Idempotency-Key is in use, or "
    "was used for another body. 413: the body is too large. 415: it is of another type. 422: the provider cannot "
    "process it. 502: the providers failed; `error.attempts` says how often. 503: no provider can be tried, or this "
    "process takes no more"
)
OTHER = "default"
SIMPLE = "simple"
UNPAID = "without a payment, `WWW-Authenticate` has a Payment challenge for each offer that the request can be paid by"
GONE = ". 410: the payment channel is closed, or nobody knows it"
# Statuses that a wallet's credential can lead to, beside 410.
OF_PAYMENTS = (400, 402, 429)


def or_null(schema: Schema) -> Schema:
    """The same, or null."""
    return {**schema, "type": [schema["type"], "null"]}


def described(schema: Schema, description: str) -> Schema:
    """The same with words."""
    return {**schema, "description": description}


def ranged(kind: str, least: float, most: float) -> Schema:
    """A number within bounds, or null for what is left out."""
    return {"type": [kind, "null"], "minimum": least, "maximum": most}


def list_of(items: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": items}


def some(**properties: Schema) -> Schema:
    """An object whose members may be left out."""
    return {"type": "object", "properties": properties}


def members(**properties: Schema) -> Schema:
    """An object whose members are all there."""
    return {**some(**properties), "required": list(properties)}


def open_members(required: Schema, optional: Schema | None = None) -> Schema:
    """An object with these members, and with whatever else a provider says."""
    return {**members(**required), "properties": {**required, **(optional or {})}, "additionalProperties": True}


def ref(name: str) -> Schema:
    """A schema by its name."""
    return {"$ref": f"#/components/schemas/{name}"}


def json_of(schema: Schema, example: Any = None) -> dict[str, Any]:
    """Content of JSON, with an example where there is one."""
    return {JSON: {"schema": schema} if example is None else {"schema": schema, "example": example}}


def refusals(*statuses: int | str) -> dict[str, Any]:
    """Responses by status."""
    return {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}


def simple_refusals() -> dict[str, Any]:
    """The same on the simple surface, whose errors all look alike."""
    return {status: {"$ref": f"#/components/responses/{SIMPLE}"} for status in ("402", OTHER)}


def refusal_components(*, wallets: bool) -> dict[str, Any]:
    """What `refusals` refers to."""
    problem = {PROBLEM_JSON: {"schema": ref("PaymentProblem")}} if wallets else {}
    plain, both = json_of(ref("Error")), json_of(ref("Error")) | problem
    simple = {"description": "the same statuses as below `/v1`", "content": json_of(ref("SimpleError")) | problem}
    others = OTHERS + (GONE if wallets else "")
    found: dict[str, Any] = {OTHER: {"description": others, "content": both}, SIMPLE: simple}
    for status, description in REFUSALS.items():
        response: dict[str, Any] = {"description": description, "content": both if status in OF_PAYMENTS else plain}
        if wallets and status == HTTPStatus.PAYMENT_REQUIRED:
            response["description"] = f"Payment required: {UNPAID}. Otherwise {description}"
            response["headers"] = {"WWW-Authenticate": {"schema": STRING, "description": UNPAID}}
        if status == HTTPStatus.TOO_MANY_REQUESTS:
            response["headers"] = {"Retry-After": {"schema": COUNT, "description": "seconds"}}
        found[str(status)] = response
    return found


def read(
    summary: str,
    schema: Schema,
    *statuses: int | str,
    tag: str,
    example: Any = None,
    security: Sequence[Mapping[str, Any]] | None = None,
    parameters: Sequence[Schema] = (),
) -> dict[str, Operation]:
    """A path that is read: its ``get``. Without ``security`` it takes what the document as a whole says: a key."""
    operation: Operation = {
        "summary": summary,
        "tags": [tag],
        "responses": {
            "200": {"description": "as asked", "content": json_of(schema, example)},
            **refusals(*statuses),
        },
    }
    if security is not None:
        operation["security"] = list(security)
    if parameters:
        operation["parameters"] = list(parameters)
    return {"get": operation}


def in_path(name: str, schema: Schema, example: str) -> Schema:
    """A part of the path."""
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


def in_query(name: str, schema: Schema, description: str) -> Schema:
    """A member of the query."""
    return {"name": name, "in": "query", "schema": schema, "description": description}
