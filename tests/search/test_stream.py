"""Streams: one answer to the client, whatever rounds stand behind it; and to the meter, one provider."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.metering import StreamMeter, completion_text_bytes
from app.search.backend import SearchFailed
from app.search.bounds import ECHO_BYTES_MAX
from app.search.sources import CITATIONS_MAX, Citations, Sources
from app.settings import ProviderSettings
from app.upstream.provider import DONE, UpstreamError
from app.upstream.sandbox import SandboxProvider
from tests.search.scripted import (
    OPTIONS,
    Round,
    ScriptedBackend,
    ScriptedProvider,
    call,
    chunk,
    chunks,
    finishes,
    page,
    parsed,
    reports,
    search,
    searching,
    streamed,
    text_of,
    tool_call,
    usage,
)
from tests.serving import sandbox

CLIENT_TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


async def answered(*rounds: Round, backend: Any = None, **body: Any) -> list[dict[str, Any]]:
    """The chunks of a streamed answer, as a client would see them."""
    provider = searching(ScriptedProvider(*rounds), backend or ScriptedBackend())
    return parsed(await streamed(provider, call(stream=True, **body)))


def tool_calls(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every piece of a tool call that was shown."""
    return [
        piece for event in events for choice in event["choices"] for piece in choice["delta"].get("tool_calls") or ()
    ]


async def test_answer_without_a_search_goes_through_byte_for_byte() -> None:
    said = Round(["Hel", "lo"], reasoning="Hm")
    events = await streamed(searching(ScriptedProvider(said), ScriptedBackend()), call(stream=True))
    as_sent = chunks(said, "chatcmpl-1")
    assert events[:-2] == as_sent[:-2]
    assert orjson.loads(events[-2])["usage"] == {
        **usage(10, 5),
        "prompt_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        "web_searches": 0,
    }
    assert events[-1] == DONE


async def test_client_sees_one_answer_of_all_rounds() -> None:
    events = await answered(Round(["Let me", " look."], [search("a")]), Round(["It is", " so [1]."]))
    assert text_of(events) == "Let me look.\n\nIt is so [1]."
    assert tool_calls(events) == []
    assert finishes(events) == ["stop"]
    assert {(event["id"], event["model"], event["created"]) for event in events} == {("chatcmpl-1", "upstream", 1)}
    roles = [choice["delta"]["role"] for event in events for choice in event["choices"] if "role" in choice["delta"]]
    assert roles == ["assistant"]


async def test_text_of_every_round_goes_out_at_once() -> None:
    provider = ScriptedProvider(Round(["One", "Two"], [search("a")]), Round(["Three"]))
    async with searching(provider, ScriptedBackend()).stream(call(stream=True)) as batches:
        async for batch in batches:
            # Nothing is read ahead: what was given is what was shown.
            if b"Two" in batch[0]:
                assert provider.given == 3
                break
    assert provider.open_streams == 0
    assert len(provider.asked) == 1


async def test_annotations_come_before_the_finish_and_say_where_the_markers_are() -> None:
    events = await answered(Round(["Well. "], [search("a")]), Round(["So ", "[", "1", "] and [2][9]"]))
    text = text_of(events)
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    assert [list(delta) for delta in deltas[-2:]] == [["annotations"], []]
    cited = [annotation["url_citation"] for annotation in deltas[-2]["annotations"]]
    assert [text[place["start_index"] : place["end_index"]] for place in cited] == ["[1]", "[2]"]
    assert cited[0]["url"] == "https://example.org/1"


async def test_content_in_the_chunk_of_the_finish_is_shown_before_the_annotations() -> None:
    last = Round(events=[chunk("chatcmpl-2", {"role": "assistant", "content": "So [1]."}, "stop"), DONE])
    events = await answered(Round(calls=[search("a")]), last)
    shown = [choice for event in events for choice in event["choices"]][-3:]
    assert [choice["delta"].get("content") for choice in shown] == ["So [1].", None, None]
    assert [choice["finish_reason"] for choice in shown] == [None, None, "stop"]
    assert "annotations" in shown[1]["delta"]


