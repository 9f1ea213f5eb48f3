"""A server for the edge's tests: small bounds, one allowed host, and providers whose requests are all recorded."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.dialects.server import DialectServer
from tests.serving import FareboxServer, model, sandbox, upstream

UPSTREAM_KEY = "sk-upstream-1f0c9d5a7e3b48d2"
BODY_BYTES_MAX = 65_536
HEAD_BYTES_MAX = 8_192
PATIENCE_S = 0.5
STATUSES = (400, 401, 402, 403, 404, 422, 429, 500)
MODELS = (
    *("ok", "cookie", "crlf", "cr", "bytewise", "big", "midline", "huge_event", "gated", "notjson"),
    *(f"status:{status}" for status in STATUSES),
)


@dataclass(frozen=True, slots=True)
class Edge:
    """The server and the only upstream that it talks to."""

    server: FareboxServer
    dialects: DialectServer


@pytest.fixture(scope="session")
def edge(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edge]:
    """A real server process with small bounds."""
    folder = tmp_path_factory.mktemp("edge")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'farebox.db')}"
    with DialectServer() as dialects:
        models = [model(name, upstream_id=name) for name in MODELS]
        providers = [
            upstream("dialects", dialects.base_url, models, api_key_env="EDGE_UPSTREAM_KEY"),
            upstream("away", "http://127.0.0.1:9/v1", [model("away")], api_key_env="EDGE_UPSTREAM_KEY"),
            sandbox(),
        ]
        with FareboxServer(
            folder,
            database_url=url,
            providers=providers,
            environ={"EDGE_UPSTREAM_KEY": UPSTREAM_KEY},
            server={
                "allowed_hosts": ["127.0.0.1", "farebox.example:8402"],
                "body_bytes_max": BODY_BYTES_MAX,
                "body_timeout_s": PATIENCE_S,
                "head_bytes_max": HEAD_BYTES_MAX,
                "head_timeout_s": PATIENCE_S,
                "log_level": "debug",
            },
            inference={"upstream_idle_timeout_s": PATIENCE_S},
        ) as server:
            yield Edge(server, dialects)
