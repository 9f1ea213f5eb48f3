"""Every endpoint beside chat against a real upstream: what is sent, what comes back, and what is no answer."""

import asyncio
import base64
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from app.endpoints import (
    COMPLETIONS,
    EMBEDDINGS,
    ENDPOINTS,
    IMAGES,
    RERANK,
    SPEECH,
    TRANSCRIPTIONS,
    Endpoint,
)
from app.settings import InferenceSettings, ProviderSettings
from app.upstream.openai import OpenAIProvider
from app.upstream.provider import DONE, Call, Upload, UpstreamError
from tests.dialects import answers
from tests.dialects import endpoints as said
from tests.dialects.fixtures import dialects
from tests.dialects.server import DialectServer

__all__ = ["dialects"]

KEY_ENV = "TEST_UPSTREAM_KEY"
AUDIO = bytes(range(256)) * 1000
BODIES: dict[Endpoint, dict[str, Any]] = {
    COMPLETIONS: {"prompt": "Hello"},
    EMBEDDINGS: {"input": ["a", "b", "c"]},
    RERANK: {"query": "q", "documents": ["a", "b", "c"]},
    IMAGES: {"prompt": "A red cube", "n": 2, "size": "1024*1792", "response_format": "b64_json"},
    TRANSCRIPTIONS: {"response_format": "verbose_json", "language": "en"},
    SPEECH: {"input": "Hello", "voice": "alloy"},
}


@asynccontextmanager
async def opened(
    base_url: str, *, settings: dict[str, Any] | None = None, **inference: float
) -> AsyncIterator[OpenAIProvider]:
    provider = OpenAIProvider(
        ProviderSettings.model_validate(
            {"name": "upstream", "base_url": base_url, "api_key_env": KEY_ENV, **(settings or {})}
        ),
        InferenceSettings.model_validate(inference),
    )
    yield provider
    await provider.close()


@pytest.fixture
async def provider(dialects: DialectServer) -> AsyncIterator[OpenAIProvider]:
    async with opened(dialects.base_url) as provider:
        yield provider


def call(endpoint: Endpoint, dialect: str, *, stream: bool = False, timeout_s: float = 10, **body: Any) -> Call:
    upload = Upload('../"evil\r\nX: y.MP3', "text/html", AUDIO) if endpoint == TRANSCRIPTIONS else None
    return Call(
        "req_1",
        dialect,
        {"model": "asked/for", **BODIES[endpoint], **body},
        stream,
        100,
        timeout_s,
        endpoint=endpoint.name,
        upload=upload,
    )


async def failure(provider: OpenAIProvider, asked: Call) -> UpstreamError:
    attempt = spoken(provider, asked) if asked.endpoint == SPEECH.name else provider.complete(asked)
    with pytest.raises(UpstreamError) as caught:
        await attempt
    return caught.value


async def spoken(provider: OpenAIProvider, asked: Call) -> tuple[str, bytes]:
    async with provider.download(asked) as download:
        return download.content_type, b"".join([block async for block in download.blocks])


async def test_adapter_says_what_it_speaks_and_where_it_runs(dialects: DialectServer) -> None:
    async with opened(dialects.base_url) as plain:
        assert plain.endpoints == {endpoint.name for endpoint in ENDPOINTS}
        assert (plain.engine_type, plain.machine_name) == ("openai", "upstream")
    named = {"engine_type": "vllm", "machine_name": "rack 7"}
    async with opened(dialects.base_url, settings=named) as provider:
        assert (provider.engine_type, provider.machine_name) == ("vllm", "rack 7")


# What every endpoint has in common.


@pytest.mark.parametrize("endpoint", BODIES, ids=lambda endpoint: endpoint.name)
@pytest.mark.parametrize(
    ("dialect", "result", "fail_over", "callers_fault"),
    [
        ("status:400", "rejected", False, True),
        ("status:401", "refused", True, False),
        ("status:402", "refused", True, False),
        ("status:403", "refused", True, False),
        ("status:429", "rate_limited", True, False),
        ("status:500", "server_error", True, False),
        ("redirect", "server_error", True, False),
        ("hangup", "interrupted", False, False),
        ("reset", "interrupted", False, False),
    ],
)
async def test_failures_mean_the_same_on_every_endpoint(
    provider: OpenAIProvider,
    dialects: DialectServer,
    endpoint: Endpoint,
    dialect: str,
    result: str,
    fail_over: bool,
    callers_fault: bool,
) -> None:
    error = await failure(provider, call(endpoint, dialect))
    assert (error.result, error.fail_over, error.callers_fault) == (result, fail_over, callers_fault)
    assert all(secret not in error.message for secret in (answers.SECRET_KEY, answers.SECRET_ACCOUNT))
    assert len(dialects.requests) == 1


