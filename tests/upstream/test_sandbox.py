"""The built-in provider: exact to the token, in OpenAI's shape, and failing in every way it is told to."""

import asyncio
import json
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from app.upstream.provider import Call, Provider, UpstreamError
from app.upstream.sandbox import ATTEMPTS_PROMPTS_MAX, Attempts, SandboxProvider
from app.upstream.sandbox_answer import DEFAULT_TOKENS, REASONING_TOKENS
from app.upstream.sandbox_stream import BATCH_EVENTS_MAX
from app.upstream.sandbox_text import SCHEMA_NODES_MAX, example_value, prose, token_count
from tests.upstream.sandboxes import Timeline, call, chunks, deltas, error_of, finishes, lists, sandbox, text_of, usages

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string"},
                "days": {"type": "integer", "minimum": 3},
                "unit": {"enum": ["celsius", "kelvin"]},
            },
            "required": ["city"],
        },
    },
}


@pytest.fixture(autouse=True)
def _forget_attempts() -> None:
    SandboxProvider.attempts.clear()


async def read_until_error(provider: Provider, asked: Call) -> tuple[str, UpstreamError]:
    """The content that came before the stream broke, and how it broke."""
    received: list[dict[str, Any]] = []
    try:
        async with provider.stream(asked) as events:
            async for event in events:
                received.extend(json.loads(item) for item in event)
    except UpstreamError as error:
        return text_of(received), error
    raise AssertionError("the stream did not fail")


