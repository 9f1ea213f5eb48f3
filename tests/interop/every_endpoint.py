"""A server of every paid endpoint for official SDKs: the built-in sandbox models, and web search that is made up."""

from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

from app.provider_settings import SANDBOX
from tests.serving import FareboxServer, Payer, model

# It could search, but nobody has said what that costs.
UNSEARCHED = "org/plain/model"
UPLOAD_BYTES_MAX = 262_144
BACKEND = "engine_type=sandbox, machine_name=sandbox"
# USD 1e-9 for one unit of each of the sandbox's models, as their settings say it.
INPUT, OUTPUT, WEB_SEARCH = 100, 400, 10_000_000
EMBEDDED, SEARCH_UNIT, SECOND, CHARACTER = 20, 2_000_000, 100_000, 10_000
IMAGE: Mapping[str, int] = {"1024x1024": 40_000_000, "1792x1024": 80_000_000, "1024x1792": 80_000_000}


def quick_sandbox(**changes: Any) -> dict[str, Any]:
    """The provider that runs when nothing is set up, without its pauses, and one model more."""
    settings = SANDBOX.model_dump(exclude_none=True, exclude_defaults=True)
    settings["models"] = [*settings["models"], model(UNSEARCHED)]
    return {**settings, "tokens_per_second": 1e9, "first_token_ms": 0, **changes}


def sections() -> dict[str, dict[str, Any]]:
    """The settings beside the providers."""
    return {"search": {"backend": "sandbox"}, "inference": {"upload_bytes_max": UPLOAD_BYTES_MAX}}


def every_endpoint(folder: Path, database_url: str) -> FareboxServer:
    """The server. Not started."""
    return FareboxServer(folder, database_url=database_url, providers=[quick_sandbox()], **sections())


def billed(server: FareboxServer, payer: Payer, headers: Mapping[str, str]) -> dict[str, Any]:
    """The payer's only outcome, which is what the headers of its answer say. Nothing is held any more."""
    server.wait_settled(payer, requests=1)
    (row,) = server.outcomes(payer)
    assert headers["x-request-id"] == headers["id"] == row["request_id"]
    assert (headers["backend"], headers["x-farebox-provider"]) == (BACKEND, "sandbox")
    assert (row["status"], row["estimated"]) == ("completed", False)
    if "x-farebox-cost" in headers:
        assert Decimal(headers["x-farebox-cost"]) * 10**9 == row["charged"]
    balance = server.balance(payer)
    assert (balance["debits_posted"], balance["debits_pending"]) == (row["charged"], 0)
    return row