@pytest.mark.parametrize("endpoint", BODIES, ids=lambda endpoint: endpoint.name)
async def test_silence_is_given_up_and_nobody_else_is_asked(
    provider: OpenAIProvider, dialects: DialectServer, endpoint: Endpoint
) -> None:
    error = await failure(provider, call(endpoint, "slow_head", timeout_s=0.05))
    assert (error.result, error.fail_over) == ("timeout", False)
    assert await asyncio.to_thread(dialects.last.wait_closed)


@pytest.mark.parametrize("endpoint", BODIES, ids=lambda endpoint: endpoint.name)
async def test_answer_past_its_bound_is_stopped(dialects: DialectServer, endpoint: Endpoint) -> None:
    async with opened(dialects.base_url, upstream_body_bytes_max=100_000) as provider:
        error = await failure(provider, call(endpoint, "endless" if endpoint == SPEECH else "huge_body"))
    assert (error.result, error.fail_over) == ("too_large", False)


@pytest.mark.parametrize("endpoint", BODIES, ids=lambda endpoint: endpoint.name)
async def test_only_our_body_and_the_operators_key_are_sent(
    provider: OpenAIProvider, dialects: DialectServer, endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, "sk-upstream")
    await failure(provider, call(endpoint, "status:500"))
    sent = dialects.last
    assert sent.headers["authorization"] == "Bearer sk-upstream"
    assert set(sent.headers) <= {
        "host",
        "authorization",
        "accept-encoding",
        "content-type",
        "content-length",
        "accept",
        "user-agent",
    }
    if endpoint != TRANSCRIPTIONS:
        assert sent.body["model"] == "status:500"
        assert ("stream" in sent.body) == (endpoint == COMPLETIONS)


@pytest.mark.parametrize(
    ("endpoint", "result"),
    [
        (COMPLETIONS, "not_json"),
        (EMBEDDINGS, "not_json"),
        (RERANK, "not_json"),
        (IMAGES, "not_json"),
        (TRANSCRIPTIONS, "not_json"),
        (SPEECH, "not_audio"),
    ],
    ids=lambda value: value.name if isinstance(value, Endpoint) else value,
)
async def test_web_page_is_no_answer(provider: OpenAIProvider, endpoint: Endpoint, result: str) -> None:
    error = await failure(provider, call(endpoint, "notjson"))
    assert error.result == result
    assert "10.1.2.3" not in error.message


@pytest.mark.parametrize("endpoint", [EMBEDDINGS, RERANK, IMAGES, TRANSCRIPTIONS, SPEECH], ids=lambda each: each.name)
async def test_error_in_a_200_is_one(provider: OpenAIProvider, endpoint: Endpoint) -> None:
    error = await failure(provider, call(endpoint, "error200"))
    assert (error.result, error.fail_over, error.callers_fault) == ("error_in_body", True, False)


# Completions.


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens"])
async def test_completion_comes_whole(provider: OpenAIProvider, dialects: DialectServer, limit: str) -> None:
    limits: dict[str, Any] = {limit: 7}
    answer = await provider.complete(call(COMPLETIONS, "ok", **limits))
    assert answer["choices"][0]["text"] == answers.TEXT
    assert dialects.last.path == "/v1/completions"
    assert dialects.last.body == {"model": "ok", "prompt": "Hello", "stream": False, "max_tokens": 100}


async def test_completion_streams_and_tells_its_usage(provider: OpenAIProvider, dialects: DialectServer) -> None:
    async with provider.stream(call(COMPLETIONS, "ok", stream=True)) as batches:
        events = [data async for batch in batches for data in batch]
    assert events.pop() == DONE
    chunks = [orjson.loads(event) for event in events]
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == answers.TEXT
    assert chunks[-1]["usage"] == answers.usage_of(answers.USAGE, "ok")
    assert dialects.last.body["stream_options"] == {"include_usage": True}


