import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from sqlalchemy import Engine, text

from app.api import admin
from app.money import NanoUsd
from app.reconcile.ledger_check import check
from app.settings import SANDBOX
from tests.api.edge import ADMIN_TOKEN, ADMIN_VARIABLE, edge
from tests.clocks import FakeClock
from tests.reconcile.books import LiveBooks

API = "/admin/api"
AS_ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}


@pytest.fixture
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ADMIN_VARIABLE, ADMIN_TOKEN)


@pytest.fixture
async def client(engine: Engine, clock: FakeClock, token: None) -> AsyncIterator[httpx.AsyncClient]:
    async with edge(engine, clock) as client:
        client.headers.update(AS_ADMIN)
        yield client


async def created(client: httpx.AsyncClient, path: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = await client.post(API + path, json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def customer_with(client: httpx.AsyncClient, usd: str) -> str:
    customer = await created(client, "/customers", {"name": "Ada"})
    await created(client, "/credits", {"id": "first", "customer_id": customer["id"], "amount": usd, "kind": "top_up"})
    customer_id: str = customer["id"]
    return customer_id


async def available(client: httpx.AsyncClient, customer_id: str) -> str:
    answer: str = (await client.get(f"{API}/customers/{customer_id}")).json()["available"]
    return answer


@pytest.mark.parametrize("route", admin.routes, ids=lambda route: f"{route.path} {sorted(route.methods)}")
async def test_every_route_needs_the_token(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, route: Any
) -> None:
    method = min(route.methods - {"HEAD"})
    path = route.path.replace("{id}", "x")
    for wrong in ("", ADMIN_TOKEN, f"Basic {ADMIN_TOKEN}", f"Bearer {ADMIN_TOKEN}x", "Bearer ", "Bearer é"):
        answer = await client.request(method, path, headers={b"Authorization": wrong.encode()})
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_admin_token")
    for unset in ("", "  "):
        monkeypatch.setenv(ADMIN_VARIABLE, unset)
        answer = await client.request(method, path, headers={"Authorization": f"Bearer {unset}"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "admin_api_off")
        assert ADMIN_VARIABLE in answer.json()["error"]["message"]


async def test_a_key_is_shown_once_and_works(client: httpx.AsyncClient) -> None:
    customer_id = await customer_with(client, "5.00")
    body = {"customer_id": customer_id, "label": "laptop", "spend_limit": "1.50", "models": ["sandbox/echo"]}
    made = await created(client, "/keys", body)
    answer = await client.get("/v1/key", headers={"Authorization": f"Bearer {made['key']}"})
    assert (answer.json()["spend_limit"], answer.json()["models"]) == ("1.50", ["sandbox/echo"])
    shown = (await client.get(f"{API}/keys/{made['id']}")).json()
    assert shown == {name: value for name, value in made.items() if name != "key"}
    listed = (await client.get(f"{API}/keys?customer_id={customer_id}")).json()
    assert listed == {"object": "list", "data": [shown], "next_cursor": None}


async def test_a_change_of_limits_leaves_the_others(client: httpx.AsyncClient) -> None:
    customer_id = await customer_with(client, "5.00")
    made = await created(
        client, "/keys", {"customer_id": customer_id, "spend_limit": "1.50", "requests_per_minute": 5, "models": ["m"]}
    )
    change = {"requests_per_minute": None, "tokens_per_minute": 9, "expires_at": "2030-01-01"}
    changed = (await client.patch(f"{API}/keys/{made['id']}", json=change)).json()
    assert (changed["spend_limit"], changed["models"]) == ("1.50", ["m"])
    assert (changed["requests_per_minute"], changed["tokens_per_minute"]) == (None, 9)
    assert changed["expires_at"] == "2030-01-01T00:00:00.000Z"


async def test_routing_of_a_key_is_replaced_as_a_whole(client: httpx.AsyncClient) -> None:
    customer_id = await customer_with(client, "5.00")
    routing = {"routing_strategy": "fastest", "provider": {"only": ["a"]}}
    made = await created(client, "/keys", {"customer_id": customer_id, "routing": routing})
    path = f"{API}/keys/{made['id']}"
    assert made["routing"] == routing
    assert (await client.patch(path, json={"requests_per_minute": 5})).json()["routing"] == routing
    other = {"allow_external": False}
    assert (await client.patch(path, json={"routing": other})).json()["routing"] == other
    assert (await client.patch(path, json={"routing": None})).json()["routing"] is None
    answer = await client.patch(path, json={"routing": {"provider": {"only": "a"}}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "routing.provider.only")


async def test_rotation_and_revocation_stop_a_key_at_once(client: httpx.AsyncClient) -> None:
    customer_id = await customer_with(client, "5.00")
    made = await created(client, "/keys", {"customer_id": customer_id})

    async def status(secret: str) -> int:
        return (await client.get("/v1/key", headers={"Authorization": f"Bearer {secret}"})).status_code

    rotated = (await client.post(f"{API}/keys/{made['id']}/rotate")).json()
    assert rotated["id"] == made["id"]
    assert [await status(made["key"]), await status(rotated["key"])] == [401, 200]
    for _ in range(2):
        revoked = await client.post(f"{API}/keys/{made['id']}/revoke")
        assert revoked.json()["revoked_at"] is not None
        assert "key" not in revoked.json()
    assert await status(rotated["key"]) == 401


async def test_credit_is_given_once_per_id(client: httpx.AsyncClient) -> None:
    customer_id = await customer_with(client, "5.00")
    body = {"id": "invoice-1", "customer_id": customer_id, "amount": "2.50", "kind": "goodwill", "note": "sorry"}
    first = await client.post(f"{API}/credits", json=body)
    again = await client.post(f"{API}/credits", json=body)
    assert (first.status_code, first.json()["first"]) == (201, True)
    assert (again.status_code, again.json()["first"]) == (200, False)
    assert again.json()["customer"]["available"] == "7.50"


@pytest.mark.parametrize("change", [{"amount": "2.51"}, {"kind": "grant"}, {"customer_id": "OTHER"}])
async def test_an_id_cannot_mean_two_things(client: httpx.AsyncClient, change: dict[str, str]) -> None:
    customer_id = await customer_with(client, "5.00")
    other = (await created(client, "/customers", {"name": "Bob"}))["id"]
    body = {"id": "invoice-1", "customer_id": customer_id, "amount": "2.50", "kind": "goodwill"}
    await created(client, "/credits", body)
    answer = await client.post(f"{API}/credits", json=body | {k: v.replace("OTHER", other) for k, v in change.items()})
    assert (answer.status_code, answer.json()["error"]["param"]) == (409, "id")
    assert [await available(client, customer_id), await available(client, other)] == ["7.50", "0.00"]


async def test_concurrent_repeats_of_a_credit_move_money_once(client: httpx.AsyncClient) -> None:
    customer_id = await customer_with(client, "5.00")
    body = {"id": "invoice-1", "customer_id": customer_id, "amount": "1.00"}
    answers = await asyncio.gather(*(client.post(f"{API}/credits", json=body) for _ in range(10)))
    assert sorted(answer.json()["first"] for answer in answers) == [False] * 9 + [True]
    assert await available(client, customer_id) == "6.00"


@pytest.mark.parametrize(
    ("kind", "source"),
    [("top_up", "treasury"), ("grant", "adjustments"), ("goodwill", "adjustments"), ("reversal", "revenue")],
)
async def test_credit_comes_from_where_its_kind_says(
    client: httpx.AsyncClient, engine: Engine, kind: str, source: str
) -> None:
    customer = await created(client, "/customers", {"name": "Ada"})
    await created(client, "/credits", {"id": "c", "customer_id": customer["id"], "amount": "1", "kind": kind})
    with engine.connect() as connection:
        row = connection.execute(text("SELECT kind, debit_account, credit_account FROM transfers")).one()
    assert tuple(row) == (kind, source, f"customer:{customer['id']}")


async def test_a_refund_is_recorded_before_it_is_paid_and_once(
    client: httpx.AsyncClient, engine: Engine, clock: FakeClock
) -> None:
    customer_id = await customer_with(client, "5.00")
    body = {"id": "ticket-7", "customer_id": customer_id, "amount": "5.00", "note": "left us"}
    assert (await client.post(f"{API}/refunds/ticket-7/paid", json={})).status_code == 404
    first = await created(client, "/refunds", body)
    again = await client.post(f"{API}/refunds", json=body)
    assert (first["first"], again.json()["first"], first["paid_at"]) == (True, False, None)
    assert await available(client, customer_id) == "0.00"
    assert len((await client.get(f"{API}/refunds?unpaid=true")).json()["data"]) == 1
    clock.advance(1000)
    paid = [(await client.post(f"{API}/refunds/ticket-7/paid", json={})).json() for _ in range(2)]
    assert [answer["first"] for answer in paid] == [True, False]
    assert paid[0]["paid_at"] == paid[1]["paid_at"] == "2025-10-09T08:53:21.000Z"
    assert (await client.get(f"{API}/refunds/ticket-7")).json()["amount"] == "5.00"
    assert (await client.get(f"{API}/refunds?unpaid=true")).json()["data"] == []
    assert len((await client.get(f"{API}/refunds")).json()["data"]) == 1
    report = check(engine, clock, 30)
    assert report.green
    treasury = next(line for line in report.lines if line.account == "treasury")
    assert treasury.debits == treasury.credits == 5_000_000_000


@pytest.mark.parametrize(("amount", "free"), [("5.01", "5.00"), ("5.50", "5.00")])
async def test_a_refund_never_pays_out_credit_that_was_lent(client: httpx.AsyncClient, amount: str, free: str) -> None:
    customer_id = await customer_with(client, "5.00")
    await client.patch(f"{API}/customers/{customer_id}", json={"credit_limit": "1.00"})
    answer = await client.post(f"{API}/refunds", json={"id": "r", "customer_id": customer_id, "amount": amount})
    assert answer.status_code == 402
    assert free in answer.json()["error"]["message"]
    assert await available(client, customer_id) == "6.00"


async def test_concurrent_refunds_take_no_more_than_there_is(client: httpx.AsyncClient) -> None:
    customer_id = await customer_with(client, "5.00")
    bodies = [{"id": f"r{number}", "customer_id": customer_id, "amount": "2.00"} for number in range(5)]
    answers = await asyncio.gather(*(client.post(f"{API}/refunds", json=body) for body in bodies))
    assert sorted(answer.status_code for answer in answers) == [201, 201, 402, 402, 402]
    assert await available(client, customer_id) == "1.00"


async def test_what_is_held_cannot_be_refunded(client: httpx.AsyncClient, engine: Engine, clock: FakeClock) -> None:
    books = LiveBooks(engine, clock)
    customer, payer = books.customer(credit="1.00")
    books.admit(payer, "req_1", amount=1)
    answer = await client.post(f"{API}/refunds", json={"id": "r", "customer_id": customer.id, "amount": "1.00"})
    assert answer.status_code == 402


async def test_a_credit_limit_is_set_and_kept_above_what_is_used(client: httpx.AsyncClient, engine: Engine) -> None:
    customer = await created(client, "/customers", {"name": "Ada", "credit_limit": "2.00"})
    assert customer["available"] == "2.00"
    path = f"{API}/customers/{customer['id']}"
    assert (await client.patch(path, json={"credit_limit": "0.5"})).json()["credit_limit"] == "0.50"
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(text("UPDATE accounts SET debits_pending = 500000000"))
    answer = await client.patch(path, json={"credit_limit": "0.49"})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "credit_limit")


async def test_lists_go_on_where_a_page_ended(client: httpx.AsyncClient, clock: FakeClock) -> None:
    made = []
    for name in ("a", "b", "c"):
        made.append((await created(client, "/customers", {"name": name}))["id"])
        clock.advance(1)
    first = (await client.get(f"{API}/customers?limit=2")).json()
    second = (await client.get(f"{API}/customers?limit=2&cursor={first['next_cursor']}")).json()
    assert [row["id"] for row in first["data"] + second["data"]] == made
    assert second["next_cursor"] is None


BAD_BODIES: list[tuple[str, str, Any, str | None]] = [
    ("POST", "/customers", {}, "name"),
    ("POST", "/customers", {"name": 7}, "name"),
    ("POST", "/customers", {"name": "a\u0000"}, "name"),
    ("POST", "/customers", {"name": "Ada", "admin": True}, "admin"),
    ("POST", "/customers", {"name": "Ada", "credit_limit": "-1"}, "credit_limit"),
    ("POST", "/customers", {"name": "Ada", "credit_limit": "lots"}, "credit_limit"),
    ("POST", "/keys", {"customer_id": "CUSTOMER", "spend_limit": 5}, "spend_limit"),
    ("POST", "/keys", {"customer_id": "CUSTOMER", "spend_limit": "0"}, "spend_limit"),
    ("POST", "/keys", {"customer_id": "CUSTOMER", "requests_per_minute": True}, "requests_per_minute"),
    ("POST", "/keys", {"customer_id": "CUSTOMER", "tokens_per_minute": -1}, "tokens_per_minute"),
    ("POST", "/keys", {"customer_id": "CUSTOMER", "models": []}, "models"),
    ("POST", "/keys", {"customer_id": "CUSTOMER", "models": [1]}, "models.0"),
    ("POST", "/keys", {"customer_id": "CUSTOMER", "expires_at": "soon"}, "expires_at"),
    ("POST", "/keys", {"customer_id": "CUSTOMER", "expires_at": "2020-01-01"}, "expires_at"),
    ("POST", "/keys", {"customer_id": "CUSTOMER", "label": ""}, "label"),
    ("POST", "/credits", {"customer_id": "CUSTOMER", "amount": "1"}, "id"),
    ("POST", "/credits", {"id": "a:b", "customer_id": "CUSTOMER", "amount": "1"}, "id"),
    ("POST", "/credits", {"id": "x", "customer_id": "CUSTOMER", "amount": "0"}, "amount"),
    ("POST", "/credits", {"id": "x", "customer_id": "CUSTOMER", "amount": "-5"}, "amount"),
    ("POST", "/credits", {"id": "x", "customer_id": "CUSTOMER", "amount": "NaN"}, "amount"),
    ("POST", "/credits", {"id": "x", "customer_id": "CUSTOMER", "amount": "1e30"}, "amount"),
    ("POST", "/credits", {"id": "x", "customer_id": "CUSTOMER", "amount": "0.0000000001"}, "amount"),
    ("POST", "/credits", {"id": "x", "customer_id": "CUSTOMER", "amount": 5.0}, "amount"),
    ("POST", "/credits", {"id": "x", "customer_id": "CUSTOMER", "amount": "1", "kind": "capture"}, "kind"),
    ("POST", "/credits", {"id": "x", "customer_id": "CUSTOMER", "amount": "1", "note": "a\nb"}, "note"),
    ("POST", "/refunds", {"id": "x", "customer_id": "CUSTOMER", "amount": "-1"}, "amount"),
    ("POST", "/customers", [], None),
    ("POST", "/customers", "Ada", None),
]


@pytest.mark.parametrize(("method", "path", "body", "param"), BAD_BODIES)
async def test_a_bad_body_is_refused_by_name_and_moves_nothing(
    client: httpx.AsyncClient, method: str, path: str, body: Any, param: str | None
) -> None:
    customer_id = await customer_with(client, "5.00")
    if isinstance(body, dict) and "customer_id" in body:
        body = body | {"customer_id": customer_id}
    answer = await client.request(method, API + path, json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert await available(client, customer_id) == "5.00"


@pytest.mark.parametrize("content", [b"", b"{", b'{"name": "a", "name": "b"}', b"\xff", b"[" * 100])
async def test_what_is_not_json_is_refused(client: httpx.AsyncClient, content: bytes) -> None:
    answer = await client.post(f"{API}/customers", content=content)
    assert answer.status_code == 400


async def test_a_large_body_is_refused(client: httpx.AsyncClient) -> None:
    answer = await client.post(f"{API}/customers", json={"name": "a" * 100_000})
    assert answer.status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/customers/cus_none", None),
        ("GET", "/customers/%00", None),
        ("PATCH", "/customers/cus_none", {"credit_limit": "1"}),
        ("GET", "/keys/key_none", None),
        ("PATCH", "/keys/key_none", {}),
        ("POST", "/keys/key_none/rotate", None),
        ("POST", "/keys/key_none/revoke", None),
        ("POST", "/keys", {"customer_id": "cus_none"}),
        ("POST", "/credits", {"id": "x", "customer_id": "cus_none", "amount": "1"}),
        ("POST", "/credits", {"id": "x", "customer_id": "\u0000", "amount": "1"}),
        ("POST", "/refunds", {"id": "x", "customer_id": "cus_none", "amount": "1"}),
        ("POST", "/refunds/none/paid", {}),
        ("GET", "/refunds/none", None),
    ],
)
async def test_what_is_not_there_is_not_found(client: httpx.AsyncClient, method: str, path: str, body: Any) -> None:
    answer = await client.request(method, API + path, json=body)
    assert (answer.status_code, answer.json()["error"]["type"]) == (404, "not_found_error")


async def test_models_and_prices_are_shown_per_million_tokens(
    client: httpx.AsyncClient, engine: Engine, clock: FakeClock
) -> None:
    books = LiveBooks(engine, clock)
    models = (await client.get(f"{API}/models")).json()["data"]
    assert (models[0]["id"], models[0]["price"]["input"]) == ("sandbox/echo", "0.10")
    dearer = SANDBOX.models[0].model_copy(
        update={"price": SANDBOX.models[0].price.model_copy(update={"input": "0.11"})}
    )
    clock.advance(1000)
    books.prices.sync([SANDBOX.model_copy(update={"models": (dearer,)})])
    (current,) = (await client.get(f"{API}/prices?model=sandbox/echo")).json()["data"]
    assert (current["version"], current["price"]["input"]) == (2, "0.11")
    history = (await client.get(f"{API}/prices?history=true&model=sandbox/echo")).json()["data"]
    assert [(row["version"], row["added_at"]) for row in history] == [
        (1, "2025-10-09T08:53:20.000Z"),
        (2, "2025-10-09T08:53:21.000Z"),
    ]
    assert (await client.get(f"{API}/prices?model=other")).json()["data"] == []


async def test_usage_is_of_everybody_or_of_one_customer(
    client: httpx.AsyncClient, engine: Engine, clock: FakeClock
) -> None:
    books = LiveBooks(engine, clock)
    ada, first = books.customer(credit="1.00")
    _, second = books.customer(credit="1.00")
    books.served(first, "req_1")
    books.served(second, "req_2")
    assert len((await client.get(f"{API}/usage")).json()["data"]) == 2
    (row,) = (await client.get(f"{API}/usage?customer_id={ada.id}")).json()["data"]
    assert row["account_id"] == f"customer:{ada.id}"
    assert {"price", "loss", "provider_cost"} <= set(row)
    (total,) = (await client.get(f"{API}/usage?group_by=model")).json()["data"]
    assert (total["requests"], total["cost"], total["provider_cost"]) == (2, "0.000584", "0.000292")


async def test_the_ledger_check_says_green_or_names_the_rows(
    client: httpx.AsyncClient, engine: Engine, clock: FakeClock
) -> None:
    customer_id = await customer_with(client, "5.00")
    assert (await client.get(f"{API}/ledger/check")).json()["green"] is True
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(text("UPDATE accounts SET credits_posted = credits_posted + 1"))
    body = (await client.get(f"{API}/ledger/check")).json()
    assert body["green"] is False
    assert ("account_balance", f"customer:{customer_id}") in {(f["kind"], f["row"]) for f in body["findings"]}


async def test_one_ledger_check_runs_at_a_time(client: httpx.AsyncClient) -> None:
    with admin._checking:
        answer = await client.get(f"{API}/ledger/check")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
    assert (await client.get(f"{API}/ledger/check")).status_code == 200


async def test_no_answer_shows_a_hash_or_the_token(client: httpx.AsyncClient, engine: Engine) -> None:
    customer_id = await customer_with(client, "5.00")
    made = await created(client, "/keys", {"customer_id": customer_id})
    with engine.connect() as connection:
        key_hash = connection.execute(text("SELECT hash FROM api_keys")).scalar_one()
    for path in ("/keys", f"/keys/{made['id']}", "/customers", "/usage", "/ledger/check"):
        shown = (await client.get(API + path)).text
        assert key_hash not in shown
        assert ADMIN_TOKEN not in shown
        assert made["key"] not in shown


async def test_money_that_was_moved_keeps_the_books_green(
    client: httpx.AsyncClient, engine: Engine, clock: FakeClock
) -> None:
    customer_id = await customer_with(client, "5.00")
    for kind in ("grant", "goodwill", "reversal"):
        await created(client, "/credits", {"id": kind, "customer_id": customer_id, "amount": "0.10", "kind": kind})
    await created(client, "/refunds", {"id": "r", "customer_id": customer_id, "amount": "0.20"})
    report = check(engine, clock, 30)
    assert report.findings == []
    assert report.debits == NanoUsd(5_500_000_000)
    assert (await client.get(f"{API}/customers/{customer_id}")).json()["spent"] == "0.00"
