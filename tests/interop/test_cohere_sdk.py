"""The unmodified Cohere SDK: reranks of both versions of its API, at base URLs with a version of their own or none."""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import cohere
import cohere.core
import pytest

from tests.interop.every_endpoint import SEARCH_UNIT, billed
from tests.serving import FareboxServer, Payer

MODEL = "sandbox/rerank"
QUERY = "When does the ferry leave the harbour?"
DOCUMENTS = [
    "Boil the potatoes for twenty minutes.",
    "The ferry leaves the harbour at noon.",
    "A ferry is a kind of ship.",
]
BEST = [1, 2, 0]
Connect = Callable[..., Any]


@pytest.fixture(params=["", "/v1"], ids=["bare", "with-v1"])
def connect(request: pytest.FixtureRequest, endpoints: FareboxServer, customer: Payer) -> Iterator[Connect]:
    """Makes a client of either version, at either base URL; what awaits is closed by the test."""
    with ExitStack() as clients:

        def made(kind: type[Any], **changes: Any) -> Any:
            said = {"api_key": customer.key, "base_url": endpoints.url + request.param, "max_retries": 0, **changes}
            client = kind(**said)
            return clients.enter_context(client) if hasattr(client, "__enter__") else client

        yield made


def outcome(server: FareboxServer, payer: Payer) -> dict[str, Any]:
    """The payer's only outcome, which is nothing but search units at their price."""
    server.wait_settled(payer, requests=1)
    (row,) = server.outcomes(payer)
    units = json.loads(row["units"])
    assert set(units) == {"search_unit"}
    assert row["charged"] == units["search_unit"] * SEARCH_UNIT
    assert (row["status"], row["estimated"], row["model"]) == ("completed", False, MODEL)
    return row


@pytest.mark.parametrize("objects", [False, True], ids=["strings", "objects"])
def test_first_version(connect: Connect, endpoints: FareboxServer, customer: Payer, objects: bool) -> None:
    client: cohere.Client = connect(cohere.Client)
    documents = [{"text": text} for text in DOCUMENTS] if objects else DOCUMENTS
    answer = client.rerank(model=MODEL, query=QUERY, documents=documents, top_n=2, return_documents=True)
    assert isinstance(answer, cohere.RerankResponse)
    assert [each.index for each in answer.results] == BEST[:2]
    assert [each.document.text for each in answer.results if each.document] == [DOCUMENTS[each] for each in BEST[:2]]
    scores = [each.relevance_score for each in answer.results]
    assert 1 >= scores[0] > scores[1] > 0
    assert answer.meta is not None
    assert answer.meta.api_version is not None
    assert answer.meta.api_version.version == "1"
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.search_units == 1
    assert outcome(endpoints, customer)["charged"] == SEARCH_UNIT


def test_second_version(connect: Connect, endpoints: FareboxServer, customer: Payer) -> None:
    client: cohere.ClientV2 = connect(cohere.ClientV2)
    raw = client.with_raw_response.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS, top_n=1)
    answer = raw.data
    assert isinstance(answer, cohere.V2RerankResponse)
    assert [each.index for each in answer.results] == BEST[:1]
    assert answer.id
    assert answer.meta is not None
    assert answer.meta.api_version is not None
    assert answer.meta.api_version.version == "2"
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.search_units == 1
    row = billed(endpoints, customer, raw.headers)
    assert row == outcome(endpoints, customer)
    # Cohere's shape has no usage: what it cost stands beside the units.
    cost = Decimal(str((answer.meta.model_extra or {})["cost"]))
    assert cost * 10**9 == SEARCH_UNIT


def test_default_model_and_documents_by_their_fields(
    connect: Connect, endpoints: FareboxServer, customer: Payer
) -> None:
    client: cohere.Client = connect(cohere.Client)
    documents = [{"title": "Ferries", "text": "potatoes"}, {"title": "Recipes", "text": "the ferry"}]
    by_title = client.rerank(query="Ferries", documents=documents, rank_fields=["title"])
    assert [each.index for each in by_title.results] == [0, 1]
    assert by_title.results[0].document is None
    outcome(endpoints, customer)


@pytest.mark.parametrize(("count", "units"), [(100, 1), (101, 2), (250, 3)])
def test_a_search_unit_is_a_hundred_documents_begun(
    connect: Connect, endpoints: FareboxServer, customer: Payer, count: int, units: int
) -> None:
    client: cohere.ClientV2 = connect(cohere.ClientV2)
    documents = [f"{number} tides" for number in range(count)]
    answer = client.rerank(model=MODEL, query="tides", documents=documents)
    assert len(answer.results) == count
    assert answer.meta is not None
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.search_units == units
    assert outcome(endpoints, customer)["charged"] == units * SEARCH_UNIT


