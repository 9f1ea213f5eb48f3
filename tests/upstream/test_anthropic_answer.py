"""What becomes of the Messages API's answers: whole and streamed alike, in any pieces, in any order."""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.metering import StreamMeter, completion_text_bytes, usage_from
from app.upstream.anthropic_answer import BLOCKS_OPEN_MAX, FINISH, Translation, completion, completion_id
from app.upstream.provider import DONE, UpstreamError
from app.upstream.sse import EventSplitter
from tests.dialects import anthropic_answers as answers
from tests.dialects.anthropic_answers import Event, encoded, events, message

CREATED = 1_790_000_000
EVENT_BYTES_MAX = 1 << 20


def whole(body: Any) -> dict[str, Any]:
    return completion(body, request_id="req_1", model="claude-test", created=CREATED)


def translation() -> Translation:
    return Translation(request_id="req_1", model="claude-test", created=CREATED)


def streamed(sent: Sequence[Event]) -> list[Any]:
    """The chunks of events, the end as None."""
    chunks: list[bytes] = []
    translation().read([orjson.dumps(event) for event in sent], chunks)
    return [None if chunk == DONE else orjson.loads(chunk) for chunk in chunks]


def failure(sent: Sequence[Event], chunks: list[bytes] | None = None) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        translation().read([orjson.dumps(event) for event in sent], [] if chunks is None else chunks)
    assert not caught.value.callers_fault
    return caught.value


def assembled(chunks: Sequence[Any]) -> dict[str, Any]:
    """The completion that a client of OpenAI's makes of chunks."""
    said: dict[str, Any] = {"role": None, "content": None, "refusal": None}
    calls: dict[int, dict[str, Any]] = {}
    reason, usage, identity = None, None, {}
    for chunk in chunks:
        identity = {name: chunk[name] for name in ("id", "created", "model")}
        usage = chunk.get("usage") or usage
        for choice in chunk["choices"]:
            delta = choice["delta"]
            said["role"] = delta.get("role", said["role"])
            for name in ("content", "reasoning_content"):
                if name in delta:
                    said[name] = (said.get(name) or "") + delta[name]
            for part in delta.get("tool_calls", ()):
                call = calls.setdefault(part["index"], {"function": {"arguments": ""}})
                call |= {name: part[name] for name in ("id", "type") if name in part}
                call["function"]["arguments"] += part["function"]["arguments"]
                if "name" in part["function"]:
                    call["function"]["name"] = part["function"]["name"]
            reason = choice["finish_reason"] or reason
    if calls:
        said["tool_calls"] = list(calls.values())
    elif said["content"] is None:
        said["content"] = ""
    choice = {"index": 0, "message": said, "logprobs": None, "finish_reason": reason}
    body = {**identity, "object": "chat.completion", "choices": [choice]}
    return body | {"usage": usage} if usage else body


def test_thinking_text_and_usage_of_a_whole_message() -> None:
    assert whole(answers.MESSAGES["cached"]) == {
        "id": "chatcmpl-01XFDUDYJgAACzvnptvVoYEL",
        "object": "chat.completion",
        "created": CREATED,
        "model": "claude-test",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": answers.TEXT,
                    "refusal": None,
                    "reasoning_content": answers.THINKING,
                },
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 1211,
            "completion_tokens": 40,
            "total_tokens": 1251,
            "prompt_tokens_details": {"cached_tokens": 1000, "cache_write_tokens": 200},
            "completion_tokens_details": {"reasoning_tokens": 25},
        },
    }


def test_tool_calls_of_a_whole_message() -> None:
    choice = whole(answers.MESSAGES["tools"])["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["tool_calls"] == [
        {
            "id": answers.TOOL_ID,
            "type": "function",
            "function": {"name": "get_weather", "arguments": '{"location":"San Francisco, CA","unit":"c"}'},
        },
        {
            "id": "toolu_01A09q90qw90lq917835lq9",
            "type": "function",
            "function": {"name": "get_time", "arguments": "{}"},
        },
    ]
    alone = whole(message(answers.tool("get_time", {}), stop="tool_use"))
    assert alone["choices"][0]["message"]["content"] is None


@pytest.mark.parametrize(("reason", "finish"), [*FINISH.items(), ("compaction", "stop"), (None, "stop"), (7, "stop")])
def test_stop_reasons(reason: Any, finish: str) -> None:
    answer = message(answers.text("x")) | {"stop_reason": reason}
    assert whole(answer)["choices"][0]["finish_reason"] == finish
    if reason != 7:
        assert assembled(streamed(list(events(answer)))[:-1])["choices"][0]["finish_reason"] == finish


