"""What routing adds to a request: `python -m bench.routing`.

`eligible` and `Router.order` of one request, called directly in one process: each number is of single calls, timed
one by one with different sizes of prompt and answer, so that nothing but what the product itself keeps is kept. The
providers all have traffic behind them; `incident` has a third of them failing, their breakers open.

    order     the usual request: no wishes
    new       wishes that were not seen before, so that nothing is kept for them
    incident  breakers open and outages marked

Exit code 0 when the run is valid, whether or not the target was met.
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import orjson

from app import log
from app.clock import SystemClock
from app.endpoints import CHAT
from app.money import PicoUsd
from app.routing.candidates import Candidate, Catalog, eligible
from app.routing.facts import Facts
from app.routing.router import Router
from app.routing.wishes import STRATEGIES, Wishes
from app.settings import InferenceSettings
from app.upstream.provider import UpstreamError
from bench.routing_providers import MODEL, provided

SEED = 20
CALLS = 4000
CANDIDATES = (1, 10, 100)
TARGET_US = 50.0
JUDGED = 100
RESULTS = Path(__file__).resolve().parent / "results-routing.json"
NS_PER_US = 1000


@dataclass(frozen=True)
class Row:
    """One line of the table, in microseconds."""

    case: str
    strategy: str
    candidates: int
    median_us: float
    p99_us: float


def catalog(count: int, rng: Random) -> Catalog:
    """Providers of one model whose prices and paces differ."""
    return Catalog(
        provided(f"p{number:03d}", input=rng.randrange(100_000, 900_000), output=rng.randrange(400_000, 3_000_000))
        for number in range(count)
    )


def warmed(candidates: Sequence[Candidate], rng: Random, *, failing: int = 0) -> Router:
    """A router that has seen traffic; the first ``failing`` candidates are down."""
    router = Router(SystemClock(), rng, InferenceSettings())
    for number, candidate in enumerate(candidates):
        for _ in range(10):
            flight = router.begin(candidate)
            if flight is not None and number < failing:
                flight.failed(UpstreamError("connect", "down"))
            elif flight is not None:
                flight.first_byte()
                flight.worked(tokens=100)
        router.begin(candidate)
    return router


def requests(rng: Random, *, strategy: str, new: bool) -> list[tuple[Facts, Wishes]]:
    """What each call is asked."""
    known = Wishes(strategy=strategy, allow_external=True)
    return [
        (
            Facts(CHAT, frozenset({"tools"}), 10, rng.randrange(10, 8000), rng.randrange(1, 1000)),
            Wishes(strategy=strategy, allow_external=True, max_input=PicoUsd(10**9 + number), max_output=PicoUsd(10**9))
            if new
            else known,
        )
        for number in range(CALLS)
    ]


def timed_ns(call: Callable[[Facts, Wishes], object], asked: Sequence[tuple[Facts, Wishes]]) -> list[int]:
    """Each call by itself; the collector's pauses are not routing's."""
    clock, taken = time.perf_counter_ns, []
    gc.collect()
    gc.disable()
    try:
        for facts, wishes in asked:
            before = clock()
            call(facts, wishes)
            taken.append(clock() - before)
    finally:
        gc.enable()
    return taken


def measure(case: str, strategy: str, count: int) -> Row:
    """One line."""
    rng = Random(SEED)
    listing = catalog(count, rng).find(MODEL)
    router = warmed(listing, rng, failing=count // 3 if case == "incident" else 0)
    taken = timed_ns(
        lambda facts, wishes: router.order(eligible(listing, facts, wishes), facts, wishes),
        requests(rng, strategy=strategy, new=case == "new"),
    )
    p99 = statistics.quantiles(taken, n=100)[98]
    return Row(case, strategy, count, statistics.median(taken) / NS_PER_US, p99 / NS_PER_US)


def main(words: Sequence[str]) -> int:
    """Print the table and keep the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.routing", description="What routing adds to a request.")
    parser.add_argument("--json", type=Path, default=RESULTS, metavar="PATH", help="results file")
    arguments = parser.parse_args(words)
    # Breakers that open are reported, which is not what is measured.
    log.configure(human=True, level="critical")
    rows = [
        measure(case, strategy, count)
        for case in ("order", "new", "incident")
        for strategy in STRATEGIES
        for count in CANDIDATES
    ]
    print(f"{'case':10}{'strategy':10}{'candidates':>11}{'median':>12}{'p99':>12}")
    for row in rows:
        line = f"{row.case:10}{row.strategy:10}{row.candidates:>11}{row.median_us:>9.1f} us{row.p99_us:>9.1f} us"
        judged = row.candidates == JUDGED and row.case == "order"
        verdict = "met" if row.median_us < TARGET_US else "NOT MET"
        print(line + (f"   < {TARGET_US:g} us {verdict}" if judged else ""))
    body = {"target_us": TARGET_US, "rows": [asdict(row) for row in rows]}
    arguments.json.write_bytes(orjson.dumps(body, option=orjson.OPT_INDENT_2) + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
