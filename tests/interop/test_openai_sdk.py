"""The unmodified OpenAI SDK, as its users write it: only ``base_url`` and ``api_key`` are ours."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, cast

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import (
    ChatCompletionChunk,
    ChatCompletionMessageFunctionToolCall,
    ChatCompletionMessageParam,
    ChatCompletionToolUnionParam,
)

from app.rails.key_store import KeyLimits
from tests.dialects import answers
from tests.dialects.server import GATED_AFTER, DialectServer
from tests.serving import FareboxServer, Payer

MODEL = "sandbox/echo"
ASK: list[ChatCompletionMessageParam] = [{"role": "user", "content": "[[sandbox tokens=12]]Good morning"}]
PROMPT_TOKENS = 9  # 33 bytes
TOOLS: list[ChatCompletionToolUnionParam] = [
    {
        "type": "function",
        "function": {
            "name": "next_ferry",
            "description": "When the next ferry leaves.",
            "parameters": {
                "type": "object",
                "properties": {"harbour": {"type": "string"}, "passengers": {"type": "integer"}},
                "required": ["harbour"],
            },
        },
    }
]
USE_TOOL: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Use the tool next_ferry."}]


@pytest.fixture
def payer(farebox: FareboxServer) -> Iterator[Payer]:
    """A payer whose requests are over, and the books proven, at the end."""
    payer = farebox.payer()
    yield payer
    farebox.wait_settled(payer)
    farebox.assert_green()


@pytest.fixture
def client(farebox: FareboxServer, payer: Payer) -> Iterator[OpenAI]:
    """The SDK's client."""
    with OpenAI(base_url=f"{farebox.url}/v1", api_key=payer.key, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(farebox: FareboxServer, payer: Payer) -> AsyncIterator[AsyncOpenAI]:
    """The SDK's asynchronous client."""
    async with AsyncOpenAI(base_url=f"{farebox.url}/v1", api_key=payer.key, max_retries=0) as client:
        yield client


def texts(chunks: list[ChatCompletionChunk]) -> dict[int, str]:
    """The text of each choice."""
    found: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            found[choice.index] = found.get(choice.index, "") + (choice.delta.content or "")
    return found


def raised_by(client: OpenAI, kind: type[openai.APIStatusError], **parameters: Any) -> openai.APIStatusError:
    """The SDK's exception for a request."""
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": MODEL, "messages": ASK, **parameters})
    return caught.value


class TestAnswers:
    def test_plain(self, client: OpenAI, farebox: FareboxServer, payer: Payer) -> None:
        answer = client.chat.completions.create(model=MODEL, messages=ASK)
        assert answer.object == "chat.completion"
        assert answer.model == MODEL
        assert answer.choices[0].finish_reason == "stop"
        assert len(answer.choices[0].message.content or "") == 48
        usage = answer.usage
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (PROMPT_TOKENS, 12, 21)
        assert usage.model_extra is not None
        assert round(usage.model_extra["cost"] * 10**9) == PROMPT_TOKENS * 1000 + 12 * 4000
        assert farebox.outcomes(payer)[0]["charged"] == PROMPT_TOKENS * 1000 + 12 * 4000
        assert answer._request_id == farebox.outcomes(payer)[0]["request_id"]

    def test_stream_without_usage(self, client: OpenAI) -> None:
        chunks = list(client.chat.completions.create(model=MODEL, messages=ASK, stream=True))
        assert [chunk.usage for chunk in chunks] == [None] * len(chunks)
        assert all(chunk.choices and chunk.model == MODEL for chunk in chunks)
        assert len(texts(chunks)[0]) == 48
        assert chunks[-1].choices[0].finish_reason == "stop"

    def test_stream_with_usage(self, client: OpenAI) -> None:
        chunks = list(
            client.chat.completions.create(
                model=MODEL, messages=ASK, stream=True, stream_options={"include_usage": True}
            )
        )
        assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
        usage = chunks[-1].usage
        assert chunks[-1].choices == []
        assert usage is not None
        assert (usage.prompt_tokens, usage.completion_tokens) == (PROMPT_TOKENS, 12)
        assert len({chunk.id for chunk in chunks}) == 1

    def test_stream_says_what_the_whole_answer_says(self, client: OpenAI) -> None:
        whole = client.chat.completions.create(model=MODEL, messages=ASK)
        chunks = list(client.chat.completions.create(model=MODEL, messages=ASK, stream=True))
        assert texts(chunks) == {0: whole.choices[0].message.content}

    @pytest.mark.parametrize("streams", [False, True])
    def test_several_choices(self, client: OpenAI, farebox: FareboxServer, payer: Payer, streams: bool) -> None:
        if streams:
            found = texts(list(client.chat.completions.create(model=MODEL, messages=ASK, n=2, stream=True)))
        else:
            answer = client.chat.completions.create(model=MODEL, messages=ASK, n=2)
            found = {choice.index: choice.message.content or "" for choice in answer.choices}
        assert sorted(found) == [0, 1]
        assert [len(text) for text in found.values()] == [48, 48]
        assert found[0] != found[1]
        farebox.wait_settled(payer, requests=1)
        assert farebox.outcomes(payer)[0]["charged"] == PROMPT_TOKENS * 1000 + 24 * 4000

    def test_tool_is_called_and_its_answer_taken_up(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(model=MODEL, messages=USE_TOOL, tools=TOOLS)
        assert answer.choices[0].finish_reason == "tool_calls"
        (call,) = answer.choices[0].message.tool_calls or []
        assert isinstance(call, ChatCompletionMessageFunctionToolCall)
        assert call.function.name == "next_ferry"
        assert set(json.loads(call.function.arguments)) == {"harbour", "passengers"}
        follow_up: list[ChatCompletionMessageParam] = [
            *USE_TOOL,
            cast("ChatCompletionMessageParam", answer.choices[0].message.model_dump(exclude_none=True)),
            {"role": "tool", "tool_call_id": call.id, "content": "at noon"},
        ]
        final = client.chat.completions.create(model=MODEL, messages=follow_up, tools=TOOLS)
        assert "at noon" in (final.choices[0].message.content or "")
        assert final.choices[0].finish_reason == "stop"

    def test_tool_call_is_streamed(self, client: OpenAI) -> None:
        chunks = list(client.chat.completions.create(model=MODEL, messages=USE_TOOL, tools=TOOLS, stream=True))
        calls = [call for chunk in chunks for choice in chunk.choices for call in choice.delta.tool_calls or []]
        assert [call.function.name for call in calls if call.function and call.function.name] == ["next_ferry"]
        arguments = "".join(call.function.arguments or "" for call in calls if call.function)
        assert set(json.loads(arguments)) == {"harbour", "passengers"}
        assert chunks[-1].choices[0].finish_reason == "tool_calls"

    def test_helper_that_assembles_a_stream(self, client: OpenAI) -> None:
        with client.chat.completions.stream(model=MODEL, messages=USE_TOOL, tools=TOOLS) as stream:
            final = stream.get_final_completion()
        assert final.choices[0].finish_reason == "tool_calls"
        assert len(final.choices[0].message.tool_calls or []) == 1

    def test_response_format(self, client: OpenAI) -> None:
        schema: dict[str, object] = {
            "type": "object",
            "properties": {"fare": {"type": "integer"}, "class": {"enum": ["first", "second"]}},
        }
        answer = client.chat.completions.create(
            model=MODEL,
            messages=ASK,
            response_format={"type": "json_schema", "json_schema": {"name": "fare", "schema": schema}},
        )
        value = json.loads(answer.choices[0].message.content or "")
        assert isinstance(value["fare"], int)
        assert value["class"] in {"first", "second"}
        loose = client.chat.completions.create(model=MODEL, messages=ASK, response_format={"type": "json_object"})
        assert set(json.loads(loose.choices[0].message.content or "")) == {"answer"}

    def test_other_parameters_are_taken(self, client: OpenAI) -> None:
        answer = client.chat.completions.create(
            model="sandbox",
            messages=[{"role": "system", "content": "Be brief."}, *ASK],
            logprobs=True,
            top_logprobs=2,
            temperature=0.2,
            top_p=0.9,
            seed=7,
            stop=["never said"],
            presence_penalty=0.1,
            frequency_penalty=0.1,
            user="somebody",
            max_completion_tokens=5,
            reasoning_effort="none",
        )
        assert answer.choices[0].finish_reason == "length"
        assert answer.usage is not None
        assert answer.usage.completion_tokens == 5


class TestAborts:
    def test_stream_closed_early_is_billed_for_what_was_read(
        self, client: OpenAI, farebox: FareboxServer, payer: Payer, shared_dialects: DialectServer
    ) -> None:
        with client.chat.completions.create(model="dialect/gated", messages=ASK, stream=True) as stream:
            chunks = [next(stream) for _ in range(GATED_AFTER)]
        said = "".join(answers.CONTENT[:GATED_AFTER])
        assert texts(chunks) == {0: said}
        assert shared_dialects.last.wait_closed()
        farebox.wait_settled(payer, requests=1)
        (outcome,) = farebox.outcomes(payer)
        assert outcome["status"] == "aborted"
        assert outcome["charged"] == PROMPT_TOKENS * 1000 + -(-len(said) // 4) * 4000

    async def test_cancelled_task_stops_the_upstream(
        self, async_client: AsyncOpenAI, farebox: FareboxServer, payer: Payer, shared_dialects: DialectServer
    ) -> None:
        begun = asyncio.Event()

        async def read() -> None:
            async for _ in await async_client.chat.completions.create(model="dialect/gated", messages=ASK, stream=True):
                begun.set()

        task = asyncio.create_task(read())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(shared_dialects.last.wait_closed)
        await asyncio.to_thread(farebox.wait_settled, payer, requests=1)
        assert farebox.outcomes(payer)[0]["status"] == "aborted"


class TestErrors:
    def test_unknown_key(self, farebox: FareboxServer) -> None:
        with OpenAI(base_url=f"{farebox.url}/v1", api_key="sk-fb-unknown", max_retries=0) as client:
            error = raised_by(client, openai.AuthenticationError)
        assert error.code == "invalid_api_key"

    def test_bad_parameter(self, client: OpenAI) -> None:
        error = raised_by(client, openai.BadRequestError, temperature=3)
        assert (error.code, error.param) == ("invalid_parameter", "temperature")

    def test_unknown_model(self, client: OpenAI) -> None:
        error = raised_by(client, openai.NotFoundError, model="nobody/knows-it")
        assert (error.code, error.param) == ("model_not_found", "model")

    def test_too_many_requests(self, farebox: FareboxServer) -> None:
        limited = farebox.payer(limits=KeyLimits(tokens_per_minute=1))
        with OpenAI(base_url=f"{farebox.url}/v1", api_key=limited.key, max_retries=0) as client:
            error = raised_by(client, openai.RateLimitError)
        assert error.code == "tokens_per_minute"
        assert 0 < int(error.response.headers["retry-after"]) <= 60

    def test_no_funds(self, farebox: FareboxServer) -> None:
        with OpenAI(base_url=f"{farebox.url}/v1", api_key=farebox.payer("0").key) as client:
            error = raised_by(client, openai.APIStatusError)
        assert (error.status_code, error.code, error.type) == (402, "insufficient_balance", "billing_error")
        assert "top up the balance" in error.message

    def test_failed_provider_is_tried_again_by_the_sdk(
        self, farebox: FareboxServer, payer: Payer, shared_dialects: DialectServer
    ) -> None:
        shared_dialects.clear()
        with OpenAI(base_url=f"{farebox.url}/v1", api_key=payer.key, max_retries=1) as client:
            error = raised_by(client, openai.InternalServerError, model="dialect/status:503")
        assert error.status_code == 502
        assert len(shared_dialects.requests) == 2

    def test_refused_request_is_not_tried_again_by_the_sdk(
        self, farebox: FareboxServer, payer: Payer, shared_dialects: DialectServer
    ) -> None:
        shared_dialects.clear()
        with OpenAI(base_url=f"{farebox.url}/v1", api_key=payer.key, max_retries=2) as client:
            raised_by(client, openai.BadRequestError, model="dialect/status:400")
        assert len(shared_dialects.requests) == 1

    @pytest.mark.parametrize("dialect", ["error_late", "cut_clean"])
    def test_error_in_the_middle_of_a_stream_raises(self, client: OpenAI, dialect: str) -> None:
        read: list[ChatCompletionChunk] = []
        with pytest.raises(openai.APIError) as caught:
            read.extend(client.chat.completions.create(model=f"dialect/{dialect}", messages=ASK, stream=True))
        assert caught.value.code == "upstream_interrupted"

    async def test_error_in_the_middle_of_an_asynchronous_stream_raises(self, async_client: AsyncOpenAI) -> None:
        stream = await async_client.chat.completions.create(model="dialect/error_late", messages=ASK, stream=True)
        said = ""

        async def read() -> None:
            nonlocal said
            async for chunk in stream:
                said += chunk.choices[0].delta.content or ""

        with pytest.raises(openai.APIError) as caught:
            await read()
        assert said == "".join(answers.CONTENT[:GATED_AFTER])
        assert caught.value.code == "upstream_interrupted"


class TestAsynchronous:
    async def test_plain(self, async_client: AsyncOpenAI) -> None:
        answer = await async_client.chat.completions.create(model=MODEL, messages=ASK)
        assert len(answer.choices[0].message.content or "") == 48

    async def test_many_streams_at_once(self, async_client: AsyncOpenAI, farebox: FareboxServer, payer: Payer) -> None:
        async def said() -> dict[int, str]:
            stream = await async_client.chat.completions.create(
                model=MODEL, messages=ASK, stream=True, stream_options={"include_usage": True}, n=2
            )
            return texts([chunk async for chunk in stream])

        found = await asyncio.gather(*(said() for _ in range(20)))
        assert len(found[0][0]) == 48
        assert all(each == found[0] for each in found)
        await asyncio.to_thread(farebox.wait_settled, payer, requests=20)
        assert farebox.balance(payer)["debits_posted"] == 20 * (PROMPT_TOKENS * 1000 + 24 * 4000)

    async def test_tools(self, async_client: AsyncOpenAI) -> None:
        answer = await async_client.chat.completions.create(model=MODEL, messages=USE_TOOL, tools=TOOLS)
        assert len(answer.choices[0].message.tool_calls or []) == 1

    async def test_models(self, async_client: AsyncOpenAI) -> None:
        assert MODEL in {model.id async for model in async_client.models.list()}
        assert (await async_client.models.retrieve(MODEL)).id == MODEL


class TestModels:
    def test_listed_and_retrieved_by_ids_with_slashes_and_by_alias(self, client: OpenAI) -> None:
        listed = {model.id: model for model in client.models.list()}
        assert listed[MODEL].object == "model"
        assert client.models.retrieve("dialect/ok").id == "dialect/ok"
        assert client.models.retrieve("sandbox").id == MODEL

    def test_unknown(self, client: OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("nobody/knows-it")
        assert caught.value.code == "model_not_found"
