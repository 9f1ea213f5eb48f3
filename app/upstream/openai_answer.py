"""Whole answers of providers, checked to be what was asked for before anybody is billed for them. Pure.

A provider's answer is hostile or broken until shown otherwise: what is no answer of its endpoint is an
`UpstreamError`, and of lists of results only the known members are kept. JSON has no numbers that are not finite
(the parser refuses them), so these can only stand in base64.
"""

import binascii
import math
import sys
from array import array
from collections.abc import Callable, Mapping
from typing import Any

from app.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, IMAGES, RERANK, TRANSCRIPTIONS
from app.upstream.provider import Call, UpstreamError

FLOAT_BYTES = 4
URL_PREFIXES = ("https://", "http://", "data:image/")
RERANK_VERSION: Mapping[str, str] = {"version": "2"}
_NUMBERS = frozenset({int, float})


def checked(call: Call, body: Any) -> dict[str, Any]:
    """The answer in the form that `app.upstream.provider.Provider.complete` promises. Raises `UpstreamError`."""
    # OpenRouter answers 200 once the work has begun, whatever becomes of it.
    if isinstance(body, dict) and body.get("error"):
        raise UpstreamError("error_in_body", "the provider answered with an error", status=200)
    return _CHECKS[call.endpoint](call, body)


def embeddings(call: Call, body: Any) -> dict[str, Any]:
    """OpenAI's list: one vector for each input in its order, each as numbers or as base64 of little-endian floats."""
    data = body.get("data") if isinstance(body, dict) else None
    wanted = input_count(call.body.get("input"))
    if not isinstance(data, list) or len(data) != wanted or not all(isinstance(each, dict) for each in data):
        raise _nonsense("not_embeddings", "the provider's answer is not one embedding for each input")
    # Servers that leave the index out give them in order.
    indexes = [each.get("index", place) for place, each in enumerate(data)]
    if sorted(index for index in indexes if type(index) is int) != list(range(wanted)):
        raise _nonsense("not_embeddings", "the provider's answer is not one embedding for each input")
    vectors: list[Any] = [None] * wanted
    for index, each in zip(indexes, data, strict=True):
        vectors[index] = each.get("embedding")
    dimensions = {_dimensions(vector) for vector in vectors}
    if len(dimensions) != 1 or None in dimensions:
        raise _nonsense("not_embeddings", "the provider's embeddings are not vectors of numbers")
    asked = call.body.get("dimensions")
    if asked is not None and dimensions != {asked}:
        # Some servers pass over the parameter in silence; a vector of another length would spoil an index.
        message = "the model does not give embeddings of so many `dimensions`"
        raise UpstreamError("rejected", message, status=200, fail_over=False, callers_fault=True)
    items = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in enumerate(vectors)]
    return {**body, "object": "list", "data": items}


def rerank(call: Call, body: Any) -> dict[str, Any]:
    """Cohere's v2: the documents' places with their scores, best first. Search units only where the provider says.

    Also from text-embeddings-inference, which answers a bare list of ``index`` and ``score``, of all documents.
    """
    results = body.get("results") if isinstance(body, dict) else body
    documents = call.body.get("documents")
    count = len(documents) if isinstance(documents, list) else 0
    if not isinstance(results, list) or not results:
        raise _nonsense("not_a_ranking", "the provider's answer is not a ranking of the documents")
    ranked: dict[int, Any] = {}
    for result in results:
        index, score = _member(result, "index"), _member(result, "relevance_score")
        score = _member(result, "score") if score is None else score
        if type(index) is not int or not 0 <= index < count or index in ranked:
            raise _nonsense("not_a_ranking", "the provider's answer is not a ranking of the documents")
        if type(score) not in _NUMBERS:
            raise _nonsense("not_a_ranking", "the provider's answer has no score for each document")
        ranked[index] = score
    best = sorted(ranked.items(), key=lambda item: (-item[1], item[0]))
    top = call.body.get("top_n")
    if isinstance(top, int) and top > 0:
        best = best[:top]
    answer: dict[str, Any] = {"results": [{"index": index, "relevance_score": score} for index, score in best]}
    if isinstance(body, dict) and isinstance(body.get("id"), str):
        answer["id"] = body["id"]
    meta: dict[str, Any] = {"api_version": dict(RERANK_VERSION)}
    units = _member(_member(_member(body, "meta"), "billed_units"), "search_units")
    if type(units) in _NUMBERS and units >= 0:
        meta["billed_units"] = {"search_units": units}
    return {**answer, "meta": meta}


