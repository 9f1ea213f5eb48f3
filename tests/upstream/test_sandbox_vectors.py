"""Embeddings that are unit vectors of the words, and reranks that anybody can recount."""

import base64
import math
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types import CreateEmbeddingResponse

from app.endpoints import EMBEDDINGS, RERANK
from app.upstream.sandbox_request import INPUTS_MAX
from app.upstream.sandbox_vectors import (
    DIMENSIONS,
    DIMENSIONS_MAX,
    DOCUMENTS_MAX,
    INPUT_TOKENS_MAX,
    bag,
    cosine,
    search_units,
    vector,
)
from tests.upstream.sandboxes import asked, refusal_of, sandbox

CITIES = [
    "Carson City is the capital city of the American state of Nevada.",
    "Washington, D.C. is the capital of the United States.",
    "Capital punishment has existed in the United States since before it was a country.",
    "Bread is baked in the morning.",
]


async def embedded(given_input: Any, **body: Any) -> dict[str, Any]:
    return await sandbox().complete(asked(EMBEDDINGS, input=given_input, **body))


async def vectors(given_input: Any, **body: Any) -> list[list[float]]:
    return [each["embedding"] for each in (await embedded(given_input, **body))["data"]]


def dot(one: list[float], other: list[float]) -> float:
    return sum(left * right for left, right in zip(one, other, strict=True))


async def reranked(**body: Any) -> dict[str, Any]:
    return await sandbox().complete(asked(RERANK, **body))


class TestEmbeddings:
    async def test_answer_has_openais_shape(self) -> None:
        body = await embedded(["The food was delicious and the waiter.", "b"])
        CreateEmbeddingResponse.model_validate(body)
        assert (body["object"], body["model"]) == ("list", "echo")
        assert [(each["object"], each["index"]) for each in body["data"]] == [("embedding", 0), ("embedding", 1)]
        # 38 bytes and 1, each text by itself.
        assert body["usage"] == {"prompt_tokens": 11, "total_tokens": 11}

    async def test_one_text_is_a_list_of_one(self) -> None:
        assert await vectors("same words") == await vectors(["same words"])

    @pytest.mark.parametrize("dimensions", [1, 2, 768, DIMENSIONS_MAX])
    async def test_dimensions_are_as_asked_and_the_length_is_one(self, dimensions: int) -> None:
        (values,) = await vectors("a fare for the road", dimensions=dimensions)
        assert len(values) == dimensions
        assert math.isclose(dot(values, values), 1)
        assert len((await vectors("a fare"))[0]) == DIMENSIONS

    @given(st.text(max_size=40), st.integers(1, 64))
    def test_every_text_has_a_unit_vector_that_is_always_the_same(self, text: str, dimensions: int) -> None:
        values = vector(bag(text), dimensions)
        assert math.isclose(dot(values, values), 1)
        assert values == vector(bag(text), dimensions)

    async def test_shared_words_bring_texts_nearer(self) -> None:
        query, near, far = await vectors(["The ferry ticket to Oslo", "a ticket for the ferry", "Bread and butter"])
        assert dot(query, near) > 0.5
        assert abs(dot(query, far)) < 0.2

    async def test_base64_is_the_same_vector_in_float32(self) -> None:
        (values,) = await vectors("hello there", dimensions=8)
        text = (await embedded("hello there", dimensions=8, encoding_format="base64"))["data"][0]["embedding"]
        assert struct.unpack("<8f", base64.b64decode(text)) == pytest.approx(values)

    async def test_token_ids_are_one_token_each(self) -> None:
        one = await embedded([5, 6, 7])
        many = await embedded([[5, 6, 7], [5, 6, 8], [100]])
        assert one["usage"]["prompt_tokens"] == 3
        assert many["usage"]["prompt_tokens"] == 7
        first, second, third = (each["embedding"] for each in many["data"])
        assert one["data"][0]["embedding"] == first
        assert dot(first, second) > 0.5 > abs(dot(first, third))

    async def test_directive_is_no_part_of_the_vector(self) -> None:
        assert await vectors("[[sandbox first_ms=1]]hello") == await vectors("hello")

    @pytest.mark.parametrize(
        ("directive", "usage"),
        [
            ("usage=none", None),
            ("usage=zero", {"prompt_tokens": 0, "total_tokens": 0}),
            ("lie=77", {"prompt_tokens": 77, "total_tokens": 77}),
        ],
    )
    async def test_usage_is_scriptable_in_any_of_the_inputs(self, directive: str, usage: Any) -> None:
        assert (await embedded(["a", f"b [[sandbox {directive}]]"])).get("usage") == usage

    @pytest.mark.parametrize(
        "body",
        [
            {"input": None},
            {"input": []},
            {"input": ["a", 5]},
            {"input": [[]]},
            {"input": [1, -1]},
            {"input": [True]},
            {"input": ["a"] * (INPUTS_MAX + 1)},
            {"input": "a" * (4 * INPUT_TOKENS_MAX + 1)},
            {"input": "a", "dimensions": 0},
            {"input": "a", "dimensions": DIMENSIONS_MAX + 1},
            {"input": "a", "encoding_format": "hex"},
        ],
    )
    async def test_what_cannot_be_embedded_is_the_callers_fault(self, body: dict[str, Any]) -> None:
        assert (await refusal_of(asked(EMBEDDINGS, **body))).status == 400


