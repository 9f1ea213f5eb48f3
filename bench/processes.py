"""Processes of the benchmark: started on chosen cores, watched through /proc, ended by the pid we were given.

Only what was started here is ever signalled. Each child leads its own process group, so that a server which forks
is ended whole and an interrupt at the terminal reaches the harness alone, which then ends its children in order.
"""

import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

STOP_TIMEOUT_S = 20.0
STOP_POLL_S = 0.02
LOG_TAIL_BYTES = 3000
OPEN_FILES = 65_536


class BenchFailed(Exception):
    """The run cannot go on; the message is for the person at the terminal."""


@dataclass(frozen=True, kw_only=True)
class Cores:
    """Which cores serve and which carry the load (wrk, paced client, upstream, PostgreSQL)."""

    server: frozenset[int]
    load: frozenset[int]

    @property
    def shared(self) -> bool:
        """One core for both: the numbers then say little, and the table says so."""
        return self.server == self.load


def split_cores() -> Cores:
    """The first allowed core serves, all others carry the load."""
    allowed = sorted(os.sched_getaffinity(0))
    rest = frozenset(allowed[1:]) or frozenset(allowed)
    return Cores(server=frozenset(allowed[:1]), load=rest)


def raise_open_file_limit() -> None:
    """500 streams are 1000 sockets in a proxy; the usual soft limit is 1024. Children inherit this."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def free_port() -> int:
    """A loopback port nobody listens on now; the kernel does not hand it out again at once."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Resident memory of a process and its descendants, in MB (10^6 bytes)."""

    rss_mb: float
    peak_mb: float


class Process:
    """A child on given cores, with its output in a file."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        cores: frozenset[int],
        log_path: Path,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._log_path = log_path
        own_cores = os.sched_getaffinity(0)
        # A child inherits the affinity of the moment it is created, so no thread of it ever runs elsewhere.
        os.sched_setaffinity(0, cores)
        try:
            with log_path.open("ab") as log:
                self.started_s = time.monotonic()
                self._child = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=cwd,
                    env=dict(os.environ if env is None else env),
                    start_new_session=True,
                )
        finally:
            os.sched_setaffinity(0, own_cores)

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._child.poll()

    def log_tail(self) -> str:
        """The end of what it printed, for the message when it failed."""
        return self._log_path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")

    def memory(self) -> Memory:
        """Sums over descendants; pages they share count once each, so this errs upwards."""
        rss_kb = peak_kb = 0
        for pid in _descendants(self._child.pid):
            # A descendant may end between being listed and being read.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                status = dict(
                    line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
                )
                rss_kb += int(status.get("VmRSS", "0 kB").split()[0])
                peak_kb += int(status.get("VmHWM", "0 kB").split()[0])
        return Memory(rss_mb=rss_kb * 1024 / 1e6, peak_mb=peak_kb * 1024 / 1e6)

    def cpu_s(self) -> float:
        """Processor time used so far, descendants included."""
        return cpu_s(self._child.pid)

    def stop(self) -> int:
        """SIGTERM, then SIGKILL to the group when time is up; the exit code, negative for a signal."""
        if self._child.poll() is None:
            self._child.terminate()
            deadline_s = time.monotonic() + STOP_TIMEOUT_S
            # Looking without reaping keeps the pid ours until the group is signalled: a freed one may be reused.
            while not os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if time.monotonic() > deadline_s:
                    break
                time.sleep(STOP_POLL_S)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._child.pid, signal.SIGKILL)
        return self._child.wait(STOP_TIMEOUT_S)


def cpu_s(pid: int) -> float:
    """Processor time that a process and its living descendants have used."""
    ticks = 0
    for member in _descendants(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # The name in parentheses may hold spaces; fields 14 and 15 of proc(5) are counted behind it.
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _descendants(pid: int) -> list[int]:
    found = [pid]
    for parent in found:  # grows while it is walked
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                found.extend(int(child) for child in children.read_text().split())
    return found