def input_count(value: Any) -> int:
    """How many embeddings an input asks for: a text or a list of token ids is one, a list of them as many."""
    if isinstance(value, list) and not all(type(each) is int for each in value):
        return len(value)
    return 1


def _completion(call: Call, body: Any) -> dict[str, Any]:
    if not isinstance(body, dict) or not isinstance(body.get("choices"), list):
        raise _nonsense("not_a_completion", "the provider's answer is not a completion")
    if any(isinstance(choice, dict) and choice.get("error") for choice in body["choices"]):
        raise UpstreamError("error_in_body", "the provider answered with an error", status=200)
    return body


def _images(call: Call, body: Any) -> dict[str, Any]:
    data = body.get("data") if isinstance(body, dict) else None
    asked = call.body.get("n")
    most = asked if isinstance(asked, int) and asked > 0 else 1
    if not isinstance(data, list) or not 0 < len(data) <= most:
        raise _nonsense("not_images", "the provider's answer is not the images that were asked for")
    return {**body, "data": [_image(item) for item in data]}


def _image(item: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    encoded, url, prompt = (_member(item, name) for name in ("b64_json", "url", "revised_prompt"))
    if isinstance(encoded, str) and encoded and _is_base64(encoded):
        found["b64_json"] = encoded
    if isinstance(url, str) and url.startswith(URL_PREFIXES) and url.isascii() and url.isprintable():
        found["url"] = url
    if not found:
        raise _nonsense("not_images", "the provider's answer holds no image")
    if isinstance(prompt, str):
        found["revised_prompt"] = prompt
    return found


def _transcription(call: Call, body: Any) -> dict[str, Any]:
    if not isinstance(body, dict) or not isinstance(body.get("text"), str):
        raise _nonsense("not_a_transcription", "the provider's answer is not a transcription")
    kinds: tuple[tuple[str, tuple[type, ...]], ...] = (
        ("language", (str,)),
        # Whisper's own server writes its durations as text.
        ("duration", (int, float, str)),
        ("segments", (list,)),
        ("words", (list,)),
        ("usage", (dict,)),
    )
    odd = {name for name, types in kinds if name in body and type(body[name]) not in types}
    return {name: value for name, value in body.items() if name not in odd}


def _dimensions(vector: Any) -> int | None:
    """How long a vector is; None if it is none."""
    if isinstance(vector, list):
        return len(vector) if vector and set(map(type, vector)) <= _NUMBERS else None
    if not isinstance(vector, str):
        return None
    try:
        content = binascii.a2b_base64(vector.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        return None
    if not content or len(content) % FLOAT_BYTES:
        return None
    floats = array("f", content)
    if sys.byteorder == "big":
        floats.byteswap()
    # In doubles a sum of so many single floats cannot overflow, and what is not finite stays so.
    return len(floats) if math.isfinite(sum(floats)) else None


def _is_base64(text: str) -> bool:
    try:
        binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except (binascii.Error, UnicodeEncodeError):
        return False
    return True


def _member(found: Any, name: str) -> Any:
    return found.get(name) if isinstance(found, dict) else None


def _nonsense(result: str, message: str) -> UpstreamError:
    # It may well have done the work: another provider would do it again.
    return UpstreamError(result, message, status=200, fail_over=False)


_CHECKS: Mapping[str, Callable[[Call, Any], dict[str, Any]]] = {
    CHAT.name: _completion,
    COMPLETIONS.name: _completion,
    EMBEDDINGS.name: embeddings,
    RERANK.name: rerank,
    IMAGES.name: _images,
    TRANSCRIPTIONS.name: _transcription,
}