async def test_completion_is_sent_without_stream_options_where_they_are_refused(
    provider: OpenAIProvider, dialects: DialectServer
) -> None:
    for _ in range(2):
        async with provider.stream(call(COMPLETIONS, "strict", stream=True)) as batches:
            assert [data async for batch in batches for data in batch][-1] == DONE
    assert ["stream_options" in request.body for request in dialects.requests] == [True, False, False]


# Embeddings.


@pytest.mark.parametrize("dialect", ["ok", "shuffled", "no_index"])
async def test_embeddings_come_in_the_order_of_their_inputs(provider: OpenAIProvider, dialect: str) -> None:
    answer = await provider.complete(call(EMBEDDINGS, dialect))
    assert [item["index"] for item in answer["data"]] == [0, 1, 2]
    assert [item["embedding"] for item in answer["data"]] == list(said.VECTORS)
    assert answer["usage"]["prompt_tokens"] == said.EMBEDDED_TOKENS


@pytest.mark.parametrize("given", ["one text", [1, 2, 3], ["one text"], [[1, 2, 3]]])
async def test_one_input_is_one_embedding(provider: OpenAIProvider, given: Any) -> None:
    answer = await provider.complete(call(EMBEDDINGS, "ok", input=given))
    assert [item["embedding"] for item in answer["data"]] == [said.VECTORS[0]]


async def test_embeddings_in_base64_are_given_on_as_they_are(provider: OpenAIProvider) -> None:
    answer = await provider.complete(call(EMBEDDINGS, "ok", encoding_format="base64"))
    first = base64.b64decode(answer["data"][0]["embedding"])
    assert list(struct.unpack("<3f", first)) == said.VECTORS[0]


@pytest.mark.parametrize(("count", "expected"), [(99, "float"), (100, "base64")])
async def test_many_embeddings_are_asked_for_in_the_shorter_form(
    provider: OpenAIProvider, dialects: DialectServer, count: int, expected: str
) -> None:
    await failure(provider, call(EMBEDDINGS, "status:500", input=["x"] * count, encoding_format="float"))
    assert dialects.last.body["encoding_format"] == expected


async def test_server_that_knows_no_encoding_is_not_asked_for_one_again(
    provider: OpenAIProvider, dialects: DialectServer
) -> None:
    for _ in range(2):
        answer = await provider.complete(call(EMBEDDINGS, "strict", encoding_format="base64"))
        assert answer["data"][0]["embedding"] == said.VECTORS[0]
    assert ["encoding_format" in request.body for request in dialects.requests] == [True, False, False]


async def test_dimensions_that_a_model_refuses_are_the_callers_fault(
    provider: OpenAIProvider, dialects: DialectServer
) -> None:
    error = await failure(provider, call(EMBEDDINGS, "no_dimensions", dimensions=2))
    assert (error.status, error.callers_fault) == (400, True)
    assert "does not support matryoshka" in error.message
    assert len(dialects.requests) == 1


async def test_dimensions_that_a_server_passes_over_are_not_taken_for_what_was_asked(provider: OpenAIProvider) -> None:
    error = await failure(provider, call(EMBEDDINGS, "ok", dimensions=2))
    assert (error.result, error.callers_fault, error.fail_over) == ("rejected", True, False)
    answer = await provider.complete(call(EMBEDDINGS, "ok", dimensions=3))
    assert len(answer["data"]) == 3


@pytest.mark.parametrize(
    "dialect",
    [
        "short",
        "long",
        "more",
        "twice",
        "ragged",
        "hollow",
        "texts",
        "switches",
        "nested",
        "infinite",
        "nan",
        "odd_base64",
        "no_list",
    ],
)
async def test_what_are_no_embeddings_is_refused(provider: OpenAIProvider, dialect: str) -> None:
    wants: dict[str, Any] = {"encoding_format": "base64"} if dialect in {"infinite", "nan", "odd_base64"} else {}
    error = await failure(provider, call(EMBEDDINGS, dialect, **wants))
    assert (error.result, error.callers_fault, error.fail_over) == ("not_embeddings", False, False)


