"""``/healthz`` (the process), ``/readyz`` (what it needs) and ``/metrics`` (for the admin token)."""

import asyncio

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from app import metrics
from app.api.admin import require_admin
from app.api.services import Services, services
from app.database import schema_is_current


async def healthz(_request: Request) -> Response:
    """The process runs and its event loop turns."""
    return JSONResponse({"status": "ok"})


async def readyz(request: Request) -> Response:
    """The database answers and is migrated, this process takes requests, and its chains were seen once.

    A chain that goes away later is told, and is no reason to send API keys elsewhere.
    """
    found = services(request)
    checks = {"database": await asyncio.to_thread(_database, found), "accepting": not found.proxy.closing}
    ready = all(checks.values())
    if found.wallets is not None:
        rail = found.wallets.rail
        checks["chain"] = rail.sees_every_chain()
        ready = ready and rail.chains_were_seen
    return JSONResponse({"status": "ready" if ready else "not ready", **checks}, status_code=200 if ready else 503)


async def read_metrics(request: Request) -> Response:
    """Prometheus exposition."""
    require_admin(request)
    metrics.in_flight.set(len(services(request).proxy.in_flight))
    return Response(metrics.text(), media_type="text/plain; version=0.0.4")


def _database(found: Services) -> bool:
    try:
        with found.engine.connect() as connection:
            connection.execute(text("SELECT 1"))
            return schema_is_current(connection)
    except SQLAlchemyError:
        return False


routes = [
    Route("/healthz", healthz, methods=["GET"]),
    Route("/readyz", readyz, methods=["GET"]),
    Route("/metrics", read_metrics, methods=["GET"]),
]
