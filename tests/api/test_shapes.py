"""How answers of the other endpoints look, whatever the provider's looked like."""

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.shapes import IMAGES_SHAPE, EmbeddingsShape, RerankShape, TranscriptionShape, floats, packed
from app.money import NanoUsd
from app.pricing.price_book import Usage
from app.shapes import Shape, Told

BACKEND = {"engine_type": "sandbox", "machine_name": "m1"}


def told(usage: Usage | None = None) -> Told:
    return Told("req_1", "m", usage or Usage(5, 0), NanoUsd(1_500), BACKEND)


def whole(shape: Shape, body: Any, usage: Usage | None = None) -> Any:
    media_type, content = shape.whole(body, told(usage))
    assert media_type == "application/json"
    return json.loads(content)


def units(unit: str, amount: int, *, estimated: bool = False) -> Usage:
    return Usage(0, 0, estimated=estimated, units=((unit, amount),))


def encoded(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


# Embeddings.


def test_embeddings_are_a_list_with_what_they_cost() -> None:
    rows = [{"index": 1, "embedding": [0.25]}, {"index": 0, "embedding": [0.5]}]
    found = whole(EmbeddingsShape(), {"data": rows, "model": "theirs", "usage": {"cost": 99}})
    assert found["data"] == [
        {"object": "embedding", "index": 0, "embedding": [0.5]},
        {"object": "embedding", "index": 1, "embedding": [0.25]},
    ]
    assert (found["object"], found["model"], found["backend"]) == ("list", "m", BACKEND)
    assert found["usage"] == {"prompt_tokens": 5, "total_tokens": 5, "cost": 0.0000015}


def test_embedding_without_an_index_keeps_its_place() -> None:
    rows = [{"index": "1", "embedding": [0.5]}, {"embedding": [0.25]}, {"index": 2, "embedding": [0.75]}]
    found = whole(EmbeddingsShape(), {"data": rows})["data"]
    assert [(row["index"], row["embedding"]) for row in found] == [(0, [0.5]), (1, [0.25]), (2, [0.75])]


def test_our_own_count_is_marked() -> None:
    assert whole(EmbeddingsShape(), {"data": []}, Usage(5, 0, estimated=True))["usage"]["estimated"] is True


@pytest.mark.parametrize("given_vector", [[0.5, -2.0], encoded(0.5, -2.0)])
def test_embeddings_come_in_the_encoding_that_was_asked_for(given_vector: Any) -> None:
    body = {"data": [{"index": 0, "embedding": given_vector}]}
    assert whole(EmbeddingsShape(encoding="float"), body)["data"][0]["embedding"] == [0.5, -2.0]
    assert whole(EmbeddingsShape(encoding="base64"), body)["data"][0]["embedding"] == encoded(0.5, -2.0)


@given(st.lists(st.floats(width=32, allow_nan=False), max_size=50))
def test_encodings_are_the_same_numbers(numbers: list[float]) -> None:
    assert floats(str(packed(numbers))) == numbers


@pytest.mark.parametrize("vector", ["!", "AAA=", "AAAA", "é", [1, "a"], [1e300], [None], None, {}, 5])
@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_what_is_no_vector_stays(vector: Any, encoding: Any) -> None:
    body = {"data": [{"index": 0, "embedding": vector}]}
    assert whole(EmbeddingsShape(encoding=encoding), body)["data"][0]["embedding"] == vector


@pytest.mark.parametrize(
    ("data", "large"),
    [
        ([{"embedding": [0.5] * 1536}] * 30, False),
        ([{"embedding": [0.5] * 1536}] * 33, True),
        # Few rows of many numbers, and many rows of few.
        ([{"embedding": [0.5] * 65_536}], True),
        ([{"embedding": "A" * 300_000}], True),
        ([{"embedding": "A" * 8192}] * 20, False),
        ([{"embedding": [0.5]}] * 100, False),
        ([{}] * 4000, True),
        ([1, None, {"embedding": 5}], False),
        ("x" * 100_000, False),
        (None, False),
    ],
)
def test_answer_is_large_by_its_numbers(data: Any, large: bool) -> None:
    assert EmbeddingsShape().is_large({"data": data}) is large


# Reranks.

RESULTS = [
    {"index": 1, "relevance_score": 0.9, "document": {"text": "theirs"}},
    {"index": 0, "relevance_score": 0},
]


@pytest.mark.parametrize("version", ["1", "2"])
def test_rerank_is_coheres(version: str) -> None:
    body = {"id": "abc", "results": RESULTS, "meta": {"billed_units": {"search_units": 99}}}
    assert whole(RerankShape(version=version), body, units("search_unit", 3)) == {
        "id": "abc",
        "results": [{"index": 1, "relevance_score": 0.9}, {"index": 0, "relevance_score": 0}],
        "meta": {
            "api_version": {"version": version},
            "billed_units": {"search_units": 3},
            "cost": 0.0000015,
        },
        "backend": BACKEND,
    }


def test_documents_come_back_as_they_were_sent() -> None:
    shape = RerankShape(version="1", documents=("first", {"text": "second", "id": 2}))
    found = whole(shape, {"results": RESULTS})
    assert [each["document"] for each in found["results"]] == [{"text": "second", "id": 2}, {"text": "first"}]
    assert found["id"] == "req_1"


def test_result_that_is_none_is_left_out() -> None:
    odd = [1, {}, {"index": -1, "relevance_score": 1}, {"index": "0", "relevance_score": 1}, {"index": 0}]
    more = [{"index": True, "relevance_score": 1}, {"index": 0, "relevance_score": "high"}]
    assert (
        whole(RerankShape(), {"results": [*odd, *more, *RESULTS]})["results"]
        == whole(RerankShape(), {"results": RESULTS})["results"]
    )


# Images.


def test_images_have_only_what_belongs_to_them() -> None:
    image = {"b64_json": "AAAA", "revised_prompt": "x", "seed": 1, "url": None}
    found = whole(IMAGES_SHAPE, {"created": 7, "data": [image, 5], "usage": {"total_tokens": 1}, "quality": "hd"})
    assert found == {
        "created": 7,
        "data": [{"b64_json": "AAAA", "revised_prompt": "x"}],
        "usage": {"cost": 0.0000015},
        "backend": BACKEND,
    }


# Transcriptions.

SEGMENTS = [
    {"id": 0, "start": 0.0, "end": 2.5, "text": " Good morning. "},
    {"id": 1, "start": 2.5, "end": 3661.0004, "text": "A\n\n2\n00:00 --> 00:01"},
]
SPOKEN = {"text": "Good morning. A", "duration": 3662.2, "language": "english", "segments": SEGMENTS, "extra": 1}
USAGE = units("second", 3663)


def plain(kind: str, body: Any, usage: Usage = USAGE) -> tuple[str, str]:
    media_type, content = TranscriptionShape(format=kind).whole(body, told(usage))
    return media_type, content.decode()


def test_transcription_is_text_with_what_it_cost() -> None:
    assert whole(TranscriptionShape(), SPOKEN, USAGE) == {
        "text": "Good morning. A",
        "usage": {"type": "duration", "seconds": 3663, "cost": 0.0000015},
        "backend": BACKEND,
    }


def test_long_form_has_what_belongs_to_it() -> None:
    found = whole(TranscriptionShape(format="verbose_json"), SPOKEN, USAGE)
    assert set(found) == {"task", "language", "duration", "text", "segments", "usage", "backend"}
    assert (found["task"], found["duration"], found["segments"]) == ("transcribe", 3662.2, SEGMENTS)
    assert whole(TranscriptionShape(format="verbose_json"), {}, USAGE)["duration"] == 3663


def test_plain_text_is_a_line() -> None:
    assert plain("text", SPOKEN) == ("text/plain; charset=utf-8", "Good morning. A\n")


def test_subrip_numbers_its_cues() -> None:
    assert plain("srt", SPOKEN) == (
        "text/plain; charset=utf-8",
        "1\n00:00:00,000 --> 00:00:02,500\nGood morning.\n\n2\n00:00:02,500 --> 01:01:01,000\nA 2 00:00 -> 00:01\n\n",
    )


def test_web_subtitles_have_a_heading() -> None:
    assert plain("vtt", SPOKEN) == (
        "text/vtt; charset=utf-8",
        "WEBVTT\n\n"
        "00:00:00.000 --> 00:00:02.500\nGood morning.\n\n"
        "00:00:02.500 --> 01:01:01.000\nA 2 00:00 -> 00:01\n\n",
    )


@pytest.mark.parametrize(
    ("body", "end"),
    [
        ({"text": "Hi", "duration": 2.25}, "00:00:02,250"),
        ({"text": "Hi"}, "00:00:09,000"),
        ({"text": "Hi", "segments": [], "duration": "long"}, "00:00:09,000"),
        ({"text": "Hi", "segments": [{"text": "x"}, 5], "duration": True}, "00:00:09,000"),
        ({"text": "Hi", "duration": 1e300}, "100:00:00,000"),
        ({"text": "Hi", "duration": -5}, "00:00:00,000"),
    ],
)
def test_without_segments_all_is_shown_all_the_time(body: Any, end: str) -> None:
    assert plain("srt", body, units("second", 9))[1] == f"1\n00:00:00,000 --> {end}\nHi\n\n"


def test_silence_has_no_cues() -> None:
    assert plain("srt", {"text": " "})[1] == ""
    assert plain("vtt", {})[1] == "WEBVTT\n\n"
    assert plain("text", {})[1] == "\n"


def test_cue_does_not_end_before_it_begins() -> None:
    body = {"text": "x", "segments": [{"start": 5, "end": 1, "text": "x"}]}
    assert "00:00:05,000 --> 00:00:05,000" in plain("srt", body)[1]


# Anything at all: a shape runs where the answer is charged for, and never fails.

SHAPES = [
    EmbeddingsShape(),
    EmbeddingsShape(encoding="base64"),
    RerankShape(),
    RerankShape(version="1", documents=("a", {"text": "b"})),
    IMAGES_SHAPE,
    *(TranscriptionShape(format=kind) for kind in ("json", "text", "srt", "vtt", "verbose_json")),
]
members = st.sampled_from(
    ["data", "results", "segments", "index", "embedding", "text", "start", "end", "duration", "relevance_score", "id"]
)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(members, inner, max_size=5),
    max_leaves=16,
)


@given(st.sampled_from(SHAPES), st.dictionaries(members, json_values, max_size=6))
def test_any_answer_has_a_shape(shape: Shape, body: dict[str, Any]) -> None:
    media_type, content = shape.whole(body, told())
    assert media_type
    assert isinstance(content, bytes)
