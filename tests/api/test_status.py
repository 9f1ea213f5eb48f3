"""``/healthz``, ``/readyz`` and ``/metrics``: for who runs the service."""

import httpx
import pytest
from sqlalchemy import text

from app.api.application import Application
from app.database import connect
from app.settings import DatabaseSettings
from tests.api.edge import ADMIN_TOKEN as TOKEN
from tests.api.edge import ADMIN_VARIABLE, edge
from tests.cases.chat import charge, whole
from tests.clocks import FakeClock
from tests.conftest import PostgresServer
from tests.serving import ADMIN_TOKEN, FareboxServer


def test_process_is_healthy_and_ready(farebox: FareboxServer) -> None:
    health = httpx.get(f"{farebox.url}/healthz", timeout=30)
    assert (health.status_code, health.json()) == (200, {"status": "ok"})
    ready = httpx.get(f"{farebox.url}/readyz", timeout=30)
    assert (ready.status_code, ready.json()) == (200, {"status": "ready", "database": True, "accepting": True})


async def test_not_ready_while_the_database_is_away(postgres: PostgresServer, clock: FakeClock) -> None:
    url = postgres.create()
    engine = connect(DatabaseSettings(url=url))
    async with edge(engine, clock) as client:
        assert (await client.get("/readyz")).status_code == 200
        postgres.drop(url)
        response = await client.get("/readyz")
        assert response.status_code == 503
        assert response.json() == {"status": "not ready", "database": False, "accepting": True}
        assert (await client.get("/healthz")).status_code == 200
    engine.dispose()


async def test_not_ready_on_another_schema(sqlite_url: str, clock: FakeClock) -> None:
    engine = connect(DatabaseSettings(url=sqlite_url))
    async with edge(engine, clock) as client:
        assert (await client.get("/readyz")).status_code == 200
        with engine.begin() as connection:
            connection.execute(text("UPDATE alembic_version SET version_num = 'other'"))
        response = await client.get("/readyz")
        assert (response.status_code, response.json()["database"]) == (503, False)
    engine.dispose()


async def test_not_ready_while_shutting_down(sqlite_url: str, clock: FakeClock) -> None:
    engine = connect(DatabaseSettings(url=sqlite_url))
    async with edge(engine, clock) as client:
        transport = client._transport
        assert isinstance(transport, httpx.ASGITransport)
        application = transport.app
        assert isinstance(application, Application)
        application.rest.state.services.proxy.closing = True
        response = await client.get("/readyz")
        assert (response.status_code, response.json()["accepting"]) == (503, False)
    engine.dispose()


@pytest.mark.parametrize(
    "authorization", [None, "Bearer", "Bearer wrong", f"Basic {ADMIN_TOKEN}", f"Bearer {ADMIN_TOKEN}x"]
)
def test_metrics_are_for_the_admin_alone(authorization: str | None, farebox: FareboxServer) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    response = httpx.get(f"{farebox.url}/metrics", headers=headers, timeout=30)
    assert (response.status_code, response.json()["error"]["code"]) == (401, "invalid_admin_token")
    payer = farebox.payer()
    assert httpx.get(f"{farebox.url}/metrics", headers=payer.headers, timeout=30).status_code == 401


def test_metrics_count_money_and_requests(farebox: FareboxServer) -> None:
    def counted(name: str) -> float:
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        response = httpx.get(f"{farebox.url}/metrics", headers=headers, timeout=30).raise_for_status()
        assert response.headers["content-type"].startswith("text/plain")
        return sum(float(line.split()[-1]) for line in response.text.splitlines() if line.startswith(name + "{"))

    payer = farebox.payer()
    before = counted("farebox_charged_nano_usd_total"), counted("farebox_requests_total")
    whole(farebox, payer, "dialect/ok").raise_for_status()
    charged = charge(farebox, payer)
    assert charged > 0
    assert counted("farebox_charged_nano_usd_total") - before[0] == charged
    assert counted("farebox_requests_total") - before[1] == 1


async def test_metrics_are_off_without_an_admin_token(
    sqlite_url: str, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = connect(DatabaseSettings(url=sqlite_url))
    async with edge(engine, clock) as client:
        for token in (None, "", "  "):
            monkeypatch.delenv(ADMIN_VARIABLE, raising=False)
            if token is not None:
                monkeypatch.setenv(ADMIN_VARIABLE, token)
            response = await client.get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
            assert (response.status_code, response.json()["error"]["code"]) == (403, "admin_api_off")
            assert (await client.get("/metrics", headers={"Authorization": "Bearer "})).status_code == 403
    engine.dispose()
