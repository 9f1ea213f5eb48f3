"""The parameters of embeddings: one text or many, as text or (where the model says its tokenizer) as token ids."""

from collections.abc import Mapping, Sequence
from typing import Any

from app.admission import PaidRequest
from app.api.incoming import Incoming
from app.api.parameters import (
    REFUSED,
    SINGLE,
    STRING,
    Check,
    capable,
    check_all,
    default_model,
    integer,
    missing,
    one_of,
    refuse,
    token_ids,
    unknown_bytes,
)
from app.api.routing_parameters import ROUTING, first_byte_timeout_s, wishes
from app.api.shapes import EmbeddingsShape
from app.endpoints import EMBEDDINGS
from app.pricing.quote import PromptSize
from app.routing.candidates import Candidate

INPUTS_MAX = 2048
DIMENSIONS_MAX = 65_536


def _input(name: str, value: Any) -> None:
    if not isinstance(value, str | list) or not value:
        raise refuse(name, f"must be a string that is not empty, or a list of 1 to {INPUTS_MAX} of them")


CHECKS: Mapping[str, Check] = {
    **ROUTING,
    "model": STRING,
    "input": _input,
    "dimensions": integer(1, DIMENSIONS_MAX),
    "encoding_format": one_of("float", "base64"),
    "user": STRING,
}
NOT_OFFERED = {**REFUSED, **SINGLE}


def parse(incoming: Incoming) -> PaidRequest:
    """A validated request. Raises `InvalidRequest` naming the parameter, and `NotFound`."""
    body = incoming.object()
    check_all(body, CHECKS, NOT_OFFERED)
    if "input" not in body:
        raise missing("input", "say what to embed: a string, or a list of strings")
    model = (
        body.get("model") or incoming.settings.inference.default_embedding_model or default_model(incoming, EMBEDDINGS)
    )
    size = _size(body, capable(incoming, model, EMBEDDINGS))
    upstream = {name: value for name, value in body.items() if name not in ROUTING and name not in NOT_OFFERED}
    return PaidRequest(
        endpoint=EMBEDDINGS,
        path=incoming.path,
        model=model,
        body={**upstream, "model": model},
        content=incoming.content,
        stream=False,
        size=size,
        output_limit_param="input",
        wishes=wishes(body),
        first_byte_timeout_s=first_byte_timeout_s(body),
        idempotency_key=incoming.idempotency_key,
        shape=EmbeddingsShape(encoding=body.get("encoding_format", "float")),
    )


def _size(body: Mapping[str, Any], candidates: Sequence[Candidate]) -> PromptSize:
    """What all inputs come to; what stands beside them is part of each."""
    given = body["input"]
    # A list of numbers is one text, as its tokens.
    inputs = [given] if isinstance(given, str) or type(given[0]) is int else given
    if len(inputs) > INPUTS_MAX:
        raise refuse("input", f"must be at most {INPUTS_MAX} texts")
    text = ids = 0
    for index, each in enumerate(inputs):
        where = "input" if each is given else f"input[{index}]"
        if isinstance(each, str) and each:
            text += len(each.encode())
        elif isinstance(each, list) and each:
            ids += token_ids(where, each, candidates)
        else:
            raise refuse(where, "must be a string that is not empty")
    beside = unknown_bytes(body, CHECKS, NOT_OFFERED)
    return PromptSize(text + len(inputs) * beside, len(inputs), token_ids=ids, prompts=len(inputs))
