"""No node outlives who started it."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from app.devnet.node import AnvilProcess, NodeFailed

ROOT = Path(__file__).parent.parent.parent
GONE_TIMEOUT_S = 20
OWNER = """
import sys, time
from app.devnet import Devnet, DevnetThread
with DevnetThread(Devnet()) as chain:
    print(chain.rpc_url, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[str]]:
    """A process that runs a chain."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline().startswith("http://127.0.0.1:")
    yield process
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()


def family(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The guard and the node."""
    found = psutil.Process(process.pid).children(recursive=True)
    assert [child.name().startswith("anvil") for child in found].count(True) == 1
    assert len(found) == 2
    return list(found)


def test_node_dies_with_an_owner_that_is_killed(owner: subprocess.Popen[str]) -> None:
    children = family(owner)
    owner.kill()
    _, alive = psutil.wait_procs(children, timeout=GONE_TIMEOUT_S)
    assert not alive


def test_node_stops_with_an_owner_that_ends(owner: subprocess.Popen[str]) -> None:
    children = family(owner)
    owner.communicate()
    assert owner.returncode == 0
    assert not psutil.wait_procs(children, timeout=0)[1]


def test_node_dies_with_its_guard(owner: subprocess.Popen[str]) -> None:
    children = family(owner)
    (guard,) = [child for child in children if not child.name().startswith("anvil")]
    guard.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs(children, timeout=GONE_TIMEOUT_S)
    for child in alive:
        child.kill()
    # Only Linux tells a child that its parent died; elsewhere the node would have gone on.
    assert bool(alive) is (sys.platform != "linux")


async def test_node_that_does_not_start_says_why(tmp_path: Path) -> None:
    program = tmp_path / "node"
    program.write_text("#!/bin/sh\necho cannot do that\nexit 3\n")
    program.chmod(0o700)
    with pytest.raises(NodeFailed, match="cannot do that"):
        await AnvilProcess.start(program)
