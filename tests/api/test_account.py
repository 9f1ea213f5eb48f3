import csv
import io
from collections.abc import AsyncIterator

import httpx
import pytest
from sqlalchemy import Engine

from app.clock import EpochMs
from app.money import NanoUsd, format_usd
from app.rails.key_store import KeyLimits, KeyStore
from tests.api.edge import edge
from tests.clocks import FakeClock
from tests.reconcile.books import PEPPER, LiveBooks, Payer

PATHS = ("/v1/key", "/v1/credits", "/v1/balance", "/v1/usage", "/v1/generations/req_1")


@pytest.fixture
def books(engine: Engine, clock: FakeClock) -> LiveBooks:
    return LiveBooks(engine, clock)


@pytest.fixture
def payer(books: LiveBooks) -> Payer:
    return books.customer(credit="5.00", credit_limit="1.00")[1]


@pytest.fixture
async def client(engine: Engine, clock: FakeClock) -> AsyncIterator[httpx.AsyncClient]:
    async with edge(engine, clock) as client:
        yield client


def bearer(payer: Payer) -> dict[str, str]:
    return {"Authorization": f"Bearer {payer.secret}"}


async def test_credits_are_exact_decimals(client: httpx.AsyncClient, books: LiveBooks, payer: Payer) -> None:
    books.served(payer, "req_1")
    books.refund(payer.customer_id, "1.00")
    books.admit(payer, "req_2", amount=7)
    for path in ("/v1/credits", "/v1/balance"):
        answer = await client.get(path, headers=bearer(payer))
        assert answer.json() == {
            "available": "4.999707993",
            "held": "0.000000007",
            "spent": "0.000292",
            "credit_limit": "1.00",
            "currency": "USD",
        }
        assert answer.headers["cache-control"] == "no-store"


async def test_x_api_key_is_as_good_as_bearer(client: httpx.AsyncClient, payer: Payer) -> None:
    answer = await client.get("/v1/key", headers={"x-api-key": payer.secret})
    assert answer.status_code == 200
    assert answer.json()["id"] == payer.key_id


async def test_a_key_knows_its_limits_and_what_it_used(
    client: httpx.AsyncClient, books: LiveBooks, payer: Payer, clock: FakeClock
) -> None:
    books.keys.set_limits(
        payer.key_id,
        KeyLimits(
            spend_limit=NanoUsd(2_000_000_000),
            requests_per_minute=60,
            models=("sandbox/echo",),
            expires_at_ms=EpochMs(clock.now_ms() + 1000),
        ),
    )
    books.served(payer, "req_1")
    body = (await client.get("/v1/key", headers=bearer(payer))).json()
    assert body["label"] == "laptop"
    assert body["spend_limit"] == "2.00"
    assert body["spend_limit_month"] is None
    assert body["models"] == ["sandbox/echo"]
    assert body["expires_at"] == "2025-10-09T08:53:21.000Z"
    assert body["spent"] == body["spent_month"] == "0.000292"
    assert body["rate_limit"]["requests_per_minute"] == 60
    assert body["rate_limit"]["requests_this_minute"] == 1
    assert payer.secret not in str(body)
    assert "hash" not in body