class TestAnswer:
    async def test_stream_has_openais_shape(self) -> None:
        stream = await chunks(sandbox(), call("[[sandbox tokens=3]]hi"))
        for chunk in stream:
            ChatCompletionChunk.model_validate(chunk)
            assert chunk["object"] == "chat.completion.chunk"
            assert chunk["model"] == "echo"
        assert len({chunk["id"] for chunk in stream}) == 1
        assert stream[0]["id"].startswith("chatcmpl-sandbox-")
        assert deltas(stream)[0] == {"role": "assistant", "content": "", "refusal": None}
        assert all("role" not in delta for delta in deltas(stream)[1:])
        assert stream[-1]["choices"] == []
        assert [chunk["usage"] for chunk in stream[:-1]] == [None] * (len(stream) - 1)

    async def test_every_event_carries_one_token_of_four_bytes(self) -> None:
        stream = await chunks(sandbox(), call())
        pieces = [delta["content"] for delta in deltas(stream) if delta.get("content")]
        assert len(pieces) == DEFAULT_TOKENS
        assert {len(piece.encode()) for piece in pieces} == {4}
        assert usages(stream)[-1]["completion_tokens"] == DEFAULT_TOKENS
        assert finishes(stream) == ["stop"]

    async def test_answer_echoes_the_user_without_the_directive(self) -> None:
        text = text_of(await chunks(sandbox(), call("what [[sandbox tokens=40]]is a fare?")))
        assert text.startswith("You said: what is a fare?. ")
        assert "sandbox" not in text

    async def test_whole_answer_is_what_the_stream_says(self) -> None:
        provider = sandbox()
        asked = call("[[sandbox reasoning=7 cached=2]] hi", n=2)
        whole = await provider.complete(asked)
        stream = await chunks(provider, asked)
        ChatCompletion.model_validate(whole)
        assert [choice["message"]["content"] for choice in whole["choices"]] == [
            text_of(stream),
            text_of(stream, index=1),
        ]
        assert whole["choices"][0]["message"]["reasoning_content"] == text_of(stream, "reasoning_content")
        assert [whole["usage"]] == usages(stream)
        assert whole["id"] == stream[0]["id"]

    async def test_same_request_same_answer_and_other_seed_another(self) -> None:
        first = await sandbox().complete(call(seed=1))
        again = await sandbox().complete(call(seed=1, temperature=2, user="u"))
        other = await sandbox().complete(call(seed=2))
        assert first["choices"] == again["choices"]
        assert first["id"] == again["id"]
        assert first["id"] != other["id"]
        assert first["choices"] != other["choices"]

    @pytest.mark.parametrize(
        ("content", "tokens"),
        [
            ("", 1),
            ("abcd", 1),
            ("abcde", 2),
            ("\u00e9\u00e9\u00e9", 2),
            ("\ud800", 1),
            ([{"type": "text", "text": "abcd"}, {"type": "image_url", "image_url": {"url": "data:,x"}}], 1),
            (None, 1),
        ],
    )
    async def test_prompt_is_counted_in_bytes_of_text(self, content: Any, tokens: int) -> None:
        asked = call(messages=[{"role": "user", "content": content}])
        assert (await sandbox().complete(asked))["usage"]["prompt_tokens"] == tokens

    async def test_prompt_counts_all_messages_together(self) -> None:
        messages = [{"role": "system", "content": "ab"}, {"role": "user", "content": "cde"}]
        assert (await sandbox().complete(call(messages=messages)))["usage"]["prompt_tokens"] == 2

    async def test_output_limit_cuts_with_length(self) -> None:
        stream = await chunks(sandbox(), call(limit=5))
        assert token_count(text_of(stream)) == usages(stream)[-1]["completion_tokens"] == 5
        assert finishes(stream) == ["length"]

    async def test_answer_that_just_fits_stops(self) -> None:
        stream = await chunks(sandbox(), call("[[sandbox tokens=5]]", limit=5))
        assert token_count(text_of(stream)) == 5
        assert finishes(stream) == ["stop"]

    async def test_empty_answer_has_no_content(self) -> None:
        stream = await chunks(sandbox(), call("[[sandbox tokens=0]]"))
        assert text_of(stream) == ""
        assert usages(stream)[-1]["completion_tokens"] == 0
        assert finishes(stream) == ["stop"]

    @pytest.mark.parametrize("stop", ["hello", ["nowhere", "there", "hello"]])
    async def test_text_ends_before_the_first_stop_sequence(self, stop: Any) -> None:
        stream = await chunks(sandbox(), call(stop=stop))
        assert text_of(stream) == "You said: "
        assert usages(stream)[-1]["completion_tokens"] == 3
        assert finishes(stream) == ["stop"]

    async def test_choices_differ_and_are_interleaved(self) -> None:
        stream = await chunks(sandbox(), call("[[sandbox tokens=20]]", n=3))
        order = [choice["index"] for chunk in stream for choice in chunk["choices"]]
        assert order[:9] == [0, 1, 2] * 3
        assert len({text_of(stream, index=index) for index in range(3)}) == 3
        assert usages(stream) == [usages(stream)[0]]
        assert usages(stream)[0]["completion_tokens"] == 60
        assert finishes(stream) == ["stop"] * 3

    async def test_too_many_choices_are_the_callers_fault(self) -> None:
        error = await error_of(sandbox(), call(n=1000))
        assert (error.status, error.callers_fault) == (400, True)

    async def test_json_object_is_json_of_the_scripted_length(self) -> None:
        asked = call('say "json" \\ [[sandbox tokens=30]]', response_format={"type": "json_object"})
        text = text_of(await chunks(sandbox(), asked))
        assert list(json.loads(text)) == ["answer"]
        assert token_count(text) == 30

    async def test_json_schema_is_answered_by_its_value(self) -> None:
        schema = {"type": "object", "properties": {"ok": {"type": "boolean"}, "tags": {"type": "array"}}}
        layout = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        value = json.loads(text_of(await chunks(sandbox(), call(response_format=layout))))
        assert isinstance(value["ok"], bool)
        assert isinstance(value["tags"], list)


class TestReasoning:
    async def test_effort_streams_reasoning_first(self) -> None:
        stream = await chunks(sandbox(), call(reasoning_effort="low"))
        keys = [key for delta in deltas(stream) for key in ("reasoning_content", "content") if delta.get(key)]
        assert keys == ["reasoning_content"] * REASONING_TOKENS["low"] + ["content"] * DEFAULT_TOKENS
        usage = usages(stream)[-1]
        assert usage["completion_tokens"] == REASONING_TOKENS["low"] + DEFAULT_TOKENS
        assert usage["completion_tokens_details"]["reasoning_tokens"] == REASONING_TOKENS["low"]

    async def test_effort_none_streams_no_reasoning(self) -> None:
        assert text_of(await chunks(sandbox(), call(reasoning_effort="none")), "reasoning_content") == ""

    async def test_reasoning_uses_up_the_output_limit(self) -> None:
        stream = await chunks(sandbox(), call("[[sandbox reasoning=10]]", limit=8))
        assert token_count(text_of(stream, "reasoning_content")) == 8
        assert text_of(stream) == ""
        assert finishes(stream) == ["length"]

    async def test_hidden_reasoning_is_billed_and_not_sent(self) -> None:
        provider = sandbox()
        stream = await chunks(provider, call("[[sandbox hidden=30 reasoning=2 tokens=5]]"))
        assert usages(stream)[-1]["completion_tokens"] == 37
        assert usages(stream)[-1]["completion_tokens_details"]["reasoning_tokens"] == 32
        assert provider.emitted_tokens == 7


