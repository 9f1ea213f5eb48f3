"""Settings: a file, overlaid by the environment, checked once, and every mistake named."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from app.settings import (
    CONFIG_BYTES_MAX,
    PRICES_IMPLIED,
    SANDBOX,
    ModelSettings,
    Prices,
    ProviderSettings,
    Settings,
    SettingsError,
    load,
)

ISSUED = """
[server]
host = "127.0.0.1"
port = 8402
admin_token_env = "FAREBOX_ADMIN_TOKEN"
[database]
url = "sqlite:///farebox.db"
[[providers]]
name = "local"
kind = "native"
adapter = "openai"
base_url = "http://127.0.0.1:11434/v1"
api_key_env = "LOCAL_KEY"
[[providers.models]]
id = "qwen/qwen3.5-9b"
upstream_id = "qwen3.5:9b"
aliases = ["qwen3.5"]
capabilities = ["chat", "tools"]
context_window = 32768
max_output_tokens = 8192
price = { input = "0.10", cached_input = "0.02", output = "0.15", reasoning = "0.15" }
cost  = { input = "0.05", output = "0.08" }
"""
MODEL = """
[[providers.models]]
id = "{id}"
context_window = 100
max_output_tokens = 10
price = {{ input = "1", output = "2" }}
{more}
"""
PROVIDER = '[[providers]]\nname = "{name}"\nbase_url = "http://127.0.0.1:1/v1"\n{more}\n'


def written(folder: Path, text: str) -> Path:
    path = folder / "farebox.toml"
    path.write_text(text)
    return path


def refused(folder: Path, text: str, **environ: str) -> str:
    """The message of the error, which names the file and fits on one line."""
    path = written(folder, text)
    with pytest.raises(SettingsError) as caught:
        load(path, environ=environ)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


# Where settings come from.


def test_documented_example_is_a_configuration(tmp_path: Path) -> None:
    settings = load(written(tmp_path, ISSUED), environ={})
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8402)
    (provider,) = settings.providers
    assert (provider.name, provider.kind, provider.adapter, provider.api_key_env) == (
        *("local", "native", "openai"),
        "LOCAL_KEY",
    )
    (model,) = provider.models
    assert (model.upstream_id, model.aliases, model.capabilities) == ("qwen3.5:9b", ("qwen3.5",), ("chat", "tools"))
    assert model.price.in_pico_usd() == {
        "input": 100_000,
        "cached_input": 20_000,
        "output": 150_000,
        "reasoning": 150_000,
    }
    assert model.cost.in_pico_usd() == {"input": 50_000, "output": 80_000}


def test_no_file_and_no_variable_is_the_embedded_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = load(environ={})
    assert settings == Settings()
    assert settings.providers == (SANDBOX,)
    assert settings.database.url == "sqlite:///farebox.db"


def test_file_in_the_working_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "[server]\nport = 1\n")
    assert load(environ={}).server.port == 1
    assert load(environ={}).database.url == "sqlite:///farebox.db"


def test_path_comes_before_variable_comes_before_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = [tmp_path / name for name in ("farebox.toml", "second.toml", "third.toml")]
    for port, path in enumerate(files, 1):
        path.write_text(f"[server]\nport = {port}\n")
    environ = {"FAREBOX_CONFIG": str(files[1])}
    assert load(environ={}).server.port == 1
    assert load(environ=environ).server.port == 2
    assert load(files[2], environ=environ).server.port == 3
    assert load(environ={"FAREBOX_CONFIG": ""}).server.port == 1


def test_process_environment_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAREBOX_CONFIG", str(written(tmp_path, "[server]\nport = 7\n")))
    monkeypatch.setenv("FAREBOX_SERVER_HOST", "::1")
    settings = load()
    assert (settings.server.port, settings.server.host) == (7, "::1")


@pytest.mark.parametrize(
    ("name", "text", "found"),
    [
        ("FAREBOX_SERVER_PORT", "9000", ("server", "port", 9000)),
        ("FAREBOX_SERVER_HEAD_TIMEOUT_S", "0.5", ("server", "head_timeout_s", 0.5)),
        (
            "FAREBOX_SERVER_ALLOWED_HOSTS",
            "a.example, b.example,",
            ("server", "allowed_hosts", ("a.example", "b.example")),
        ),
        ("FAREBOX_SERVER_ALLOWED_HOSTS", "", ("server", "allowed_hosts", ())),
        ("FAREBOX_DATABASE_URL", "postgresql://u@h/d", ("database", "url", "postgresql://u@h/d")),
        ("FAREBOX_LEDGER_WINDOW_COST_MAX", "0.5", ("ledger", "window_cost_max", "0.5")),
        ("FAREBOX_INFERENCE_STREAM_DEFAULT", "true", ("inference", "stream_default", True)),
    ],
)
def test_variable_overrides_the_file(name: str, text: str, found: tuple[str, str, Any], tmp_path: Path) -> None:
    path = written(tmp_path, '[server]\nport = 1\nallowed_hosts = ["c.example"]\n[inference]\nstream_default = false\n')
    section, setting, value = found
    assert getattr(getattr(load(path, environ={name: text}), section), setting) == value


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///farebox.db", "sqlite:///{folder}/farebox.db"),
        ("sqlite:///data/../f.db", "sqlite:///{folder}/f.db"),
        ("sqlite:////var/lib/f.db", "sqlite:////var/lib/f.db"),
        ("postgresql://u@h/farebox.db", "postgresql://u@h/farebox.db"),
    ],
)
def test_relative_path_begins_at_the_file_that_names_it(url: str, expected: str, tmp_path: Path) -> None:
    path = written(tmp_path, f'[database]\nurl = "{url}"\n')
    assert load(path, environ={}).database.url == expected.format(folder=tmp_path)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Settings().server.port = 1  # type: ignore[misc]


# Mistakes.


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[server]\nprot = 1\n", "server.prot: Extra inputs are not permitted"),
        ("[sever]\n", "sever: Extra inputs"),
        ("[server]\nport = 70000\n", "server.port: "),
        ('[server]\nport = "http"\n', "server.port: "),
        ("[server]\nbody_depth_max = 201\n", "server.body_depth_max: "),
        ("[server]\nbody_timeout_s = 0\n", "server.body_timeout_s: "),
        ("[server]\nbody_timeout_s = nan\n", "server.body_timeout_s: "),
        ("[server]\nbody_timeout_s = inf\n", "server.body_timeout_s: "),
        ('[server]\nlog_level = "loud"\n', "server.log_level: "),
        ('[server]\nallowed_hosts = "a"\n', "server.allowed_hosts: "),
        ("server = 5\n", "server: "),
        ('[database]\nurl = "mysql://u:hunter2@h/d"\n', "database.url: "),
        ("[ledger]\nheartbeat_s = 5\nlease_ttl_s = 9\n", "lease_ttl_s must be at least twice heartbeat_s"),
        ('[ledger]\nwindow_cost_max = "much"\n', "ledger.window_cost_max: "),
        ('[ledger]\nwindow_cost_max = "0"\n', "ledger.window_cost_max: "),
        ("[ledger]\nidempotency_ttl_s = 1\n", "ledger.idempotency_ttl_s: "),
        ("[inference]\ndefault_max_tokens = 0\n", "inference.default_max_tokens: "),
        ('[[providers]]\nname = "a b"\nbase_url = "http://x"\n', "providers.0.name: "),
        ('[[providers]]\nname = "a"\n', "provider 'a' needs base_url"),
        ('[[providers]]\nname = "a"\nbase_url = "ftp://x"\n', "provider 'a' needs base_url"),
        ('[[providers]]\nname = "a"\nadapter = "other"\n', "providers.0.adapter: "),
        ('[[providers]]\nname = "a"\nbase_url = "http://x"\nkey = "sk-hunter2"\n', "providers.0.key: "),
        (PROVIDER.format(name="a", more="") * 2, "two providers have the same name"),
        (PROVIDER.format(name="a", more="") + MODEL.format(id="m", more="") * 2, "names a model twice"),
        (
            PROVIDER.format(name="a", more="") + MODEL.format(id="m", more='aliases = ["m"]'),
            "provider 'a' names a model twice",
        ),
        (
            PROVIDER.format(name="a", more="")
            + MODEL.format(id="m", more='aliases = ["x"]')
            + PROVIDER.format(name="b", more="")
            + MODEL.format(id="x", more=""),
            "'x' names two different models",
        ),
        (PROVIDER.format(name="a", more="") + MODEL.format(id="é", more=""), "providers.0.models.0.id: "),
        (PROVIDER.format(name="a", more="") + MODEL.format(id="m", more='aliases = ["a\\nb"]'), "models.0.aliases: "),
        (PROVIDER.format(name="a", more="") + MODEL.format(id="m", more='capabilities = ["fly"]'), "capabilities.0: "),
        (PROVIDER.format(name="a", more="") + MODEL.format(id="m", more="colour = 1"), "models.0.colour: "),
        (PROVIDER.format(name="a", more="") + MODEL.format(id="m", more='cost = { input = "-1" }'), "cost.input: "),
        (PROVIDER.format(name="a", more="") + MODEL.format(id="m", more='cost = { input = "x" }'), "cost.input: "),
        (PROVIDER.format(name="a", more="") + MODEL.format(id="m", more="cost = { input = 0.5 }"), "cost.input: "),
        (PROVIDER.format(name="a", more="") + MODEL.format(id="m", more='cost = { words = "1" }'), "cost.words: "),
    ],
)
def test_mistake_is_named(text: str, named: str, tmp_path: Path) -> None:
    message = refused(tmp_path, text)
    assert named in message
    assert "hunter2" not in message


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    message = refused(tmp_path, '[server]\nport = -1\n[database]\nurl = "x"\n', FAREBOX_LEDGER_BATCH_MAX="many")
    assert all(name in message for name in ("server.port: ", "database.url: ", "ledger.batch_max: "))


def test_mistake_in_a_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=r"^environment: server\.port: "):
        load(environ={"FAREBOX_SERVER_PORT": "x"})


@pytest.mark.parametrize("section", ["server = 5\n", "server = []\n", "[[server]]\nport = 1\n"])
def test_variable_for_what_is_no_table_is_named(section: str, tmp_path: Path) -> None:
    assert "server: " in refused(tmp_path, section, FAREBOX_SERVER_PORT="1")


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    for path, environ in ((missing, {}), (None, {"FAREBOX_CONFIG": str(missing)}), (tmp_path, {})):
        with pytest.raises(SettingsError, match=str(path or missing)):
            load(path, environ=environ)


@pytest.mark.parametrize("content", [b"[server\n", b"\xff", b"port = 1\nport = 2\n", b"#" * (CONFIG_BYTES_MAX + 1)])
def test_file_that_is_no_toml_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "farebox.toml"
    path.write_bytes(content)
    with pytest.raises(SettingsError, match=str(path)):
        load(path, environ={})


# Prices.


@pytest.mark.parametrize(
    ("capability", "unit"), [(each, unit) for each, units in PRICES_IMPLIED.items() for unit in units]
)
def test_capability_implies_its_prices(capability: str, unit: str) -> None:
    def priced(name: str, text: str) -> Any:
        return {"1024x1024": text} if name == "per_image" else text

    prices = {name: priced(name, "1") for name in PRICES_IMPLIED[capability] if name != unit}
    entry = {"id": "m", "context_window": 1, "max_output_tokens": 1, "capabilities": [capability]}
    with pytest.raises(ValidationError, match=rf"model 'm' can '{capability}', so price\.{unit} must be set"):
        ModelSettings.model_validate({**entry, "price": prices})
    for price in ("1", "0"):
        assert ModelSettings.model_validate({**entry, "price": {**prices, unit: priced(unit, price)}})


@pytest.mark.parametrize("sizes", [{}, {"1024*1024": "1"}, {"big": "1"}, {"0x10": "1"}, {"1024x1024": "-1"}])
def test_images_are_priced_by_sizes_that_are_sizes(sizes: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"WIDTHxHEIGHT|negative"):
        Prices(per_image=sizes)


def test_prices_of_units_are_exact_to_a_pico_usd() -> None:
    prices = Prices(per_second="0.0001", per_character="0.000000000001", per_image={"1024x1024": "0.04"})
    assert prices.in_pico_usd() == {"second": 10**8, "character": 1, "image:1024x1024": 4 * 10**10}
    with pytest.raises(ValidationError, match="decimal places"):
        Prices(per_character="0.0000000000001")


def test_what_generates_needs_its_limits() -> None:
    with pytest.raises(ValidationError, match="needs context_window and max_output_tokens"):
        ModelSettings.model_validate({"id": "m", "price": {"input": "1", "output": "1"}})
    assert ModelSettings.model_validate({"id": "m", "capabilities": ["embeddings"], "price": {"input": "1"}})


def test_model_that_searches_the_web_needs_tools_a_price_and_a_backend() -> None:
    model = {"id": "m", "context_window": 1, "max_output_tokens": 1, "price": {"input": "1", "output": "1"}}
    with pytest.raises(ValidationError, match=r"needs 'tools' and price\.per_web_search"):
        ModelSettings.model_validate({**model, "web_search": True})
    priced = {**model, "web_search": True, "capabilities": ["chat", "tools"]}
    priced["price"] = {"input": "1", "output": "1", "per_web_search": "0.01"}
    provider = {"name": "p", "base_url": "http://127.0.0.1:9", "models": [priced]}
    with pytest.raises(ValidationError, match=r"search\.backend must be set"):
        Settings.model_validate({"providers": [provider]})
    assert Settings.model_validate({"providers": [provider], "search": {"backend": "sandbox"}})


def test_price_may_be_zero_but_never_missing() -> None:
    assert Prices(input="0", output="0.000001").in_pico_usd() == {"input": 0, "output": 1}
    with pytest.raises(ValidationError, match="price"):
        ModelSettings.model_validate({"id": "m", "context_window": 1, "max_output_tokens": 1})


def test_sandbox_is_priced_as_any_model() -> None:
    assert ProviderSettings.model_validate(SANDBOX.model_dump()) == SANDBOX
    assert {"input", "output"} <= set(SANDBOX.models[0].price.in_pico_usd())


def test_example_is_toml() -> None:
    assert tomllib.loads(ISSUED)["providers"][0]["models"][0]["id"] == "qwen/qwen3.5-9b"
