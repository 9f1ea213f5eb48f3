"""The command line: `python -m bench [--peer litellm] [--quick] ...`, which `make bench` calls.

Exit code 0 when the run is valid, whether or not the targets were met; 1 when a server of ours gave wrong answers or
left wrong books, since its speed then means nothing; 2 when the run could not be made.
"""

import argparse
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from types import FrameType

import orjson

from bench import contestants, farebox, machine, peer, report
from bench.load import require_wrk
from bench.measure import Plan, Run, progress
from bench.processes import BenchFailed, Cores, free_port, raise_open_file_limit, split_cores

SERVERS = ("upstream", "bare", "bare-coalescing", "farebox-sqlite", "farebox-postgresql")
RESULTS = Path(__file__).resolve().parent / "results.json"


def parse(words: list[str]) -> argparse.Namespace:
    """`--quick` changes defaults only, so that single options still win."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="What a paid request costs, measured.")
    parser.add_argument("--peer", choices=["litellm"], help="measure this proxy too (from PyPI, own environment)")
    parser.add_argument("--quick", action="store_true", help="one short round: a look, not a result")
    parser.add_argument("--only", help=f"comma-separated servers out of {','.join(SERVERS)},litellm")
    parser.add_argument("--paced", type=int, default=500, metavar="N", help="concurrent paced streams (500)")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds (3)")
    parser.add_argument("--seconds", type=int, metavar="N", help="length of one wrk run (5)")
    parser.add_argument("--connections", default="16,64", help="comma-separated wrk connection counts (16,64)")
    parser.add_argument(
        "--patience", type=int, default=0, metavar="S", help="seconds to wait, in all, for an idle machine (0)"
    )
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="PATH", help="results file (bench/results.json)")
    parser.add_argument("--scratch", type=Path, help="folder for databases and logs; it decides which disk is measured")
    arguments = parser.parse_args(words)
    arguments.rounds = arguments.rounds or (1 if arguments.quick else 3)
    arguments.seconds = arguments.seconds or (2 if arguments.quick else 5)
    arguments.connections = tuple(int(count) for count in arguments.connections.split(","))
    known = [*SERVERS, "litellm"]
    default = [*SERVERS, *([arguments.peer] if arguments.peer else [])]
    wanted = arguments.only.split(",") if arguments.only else default
    if unknown := sorted(set(wanted) - set(known)):
        parser.error(f"--only: unknown {', '.join(unknown)}")
    arguments.servers = [name for name in known if name in wanted]
    if min(arguments.rounds, arguments.seconds, arguments.paced, *arguments.connections) < 1:
        parser.error("counts are positive")
    # Before the run, not after it: ten minutes of results have nowhere to go otherwise.
    for name, folder in (("--json", arguments.json.parent), ("--scratch", arguments.scratch)):
        if folder is not None and not folder.is_dir():
            parser.error(f"{name}: {folder} is not a folder")
    return arguments


def plan_of(arguments: argparse.Namespace) -> Plan:
    """A paced stream lasts 8 s, long enough for several payment windows."""
    return Plan(
        rounds=arguments.rounds,
        seconds=arguments.seconds,
        connections=arguments.connections,
        paced_streams=arguments.paced,
        paced_tokens=60 if arguments.quick else 160,
        patience_s=arguments.patience,
    )


def build(name: str, *, cores: Cores, upstream_url: str, scratch: Path, stack: ExitStack) -> contestants.Contestant:
    """A server by its name; databases live as long as `stack`."""
    port = free_port()
    match name:
        case "bare":
            return contestants.bare(port=port, cores=cores, upstream_url=upstream_url, scratch=scratch)
        case "bare-coalescing":
            return contestants.bare_coalescing(port=port, cores=cores, upstream_url=upstream_url, scratch=scratch)
        case "litellm":
            return peer.litellm(port=port, upstream_url=upstream_url, cores=cores, scratch=scratch)
        case "farebox-sqlite":
            database_url = farebox.sqlite_url(scratch)
            details, companion_pid = {}, None
        case _:
            database = stack.enter_context(farebox.postgres(scratch))
            database_url, details, companion_pid = database.url, database.settings, database.pid
    contestant = farebox.farebox(
        name=name, port=port, database_url=database_url, upstream_url=upstream_url, cores=cores, scratch=scratch
    )
    contestant.details, contestant.companion_pid = details, companion_pid
    return contestant


def run(arguments: argparse.Namespace, *, scratch: Path, cores: Cores) -> bool:
    """Measures, prints the table, writes the results file; False when a server of ours invalidated the run."""
    plan = plan_of(arguments)
    description = machine.describe(cores=cores, scratch=scratch)
    description["wrk"] = require_wrk()
    if "litellm" in arguments.servers:
        description["litellm"] = peer.install()
    steal_before, total_before = machine.steal_and_total_ticks()
    with ExitStack() as databases, Run(plan=plan, scratch=scratch) as bench:
        upstream = contestants.upstream(port=free_port(), cores=cores, paced_tokens=plan.paced_tokens, scratch=scratch)
        bench.start(upstream, times=1)
        for name in arguments.servers:
            if name != "upstream":
                contestant = build(name, cores=cores, upstream_url=upstream.url, scratch=scratch, stack=databases)
                bench.start(contestant, times=arguments.rounds)
        if upstream.name not in arguments.servers:
            bench.leave_out(upstream.name)
        bench.warm_up()
        progress(f"about {bench.estimate_s() / 60:.1f} minutes under load")
        bench.rounds()
        bench.finish()
    steal, total = machine.steal_and_total_ticks()
    description["steal_percent"] = round(100 * (steal - steal_before) / max(total - total_before, 1), 2)
    table = report.rows(bench.measured, plan)
    print(_heading(description, plan, cores=cores))
    print(report.render(table, bench.measured))
    for line in [*report.warnings(bench.measured), *report.problems(bench.measured)]:
        print(line)
    results = {"machine": description, "plan": asdict(plan), **report.as_json(table, bench.measured)}
    arguments.json.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE))
    return not report.invalid(bench.measured)


def _heading(description: dict[str, object], plan: Plan, *, cores: Cores) -> str:
    lines = [
        f"{description['cpu']}, Python {description['python']}, {description['scratch_filesystem']} with"
        f" {description['fsync_ms']} ms per fsync; server on core {description['server_cores']}, load and upstream on"
        f" {description['load_cores']}; median of {plan.rounds} rounds"
    ]
    if cores.shared:
        lines.append("WARNING: one core carries both server and load; ratios are compressed, latencies meaningless")
    if float(str(description["load_average_before"])) > machine.BUSY_LOAD:
        lines.append(f"WARNING: the machine was busy before the run (load {description['load_average_before']})")
    if description["scratch_filesystem"] == "tmpfs":
        lines.append("WARNING: databases were on tmpfs, so durability cost nothing; use --scratch")
    return "\n".join(lines)


def main() -> int:
    """Everything the run creates is inside its scratch folder and gone afterwards, except the results."""
    arguments = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, _terminated)
    try:
        require_wrk()
        raise_open_file_limit()
        cores = split_cores()
        if cores.shared:
            progress("only one core is available: server and load share it")
        # The harness, wrk, the paced client and PostgreSQL inherit this; servers under test are placed one by one.
        os.sched_setaffinity(0, cores.load)
        with tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.scratch) as scratch:
            return 0 if run(arguments, scratch=Path(scratch).resolve(), cores=cores) else 1
    except BenchFailed as error:
        progress(f"bench: {error}")
        return 2
    except KeyboardInterrupt:
        progress("bench: interrupted")
        return 130


def _terminated(_number: int, _frame: FrameType | None) -> None:
    # As an exception, so that every server is ended on the way out.
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
