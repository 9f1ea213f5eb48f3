from collections import Counter
from collections.abc import Sequence
from random import Random

import pytest

from app import metrics
from app.errors import NoProviderAvailable
from app.routing.breaker import OPEN_S_MIN, REQUESTS_MIN
from app.routing.candidates import Candidate
from app.routing.facts import Facts
from app.routing.router import OUTAGE_S, QUOTA_S, REFRESH_S, REFUSED_S, Flight, Router
from app.routing.wishes import STRATEGIES, Wishes
from app.settings import InferenceSettings
from app.upstream.provider import UpstreamError
from tests.clocks import FakeClock
from tests.routing.providers import ACCOUNT, BROKEN, CALLER, DOWN, FACTS, candidate, limited, names

A, B, C, D, E = ALL = [candidate(name) for name in "abcde"]
MS = 1000
LATE = UpstreamError("timeout", "the provider did not answer in time", fail_over=False)


@pytest.fixture
def router(clock: FakeClock) -> Router:
    return Router(clock, Random(3), InferenceSettings(attempts_max=4))


def begun(router: Router, candidate: Candidate, *, stream: bool = False) -> Flight:
    flight = router.begin(candidate, stream=stream)
    assert flight is not None
    return flight


def fail(router: Router, candidate: Candidate, error: UpstreamError = DOWN, *, times: int = REQUESTS_MIN) -> None:
    for _ in range(times):
        begun(router, candidate).failed(error)


def firsts(router: Router, candidates: Sequence[Candidate], wishes: Wishes, *, draws: int = 600) -> Counter[str]:
    return Counter(router.order(candidates, FACTS, wishes)[0].name for _ in range(draws))


def streamed(router: Router, clock: FakeClock, candidate: Candidate, *, first_ms: int, token_ms: int = 5) -> None:
    flight = begun(router, candidate, stream=True)
    clock.advance(first_ms)
    flight.first_byte()
    clock.advance(100 * token_ms)
    flight.worked(tokens=100)


@pytest.mark.parametrize("strategy", [None, *STRATEGIES])
def test_chain_is_as_long_as_attempts_are_allowed_and_names_nobody_twice(router: Router, strategy: str | None) -> None:
    chain = names(router.order(ALL, FACTS, Wishes(strategy=strategy)))
    assert len(chain) == len(set(chain)) == 4
    assert names(router.order(ALL[:2], FACTS, Wishes(strategy=strategy))) in (["a", "b"], ["b", "a"])
    assert len(router.order(ALL, FACTS, Wishes(strategy=strategy, allow_fallbacks=False))) == 1


def test_all_alike_are_asked_alike(router: Router) -> None:
    for strategy in STRATEGIES:
        found = firsts(router, ALL, Wishes(strategy=strategy), draws=3000)
        assert min(found.values()) > 480


def test_balanced_prefers_the_cheap_by_the_square(router: Router) -> None:
    found = firsts(router, [candidate("low"), candidate("dear", input="2.00", output="8.00")], Wishes(), draws=3000)
    assert found["low"] / 3000 == pytest.approx(4 / 5, abs=0.03)


def test_balanced_prefers_the_quick(router: Router, clock: FakeClock) -> None:
    for _ in range(3):
        streamed(router, clock, A, first_ms=500)
        streamed(router, clock, B, first_ms=500, token_ms=35)
    found = firsts(router, [A, B], Wishes(), draws=3000)
    assert found["a"] / 3000 == pytest.approx(4 / 5, abs=0.03)


def test_fastest_learns_who_is_fast(router: Router, clock: FakeClock) -> None:
    streamed(router, clock, A, first_ms=2000)
    streamed(router, clock, B, first_ms=200)
    assert firsts(router, [A, B], Wishes(strategy="fastest")) == {"b": 600}


def test_fastest_shifts_from_who_is_busy(router: Router, clock: FakeClock) -> None:
    for each in (A, B):
        streamed(router, clock, each, first_ms=200)
    flights = [begun(router, A) for _ in range(5)]
    assert firsts(router, [A, B], Wishes(strategy="fastest")) == {"b": 600}
    for flight in flights:
        flight.dropped()
    busy = begun(router, B)
    assert firsts(router, [A, B], Wishes(strategy="fastest")) == {"a": 600}
    busy.dropped()


def test_fastest_notices_a_stall_before_anything_ends(router: Router, clock: FakeClock) -> None:
    streamed(router, clock, A, first_ms=200)
    streamed(router, clock, B, first_ms=900)
    begun(router, A, stream=True)
    assert firsts(router, [A, B], Wishes(strategy="fastest")) == {"a": 600}
    clock.advance(3000)
    assert firsts(router, [A, B], Wishes(strategy="fastest")) == {"b": 600}