@pytest.mark.parametrize(
    "body",
    [
        None,
        [],
        {},
        {"content": "text"},
        {"type": "error", "content": []},
        {"content": [7]},
        {"content": [{}]},
        {"content": [{"type": "text", "text": 7}]},
        {"content": [{"type": "tool_use", "id": "a", "name": "b", "input": [1]}]},
        {"content": [{"type": "thinking", "thinking": None}]},
    ],
)
def test_body_that_is_no_message_is_the_providers_fault(body: Any) -> None:
    with pytest.raises(UpstreamError) as caught:
        whole(body)
    assert not caught.value.callers_fault


@pytest.mark.parametrize(
    ("given_id", "shown"),
    [
        ("msg_01ABC", "chatcmpl-01ABC"),
        ('a b\n\u00fc"}', "chatcmpl-ab"),
        ("", "chatcmpl-req_1"),
        (7, "chatcmpl-req_1"),
        ("x" * 500, "chatcmpl-" + "x" * 128),
    ],
)
def test_id_is_of_openais_kind_and_plain(given_id: Any, shown: str) -> None:
    assert completion_id(given_id, "req_1") == shown


words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
inputs = st.dictionaries(words, st.none() | st.integers(-(2**53), 2**53) | words | st.lists(words), max_size=3)
blocks = st.lists(
    st.one_of(
        st.builds(answers.text, words),
        st.builds(answers.thinking, words),
        st.just(answers.REDACTED),
        st.builds(
            lambda name, given, number: answers.tool(name, given, call_id=f"toolu_{number}"), words, inputs, words
        ),
        st.just({"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "x"}}),
    ),
    max_size=6,
)
counts = st.integers(0, 10**6)
usages = st.builds(
    lambda prompt, read, written, thinking, more: {
        "input_tokens": prompt,
        "cache_read_input_tokens": read,
        "cache_creation_input_tokens": written,
        "output_tokens": 1 + thinking + more,
        "output_tokens_details": {"thinking_tokens": thinking},
    },
    *(counts,) * 5,
)
messages = st.builds(
    lambda content, stop, usage: message(*content, stop=stop, usage=usage),
    blocks,
    st.sampled_from(sorted(FINISH)),
    usages,
)


@given(messages, st.data())
def test_streamed_in_any_pieces_a_message_is_what_it_is_whole(answer: dict[str, Any], data: st.DataObject) -> None:
    def cut(text: str) -> Iterator[str]:
        ends = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
        for start, end in zip([0, *ends], [*ends, len(text)], strict=True):
            yield text[start:end]

    wire = b"".join(map(encoded, events(answer, cut=cut)))
    reader, splitter, chunks = translation(), EventSplitter(event_bytes_max=EVENT_BYTES_MAX), list[bytes]()
    ends = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    for start, end in zip([0, *ends], [*ends, len(wire)], strict=True):
        reader.read(splitter.feed(wire[start:end]), chunks)
    assert chunks.pop() == DONE
    expected = whole(answer)
    for call in expected["choices"][0]["message"].get("tool_calls", ()):
        # The same arguments in the same spelling: a stream's come as the model wrote them.
        call["function"]["arguments"] = json.dumps(
            json.loads(call["function"]["arguments"]), separators=(",", ":"), ensure_ascii=False
        )
    made = assembled([orjson.loads(chunk) for chunk in chunks])
    assert made == expected
    meter = StreamMeter(model="asked/for", final_usage=False)
    for chunk in [*chunks, DONE]:
        meter.read(chunk)
    assert meter.done
    assert meter.finish_reason == expected["choices"][0]["finish_reason"]
    assert (meter.usage or None) == expected.get("usage")
    assert meter.text_bytes == completion_text_bytes(expected)


@given(usages)
def test_nothing_of_a_usage_report_is_lost_or_counted_twice(report: dict[str, Any]) -> None:
    usage, odd = usage_from(whole(message(usage=report)).get("usage"), prompt_max=10**9, output_max=10**9)
    read, written = report["cache_read_input_tokens"], report["cache_creation_input_tokens"]
    if usage is None:
        assert report["input_tokens"] + read + written == 0
        return
    assert not odd
    assert usage.prompt_tokens - usage.cached_tokens - usage.cache_write_tokens == report["input_tokens"]
    assert (usage.cached_tokens, usage.cache_write_tokens) == (read, written)
    assert usage.completion_tokens == report["output_tokens"]
    assert usage.reasoning_tokens == report["output_tokens_details"]["thinking_tokens"]


@pytest.mark.parametrize(
    "report",
    [
        None,
        [],
        {},
        {"input_tokens": 5},
        {"output_tokens": 5},
        {"input_tokens": "5", "output_tokens": 5},
        {"input_tokens": True, "output_tokens": 5},
        {"input_tokens": -5, "output_tokens": 5},
    ],
)
def test_report_without_both_counts_is_none(report: Any) -> None:
    assert "usage" not in whole({**message(answers.text("x")), "usage": report})


def test_hostile_counts_are_bounded() -> None:
    report = {"input_tokens": 2**80, "output_tokens": 7, "output_tokens_details": {"thinking_tokens": 10**8}}
    usage = whole(message(usage=report))["usage"]
    assert usage["prompt_tokens"] == 10**9
    assert usage["completion_tokens_details"] == {"reasoning_tokens": 7}


def test_usage_of_the_prompt_is_told_before_any_content() -> None:
    first = streamed(list(events(answers.MESSAGES["cached"]))[:1])
    assert [chunk["choices"] for chunk in first] == [[]]
    assert first[0]["usage"]["prompt_tokens"] == 1211
    assert first[0]["usage"]["prompt_tokens_details"] == {"cached_tokens": 1000, "cache_write_tokens": 200}


def test_counts_told_late_or_left_out_late_are_both_taken() -> None:
    start, *rest = events(message(answers.text("x")))
    start["message"]["usage"] = {"input_tokens": 0, "cache_read_input_tokens": 3, "output_tokens": 0}
    rest[-2]["usage"] = {"input_tokens": 8, "cache_read_input_tokens": None, "output_tokens": 6}
    usage = assembled(streamed([start, *rest])[:-1])["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (11, 6)
    assert usage["prompt_tokens_details"]["cached_tokens"] == 3


def test_stream_without_a_count_at_its_end_is_estimated() -> None:
    sent = [event for event in events(answers.MESSAGES["ok"]) if event["type"] != "message_delta"]
    chunks: list[bytes] = []
    translation().read([orjson.dumps(event) for event in sent], chunks)
    meter = StreamMeter(model="m", final_usage=False)
    for chunk in chunks:
        meter.read(chunk)
    assert meter.finished
    assert usage_from(meter.usage, prompt_max=100, output_max=100) == (None, ())


def test_role_comes_with_the_first_content_and_once() -> None:
    deltas = [
        choice["delta"] for chunk in streamed(list(events(answers.MESSAGES["ok"])))[:-1] for choice in chunk["choices"]
    ]
    assert [delta.get("role") for delta in deltas] == ["assistant", None, None]
    nothing = streamed(list(events(answers.MESSAGES["nothing"])))
    assert nothing[-2]["choices"] == [
        {"index": 0, "delta": {"role": "assistant"}, "logprobs": None, "finish_reason": "stop"}
    ]


def test_arguments_that_come_with_the_start_of_a_call_are_not_lost() -> None:
    sent = list(events(message(answers.tool("search", {}), stop="tool_use")))
    sent[1]["content_block"]["input"] = {"q": "fare"}
    call = assembled(streamed(sent)[:-1])["choices"][0]["message"]["tool_calls"][0]
    assert json.loads(call["function"]["arguments"]) == {"q": "fare"}


def test_call_that_is_never_closed_ends_with_the_message() -> None:
    sent = [event for event in events(message(answers.tool("search", {}))) if event["type"] != "content_block_stop"]
    call = assembled(streamed(sent)[:-1])["choices"][0]["message"]["tool_calls"][0]
    assert call["function"]["arguments"] == "{}"


def test_stream_without_its_end_has_no_finish() -> None:
    chunks = streamed(list(events(answers.MESSAGES["ok"]))[:-1])
    assert None not in chunks
    assert all(choice["finish_reason"] is None for chunk in chunks for choice in chunk["choices"])


def test_what_follows_the_end_is_not_read() -> None:
    sent = list(events(answers.MESSAGES["ok"]))
    assert streamed([*sent, *sent, answers.error("api_error", "late")]) == streamed(sent)


@pytest.mark.parametrize(
    "unknown",
    [
        {"type": "ping"},
        {"type": "ping", "message": "odd", "index": "x"},
        {"type": "compaction", "delta": [1], "usage": 7},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "citations_delta", "citation": {}}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "new_delta", "words": "x"}},
        {"type": "message_delta", "delta": {}, "usage": {}},
        {"type": "message_delta", "delta": {"stop_reason": None}, "usage": "odd"},
    ],
)
def test_what_may_be_added_to_streams_is_passed_over(unknown: Event) -> None:
    sent = list(events(answers.MESSAGES["ok"]))
    chunks = [chunk for chunk in streamed([*sent[:3], unknown, *sent[3:]]) if chunk is None or chunk["choices"]]
    assert chunks == [chunk for chunk in streamed(sent) if chunk is None or chunk["choices"]]