@pytest.mark.parametrize("dialect", ["nan_json", "huge_number"])
async def test_numbers_that_are_not_finite_are_no_json(provider: OpenAIProvider, dialect: str) -> None:
    assert (await failure(provider, call(EMBEDDINGS, dialect, input="x"))).result == "not_json"


# Rerank.

RANKED = [
    {"index": 1, "relevance_score": 0.875},
    {"index": 2, "relevance_score": 0.5},
    {"index": 0, "relevance_score": 0.125},
]


@pytest.mark.parametrize("dialect", ["vllm", "jina", "llama", "tei"])
@pytest.mark.parametrize("top_n", [None, 1, 2, 9])
async def test_ranking_comes_in_coheres_shape_whoever_made_it(
    provider: OpenAIProvider, dialect: str, top_n: int | None
) -> None:
    wanted: dict[str, Any] = {} if top_n is None else {"top_n": top_n}
    answer = await provider.complete(call(RERANK, dialect, **wanted))
    assert answer["results"] == RANKED[:top_n]
    assert answer["meta"] == {"api_version": {"version": "2"}}


async def test_search_units_are_told_where_the_provider_tells_them(provider: OpenAIProvider) -> None:
    answer = await provider.complete(call(RERANK, "billed"))
    assert answer["meta"]["billed_units"] == {"search_units": said.SEARCH_UNITS}


async def test_what_only_cohere_knows_is_not_sent(provider: OpenAIProvider, dialects: DialectServer) -> None:
    await provider.complete(call(RERANK, "vllm", top_n=2, max_tokens_per_doc=99, return_documents=True))
    assert dialects.last.body == {"model": "vllm", "query": "q", "documents": ["a", "b", "c"], "top_n": 2}


async def test_server_that_wants_texts_is_asked_for_texts_from_then_on(
    provider: OpenAIProvider, dialects: DialectServer
) -> None:
    for _ in range(2):
        assert (await provider.complete(call(RERANK, "tei", top_n=1)))["results"] == RANKED[:1]
    assert [sorted(request.body) for request in dialects.requests] == [
        ["documents", "model", "query", "top_n"],
        ["query", "texts"],
        ["query", "texts"],
    ]


@pytest.mark.parametrize(
    "dialect", ["out_of_range", "negative", "twice", "no_score", "switch", "too_many", "none", "words"]
)
async def test_what_is_no_ranking_is_refused(provider: OpenAIProvider, dialect: str) -> None:
    error = await failure(provider, call(RERANK, dialect))
    assert (error.result, error.fail_over) == ("not_a_ranking", False)


# Images.


async def test_images_come_with_their_size_in_the_providers_spelling(
    provider: OpenAIProvider, dialects: DialectServer
) -> None:
    answer = await provider.complete(call(IMAGES, "ok"))
    assert dialects.last.body["size"] == "1024x1792"
    assert answer["data"] == [{"b64_json": said.PNG, "revised_prompt": "A red cube"}] * 2
    answer = await provider.complete(call(IMAGES, "ok", response_format="url", n=1))
    assert [item["url"] for item in answer["data"]] == [said.IMAGE_URL]


async def test_model_that_takes_no_format_is_not_told_one_again(
    provider: OpenAIProvider, dialects: DialectServer
) -> None:
    for _ in range(2):
        assert len((await provider.complete(call(IMAGES, "strict")))["data"]) == 2
    assert ["response_format" in request.body for request in dialects.requests] == [True, False, False]


@pytest.mark.parametrize("dialect", ["more", "none", "empty", "odd_base64", "script", "file", "lines"])
async def test_what_are_no_images_is_refused(provider: OpenAIProvider, dialect: str) -> None:
    error = await failure(provider, call(IMAGES, dialect))
    assert (error.result, error.callers_fault, error.fail_over) == ("not_images", False, False)


# Transcriptions.


async def test_audio_is_sent_in_a_form_of_our_own(provider: OpenAIProvider, dialects: DialectServer) -> None:
    wants: dict[str, Any] = {"timestamp_granularities[]": ["word", "segment"]}
    answer = await provider.complete(call(TRANSCRIPTIONS, "whisper", temperature=0.5, **wants))
    assert (answer["text"], answer["duration"], answer["language"]) == (said.SAID, said.SECONDS, "english")
    fields, files = said.form_of(dialects.last)
    assert fields == {
        "model": ["whisper"],
        "response_format": ["verbose_json"],
        "language": ["en"],
        "temperature": ["0.5"],
        "timestamp_granularities[]": ["word", "segment"],
    }
    assert files == {"file": ("audio.mp3", "audio/mpeg", AUDIO)}
    assert b"evil" not in dialects.last.content
    assert int(dialects.last.headers["content-length"]) == len(dialects.last.content)


