"""The two kinds of load, each a process of its own on the load's cores: wrk, and the paced client."""

import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import orjson

from bench.contestants import Contestant
from bench.processes import ROOT, BenchFailed
from bench.wire import MODEL, PACE_INTERVAL_S, PATH, request_body

REQUEST_TIMEOUT_S = 30
KILL_AFTER_S = 60.0
RAMP_S = 2.0

# wrk's own report is rounded for people; its `done` hook has the exact counts and costs nothing per request.
_SCRIPT = """\
wrk.method = "POST"
wrk.body = [==[%(body)s]==]
%(headers)s
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    '\\n@@{"requests":%%d,"duration_us":%%d,"bytes":%%d,"p50_us":%%d,"p99_us":%%d,' ..
    '"connect":%%d,"read":%%d,"write":%%d,"status":%%d,"timeout":%%d}\\n',
    summary.requests, summary.duration, summary.bytes, latency:percentile(50), latency:percentile(99),
    e.connect, e.read, e.write, e.status, e.timeout))
end
"""


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """One wrk run."""

    per_s: float
    requests: int
    p50_ms: float
    p99_ms: float
    bytes_per_answer: float
    errors: dict[str, int]

    def as_json(self) -> dict[str, object]:
        """For the results file."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Paced:
    """One run of the paced client; latencies are what was added per token."""

    streams: int
    tokens_expected: int
    tokens_received: int
    failed: int
    failures: dict[str, int]
    p50_ms: float | None
    p99_ms: float | None
    max_ms: float | None

    def as_json(self) -> dict[str, object]:
        """For the results file."""
        return asdict(self)


def require_wrk() -> str:
    """Its version; BenchFailed says how to get it."""
    if shutil.which("wrk") is None:
        raise BenchFailed("wrk is missing; install it with: apt-get install wrk")
    # wrk prints its version with its usage and exits with 1.
    printed = subprocess.run(["wrk", "-v"], capture_output=True, text=True, check=False, timeout=KILL_AFTER_S)
    return (printed.stdout + printed.stderr).partition("[")[0].strip()


def run_wrk(
    contestant: Contestant, *, stream: bool, connections: int, seconds: int, answer_bytes_min: int, scratch: Path
) -> Throughput:
    """One run with one thread; an answer that is not 2xx, or is shorter than a right one, shows up in `errors`."""
    headers = {"Content-Type": "application/json", **contestant.headers}
    script = scratch / "request.lua"
    script.write_text(
        _SCRIPT
        % {
            "body": request_body(model=MODEL, stream=stream).decode(),
            "headers": "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()),
        }
    )
    argv = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", f"{REQUEST_TIMEOUT_S}s"]
    printed = _run([*argv, "-s", str(script), contestant.url + PATH], timeout_s=seconds + KILL_AFTER_S)
    counts = orjson.loads(printed.rpartition("@@")[2])
    errors = {name: counts[name] for name in ("connect", "read", "write", "status", "timeout") if counts[name]}
    bytes_per_answer = counts["bytes"] / max(counts["requests"], 1)
    # wrk's count includes answers cut off at the end of the run, so only a shortfall proves anything.
    if bytes_per_answer < answer_bytes_min:
        errors["short_answers"] = 1
    return Throughput(
        per_s=counts["requests"] / (counts["duration_us"] / 1e6),
        requests=counts["requests"],
        p50_ms=counts["p50_us"] / 1000,
        p99_ms=counts["p99_us"] / 1000,
        bytes_per_answer=bytes_per_answer,
        errors=errors,
    )


def run_paced(contestant: Contestant, *, streams: int, tokens: int) -> Paced:
    """One run of the paced client against `contestant`."""
    argv = [sys.executable, "-m", "bench.paced", "--port", str(contestant.port), "--streams", str(streams)]
    argv += ["--tokens", str(tokens), "--ramp-s", str(RAMP_S)]
    for name, value in contestant.headers.items():
        argv += ["--header", f"{name}: {value}"]
    printed = _run(argv, timeout_s=RAMP_S + tokens * PACE_INTERVAL_S + KILL_AFTER_S)
    return Paced(**orjson.loads(printed))


def _run(argv: list[str], *, timeout_s: float) -> str:
    try:
        done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=True, timeout=timeout_s)
    except subprocess.CalledProcessError as error:
        raise BenchFailed(f"{argv[0]} failed: {error.stdout}{error.stderr}") from error
    except subprocess.TimeoutExpired as error:
        raise BenchFailed(f"{argv[0]} did not end within {timeout_s} s") from error
    return done.stdout