class TestTools:
    @pytest.mark.parametrize(
        ("prompt", "choice"),
        [
            ("call get_weather please", None),
            ("please Use The Tool", "auto"),
            ("hello", "required"),
            ("hello", {"type": "function", "function": {"name": "get_weather"}}),
        ],
    )
    async def test_tool_is_called_when_asked_for(self, prompt: str, choice: Any) -> None:
        whole = await sandbox().complete(call(prompt, tools=[TOOL], tool_choice=choice))
        (called,) = whole["choices"][0]["message"]["tool_calls"]
        arguments = json.loads(called["function"]["arguments"])
        assert called["function"]["name"] == "get_weather"
        assert list(arguments) == ["city", "days", "unit"]
        assert arguments["days"] == 3
        assert arguments["unit"] in {"celsius", "kelvin"}
        assert whole["choices"][0]["message"]["content"] is None
        assert whole["choices"][0]["finish_reason"] == "tool_calls"
        assert whole["usage"]["completion_tokens"] == token_count(called["function"]["arguments"])

    @pytest.mark.parametrize(
        ("prompt", "choice"), [("hello", "auto"), ("use the tool", "none"), ("get_weathers", "auto")]
    )
    async def test_tool_is_not_called_unasked(self, prompt: str, choice: str) -> None:
        whole = await sandbox().complete(call(prompt, tools=[TOOL], tool_choice=choice))
        assert "tool_calls" not in whole["choices"][0]["message"]
        assert whole["choices"][0]["finish_reason"] == "stop"

    async def test_tool_call_is_streamed_in_pieces(self) -> None:
        asked = call("get_weather", tools=[TOOL])
        stream = await chunks(sandbox(), asked)
        role, first, *pieces, last = deltas(stream)
        assert role["content"] is None
        (head,) = first["tool_calls"]
        assert head["type"] == "function"
        assert head["function"] == {"name": "get_weather", "arguments": ""}
        assert last == {}
        arguments = [piece["tool_calls"][0]["function"]["arguments"] for piece in pieces]
        assert {tuple(piece["tool_calls"][0]) for piece in pieces} == {("index", "function")}
        whole = await sandbox().complete(asked)
        assert whole["choices"][0]["message"]["tool_calls"][0] == {
            "id": head["id"],
            "type": "function",
            "function": {"name": "get_weather", "arguments": "".join(arguments)},
        }

    async def test_tools_named_together_are_called_in_parallel_unless_forbidden(self) -> None:
        other = {"type": "function", "function": {"name": "get_time"}}
        asked: dict[str, Any] = {"prompt": "get_weather and get_time", "tools": [TOOL, other]}
        both = await sandbox().complete(call(**asked))
        one = await sandbox().complete(call(**asked, parallel_tool_calls=False))
        calls = both["choices"][0]["message"]["tool_calls"]
        assert [called["function"]["name"] for called in calls] == ["get_weather", "get_time"]
        assert len({called["id"] for called in calls}) == 2
        assert len(one["choices"][0]["message"]["tool_calls"]) == 1
        stream = await chunks(sandbox(), call(**asked))
        heads = [part for delta in deltas(stream) for part in delta.get("tool_calls", []) if "id" in part]
        assert [head["index"] for head in heads] == [0, 1]

    async def test_tool_result_is_quoted(self) -> None:
        messages = [
            {"role": "user", "content": "use the tool"},
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "tool", "tool_call_id": "x", "content": "12 degrees"},
        ]
        whole = await sandbox().complete(call(messages=messages, tools=[TOOL], tool_choice="required"))
        assert whole["choices"][0]["message"]["content"].startswith("The tool answered: 12 degrees. ")

    async def test_arguments_are_cut_at_the_output_limit(self) -> None:
        whole = await sandbox().complete(call("get_weather", tools=[TOOL], limit=2))
        assert len(whole["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"]) == 8
        assert whole["choices"][0]["finish_reason"] == "length"