async def test_usage_so_far_is_given_on_after_each_round_and_each_search() -> None:
    events = await answered(
        Round(["A"], [search("a")], usage=usage(100, 20)),
        Round(calls=[search("b")], usage=usage(200, 10)),
        Round(["B"], usage=usage(300, 5)),
    )
    seen = [
        (report["prompt_tokens"], report["completion_tokens"], report["web_searches"]) for report in reports(events)
    ]
    assert list(dict.fromkeys(seen)) == [(100, 20, 0), (100, 20, 1), (300, 30, 1), (300, 30, 2), (600, 35, 2)]
    assert all(event["choices"] == [] for event in events if event.get("usage"))


@pytest.mark.parametrize("silent", [0, 1])
async def test_round_without_a_report_leaves_the_searches_alone(silent: int) -> None:
    rounds = [Round(["A"], [search("a")]), Round(["B"])]
    rounds[silent].usage = None
    assert reports(await answered(*rounds))[-1] == {"web_searches": 1}


async def test_cumulative_reports_are_added_to_the_rounds_before() -> None:
    said = [chunk("chatcmpl-2", {"content": "x"}), chunk("chatcmpl-2", {}, "stop")]
    events = [orjson.dumps({**orjson.loads(event), "usage": usage(50, n)}) for n, event in enumerate(said, 1)]
    seen = reports(await answered(Round(calls=[search("a")], usage=usage(7, 3)), Round(events=[*events, DONE])))
    assert [report["completion_tokens"] for report in seen[-2:]] == [4, 5]
    assert seen[-1]["prompt_tokens"] == 57


async def test_usage_beside_the_finish_that_is_not_shown_is_kept() -> None:
    *events, _, done = chunks(Round(calls=[search("a")], usage=None), "chatcmpl-1")
    finish = orjson.dumps({**orjson.loads(chunk("chatcmpl-1", {}, "tool_calls")), "usage": usage(70, 7)})
    seen = reports(await answered(Round(events=[*events, finish, done]), Round(["B"])))
    assert (seen[-1]["prompt_tokens"], seen[-1]["web_searches"]) == (80, 1)


async def test_usage_beside_the_finish_is_kept_where_citations_come_between() -> None:
    finish = orjson.dumps({**orjson.loads(chunk("chatcmpl-2", {}, "stop")), "usage": usage(70, 7)})
    last = Round(events=[chunk("chatcmpl-2", {"content": "[1]"}), finish, DONE])
    events = await answered(Round(calls=[search("a")]), last)
    assert reports(events)[-1]["prompt_tokens"] == 80
    assert finishes(events) == ["stop"]


async def test_call_that_the_output_limit_cut_is_not_searched() -> None:
    backend = ScriptedBackend()
    events = await answered(Round(calls=[search("a")], finish="length"), backend=backend)
    assert backend.queries == []
    assert finishes(events) == ["length"]


async def test_citations_are_shown_where_the_stream_ends_without_a_finish() -> None:
    events = await answered(Round(calls=[search("a")]), Round(events=[chunk("chatcmpl-2", {"content": "[1]"}), DONE]))
    assert any("annotations" in choice["delta"] for event in events for choice in event["choices"])
    assert reports(events)[-1] == {"web_searches": 1}


async def test_what_was_held_of_the_clients_call_is_shown_before_the_finish() -> None:
    held = chunk("chatcmpl-1", {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "web"}}]})
    events = await answered(Round(events=[held, chunk("chatcmpl-1", {}, "tool_calls"), DONE]))
    (choice,) = events[0]["choices"]
    assert choice["delta"]["tool_calls"][0]["function"]["name"] == "web"
    assert choice["finish_reason"] == "tool_calls"


async def test_round_without_a_report_counts_a_byte_as_a_token_reasoning_and_calls_included() -> None:
    first = chunk("chatcmpl-1", {"reasoning_content": "Hm", "reasoning": "Hm", "content": "é", "refusal": "x"})
    call_chunk = chunk("chatcmpl-1", {"tool_calls": [search("a")]})
    same_under_one_name = chunk("chatcmpl-1", {"reasoning": "Hm"})
    events = [first, same_under_one_name, call_chunk, chunk("chatcmpl-1", {}, "tool_calls"), DONE]
    provider = ScriptedProvider(Round(events=events), Round(["Done"]))
    await streamed(searching(provider, ScriptedBackend()), call(stream=True, limit=100))
    spent = len("Hm") + len("é".encode()) + len("x") + len("Hm") + len("web_search") + len('{"query":"a"}')
    assert provider.asked[1].output_limit == 100 - spent