_START, _OPEN, _PING, _FIRST, _SECOND, _STOP, _ENDING, _END = events(answers.MESSAGES["ok"])
_ARGUMENTS = {"type": "content_block_delta", "index": 0, "delta": {"type": "input_json_delta", "partial_json": "{"}}


@pytest.mark.parametrize(
    "sent",
    [
        [_OPEN],
        [_FIRST],
        [_ENDING],
        [_END],
        [_START, _START],
        [_START, _FIRST],
        [_START, _STOP],
        [_START, _OPEN, _OPEN],
        [_START, _OPEN, _STOP, _STOP],
        [_START, _OPEN, _STOP, _FIRST],
        [_START, _OPEN, _ARGUMENTS],
        [_START, _OPEN, {**_FIRST, "index": 1}],
        [_START, _OPEN, {**_FIRST, "delta": None}],
        [_START, {**_OPEN, "content_block": None}],
        [{"type": "message_start"}],
        [{"type": "message_start", "message": 7}],
        [_START, {**_OPEN, "content_block": {"type": 7}}],
        [_START, _OPEN, {**_FIRST, "delta": {"type": "text_delta", "text": 7}}],
        [_START, {"delta": {}}],
        [_START, [1]],
        [_START, *({**_OPEN, "index": index} for index in range(BLOCKS_OPEN_MAX + 1))],
    ],
)
def test_impossible_order_or_shape_ends_the_stream(sent: list[Any]) -> None:
    assert failure(sent).result == "not_an_event"


