"""From raw results to one table, verdicts on the targets, and the JSON file."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from bench.load import Paced, Throughput
from bench.measure import Measured, Plan

Results = Mapping[str, Measured]
Value = float | None

JUDGED_PREFIX = "farebox"
DISTURBED_CORES = 0.05


@dataclass(frozen=True, kw_only=True)
class Target:
    """A bound on a row; Farebox's cells in it are judged."""

    text: str
    met: Callable[[float], bool]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table, for all servers."""

    label: str
    values: Mapping[str, Value]
    form: str
    target: Target | None = None

    def verdict(self, name: str) -> bool | None:
        """Met or not; None where nothing is to be judged or was measured."""
        value = self.values.get(name)
        if self.target is None or value is None or not name.startswith(JUDGED_PREFIX):
            return None
        return self.target.met(value)

    def cell(self, name: str) -> str:
        """What the table shows."""
        value = self.values.get(name)
        if value is None:
            return "-"
        verdict = {None: "", True: " met", False: " NOT MET"}[self.verdict(name)]
        return format(value, self.form) + verdict


def _at_least(bound: float) -> Target:
    return Target(text=f">= {bound:g}x", met=lambda value: value >= bound)


def _at_most(bound: float, unit: str) -> Target:
    return Target(text=f"<= {bound:g} {unit}", met=lambda value: value <= bound)


def rows(results: Results, plan: Plan) -> list[Row]:
    """The table, top to bottom. Memory and start-up follow the loads."""
    table = []
    kinds: list[tuple[str, Callable[[Measured], dict[int, list[Throughput]]], float, float]] = [
        ("requests/s", lambda measured: measured.plain, 0.5, 20),
        ("streams/s", lambda measured: measured.streams, 0.8, 50),
    ]
    for label, pick, of_bare, of_peer in kinds:
        for connections in plan.connections:
            per_s = {
                name: _median([run.per_s for run in pick(measured).get(connections, [])])
                for name, measured in results.items()
            }
            where = f"at {connections}"
            table.append(Row(label=f"{label}, {connections} connections", values=per_s, form=",.0f"))
            table.append(_ratio(f"  x bare {where}", per_s, "bare", target=_at_least(of_bare)))
            if "bare-coalescing" in results and label == "streams/s":
                table.append(_ratio(f"  x bare-coalescing {where}", per_s, "bare-coalescing", target=None))
            if "litellm" in results:
                table.append(_ratio(f"  x litellm {where}", per_s, "litellm", target=_at_least(of_peer)))
    return [*table, *_paced_rows(results, plan), *_process_rows(results)]


def _paced_rows(results: Results, plan: Plan) -> list[Row]:
    def medians(pick: Callable[[Paced], Value]) -> dict[str, Value]:
        return {
            name: _median([value for run in measured.paced if (value := pick(run)) is not None])
            for name, measured in results.items()
        }

    # The targets are about 500 streams; fewer prove nothing.
    judged = plan.paced_streams >= 500
    none_failed = Target(text="0", met=lambda value: value == 0)
    failed = {name: float(sum(run.failed for run in measured.paced)) for name, measured in results.items()}
    return [
        Row(label="paced streams at 20 tokens/s", values=medians(lambda run: run.streams), form=",.0f"),
        Row(
            label="  failed, all rounds",
            values={name: value for name, value in failed.items() if results[name].paced},
            form=",.0f",
            target=none_failed if judged else None,
        ),
        Row(label="  added per token, p50 ms", values=medians(lambda run: run.p50_ms), form=",.2f"),
        Row(
            label="  added per token, p99 ms",
            values=medians(lambda run: run.p99_ms),
            form=",.2f",
            target=_at_most(15, "ms") if judged else None,
        ),
    ]


def _process_rows(results: Results) -> list[Row]:
    def memory(moment: str) -> dict[str, Value]:
        return {
            name: measured.memory[moment].rss_mb if moment in measured.memory else None
            for name, measured in results.items()
        }

    peak: dict[str, Value] = {name: measured.memory["end"].peak_mb for name, measured in results.items()}
    starts = {name: _median(measured.starts_s) for name, measured in results.items()}
    return [
        Row(label="memory when started, MB", values=memory("started"), form=",.0f"),
        Row(label="memory after wrk, MB", values=memory("after wrk"), form=",.0f"),
        Row(label="memory after paced streams, MB", values=memory("after paced"), form=",.0f"),
        Row(label="memory peak, MB", values=peak, form=",.0f", target=_at_most(150, "MB")),
        Row(label="start to first answer, s", values=starts, form=",.2f", target=_at_most(2, "s")),
    ]


def render(table: Sequence[Row], results: Results) -> str:
    """Aligned for a terminal; labels left, numbers right."""
    names = list(results)
    lines = [["", *names, "target"]]
    lines += [[row.label, *(row.cell(name) for name in names), row.target.text if row.target else ""] for row in table]
    if any(measured.books for measured in results.values()):
        lines.append(["ledger check", *(measured.books or "-" for measured in results.values()), "green"])
    widths = [max(len(line[column]) for line in lines) for column in range(len(names) + 2)]
    text = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        text.append("  ".join(cells).rstrip())
    return "\n".join(text)


def problems(results: Results) -> list[str]:
    """What went wrong, a line each, whoever's fault."""
    return [f"PROBLEM {name}: {problem}" for name, measured in results.items() for problem in measured.problems]


def warnings(results: Results) -> list[str]:
    """Servers that had the machine not to themselves; their numbers are too low, and ratios with them wrong."""
    return [
        f"WARNING: other work used up to {max(measured.disturbed):.0%} of a core while {name} was measured"
        for name, measured in results.items()
        if measured.disturbed and max(measured.disturbed) > DISTURBED_CORES
    ]


def invalid(results: Results) -> bool:
    """Whether a server that must answer everything did not."""
    return any(measured.contestant.must_succeed and measured.problems for measured in results.values())


def as_json(table: Sequence[Row], results: Results) -> dict[str, object]:
    """Medians and verdicts by row, and every raw run below them."""
    return {
        "table": [{"row": row.label.strip(), "values": dict(row.values)} for row in table],
        "targets": [
            {
                "row": row.label.strip(),
                "target": row.target.text,
                "server": name,
                "value": row.values.get(name),
                "met": row.verdict(name),
            }
            for row in table
            if row.target is not None
            for name in results
            if name.startswith(JUDGED_PREFIX)
        ],
        "servers": {name: _raw(measured) for name, measured in results.items()},
    }


def _raw(measured: Measured) -> dict[str, object]:
    return {
        "starts_s": measured.starts_s,
        "requests": {str(count): [run.as_json() for run in runs] for count, runs in measured.plain.items()},
        "streams": {str(count): [run.as_json() for run in runs] for count, runs in measured.streams.items()},
        "paced": [run.as_json() for run in measured.paced],
        "memory": {moment: asdict(memory) for moment, memory in measured.memory.items()},
        "ledger_check": measured.books or None,
        "cores_used": measured.used,
        "cores_used_by_others": measured.disturbed,
        "problems": measured.problems,
        "details": dict(measured.contestant.details),
    }


def _ratio(label: str, per_s: Mapping[str, Value], against: str, *, target: Target | None) -> Row:
    base = per_s.get(against)
    values = {name: value / base if value is not None and base else None for name, value in per_s.items()}
    return Row(label=label, values=values, form=",.2f", target=target)


def _median(values: Sequence[float]) -> Value:
    return statistics.median(values) if values else None
