"""The adapter for Cohere's v2 API: reranking, and embeddings in OpenAI's words.

https://docs.cohere.com/reference/rerank and https://docs.cohere.com/reference/embed. A base URL with or without its
version will do. What is billed is what Cohere says it billed (``meta.billed_units``).
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import orjson

from app.endpoints import EMBEDDINGS, RERANK
from app.settings import InferenceSettings, ProviderSettings
from app.upstream import openai_answer
from app.upstream.http import Body, HttpUpstream
from app.upstream.openai_request import document_text
from app.upstream.provider import Call, Download, UpstreamError

PATHS: Mapping[str, str] = {RERANK.name: "/v2/rerank", EMBEDDINGS.name: "/v2/embed"}
# What an embedding is for. OpenAI's API has no word for it, and most are made to be searched.
INPUT_TYPE = "search_document"
_RERANK_PARAMETERS = ("query", "documents", "top_n", "max_tokens_per_doc", "priority")


class CohereProvider:
    """Cohere, or a server that speaks its v2 API."""

    endpoints = frozenset(PATHS)

    def __init__(self, settings: ProviderSettings, inference: InferenceSettings) -> None:
        self._http = HttpUpstream(settings, inference, engine="cohere")
        self.name = self._http.name
        self.kind = self._http.kind
        self.engine_type = self._http.engine_type
        self.machine_name = self._http.machine_name

    async def complete(self, call: Call) -> dict[str, Any]:
        request = _rerank(call) if call.endpoint == RERANK.name else _embed(call)
        key = self._http.key()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        url, body = self._http.url(PATHS[call.endpoint]), Body(orjson.dumps(request))
        async with self._http.post(call, url, body=body, headers=headers) as response:
            if response.status != 200:
                raise (await self._http.refusal(call, response)).error
            answer = await self._http.whole(response)
        if call.endpoint == RERANK.name:
            return openai_answer.rerank(call, answer)
        return openai_answer.embeddings(call, _list(call, answer))

    def stream(self, call: Call) -> AbstractAsyncContextManager[AsyncIterator[list[bytes]]]:
        raise _not_spoken(call)

    def download(self, call: Call) -> AbstractAsyncContextManager[Download]:
        raise _not_spoken(call)

    async def close(self) -> None:
        await self._http.close()


def _rerank(call: Call) -> dict[str, Any]:
    body = {name: call.body[name] for name in _RERANK_PARAMETERS if call.body.get(name) is not None}
    # v2 takes texts alone.
    documents = [document_text(document) for document in body["documents"]]
    return {**body, "documents": documents, "model": call.upstream_model}


def _embed(call: Call) -> dict[str, Any]:
    given = call.body["input"]
    texts = [given] if isinstance(given, str) else given
    if not all(isinstance(text, str) for text in texts):
        message = "this model takes texts alone: `input` must not be token ids"
        raise UpstreamError("rejected", message, fail_over=False, callers_fault=True)
    body = {
        "model": call.upstream_model,
        "texts": texts,
        "input_type": call.body.get("input_type", INPUT_TYPE),
        "embedding_types": ["float"],
    }
    dimensions = call.body.get("dimensions")
    return body if dimensions is None else body | {"output_dimension": dimensions}


def _list(call: Call, answer: Any) -> dict[str, Any]:
    """Cohere's embeddings in OpenAI's shape, unchecked."""
    if not isinstance(answer, dict):
        return {}
    found = answer.get("embeddings")
    vectors = found.get("float") if isinstance(found, dict) else None
    data = [{"embedding": vector} for vector in vectors] if isinstance(vectors, list) else None
    body: dict[str, Any] = {"data": data, "model": call.upstream_model}
    tokens: Any = answer.get("meta")
    for name in ("billed_units", "input_tokens"):
        tokens = tokens.get(name) if isinstance(tokens, dict) else None
    if isinstance(tokens, int | float) and tokens >= 0:
        body["usage"] = {"prompt_tokens": int(tokens), "total_tokens": int(tokens)}
    return body


def _not_spoken(call: Call) -> UpstreamError:
    return UpstreamError("not_spoken", f"the provider does not speak {call.endpoint}")