def test_who_was_slow_once_is_tried_again(router: Router, clock: FakeClock) -> None:
    streamed(router, clock, A, first_ms=9000)
    seen = set()
    for _ in range(300):
        streamed(router, clock, B, first_ms=500)
        seen |= set(firsts(router, [A, B], Wishes(strategy="fastest"), draws=1))
    assert seen == {"a", "b"}


def test_order_goes_first_and_the_rest_by_strategy(router: Router) -> None:
    chain = names(router.order(ALL, FACTS, Wishes(order=("d", "nobody", "b"))))
    assert chain[:2] == ["d", "b"]
    assert set(chain[2:]) < set("ace")
    assert names(router.order([D, B], FACTS, Wishes(order=("b", "d"), allow_fallbacks=False))) == ["b", "d"]


def test_order_holds_although_it_failed_a_moment_ago(router: Router) -> None:
    fail(router, D, times=1)
    assert names(router.order(ALL, FACTS, Wishes(order=("d",))))[0] == "d"


def test_whole_output_is_preferred_to_a_clipped_one(router: Router) -> None:
    found = [candidate("less", max_output_tokens=10, input="0.10", output="0.10"), candidate("more")]
    wishes = Wishes(strategy="cheapest")
    assert names(router.order(found, Facts(FACTS.endpoint, output_limit=50), wishes)) == ["more", "less"]
    assert names(router.order(found, Facts(FACTS.endpoint, frozenset(), 1, 1, 1, 10), wishes)) == ["less", "more"]
    assert names(router.order(found[:1], Facts(FACTS.endpoint, output_limit=50), wishes)) == ["less"]


# Outages and breakers.


def test_balanced_asks_who_failed_a_moment_ago_last(router: Router, clock: FakeClock) -> None:
    fail(router, A, times=1)
    for _ in range(20):
        assert names(router.order(ALL[:3], FACTS))[-1] == "a"
    clock.advance(int(OUTAGE_S * MS) - 1)
    assert names(router.order(ALL[:3], FACTS))[-1] == "a"
    clock.advance(int(REFRESH_S * MS) + 1)
    assert firsts(router, ALL[:3], Wishes())["a"] > 50


def test_success_ends_an_outage_that_opened_no_breaker(router: Router) -> None:
    fail(router, A, times=1)
    begun(router, A).worked()
    assert firsts(router, ALL[:3], Wishes())["a"] > 50


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_open_breaker_is_passed_over(router: Router, clock: FakeClock, strategy: str) -> None:
    fail(router, A)
    wishes = Wishes(strategy=strategy, order=("a",))
    assert "a" not in names(router.order(ALL, FACTS, wishes))
    assert router.begin(A) is None
    clock.advance(int(OPEN_S_MIN * MS))
    assert names(router.order(ALL, FACTS, wishes))[0] == "a"


def test_half_open_lets_one_attempt_through_whoever_else_has_it_in_its_chain(router: Router, clock: FakeClock) -> None:
    fail(router, A)
    clock.advance(int(OPEN_S_MIN * MS))
    chains = [router.order([A, B], FACTS, Wishes(order=("a",))) for _ in range(3)]
    assert [names(chain)[0] for chain in chains] == ["a"] * 3
    probe = router.begin(A)
    assert probe is not None
    assert router.begin(A) is None
    assert "a" not in names(router.order([A, B], FACTS))
    probe.worked()
    assert router.begin(A) is not None
    assert router.begin(A) is not None


def test_probe_that_fails_opens_it_for_longer(router: Router, clock: FakeClock) -> None:
    fail(router, A)
    clock.advance(int(OPEN_S_MIN * MS))
    begun(router, A).failed(DOWN)
    clock.advance(int(2 * OPEN_S_MIN * MS) - 1)
    assert router.begin(A) is None
    clock.advance(1)
    assert router.begin(A) is not None


@pytest.mark.parametrize("end", ["dropped", "caller"])
def test_probe_that_says_nothing_is_followed_by_another(router: Router, clock: FakeClock, end: str) -> None:
    fail(router, A)
    clock.advance(int(OPEN_S_MIN * MS))
    probe = begun(router, A)
    if end == "dropped":
        probe.dropped()
    else:
        probe.failed(CALLER)
    assert router.state([A])[0].breaker == "half_open"
    begun(router, A).worked()
    assert router.state([A])[0].breaker == "closed"


