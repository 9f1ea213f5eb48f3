import pytest

from app.routing.breaker import (
    OPEN_S_MAX,
    OPEN_S_MIN,
    PAYERS_MAX,
    PROBE_S_MAX,
    PROBE_STREAMS_S,
    REQUESTS_MIN,
    WINDOW_S,
    Breaker,
)


def fed(outcomes: str, *, at: float = 0.0) -> Breaker:
    """A breaker that saw successes (``+``) and failures (``-``)."""
    breaker = Breaker()
    for outcome in outcomes:
        if outcome == "+":
            breaker.worked(at, probe=0)
        else:
            breaker.failed(at, probe=0)
    return breaker


@pytest.mark.parametrize(
    ("outcomes", "opens"),
    [
        ("-" * (REQUESTS_MIN - 1), False),
        ("-" * REQUESTS_MIN, True),
        ("++--", False),
        ("++---", True),
        ("+++---", False),
        ("+++----", True),
        ("+" * 20 + "-" * 20, False),
        ("+" * 20 + "-" * 21, True),
    ],
)
def test_breaker_opens_when_over_half_of_enough_requests_failed(outcomes: str, opens: bool) -> None:
    breaker = fed(outcomes)
    assert breaker.allows(0) is not opens
    assert breaker.state(0) == ("open" if opens else "closed")


def test_failures_older_than_the_window_count_no_more() -> None:
    breaker = fed("-" * (REQUESTS_MIN - 1))
    assert not breaker.failed(WINDOW_S, probe=0)
    assert (breaker.successes, breaker.failures) == (0, 1)


def test_failures_within_the_window_add_up() -> None:
    breaker = fed("-" * (REQUESTS_MIN - 1))
    assert breaker.failed(WINDOW_S - 6, probe=0)


def test_counts_age_without_traffic() -> None:
    breaker = fed("+-")
    breaker.age(WINDOW_S - 6)
    assert (breaker.successes, breaker.failures) == (1, 1)
    breaker.age(WINDOW_S)
    assert (breaker.successes, breaker.failures) == (0, 0)


def test_half_open_lets_exactly_one_through() -> None:
    breaker = fed("-----")
    assert not breaker.allows(OPEN_S_MIN - 0.001)
    assert breaker.allows(OPEN_S_MIN)
    assert breaker.begin(OPEN_S_MIN)
    assert breaker.state(OPEN_S_MIN) == "half_open"
    assert not breaker.allows(OPEN_S_MIN + 1)


def test_probe_that_works_closes_it_and_counting_begins_anew() -> None:
    breaker = fed("-----")
    breaker.worked(OPEN_S_MIN, probe=breaker.begin(OPEN_S_MIN))
    assert breaker.state(OPEN_S_MIN) == "closed"
    # The probe is the first of the five.
    assert [breaker.failed(OPEN_S_MIN, probe=0) for _ in range(4)] == [False] * 3 + [True]


def test_each_probe_that_fails_doubles_the_wait_up_to_its_bound() -> None:
    breaker, now, waits = fed("-----"), 0.0, []
    for _ in range(6):
        assert breaker.until_s is not None
        waits.append(breaker.until_s - now)
        now = breaker.until_s
        assert breaker.failed(now, probe=breaker.begin(now))
    assert waits == [5, 10, 20, 40, 60, 60]
    assert max(waits) == OPEN_S_MAX


def test_success_after_failed_probes_starts_over() -> None:
    breaker = fed("-----")
    breaker.failed(5, probe=breaker.begin(5))
    breaker.worked(15, probe=breaker.begin(15))
    for _ in range(5):
        breaker.failed(20, probe=0)
    assert breaker.until_s == 20 + OPEN_S_MIN


def test_attempts_from_before_it_opened_neither_close_nor_prolong_it() -> None:
    breaker = fed("-----")
    breaker.worked(1, probe=0)
    assert not breaker.failed(1, probe=0)
    assert breaker.until_s == OPEN_S_MIN
    probe = breaker.begin(6)
    breaker.worked(6, probe=0)
    assert not breaker.failed(6, probe=0)
    assert not breaker.allows(6)
    breaker.worked(6, probe=probe)
    assert breaker.allows(6)


def test_probe_that_says_nothing_leaves_its_place_to_the_next() -> None:
    breaker = fed("-----")
    breaker.release(probe=breaker.begin(5))
    assert breaker.state(5) == "half_open"
    assert breaker.allows(5)


def test_probe_of_an_earlier_opening_is_not_the_probe_of_now() -> None:
    breaker = fed("-----")
    old = breaker.begin(5)
    new = breaker.begin(5 + PROBE_S_MAX)
    now = 5 + PROBE_S_MAX
    breaker.release(probe=old)
    breaker.worked(now, probe=old)
    breaker.streams(now, probe=old)
    assert not breaker.failed(now, probe=old)
    assert not breaker.allows(now + PROBE_STREAMS_S)
    assert breaker.failed(now, probe=new)


def test_probe_that_streams_for_a_while_has_shown_enough() -> None:
    breaker = fed("-----")
    breaker.streams(6, probe=breaker.begin(5))
    assert not breaker.allows(6 + PROBE_STREAMS_S - 0.001)
    assert breaker.allows(6 + PROBE_STREAMS_S)
    assert breaker.state(100) == "closed"


def test_probe_that_was_lost_does_not_keep_a_provider_out_for_ever() -> None:
    breaker = fed("-----")
    breaker.begin(5)
    assert not breaker.allows(5 + PROBE_S_MAX - 0.001)
    assert breaker.allows(5 + PROBE_S_MAX)


def test_the_longer_of_two_waits_counts() -> None:
    breaker = Breaker()
    breaker.open(100, "quota_used_up")
    breaker.open(50, "failures")
    assert (breaker.until_s, breaker.allows(99), breaker.allows(100)) == (100, False, True)


def test_failures_of_one_payer_alone_open_nothing_while_others_are_served() -> None:
    breaker = Breaker()
    breaker.worked(0.0, probe=0, payer="another")
    assert not any(breaker.failed(1.0, probe=0, payer="one") for _ in range(3 * REQUESTS_MIN))
    assert breaker.failed(2.0, probe=0, payer="another")
    assert not breaker.allows(2.0)


def test_failures_of_one_payer_open_it_once_nobody_else_came_for_a_while() -> None:
    breaker = Breaker()
    breaker.worked(0.0, probe=0, payer="another")
    later_s = WINDOW_S + 1
    opened = [breaker.failed(later_s, probe=0, payer="one") for _ in range(REQUESTS_MIN)]
    assert opened == [False] * (REQUESTS_MIN - 1) + [True]


def test_payers_that_are_told_apart_are_bounded() -> None:
    breaker = Breaker(requests_min=10**6)
    for number in range(10 * PAYERS_MAX):
        breaker.failed(float(number) / 1000, probe=0, payer=str(number))
    assert len(breaker._payers) == len(breaker._unlucky) == PAYERS_MAX
