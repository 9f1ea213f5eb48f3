"""``farebox models`` and ``farebox prices`` as an operator reads them: every unit with its price."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from app.cli import app
from app.clock import SystemClock
from app.database import connect
from app.ledger.price_store import PriceStore
from app.provider_settings import ProviderSettings
from app.settings import DatabaseSettings
from tests.serving import model, sandbox

PAINTS = """
[[providers]]
name = "sandbox"
adapter = "sandbox"
[[providers.models]]
id = "paints"
capabilities = ["images", "speech"]
price = { per_image = { 256x256 = "0.01", 1024x1024 = "0.04" }, per_character = "0.000015" }
"""


@pytest.fixture
def config(sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "here.toml"
    path.write_text(f"[database]\nurl = {json.dumps(sqlite_url)}\n{PAINTS}")
    return path


def shown(config: Path, command: str) -> list[str]:
    result = CliRunner().invoke(app, [command, "--config", str(config)])
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def test_models_are_listed_with_every_unit(config: Path) -> None:
    head, line = shown(config, "models")
    assert "PRICE, USD PER MILLION TOKENS OR PER UNIT" in head
    assert "per_image 256x256 0.01, per_image 1024x1024 0.04, per_character 0.000015" in line
    # A limit that is not set is none.
    assert " - " in line


def test_prices_are_listed_with_every_unit(config: Path, sqlite_url: str) -> None:
    price = {"per_image": {"256x256": "0.01"}, "per_search_unit": "0.002"}
    cost = {"per_image": {"256x256": "0.005"}}
    entry = sandbox(models=[model("paints", capabilities=["images"], price=price, cost=cost)])
    engine = connect(DatabaseSettings(url=sqlite_url))
    PriceStore(engine, SystemClock()).sync([ProviderSettings.model_validate(entry)])
    engine.dispose()
    _, line = shown(config, "prices")
    assert "per_image 256x256 0.01, per_search_unit 0.002" in line
    assert "per_image 256x256 0.005" in line
