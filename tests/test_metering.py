import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.metering import StreamMeter, completion_text_bytes, shown_usage, usage_from
from app.money import NanoUsd
from app.pricing.price_book import Usage
from app.upstream.provider import DONE, UpstreamError
from tests.dialects import answers

MODEL = "ours/model"
MOST = 1_000_000
COUNTS = st.integers(0, 10**7)
STREAMS = ("ok", "azure", "vllm", "gemini", "mistral", "deepseek", "none", "zero", "big", "no_done")


def meter(*, final_usage: bool = False) -> StreamMeter:
    return StreamMeter(model=MODEL, final_usage=final_usage)


def chunk(**choice: Any) -> bytes:
    return orjson.dumps({"id": "x", "model": "theirs", "choices": [{"index": 0, **choice}]})


def read(data: bytes) -> StreamMeter:
    found = meter()
    found.read(data)
    return found


def report(usage: Any) -> Usage | None:
    found, odd = usage_from(usage, prompt_max=MOST, output_max=MOST)
    assert odd == ()
    return found


def plain(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **more}


class TestStream:
    @pytest.mark.parametrize("dialect", STREAMS)
    def test_text_usage_and_end_of_every_dialect(self, dialect: str) -> None:
        found = meter()
        shown = [found.read(json.dumps(body).encode()) for body in answers.stream(dialect, wants_usage=True)]
        events = [json.loads(data) for data in shown if data is not None]
        known = answers.USAGES.get(dialect)
        assert found.text_bytes == len(answers.TEXTS.get(dialect, answers.TEXT)) + (
            len(answers.REASONING_TEXT) if dialect == "deepseek" else 0
        )
        assert found.usage == (answers.usage_of(known, dialect) if known else None)
        assert found.finish_reason == "stop"
        assert found.finished
        assert not found.done
        assert {event["model"] for event in events} == {MODEL}
        assert all(event.get("usage") is None for event in events)
        assert all(event["choices"] or dialect == "azure" for event in events)

    def test_event_without_anything_to_change_is_passed_on_as_it_is(self) -> None:
        data = b'{ "id":"x",  "model":"ours/model","choices":[{"index":0,"delta":{"content":"\\u00fc"}}] }'
        found = meter()
        assert found.read(data) is data
        assert found.text_bytes == 2

    @pytest.mark.parametrize("spaced", [True, False])
    def test_model_is_ours_whatever_the_provider_calls_it(self, spaced: bool) -> None:
        said = 'say "model":"theirs" and "model": "theirs"'
        body = {"model": "theirs", "choices": [{"index": 0, "delta": {"content": said}}]}
        data = json.dumps(body, separators=None if spaced else (",", ":")).encode()
        found = meter()
        for _ in range(2):
            assert json.loads(found.read(data) or b"") == {**body, "model": MODEL}

    def test_model_that_the_provider_names_late_is_ours_too(self) -> None:
        found = meter()
        for name in ("", "theirs", "theirs-2"):
            body = {"id": "x", "model": name, "choices": [{"index": 0, "delta": {"content": "a"}}]}
            assert json.loads(found.read(json.dumps(body).encode()) or b"")["model"] == MODEL

    @pytest.mark.parametrize(
        ("delta", "size"),
        [
            ({"content": "héllo"}, 6),
            ({"reasoning_content": "abc"}, 3),
            ({"reasoning": "abcd"}, 4),
            ({"reasoning": "abcd", "reasoning_content": "abcd"}, 4),
            ({"refusal": "no"}, 2),
            ({"tool_calls": [{"function": {"name": "ab", "arguments": "{}"}}, {"function": {"arguments": "xyz"}}]}, 7),
            ({"function_call": {"name": "f", "arguments": "{}"}}, 3),
            ({"audio": {"data": "QUJD", "expires_at": 7}}, 4),
            ({"role": "assistant", "content": None}, 0),
        ],
    )
    def test_output_is_counted_by_its_bytes(self, delta: dict[str, Any], size: int) -> None:
        data = json.dumps({"choices": [{"index": 0, "delta": delta}, {"index": 1, "delta": delta}]}).encode()
        assert read(data).text_bytes == 2 * size

    def test_end_marker_is_not_shown_and_ends(self) -> None:
        found = meter()
        assert found.read(DONE) is None
        assert found.done
        assert found.finished

    @pytest.mark.parametrize(
        "event",
        [
            answers.ERROR,
            {"error": "boom"},
            {"error": {"code": 500}, "choices": []},
            {"choices": [{"index": 0, "delta": {}}], "error": {"message": "late"}},
        ],
    )
    def test_error_event_is_an_error_and_no_content(self, event: dict[str, Any]) -> None:
        found = meter()
        with pytest.raises(UpstreamError) as caught:
            found.read(orjson.dumps(event))
        assert caught.value.result == "error_event"
        assert found.text_bytes == 0

    @pytest.mark.parametrize(
        ("data", "result"),
        [
            (b"{", "not_json"),
            (b"", "not_json"),
            (b"[]", "not_a_chunk"),
            (b'"hi"', "not_a_chunk"),
            (b'{"choices":[NaN]}', "not_json"),
        ],
    )
    def test_nonsense_ends_the_stream(self, data: bytes, result: str) -> None:
        with pytest.raises(UpstreamError) as caught:
            read(data)
        assert caught.value.result == result

    def test_half_of_a_surrogate_pair_does_not_end_the_stream(self) -> None:
        found = meter()
        shown = found.read(chunk(delta={"content": "X"}).replace(b"X", b"a\\ud83d"))
        assert json.loads(shown or b"")["choices"][0]["delta"] == {"content": "a\ufffd"}
        assert json.loads(shown or b"")["model"] == MODEL
        assert found.text_bytes == 4

    def test_chunk_of_an_unknown_shape_is_shown_and_counted_whole(self) -> None:
        data = orjson.dumps(
            {"model": "theirs", "usage": {"prompt_tokens": 1}, "choices": [{"delta": {"content": [1]}}]}
        )
        found = meter()
        assert json.loads(found.read(data) or b"") == {"model": MODEL, "choices": [{"delta": {"content": [1]}}]}
        assert found.text_bytes == len(data)
        assert found.usage == {"prompt_tokens": 1}

    @pytest.mark.parametrize("event", [{}, {"object": "ping"}, {"choices": None}, {"reference": "0xforged"}])
    def test_event_that_says_nothing_is_not_shown(self, event: dict[str, Any]) -> None:
        assert meter().read(orjson.dumps(event)) is None

    def test_usage_chunk_of_ours_carries_the_providers_names_and_our_cost(self) -> None:
        found = read(chunk(delta={"content": "a"}, finish_reason="stop"))
        assert found.closing_chunks(Usage(1, 2), NanoUsd(1500), shown=False) == []
        (data,) = found.closing_chunks(Usage(1, 2), NanoUsd(1500), shown=True)
        body = json.loads(data)
        assert (body["id"], body["model"], body["choices"]) == ("x", MODEL, [])
        assert body["object"] == "chat.completion.chunk"
        assert body["usage"]["total_tokens"] == 3
        assert b'"cost":0.0000015' in data

    def test_usage_can_be_merged_into_the_last_finish_chunk(self) -> None:
        found = meter(final_usage=True)
        assert found.read(chunk(delta={"content": "a"})) is not None
        assert found.read(chunk(delta={}, finish_reason="stop")) is None
        shown = found.read(orjson.dumps({"model": "theirs", "choices": [{"index": 1, "finish_reason": "length"}]}))
        assert json.loads(shown or b"")["choices"][0]["finish_reason"] == "stop"
        (data,) = found.closing_chunks(Usage(1, 2), NanoUsd(1500), shown=False)
        body = json.loads(data)
        assert body["choices"][0]["finish_reason"] == "length"
        assert body["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("dialect", STREAMS)
def test_whole_answer_counts_as_its_stream_does(dialect: str) -> None:
    found = meter()
    for body in answers.stream(dialect, wants_usage=True):
        found.read(json.dumps(body).encode())
    assert completion_text_bytes(answers.completion(dialect)) == found.text_bytes


@pytest.mark.parametrize("body", [{}, {"choices": None}, {"choices": [7]}, {"choices": [{"message": None}]}])
def test_answer_without_text_counts_nothing(body: dict[str, Any]) -> None:
    assert completion_text_bytes(body) == 0


def test_message_of_an_unknown_shape_counts_whole() -> None:
    message = {"content": [{"type": "text", "text": "hi"}]}
    assert completion_text_bytes({"choices": [{"message": message}]}) == len(orjson.dumps(message))


class TestUsage:
    @pytest.mark.parametrize(
        ("usage", "expected"),
        [
            (plain(11, 5), Usage(11, 5)),
            (plain(0, 0), Usage(0, 0)),
            ({"prompt_tokens": 11.0, "completion_tokens": 5}, Usage(11, 5)),
            (plain(11, 5, prompt_tokens_details={"cached_tokens": 4}), Usage(11, 5, 4)),
            (plain(11, 5, prompt_tokens_details=None, completion_tokens_details=7), Usage(11, 5)),
            (plain(11, 5, prompt_cache_hit_tokens=4, prompt_cache_miss_tokens=7), Usage(11, 5, 4)),
            (plain(11, 5, cache_read_input_tokens=4, cache_creation_input_tokens=3), Usage(11, 5, 4, 3)),
            (plain(11, 5, prompt_tokens_details={"audio_tokens": 4}), Usage(11, 5, audio_input_tokens=4)),
            (plain(11, 5, completion_tokens_details={"reasoning_tokens": 3}), Usage(11, 5, reasoning_tokens=3)),
            (plain(11, 5, completion_tokens_details={"audio_tokens": 3}), Usage(11, 5, audio_output_tokens=3)),
            # Reasoning beside the completion: named, and in the total alone.
            (
                {**plain(11, 5), "total_tokens": 25, "completion_tokens_details": {"reasoning_tokens": 9}},
                Usage(11, 14, reasoning_tokens=9),
            ),
            ({**plain(11, 5), "total_tokens": 25}, Usage(11, 14, reasoning_tokens=9)),
            # A total that is too small, or no number, says nothing.
            ({**plain(11, 5), "total_tokens": 3}, Usage(11, 5)),
            ({**plain(11, 5), "total_tokens": "x"}, Usage(11, 5)),
        ],
    )
    def test_dialects(self, usage: dict[str, Any], expected: Usage) -> None:
        assert report(usage) == expected

    @pytest.mark.parametrize(
        "usage",
        [
            None,
            [],
            "11",
            {},
            {"prompt_tokens": 11},
            {"prompt_tokens": 11, "completion_tokens": None},
            {"prompt_tokens": 11, "completion_tokens": -5},
            {"prompt_tokens": True, "completion_tokens": 5},
            {"prompt_tokens": "11", "completion_tokens": 5},
            {"prompt_tokens": 11, "completion_tokens": 5.5},
        ],
    )
    def test_report_that_cannot_be_used_is_none(self, usage: Any) -> None:
        assert report(usage) is None

    @pytest.mark.parametrize(
        ("usage", "expected", "odd"),
        [
            (plain(200, 5), Usage(100, 5), ("prompt",)),
            (plain(11, 200), Usage(11, 50), ("output",)),
            (plain(10**30, 10**30), Usage(100, 50), ("prompt", "output")),
            ({**plain(11, 5), "total_tokens": 10**30}, Usage(11, 50, reasoning_tokens=50), ("output",)),
        ],
    )
    def test_lie_is_cut_to_what_is_possible_and_named(
        self, usage: dict[str, Any], expected: Usage, odd: tuple[str, ...]
    ) -> None:
        assert usage_from(usage, prompt_max=100, output_max=50) == (expected, odd)

    @given(
        prompt=COUNTS, completion=COUNTS, total=COUNTS, cached=COUNTS, written=COUNTS, reasoning=COUNTS, audio=COUNTS
    )
    def test_details_are_always_within_their_totals(
        self, prompt: int, completion: int, total: int, cached: int, written: int, reasoning: int, audio: int
    ) -> None:
        usage, _ = usage_from(
            {
                "prompt_tokens": prompt,
                "completion_tokens": completion,
                "total_tokens": total,
                "prompt_tokens_details": {
                    "cached_tokens": cached,
                    "cache_write_tokens": written,
                    "audio_tokens": audio,
                },
                "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": audio},
            },
            prompt_max=MOST,
            output_max=MOST,
        )
        assert usage is not None
        assert usage.cached_tokens + usage.cache_write_tokens + usage.audio_input_tokens <= usage.prompt_tokens <= MOST
        assert usage.reasoning_tokens + usage.audio_output_tokens <= usage.completion_tokens <= MOST
        by_unit = usage.by_unit()
        assert min(by_unit.values()) >= 0
        assert sum(by_unit.values()) == usage.total_tokens

    def test_shown_usage_marks_only_estimates(self) -> None:
        assert "estimated" not in shown_usage(Usage(1, 2), NanoUsd(0))
        assert shown_usage(Usage(1, 2, estimated=True), NanoUsd(0))["estimated"] is True

    def test_shown_usage_has_details_and_an_exact_cost(self) -> None:
        shown = orjson.dumps(shown_usage(Usage(9, 8, 4, 0, 1, 3, 2), NanoUsd(123_456_789_012_345_678)))
        assert json.loads(shown) == {
            "prompt_tokens": 9,
            "completion_tokens": 8,
            "total_tokens": 17,
            "prompt_tokens_details": {"cached_tokens": 4, "audio_tokens": 1},
            "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 2},
            "reasoning_tokens": 3,
            "cost": 123456789.012345678,
        }
        assert b'"cost":123456789.012345678' in shown
