"""What every answer shares: JSON errors everywhere, CORS, one id per answer, and no internals."""

import httpx
import pytest
from sqlalchemy import text

from app import metrics
from app.api.application import ALLOWED_HEADERS, EXPOSED
from app.database import connect
from app.settings import DatabaseSettings
from tests.api.edge import edge
from tests.api.raw import ask, head
from tests.clocks import FakeClock
from tests.serving import FareboxServer

PAID = "/v1/chat/completions"
ORIGIN = {"Origin": "https://app.example"}


def request(farebox: FareboxServer, method: str, path: str, **headers: str) -> httpx.Response:
    return httpx.request(method, farebox.url + path, headers=headers, timeout=30)


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v1/messages", "/v1/responses", "/nothing", "/v1/chat/completions/x"]
)
@pytest.mark.parametrize("method", ["GET", "POST", "DELETE"])
def test_unknown_path_names_what_exists(method: str, path: str, farebox: FareboxServer) -> None:
    response = request(farebox, method, path)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"]) == (404, "not_found_error", "unknown_path")
    assert path in error["message"]
    assert all(known in error["message"] for known in (PAID, "/v1/models", "/v1/key"))


@pytest.mark.parametrize("host", [b"[", b"[::1", b"a b", b"\xff", b"http://", b"a/../b", b"%00"])
def test_strange_host_is_no_internal_error(host: bytes, farebox: FareboxServer) -> None:
    answer = ask(farebox, b"GET /nothing HTTP/1.1\r\nHost: " + host + b"\r\n\r\n", "GET")
    assert (answer.status, answer.error["code"]) == (404, "unknown_path")
    assert "'/nothing'" in answer.error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", PAID, {"POST"}),
        ("PUT", PAID + "/", {"POST"}),
        ("POST", "/v1/models", {"GET", "HEAD"}),
        ("DELETE", "/v1/models/x", {"GET", "HEAD"}),
        ("POST", "/healthz", {"GET", "HEAD"}),
        ("OPTIONS", "/healthz", {"GET", "HEAD"}),
        ("TRACE", PAID, {"POST"}),
    ],
)
def test_wrong_method_is_405_and_says_the_right_ones(
    method: str, path: str, allow: set[str], farebox: FareboxServer
) -> None:
    response = request(farebox, method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (405, "method_not_allowed")
    assert {name.strip() for name in response.headers["allow"].split(",")} == allow
    assert all(name in response.json()["error"]["message"] for name in allow)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("GET", path) for path in ("/healthz", "/readyz", "/metrics", "/v1/models", "/v1/key", "/nothing", PAID)),
        ("POST", PAID),
        ("OPTIONS", PAID),
    ],
)
def test_every_answer_has_one_id_of_its_own(method: str, path: str, farebox: FareboxServer) -> None:
    ids = [request(farebox, method, path).headers.get_list("x-request-id") for _ in range(2)]
    assert [len(found) for found in ids] == [1, 1]
    assert ids[0] != ids[1]
    assert all(found[0].startswith("req_") for found in ids)


@pytest.mark.parametrize("path", ["/healthz/", "/readyz/", "/metrics/", "/v1/chat/completions//"])
def test_slash_too_many_is_no_redirect(path: str, farebox: FareboxServer) -> None:
    response = request(farebox, "GET", path)
    assert response.status_code == 404
    assert "location" not in response.headers


# Browsers.


@pytest.mark.parametrize("path", [PAID, "/v1/models", "/v1/nothing"])
def test_preflight_is_answered_unpaid(path: str, farebox: FareboxServer) -> None:
    wanted = {
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-stainless-os",
    }
    response = request(farebox, "OPTIONS", path, **ORIGIN, **wanted)
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["access-control-allow-origin"] == "*"
    assert "POST" in response.headers["access-control-allow-methods"]
    allowed = {name.strip().lower() for name in response.headers["access-control-allow-headers"].split(",")}
    # Only named does Authorization pass; SDKs add headers of their own to every request.
    named = {"authorization", "content-type", "idempotency-key", "x-api-key", "accept-payment", "payment-session"}
    assert named | {"*"} == allowed
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(("method", "path"), [("POST", PAID), ("GET", "/v1/models"), ("GET", "/v1/nothing")])
def test_answers_to_browsers_show_our_headers(method: str, path: str, farebox: FareboxServer) -> None:
    response = request(farebox, method, path, **ORIGIN)
    assert response.headers["access-control-allow-origin"] == "*"
    exposed = {name.strip().lower() for name in response.headers["access-control-expose-headers"].split(",")}
    assert exposed >= {"www-authenticate", "payment-receipt", "x-request-id", "x-farebox-cost", "x-farebox-provider"}
    assert {name for name in response.headers if name.startswith("x-")} <= exposed
    assert "access-control-allow-origin" not in request(farebox, method, path).headers


def test_operators_pages_are_not_for_other_origins(farebox: FareboxServer) -> None:
    for path in ("/metrics", "/healthz", "/admin/api/keys"):
        assert "access-control-allow-origin" not in request(farebox, "GET", path, **ORIGIN).headers
        assert "access-control-allow-origin" not in request(farebox, "OPTIONS", path, **ORIGIN).headers


def test_header_lists_name_each_once() -> None:
    for listed in (EXPOSED, ALLOWED_HEADERS):
        names = [name.strip().lower() for name in listed.split(",")]
        assert len(set(names)) == len(names)


def test_forwarded_address_is_believed_by_nobody(farebox: FareboxServer) -> None:
    headers = {"X-Forwarded-For": "10.0.0.1", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.example"}
    answer = ask(farebox, head("GET", "/nothing", headers), "GET")
    assert answer.status == 404
    assert b"evil.example" not in answer.body


# What we did wrong.


async def test_internal_error_says_nothing_and_alerts(sqlite_url: str, clock: FakeClock) -> None:
    engine = connect(DatabaseSettings(url=sqlite_url))
    alerts = metrics.alerts.labels("internal_error")
    async with edge(engine, clock) as client:
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE api_keys"))
        before = alerts._value.get()
        # Starlette raises it again after the answer, for the server's log.
        client._transport.raise_app_exceptions = False  # type: ignore[attr-defined]
        for method, path in (("GET", "/v1/key"), ("POST", PAID)):
            sent = {"Authorization": f"Bearer sk-fb-{'A' * 43}", "Content-Type": "application/json"}
            response = await client.request(method, path, headers=sent, content=b"{}")
            assert response.status_code == 500
            assert response.json() == {
                "error": {
                    "message": "an internal error",
                    "type": "server_error",
                    "code": "internal_error",
                    "param": None,
                }
            }
            assert response.headers["x-should-retry"] == "false"
            assert response.headers["x-request-id"].startswith("req_")
        assert alerts._value.get() == before + 2
    engine.dispose()
