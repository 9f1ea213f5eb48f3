"""What the sandbox measures: embeddings and reranks, from a weighed bag of words.

A text is its words, each weighing the root of how often it comes, short words a quarter of that. A vector
scatters the bag by a hash (feature hashing), so texts that share words lie near each other and all others
almost at right angles; a rerank is the cosine of the bags themselves. Pure, and bounded by what a request may hold.
"""

import math
import re
import struct
from base64 import b64encode
from collections import Counter
from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

from app.upstream.provider import Call
from app.upstream.sandbox_request import Asked, count, inputs_of, word
from app.upstream.sandbox_script import parse, refused
from app.upstream.sandbox_text import TOKEN_BYTES, token_count

DIMENSIONS = 1536
DIMENSIONS_MAX = 4096
# OpenAI's bound for all inputs of one request together.
INPUT_TOKENS_MAX = 300_000
DOCUMENTS_MAX = 1000
DOCUMENTS_PER_UNIT = 100
# Cohere counts a document that is longer than this, with its query, as several.
DOCUMENT_TOKENS = 500
TOKENS_PER_DOCUMENT_MAX = 4096
SCORE_DIGITS = 6
_SHORT_WORD = 3
_SHORT_WORD_WEIGHT = 0.25
_PLACES_PER_WORD = 4
_WORD = re.compile(r"\w+")

Bag = Mapping[str, float]


def embeddings(call: Call, asked: Asked) -> dict[str, Any]:
    """OpenAI's list of embeddings, unit vectors. Raises `UpstreamError`."""
    body, script = call.body, asked.script
    dimensions = count(body, "dimensions", default=DIMENSIONS, most=DIMENSIONS_MAX)
    layout = body.get("encoding_format") or "float"
    if layout not in ("float", "base64"):
        raise refused("'encoding_format' must be float or base64")
    inputs = inputs_of(body)
    tokens = sum(max(1, token_count(each)) if isinstance(each, str) else len(each) for each in inputs)
    if tokens > INPUT_TOKENS_MAX:
        raise refused(f"'input' must have at most {INPUT_TOKENS_MAX} tokens")
    vectors = (vector(_bag_of(each), dimensions) for each in inputs)
    answer: dict[str, Any] = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _encoded(each) if layout == "base64" else each}
            for index, each in enumerate(vectors)
        ],
        "model": call.upstream_model,
    }
    if script.usage != "none":
        reported = 0 if script.usage == "zero" else tokens if script.lie is None else script.lie
        answer["usage"] = {"prompt_tokens": reported, "total_tokens": reported}
    return answer


def rerank(call: Call, asked: Asked) -> dict[str, Any]:
    """Cohere's answer (v2): the documents' places, the most relevant first. Raises `UpstreamError`."""
    body, script = call.body, asked.script
    documents = body.get("documents")
    if not isinstance(documents, list) or not 1 <= len(documents) <= DOCUMENTS_MAX:
        raise refused(f"'documents' must be a list of 1 to {DOCUMENTS_MAX}")
    top = count(body, "top_n", default=len(documents), most=2**31 - 1)
    tokens_max = count(body, "max_tokens_per_doc", default=TOKENS_PER_DOCUMENT_MAX, most=2**31 - 1)
    texts = [_document_text(document)[: tokens_max * TOKEN_BYTES] for document in documents]
    query = bag(asked.text)
    scored = [(round(cosine(query, bag(text)), SCORE_DIGITS), index) for index, text in enumerate(texts)]
    scored.sort(key=lambda each: (-each[0], each[1]))
    meta: dict[str, Any] = {"api_version": {"version": "2"}}
    if script.usage != "none":
        units = search_units(word(body, "query"), texts)
        units = 0 if script.usage == "zero" else units if script.lie is None else script.lie
        meta["billed_units"] = {"search_units": units}
    results = [{"index": index, "relevance_score": score} for score, index in scored[:top]]
    return {"id": f"rerank-sandbox-{asked.digest}", "results": results, "meta": meta}


def search_units(query: str, documents: Iterable[str]) -> int:
    """One for each 100 documents begun; one that with the query is longer than 500 tokens counts once for each 500."""
    asked = token_count(query)
    passes = sum(max(1, -(-(asked + token_count(document)) // DOCUMENT_TOKENS)) for document in documents)
    return -(-passes // DOCUMENTS_PER_UNIT)


def bag(text: str) -> Bag:
    """The words of a text with their weights, together of length 1. A text without words is its own word."""
    return _unit(Counter(_WORD.findall(text.casefold()) or [text]))


def cosine(one: Bag, other: Bag) -> float:
    """How alike two bags are: 0 with no word in common, 1 for the same words as often."""
    return min(1.0, sum(weight * other.get(each, 0.0) for each, weight in one.items()))


def vector(words: Bag, dimensions: int) -> list[float]:
    """A bag as a unit vector."""
    values = [0.0] * dimensions
    touched = set()
    for each, weight in words.items():
        for place in _places(each):
            index = (place >> 1) % dimensions
            values[index] += weight if place & 1 else -weight
            touched.add(index)
    length = math.sqrt(sum(values[index] ** 2 for index in touched))
    if length == 0:
        # Words that cancel each other out, which few dimensions can do.
        values[0], length = 1.0, 1.0
        touched = {0}
    for index in touched:
        values[index] /= length
    return values


def _bag_of(given: str | list[int]) -> Bag:
    if isinstance(given, str):
        return bag(parse(given)[1])
    return _unit(Counter(f"token {each}" for each in given))


def _unit(counts: Mapping[str, int]) -> Bag:
    weights = {
        each: math.sqrt(number) * (_SHORT_WORD_WEIGHT if len(each) <= _SHORT_WORD else 1.0)
        for each, number in counts.items()
    }
    length = math.sqrt(sum(weight * weight for weight in weights.values()))
    return {each: weight / length for each, weight in weights.items()}


def _places(each: str) -> tuple[int, ...]:
    digest = blake2b(each.encode("utf-8", "surrogatepass"), digest_size=4 * _PLACES_PER_WORD)
    return struct.unpack(f"<{_PLACES_PER_WORD}I", digest.digest())


def _encoded(values: list[float]) -> str:
    return b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def _document_text(document: Any) -> str:
    text = document.get("text") if isinstance(document, Mapping) else document
    if not isinstance(text, str):
        raise refused("each of 'documents' must be a text, or an object with a 'text'")
    return text