class TestRerank:
    async def test_answer_has_coheres_shape_with_the_best_first(self) -> None:
        body = await reranked(query="What is the capital of the United States?", documents=CITIES)
        assert body["id"].startswith("rerank-sandbox-")
        assert body["meta"] == {"api_version": {"version": "2"}, "billed_units": {"search_units": 1}}
        assert {tuple(result) for result in body["results"]} == {("index", "relevance_score")}
        assert body["results"][0]["index"] == 1
        assert body["results"][-1]["index"] == 3
        scores = [result["relevance_score"] for result in body["results"]]
        assert scores == sorted(scores, reverse=True)
        assert all(0 <= score <= 1 for score in scores)

    async def test_same_text_scores_one_and_strangers_zero(self) -> None:
        body = await reranked(query="silver rail", documents=["golden road", {"text": "silver rail"}, "other"])
        assert [(each["index"], each["relevance_score"]) for each in body["results"]] == [(1, 1.0), (0, 0.0), (2, 0.0)]

    @pytest.mark.parametrize(("top_n", "count"), [(1, 1), (3, 3), (100, 4), (None, 4)])
    async def test_top_n_bounds_the_results(self, top_n: int | None, count: int) -> None:
        assert len((await reranked(query="capital", documents=CITIES, top_n=top_n))["results"]) == count

    async def test_what_is_past_the_tokens_of_a_document_does_not_count(self) -> None:
        document = "x" * 40 + " capital"
        long = await reranked(query="capital", documents=[document])
        short = await reranked(query="capital", documents=[document], max_tokens_per_doc=10)
        assert long["results"][0]["relevance_score"] > 0 == short["results"][0]["relevance_score"]

    @pytest.mark.parametrize(
        ("query_tokens", "document_tokens", "units"),
        [
            (10, [490] * 100, 1),
            (10, [490] * 101, 2),
            (10, [491] + [1] * 99, 2),
            (10, [1991] + [1] * 95, 1),
            (10, [1991] + [1] * 96, 2),
            (10, [0], 1),
        ],
    )
    def test_search_units_count_100_documents_of_500_tokens(
        self, query_tokens: int, document_tokens: list[int], units: int
    ) -> None:
        assert search_units("word" * query_tokens, ["word" * tokens for tokens in document_tokens]) == units

    @pytest.mark.parametrize(
        ("directive", "units"),
        [("usage=none", None), ("usage=zero", {"search_units": 0}), ("lie=9", {"search_units": 9})],
    )
    async def test_usage_is_scriptable_in_the_query(self, directive: str, units: Any) -> None:
        body = await reranked(query=f"capital [[sandbox {directive}]]", documents=CITIES)
        assert body["meta"].get("billed_units") == units
        assert body["results"][0]["relevance_score"] > 0

    @pytest.mark.parametrize(
        "body",
        [
            {"query": "a", "documents": []},
            {"query": "a", "documents": "a"},
            {"query": "a", "documents": ["a"] * (DOCUMENTS_MAX + 1)},
            {"query": "a", "documents": [5]},
            {"query": "a", "documents": [{"title": "a"}]},
            {"query": 5, "documents": ["a"]},
            {"query": "a", "documents": ["a"], "top_n": 0},
        ],
    )
    async def test_what_cannot_be_ranked_is_the_callers_fault(self, body: dict[str, Any]) -> None:
        assert (await refusal_of(asked(RERANK, **body))).status == 400

    @given(st.text(max_size=60), st.text(max_size=60))
    def test_relevance_is_from_zero_to_one_and_mutual(self, one: str, other: str) -> None:
        score = cosine(bag(one), bag(other))
        assert 0 <= score <= 1
        assert math.isclose(score, cosine(bag(other), bag(one)), abs_tol=1e-9)
        assert math.isclose(cosine(bag(one), bag(one)), 1)