class TestScript:
    @pytest.mark.parametrize(
        ("directive", "named"),
        [
            ("colour=red", "colour"),
            ("tokens", "tokens"),
            ("tokens=-1", "tokens"),
            ("tokens=99999999999", "tokens"),
            ("tokens=\u0663", "tokens"),
            ("tps=0", "tps"),
            ("tps=nan", "tps"),
            ("chunk=0", "chunk"),
            ("fail=explode", "fail"),
            ("fail=status:200", "fail"),
            ("usage=some", "usage"),
            ("finish=", "finish"),
        ],
    )
    async def test_unknown_key_or_value_is_the_callers_fault(self, directive: str, named: str) -> None:
        error = await error_of(sandbox(), call(f"[[sandbox {directive}]]"))
        assert (error.result, error.status, error.callers_fault, error.fail_over) == ("rejected", 400, True, False)
        assert repr(named) in error.message

    async def test_only_the_last_user_message_is_a_script(self) -> None:
        messages = [
            {"role": "user", "content": "[[sandbox fail=connect]]"},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": "hello"},
        ]
        assert finishes(await chunks(sandbox(), call(messages=messages))) == ["stop"]

    async def test_usage_none_is_absent(self) -> None:
        stream = await chunks(sandbox(), call("[[sandbox usage=none]]"))
        assert all("usage" not in chunk for chunk in stream)
        assert "usage" not in await sandbox().complete(call("[[sandbox usage=none]]"))

    async def test_usage_zero_is_explicit(self) -> None:
        stream = await chunks(sandbox(), call("[[sandbox usage=zero]]"))
        (usage,) = usages(stream)
        assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (0, 0, 0)

    async def test_usage_cumulative_is_in_every_chunk_and_never_falls(self) -> None:
        stream = await chunks(sandbox(), call("[[sandbox usage=cumulative tokens=10]]"))
        counted = [usage["completion_tokens"] for usage in usages(stream)]
        assert len(counted) == len(stream)
        assert counted == [0, *range(1, 11), 10, 10]

    async def test_usage_beside_is_in_the_last_finish_chunk_alone(self) -> None:
        stream = await chunks(sandbox(), call("[[sandbox usage=beside]]", n=2))
        assert [bool(chunk.get("usage")) for chunk in stream] == [False] * (len(stream) - 1) + [True]
        assert stream[-1]["choices"][0]["finish_reason"] == "stop"

    async def test_cached_tokens_are_at_most_the_prompt(self) -> None:
        few = await sandbox().complete(call("[[sandbox cached=3]]"))
        many = await sandbox().complete(call("[[sandbox cached=3000]]"))
        assert few["usage"]["prompt_tokens_details"]["cached_tokens"] == 3
        assert many["usage"]["prompt_tokens_details"]["cached_tokens"] == many["usage"]["prompt_tokens"]

    async def test_lie_is_reported_whatever_was_sent(self) -> None:
        provider = sandbox()
        (usage,) = usages(await chunks(provider, call("[[sandbox tokens=5 lie=500]]")))
        assert usage["completion_tokens"] == 500
        assert usage["total_tokens"] == usage["prompt_tokens"] + 500
        assert provider.emitted_tokens == 5

    async def test_overrun_goes_beyond_the_output_limit(self) -> None:
        stream = await chunks(sandbox(), call("[[sandbox overrun=7]]", limit=100))
        assert token_count(text_of(stream)) == usages(stream)[-1]["completion_tokens"] == 107
        assert finishes(stream) == ["length"]

    async def test_chunk_sets_the_bytes_of_an_event_and_not_the_count(self) -> None:
        for size in (1, 3, 10, 1000):
            provider = sandbox()
            stream = await chunks(provider, call(f"[[sandbox tokens=9 chunk={size}]]"))
            pieces = [delta["content"] for delta in deltas(stream) if delta.get("content")]
            assert {len(piece) for piece in pieces[:-1]} <= {size}
            assert provider.emitted_tokens == usages(stream)[-1]["completion_tokens"] == 9

    async def test_finish_is_scriptable(self) -> None:
        assert finishes(await chunks(sandbox(), call("[[sandbox finish=content_filter]]"))) == ["content_filter"]


