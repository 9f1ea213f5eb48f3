"""Shared servers: several providers for one model, odd prices, small windows; and one that wallets pay."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.settings import InferenceSettings
from tests.cases import channel
from tests.devnet_fixtures import TempoChain
from tests.dialects.server import DialectServer
from tests.serving import COST, FareboxServer, model, sandbox, upstream

# What the second provider of a model charges and pays: nothing of it can be taken for the first one's.
SECOND_PRICE = {"input": "3.00", "output": "7.00"}
SECOND_COST = {"input": "1.10", "output": "2.30"}
UNPRICED = {"input": "1.00", "output": "4.00"}
DEAR = {"input": "1.00", "output": "1000000.00"}
WINDOW_TOKENS = 7
AMBIGUOUS = ("hangup", "reset", "slow_head")


@pytest.fixture(scope="session")
def shop(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, shared_dialects: DialectServer
) -> Iterator[FareboxServer]:
    """A real server process whose models are tried at ``dialects`` or ``first``, then at ``second``."""
    folder = tmp_path_factory.mktemp("shop")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'farebox.db')}"
    both = [f"both/{number}{suffix}" for number in range(6) for suffix in ("", "/stream")]
    ambiguous = {f"ambiguous/{name}{suffix}": name for name in AMBIGUOUS for suffix in ("", "/stream")}
    first = [
        *(model(name, upstream_id=f"first-{name}") for name in both),
        model("unpriced", price=UNPRICED, cost=COST),
        model("dear", price=DEAR, cost={}),
        model("lying"),
        model("plain"),
    ]
    second = [model(name, price=SECOND_PRICE, cost=SECOND_COST) for name in (*both, *ambiguous)]
    dialects = [
        *(model(name, upstream_id=dialect) for name, dialect in ambiguous.items()),
        model("gated"),
        model("slow_head"),
        model("ok"),
        model("flood", upstream_id="flood:2000"),
    ]
    providers = [
        upstream("dialects", shared_dialects.base_url, dialects),
        sandbox("first", models=first),
        sandbox("second", models=second),
    ]
    with FareboxServer(
        folder,
        database_url=url,
        providers=providers,
        server={"silence_comment_s": 0.1},
        ledger={"window_tokens_min": WINDOW_TOKENS, "window_growth": 1},
    ) as server:
        yield server


@pytest.fixture(scope="module")
def resting(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FareboxServer]:
    """A real server process that leaves failing providers alone, as servers do."""
    folder = tmp_path_factory.mktemp("resting")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'farebox.db')}"
    names = {"first": ["failing"], "refusing": ["refused", "refused/too"]}
    providers = [sandbox(name, models=[model(each) for each in models]) for name, models in names.items()]
    providers.append(sandbox("second", models=[model(each) for models in names.values() for each in models]))
    usual = InferenceSettings()
    rests = {"breaker_requests_min": usual.breaker_requests_min, "rest_s_max": usual.rest_s_max}
    with FareboxServer(folder, database_url=url, providers=providers, inference=rests) as server:
        yield server


@pytest.fixture(autouse=True)
def _wallets_end_with_their_test() -> Iterator[None]:
    yield
    channel.close_wallets()


@pytest.fixture(scope="session")
def till(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, devnet: TempoChain, shared_dialects: DialectServer
) -> Iterator[FareboxServer]:
    """A real server process that wallets pay, on both Tempo protocols: each test opens channels of its own."""
    providers = [
        sandbox(),
        upstream(
            "dialects", shared_dialects.base_url, [model("forging", upstream_id="crlf"), model("gated"), model("ok")]
        ),
    ]
    with channel.shop(
        tmp_path_factory.mktemp("till"),
        sqlite_template,
        devnet,
        providers=providers,
        server={"silence_comment_s": 0.1},
    ) as server:
        yield server
