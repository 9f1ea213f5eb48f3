"""Strict JSON from the network: no duplicate keys, NaN, infinities, absurd depth or absurd numbers.

What is forwarded is serialised from what was parsed here, so that a provider can never read a body
differently from the way it was priced.
"""

import json
from typing import Any

import orjson

from app.errors import InvalidRequest
from app.nesting import is_deep

INTEGER_DIGITS_MAX = 19
FLOAT_CHARACTERS_MAX = 64
INTEGER_MAX = 2**63 - 1
NAME_CHARACTERS_SHOWN = 100


def parse_object(content: bytes, *, depth_max: int) -> dict[str, Any]:
    """The JSON object in ``content``. Raises `InvalidRequest` saying what is wrong with it."""
    if not content.strip():
        raise InvalidRequest("the body is empty; send a JSON object", code="invalid_json")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not UTF-8 (byte {error.start})", code="invalid_json") from error
    if is_deep(content, depth_max=depth_max):
        raise InvalidRequest(f"the body is nested deeper than {depth_max} levels", code="invalid_json")
    try:
        if b"\\u" in content:
            # Refuses halves of surrogate pairs, which could neither be sent on nor named in an error.
            orjson.loads(content)
        body = _decoder.decode(text)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise InvalidRequest(f"the body is not JSON: {error.msg} at {where}", code="invalid_json") from error
    except (RecursionError, ValueError) as error:
        raise InvalidRequest("the body is not JSON that can be processed", code="invalid_json") from error
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object", code="invalid_json")
    return body


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                shown = name[:NAME_CHARACTERS_SHOWN]
                raise InvalidRequest(f"{shown!r} stands twice in one object", code="duplicate_key", param=shown)
            seen.add(name)
    return members


def _integer(text: str) -> int:
    if len(text) > INTEGER_DIGITS_MAX + 1 or abs(value := int(text)) > INTEGER_MAX:
        raise InvalidRequest("a number in the body is too large", code="number_too_large")
    return value


def _float(text: str) -> float:
    value = float(text) if len(text) <= FLOAT_CHARACTERS_MAX else float("inf")
    if value in (float("inf"), float("-inf")):
        raise InvalidRequest("a number in the body is too large", code="number_too_large")
    return value


def _constant(name: str) -> Any:
    raise InvalidRequest(f"{name} is not JSON", code="invalid_json")


_decoder = json.JSONDecoder(object_pairs_hook=_unique, parse_int=_integer, parse_float=_float, parse_constant=_constant)
