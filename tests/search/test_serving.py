"""A serving process whose model searches: what clients see, what they pay, and what is left when they go."""

import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.serving import FareboxServer, Payer, model, sandbox

PRICE = {"input": "1", "output": "2", "per_web_search": "0.01"}
ASKED = "Search the web for tides. [[sandbox tokens=40]]"


@pytest.fixture(scope="module")
def server(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FareboxServer]:
    folder = tmp_path_factory.mktemp("searching")
    database = folder / "farebox.db"
    database.write_bytes(sqlite_template.read_bytes())
    models = [model("sandbox/echo", capabilities=["chat", "tools"], price=PRICE)]
    with FareboxServer(
        folder,
        database_url=f"sqlite:///{database}",
        providers=[sandbox(models=models, tokens_per_second=5000.0)],
        environ={"FAREBOX_SEARCH_BACKEND": "sandbox", "FAREBOX_SEARCH_TIMEOUT_S": "0.2"},
    ) as server:
        yield server


def body(text: str = ASKED, **more: Any) -> dict[str, Any]:
    """A request that may search."""
    asked = {"model": "sandbox/echo", "messages": [{"role": "user", "content": text}], "max_tokens": 200}
    return {**asked, "web_search": True, **more}


def answered(server: FareboxServer, payer: Payer, asked: dict[str, Any]) -> dict[str, Any]:
    """A whole answer."""
    response = httpx.post(f"{server.url}/v1/chat/completions", json=asked, headers=payer.headers, timeout=30)
    assert response.status_code == 200, response.text
    return dict(response.json())


def streamed(server: FareboxServer, payer: Payer, asked: dict[str, Any]) -> list[dict[str, Any]]:
    """The chunks of a stream."""
    asked = {**asked, "stream": True, "stream_options": {"include_usage": True}}
    response = httpx.post(f"{server.url}/v1/chat/completions", json=asked, headers=payer.headers, timeout=30)
    data = re.findall(r"^data: (.*)$", response.text, re.MULTILINE)
    assert data[-1] == "[DONE]", response.text
    return [orjson.loads(event) for event in data[:-1]]


def cost(usage: dict[str, Any], *, searches: int) -> Decimal:
    """What tokens and searches come to."""
    tokens = Decimal(usage["prompt_tokens"]) + 2 * Decimal(usage["completion_tokens"])
    return tokens / 10**6 + searches * Decimal("0.01")


def test_answer_cites_and_every_round_and_search_is_paid(server: FareboxServer) -> None:
    payer = server.payer()
    answer = answered(server, payer, body())
    (choice,) = answer["choices"]
    cited = choice["message"]["annotations"][0]["url_citation"]
    assert choice["message"]["content"][cited["start_index"] : cited["end_index"]] == "[1]"
    assert cited["url"].startswith("https://sandbox.example/")
    assert choice["finish_reason"] == "stop"
    assert Decimal(str(answer["usage"]["cost"])) == cost(answer["usage"], searches=1)
    # Two prompts, the second with the results in it.
    alone = answered(server, payer, body(web_search=False))
    assert answer["usage"]["prompt_tokens"] > 2 * alone["usage"]["prompt_tokens"] + 100
    assert Decimal(str(alone["usage"]["cost"])) == cost(alone["usage"], searches=0)
    server.wait_settled(payer)
    server.assert_green()


def test_stream_says_and_costs_the_same(server: FareboxServer) -> None:
    payer = server.payer()
    answer, events = answered(server, payer, body()), streamed(server, payer, body())
    deltas = [choice["delta"] for event in events for choice in event["choices"]]
    message = answer["choices"][0]["message"]
    assert "".join(delta.get("content") or "" for delta in deltas) == message["content"]
    assert [delta["annotations"] for delta in deltas if "annotations" in delta] == [message["annotations"]]
    assert not any("tool_calls" in delta for delta in deltas)
    assert len({event["id"] for event in events}) == 1
    assert events[-1]["usage"]["cost"] == answer["usage"]["cost"]
    server.wait_settled(payer)
    server.assert_green()


@pytest.mark.parametrize("word", ["sandbox-fail", "sandbox-slow"])
@pytest.mark.parametrize("stream", [True, False])
def test_search_that_fails_costs_nothing_and_the_answer_comes(server: FareboxServer, word: str, stream: bool) -> None:
    payer, asked = server.payer(), body(f"Search the web for {word} tides. [[sandbox tokens=40]]")
    usage = streamed(server, payer, asked)[-1]["usage"] if stream else answered(server, payer, asked)["usage"]
    assert Decimal(str(usage["cost"])) == cost(usage, searches=0)
    server.wait_settled(payer)
    server.assert_green()


def test_client_that_leaves_in_the_last_round_pays_for_the_search_and_what_it_got(server: FareboxServer) -> None:
    payer = server.payer()
    asked = body("Search the web for tides. [[sandbox tokens=190 tps=100]]", stream=True)
    url = f"{server.url}/v1/chat/completions"
    with httpx.stream("POST", url, json=asked, headers=payer.headers, timeout=30) as response:
        said = (line for line in response.iter_lines() if re.search(r'"content": ?"[^"]', line))
        assert '"Acco"' in next(said)
    server.wait_settled(payer, requests=1)
    (row,) = server.outcomes(payer)
    assert (row["status"], orjson.loads(row["units"])) == ("aborted", {"web_search": 1})
    assert 10_000_000 < row["charged"] < 11_000_000
    assert row["completion_tokens"] < 100
    server.assert_green()
