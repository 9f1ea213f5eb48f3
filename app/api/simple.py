"""The simple surface (``/ai/*``): its bodies, its error object, and what its answers share.

A body becomes OpenAI's body and goes through the same parser as on ``/v1``, so that nothing is checked, priced
or held in a second way; only the answer is said otherwise. What the payer signed stays the body as it came.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import msgspec
import orjson

from app.api.incoming import Incoming
from app.api.parameters import unsupported
from app.errors import FareboxError, RateLimited
from app.metering import shown_usage
from app.shapes import OPENAI, Shape, Told

PREFIX = "/ai/"
JSON = "application/json"
ID_PREFIX = "req_"
NULL = msgspec.Raw(b"null")


class SimpleShape(Shape):
    """What every answer below ``/ai/`` has in common: how an error is said."""

    def error(self, error: FareboxError) -> dict[str, Any]:
        """The object under ``error``."""
        return simple_error(error)


SIMPLE = SimpleShape()


def shape_of(path: str) -> Shape:
    """How errors are said on a path, whether anything is there or not."""
    return SIMPLE if path.startswith(PREFIX) or path == PREFIX.rstrip("/") else OPENAI


def simple_error(error: FareboxError) -> dict[str, Any]:
    """``code``, ``message``, ``retry_after`` (seconds, or null where nobody knows) and ``status``, then details.

    Every limit of requests or tokens has one code here; which of them it is stands in the message.
    """
    known = RateLimited.default_code if isinstance(error, RateLimited) else error.code
    said = {
        "code": known or error.type,
        "message": error.message,
        "retry_after": error.retry_after_s,
        "status": error.status,
    }
    return said | {name: value for name, value in error.details.items() if name not in said}


@dataclass(frozen=True, slots=True)
class Read(Incoming):
    """A request whose body is read already, and may stand for another; ``content`` is still as it came."""

    body: dict[str, Any] = field(default_factory=dict)

    def object(self) -> dict[str, Any]:
        """The body."""
        return self.body

    @classmethod
    def of(cls, incoming: Incoming, body: dict[str, Any]) -> "Read":
        """The request with this body."""
        return cls(**{each.name: getattr(incoming, each.name) for each in fields(Incoming)}, body=body)


def streams_when_asked(body: dict[str, Any]) -> None:
    """Here a whole answer is the default, whatever ``/v1`` does."""
    if body.get("stream") is None:
        body["stream"] = False


def refuse_choices(body: Mapping[str, Any]) -> None:
    """An answer has one message: further choices would be paid for and never shown. Raises `InvalidRequest`."""
    choices = body.get("n")
    if choices is not None and (isinstance(choices, bool) or choices != 1):
        raise unsupported("n", "answers have one message here; /v1/chat/completions has more")


def answer_id(prefix: str, request_id: str) -> str:
    """``chat_...`` of ``req_...``: the answer's id names the request that /v1/generations shows."""
    return f"{prefix}_{request_id.removeprefix(ID_PREFIX)}"


def first_choice(body: Mapping[str, Any]) -> dict[str, Any]:
    """The one choice of an answer or a chunk; empty where a provider sent none, or no object."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return choice if isinstance(choice, dict) else {}


def member(body: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object's member that is an object; empty where it is none."""
    value = body.get(name)
    return value if isinstance(value, dict) else {}


def ending(choice: Mapping[str, Any]) -> dict[str, Any]:
    """What stands beside a message or a delta: how it ended, and log probabilities where they were asked for."""
    found = {name: choice.get(name) for name in ("finish_reason", "logprobs")}
    return {name: value for name, value in found.items() if value is not None}


def json_answer(said: dict[str, Any], told: Told) -> tuple[str, bytes]:
    """A whole answer: the page's members first, then where it was made."""
    return JSON, orjson.dumps(said | ({"backend": told.backend} if told.backend else {}))


def usage_of(told: Told) -> dict[str, Any]:
    """Tokens, details and what was charged."""
    return shown_usage(told.usage, told.cost)


class _Chunk(msgspec.Struct):
    choices: Any = None
    # As it is written: an exact decimal stays one.
    usage: msgspec.Raw = NULL


_decode = msgspec.json.Decoder(_Chunk).decode


class DeltaShape(SimpleShape):
    """A surface whose streams are ``{"delta": {...}}``; a subclass says what a delta has."""

    rewrites_chunks = True

    def chunk(self, data: bytes) -> bytes | None:
        """One event; None where it would say nothing, as the first does that only names the role.

        A chunk's usage is ours and stands in the last event: the provider's was taken out before. What no chunk
        looks like is left out, for a client of this surface could not read it.
        """
        try:
            chunk = _decode(data)
            choice = first_choice({"choices": chunk.choices})
            said: dict[str, Any] = {"delta": self.delta(choice), **ending(choice)}
            if bytes(chunk.usage).startswith(b"{"):
                said["usage"] = chunk.usage
            return msgspec.json.encode(said) if said["delta"] or len(said) > 1 else None
        except (msgspec.DecodeError, RecursionError):
            return None

    def delta(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """What one chunk adds; empty where it adds nothing."""
        raise NotImplementedError
