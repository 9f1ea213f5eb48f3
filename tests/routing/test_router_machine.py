"""The router under providers that fail, stall, refuse and recover at random, in virtual time."""

from random import Random
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.errors import NoProviderAvailable
from app.routing.breaker import OPEN_S_MAX
from app.routing.candidates import Candidate, eligible
from app.routing.router import OUTAGE_S, Flight, Router
from app.routing.wishes import STRATEGIES, Wishes
from app.settings import InferenceSettings
from app.upstream.provider import UpstreamError
from tests.clocks import FakeClock
from tests.routing.providers import ACCOUNT, BROKEN, CALLER, DOWN, FACTS, candidate, limited, names

MS = 1000
ATTEMPTS_MAX = 3
NAMES = ("a", "b", "c", "q")
FAILURES = [DOWN, DOWN, BROKEN, BROKEN, CALLER, ACCOUNT, limited(None), limited(7), limited(10**6)]
ERRORS = st.sampled_from(FAILURES)
WISHES = st.builds(
    Wishes,
    strategy=st.sampled_from(STRATEGIES),
    order=st.lists(st.sampled_from(NAMES), unique=True, max_size=2).map(tuple),
    ignore=st.lists(st.sampled_from(NAMES), unique=True, max_size=2).map(tuple),
    allow_fallbacks=st.sampled_from([None, None, False]),
)


class Routing(RuleBasedStateMachine):
    """Requests begin, attempts end in every way and any order, and time passes."""

    @initialize(seed=st.integers(0, 2**32))
    def start(self, seed: int) -> None:
        self.clock = FakeClock()
        self.router = Router(self.clock, Random(seed), InferenceSettings(attempts_max=ATTEMPTS_MAX))
        self.candidates = [candidate(name) for name in NAMES[:-1]] + [candidate("q", kind="quota")]
        self.flights: list[Flight] = []

    @rule(wishes=WISHES, stream=st.booleans())
    def request(self, wishes: Wishes, stream: bool) -> None:
        """Order and begin at the first of the chain that may be asked."""
        try:
            left = eligible(self.candidates, FACTS, wishes)
        except NoProviderAvailable:
            assert wishes.order
            return
        # One whose probe streams may count as well by now, or not yet.
        streaming = {flight.candidate.name for flight in self.flights if self.probes(flight) and flight._first_byte_s}
        resting = [name for name in names(left) if name not in streaming and self.rests(name)]
        streaming &= set(names(left))
        try:
            chain = self.router.order(left, FACTS, wishes)
        except NoProviderAvailable as error:
            resting += streaming
            assert (len(resting), error.code) == (len(left), "providers_resting")  # noqa: PT017 - as often as not
            return
        found = names(chain)
        assert 0 < len(found) == len(set(found)) <= ATTEMPTS_MAX
        assert set(found) <= set(names(left)) - set(resting)
        if not (wishes.order or wishes.allow_fallbacks is False):
            most = min(ATTEMPTS_MAX, len(left) - len(resting))
            assert most - len(streaming) <= len(found) <= most
        if not streaming:
            named = [name for name in wishes.order if name in set(names(left)) - set(resting)]
            assert found[: len(named)] == named[:ATTEMPTS_MAX]
        for each in chain:
            flight = self.router.begin(each, stream=stream)
            if flight is not None:
                self.flights.append(flight)
                return
        pytest.fail("nobody of a chain that was ordered just now may be asked")

    def rests(self, provider: str) -> bool:
        """Open, or half open with its probe on its way."""
        (state,) = self.router.state([each for each in self.candidates if each.name == provider])
        probing = any(flight.candidate.name == provider and self.probes(flight) for flight in self.flights)
        return state.breaker == "open" or (state.breaker == "half_open" and probing)

    def probes(self, flight: Flight) -> bool:
        breaker, account = flight.track.breaker, self.router._refused.get(flight.candidate.name)
        return breaker._is_probe(flight.probe) or (account is not None and account is flight.account)

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), error=st.none() | ERRORS, tokens=st.integers(0, 1000))
    def end(self, data: st.DataObject, error: UpstreamError | None, tokens: int) -> None:
        self.ended(data.draw(st.integers(0, len(self.flights) - 1)), error, tokens=tokens)

    def ended(self, index: int, error: UpstreamError | None, *, tokens: int) -> None:
        flight = self.flights.pop(index)
        if error is None:
            flight.worked(tokens=tokens)
        else:
            flight.failed(error)
        flight.dropped()

    @precondition(lambda self: self.flights)
    @rule(data=st.data(), drop=st.booleans())
    def touch(self, data: st.DataObject, drop: bool) -> None:
        self.touched(data.draw(st.integers(0, len(self.flights) - 1)), drop=drop)

    def touched(self, index: int, *, drop: bool) -> None:
        flight = self.flights[index]
        if drop:
            flight.dropped()
            self.flights.remove(flight)
        else:
            flight.first_byte()

    @rule(name=st.sampled_from(NAMES), times=st.integers(1, 8))
    def outage(self, name: str, times: int) -> None:
        """Somebody is down: as many attempts fail as get through."""
        (found,) = [each for each in self.candidates if each.name == name]
        for _ in range(times):
            flight = self.router.begin(found)
            if flight is not None:
                flight.failed(DOWN)

    @rule(ms=st.sampled_from([1, 100, 999, 5000, 20_000, 61_000]))
    def passes(self, ms: int) -> None:
        self.clock.advance(ms)

    @invariant()
    def half_open_has_one_probe(self) -> None:
        for each in self.candidates:
            on_their_way = [flight for flight in self.flights if flight.candidate is each]
            assert sum(flight.track.breaker._is_probe(flight.probe) for flight in on_their_way) <= 1

    @invariant()
    def flights_are_counted(self) -> None:
        for each, state in zip(self.candidates, self.router.state(self.candidates), strict=True):
            assert state.in_flight == sum(flight.candidate is each for flight in self.flights)
            assert 0 < state.success_rate <= 1

    def teardown(self) -> None:
        """Once everybody is well, every breaker closes and nobody is forgotten."""
        if not hasattr(self, "flights"):
            return
        for flight in self.flights:
            flight.dropped()
        for strategy in STRATEGIES:
            served = recovered(self.router, self.clock, self.candidates, Wishes(strategy=strategy))
            assert served == set(NAMES), strategy
        assert {state.breaker for state in self.router.state(self.candidates)} == {"closed"}
        assert not self.router._unwell
        assert not self.router._refused


