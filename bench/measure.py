"""The run: start everything once, go round the servers, stop everything, look at the books.

Rounds interleave the servers, so that a slow minute of the machine hits all of them and not one. All servers stay up
for the whole run, which the idle ones make no use of.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from bench import machine
from bench.contestants import Contestant
from bench.load import RAMP_S, Paced, Throughput, run_paced, run_wrk
from bench.probe import AnswerSizes, await_first_answer, check_answers, get_json
from bench.processes import Memory, Process, cpu_s
from bench.wire import PACE_INTERVAL_S

WARM_UP_S = 1
DRAIN_S = 0.5
IDLE_SAMPLE_S = 1.0
IDLE_CORES = 0.05


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how hard."""

    rounds: int
    seconds: int
    connections: tuple[int, ...]
    paced_streams: int
    paced_tokens: int
    patience_s: int

    def streams_for(self, contestant: Contestant) -> int:
        """Paced streams; a peer that cannot carry them all is asked for fewer, and the table says so."""
        return min(self.paced_streams, contestant.paced_streams_max or self.paced_streams)

    def estimate_s(self, contestants: Sequence[Contestant]) -> float:
        """Time under load, without start-up."""
        total_s = 0.0
        for contestant in contestants:
            wrk_s = self.seconds * len(self.connections)
            total_s += wrk_s * (contestant.stream_time_factor + contestant.plain)
            total_s += contestant.paced * (RAMP_S + self.paced_tokens * PACE_INTERVAL_S)
        return total_s * self.rounds


@dataclass(kw_only=True)
class Measured:
    """All raw results of one server."""

    contestant: Contestant
    starts_s: list[float] = field(default_factory=list)
    plain: dict[int, list[Throughput]] = field(default_factory=dict)
    streams: dict[int, list[Throughput]] = field(default_factory=dict)
    paced: list[Paced] = field(default_factory=list)
    disturbed: list[float] = field(default_factory=list)  # cores that others used meanwhile, by run
    memory: dict[str, Memory] = field(default_factory=dict)
    used: list[float] = field(default_factory=list)  # cores that the server used: below 1 it waited for something
    answers: int = 0  # complete ones that wrk counted, warm-up included
    books: str = ""
    problems: list[str] = field(default_factory=list)


