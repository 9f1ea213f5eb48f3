"""What is learned from a refusal, what is not, and what OpenRouter, Ollama, llama.cpp and vLLM say their own way."""

from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest

from app.endpoints import CHAT
from app.settings import InferenceSettings, ProviderSettings
from app.upstream.openai import OpenAIProvider
from app.upstream.openai_quirks import MODELS_MAX, Quirks, refused_parameter
from app.upstream.provider import DONE, UNUSABLE, Call, UpstreamError
from app.upstream.refusal import Refusal
from tests.dialects import answers
from tests.dialects import endpoints as said
from tests.dialects.fixtures import dialects
from tests.dialects.server import DialectServer

__all__ = ["dialects"]


@pytest.fixture
async def provider(dialects: DialectServer) -> AsyncIterator[OpenAIProvider]:
    settings = ProviderSettings.model_validate({"name": "upstream", "base_url": dialects.base_url})
    provider = OpenAIProvider(settings, InferenceSettings())
    yield provider
    await provider.close()


def call(dialect: str, *, stream: bool = False, **body: Any) -> Call:
    content = {"model": "asked/for", "messages": [{"role": "user", "content": "Hello"}], **body}
    return Call("req_1", dialect, content, stream, 100, 10)


async def events(provider: OpenAIProvider, dialect: str) -> list[bytes]:
    async with provider.stream(call(dialect, stream=True)) as batches:
        return [data async for batch in batches for data in batch]


async def failure(provider: OpenAIProvider, dialect: str) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await provider.complete(call(dialect))
    return caught.value


def refusal(text: str, *, named: str | None = None, status: int = 400) -> Refusal:
    return Refusal(UpstreamError("rejected", "x"), status, named, text)


# Learning.


