"""The sandbox behind every endpoint: plain completions, and failures that are the same wherever they are asked for."""

from collections.abc import Mapping
from typing import Any

import pytest
from openai.types import Completion

from app.endpoints import COMPLETIONS, EMBEDDINGS, ENDPOINTS, IMAGES, RERANK, SPEECH, TRANSCRIPTIONS, Endpoint
from app.settings import SANDBOX
from app.upstream.provider import Call, UpstreamError
from app.upstream.sandbox import SandboxProvider
from app.upstream.sandbox_answer import CHOICES_MAX, DEFAULT_TOKENS
from app.upstream.sandbox_text import token_count
from tests.upstream.sandboxes import (
    asked,
    chunks,
    error_of,
    finishes,
    lists,
    recording,
    refusal_of,
    sandbox,
    usages,
)

# Where the text stands at each endpoint that gives a whole answer.
TEXTS: Mapping[str, str] = {
    "completions": "prompt",
    "embeddings": "input",
    "rerank": "query",
    "images.generations": "prompt",
}
WHOLE = (COMPLETIONS, EMBEDDINGS, RERANK, TRANSCRIPTIONS, IMAGES)


@pytest.fixture(autouse=True)
def _forget_attempts() -> None:
    SandboxProvider.attempts.clear()


def said(endpoint: Endpoint, text: str, **body: Any) -> Call:
    """A small call to any endpoint that gives a whole answer."""
    if endpoint is TRANSCRIPTIONS:
        return asked(endpoint, upload=recording(), prompt=text, **body)
    extra = {"documents": ["a"]} if endpoint is RERANK else {"size": "8x8"} if endpoint is IMAGES else {}
    fields: dict[str, Any] = {TEXTS[endpoint.name]: text, **extra, **body}
    return asked(endpoint, **fields)


def texts(stream: list[dict[str, Any]], index: int = 0) -> str:
    return "".join(choice["text"] for chunk in stream for choice in chunk["choices"] if choice["index"] == index)


class TestProvider:
    def test_every_endpoint_is_answered(self) -> None:
        assert sandbox().endpoints == {endpoint.name for endpoint in ENDPOINTS}

    def test_every_endpoint_has_a_model_with_a_price_and_a_cost_of_half(self) -> None:
        capabilities = {capability for model in SANDBOX.models for capability in model.capabilities}
        assert {endpoint.capability for endpoint in ENDPOINTS} <= capabilities
        for model in SANDBOX.models:
            price, cost = model.price.in_pico_usd(), model.cost.in_pico_usd()
            assert price == {unit: 2 * amount for unit, amount in cost.items()}

    def test_engine_and_machine_are_named_by_the_settings(self) -> None:
        plain, named = sandbox("first"), sandbox("first", engine_type="engo", machine_name="ma02")
        assert (plain.engine_type, plain.machine_name) == ("sandbox", "first")
        assert (named.engine_type, named.machine_name) == ("engo", "ma02")

    async def test_whole_speech_and_streamed_vectors_are_refused(self) -> None:
        assert "whole" in (await refusal_of(asked(SPEECH, input="hi"))).message
        assert (await error_of(sandbox(), asked(EMBEDDINGS, input="hi"))).callers_fault