async def test_clients_calls_are_shown_and_numbered_as_if_there_were_no_others() -> None:
    calls = [search("a", index=0), tool_call("weather", '{"x": 1}', index=1), tool_call("web_find", "{}", index=2)]
    backend = ScriptedBackend()
    events = await answered(Round(calls=calls), backend=backend, tools=[CLIENT_TOOL])
    pieces = tool_calls(events)
    assert [piece["function"]["name"] for piece in pieces if "name" in piece["function"]] == ["weather", "web_find"]
    assert [piece["index"] for piece in pieces] == [0, 0, 0, 1, 1, 1]
    assert "".join(piece["function"].get("arguments", "") for piece in pieces) == '{"x": 1}{}'
    assert finishes(events) == ["tool_calls"]
    assert backend.queries == []


@pytest.mark.parametrize(
    ("pieces", "searched"),
    [
        (["web_search"], True),
        (["web_", "search"], True),
        (["", "web_search"], True),
        (["web_", "searches"], False),
        (["weather"], False),
    ],
)
async def test_name_that_comes_in_pieces_is_held_until_it_is_known(pieces: list[str], searched: bool) -> None:
    deltas = [{"index": 0, "function": {"name": piece}} for piece in pieces]
    deltas[0]["id"] = "call_1"
    deltas.append({"index": 0, "function": {"arguments": '{"query": "a"}'}})
    events = [chunk("chatcmpl-1", {"tool_calls": [delta]}) for delta in deltas]
    backend = ScriptedBackend()
    first = Round(events=[*events, chunk("chatcmpl-1", {}, "tool_calls"), DONE])
    shown = await answered(first, Round(["Done"]), backend=backend)
    assert backend.queries == (["a"] if searched else [])
    assert tool_calls(shown) == ([] if searched else deltas)


@pytest.mark.parametrize("index", [{"index": 0}, {}], ids=["the same index", "no index"])
async def test_calls_that_are_told_apart_by_their_ids_alone_are_all_searched(index: dict[str, int]) -> None:
    calls = [
        {**index, "id": own, "function": {"name": "web_search", "arguments": f'{{"query": "{own}"}}'}} for own in "ab"
    ]
    first = Round(events=[chunk("chatcmpl-1", {"tool_calls": calls}, "stop"), DONE])
    backend = ScriptedBackend()
    await answered(first, Round(["Done"]), backend=backend)
    assert backend.queries == ["a", "b"]


async def test_call_in_the_chunk_of_the_role_is_held_and_the_role_is_shown() -> None:
    first = chunk("chatcmpl-1", {"role": "assistant", "content": None, "tool_calls": [search("a")]})
    events = await answered(
        Round(events=[first, chunk("chatcmpl-1", {}, "tool_calls"), DONE]), Round(["Done"], reasoning="Hm")
    )
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert tool_calls(events) == []
    assert any("reasoning_content" in event["choices"][0]["delta"] for event in events if event["choices"])


async def test_call_without_arguments_and_an_end_without_a_finish_are_understood() -> None:
    bare = {"index": 0, "id": "call_1", "function": {"name": "web_search"}}
    backend = ScriptedBackend()
    events = await answered(
        Round(events=[chunk("chatcmpl-1", {"tool_calls": [bare]}), DONE]), Round(["Done"]), backend=backend
    )
    assert text_of(events) == "Done"
    assert backend.queries == []


async def test_round_that_is_cut_off_ends_the_stream_unfinished() -> None:
    provider = ScriptedProvider(Round(calls=[search("a")]), Round(events=[chunk("chatcmpl-2", {"content": "x"})]))
    events = await streamed(searching(provider, ScriptedBackend()), call(stream=True))
    meter = StreamMeter(model="m", final_usage=False)
    for event in events:
        meter.read(event)
    assert not meter.finished


