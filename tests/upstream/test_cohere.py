"""Cohere's adapter against a server that speaks its v2 API."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from app.endpoints import CHAT, EMBEDDINGS, RERANK, SPEECH, Endpoint
from app.settings import InferenceSettings, ProviderSettings
from app.upstream.cohere import CohereProvider
from app.upstream.provider import Call, UpstreamError
from tests.dialects import answers
from tests.dialects import endpoints as said
from tests.dialects.fixtures import dialects
from tests.dialects.server import DialectServer

__all__ = ["dialects"]

KEY_ENV = "TEST_COHERE_KEY"
BODIES: dict[Endpoint, dict[str, Any]] = {
    RERANK: {"query": "q", "documents": ["a", "b", "c"]},
    EMBEDDINGS: {"input": ["a", "b"]},
}


@asynccontextmanager
async def opened(base_url: str, **settings: Any) -> AsyncIterator[CohereProvider]:
    named = {"name": "cohere", "adapter": "cohere", "base_url": base_url, "api_key_env": KEY_ENV, **settings}
    provider = CohereProvider(ProviderSettings.model_validate(named), InferenceSettings())
    yield provider
    await provider.close()


@pytest.fixture
async def provider(dialects: DialectServer) -> AsyncIterator[CohereProvider]:
    async with opened(f"http://127.0.0.1:{dialects.port}") as provider:
        yield provider


def call(endpoint: Endpoint, dialect: str, *, timeout_s: float = 10, **body: Any) -> Call:
    content = {"model": "asked/for", **BODIES[endpoint], **body}
    return Call("req_1", dialect, content, False, 100, timeout_s, endpoint=endpoint.name)


async def failure(provider: CohereProvider, asked: Call) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await provider.complete(asked)
    return caught.value


async def test_adapter_says_what_it_speaks_and_where_it_runs(dialects: DialectServer) -> None:
    async with opened(dialects.base_url) as plain:
        assert plain.endpoints == {"rerank", "embeddings"}
        assert (plain.name, plain.kind) == ("cohere", "native")
        assert (plain.engine_type, plain.machine_name) == ("cohere", "cohere")
    async with opened(dialects.base_url, engine_type="e", machine_name="m") as named:
        assert (named.engine_type, named.machine_name) == ("e", "m")


async def test_ranking_is_asked_for_and_given_in_version_2(
    provider: CohereProvider, dialects: DialectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, "cohere-key")
    extras: dict[str, Any] = {
        "max_tokens_per_doc": 99,
        "return_documents": True,
        "rank_fields": ["text"],
        "documents": ["a", {"text": "b"}],
    }
    answer = await provider.complete(call(RERANK, "ok", top_n=1, **extras))
    assert answer == {
        "id": "rerank-1",
        "results": [{"index": 1, "relevance_score": 0.875}],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"search_units": said.SEARCH_UNITS}},
    }
    sent = dialects.last
    assert sent.path == "/v2/rerank"
    assert sent.headers["authorization"] == "Bearer cohere-key"
    assert sent.body == {
        "model": "ok",
        "query": "q",
        "documents": ["a", "b"],
        "top_n": 1,
        "max_tokens_per_doc": 99,
    }


async def test_search_units_that_are_not_told_are_not_made_up(provider: CohereProvider) -> None:
    answer = await provider.complete(call(RERANK, "unbilled"))
    assert "billed_units" not in answer["meta"]


@pytest.mark.parametrize("version", ["", "/v1", "/v2", "/v2/"])
async def test_version_may_stand_in_the_base_url_or_not(dialects: DialectServer, version: str) -> None:
    async with opened(f"http://127.0.0.1:{dialects.port}{version}") as provider:
        await provider.complete(call(RERANK, "ok"))
    assert dialects.last.path == "/v2/rerank"


@pytest.mark.parametrize("given", ["a", ["a"], ["a", "b", "c"]])
async def test_embeddings_come_in_openais_shape_with_what_was_billed(
    provider: CohereProvider, dialects: DialectServer, given: Any
) -> None:
    answer = await provider.complete(call(EMBEDDINGS, "ok", input=given, encoding_format="base64", user="u"))
    texts = [given] if isinstance(given, str) else given
    assert answer["object"] == "list"
    assert answer["data"] == [
        {"object": "embedding", "index": index, "embedding": said.VECTORS[index]} for index in range(len(texts))
    ]
    assert answer["usage"] == {"prompt_tokens": said.EMBEDDED_TOKENS, "total_tokens": said.EMBEDDED_TOKENS}
    assert dialects.last.path == "/v2/embed"
    assert dialects.last.body == {
        "model": "ok",
        "texts": texts,
        "input_type": "search_document",
        "embedding_types": ["float"],
    }


async def test_dimensions_and_purpose_of_embeddings_are_passed(
    provider: CohereProvider, dialects: DialectServer
) -> None:
    answer = await provider.complete(call(EMBEDDINGS, "ok", dimensions=2, input_type="search_query"))
    assert [len(item["embedding"]) for item in answer["data"]] == [2, 2]
    assert (dialects.last.body["output_dimension"], dialects.last.body["input_type"]) == (2, "search_query")


async def test_embeddings_without_a_report_have_no_usage(provider: CohereProvider) -> None:
    assert "usage" not in await provider.complete(call(EMBEDDINGS, "unbilled", input="a"))


@pytest.mark.parametrize("given", [[1, 2], [[1, 2], [3]]])
async def test_token_ids_are_refused_before_anything_is_sent(
    provider: CohereProvider, dialects: DialectServer, given: Any
) -> None:
    error = await failure(provider, call(EMBEDDINGS, "ok", input=given))
    assert (error.result, error.callers_fault) == ("rejected", True)
    assert dialects.requests == []


@pytest.mark.parametrize(
    ("endpoint", "dialect", "result", "callers_fault"),
    [
        (RERANK, "wrong", "rejected", True),
        (RERANK, "no_key", "refused", False),
        (RERANK, "trial", "rate_limited", False),
        (RERANK, "none", "not_a_ranking", False),
        (RERANK, "notjson", "not_json", False),
        (RERANK, "status:500", "server_error", False),
        (RERANK, "hangup", "interrupted", False),
        (EMBEDDINGS, "old", "not_embeddings", False),
        (EMBEDDINGS, "nothing", "not_embeddings", False),
        (EMBEDDINGS, "status:429", "rate_limited", False),
        (EMBEDDINGS, "huge_body", "too_large", False),
    ],
    ids=lambda value: value.name if isinstance(value, Endpoint) else str(value),
)
async def test_failures_mean_what_they_mean_elsewhere(
    provider: CohereProvider, endpoint: Endpoint, dialect: str, result: str, callers_fault: bool
) -> None:
    error = await failure(provider, call(endpoint, dialect))
    assert (error.result, error.callers_fault) == (result, callers_fault)
    assert all(secret not in error.message for secret in (answers.SECRET_ACCOUNT, "Trial", "cohere.example"))
    if dialect == "wrong":
        assert error.message == "invalid request: top_n must be at least 1"


async def test_silence_is_given_up_and_nobody_else_is_asked(provider: CohereProvider) -> None:
    error = await failure(provider, call(RERANK, "slow_head", timeout_s=0.05))
    assert (error.result, error.fail_over) == ("timeout", False)


async def test_provider_that_cannot_be_reached_may_be_passed_over() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with opened(f"http://127.0.0.1:{bound.getsockname()[1]}") as provider:
            error = await failure(provider, call(RERANK, "ok"))
    assert (error.result, error.fail_over) == ("connect", True)


def test_what_cohere_does_not_speak_is_nobodys_fault() -> None:
    provider = CohereProvider(
        ProviderSettings.model_validate({"name": "c", "adapter": "cohere", "base_url": "http://c.example"}),
        InferenceSettings(),
    )
    for endpoint, speak in ((CHAT, provider.stream), (SPEECH, provider.download)):
        with pytest.raises(UpstreamError) as caught:
            speak(Call("req_1", "m", {}, True, 1, 1, endpoint=endpoint.name))
        assert (caught.value.fail_over, caught.value.callers_fault) == (True, False)