class TestCompletions:
    async def test_whole_answer_has_openais_shape(self) -> None:
        body = await sandbox().complete(asked(COMPLETIONS, prompt="Say this is a test"))
        Completion.model_validate(body)
        assert body["object"] == "text_completion"
        assert body["id"].startswith("cmpl-sandbox-")
        (choice,) = body["choices"]
        assert list(choice) == ["index", "text", "logprobs", "finish_reason"]
        assert choice["text"].startswith("You wrote: Say this is a test. ")
        assert (choice["logprobs"], choice["finish_reason"]) == (None, "stop")
        usage = body["usage"]
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, DEFAULT_TOKENS, 65)

    async def test_stream_says_the_same(self) -> None:
        provider, call = sandbox(), asked(COMPLETIONS, prompt="[[sandbox tokens=9]] hi", n=2)
        whole, stream = await provider.complete(call), await chunks(provider, call)
        for chunk in stream:
            Completion.model_validate({**chunk, "choices": []})
            assert chunk["object"] == "text_completion"
        assert {chunk["id"] for chunk in stream} == {whole["id"]}
        assert [choice["text"] for choice in whole["choices"]] == [texts(stream), texts(stream, 1)]
        assert texts(stream) != texts(stream, 1)
        assert finishes(stream) == ["stop", "stop"]
        assert stream[-1]["choices"] == []
        assert usages(stream) == [whole["usage"]]
        assert all(set(choice) == {"index", "text", "logprobs", "finish_reason"} for choice in stream[0]["choices"])

    async def test_stop_and_the_limit_end_it(self) -> None:
        stopped = await sandbox().complete(asked(COMPLETIONS, prompt="one two", stop=["two"]))
        assert stopped["choices"][0]["text"] == "You wrote: one "
        cut = await sandbox().complete(asked(COMPLETIONS, prompt="[[sandbox tokens=5000]]"))
        assert cut["choices"][0]["finish_reason"] == "length"
        assert token_count(cut["choices"][0]["text"]) == cut["usage"]["completion_tokens"] == 1000

    async def test_each_prompt_of_a_list_has_its_choices(self) -> None:
        body = await sandbox().complete(asked(COMPLETIONS, prompt=["one", "[[sandbox tokens=20]]two"], n=2))
        openings = [choice["text"][:14] for choice in body["choices"]]
        assert openings == ["You wrote: one", "You wrote: one", "You wrote: two", "You wrote: two"]
        assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
        assert body["usage"]["completion_tokens"] == 80

    async def test_reasoning_and_tools_have_no_place(self) -> None:
        call = asked(COMPLETIONS, prompt="[[sandbox reasoning=5 tokens=2]] use the tool", reasoning_effort="high")
        assert (await sandbox().complete(call))["usage"]["completion_tokens"] == 2

    @pytest.mark.parametrize(
        "body",
        [
            {"prompt": None},
            {"prompt": []},
            {"prompt": [1, 2]},
            {"prompt": "a", "n": 0},
            {"prompt": ["a", "b"], "n": CHOICES_MAX},
        ],
    )
    async def test_what_cannot_be_completed_is_the_callers_fault(self, body: dict[str, Any]) -> None:
        assert (await refusal_of(asked(COMPLETIONS, **body))).status == 400

    async def test_stream_fails_and_is_cut_like_a_chat(self) -> None:
        error = await error_of(sandbox(), asked(COMPLETIONS, prompt="[[sandbox fail=error_event after=3]]"))
        assert (error.result, error.fail_over) == ("interrupted", False)
        data = await lists(sandbox(), asked(COMPLETIONS, prompt="[[sandbox fail=cut after=3]]"))
        assert sum(map(len, data)) == 3


@pytest.mark.parametrize("endpoint", WHOLE, ids=lambda endpoint: endpoint.name)
class TestFailures:
    @pytest.mark.parametrize(
        ("directive", "result", "status", "fail_over"),
        [
            ("fail=connect", "connect", None, True),
            ("fail=status:503", "server_error", 503, True),
            ("fail=status:422", "rejected", 422, False),
            ("fail=timeout", "timeout", None, False),
            ("fail=cut", "interrupted", None, False),
            ("tokens=x", "rejected", 400, False),
        ],
    )
    async def test_failure_is_what_was_asked_for(
        self, endpoint: Endpoint, directive: str, result: str, status: int | None, fail_over: bool
    ) -> None:
        with pytest.raises(UpstreamError) as caught:
            await sandbox().complete(said(endpoint, f"[[sandbox {directive}]] hello"))
        error = caught.value
        assert (error.result, error.status, error.fail_over) == (result, status, fail_over)

    async def test_times_fails_the_first_attempts_of_the_same_call(self, endpoint: Endpoint) -> None:
        failing = said(endpoint, "[[sandbox fail=connect times=1]] hello")
        with pytest.raises(UpstreamError):
            await sandbox("first").complete(failing)
        assert await sandbox("second").complete(failing)
        with pytest.raises(UpstreamError):
            await sandbox("first").complete(said(endpoint, "[[sandbox fail=connect times=1]] other"))

    async def test_at_fails_one_provider_alone(self, endpoint: Endpoint) -> None:
        failing = said(endpoint, "[[sandbox fail=connect at=first]] hello")
        assert await sandbox("second").complete(failing)
        with pytest.raises(UpstreamError):
            await sandbox("first").complete(failing)

    @pytest.mark.parametrize("directive", ["fail=stall", "first_ms=9000"])
    async def test_first_byte_is_waited_for_no_longer_than_the_caller_does(
        self, endpoint: Endpoint, directive: str
    ) -> None:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)

        provider = SandboxProvider(SANDBOX, sleep=sleep)
        with pytest.raises(UpstreamError) as caught:
            await provider.complete(said(endpoint, f"[[sandbox {directive}]] hello"))
        assert (caught.value.result, slept) == ("timeout", [5])
