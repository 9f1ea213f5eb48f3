"""The adapter against a real upstream: what it sends, and what each failure means to its caller."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from app.settings import InferenceSettings, ProviderSettings
from app.upstream.openai import OpenAIProvider
from app.upstream.provider import DONE, Call, UpstreamError
from tests.dialects import answers
from tests.dialects.fixtures import dialects
from tests.dialects.server import GATED_AFTER, DialectServer
from tests.serving import model

__all__ = ["dialects"]

KEY_ENV = "TEST_UPSTREAM_KEY"
BODY: Mapping[str, Any] = {"model": "asked/for", "messages": [{"role": "user", "content": "Hello"}]}


@asynccontextmanager
async def opened(base_url: str, **inference: float) -> AsyncIterator[OpenAIProvider]:
    """An adapter for one upstream."""
    served = model("asked/for")
    settings = ProviderSettings.model_validate(
        {"name": "upstream", "base_url": base_url, "api_key_env": KEY_ENV, "models": [served]}
    )
    provider = OpenAIProvider(settings, InferenceSettings.model_validate(inference))
    yield provider
    await provider.close()


@pytest.fixture
async def provider(dialects: DialectServer) -> AsyncIterator[OpenAIProvider]:
    async with opened(dialects.base_url) as provider:
        yield provider


def call(dialect: str, *, stream: bool = True, timeout_s: float = 10, **body: Any) -> Call:
    return Call("req_1", dialect, {**BODY, **body}, stream, 100, timeout_s)


async def read(provider: OpenAIProvider, dialect: str, **parameters: Any) -> list[bytes]:
    """The data of every event of a stream."""
    async with provider.stream(call(dialect, **parameters)) as batches:
        return [data async for batch in batches for data in batch]


async def ask(provider: OpenAIProvider, dialect: str, *, stream: bool, **parameters: Any) -> None:
    """One attempt, to its end."""
    if stream:
        await read(provider, dialect, **parameters)
    else:
        await provider.complete(call(dialect, stream=False, **parameters))


async def failure(provider: OpenAIProvider, dialect: str, *, stream: bool, **parameters: Any) -> UpstreamError:
    """The error of one attempt."""
    with pytest.raises(UpstreamError) as caught:
        await ask(provider, dialect, stream=stream, **parameters)
    return caught.value


async def test_stream_gives_the_data_of_each_event_and_its_end(provider: OpenAIProvider) -> None:
    events = await read(provider, "ok")
    assert events.pop() == DONE
    assert [orjson.loads(event) for event in events] == answers.stream("ok", wants_usage=True)


async def test_whole_answer_is_given_as_it_is(provider: OpenAIProvider) -> None:
    assert await provider.complete(call("ok", stream=False)) == answers.completion("ok")


async def test_nothing_but_the_validated_body_and_the_operators_key_is_sent(
    provider: OpenAIProvider, dialects: DialectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_ENV, "sk-upstream")
    await read(provider, "ok", stream_options={"include_usage": False, "odd": 1}, max_tokens=5, temperature=1)
    sent = dialects.last
    assert sent.body == {
        **BODY,
        "model": "ok",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 100,
        "temperature": 1,
    }
    assert sent.headers["authorization"] == "Bearer sk-upstream"
    assert sent.headers["accept-encoding"] == "identity"
    assert set(sent.headers) <= {
        "host",
        "authorization",
        "accept-encoding",
        "content-type",
        "content-length",
        "accept",
        "user-agent",
    }


async def test_no_key_is_sent_where_none_is_set(provider: OpenAIProvider, dialects: DialectServer) -> None:
    await provider.complete(call("ok", stream=False))
    assert "authorization" not in dialects.last.headers
    assert dialects.last.body["stream"] is False
    assert "stream_options" not in dialects.last.body


@pytest.mark.parametrize(
    ("dialect", "parameter", "instead", "body"),
    [
        ("strict", "stream_options", None, {}),
        ("strict_limit", "max_tokens", "max_completion_tokens", {}),
        ("strict_limit_old", "max_completion_tokens", "max_tokens", {"max_completion_tokens": 7}),
    ],
)
async def test_refused_parameter_is_left_out_from_then_on(
    provider: OpenAIProvider,
    dialects: DialectServer,
    dialect: str,
    parameter: str,
    instead: str | None,
    body: dict[str, Any],
) -> None:
    for _ in range(2):
        assert (await read(provider, dialect, **body))[-1] == DONE
    assert [parameter in request.body for request in dialects.requests] == [True, False, False]
    if instead is not None:
        assert dialects.last.body[instead] == 100
    await read(provider, "ok", **body)
    assert parameter in dialects.last.body


async def test_connection_is_used_again_after_an_answer_was_read_to_its_end(
    provider: OpenAIProvider, dialects: DialectServer
) -> None:
    for _ in range(3):
        await read(provider, "ok")
        await provider.complete(call("ok", stream=False))
    assert len(dialects.requests) == 6
    assert len(dialects._connections) == 1


async def test_leaving_a_stream_stops_the_upstream(provider: OpenAIProvider, dialects: DialectServer) -> None:
    async with provider.stream(call("gated")) as batches:
        seen = 0
        async for batch in batches:
            seen += len(batch)
            if seen >= GATED_AFTER:
                break
    assert await asyncio.to_thread(dialects.last.wait_closed)


async def test_cancelling_a_call_that_waits_stops_the_upstream(
    provider: OpenAIProvider, dialects: DialectServer
) -> None:
    task = asyncio.create_task(provider.complete(call("slow_head", stream=False)))
    assert await asyncio.to_thread(dialects.wait_for_requests, 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(dialects.last.wait_closed)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("dialect", "result", "status", "fail_over", "callers_fault"),
    [
        ("status:400", "rejected", 400, False, True),
        ("status:404", "rejected", 404, False, True),
        ("status:413", "rejected", 413, False, True),
        ("status:401", "refused", 401, True, False),
        ("status:402", "refused", 402, True, False),
        ("status:403", "refused", 403, True, False),
        ("status:429", "rate_limited", 429, True, False),
        ("status:500", "server_error", 500, True, False),
        ("status:503", "server_error", 503, True, False),
        ("redirect", "server_error", 302, True, False),
        ("hangup", "interrupted", None, False, False),
        ("reset", "interrupted", None, False, False),
    ],
)
async def test_failure_before_the_answer(
    provider: OpenAIProvider,
    dialects: DialectServer,
    dialect: str,
    result: str,
    status: int | None,
    fail_over: bool,
    callers_fault: bool,
    stream: bool,
) -> None:
    error = await failure(provider, dialect, stream=stream)
    assert (error.result, error.status, error.fail_over) == (result, status, fail_over)
    assert error.callers_fault is callers_fault
    assert error.retry_after_s == (answers.RETRY_AFTER_S if dialect == "status:429" else None)
    assert all(secret not in error.message for secret in (answers.SECRET_KEY, answers.SECRET_ACCOUNT))
    assert [request.path for request in dialects.requests] == ["/v1/chat/completions"]


@pytest.mark.parametrize("stream", [False, True])
async def test_provider_that_cannot_be_reached_may_be_passed_over(stream: bool) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with opened(f"http://127.0.0.1:{bound.getsockname()[1]}/v1") as provider:
            error = await failure(provider, "ok", stream=stream)
    assert (error.result, error.fail_over, error.callers_fault) == ("connect", True, False)
    assert "127.0.0.1" not in error.message


@pytest.mark.parametrize("stream", [False, True])
async def test_silence_before_the_answer_is_given_up_and_nobody_else_is_asked(
    provider: OpenAIProvider, dialects: DialectServer, stream: bool
) -> None:
    error = await failure(provider, "slow_head", stream=stream, timeout_s=0.05)
    assert (error.result, error.fail_over) == ("timeout", False)
    assert await asyncio.to_thread(dialects.last.wait_closed)


async def test_silence_in_the_middle_ends_the_answer(dialects: DialectServer) -> None:
    async with opened(dialects.base_url, upstream_idle_timeout_s=0.1) as provider:
        error = await failure(provider, "midline", stream=True)
    assert (error.result, error.fail_over) == ("interrupted", False)
    assert await asyncio.to_thread(dialects.last.wait_closed)


@pytest.mark.parametrize(
    ("dialect", "stream", "result", "fail_over"),
    [
        ("cut", True, "interrupted", False),
        ("cut", False, "interrupted", False),
        ("cut_clean", False, "not_json", False),
        ("notjson", True, "not_a_completion", True),
        ("notjson", False, "not_json", False),
        ("error200", False, "error_in_body", True),
    ],
)
async def test_answer_that_is_none(
    provider: OpenAIProvider, dialect: str, stream: bool, result: str, fail_over: bool
) -> None:
    error = await failure(provider, dialect, stream=stream)
    assert (error.result, error.fail_over) == (result, fail_over)


@pytest.mark.parametrize(
    ("dialect", "stream", "bound"),
    [
        ("huge_event", True, "upstream_event_bytes_max"),
        ("huge_body", False, "upstream_body_bytes_max"),
        ("big", False, "upstream_body_bytes_max"),
    ],
)
async def test_answer_past_its_bound_is_stopped(
    dialects: DialectServer, dialect: str, stream: bool, bound: str
) -> None:
    async with opened(dialects.base_url, **{bound: 100_000}) as provider:
        error = await failure(provider, dialect, stream=stream)
    assert (error.result, error.fail_over) == ("too_large", False)
    # The megabyte fits into the kernel's buffers: its server cannot know that nobody read it.
    assert dialect == "big" or await asyncio.to_thread(dialects.last.wait_closed)
