"""The commands as a person or a script runs them: most in this process, one in a process of its own."""

import csv
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner, Result

from app import database
from app.cli import app
from app.database import SingleServer, connect
from app.settings import DatabaseSettings
from tests.clocks import FakeClock
from tests.reconcile.books import LiveBooks

SECRET = "a secret of at least thirty-two bytes"
SECRET_KEY = re.compile(r"sk-fb-[A-Za-z0-9_-]{43}")


@dataclass
class Shell:
    """Runs commands with one configuration."""

    config: Path

    def run(self, *arguments: str, code: int = 0) -> Result:
        result = CliRunner().invoke(app, [*arguments, "--config", str(self.config)])
        assert result.exit_code == code, result.output
        return result

    def json(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.run(*arguments, "--json", code=code).stdout)
        return body


@pytest.fixture
def shell(database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell on a migrated database, with the environment that an operator would have."""
    for name in [name for name in os.environ if name.startswith("FAREBOX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FAREBOX_SECRET", SECRET)
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "here.toml"
    config.write_text(f"[database]\nurl = {json.dumps(database_url)}\n")
    return Shell(config)


@pytest.fixture
def new_shell(shell: Shell, tmp_path: Path) -> Shell:
    """A shell whose SQLite file does not exist yet."""
    shell.config.write_text(f'[database]\nurl = "sqlite:///{tmp_path / "new.db"}"\n')
    return shell


@pytest.fixture
def books(engine: Engine, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> LiveBooks:
    """Books with a customer, a key and a served request, to look at with commands."""
    monkeypatch.setattr("tests.reconcile.books.PEPPER", SECRET.encode())
    made = LiveBooks(engine, clock)
    _, payer = made.customer(credit="1.00")
    made.served(payer, "req_1")
    return made


def test_a_new_key_comes_with_a_customer_and_credit(shell: Shell) -> None:
    made = shell.json("keys", "create", "--credit", "5.00")
    assert SECRET_KEY.fullmatch(made["key"])
    assert made["id"].startswith("key_")
    assert made["available"] == "5.00"
    shown = shell.json("customers", "show", made["customer_id"])
    assert (shown["available"], shown["spent"], shown["held"]) == ("5.00", "0.00", "0.00")
    assert shell.json("ledger", "check")["green"] is True


def test_the_first_key_makes_the_database(new_shell: Shell) -> None:
    made = new_shell.json("keys", "create", "--credit", "5.00")
    assert [key["id"] for key in new_shell.json("keys", "list")["keys"]] == [made["id"]]


@pytest.mark.parametrize("command", [["keys", "list"], ["ledger", "check"], ["usage"], ["credit", "cus_x", "1"]])
def test_a_database_that_is_not_there_is_not_made_by_looking(
    new_shell: Shell, tmp_path: Path, command: list[str]
) -> None:
    result = new_shell.run(*command, code=2)
    assert "does not exist yet" in result.stderr
    assert not (tmp_path / "new.db").exists()


def test_limits_are_taken_as_given(shell: Shell) -> None:
    made = shell.json(
        *("keys", "create", "--label", "laptop", "--spend-limit", "10", "--spend-limit-month", "2.5"),
        *("--models", "a/b, c", "--expires", "30d", "--requests-per-minute", "60", "--tokens-per-minute", "9000"),
    )
    shown = shell.json("keys", "show", made["id"])
    assert (shown["label"], shown["spend_limit"], shown["spend_limit_month"]) == ("laptop", "10.00", "2.50")
    assert (shown["models"], shown["requests_per_minute"], shown["tokens_per_minute"]) == (["a/b", "c"], 60, 9000)
    assert shown["expires_at"] > shown["created_at"]


def test_limits_can_be_changed_one_by_one_and_taken_away(shell: Shell) -> None:
    made = shell.json("keys", "create", "--spend-limit", "10", "--models", "a", "--expires", "2099-01-01")
    changed = shell.json("keys", "limit", made["id"], "--spend-limit", "none", "--tokens-per-minute", "5")
    assert (changed["spend_limit"], changed["models"], changed["tokens_per_minute"]) == (None, ["a"], 5)
    assert changed["expires_at"] == "2099-01-01T00:00:00.000Z"


def test_routing_of_a_key_can_be_set_changed_and_taken_away(shell: Shell) -> None:
    prices = ("max_input_price_per_million=50", "--routing", "max_output_price_per_million=200")
    made = shell.json(
        *("keys", "create", "--routing", "routing_strategy=cheapest", "--routing", "provider.only=a, b"),
        *("--routing", *prices, "--routing", "provider.allow_fallbacks=false"),
    )
    assert made["routing"] == {
        "routing_strategy": "cheapest",
        "max_input_price_per_million": 50,
        "max_output_price_per_million": 200,
        "provider": {"only": ["a", "b"], "allow_fallbacks": False},
    }
    assert shell.json("keys", "limit", made["id"], "--spend-limit", "1")["routing"] == made["routing"]
    limit = ("keys", "limit", made["id"], "--routing")
    changed = shell.json(*limit, "provider.only=none", "--routing", "allow_external=true")
    assert changed["routing"]["provider"] == {"allow_fallbacks": False}
    assert (changed["routing"]["allow_external"], changed["spend_limit"]) == (True, "1.00")
    assert shell.json(*limit, "none")["routing"] is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("routing_strategy", "NAME=VALUE"),
        ("strategy=cheapest", "routing_strategy"),
        ("only=a", "provider.only"),
        ("routing_strategy=random", "cheapest, fastest, balanced"),
        ("max_input_price_per_million=5", "max_output_price_per_million"),
        ("allow_external=1", "true or false"),
    ],
)
def test_routing_that_is_not_understood_is_refused(shell: Shell, text: str, said: str) -> None:
    assert said in " ".join(shell.run("keys", "create", "--routing", text, code=1).stderr.split())


def test_a_second_key_can_share_a_customer(shell: Shell) -> None:
    first = shell.json("keys", "create", "--credit", "5.00")
    second = shell.json("keys", "create", "--customer", first["customer_id"], "--credit", "1.00")
    assert second["customer_id"] == first["customer_id"]
    assert second["available"] == "6.00"
    assert len(shell.json("customers", "list")["customers"]) == 1


def test_rotation_and_revocation(shell: Shell) -> None:
    made = shell.json("keys", "create")
    rotated = shell.json("keys", "rotate", made["id"])
    assert SECRET_KEY.fullmatch(rotated["key"])
    assert rotated["key"] != made["key"]
    assert shell.json("keys", "revoke", made["id"])["revoked_at"] is not None
    assert "revoked" in shell.run("keys", "rotate", made["id"], code=1).stderr


def test_a_secret_is_shown_by_nothing_but_its_making(shell: Shell) -> None:
    made = shell.json("keys", "create", "--credit", "1")
    for command in (["keys", "list"], ["keys", "show", made["id"]], ["keys", "revoke", made["id"]]):
        assert not SECRET_KEY.search(shell.run(*command).output)
        assert not SECRET_KEY.search(shell.run(*command, "--json").output)


def test_credit_is_given_once_per_id(shell: Shell) -> None:
    made = shell.json("keys", "create")
    command = ("credit", made["customer_id"], "2.50", "--id", "invoice-1", "--kind", "top_up", "--note", "paid")
    first, again = shell.json(*command), shell.json(*command)
    assert (first["first"], again["first"]) == (True, False)
    assert first["available"] == again["available"] == "2.50"
    other = shell.run("credit", made["customer_id"], "3", "--id", "invoice-1", "--kind", "top_up", code=1)
    assert "used before" in other.stderr


def test_credit_can_be_given_by_key(shell: Shell) -> None:
    made = shell.json("keys", "create")
    credited = shell.json("credit", made["id"], "1.25")
    assert (credited["customer_id"], credited["available"]) == (made["customer_id"], "1.25")
    assert shell.json("credit", made["id"], "1.25")["available"] == "2.50"


def test_a_refund_is_recorded_then_paid(shell: Shell) -> None:
    made = shell.json("keys", "create", "--credit", "5.00")
    refund = shell.json("refund", "create", made["customer_id"], "5.00", "--id", "t1")
    assert (refund["first"], refund["paid_at"]) == (True, None)
    assert shell.json("refund", "create", made["customer_id"], "5.00", "--id", "t1")["first"] is False
    assert [row["id"] for row in shell.json("refund", "list", "--unpaid")["refunds"]] == ["t1"]
    assert shell.json("refund", "paid", "t1")["first"] is True
    assert shell.json("refund", "paid", "t1")["first"] is False
    assert shell.json("refund", "list", "--unpaid")["refunds"] == []
    assert shell.json("ledger", "check")["green"] is True


def test_a_refund_never_pays_out_credit_that_was_lent(shell: Shell) -> None:
    made = shell.json("keys", "create", "--credit", "5.00")
    shell.run("customers", "limit", made["customer_id"], "1.00")
    refused = shell.run("refund", "create", made["customer_id"], "5.01", code=1)
    assert "5.00 USD that can be taken" in refused.stderr
    assert shell.json("customers", "show", made["id"])["available"] == "6.00"


def test_customers_can_be_made_with_a_limit(shell: Shell) -> None:
    made = shell.json("customers", "create", "Ada", "--credit-limit", "3")
    assert (made["name"], made["available"], made["credit_limit"]) == ("Ada", "3.00", "3.00")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["keys", "create", "--credit", "lots"], "--credit"),
        (["keys", "create", "--credit=-1"], "amount"),
        (["keys", "create", "--spend-limit", "0"], "spend_limit"),
        (["keys", "create", "--expires", "soon"], "--expires"),
        (["keys", "create", "--expires", "2020-01-01"], "expires_at"),
        (["keys", "create", "--models", ","], "models"),
        (["keys", "create", "--requests-per-minute", "many"], "requests_per_minute"),
        (["keys", "create", "--customer", "cus_none"], "cus_none"),
        (["keys", "show", "key_none"], "key_none"),
        (["customers", "show", "cus_none"], "cus_none"),
        (["credit", "key_none", "1"], "key_none"),
        (["refund", "paid", "none"], "none"),
        (["usage", "--from", "yesterday"], "--from"),
    ],
)
def test_a_refusal_is_one_line_that_names_the_cause(shell: Shell, command: list[str], message: str) -> None:
    result = shell.run(*command, "--json", code=1)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    "command", [["credit", "CUSTOMER", "-5"], ["keys", "limit"], ["usage", "--by", "year"], ["nope"]]
)
def test_wrong_usage_exits_2(shell: Shell, command: list[str]) -> None:
    assert shell.run(*command, code=2).stdout == ""


def test_refused_credit_leaves_no_key(shell: Shell) -> None:
    shell.run("keys", "create", "--credit=-1", code=1)
    assert shell.json("keys", "list")["keys"] == []


def test_usage_by_row_and_added_up(shell: Shell, books: LiveBooks) -> None:
    (row,) = shell.json("usage")["data"]
    assert (row["id"], row["cost"], row["provider_cost"]) == ("req_1", "0.000292", "0.000146")
    for by, group in (("day", "2025-10-09"), ("model", "sandbox/echo"), ("key", row["key_id"])):
        (total,) = shell.json("usage", "--by", by)["data"]
        assert (total[by], total["requests"], total["cost"]) == (group, 1, "0.000292")
    assert shell.json("usage", "--from", "2025-10-10")["data"] == []
    assert len(shell.json("usage", "--to", "2025-10-09", "--customer", row["key_id"])["data"]) == 1


def test_usage_shows_what_is_no_token(shell: Shell, books: LiveBooks, engine: Engine) -> None:
    assert "web_search" not in shell.run("usage").stdout
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        units = '{"image:1024x1024":3,"web_search":2}'
        connection.execute(text("UPDATE outcomes SET units = :units"), {"units": units})
    (row,) = shell.json("usage")["data"]
    assert row["units"] == {"image:1024x1024": 3, "web_search": 2}
    assert "image:1024x1024 3, web_search 2" in shell.run("usage").stdout
    (shown,) = csv.DictReader(io.StringIO(shell.run("usage", "--csv").stdout, newline=""))
    assert shown["units"] == units


def test_usage_as_csv(shell: Shell, books: LiveBooks) -> None:
    (row,) = csv.DictReader(io.StringIO(shell.run("usage", "--csv").stdout, newline=""))
    assert (row["id"], row["cost"]) == ("req_1", "0.000292")
    (total,) = csv.DictReader(io.StringIO(shell.run("usage", "--by", "key", "--csv").stdout, newline=""))
    assert (total["label"], total["cost"]) == ("laptop", "0.000292")


def test_usage_goes_on_where_a_page_ended(shell: Shell, books: LiveBooks, clock: FakeClock) -> None:
    clock.advance(1)
    _, payer = books.customer(credit="1.00")
    books.served(payer, "req_2")
    first = shell.json("usage", "--limit", "1")
    assert [row["id"] for row in first["data"]] == ["req_2"]
    second = shell.json("usage", "--limit", "1", "--cursor", first["next_cursor"])
    assert ([row["id"] for row in second["data"]], second["next_cursor"]) == (["req_1"], None)


def test_prices_and_their_history(shell: Shell, books: LiveBooks) -> None:
    (price,) = shell.json("prices", "--model", "sandbox/echo")["prices"]
    assert (price["model"], price["version"], price["price"]["input"]) == ("sandbox/echo", 1, "0.10")
    (version,) = shell.json("prices", "--history", "--model", "sandbox/echo")["prices"]
    assert version["added_at"] == "2025-10-09T08:53:20.000Z"
    assert shell.json("prices", "--model", "other")["prices"] == []


def test_models_need_no_database(new_shell: Shell, tmp_path: Path) -> None:
    model = new_shell.json("models")["models"][0]
    assert (model["id"], model["provider"], model["price"]["output"]) == ("sandbox/echo", "sandbox", "0.40")
    assert not (tmp_path / "new.db").exists()


def test_ledger_check_exits_1_and_names_the_rows(shell: Shell, books: LiveBooks, engine: Engine) -> None:
    assert "the books balance" in shell.run("ledger", "check").stdout
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(text("UPDATE outcomes SET charged = charged - 1"))
    result = shell.run("ledger", "check", code=1)
    assert "outcome_charged: req_1" in result.stdout
    assert "NOT balance" in result.stdout
    body = shell.json("ledger", "check", code=1)
    assert body["green"] is False
    assert ("outcome_charged", "req_1") in {(finding["kind"], finding["row"]) for finding in body["findings"]}


def test_an_old_database_is_migrated_when_needed(new_shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "new.db").touch()
    assert new_shell.json("keys", "list") == {"keys": []}
    assert new_shell.json("migrate")["current"] is True


def test_a_schema_from_the_future_is_refused(shell: Shell, engine: Engine) -> None:
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    result = shell.run("keys", "list", code=2)
    assert "not known to this version" in result.stderr


@pytest.mark.parametrize("place", ["before", "after", "variable", "folder"])
def test_the_configuration_is_found_where_it_is_named(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    made = shell.json("keys", "create")
    command = ["keys", "list", "--json"]
    match place:
        case "before":
            command = ["--config", str(shell.config), *command]
        case "after":
            command = [*command, "--config", str(shell.config)]
        case "variable":
            monkeypatch.setenv("FAREBOX_CONFIG", str(shell.config))
        case "folder":
            shell.config.rename(tmp_path / "farebox.toml")
    result = CliRunner().invoke(app, command)
    assert [key["id"] for key in json.loads(result.stdout)["keys"]] == [made["id"]]


def test_json_may_stand_before_the_command(shell: Shell) -> None:
    result = CliRunner().invoke(app, ["--json", "--config", str(shell.config), "keys", "list"])
    assert json.loads(result.stdout) == {"keys": []}


def test_a_wrong_configuration_is_one_line_and_exit_2(shell: Shell) -> None:
    shell.config.write_text("[server]\nport = 99999\n")
    for command in (["keys", "list"], ["serve"], ["models"]):
        result = shell.run(*command, code=2)
        assert "server.port" in result.stderr
        assert result.stderr.count("\n") == 1


def test_a_missing_configuration_is_exit_2(shell: Shell) -> None:
    shell.config.unlink()
    assert "here.toml" in shell.run("keys", "list", code=2).stderr


def test_a_database_that_is_away_is_one_line_without_the_password(shell: Shell) -> None:
    shell.config.write_text('[database]\nurl = "postgresql://me:hunter2@127.0.0.1:1/farebox"\n')
    for command in (["keys", "list"], ["ledger", "check", "--json"]):
        result = shell.run(*command, code=2)
        assert "127.0.0.1" in result.stderr
        assert "hunter2" not in result.output
        assert result.stdout == ""


def test_a_short_secret_is_refused_without_quoting_it(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAREBOX_SECRET", "hunter2")
    result = shell.run("keys", "create", code=2)
    assert "FAREBOX_SECRET" in result.stderr
    assert "hunter2" not in result.output


def test_people_get_a_table(shell: Shell, books: LiveBooks) -> None:
    lines = shell.run("customers", "list").stdout.splitlines()
    assert lines[0].split() == ["ID", "NAME", "AVAILABLE", "HELD", "SPENT", "CREDIT", "LIMIT"]
    assert lines[1].split()[1:] == ["Ada", "0.999708", "0.00", "0.000292", "0.00"]
    assert "sandbox/echo" in shell.run("usage").stdout
    assert "REQUESTS" in shell.run("usage", "--by", "day").stdout


@pytest.mark.parametrize(
    "command",
    [[], ["keys"], ["keys", "create"], ["credit"], ["refund", "create"], ["usage"], ["ledger", "check"], ["serve"]],
)
def test_help_is_there_for_every_command(command: list[str]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert "Usage" in result.stdout


def states(body: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["state"] for check in body["checks"]}


def test_doctor_says_what_is_well(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAREBOX_ADMIN_TOKEN", "a long random admin token")
    body = shell.json("doctor")
    assert body["ok"] is True
    found = states(body)
    assert {
        name: found[name] for name in ("python", "sqlite", "configuration", "database", "migrations", "secret")
    } == (dict.fromkeys(("python", "sqlite", "configuration", "database", "migrations", "secret"), "ok"))
    assert found["admin token"] == "ok"
    assert "ok    database" in shell.run("doctor").stdout


def test_doctor_warns_without_failing(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    assert states(shell.json("doctor"))["admin token"] == "warn"
    monkeypatch.setenv("FAREBOX_ADMIN_TOKEN", "short")
    assert states(shell.json("doctor"))["admin token"] == "warn"


def test_doctor_names_a_provider_whose_key_is_not_set(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    provider = '[[providers]]\nname = "p"\nbase_url = "http://127.0.0.1:1/v1"\napi_key_env = "P_KEY"\n'
    model = '[[providers.models]]\nid = "m"\ncontext_window = 10\nmax_output_tokens = 5\n'
    with shell.config.open("a") as file:
        file.write(provider + model + 'price = { input = "1", output = "1" }\n')
    body = shell.json("doctor", code=1)
    assert states(body)["provider p"] == "fail"
    assert "P_KEY" in str(body)
    monkeypatch.setenv("P_KEY", "hunter2")
    assert states(shell.json("doctor"))["provider p"] == "ok"
    assert "hunter2" not in shell.run("doctor").output


def test_doctor_looks_at_web_search(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = shell.config.read_text()
    assert "web search" not in states(shell.json("doctor"))
    shell.config.write_text(plain + '[search]\nbackend = "brave"\napi_key_env = "BRAVE_KEY"\n')
    assert states(shell.json("doctor", code=1))["web search"] == "fail"
    monkeypatch.setenv("BRAVE_KEY", "hunter2")
    # The built-in model may search.
    assert states(shell.json("doctor"))["web search"] == "ok"
    provider = '[[providers]]\nname = "p"\nadapter = "anthropic"\nbase_url = "http://127.0.0.1:1"\n'
    model = '[[providers.models]]\nid = "m"\ncontext_window = 10\nmax_output_tokens = 5\n'
    price = 'capabilities = ["chat", "reasoning"]\nprice = { input = "1", output = "1" }\n'
    with shell.config.open("a") as file:
        file.write(provider + model + price)
    found = states(shell.json("doctor"))
    assert (found["web search"], found["provider p"]) == ("warn", "warn")
    with shell.config.open("a") as file:
        file.write("hidden_reasoning = true\n")
    assert states(shell.json("doctor"))["provider p"] == "ok"


def test_doctor_goes_on_where_the_configuration_is_wrong(shell: Shell) -> None:
    shell.config.write_text("[server]\nport = 99999\n")
    body = shell.json("doctor", code=1)
    assert states(body)["configuration"] == "fail"
    assert body["ok"] is False


def test_doctor_fails_where_the_database_is_away(shell: Shell) -> None:
    shell.config.write_text('[database]\nurl = "postgresql://me:hunter2@127.0.0.1:1/farebox"\n')
    result = shell.run("doctor", code=1)
    assert "fail  database" in result.stdout
    assert "hunter2" not in result.output


def test_doctor_makes_nothing(new_shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FAREBOX_SECRET")
    assert states(new_shell.json("doctor"))["database"] == "warn"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith("new")] == []


def test_doctor_sees_an_old_schema(new_shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "new.db").touch()
    assert states(new_shell.json("doctor"))["migrations"] == "warn"


def test_doctor_sees_a_secret_that_others_can_read(
    new_shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FAREBOX_SECRET")
    new_shell.run("keys", "create")
    assert states(new_shell.json("doctor"))["secret"] == "ok"
    (tmp_path / "new.db.secret").chmod(0o644)
    body = new_shell.json("doctor", code=1)
    assert states(body)["secret"] == "fail"
    assert "chmod 600" in str(body)


def test_doctor_wants_the_variable_on_postgresql(
    shell: Shell, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.config.write_text(f"[database]\nurl = {json.dumps(postgres_url)}\n")
    monkeypatch.delenv("FAREBOX_SECRET")
    assert states(shell.json("doctor", code=1))["secret"] == "fail"
    assert "FAREBOX_SECRET" in shell.run("keys", "create", code=2).stderr


def test_a_locked_database_is_one_line_and_exit_2(
    shell: Shell, sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shell.config.write_text(f"[database]\nurl = {json.dumps(sqlite_url)}\n")
    monkeypatch.setattr(database, "BUSY_TIMEOUT_MS", 1)
    engine = connect(DatabaseSettings(url=sqlite_url))
    with engine.connect().execution_options(writes=True) as connection, connection.begin():
        result = shell.run("customers", "create", "Ada", code=2)
    engine.dispose()
    assert "locked" in result.stderr
    assert result.stderr.count("\n") == 1


def farebox(shell: Shell, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The installed command, in a process of its own."""
    command = [str(Path(sys.executable).with_name("farebox")), *arguments, "--config", str(shell.config)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_console_script_prints_one_object_with_id_and_key(new_shell: Shell) -> None:
    done = farebox(new_shell, "keys", "create", "--credit", "5.00", "--json")
    made = json.loads(done.stdout)
    assert made["id"].startswith("key_")
    assert SECRET_KEY.fullmatch(made["key"])
    assert (done.returncode, done.stderr) == (0, "")


def test_serve_says_in_one_line_that_the_database_is_away(shell: Shell) -> None:
    shell.config.write_text('[database]\nurl = "postgresql://me:hunter2@127.0.0.1:1/farebox"\n')
    done = farebox(shell, "serve")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "127.0.0.1" in done.stderr
    assert "hunter2" not in done.stderr


def test_serve_refuses_a_file_that_another_process_serves(new_shell: Shell, tmp_path: Path) -> None:
    lock = SingleServer(connect(DatabaseSettings(url=f"sqlite:///{tmp_path / 'new.db'}")))
    lock.acquire()
    done = farebox(new_shell, "serve")
    lock.release()
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "another farebox" in done.stderr


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from app.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        "heavy = 'sqlalchemy alembic aiohttp uvicorn starlette psycopg cryptography prometheus_client'.split()\n"
        "print(sorted(set(heavy) & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
