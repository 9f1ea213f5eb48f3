"""A server under test, and the two that need no payment: the upstream itself and the bare pass-through."""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from bench.processes import ROOT, Cores, Process

START_TIMEOUT_S = 30.0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What an inspection of the books after the run found."""

    clean: bool
    text: str


@dataclass(kw_only=True)
class Contestant:
    """How to start one server and how to talk to it."""

    name: str
    port: int
    argv: Sequence[str]
    cores: frozenset[int]
    log_path: Path
    cwd: Path = ROOT
    env: Mapping[str, str] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    plain: bool = True  # non-streaming requests are measured
    paced: bool = True
    paced_streams_max: int | None = None
    # A slow server needs a longer look: with 64 streams at 13/s nothing would finish within 5 s.
    stream_time_factor: int = 1
    start_timeout_s: float = START_TIMEOUT_S
    stop_code: int = 0
    companion_pid: int | None = None  # of a database that runs for this server only
    # Ours must answer everything; what a peer fails at is reported but does not invalidate the run.
    must_succeed: bool = True
    answer_price_usd: Decimal | None = None  # of one 100-token answer, where answers are paid
    inspect: Callable[[], Verdict] | None = None
    details: Mapping[str, str] = field(default_factory=dict)  # for the results file

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        return f"http://127.0.0.1:{self.port}"

    def launch(self) -> Process:
        """Starts the server; it is not ready yet."""
        return Process(self.argv, cores=self.cores, log_path=self.log_path, cwd=self.cwd, env=self.env)


def upstream(*, port: int, cores: Cores, paced_tokens: int, scratch: Path) -> Contestant:
    """The upstream on the load's cores, where it also is while others are measured: the ceiling of the arrangement."""
    return Contestant(
        name="upstream",
        port=port,
        argv=[sys.executable, "-m", "bench.upstream", "--port", str(port), "--paced-tokens", str(paced_tokens)],
        cores=cores.load,
        log_path=scratch / "upstream.log",
    )


def bare(*, port: int, cores: Cores, upstream_url: str, scratch: Path) -> Contestant:
    """The yardstick of the targets."""
    return Contestant(
        name="bare",
        port=port,
        argv=[sys.executable, "-m", "bench.bare", "--port", str(port), "--upstream", upstream_url],
        cores=cores.server,
        log_path=scratch / "bare.log",
        stop_code=-15,  # uvicorn restores the default handler and raises the signal again once it has shut down
    )


def bare_coalescing(*, port: int, cores: Cores, upstream_url: str, scratch: Path) -> Contestant:
    """Differs from bare in streams only, so only those are measured."""
    contestant = bare(port=port, cores=cores, upstream_url=upstream_url, scratch=scratch)
    contestant.name = "bare-coalescing"
    contestant.argv = [*contestant.argv, "--coalesce"]
    contestant.log_path = scratch / "bare-coalescing.log"
    contestant.plain = contestant.paced = False
    return contestant