async def test_refusal_that_another_form_does_not_cure_teaches_nothing(
    provider: OpenAIProvider, dialects: DialectServer
) -> None:
    """A caller whose mistake is answered with a parameter's name changes nothing for others."""
    quirk = "always: stream_options and max_tokens are both unknown"
    for _ in range(2):
        with pytest.raises(UpstreamError):
            async with provider.stream(call("echo", stream=True, stop=quirk)):
                pass
    sent = [("stream_options" in request.body, "max_tokens" in request.body) for request in dialects.requests]
    assert sent[: len(sent) // 2] == sent[len(sent) // 2 :]
    assert sent[0] == (True, True)
    assert len(sent) == 6


@pytest.mark.parametrize(
    ("text", "named", "status", "expected"),
    [
        ("Unknown parameter: 'stream_options'", None, 400, "stream_options"),
        ("", "stream_options", 422, "stream_options"),
        ("stream_options", "temperature", 400, None),
        ("my_stream_options is unknown", None, 400, None),
        ("Unknown parameter: 'stream_options'", None, 404, None),
        ("Unknown parameter: 'stream_options'", None, 500, None),
        ("Use 'max_completion_tokens' instead of max_tokens", None, 400, "max_tokens"),
        ("Use 'max_completion_tokens' instead", None, 400, None),
        ("Invalid max_tokens value, the valid range of max_tokens is [1, 8192]", None, 400, None),
        ("must be at most 8192", "max_tokens", 400, None),
        ("", "max_tokens", 400, "max_tokens"),
        ("max_tokens: Extra inputs are not permitted", "max_tokens", 422, "max_tokens"),
        ("top_p is wrong", None, 400, None),
    ],
)
def test_parameter_is_refused_by_its_name_alone(
    text: str, named: str | None, status: int, expected: str | None
) -> None:
    said = refusal(text, named=named, status=status)
    sent = {"stream_options", "max_tokens", "messages"}
    assert refused_parameter(call("x"), said, sent=sent, refused=()) == expected


def test_server_that_refuses_both_limits_is_not_asked_in_turns() -> None:
    said = refusal("max_completion_tokens is wrong")
    assert refused_parameter(call("x"), said, sent={"max_completion_tokens"}, refused={"max_tokens"}) is None


def test_models_that_were_learned_of_are_bounded_and_the_longest_unused_is_forgotten() -> None:
    quirks = Quirks("upstream")
    learned = frozenset({"stream_options"})
    for number in range(MODELS_MAX):
        quirks.remember(call(f"model-{number}"), learned)
    quirks.refused(call("model-0"))
    quirks.remember(call("one more"), learned)
    assert quirks.refused(call("model-0")) == learned
    assert quirks.refused(call("model-1")) == frozenset()


def test_what_calls_learn_at_the_same_time_is_kept_together() -> None:
    quirks = Quirks("upstream")
    for learned in ("stream_options", "max_tokens"):
        quirks.remember(call("m"), frozenset({learned}))
    assert quirks.refused(call("m")) == {"stream_options", "max_tokens"}


def test_what_one_endpoint_refuses_is_not_held_against_another() -> None:
    quirks = Quirks("upstream")
    quirks.remember(call("m"), frozenset({"stream_options"}))
    other = Call("req_1", "m", {}, False, 1, 1, endpoint="completions")
    assert quirks.refused(other) == frozenset()
    assert quirks.refused(call("m")) == {"stream_options"}
    assert call("m").endpoint == CHAT.name


# What some servers say differently.


async def test_openrouters_comments_are_no_events(provider: OpenAIProvider) -> None:
    *chunks, done = await events(provider, "openrouter")
    assert done == DONE
    bodies = [orjson.loads(chunk) for chunk in chunks]
    assert "".join(choice["delta"].get("content", "") for body in bodies for choice in body["choices"]) == answers.TEXT
    assert bodies[-1]["usage"]["cost"] == said.OPENROUTER_COST


async def test_openrouters_error_inside_a_choice_is_one(provider: OpenAIProvider) -> None:
    error = await failure(provider, "openrouter_failed")
    assert (error.result, error.fail_over, error.status) == ("error_in_body", True, 200)
    assert answers.SECRET_ACCOUNT not in error.message


async def test_openrouters_error_in_mid_stream_arrives_with_its_chunk(provider: OpenAIProvider) -> None:
    chunks = await events(provider, "openrouter_failed")
    assert "error" in orjson.loads(chunks[-2])


async def test_moderation_is_the_callers_matter_and_opens_no_breaker(provider: OpenAIProvider) -> None:
    error = await failure(provider, "openrouter_moderated")
    assert (error.result, error.callers_fault, error.fail_over) == ("rejected", True, False)
    assert error.message == "the provider's moderation refused the input"


async def test_words_that_openrouter_hands_on_are_those_of_the_provider_behind_it(provider: OpenAIProvider) -> None:
    assert (await failure(provider, "openrouter_handed_on")).message == "top_k must be at least 1"


async def test_llamas_timings_do_no_harm(provider: OpenAIProvider) -> None:
    assert (await provider.complete(call("llama")))["usage"]["completion_tokens"] == 5
    assert orjson.loads((await events(provider, "llama"))[-2])["usage"]["prompt_tokens"] == 11


@pytest.mark.parametrize(
    ("dialect", "status", "message"),
    [
        ("llama_too_long", 400, "the request exceeds the available context size, try increasing it"),
        ("vllm_old", 400, "top_p must be in (0, 1], got 0.0."),
        ("ollama_missing", 404, 'model "llama3:8b" not found, try pulling it first'),
    ],
)
async def test_refusals_are_understood_in_each_form(
    provider: OpenAIProvider, dialect: str, status: int, message: str
) -> None:
    error = await failure(provider, dialect)
    assert (error.result, error.status, error.message) == ("rejected", status, message)


async def test_model_is_named_as_the_client_named_it_and_the_host_not_at_all(
    provider: OpenAIProvider, dialects: DialectServer
) -> None:
    error = await failure(provider, "acme-eastus-deployment")
    assert error.message == "Nothing is called 'asked/for' here"
    settings = ProviderSettings.model_validate({"name": "u", "base_url": f"http://localhost.:{dialects.port}/v1"})
    near = OpenAIProvider(settings, InferenceSettings())
    with pytest.raises(UpstreamError) as caught:
        await near.complete(call("echo", stop="at localhost. of ours"))
    await near.close()
    assert "localhost" not in caught.value.message


@pytest.mark.parametrize("dialect", ["gemini_key", "no_credit", "quota"])
async def test_account_that_cannot_pay_is_the_operators_matter_whatever_the_status(
    provider: OpenAIProvider, dialect: str
) -> None:
    error = await failure(provider, dialect)
    assert (error.result, error.fail_over, error.callers_fault) == ("refused", True, False)
    assert error.message == UNUSABLE
