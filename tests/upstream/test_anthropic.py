"""The adapter against a real server of its dialect: what it sends, what it learns, what each failure means."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from app.clock import EpochMs
from app.endpoints import CHAT
from app.settings import InferenceSettings, ProviderSettings
from app.upstream.anthropic import VERSION, AnthropicProvider
from app.upstream.anthropic_answer import completion
from app.upstream.provider import DONE, UNUSABLE, Call, Provider, UpstreamError
from tests.dialects import anthropic_answers as answers
from tests.dialects.anthropic import PATH, RETRY_AFTER_S, AnthropicServer
from tests.serving import model

KEY_ENV = "TEST_ANTHROPIC_KEY"
NOW_S = 1_790_000_000
SEARCH = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}


class StoppedClock:
    """A clock that stands."""

    def now_ms(self) -> EpochMs:
        return EpochMs(NOW_S * 1000 + 999)

    def monotonic_s(self) -> float:
        return 0.0


@pytest.fixture(scope="module")
def server() -> Iterator[AnthropicServer]:
    with AnthropicServer() as server:
        yield server


@asynccontextmanager
async def opened(base_url: str, **settings: Any) -> AsyncIterator[AnthropicProvider]:
    entry = {"name": "upstream", "adapter": "anthropic", "base_url": base_url, "models": [model("asked/for")]}
    provider = AnthropicProvider(
        ProviderSettings.model_validate({**entry, "api_key_env": KEY_ENV, **settings}),
        InferenceSettings(),
        clock=StoppedClock(),
    )
    yield provider
    await provider.close()


@pytest.fixture
async def provider(server: AnthropicServer) -> AsyncIterator[AnthropicProvider]:
    server.requests.clear()
    server.left.clear()
    async with opened(server.base_url) as provider:
        yield provider


def call(name: str, *, stream: bool = True, timeout_s: float = 10, **body: Any) -> Call:
    asked = {"model": "asked/for", "messages": [{"role": "user", "content": "Hello"}], **body}
    return Call("req_1", name, asked, stream, 4096, timeout_s)


async def read(provider: Provider, name: str, **parameters: Any) -> list[Any]:
    """The chunks of a stream, the end as None."""
    chunks: list[Any] = []
    await gather(provider, name, chunks, **parameters)
    return chunks


async def gather(provider: Provider, name: str, chunks: list[Any], **parameters: Any) -> None:
    async with provider.stream(call(name, **parameters)) as batches:
        async for batch in batches:
            chunks += [None if chunk == DONE else orjson.loads(chunk) for chunk in batch]


async def ask(provider: Provider, name: str, *, stream: bool, **parameters: Any) -> None:
    """One attempt, to its end."""
    if stream:
        await read(provider, name, **parameters)
    else:
        await provider.complete(call(name, stream=False, **parameters))


async def failure(provider: Provider, name: str, *, stream: bool, **parameters: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await ask(provider, name, stream=stream, **parameters)
    return caught.value


def text_of(chunks: list[Any]) -> str:
    return "".join(
        choice["delta"].get("content", "") for chunk in chunks if chunk is not None for choice in chunk["choices"]
    )


async def test_it_speaks_chat_alone_and_says_what_it_is(provider: AnthropicProvider) -> None:
    assert provider.endpoints == {CHAT.name}
    assert (provider.name, provider.engine_type, provider.machine_name) == ("upstream", "anthropic", "upstream")
    with pytest.raises(UpstreamError):
        provider.download(call("ok"))


@pytest.mark.parametrize("name", ["ok", "cached", "tools", "nothing"])
async def test_whole_and_streamed_answers(provider: AnthropicProvider, server: AnthropicServer, name: str) -> None:
    expected = completion(answers.MESSAGES[name], request_id="req_1", model=name, created=NOW_S)
    assert await provider.complete(call(name, stream=False)) == expected
    chunks = await read(provider, name)
    assert chunks[-1] is None
    assert text_of(chunks) == (expected["choices"][0]["message"]["content"] or "")
    assert chunks[-2]["choices"][0]["finish_reason"] == expected["choices"][0]["finish_reason"]
    assert [chunk["usage"] for chunk in chunks[:-1] if "usage" in chunk][-1] == expected["usage"]
    assert {(chunk["created"], chunk["model"], chunk["id"]) for chunk in chunks[:-1]} == {(NOW_S, name, expected["id"])}
    assert [request.body["stream"] for request in server.requests] == [False, True]


async def test_the_operators_key_and_the_version_are_sent_and_nothing_of_the_client(
    provider: AnthropicProvider, server: AnthropicServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    await read(provider, "ok")
    monkeypatch.setenv(KEY_ENV, "sk-ant-upstream")
    await read(provider, "ok")
    without, sent = ({name.lower(): text for name, text in each.headers.items()} for each in server.requests)
    assert "x-api-key" not in without
    assert (sent["x-api-key"], sent["anthropic-version"]) == ("sk-ant-upstream", VERSION)
    assert sent["content-type"] == "application/json"
    assert set(sent) <= {
        *("host", "x-api-key", "anthropic-version", "content-type", "content-length"),
        *("accept", "accept-encoding", "user-agent"),
    }


@pytest.mark.parametrize("end", ["", "/", "/v1", "/v1/"])
async def test_base_url_may_name_the_version(server: AnthropicServer, end: str) -> None:
    async with opened(server.base_url + end) as provider:
        await provider.complete(call("ok", stream=False))
    assert server.requests[-1].path == PATH


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("name", "asked", "requests", "kept"),
    [
        ("ok/new", {"temperature": 0.5, "top_p": 1}, 2, set()),
        ("ok/new", {"top_p": 0.5}, 2, set()),
        ("ok/new", {"reasoning_effort": "max"}, 1, {"thinking", "output_config"}),
        ("ok/old", {"reasoning_effort": "high", "temperature": 0}, 3, {"thinking"}),
        ("ok/old", {"temperature": 0}, 1, {"temperature"}),
    ],
)
async def test_form_that_a_model_refuses_is_left_out_from_then_on(
    provider: AnthropicProvider,
    server: AnthropicServer,
    name: str,
    asked: dict[str, Any],
    requests: int,
    kept: set[str],
    stream: bool,
) -> None:
    for _ in range(2):
        if stream:
            assert text_of(await read(provider, name, **asked)) == answers.TEXT
        else:
            await provider.complete(call(name, stream=False, **asked))
    assert len(server.requests) == requests + 1
    assert set(server.last) == {"model", "max_tokens", "stream", "messages"} | kept
    # Another model is asked in the newest form.
    await provider.complete(call("ok", stream=False, **asked))
    assert len(server.requests) == requests + 2


async def test_refusal_that_does_not_go_away_teaches_nothing(
    provider: AnthropicProvider, server: AnthropicServer
) -> None:
    words = "`temperature` is deprecated for this model."
    error = await failure(provider, f"status:400:{words}", stream=False, temperature=0.5)
    assert error.callers_fault
    assert error.message == words
    assert len(server.requests) == 2
    await failure(provider, f"status:400:{words}", stream=False, temperature=0.5)
    assert ["temperature" in request.body for request in server.requests] == [True, False, True, False]


async def test_what_the_api_cannot_do_is_refused_without_asking(
    provider: AnthropicProvider, server: AnthropicServer
) -> None:
    for stream in (False, True):
        error = await failure(provider, "ok", stream=stream, n=2)
        assert (error.callers_fault, error.status) == (True, 400)
    assert not server.requests


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("status", "result", "fail_over", "callers_fault"),
    [
        (400, "rejected", False, True),
        (413, "rejected", False, True),
        (401, "refused", True, False),
        (402, "refused", True, False),
        (403, "refused", True, False),
        (404, "refused", True, False),
        (429, "rate_limited", True, False),
        (529, "rate_limited", True, False),
        (500, "server_error", True, False),
        (504, "server_error", True, False),
    ],
)
async def test_failure_before_the_answer(
    provider: AnthropicProvider,
    server: AnthropicServer,
    status: int,
    result: str,
    fail_over: bool,
    callers_fault: bool,
    stream: bool,
) -> None:
    error = await failure(provider, f"status:{status}", stream=stream)
    assert (error.result, error.status, error.fail_over) == (result, status, fail_over)
    assert error.callers_fault is callers_fault
    assert error.retry_after_s == (RETRY_AFTER_S if status in {429, 529} else None)
    assert answers.SECRET_ORGANIZATION not in error.message
    assert len(server.requests) == 1


@pytest.mark.parametrize("words", answers.ACCOUNT_WORDS)
async def test_account_that_cannot_pay_is_the_operators_matter_and_does_not_leak(
    provider: AnthropicProvider, words: str
) -> None:
    error = await failure(provider, f"status:400:{words}", stream=True)
    assert (error.result, error.callers_fault, error.fail_over) == ("refused", False, True)
    assert error.message == UNUSABLE


async def test_caller_who_repeats_such_words_stays_at_fault(provider: AnthropicProvider) -> None:
    error = await failure(provider, f"status:400:tools.0.name: {answers.ACCOUNT_WORDS[1]}", stream=False)
    assert (error.result, error.callers_fault) == ("rejected", True)


@pytest.mark.parametrize(
    ("name", "stream", "result", "fail_over"),
    [
        ("error200", False, "error_in_body", True),
        ("error200", True, "error_in_body", True),
        ("notjson", False, "not_json", False),
        ("notjson", True, "not_a_completion", True),
        ("odd", False, "not_a_completion", True),
        ("odd", True, "not_a_completion", True),
        ("error_first", True, "rate_limited", True),
        ("error_late", True, "error_event", False),
    ],
)
async def test_answer_that_is_none(
    provider: AnthropicProvider, name: str, stream: bool, result: str, fail_over: bool
) -> None:
    error = await failure(provider, name, stream=stream)
    assert (error.result, error.fail_over, error.callers_fault) == (result, fail_over, False)


async def test_what_came_before_an_error_is_given_first(provider: AnthropicProvider) -> None:
    chunks: list[Any] = []
    with pytest.raises(UpstreamError):
        await gather(provider, "error_late", chunks)
    assert text_of(chunks) == next(answers.halves(answers.TEXT))


async def test_stream_that_stops_before_its_end_has_no_finish(provider: AnthropicProvider) -> None:
    chunks = await read(provider, "cut")
    assert None not in chunks
    assert text_of(chunks) == answers.TEXT
    assert all(choice["finish_reason"] is None for chunk in chunks for choice in chunk["choices"])


async def test_leaving_a_stream_stops_the_provider(provider: AnthropicProvider, server: AnthropicServer) -> None:
    async with provider.stream(call("gated")) as batches:
        async for batch in batches:
            assert batch
            break
    assert await asyncio.to_thread(server.left.wait, 10)


async def test_tool_loop_as_a_client_of_openais_goes_through_it(
    provider: AnthropicProvider, server: AnthropicServer
) -> None:
    first = await provider.complete(call("tools", stream=False, tools=[SEARCH]))
    said = first["choices"][0]["message"]
    results = [{"role": "tool", "tool_call_id": each["id"], "content": "72"} for each in said["tool_calls"]]
    messages = [{"role": "user", "content": "Weather?"}, said, *results]
    answer = await provider.complete(call("ok", stream=False, tools=[SEARCH], messages=messages))
    assert answer["choices"][0]["message"]["content"] == answers.TEXT
    assert [[block["type"] for block in turn["content"]] for turn in server.last["messages"]] == [
        ["text"],
        ["text", "tool_use", "tool_use"],
        ["tool_result", "tool_result"],
    ]