@pytest.mark.parametrize("error", [DOWN, BROKEN, UpstreamError("interrupted", "cut off", fail_over=False)])
def test_every_fault_of_the_provider_counts(router: Router, error: UpstreamError) -> None:
    fail(router, A, error)
    assert router.begin(A) is None


@pytest.mark.parametrize("stream", [True, False])
def test_wait_counts_when_it_was_the_operators_and_not_when_a_caller_cut_it_short(
    router: Router, clock: FakeClock, stream: bool
) -> None:
    timeout_ms = int(InferenceSettings().upstream_timeout_s * MS)
    for wait_ms, opens in ((1, False), (timeout_ms // 2, False), (timeout_ms, True)):
        flights = [begun(router, A, stream=stream) for _ in range(REQUESTS_MIN)]
        clock.advance(wait_ms)
        for flight in flights:
            flight.failed(LATE)
        assert (router.begin(A) is None) is opens


def test_silence_in_mid_answer_counts(router: Router) -> None:
    for _ in range(REQUESTS_MIN):
        flight = begun(router, A, stream=True)
        flight.first_byte()
        flight.failed(LATE)
    assert router.begin(A) is None


def test_probe_of_a_caller_in_a_hurry_is_followed_by_another(router: Router, clock: FakeClock) -> None:
    fail(router, A)
    clock.advance(int(OPEN_S_MIN * MS))
    begun(router, A).failed(LATE)
    assert router.state([A])[0].breaker == "half_open"
    begun(router, A).worked()


def test_faults_of_callers_and_attempts_that_were_given_up_count_for_nothing(router: Router) -> None:
    for _ in range(20):
        begun(router, A).failed(CALLER)
        begun(router, A).dropped()
    assert router.state([A])[0].success_rate == 1
    fail(router, A, times=REQUESTS_MIN - 1)
    assert router.begin(A) is not None


def test_breaker_is_of_one_model_at_one_provider(router: Router) -> None:
    fail(router, A)
    assert router.begin(A) is None
    assert router.begin(B) is not None


def test_all_open_says_when_the_first_may_be_asked_again(router: Router, clock: FakeClock) -> None:
    fail(router, A)
    clock.advance(2000)
    fail(router, B)
    with pytest.raises(NoProviderAvailable) as caught:
        router.order([A, B], FACTS)
    assert (caught.value.code, caught.value.retry_after_s) == ("providers_resting", 3)
    clock.advance(3000)
    assert names(router.order([A, B], FACTS)) == ["a"]
    begun(router, A)
    with pytest.raises(NoProviderAvailable) as caught:
        router.order([A, B], FACTS)
    assert caught.value.retry_after_s == 1


# What providers ask for.


@pytest.mark.parametrize("error", [limited(30), UpstreamError("server_error", "503", status=503, retry_after_s=30)])
def test_retry_after_is_honoured_at_once(router: Router, clock: FakeClock, error: UpstreamError) -> None:
    fail(router, A, error, times=1)
    clock.advance(29_999)
    assert router.begin(A) is None
    clock.advance(1)
    assert router.begin(A) is not None


def test_retry_after_is_bounded(router: Router, clock: FakeClock) -> None:
    fail(router, A, limited(10**9), times=1)
    clock.advance(int(InferenceSettings().rest_s_max * MS))
    assert router.begin(A) is not None


def test_busy_provider_that_names_no_moment_has_failed(router: Router) -> None:
    fail(router, A, limited(None), times=REQUESTS_MIN - 1)
    assert router.begin(A) is not None
    fail(router, A, limited(None), times=1)
    assert router.begin(A) is None


@pytest.mark.parametrize(("asked", "waits"), [(20, 20), (None, QUOTA_S)])
def test_quota_that_is_used_up_is_no_failure(router: Router, clock: FakeClock, asked: int | None, waits: float) -> None:
    quota = candidate("q", kind="quota")
    fail(router, quota, limited(asked), times=1)
    (state,) = router.state([quota])
    assert (state.breaker, state.why, state.success_rate) == ("open", "quota_used_up", 1)
    clock.advance(int(waits * MS) - 1)
    assert router.begin(quota) is None
    clock.advance(1)
    begun(router, quota).worked()
    assert firsts(router, [quota, B], Wishes())["q"] > 200


def test_account_that_is_refused_closes_all_models_of_the_provider_at_once(router: Router, clock: FakeClock) -> None:
    other = Candidate(A.provider, A.model.model_copy(update={"id": "other"}), A.price)
    old, old_too = begun(router, other), begun(router, A)
    fail(router, A, ACCOUNT, times=1)
    old_too.failed(ACCOUNT)
    assert router.begin(A) is None
    assert router.begin(other) is None
    assert names(router.order([A, B], FACTS)) == ["b"]
    assert router.state([other])[0].why == "refused"
    assert router.state([A])[0].success_rate == 1
    old.worked()
    clock.advance(int(REFUSED_S * MS) - 1)
    assert router.begin(other) is None
    clock.advance(1)
    probe = begun(router, other)
    assert router.begin(A) is None
    probe.failed(ACCOUNT)
    clock.advance(int(REFUSED_S * MS))
    begun(router, A).worked()
    assert router.begin(other) is not None
    assert router.begin(A) is not None


def test_refusal_alerts_once_for_each_time_that_it_is_found(router: Router, clock: FakeClock) -> None:
    counter = metrics.alerts.labels("provider_refused_us")
    before = counter._value.get()
    flights = [begun(router, A) for _ in range(5)]
    for flight in flights:
        flight.failed(ACCOUNT)
    assert counter._value.get() - before == 1
    clock.advance(int(REFUSED_S * MS))
    begun(router, A).failed(ACCOUNT)
    assert counter._value.get() - before == 2


@pytest.mark.parametrize(
    ("error", "times", "why"),
    [(DOWN, REQUESTS_MIN, "failures"), (limited(9), 1, "asked_to_wait"), (ACCOUNT, 1, "refused")],
)
def test_openings_are_counted_by_their_cause(router: Router, error: UpstreamError, times: int, why: str) -> None:
    counter = metrics.breakers_opened.labels("a", why)
    before = counter._value.get()
    fail(router, A, error, times=times)
    assert counter._value.get() - before == 1


def test_account_probe_that_reaches_nobody_says_nothing_about_the_account(router: Router, clock: FakeClock) -> None:
    fail(router, A, ACCOUNT, times=1)
    clock.advance(int(REFUSED_S * MS))
    begun(router, A).failed(DOWN)
    assert router.state([A])[0].why == "refused"
    begun(router, A).failed(BROKEN)
    assert router.state([A])[0].why == ""


def test_account_is_good_from_the_first_byte_on(router: Router, clock: FakeClock) -> None:
    fail(router, A, ACCOUNT, times=1)
    clock.advance(int(REFUSED_S * MS))
    flight = begun(router, A, stream=True)
    assert router.begin(A) is None
    flight.first_byte()
    assert router.begin(A) is not None


# Flights and what is shown.


def test_flight_ends_once(router: Router) -> None:
    flight = begun(router, A)
    flight.worked()
    flight.failed(ACCOUNT)
    flight.failed(DOWN)
    flight.dropped()
    (state,) = router.state([A])
    assert (state.in_flight, state.success_rate, state.breaker) == (0, 1, "closed")


def test_time_spent_on_the_client_is_not_the_providers(router: Router, clock: FakeClock) -> None:
    flight = begun(router, A, stream=True)
    clock.advance(200)
    flight.first_byte()
    clock.advance(61_000)
    flight.worked(tokens=100, waited_s=60.0)
    assert router.state([A])[0].tokens_per_second == pytest.approx(100)


def test_stream_that_gave_up_waiting_was_that_slow(router: Router, clock: FakeClock) -> None:
    flight = begun(router, A, stream=True)
    clock.advance(30_000)
    flight.failed(LATE)
    assert router.state([A])[0].first_byte_s == 30


def test_state_shows_what_was_measured(router: Router, clock: FakeClock) -> None:
    streamed(router, clock, A, first_ms=250, token_ms=20)
    fail(router, B)
    known, open_, unknown = router.state([A, B, C])
    assert (known.provider, known.model, known.first_byte_s, known.breaker) == ("a", "m", 0.25, "closed")
    assert known.tokens_per_second == pytest.approx(50, rel=0.01)
    assert (open_.breaker, open_.why, open_.retry_after_s) == ("open", "failures", 5)
    assert (unknown.first_byte_s, unknown.tokens_per_second, unknown.in_flight) == (None, None, 0)


def test_nothing_is_kept_of_who_is_at_rest(router: Router, clock: FakeClock) -> None:
    streamed(router, clock, A, first_ms=5000, token_ms=50)
    fail(router, B, times=1)
    for _ in range(600):
        clock.advance(1000)
        router.order(ALL, FACTS)
    assert (router._lively, router._troubled, router._unwell, router._refused) == ({}, {}, {}, {})
