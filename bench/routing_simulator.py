"""The strategies of routing against random and round-robin: `python -m bench.routing_simulator [--plots FOLDER]`.

The real `Router` with a virtual clock, made-up traffic and made-up providers with incidents
(`bench.routing_traffic`, which says what is made up and how). All policies see the same requests, the same dice at the
same provider for the same request, and fail over alike: before the first byte, and never after a time-out. Random and
round-robin know nothing of outages. Half an hour takes seconds, and the same seeds give the same numbers.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from random import Random
from typing import Protocol

from app import log
from app.clock import MS_PER_SECOND, EpochMs
from app.endpoints import CHAT
from app.money import parse_price_per_million
from app.routing.candidates import Candidate, Catalog, eligible
from app.routing.facts import Facts
from app.routing.router import Flight, Router
from app.routing.wishes import STRATEGIES, Wishes
from app.settings import InferenceSettings
from app.upstream.provider import UpstreamError
from bench import routing_plots
from bench.routing_providers import MODEL, provided
from bench.routing_traffic import LENGTH_S, OUTPUT_EXPECTED, PROVIDERS, Arrival, Behaviour, arrivals

SEEDS = (1, 2, 3)
ATTEMPTS_MAX = 4
TIMEOUT_S = 10.0
RETRY_AFTER_S = 20
# How far single requests scatter around a provider's pace.
SCATTER = 0.25
POLICIES = (*STRATEGIES, "random", "round-robin")
PICO_PER_USD = 10**12
PER_REQUESTS = 1000


class VirtualClock:
    """An `app.clock.Clock` that the simulation sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now_ms(self) -> EpochMs:
        return EpochMs(int(self.now_s * MS_PER_SECOND))

    def monotonic_s(self) -> float:
        return self.now_s


class Policy(Protocol):
    """Who is asked, and in which order."""

    def order(self, facts: Facts) -> Sequence[Candidate]: ...

    def begin(self, candidate: Candidate) -> Flight | None: ...


class Routed:
    """One of the strategies, by the router itself."""

    blind = False

    def __init__(self, strategy: str, clock: VirtualClock, candidates: Sequence[Candidate], seed: int) -> None:
        settings = InferenceSettings(attempts_max=ATTEMPTS_MAX, upstream_timeout_s=TIMEOUT_S)
        self._router = Router(clock, Random(seed), settings)
        self._candidates = candidates
        self._wishes = Wishes(strategy=strategy, allow_external=True)

    def order(self, facts: Facts) -> Sequence[Candidate]:
        return self._router.order(eligible(self._candidates, facts, self._wishes), facts, self._wishes)

    def begin(self, candidate: Candidate) -> Flight | None:
        return self._router.begin(candidate, stream=True)


class Blind:
    """Random or round-robin."""

    blind = True

    def __init__(self, name: str, candidates: Sequence[Candidate], seed: int) -> None:
        self._candidates, self._rng = list(candidates), Random(seed)
        self._next = count() if name == "round-robin" else None

    def order(self, facts: Facts) -> Sequence[Candidate]:
        if self._next is None:
            return self._rng.sample(self._candidates, ATTEMPTS_MAX)
        first = next(self._next)
        return [self._candidates[(first + place) % len(self._candidates)] for place in range(ATTEMPTS_MAX)]

    def begin(self, candidate: Candidate) -> Flight | None:
        return None


@dataclass
class Done:
    """What became of one request."""

    at_s: float
    served_by: str | None
    pico_usd: int = 0
    first_byte_s: float = 0.0
    total_s: float = 0.0
    attempts: int = 0


@dataclass
class Site:
    """A provider at work."""

    behaviour: Behaviour
    in_flight: int = 0
    minute: int = -1
    asked: int = 0