@pytest.mark.parametrize("path", PATHS)
async def test_without_a_key_nothing_is_told(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "missing_api_key"


@pytest.mark.parametrize("path", PATHS)
async def test_an_unknown_key_is_told_nothing(client: httpx.AsyncClient, payer: Payer, path: str) -> None:
    wrong = payer.secret[:-1] + ("A" if payer.secret[-1] != "A" else "B")
    for secret in (wrong, "x", "é" * 49):
        answer = await client.get(path, headers={b"x-api-key": secret.encode("latin-1")})
        assert answer.status_code == 401
        assert answer.json()["error"]["type"] == "auth_error"
        assert secret not in answer.text


@pytest.mark.parametrize("path", PATHS)
async def test_a_revoked_key_is_refused_at_once(
    client: httpx.AsyncClient, engine: Engine, clock: FakeClock, payer: Payer, path: str
) -> None:
    assert (await client.get("/v1/key", headers=bearer(payer))).status_code == 200
    KeyStore(engine, clock, PEPPER).revoke(payer.key_id)  # In another process.
    answer = await client.get(path, headers=bearer(payer))
    assert answer.status_code == 401
    assert "revoked" in answer.json()["error"]["message"]


async def test_an_expired_key_is_refused(
    client: httpx.AsyncClient, books: LiveBooks, payer: Payer, clock: FakeClock
) -> None:
    books.keys.set_limits(payer.key_id, KeyLimits(expires_at_ms=EpochMs(clock.now_ms() + 1000)))
    clock.advance(1000)
    answer = await client.get("/v1/credits", headers=bearer(payer))
    assert answer.status_code == 401
    assert "expired" in answer.json()["error"]["message"]


async def test_two_different_credentials_are_refused(client: httpx.AsyncClient, payer: Payer) -> None:
    answer = await client.get("/v1/key", headers={**bearer(payer), "x-api-key": "sk-fb-other"})
    assert answer.status_code == 400


async def test_usage_is_paged_and_only_ones_own(
    client: httpx.AsyncClient, books: LiveBooks, payer: Payer, clock: FakeClock
) -> None:
    _, other = books.customer(credit="1.00")
    books.served(other, "req_other")
    for number in range(3):
        books.served(payer, f"req_{number}")
        clock.advance(1)
    first = (await client.get("/v1/usage?limit=2", headers=bearer(payer))).json()
    assert [row["id"] for row in first["data"]] == ["req_2", "req_1"]
    second = (await client.get(f"/v1/usage?limit=2&cursor={first['next_cursor']}", headers=bearer(payer))).json()
    assert [row["id"] for row in second["data"]] == ["req_0"]
    assert second["next_cursor"] is None
    assert first["data"][0]["cost"] == "0.000292"
    assert "provider_cost" not in first["data"][0]


@pytest.mark.parametrize(("by", "group"), [("day", "2025-10-09"), ("model", "sandbox/echo"), ("key", None)])
async def test_usage_is_added_up(
    client: httpx.AsyncClient, books: LiveBooks, payer: Payer, by: str, group: str | None
) -> None:
    books.served(payer, "req_1")
    books.served(payer, "req_2")
    body = (await client.get(f"/v1/usage?group_by={by}", headers=bearer(payer))).json()
    assert [row[by] for row in body["data"]] == [group or payer.key_id]
    assert body["data"][0]["requests"] == body["total"]["requests"] == 2
    assert body["data"][0]["cost"] == body["total"]["cost"] == format_usd(NanoUsd(2 * books.charge_of_one))
    if by == "key":
        assert body["data"][0]["label"] == "laptop"


async def test_usage_can_be_of_a_period(client: httpx.AsyncClient, books: LiveBooks, payer: Payer) -> None:
    books.served(payer, "req_1")
    for query, count in (("from=2025-10-10", 0), ("to=2025-10-08", 0), ("from=2025-10-09&to=2025-10-09", 1)):
        body = (await client.get(f"/v1/usage?{query}", headers=bearer(payer))).json()
        assert len(body["data"]) == count


async def test_usage_comes_as_csv_too(
    client: httpx.AsyncClient, books: LiveBooks, payer: Payer, clock: FakeClock
) -> None:
    for number in range(2):
        books.served(payer, f"req_{number}")
        clock.advance(1)
    answer = await client.get("/v1/usage?format=csv&limit=1", headers=bearer(payer))
    (row,) = csv.DictReader(io.StringIO(answer.text, newline=""))
    assert (row["id"], row["cost"]) == ("req_1", "0.000292")
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert answer.headers["x-farebox-next-cursor"] == "req_1"
    sums = await client.get("/v1/usage?format=csv&group_by=model", headers=bearer(payer))
    (total,) = csv.DictReader(io.StringIO(sums.text, newline=""))
    assert (total["model"], total["requests"], total["cost"]) == ("sandbox/echo", "2", "0.000584")


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("from=yesterday", "from"),
        ("to=", "to"),
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=-1", "limit"),
        ("limit=1e2", "limit"),
        ("limit=٣", "limit"),
        ("group_by=payer", "group_by"),
        ("format=xml", "format"),
        ("cursor=%00", "cursor"),
        ("cursor=", "cursor"),
        ("key_id=%C3%A9", "key_id"),
    ],
)
async def test_a_bad_query_is_refused_by_name(client: httpx.AsyncClient, payer: Payer, query: str, param: str) -> None:
    answer = await client.get(f"/v1/usage?{query}", headers=bearer(payer))
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param


async def test_a_generation_is_shown_to_its_owner(client: httpx.AsyncClient, books: LiveBooks, payer: Payer) -> None:
    books.served(payer, "req_1")
    sibling = books.key(payer.customer_id)
    for owner in (payer, sibling):
        body = (await client.get("/v1/generations/req_1", headers=bearer(owner))).json()
        assert (body["id"], body["cost"], body["provider"], body["status"]) == ("req_1", "0.000292", "sandbox", "ok")
        assert (body["prompt_tokens"], body["completion_tokens"]) == (1000, 500)
        assert [attempt["result"] for attempt in body["attempts"]] == ["ok"]
        assert (body["first_token_ms"], body["duration_ms"]) == (12, 34)


@pytest.mark.parametrize("request_id", ["req_1", "req_none", "%00", "a" * 300])
async def test_a_generation_of_somebody_else_is_as_if_it_were_not_there(
    client: httpx.AsyncClient, books: LiveBooks, payer: Payer, request_id: str
) -> None:
    books.served(payer, "req_1")
    _, other = books.customer(credit="1.00")
    answer = await client.get(f"/v1/generations/{request_id}", headers=bearer(other))
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "not_found_error"
