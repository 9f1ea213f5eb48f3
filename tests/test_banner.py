"""What a new user sees: where the proxy is, a key that works, and snippets that work as they stand."""

import json
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from app.banner import announce, banner
from tests.cases.chat import eventually
from tests.conftest import PostgresServer
from tests.serving import FareboxServer, model, sandbox

CURL = re.compile(r"^      curl .*?(?=\n\n)", re.MULTILINE | re.DOTALL)


@pytest.fixture
def first(sqlite_template: Path, tmp_path: Path) -> Iterator[FareboxServer]:
    """The first start on an empty database."""
    url = f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'farebox.db')}"
    with FareboxServer(tmp_path, database_url=url) as server:
        yield server


def announced(server: FareboxServer) -> str:
    """What a person sees, once it is all there."""
    eventually(lambda: "ledger check\n\n" in server.log.read_text())
    return server.log.read_text()


def shown(server: FareboxServer) -> str:
    """What the process has printed and logged until it ended."""
    assert server.terminate() == 0
    return server.log.read_text()


def test_first_start_prints_a_curl_that_works(first: FareboxServer) -> None:
    found = CURL.search(announced(first))
    assert found
    command = shlex.split(found.group().replace("\\\n", " "))
    assert command[:2] == ["curl", f"{first.url}/v1/chat/completions"]
    headers = dict(value.split(": ") for flag, value in pairwise(command) if flag == "-H")
    body = command[command.index("-d") + 1]
    response = httpx.post(command[1], headers=headers, content=body, timeout=30)
    answer = response.raise_for_status().json()
    assert answer["choices"][0]["message"]["content"]
    first.wait_settled()
    first.assert_green()


def test_key_is_shown_once_and_has_the_credit_that_is_said(first: FareboxServer) -> None:
    keys = set(re.findall(r"sk-fb-[\w-]{43}", announced(first)))
    assert len(keys) == 1
    (key,) = keys
    credits = httpx.get(f"{first.url}/v1/credits", headers={"x-api-key": key}, timeout=30).raise_for_status().json()
    assert f"with {credits['available']} USD of credit" in first.log.read_text()
    assert shown(first).count("First API key") == 1
    first.start()
    assert shown(first).count("First API key") == 1
    assert first.rows("SELECT count(*) AS n FROM api_keys") == [{"n": 1}]


def test_first_key_is_for_the_embedded_sandbox_alone(
    postgres: PostgresServer, sqlite_template: Path, tmp_path: Path
) -> None:
    sqlite = f"sqlite:///{shutil.copy(sqlite_template, tmp_path / 'farebox.db')}"
    real = {"name": "real", "base_url": "http://127.0.0.1:9/v1", "models": [model("m")]}
    for url, provider in ((postgres.create(), sandbox()), (sqlite, real)):
        with FareboxServer(tmp_path, database_url=url, providers=[provider]) as server:
            text = shown(server)
            assert server.rows("SELECT count(*) AS n FROM api_keys") == [{"n": 0}]
        assert '"event":"serving"' in text
        assert all(json.loads(line)["event"] for line in text.splitlines())
        if url.startswith("postgresql"):
            postgres.drop(url)


def test_snippets_name_the_address_the_model_and_the_key() -> None:
    text = banner(url="http://127.0.0.1:8402", models=["a/b", "c"], key="sk-fb-x")
    assert "2 models: a/b, c" in text
    assert '"model": "a/b"' in text
    assert 'OpenAI(base_url="http://127.0.0.1:8402/v1", api_key="sk-fb-x")' in text
    assert "Bearer sk-fb-x" in text
    assert "shown once" in text


def test_sdk_snippet_is_python() -> None:
    text = banner(url="http://127.0.0.1:8402", models=["m"], key="sk-fb-x")
    begin = text.index("      from openai")
    snippet = "\n".join(line[6:] for line in text[begin : text.index("\n\n", begin)].splitlines())
    assert compile(snippet, "snippet", "exec").co_names[:2] == ("openai", "OpenAI")


def test_key_that_exists_is_not_invented() -> None:
    text = banner(url="http://x", models=["m"], key=None)
    assert "Bearer YOUR_KEY" in text
    assert "farebox keys create --credit 5.00" in text


def test_many_models_are_not_all_listed() -> None:
    text = banner(url="http://x", models=[f"m{number}" for number in range(9)], key=None)
    assert "9 models: m0, m1, m2, m3, m4, ...\n" in text
    assert "1 model: m\n" in banner(url="http://x", models=["m"], key=None)
    assert '"model": "MODEL"' in banner(url="http://x", models=[], key=None)


async def test_process_that_did_not_start_announces_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    await announce(None, port=1, human=True)
    assert capsys.readouterr() == ("", "")