class Run:
    """One benchmark run; a context manager that ends every server it started."""

    def __init__(self, *, plan: Plan, scratch: Path) -> None:
        self._plan = plan
        self._scratch = scratch
        self._stack = ExitStack()
        self._processes: dict[str, Process] = {}
        self._sizes: dict[str, AnswerSizes] = {}
        self._patience_s = float(plan.patience_s)
        self.measured: dict[str, Measured] = {}

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, contestant: Contestant, *, times: int) -> None:
        """Starts it `times` times for the start-up figure and leaves the last one running, checked and warm."""
        measured = self.measured[contestant.name] = Measured(contestant=contestant)
        for attempt in range(times):
            progress(f"{contestant.name}: start {attempt + 1} of {times}")
            process = self._processes[contestant.name] = contestant.launch()
            self._stack.callback(process.stop)
            with self._watching(measured):
                measured.starts_s.append(await_first_answer(contestant, process))
            if attempt + 1 < times:
                self._note_exit(measured, process.stop())
        self._sizes[contestant.name] = check_answers(contestant)
        measured.memory["started"] = process.memory()

    def leave_out(self, name: str) -> None:
        """Keeps a server running that others need, without measuring it."""
        del self.measured[name]

    def estimate_s(self) -> float:
        """Time under load that `rounds` will take."""
        return self._plan.estimate_s([measured.contestant for measured in self.measured.values()])

    def warm_up(self) -> None:
        """Fills connection pools; not counted."""
        for measured in self.measured.values():
            for stream in (False, True):
                self._wrk(measured, stream=stream, connections=max(self._plan.connections), seconds=WARM_UP_S)

    def rounds(self) -> None:
        """All rounds, in the order in which the servers were started."""
        for number in range(1, self._plan.rounds + 1):
            for measured in self.measured.values():
                self._one_round(measured, f"round {number} of {self._plan.rounds}, {measured.contestant.name}")

    def finish(self) -> None:
        """Stops the servers, newest first, and inspects what they leave behind."""
        for name, measured in reversed(self.measured.items()):
            process = self._processes[name]
            measured.memory["end"] = process.memory()
            self._check_payment(measured)
            progress(f"{name}: stopping")
            self._note_exit(measured, process.stop())
            if measured.contestant.inspect is not None:
                verdict = measured.contestant.inspect()
                measured.books = "green" if verdict.clean else "RED"
                if not verdict.clean:
                    measured.problems.append(f"the ledger check failed: {verdict.text}")

    def _one_round(self, measured: Measured, label: str) -> None:
        contestant, plan = measured.contestant, self._plan
        for stream, results in ((False, measured.plain), (True, measured.streams)):
            if not stream and not contestant.plain:
                continue
            for connections in plan.connections:
                seconds = plan.seconds * (contestant.stream_time_factor if stream else 1)
                self._await_idle()
                result = self._wrk(measured, stream=stream, connections=connections, seconds=seconds)
                results.setdefault(connections, []).append(result)
                what = "streams/s" if stream else "requests/s"
                progress(f"{label}: {result.per_s:,.0f} {what} on {connections} connections")
        measured.memory["after wrk"] = self._processes[contestant.name].memory()
        if contestant.paced:
            self._await_idle()
            with self._watching(measured):
                paced = run_paced(contestant, streams=plan.streams_for(contestant), tokens=plan.paced_tokens)
            measured.paced.append(paced)
            progress(f"{label}: {paced.streams} paced streams, p99 {paced.p99_ms} ms added, {paced.failed} failed")
            if paced.failed:
                measured.problems.append(f"{paced.failed} of {paced.streams} paced streams failed: {paced.failures}")
            measured.memory["after paced"] = self._processes[contestant.name].memory()

    def _wrk(self, measured: Measured, *, stream: bool, connections: int, seconds: int) -> Throughput:
        sizes = self._sizes[measured.contestant.name]
        with self._watching(measured):
            result = run_wrk(
                measured.contestant,
                stream=stream,
                connections=connections,
                seconds=seconds,
                answer_bytes_min=sizes.stream if stream else sizes.plain,
                scratch=self._scratch,
            )
        measured.answers += result.requests
        if result.errors or (not result.requests and seconds > WARM_UP_S):
            kind = "streams" if stream else "requests"
            measured.problems.append(
                f"{kind} on {connections} connections: {result.requests} answers, errors {result.errors}"
            )
        # wrk hangs up on what is in flight; let the server finish with it before the next one is measured.
        time.sleep(DRAIN_S)
        return result

    def _await_idle(self) -> None:
        """Waits while others use the machine, for as long as the plan's patience lasts over the whole run."""
        while self._patience_s > 0:
            others_s = machine.busy_s() - self._own_cpu_s()
            time.sleep(IDLE_SAMPLE_S)
            if machine.busy_s() - self._own_cpu_s() - others_s < IDLE_CORES * IDLE_SAMPLE_S:
                return
            self._patience_s -= IDLE_SAMPLE_S
            if self._patience_s <= 0:
                progress("the machine did not become idle; measuring all the same")

    @contextmanager
    def _watching(self, measured: Measured) -> Iterator[None]:
        """Notes what the server used and what went to others: a run beside a test suite measures the test suite."""
        process = self._processes[measured.contestant.name]
        before_s, used_s, others_s = time.monotonic(), process.cpu_s(), machine.busy_s() - self._own_cpu_s()
        yield
        used_s, others_s = process.cpu_s() - used_s, machine.busy_s() - self._own_cpu_s() - others_s
        took_s = time.monotonic() - before_s
        measured.used.append(used_s / took_s)
        measured.disturbed.append(max(0.0, others_s / took_s))

    def _own_cpu_s(self) -> float:
        """Of everything that belongs to the run: servers, their databases, the harness, and wrk once it has ended."""
        companions = {m.contestant.companion_pid for m in self.measured.values()} - {None}
        return (
            sum(os.times()[:4])
            + sum(process.cpu_s() for process in self._processes.values())
            + sum(cpu_s(pid) for pid in companions if pid is not None)
        )

    def _check_payment(self, measured: Measured) -> None:
        """Every counted answer must have been paid for; what wrk abandoned and the paced streams come on top."""
        price = measured.contestant.answer_price_usd
        if price is None:
            return
        credits = get_json(measured.contestant, "/v1/credits")
        spent = Decimal(str(credits.get("spent", 0)))
        if spent < measured.answers * price:
            measured.problems.append(f"{measured.answers} answers at {price} USD, but only {spent} USD was spent")

    def _note_exit(self, measured: Measured, code: int) -> None:
        if code != measured.contestant.stop_code:
            measured.problems.append(f"exited with {code} on SIGTERM, not {measured.contestant.stop_code}")


def progress(line: str) -> None:
    """Life signs go to stderr; stdout is the table."""
    print(line, file=sys.stderr, flush=True)