async def test_searches_of_a_round_that_is_cut_off_are_not_made() -> None:
    *events, _, _, _ = chunks(Round(calls=[search("a")]), "chatcmpl-1")
    backend = ScriptedBackend()
    shown = await streamed(searching(ScriptedProvider(Round(events=events)), backend), call(stream=True))
    assert backend.queries == []
    assert DONE not in shown


@pytest.mark.parametrize("event", [b'{"error": {"message": "boom"}}', b"nonsense", b"[]"])
async def test_errors_and_nonsense_of_a_later_round_reach_the_meter(event: bytes) -> None:
    provider = ScriptedProvider(Round(calls=[search("a")]), Round(events=[event]))
    meter = StreamMeter(model="m", final_usage=False)
    *before, last = await streamed(searching(provider, ScriptedBackend()), call(stream=True))
    for data in before:
        meter.read(data)
    assert last == event
    with pytest.raises(UpstreamError):
        meter.read(last)


async def test_refusal_of_a_later_round_is_not_the_clients_fault() -> None:
    error = UpstreamError("rejected", "too long", status=400, fail_over=False, callers_fault=True)
    provider = ScriptedProvider(Round(calls=[search("a")]), Round(error=error))
    with pytest.raises(UpstreamError) as caught:
        await streamed(searching(provider, ScriptedBackend()), call(stream=True))
    assert not caught.value.callers_fault
    assert provider.open_streams == 0


async def test_failure_before_the_first_byte_comes_on_entering() -> None:
    error = UpstreamError("connect", "no")
    with pytest.raises(UpstreamError) as caught:
        async with searching(ScriptedProvider(Round(error=error)), ScriptedBackend()).stream(call(stream=True)):
            pytest.fail("entered")
    assert caught.value is error


async def test_search_that_failed_does_not_fail_the_stream() -> None:
    backend = ScriptedBackend(failure=SearchFailed("connect", "no"))
    events = await answered(Round(calls=[search("a")]), Round(["Sorry"]), backend=backend)
    assert text_of(events) == "Sorry"
    assert reports(events)[-1]["web_searches"] == 0


async def test_leaving_while_a_search_runs_ends_it_and_no_stream_stays_open() -> None:
    provider, backend = ScriptedProvider(Round(["A"], [search("a")])), ScriptedBackend()
    backend.gate = asyncio.Event()
    task = asyncio.ensure_future(streamed(searching(provider, backend), call(stream=True)))
    await backend.started.wait()
    # The round before it is over, and so is its connection.
    assert provider.open_streams == 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert backend.under_way == 0
    assert len(provider.asked) == 1


async def test_leaving_in_mid_round_stops_the_upstream() -> None:
    provider = ScriptedProvider(Round(calls=[search("a")]), Round(["One", "Two"]))
    async with searching(provider, ScriptedBackend()).stream(call(stream=True)) as batches:
        async for batch in batches:
            if b"One" in batch[0]:
                break
        assert provider.open_streams == 1
    assert provider.open_streams == 0


async def test_answer_ends_by_length_where_no_output_is_left() -> None:
    backend = ScriptedBackend()
    first = Round(["A"], [search("a")], usage=usage(1, 100))
    provider = ScriptedProvider(first)
    events = parsed(await streamed(searching(provider, backend), call(stream=True, limit=100)))
    assert finishes(events) == ["length"]
    assert backend.queries == []


async def test_search_in_the_last_round_is_dropped_and_the_answer_stops() -> None:
    backend = ScriptedBackend()
    provider = ScriptedProvider(*(Round(["A"], [search(f"q{n}")]) for n in range(2)))
    options = replace(OPTIONS, rounds_max=1)
    events = parsed(await streamed(searching(provider, backend, options=options), call(stream=True)))
    assert backend.queries == ["q0"]
    assert tool_calls(events) == []
    assert finishes(events) == ["stop"]


async def test_several_answers_go_through_as_they_are() -> None:
    said = [
        orjson.dumps({"id": "x", "choices": [{"index": n, "delta": {"tool_calls": [search("a")]}}]}) for n in (0, 1)
    ]
    provider = ScriptedProvider(Round(events=[*said, DONE]))
    events = await streamed(searching(provider, ScriptedBackend()), call(stream=True, n=2))
    assert events[:2] == said
    assert orjson.loads(events[2])["usage"] == {"web_searches": 0}