@dataclass
class World:
    """One policy's run."""

    policy: Routed | Blind
    clock: VirtualClock
    sites: dict[str, Site]
    seed: int
    events: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    done: list[Done] = field(default_factory=list)
    _number: "count[int]" = field(default_factory=count)

    def at(self, at_s: float, event: Callable[[], None]) -> None:
        heappush(self.events, (at_s, next(self._number), event))

    def run(self, requests: Sequence[Arrival]) -> list[Done]:
        for number, request in enumerate(requests):
            self.at(request.at_s, lambda number=number, request=request: self.arrive(number, request))  # type: ignore[misc]
        while self.events:
            self.clock.now_s, _, event = heappop(self.events)
            event()
        return self.done

    def arrive(self, number: int, request: Arrival) -> None:
        facts = Facts(CHAT, frozenset(), request.prompt // 4, request.prompt, OUTPUT_EXPECTED, stream=True)
        done = Done(request.at_s, None)
        self.done.append(done)
        try:
            chain = list(self.policy.order(facts))
        except Exception as error:
            if getattr(error, "code", "") != "providers_resting":
                raise
            return
        self.ask(number, request, chain, done)

    def ask(self, number: int, request: Arrival, chain: list[Candidate], done: Done) -> None:
        """Ask the next of the chain; nobody left: the request has failed."""
        while chain:
            candidate = chain.pop(0)
            flight = self.policy.begin(candidate)
            if flight is not None or self.policy.blind:
                Attempt(self, number, request, chain, done, candidate, flight).begin()
                return


@dataclass
class Attempt:
    """One request at one provider."""

    world: World
    number: int
    request: Arrival
    chain: list[Candidate]
    done: Done
    candidate: Candidate
    flight: Flight | None

    def begin(self) -> None:
        world, request = self.world, self.request
        site, now_s = world.sites[self.candidate.name], world.clock.now_s
        dice = Random(f"{world.seed}/{self.number}/{self.candidate.name}")
        behaviour, incident = site.behaviour, site.behaviour.incident(now_s)
        self.done.attempts += 1
        if site.minute != int(now_s // 60):
            site.minute, site.asked = int(now_s // 60), 0
        site.asked += 1
        site.in_flight += 1
        kind = incident.kind if incident is not None else ""
        load = max(1.0, site.in_flight / behaviour.carries) * (incident.factor if incident is not None else 1.0)
        first_s = behaviour.first_byte_s * load * dice.lognormvariate(0, SCATTER) + request.prompt * 2e-5
        rest_s = request.output / behaviour.tokens_per_s * load * dice.lognormvariate(0, SCATTER)
        left_s = 60 - now_s % 60
        if behaviour.quota_per_minute is not None and site.asked > behaviour.quota_per_minute:
            self.fails(0.05, UpstreamError("rate_limited", "quota", status=429, retry_after_s=int(left_s) + 1))
        elif kind == "busy":
            self.fails(0.1, UpstreamError("rate_limited", "busy", status=429, retry_after_s=RETRY_AFTER_S))
        elif kind == "down" or dice.random() < behaviour.fails:
            self.fails(0.2, UpstreamError("server_error", "500", status=500))
        elif kind == "hangs" or first_s > TIMEOUT_S:
            self.fails(TIMEOUT_S, UpstreamError("timeout", "no first byte", fail_over=False))
        else:
            cut = kind == "cuts"
            world.at(now_s + first_s, self.first_byte)
            world.at(now_s + first_s + (rest_s / 2 if cut else rest_s), self.cut if cut else self.worked)

    def fails(self, after_s: float, error: UpstreamError) -> None:
        self.world.at(self.world.clock.now_s + after_s, lambda: self.failed(error))

    def failed(self, error: UpstreamError) -> None:
        self.world.sites[self.candidate.name].in_flight -= 1
        if self.flight is not None:
            self.flight.failed(error)
        if error.fail_over:
            self.world.ask(self.number, self.request, self.chain, self.done)

    def first_byte(self) -> None:
        self.done.first_byte_s = self.world.clock.now_s - self.request.at_s
        if self.flight is not None:
            self.flight.first_byte()

    def cut(self) -> None:
        self.failed(UpstreamError("interrupted", "cut off", fail_over=False))

    def worked(self) -> None:
        self.world.sites[self.candidate.name].in_flight -= 1
        if self.flight is not None:
            self.flight.worked(tokens=self.request.output)
        done, candidate = self.done, self.candidate
        done.served_by = candidate.name
        done.total_s = self.world.clock.now_s - self.request.at_s
        done.pico_usd = self.request.prompt * candidate.input + self.request.output * candidate.output


def simulate(name: str, seed: int, *, length_s: float = LENGTH_S) -> list[Done]:
    """One policy over one run of traffic."""
    clock = VirtualClock()
    candidates = Catalog(
        provided(
            each.name,
            input=parse_price_per_million(each.input),
            output=parse_price_per_million(each.output),
            kind=each.kind,
        )
        for each in PROVIDERS
    ).find(MODEL)
    policy = Routed(name, clock, candidates, seed) if name in STRATEGIES else Blind(name, candidates, seed)
    world = World(policy, clock, {each.name: Site(each) for each in PROVIDERS}, seed)
    return world.run(arrivals(seed, length_s=length_s))


@dataclass(frozen=True)
class Summary:
    """One line of the table."""

    policy: str
    requests: int
    success: float
    usd_per_thousand: float
    first_byte_s: tuple[float, float, float]
    total_s: tuple[float, float, float]
    attempts: float


def summary(policy: str, done: Sequence[Done]) -> Summary:
    """Of all requests; times and prices are of those that were served."""
    served = [each for each in done if each.served_by is not None]
    return Summary(
        policy=policy,
        requests=len(done),
        success=len(served) / len(done),
        usd_per_thousand=sum(each.pico_usd for each in served) / len(served) / PICO_PER_USD * PER_REQUESTS,
        first_byte_s=_percentiles([each.first_byte_s for each in served]),
        total_s=_percentiles([each.total_s for each in served]),
        attempts=sum(each.attempts for each in done) / len(done),
    )


def _percentiles(values: Sequence[float]) -> tuple[float, float, float]:
    cuts = statistics.quantiles(values, n=100)
    return cuts[49], cuts[94], cuts[98]


def table(summaries: Sequence[Summary]) -> str:
    """For people, and for docs/routing.md."""
    head = f"{'policy':12}{'success':>9}{'USD/1000':>10}{'first byte p50 / p95 / p99':>29}{'total p50 / p95 / p99':>26}"
    lines = [head + f"{'attempts':>10}"]
    for each in summaries:
        first, total = (
            " / ".join(f"{value:5.2f}" for value in values) + " s" for values in (each.first_byte_s, each.total_s)
        )
        line = f"{each.policy:12}{each.success:>8.2%} {each.usd_per_thousand:>9.3f}{first:>29}{total:>26}"
        lines.append(line + f"{each.attempts:>10.2f}")
    return "\n".join(lines)


def main(words: Sequence[str]) -> int:
    """Print the table; draw the plots where a folder is given."""
    parser = argparse.ArgumentParser(prog="python -m bench.routing_simulator", description="Strategies, simulated.")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the plots of docs/routing.md into it")
    arguments = parser.parse_args(words)
    log.configure(human=True, level="critical")
    runs = {name: [done for seed in SEEDS for done in simulate(name, seed)] for name in POLICIES}
    summaries = [summary(name, done) for name, done in runs.items()]
    print(f"{summaries[0].requests} made-up requests, seeds {', '.join(map(str, SEEDS))}\n\n{table(summaries)}")
    if arguments.plots is not None:
        arguments.plots.mkdir(parents=True, exist_ok=True)
        for name, text in drawn(runs, summaries).items():
            (arguments.plots / f"routing-{name}.svg").write_text(text)
    return 0


def drawn(runs: dict[str, list[Done]], summaries: Sequence[Summary]) -> dict[str, str]:
    """The plots by name."""
    points = [(each.policy, each.usd_per_thousand, each.total_s[1]) for each in summaries]
    minutes = range(int(LENGTH_S // 60))
    slow: dict[str, list[float]] = {}
    failed: dict[str, list[float]] = {}
    for name, done in runs.items():
        by_minute = [[each for each in done if each.at_s // 60 == minute] for minute in minutes]
        served = [[each.first_byte_s for each in batch if each.served_by is not None] for batch in by_minute]
        slow[name] = [statistics.quantiles(batch, n=20)[18] for batch in served]
        failed[name] = [100 * sum(each.served_by is None for each in batch) / max(1, len(batch)) for batch in by_minute]
    marks = [
        (each.begin_s / 60, each.end_s / 60, f"{behaviour.name} {each.kind}")
        for behaviour in PROVIDERS
        for each in behaviour.incidents
    ]
    return {
        "cost-latency": routing_plots.scatter(
            points,
            x="USD per 1,000 requests",
            y="seconds to the end of an answer, p95",
            title="What it costs, and takes",
        ),
        "first-byte": routing_plots.lines(
            slow, x="minute", y="seconds to the first byte, p95", title="First byte through incidents", marks=marks
        ),
        "failures": routing_plots.lines(
            failed, x="minute", y="requests that failed, %", title="Failures through incidents", marks=marks
        ),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
