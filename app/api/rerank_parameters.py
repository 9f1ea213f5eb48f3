"""The parameters of a rerank, as Cohere's SDK sends them to version 1 and version 2 of its API.

What goes upstream is version 2: a query and documents that are strings. What is billed are search units, each up to
100 documents; a document that is longer than 500 tokens with the query counts once for every 500. Where the caller
lets documents be cut, only a provider of Cohere's kind cuts them, and says what that came to. Any other ranks them
whole, so they are priced whole.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from app.admission import PaidRequest
from app.api.incoming import Incoming
from app.api.parameters import (
    BOOLEAN,
    LIST,
    REFUSED,
    SINGLE,
    STRING,
    Check,
    capable,
    check_all,
    default_model,
    integer,
    missing,
    named_model,
    refuse,
    text,
    unknown_bytes,
)
from app.api.routing_parameters import ROUTING, first_byte_timeout_s, wishes
from app.api.shapes import RerankShape
from app.endpoints import RERANK
from app.pricing.quote import PromptSize
from app.units import SEARCH_UNIT

DOCUMENTS_MAX = 1000
DOCUMENTS_PER_UNIT = 100
TOKENS_PER_CHUNK = 500
BYTES_PER_TOKEN_EXPECTED = 4
QUERY_CHARACTERS_MAX = 100_000
FIELDS_MAX = 64
TOP_N_MAX = 2**31 - 1
PER_DOCUMENT_MAX = 1_000_000
SECOND_VERSION = "/v2/rerank"


def _fields(name: str, value: Any) -> None:
    if not isinstance(value, list) or len(value) > FIELDS_MAX or not all(isinstance(each, str) for each in value):
        raise refuse(name, f"must be a list of up to {FIELDS_MAX} names")


CHECKS: Mapping[str, Check] = {
    **ROUTING,
    "model": STRING,
    "query": text(QUERY_CHARACTERS_MAX),
    "documents": LIST,
    "top_n": integer(1, TOP_N_MAX),
    "max_chunks_per_doc": integer(1, PER_DOCUMENT_MAX),
    "max_tokens_per_doc": integer(1, PER_DOCUMENT_MAX),
    "rank_fields": _fields,
    "return_documents": BOOLEAN,
}
NOT_OFFERED: Mapping[str, tuple[Any, ...]] = {
    **REFUSED,
    **SINGLE,
    # Spans of each document: nobody has priced them.
    "relevant_spans": (None,),
}
OURS = (*ROUTING, *NOT_OFFERED, "max_chunks_per_doc", "rank_fields", "return_documents")


def parse(incoming: Incoming) -> PaidRequest:
    """A validated request. Raises `InvalidRequest` naming the parameter, and `NotFound`."""
    body = incoming.object()
    check_all(body, CHECKS, NOT_OFFERED)
    version = "2" if incoming.path.rstrip("/").endswith(SECOND_VERSION) else "1"
    # Version 1 of Cohere's API has a default model.
    model = named_model(body) if body.get("model") or version == "2" else default_model(incoming, RERANK)
    capable(incoming, model, RERANK)
    for name in ("query", "documents"):
        if name not in body:
            raise missing(name, "say what to look for" if name == "query" else "say what to rank: a list of strings")
    documents = _documents(body)
    upstream = {name: value for name, value in body.items() if name not in OURS}
    if "max_chunks_per_doc" in body:
        # Of two cuts the shorter counts.
        cut = body["max_chunks_per_doc"] * TOKENS_PER_CHUNK
        upstream["max_tokens_per_doc"] = min(cut, body.get("max_tokens_per_doc", cut))
    returned = body["documents"] if body.get("return_documents") else ()
    beside = unknown_bytes(body, CHECKS, NOT_OFFERED)
    return PaidRequest(
        endpoint=RERANK,
        path=incoming.path,
        model=model,
        body={**upstream, "model": model, "documents": documents},
        content=incoming.content,
        stream=False,
        size=PromptSize(0, 0),
        output_limit_param="documents",
        wishes=wishes(body),
        first_byte_timeout_s=first_byte_timeout_s(body),
        idempotency_key=incoming.idempotency_key,
        units={SEARCH_UNIT: search_units(documents, body["query"], beside=beside)},
        units_expected={
            SEARCH_UNIT: search_units(documents, body["query"], beside=beside, bytes_per_token=BYTES_PER_TOKEN_EXPECTED)
        },
        shape=RerankShape(version=version, documents=tuple(returned)),
    )


def search_units(documents: Sequence[str], query: str, *, beside: int = 0, bytes_per_token: int = 1) -> int:
    """Search units of a rerank where a token has so many bytes: with 1, no provider can count more.

    ``beside`` are bytes of parameters that may be made part of the query.
    """
    asked = _tokens(len(query.encode()) + beside, bytes_per_token)
    counted = 0
    for document in documents:
        tokens = asked + _tokens(len(document.encode()), bytes_per_token)
        counted += max(1, -(-tokens // TOKENS_PER_CHUNK))
    return -(-counted // DOCUMENTS_PER_UNIT)


def _tokens(size: int, bytes_per_token: int) -> int:
    return -(-size // bytes_per_token)


def _documents(body: Mapping[str, Any]) -> list[str]:
    """Each document as the text that is ranked. Of one with fields, those that are named, else its ``text``."""
    given = body["documents"]
    if not 0 < len(given) <= DOCUMENTS_MAX:
        raise refuse("documents", f"must be a list of 1 to {DOCUMENTS_MAX} documents")
    fields = body.get("rank_fields") or ()
    documents = []
    for index, document in enumerate(given):
        where = f"documents[{index}]"
        if isinstance(document, str):
            documents.append(document)
        elif not isinstance(document, dict):
            raise refuse(where, "must be a string, or an object with text")
        elif fields:
            absent = [name for name in fields if name not in document]
            if absent:
                raise refuse(where, f"has no {absent[0][:100]!r}, which is in rank_fields")
            documents.append("\n".join(f"{name}: {_said(document[name])}" for name in fields))
        elif isinstance(document.get("text"), str):
            documents.append(document["text"])
        else:
            raise refuse(where, "must be a string, or an object with text")
    return documents


def _said(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