async def test_spacing_is_one_through_all_rounds_so_that_the_meter_renames_every_chunk() -> None:
    spaced = [
        event if event == DONE else json.dumps(orjson.loads(event)).encode()
        for event in chunks(Round(["A"], [search("a")]), "chatcmpl-1")
    ]
    provider = ScriptedProvider(Round(events=spaced), Round(["B [1]"]))
    meter = StreamMeter(model="ours", final_usage=False)
    shown = [meter.read(event) for event in await streamed(searching(provider, ScriptedBackend()), call(stream=True))]
    assert all(orjson.loads(event)["model"] == "ours" for event in shown if event is not None)


async def test_whole_and_streamed_answers_say_and_bill_the_same() -> None:
    rounds = [
        Round(["Look. "], [search("a"), search("b", index=1)], usage=usage(9, 8), reasoning="Hm"),
        Round(calls=[search("c")]),
        Round(["It [1]", " is [2]."]),
    ]
    events = await answered(*rounds)
    body = await searching(ScriptedProvider(*rounds), ScriptedBackend()).complete(call())
    message = body["choices"][0]["message"]
    shown = [choice["delta"].get("annotations") for event in events for choice in event["choices"]]
    assert message["content"] == text_of(events)
    assert message["annotations"] == next(filter(None, shown))
    assert body["usage"] == reports(events)[-1]
    meter = StreamMeter(model="upstream", final_usage=False)
    for event in events:
        meter.read(orjson.dumps(event))
    assert meter.text_bytes == completion_text_bytes(body)
    assert meter.usage == body["usage"]


@pytest.mark.parametrize("stream", [True, False])
async def test_later_rounds_are_sent_the_end_alone_of_what_was_said_before(stream: bool) -> None:
    said = ["é" * 4000, "the end"]
    for limit, kept in ((1000, ECHO_BYTES_MAX), (10, 160)):
        rounds = [Round(said, [search("a")], usage=usage(1, 1)), Round(["Done"])]
        provider = ScriptedProvider(*rounds)
        wrapped = searching(provider, ScriptedBackend())
        if stream:
            assert text_of(parsed(await streamed(wrapped, call(stream=True, limit=limit)))).startswith("é" * 4000)
        else:
            await wrapped.complete(call(limit=limit))
        sent = provider.asked[1].body["messages"][-2]["content"]
        assert kept - 2 < len(sent.encode()) <= kept
        assert sent.endswith("éthe end")


async def test_sandbox_searches_and_cites_what_it_found() -> None:
    provider = SandboxProvider(ProviderSettings.model_validate({**sandbox(), "first_token_ms": 0}))
    messages = [{"role": "user", "content": "Search the web for tides"}]
    wrapped = searching(provider, ScriptedBackend(page(1), page(2)))
    events = parsed(await streamed(wrapped, call(stream=True, messages=messages)))
    assert "[1]" in text_of(events)
    assert reports(events)[-1]["web_searches"] == 1
    body = await wrapped.complete(call(messages=messages))
    assert body["choices"][0]["message"]["content"] == text_of(events)
    assert body["choices"][0]["message"]["annotations"]


@given(st.lists(st.sampled_from(["[", "]", "1", "2", "[1]", "é", "x [2", "] "]), max_size=30))
def test_citations_do_not_depend_on_where_the_text_was_cut(pieces: list[str]) -> None:
    sources = Sources()
    sources.numbered([page(1), page(2)])
    cut, whole = Citations(sources), Citations(sources)
    for piece in pieces:
        cut.read(piece)
    whole.read("".join(pieces))
    assert cut.annotations == whole.annotations
    assert cut.characters == len("".join(pieces))


def test_citations_without_end_are_not_kept() -> None:
    sources = Sources()
    sources.numbered([page(1)])
    citations = Citations(sources)
    citations.read("[1]" * (2 * CITATIONS_MAX))
    assert len(citations.annotations) == CITATIONS_MAX
