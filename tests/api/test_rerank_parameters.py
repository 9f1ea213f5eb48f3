"""The parameters of a rerank, in both versions of Cohere's API, and how many search units it may come to."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission import PaidRequest
from app.api import rerank_parameters
from app.api.rerank_parameters import search_units
from app.api.shapes import RerankShape
from app.endpoints import RERANK
from app.errors import InvalidRequest
from tests.api.paid_models import incoming

V1, V2 = "/v1/rerank", "/v2/rerank"
DOCUMENTS = ["Carson City", "Washington"]


def parse(path: str = V2, /, **parameters: Any) -> PaidRequest:
    body = {"model": "reranks", "query": "capital", "documents": DOCUMENTS, **parameters}
    return rerank_parameters.parse(incoming(path, body))


def refused(path: str = V2, /, **parameters: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(path, **parameters)
    assert caught.value.param is not None
    return caught.value


@pytest.mark.parametrize(
    ("path", "version"),
    [(V1, "1"), (V2, "2"), ("/v1/v2/rerank", "2"), ("/v1/v1/rerank", "1"), ("/v2/rerank/", "2"), ("/v1/rerank/", "1")],
)
def test_path_says_the_version(path: str, version: str) -> None:
    request = parse(path, top_n=1)
    assert (request.endpoint, request.path, request.shape) == (RERANK, path, RerankShape(version=version))
    assert request.body == {"model": "reranks", "query": "capital", "documents": DOCUMENTS, "top_n": 1}


def test_first_version_has_a_default_model() -> None:
    assert parse(V1, model=None).body["model"] == "reranks"
    assert refused(V2, model=None).param == "model"


def test_documents_go_upstream_as_text() -> None:
    documents = [{"text": "a", "id": 1}, "b"]
    request = parse(V1, documents=documents, return_documents=True)
    assert request.body["documents"] == ["a", "b"]
    assert request.shape == RerankShape(version="1", documents=tuple(documents))
    assert parse(V1, documents=documents, return_documents=False).shape == RerankShape(version="1")


def test_fields_that_are_ranked_become_the_text() -> None:
    documents = [{"title": "T", "text": "x", "year": 1999}]
    request = parse(V1, documents=documents, rank_fields=["title", "year"])
    assert request.body["documents"] == ["title: T\nyear: 1999"]
    assert refused(V1, documents=documents, rank_fields=["author"]).param == "documents[0]"


def test_chunks_of_the_first_version_are_tokens_of_the_second() -> None:
    assert parse(V1, max_chunks_per_doc=3).body["max_tokens_per_doc"] == 1500
    assert parse(V2, max_tokens_per_doc=99).body["max_tokens_per_doc"] == 99


@pytest.mark.parametrize(("chunks", "tokens", "cut"), [(1, 1_000_000, 500), (3, 99, 99), (1, 500, 500)])
def test_of_two_cuts_the_shorter_is_sent(chunks: int, tokens: int, cut: int) -> None:
    request = parse(V1, max_chunks_per_doc=chunks, max_tokens_per_doc=tokens)
    assert request.body["max_tokens_per_doc"] == cut


@pytest.mark.parametrize(
    ("documents", "parameters", "most", "expected"),
    [
        (["a"], {}, 1, 1),
        (["a"] * 100, {}, 1, 1),
        (["a"] * 101, {}, 2, 2),
        (["a"] * 1000, {}, 10, 10),
        # 7 bytes of query and 493 of the document are 500 tokens at most.
        (["x" * 493] * 100, {}, 1, 1),
        (["x" * 494] * 100, {}, 2, 1),
        (["x" * 4000] * 100, {}, 9, 3),
        (["é" * 2000] * 100, {}, 9, 3),
        # Not every provider cuts where it is told to: what may be ranked whole is priced whole.
        (["x" * 4000] * 100, {"max_tokens_per_doc": 400}, 9, 3),
        (["x" * 4000] * 100, {"max_chunks_per_doc": 2}, 9, 3),
        ([""], {}, 1, 1),
    ],
)
def test_search_units_are_bounded_by_bytes(
    documents: list[str], parameters: dict[str, Any], most: int, expected: int
) -> None:
    request = parse(documents=documents, **parameters)
    assert request.units == {"search_unit": most}
    assert request.units_expected == {"search_unit": expected}


def test_what_may_be_put_to_the_query_counts() -> None:
    assert parse(documents=["x" * 493] * 100, instruction="yyy").units == {"search_unit": 2}


@given(
    st.lists(st.text(max_size=40).map(lambda text: text * 40), min_size=1, max_size=30),
    st.text(min_size=1, max_size=600),
    st.floats(1, 8),
)
def test_no_provider_counts_more_search_units(documents: list[str], query: str, bytes_per_token: float) -> None:
    def tokens(text: str) -> int:
        return int(len(text.encode()) / bytes_per_token)

    chunks = sum(max(1, -(-(tokens(query) + tokens(document)) // 500)) for document in documents)
    assert -(-chunks // 100) <= search_units(documents, query)


@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        ("query", "", "query"),
        ("query", None, "query"),
        ("query", ["a"], "query"),
        ("documents", None, "documents"),
        ("documents", [], "documents"),
        ("documents", ["a"] * 1001, "documents"),
        ("documents", "a", "documents"),
        ("documents", ["a", 1], "documents[1]"),
        ("documents", [{"title": "a"}], "documents[0]"),
        ("documents", [{"text": 1}], "documents[0]"),
        ("documents", [["a"]], "documents[0]"),
        ("top_n", 0, "top_n"),
        ("top_n", "1", "top_n"),
        ("max_chunks_per_doc", 0, "max_chunks_per_doc"),
        ("max_tokens_per_doc", 1.5, "max_tokens_per_doc"),
        ("rank_fields", "text", "rank_fields"),
        ("rank_fields", [1], "rank_fields"),
        ("rank_fields", ["a"] * 65, "rank_fields"),
        ("return_documents", "yes", "return_documents"),
        ("relevant_spans", {"mode": "all"}, "relevant_spans"),
        ("priority", 1, "priority"),
        ("stream", True, "stream"),
        ("models", ["a"], "models"),
        ("model", "m", "model"),
    ],
)
def test_parameter_that_is_wrong_is_named(name: str, value: Any, param: str) -> None:
    assert refused(**{name: value}).param == param