def recovered(router: Router, clock: FakeClock, candidates: list[Candidate], wishes: Wishes) -> set[str]:
    """Who serves within the longest time that anything is remembered, when all work alike, two requests a second."""
    served: set[str] = set()
    for _ in range(2 * int(InferenceSettings().rest_s_max + OPEN_S_MAX + OUTAGE_S)):
        if served == set(names(candidates)) and not router._unwell and not router._refused:
            break
        clock.advance(MS // 2)
        try:
            first = router.order(candidates, FACTS, wishes)[0]
        except NoProviderAvailable:
            continue
        flight = router.begin(first, stream=True)
        assert flight is not None
        clock.advance(100)
        flight.first_byte()
        clock.advance(200)
        flight.worked(tokens=100)
        served.add(first.name)
    return served


Routing.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
TestRouting = Routing.TestCase


@pytest.mark.parametrize("seed", range(12))
def test_the_same_over_long_runs(seed: int) -> None:
    """Hypothesis finds small troubles; this one lets them pile up."""
    run, rng = Routing(), Random(seed)
    run.start(seed)
    for _ in range(400):
        match rng.choice(("request", "request", "request", "end", "end", "touch", "outage", "pass", "pass")):
            case "request":
                order = tuple(rng.sample(NAMES, rng.choice((0, 0, 1))))
                run.request(Wishes(rng.choice(STRATEGIES), order=order), rng.random() < 0.5)
            case "end" if run.flights:
                error = rng.choice(FAILURES) if rng.random() < 0.3 else None
                run.ended(rng.randrange(len(run.flights)), error, tokens=rng.randrange(1000))
            case "touch" if run.flights:
                run.touched(rng.randrange(len(run.flights)), drop=rng.random() < 0.5)
            case "outage" if rng.random() < 0.3:
                run.outage(rng.choice(NAMES), rng.randint(1, 8))
            case "pass":
                run.passes(rng.choice((1, 100, 999, 5000, 20_000)))
        run.half_open_has_one_probe()
        run.flights_are_counted()
    run.teardown()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_provider_that_fails_half_the_time_is_neither_dropped_nor_favoured(clock: FakeClock, strategy: str) -> None:
    rng, found = Random(11), [candidate("well"), candidate("flaky")]
    router = Router(clock, rng, InferenceSettings())
    asked: dict[str, Any] = {"well": 0, "flaky": 0}
    for _ in range(4000):
        clock.advance(50)
        first = router.order(found, FACTS, Wishes(strategy=strategy))[0]
        flight = router.begin(first)
        assert flight is not None
        asked[first.name] += 1
        if first.name == "flaky" and rng.random() < 0.5:
            flight.failed(DOWN)
        else:
            flight.worked(tokens=100)
    assert 0 < asked["flaky"] < asked["well"]
