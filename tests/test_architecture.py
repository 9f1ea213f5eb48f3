"""Rules of our own that no linter knows, and documents that must say what the code says."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app import settings_table
from app.settings import Settings

ROOT = Path(__file__).parent.parent
APP = ROOT / "app"
MODULES = sorted(APP.rglob("*.py"))
LINES_MAX = 500
FUNCTION_LINES_MAX = 70
# The only module that may ask the machine what time it is.
CLOCK = APP / "clock.py"
# Called on these, the time is read from outside the injected clock.
CLOCK_CALLS = {
    *("time.time", "time.time_ns", "datetime.now", "datetime.utcnow", "datetime.today", "date.today"),
    *("datetime.datetime.now", "datetime.datetime.utcnow", "datetime.datetime.today", "datetime.date.today"),
}
MONEY = re.compile(r"usd|price|cost|amount|balance|charge|credit|money|spent|limit_", re.IGNORECASE)
SUFFIXES = {".py", ".md", ".toml", ".txt", ".lock", ".ini", ".yaml", ".yml", ".sh", ".mako", ".service", ".json", ""}
# Spelt in pieces, so that this file does not mention what it looks for.
PATHS = re.compile("/" + "work/|/" + r"home/\w|/" + "root/|/" + r"tmp/\w|" + r"[A-Z]:\\\\Users")
NUMBERS = re.compile(r"(?i)\bissues? #?\d|\bsession \d|(?<![\w&/])#\d{1,4}\b")


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call with the dotted name of what is called."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node


def published() -> list[Path]:
    """The files that git would publish."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    found = ""
    if shutil.which("git"):
        found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout
    # A source archive has no history: everything but what tools leave behind is published.
    paths = [ROOT / name for name in found.split("\0") if name] or [
        path
        for path in ROOT.rglob("*")
        if not {part for part in path.relative_to(ROOT).parts if part.startswith(".") or part == "__pycache__"}
    ]
    return [path for path in paths if path.is_file() and path.suffix in SUFFIXES]


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_time_comes_from_the_injected_clock(path: Path) -> None:
    found = {name for name, _ in calls(path)} & CLOCK_CALLS
    assert not found or path == CLOCK
    imported = [
        alias.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "time"
        for alias in node.names
    ]
    assert not imported


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_money_is_never_a_float(path: Path) -> None:
    for name, call in calls(path):
        if name == "float" and path.name != "json_body.py":
            assert not MONEY.search(ast.unparse(call)), ast.unparse(call)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.AnnAssign | ast.arg) and node.annotation is not None:
            name = ast.unparse(node.target) if isinstance(node, ast.AnnAssign) else node.arg
            money = re.search(r"usd|price|cost|amount|charged", name, re.IGNORECASE)
            assert not (money and re.search(r"\bfloat\b", ast.unparse(node.annotation))), name
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            assert not MONEY.search(ast.unparse(node)), ast.unparse(node)


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_only_the_command_line_prints(path: Path) -> None:
    found = [name for name, _ in calls(path) if name == "print"]
    assert not found or path.is_relative_to(APP / "cli")


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_modules_and_functions_stay_small(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LINES_MAX
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES_MAX, node.name


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_every_module_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("folder", ["app", "migrations", "tests", "bench"])
def test_ignored_type_errors_are_named(folder: str) -> None:
    for path in (ROOT / folder).rglob("*.py"):
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts):
            assert not re.search(r"#\s*type:\s*ignore(?!\[)", path.read_text()), path


def test_nothing_published_mentions_a_machine_or_a_ticket() -> None:
    paths = published()
    assert {"app/settings.py", "README.md", "pyproject.toml"} <= set(names(paths))
    for path in paths:
        text = path.read_text()
        assert not re.search(PATHS, text), (path, PATHS.search(text))
        assert not re.search(NUMBERS, text), (path, NUMBERS.search(text))


# Documents.


def test_readme_lists_exactly_the_settings() -> None:
    _, _, after = (ROOT / "README.md").read_text().partition("<!-- settings -->")
    table, end, _ = after.partition("<!-- /settings -->")
    assert end
    listed = [line for line in table.splitlines() if line.startswith("| `")]
    assert listed == settings_table.rows()


def test_table_has_every_setting_once() -> None:
    found = [row.split("`")[1] for row in settings_table.rows()]
    assert len(set(found)) == len(found)
    sections = {name for name in Settings.model_fields if name != "providers"}
    for section in sections:
        expected = [f"{section}.{name}" for name in type(getattr(Settings(), section)).model_fields]
        listed = [name for name in found if name.startswith(f"{section}.") and name.count(".") == 1]
        assert listed == [name for name in expected if name != "mpp.channels"]
    nested = {"providers.name", "providers.models.id", "providers.models.price.input", "mpp.channels.backend"}
    assert nested <= set(found)
    assert "| `server.port` | `8402` | port to listen on; 0 picks a free one |" in settings_table.rows()
    assert all(len(row.split(" | ")) == 3 for row in settings_table.rows())
    assert not any(row.endswith("|  |") for row in settings_table.rows())


def test_table_prints_itself_as_markdown() -> None:
    command = [sys.executable, "-m", "app.settings_table"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[2:] == settings_table.rows()


def test_cases_page_names_tests_that_exist() -> None:
    page = (ROOT / "docs/cases.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    cases = set(re.findall(r"^\| (\d+[a-c]?) \|", page, re.MULTILINE))
    assert cases == {*map(str, range(1, 47)), "20a", "20b", "20c"}
    missing = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / path).read_text()]
    assert not missing