class TestFailures:
    @pytest.mark.parametrize(
        ("kind", "result", "status", "fail_over", "callers_fault"),
        [
            ("connect", "connect", None, True, False),
            ("timeout", "timeout", None, False, False),
            ("status:503", "server_error", 503, True, False),
            ("status:500", "server_error", 500, True, False),
            ("status:429", "rate_limited", 429, True, False),
            ("status:401", "refused", 401, True, False),
            ("status:402", "refused", 402, True, False),
            ("status:403", "refused", 403, True, False),
            ("status:400", "rejected", 400, False, True),
            ("status:422", "rejected", 422, False, True),
        ],
    )
    async def test_failure_before_the_first_byte(
        self, kind: str, result: str, status: int | None, fail_over: bool, callers_fault: bool
    ) -> None:
        provider, asked = sandbox(), call(f"[[sandbox fail={kind}]]")
        with pytest.raises(UpstreamError) as caught:
            await provider.complete(asked)
        for error in (caught.value, await error_of(provider, asked)):
            assert (error.result, error.status) == (result, status)
            assert (error.fail_over, error.callers_fault) == (fail_over, callers_fault)
            assert error.retry_after_s == (1 if status == 429 else None)
        assert (provider.emitted_tokens, provider.active_streams) == (0, 0)

    @pytest.mark.parametrize("kind", ["connect", "timeout", "status:503", "error_event"])
    async def test_failure_in_mid_stream_comes_after_exactly_so_many_tokens(self, kind: str) -> None:
        provider = sandbox()
        text, error = await read_until_error(provider, call(f"[[sandbox fail={kind} after=3]]"))
        assert (error.result, error.fail_over) == ("interrupted", False)
        assert token_count(text) == provider.emitted_tokens == 3

    async def test_failure_after_more_than_there_is_comes_before_the_finish(self) -> None:
        text, error = await read_until_error(sandbox(), call("[[sandbox tokens=4 fail=error_event after=99]]"))
        assert error.result == "interrupted"
        assert token_count(text) == 4

    async def test_error_event_without_after_is_the_first_event(self) -> None:
        async with sandbox().stream(call("[[sandbox fail=error_event]]")) as events:
            with pytest.raises(UpstreamError, match="mid-answer"):
                await anext(events)

    @pytest.mark.parametrize(("after", "tokens"), [(" after=2", 2), ("", 0)])
    async def test_cut_stream_just_ends(self, after: str, tokens: int) -> None:
        data = [item for event in await lists(sandbox(), call(f"[[sandbox fail=cut{after}]]")) for item in event]
        stream = [json.loads(item) for item in data]
        assert token_count(text_of(stream)) == tokens
        assert finishes(stream) == []

    @pytest.mark.parametrize("kind", ["cut", "error_event", "status:503 after=1"])
    async def test_whole_answer_that_breaks_is_interrupted(self, kind: str) -> None:
        with pytest.raises(UpstreamError) as caught:
            await sandbox().complete(call(f"[[sandbox fail={kind}]]"))
        assert (caught.value.result, caught.value.fail_over) == ("interrupted", False)

    async def test_times_fails_the_first_attempts_of_the_same_prompt(self) -> None:
        provider, asked = sandbox(), call("[[sandbox fail=status:503 times=2]] a")
        for _ in range(2):
            assert (await error_of(provider, asked)).status == 503
        assert finishes(await chunks(provider, asked)) == ["stop"]
        assert (await error_of(provider, call("[[sandbox fail=status:503 times=2]] b"))).status == 503

    async def test_times_counts_across_providers_so_that_the_next_one_answers(self) -> None:
        asked = call("[[sandbox fail=connect times=1]]")
        assert (await error_of(sandbox("first"), asked)).result == "connect"
        assert finishes(await chunks(sandbox("second"), asked)) == ["stop"]

    async def test_at_fails_one_provider_alone(self) -> None:
        asked = call("[[sandbox fail=connect at=first]]")
        for _ in range(2):
            assert (await error_of(sandbox("first"), asked)).result == "connect"
            assert finishes(await chunks(sandbox("second"), asked)) == ["stop"]

    def test_memory_of_attempts_is_bounded(self) -> None:
        attempts = Attempts()
        assert attempts.fail_again("first", 1)
        assert not attempts.fail_again("first", 1)
        for number in range(ATTEMPTS_PROMPTS_MAX):
            attempts.fail_again(str(number), 1)
        assert attempts.fail_again("first", 1)

    async def test_leaving_stops_generating_at_once(self) -> None:
        provider = sandbox()
        async with provider.stream(call("[[sandbox tokens=100000]]", limit=1_000_000)) as events:
            await anext(events)
            assert provider.active_streams == 1
        assert provider.active_streams == 0
        assert 0 < provider.emitted_tokens <= BATCH_EVENTS_MAX
        with pytest.raises(StopAsyncIteration):
            await anext(events)

    async def test_cancelling_a_stalled_stream_ends_it(self) -> None:
        provider, stalled = sandbox(), asyncio.Event()

        async def read() -> None:
            async with provider.stream(call("[[sandbox fail=stall after=2]]")) as events:
                await anext(events)
                stalled.set()
                await anext(events)

        task = asyncio.create_task(read())
        await stalled.wait()
        assert (provider.active_streams, provider.emitted_tokens) == (1, 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert provider.active_streams == 0


class TestPace:
    async def test_tokens_are_due_at_the_settings_pace(self) -> None:
        timeline = Timeline(tokens_per_second=100.0, first_token_ms=30)
        at = [(ms, len(event)) async for ms, event in timeline.events(call("[[sandbox tokens=4]]"))]
        assert at == [(30, 2), (40, 1), (50, 1), (60, 1), (70, 3)]

    async def test_script_sets_pace_first_token_and_silence(self) -> None:
        timeline = Timeline()
        asked = call("[[sandbox tokens=3 tps=10 first_ms=5 silent_ms=1000 after=2]]")
        assert [ms async for ms, _ in timeline.events(asked)] == [5, 105, 1205, 1305]

    async def test_slow_reader_is_not_served_slower_afterwards(self) -> None:
        timeline = Timeline(tokens_per_second=100.0, first_token_ms=0)
        at = []
        async for ms, _ in timeline.events(call("[[sandbox tokens=6]]")):
            at.append(ms)
            if len(at) == 1:
                timeline.clock.advance(35)
        assert at == [0, 35, 35, 35, 40, 50, 60]

    async def test_fast_pace_costs_no_timer_per_token(self) -> None:
        timeline = Timeline(tokens_per_second=1e9, first_token_ms=0)
        sizes = [len(event) async for _, event in timeline.events(call("[[sandbox tokens=1000]]"))]
        assert sizes[:-1] == [BATCH_EVENTS_MAX] * (len(sizes) - 1)
        assert timeline.slept == 0

    async def test_first_byte_that_takes_too_long_times_out(self) -> None:
        timeline = Timeline()
        error = await timeline.error(call("[[sandbox first_ms=5000]]", timeout_s=2))
        assert (error.result, error.fail_over) == ("timeout", False)
        assert timeline.clock.monotonic_s() == 2

    async def test_stall_lasts_until_the_callers_time_is_up(self) -> None:
        timeline = Timeline()
        assert (await timeline.error(call("[[sandbox fail=stall]]", timeout_s=7))).result == "timeout"
        assert timeline.clock.monotonic_s() == 7

    async def test_first_byte_of_a_whole_answer_comes_when_all_of_it_is_made(self) -> None:
        timeline = Timeline(tokens_per_second=10.0, first_token_ms=500)
        await timeline.provider.complete(call("[[sandbox tokens=20]]"))
        assert timeline.clock.monotonic_s() == 2.5
        with pytest.raises(UpstreamError, match="in time"):
            await timeline.provider.complete(call("[[sandbox tokens=60]]"))


class TestText:
    @pytest.mark.parametrize("tokens", [1, 2, 10, 500])
    def test_prose_has_exactly_its_tokens(self, tokens: int) -> None:
        assert len(prose("You said: x.", tokens=tokens, seed="s")) == 4 * tokens

    def test_value_follows_references_and_unions(self) -> None:
        schema = {
            "$defs": {"a/b": {"const": 5}},
            "properties": {
                "five": {"$ref": "#/$defs/a~1b"},
                "any": {"anyOf": [{"type": ["integer", "null"], "maximum": 1}]},
                "three": {"type": "array", "items": {"type": "null"}, "minItems": 3},
            },
        }
        assert example_value(schema, seed="s") == {"five": 5, "any": 1, "three": [None] * 3}

    def test_value_of_a_schema_that_contains_itself_is_bounded(self) -> None:
        schema: dict[str, Any] = {"type": "object", "properties": {f"p{i}": {"$ref": "#"} for i in range(50)}}
        assert len(json.dumps(example_value(schema, seed="s"))) < 100 * SCHEMA_NODES_MAX
