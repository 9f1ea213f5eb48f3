"""The OpenAPI document as tests look at it: its operations, its schemas, and what a validator of the draft requires."""

import copy
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs

# "JSON Schema for x-payment-info" and "for x-service-info", draft-payment-discovery-00.
OFFER = {
    "type": "object",
    "required": ["intent", "method", "amount"],
    "properties": {
        "intent": {"type": "string", "enum": ["charge", "session"]},
        "method": {"type": "string"},
        "amount": {"oneOf": [{"type": "null"}, {"type": "string", "pattern": "^(0|[1-9][0-9]*)$"}]},
        "currency": {"type": "string"},
        "description": {"type": "string"},
    },
    "additionalProperties": False,
}
PAYMENT_INFO = {
    "type": "object",
    "required": ["offers"],
    "properties": {"offers": {"type": "array", "minItems": 1, "items": OFFER}},
    "additionalProperties": False,
}
URI = {"type": "string", "format": "uri"}
SERVICE_INFO = {
    "type": "object",
    "properties": {
        "categories": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        "docs": {"type": "object", "properties": {"apiReference": URI, "homepage": URI, "llms": URI}},
    },
}


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def resolved(document: dict[str, Any], name: str) -> dict[str, Any]:
    """A schema that can be used by itself, and that takes no member it does not describe."""
    schemas = copy.deepcopy(document["components"]["schemas"])
    # What another is put together of is judged with the whole.
    parts = [schemas[each["$ref"].rsplit("/", 1)[1]] for each in schemas[name].get("allOf", ())]
    for each in walk(schemas):
        if "required" in each and "properties" in each and each not in parts:
            each.setdefault("unevaluatedProperties", each.get("additionalProperties", False))
    return {"$ref": f"#/components/schemas/{name}", "components": {"schemas": schemas}}


def response_of(document: dict[str, Any], response: dict[str, Any]) -> dict[str, Any]:
    """A response, where it stands in the operation or among the components."""
    name = response.get("$ref", "").removeprefix("#/components/responses/")
    found: dict[str, Any] = document["components"]["responses"][name] if name else response
    return found


def walk(value: Any) -> Iterator[dict[str, Any]]:
    for each in value.values() if isinstance(value, dict) else value:
        if isinstance(each, dict):
            yield each
        if isinstance(each, dict | list):
            yield from walk(each)


def template(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path)


def findings(document: dict[str, Any]) -> list[str]:
    """What is wrong with a document, by the draft and by what `mppx validate` requires."""
    found = [name for name in ("title", "version") if not isinstance(document["info"].get(name), str)]
    if not jsonschema_rs.is_valid(SERVICE_INFO, document["x-service-info"], validate_formats=True):
        found.append("x-service-info")
    for path, method, operation in operations(document):
        where = f"{method} {path}"
        info = operation.get("x-payment-info")
        if info is None:
            continue
        if not jsonschema_rs.is_valid(PAYMENT_INFO, info):
            found.append(f"{where}: x-payment-info")
        if "402" not in operation["responses"]:
            found.append(f"{where}: no 402")
        content = operation.get("requestBody", {}).get("content", {})
        if not any("example" in each for each in content.values()):
            found.append(f"{where}: nothing to post")
    return found