def test_event_that_is_not_json_ends_the_stream() -> None:
    with pytest.raises(UpstreamError):
        translation().read([b"{"], [])


_POOL = (
    *(_START, _OPEN, _PING, _FIRST, _STOP, _ENDING, _END, _ARGUMENTS),
    *events(answers.MESSAGES["tools"]),
    *events(answers.MESSAGES["cached"]),
    answers.error("overloaded_error", "Overloaded"),
    {"type": "error", "error": {"type": [], "message": {}}},
    {"type": "error"},
    {"type": None},
)


@given(st.lists(st.sampled_from(_POOL), max_size=12))
def test_any_order_of_events_ends_in_chunks_that_can_be_metered_or_an_upstream_error(sent: list[Any]) -> None:
    chunks: list[bytes] = []
    meter = StreamMeter(model="m", final_usage=False)
    try:
        translation().read([orjson.dumps(event) for event in sent], chunks)
    except UpstreamError:
        assert DONE not in chunks
    for chunk in chunks:
        meter.read(chunk)
    assert chunks.count(DONE) <= 1


@pytest.mark.parametrize(
    ("kind", "result"),
    [("overloaded_error", "rate_limited"), ("rate_limit_error", "rate_limited"), ("api_error", "error_event")],
)
def test_error_event_may_be_passed_over_only_before_the_model_began(kind: str, result: str) -> None:
    error = answers.error(kind, f"organization {answers.SECRET_ORGANIZATION} at https://x.example")
    before, begun = failure([_START, error]), failure([_START, _OPEN, error])
    assert (before.result, before.fail_over) == (result, True)
    assert (begun.result, begun.fail_over) == (result, False)
    assert answers.SECRET_ORGANIZATION not in before.message


def test_what_came_before_an_error_stands() -> None:
    chunks: list[bytes] = []
    failure([_START, _OPEN, _FIRST, answers.error("api_error", "x")], chunks)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in map(orjson.loads, chunks) if chunk["choices"]] == [
        next(answers.halves(answers.TEXT))
    ]