def test_a_long_document_counts_as_several_unless_it_is_cut(
    connect: Connect, endpoints: FareboxServer, customer: Payer
) -> None:
    client: cohere.ClientV2 = connect(cohere.ClientV2)
    documents = ["tide " * 4000, *["tide"] * 99]
    long = client.rerank(model=MODEL, query="tides", documents=documents)
    cut = client.rerank(model=MODEL, query="tides", documents=documents, max_tokens_per_doc=100)
    assert [each.meta.billed_units.search_units for each in (long, cut) if each.meta and each.meta.billed_units] == [
        2,
        1,
    ]
    endpoints.wait_settled(customer, requests=2)
    assert [row["charged"] for row in endpoints.outcomes(customer)] == [2 * SEARCH_UNIT, SEARCH_UNIT]


async def test_awaited(connect: Connect, endpoints: FareboxServer, customer: Payer) -> None:
    async with connect(cohere.AsyncClient) as first, connect(cohere.AsyncClientV2) as second:
        answers = await asyncio.gather(
            first.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS),
            second.rerank(model=MODEL, query=QUERY, documents=DOCUMENTS),
        )
        for answer in answers:
            assert [each.index for each in answer.results] == BEST
        with pytest.raises(cohere.NotFoundError):
            await second.rerank(model="nobody", query=QUERY, documents=DOCUMENTS)
    endpoints.wait_settled(customer, requests=2)
    assert [row["charged"] for row in endpoints.outcomes(customer)] == [SEARCH_UNIT] * 2


WRONG: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no documents": ({"documents": []}, cohere.BadRequestError, "400 invalid_parameter documents"),
    "number for a document": ({"documents": [5]}, cohere.BadRequestError, "400 invalid_parameter documents[0]"),
    "too many documents": ({"documents": ["x"] * 1001}, cohere.BadRequestError, "400 invalid_parameter documents"),
    "none of the best": ({"top_n": 0}, cohere.BadRequestError, "400 invalid_parameter top_n"),
    "priority": ({"priority": 5}, cohere.BadRequestError, "400 unsupported_parameter priority"),
    "model of another kind": ({"model": "sandbox/embed"}, cohere.BadRequestError, "400 model_not_capable model"),
    "unknown model": ({"model": "nobody"}, cohere.NotFoundError, "404 model_not_found model"),
    "unprocessable upstream": (
        {"query": "[[sandbox fail=status:422]]x"},
        cohere.UnprocessableEntityError,
        "422 upstream_rejected None",
    ),
    "all providers failed": (
        {"query": "[[sandbox fail=status:503]]x"},
        # There is no type for 502.
        cohere.core.ApiError,
        "502 all_providers_failed None",
    ),
}


@pytest.mark.parametrize(("asked", "kind", "says"), WRONG.values(), ids=list(WRONG))
def test_error_is_the_sdks_exception_and_costs_nothing(
    connect: Connect,
    endpoints: FareboxServer,
    customer: Payer,
    asked: dict[str, Any],
    kind: type[cohere.core.ApiError],
    says: str,
) -> None:
    client: cohere.ClientV2 = connect(cohere.ClientV2)
    with pytest.raises(kind) as caught:
        client.rerank(**{"model": MODEL, "query": QUERY, "documents": DOCUMENTS, **asked})
    error = caught.value.body["error"]
    assert f"{caught.value.status_code} {error['code']} {error['param']}" == says
    assert sum(row["charged"] for row in endpoints.outcomes(customer)) == 0


def test_key_that_is_none_and_payer_who_has_nothing(connect: Connect, endpoints: FareboxServer) -> None:
    asked: dict[str, Any] = {"model": MODEL, "query": QUERY, "documents": DOCUMENTS}
    for kind in (cohere.Client, cohere.ClientV2):
        with pytest.raises(cohere.UnauthorizedError) as refused:
            connect(kind, api_key="fb_nothing").rerank(**asked)
        assert refused.value.body["error"]["type"] == "auth_error"
        with pytest.raises(cohere.core.ApiError) as poor:
            connect(kind, api_key=endpoints.payer("0").key).rerank(**asked)
        assert poor.value.status_code == 402
        assert poor.value.body["error"]["code"] == "insufficient_balance"