async def test_server_that_has_no_verbose_answer_is_asked_for_json_from_then_on(
    provider: OpenAIProvider, dialects: DialectServer
) -> None:
    for _ in range(2):
        answer = await provider.complete(call(TRANSCRIPTIONS, "json_alone"))
        assert (answer["text"], answer["usage"]["seconds"]) == (said.SAID, 8)
    wanted = [said.form_of(request)[0]["response_format"] for request in dialects.requests]
    assert wanted == [["verbose_json"], ["json"], ["json"]]


async def test_who_wants_times_of_a_model_without_them_is_told_so(
    provider: OpenAIProvider, dialects: DialectServer
) -> None:
    wants: dict[str, Any] = {"timestamp_granularities[]": ["word"]}
    error = await failure(provider, call(TRANSCRIPTIONS, "json_alone", **wants))
    assert (error.status, error.callers_fault) == (400, True)
    assert "not compatible" in error.message
    assert len(dialects.requests) == 1


async def test_odd_members_of_a_transcription_are_left_out(provider: OpenAIProvider) -> None:
    assert await provider.complete(call(TRANSCRIPTIONS, "odd")) == {"text": said.SAID}
    answer = await provider.complete(call(TRANSCRIPTIONS, "duration_text"))
    assert answer == {"text": said.SAID, "duration": "7.5"}


@pytest.mark.parametrize(("dialect", "result"), [("no_text", "not_a_transcription"), ("plain", "not_json")])
async def test_what_is_no_transcription_is_refused(provider: OpenAIProvider, dialect: str, result: str) -> None:
    assert (await failure(provider, call(TRANSCRIPTIONS, dialect))).result == result


# Speech.


@pytest.mark.parametrize(
    ("dialect", "asked", "media_type"),
    [
        ("ok", {}, "audio/mpeg"),
        ("wav", {"response_format": "wav"}, "audio/x-wav"),
        ("bytes", {}, "audio/mpeg"),
        ("bytes", {"response_format": "opus"}, "audio/opus"),
        ("bytes", {"response_format": "pcm"}, "audio/pcm"),
    ],
)
async def test_speech_comes_byte_by_byte_with_a_type_from_the_list(
    provider: OpenAIProvider, dialect: str, asked: dict[str, Any], media_type: str
) -> None:
    assert await spoken(provider, call(SPEECH, dialect, **asked)) == (media_type, said.SPEECH)


async def test_speech_goes_on_before_it_is_whole_and_stops_with_its_reader(
    provider: OpenAIProvider, dialects: DialectServer
) -> None:
    async with provider.download(call(SPEECH, "gated")) as download:
        first = await anext(download.blocks)
        assert said.SPEECH.startswith(first)
        assert not dialects.last.finished
    assert await asyncio.to_thread(dialects.last.wait_closed)


@pytest.mark.parametrize("dialect", ["html", "script", "events", "empty"])
async def test_what_is_no_audio_is_refused_before_a_byte_of_it(provider: OpenAIProvider, dialect: str) -> None:
    error = await failure(provider, call(SPEECH, dialect))
    assert (error.result, error.fail_over) == ("not_audio", True)


async def test_speech_that_has_a_head_alone_is_given_up(provider: OpenAIProvider, dialects: DialectServer) -> None:
    error = await failure(provider, call(SPEECH, "head_alone", timeout_s=0.05))
    assert (error.result, error.fail_over) == ("timeout", False)
    assert await asyncio.to_thread(dialects.last.wait_closed)


@pytest.mark.parametrize(("dialect", "result"), [("cut", "interrupted"), ("gated", "interrupted")])
async def test_speech_that_breaks_off_says_so(dialects: DialectServer, dialect: str, result: str) -> None:
    async with opened(dialects.base_url, upstream_idle_timeout_s=0.1) as provider:
        error = await failure(provider, call(SPEECH, dialect))
    assert (error.result, error.fail_over) == (result, False)
