"""What the numbers were measured on; without it they mean nothing elsewhere."""

import importlib.metadata
import os
import platform
import statistics
import time
from pathlib import Path

from bench.processes import Cores

PACKAGES = ("aiohttp", "httptools", "orjson", "psycopg", "sqlalchemy", "starlette", "uvicorn", "uvloop")
FSYNC_ROUNDS = 40
BUSY_LOAD = 0.5


def describe(*, cores: Cores, scratch: Path) -> dict[str, object]:
    """Processor, memory, cores used, versions, and the disk that pays for durability."""
    memory_kb = _field(Path("/proc/meminfo"), "MemTotal").split()[0]
    return {
        "cpu": _field(Path("/proc/cpuinfo"), "model name") or platform.machine(),
        "cores": os.cpu_count(),
        "server_cores": sorted(cores.server),
        "load_cores": sorted(cores.load),
        "memory_gb": round(int(memory_kb or 0) * 1024 / 1e9, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "scratch_filesystem": _filesystem(scratch),
        "fsync_ms": round(fsync_ms(scratch), 3),
        "load_average_before": round(os.getloadavg()[0], 2),
    }


def fsync_ms(folder: Path) -> float:
    """Median time to append 4 KiB and sync it: the floor under a commit on this disk."""
    path = folder / "fsync.probe"
    took_ms = []
    with path.open("wb", buffering=0) as file:
        for _ in range(FSYNC_ROUNDS):
            started_s = time.perf_counter()
            file.write(bytes(4096))
            os.fsync(file.fileno())
            took_ms.append((time.perf_counter() - started_s) * 1000)
    path.unlink()
    return statistics.median(took_ms)


def busy_s() -> float:
    """Time that processes, whosever, have used since boot on all cores; interrupts are left out."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:4]]
    return sum(ticks) / os.sysconf("SC_CLK_TCK")


def steal_and_total_ticks() -> tuple[int, int]:
    """CPU time that the hypervisor gave to others, and all of it, since boot."""
    ticks = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    return ticks[7], sum(ticks)


def _field(path: Path, name: str) -> str:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return ""


def _filesystem(folder: Path) -> str:
    """Type of the longest mount point above `folder`; tmpfs would make every commit free."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, filesystem, *_ = line.split()
        inside = folder.is_relative_to(mount)
        if inside and len(mount) >= len(best):
            best, kind = mount, filesystem
    return kind
