import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.routing.pace import DECAY_S, FIRST_BYTE_S, FORGET_S, IDLE_S, TOKEN_S, TOKENS_MIN, Pace, PeakAverage

SECONDS = st.floats(0, 1000)


def test_first_measurement_is_the_average() -> None:
    average = PeakAverage(1.0)
    assert not average.measured
    average.add(0.25, 0)
    assert (average.value, average.measured) == (0.25, True)


def test_slower_is_believed_at_once_and_faster_little_by_little() -> None:
    average = PeakAverage(0.1)
    average.add(1.0, 0)
    average.add(5.0, 0.001)
    assert average.value == 5.0
    average.add(1.0, 0.001 + DECAY_S)
    assert average.value == pytest.approx(1 + 4 / 2.718281828)


@given(st.lists(st.tuples(SECONDS, st.floats(0, 100)), min_size=1, max_size=30))
def test_average_stays_between_what_was_measured(measured: list[tuple[float, float]]) -> None:
    average, now = PeakAverage(0.1), 0.0
    for seconds, passed in measured:
        now += passed
        average.add(seconds, now)
    values = [max(seconds, 1e-6) for seconds, _ in measured]
    assert min(values) * 0.999999 <= average.value <= max(values) * 1.000001
    assert average.value >= values[-1] * 0.999999


def test_slowness_that_nobody_sees_any_more_is_forgotten() -> None:
    average = PeakAverage(0.1)
    average.add(10.1, 0)
    assert average.forget(IDLE_S - 0.1)
    assert average.value == 10.1
    assert average.forget(FORGET_S)
    assert average.value == pytest.approx(0.1 + 10 / 2.718281828)
    for step in range(20):
        average.forget(FORGET_S * (2 + step))
    assert average.value == 0.1
    assert not average.forget(10_000)


def test_speed_is_not_forgotten() -> None:
    average = PeakAverage(0.1)
    average.add(0.01, 0)
    assert not average.forget(10_000)
    assert average.value == 0.01


def test_stream_is_timed_in_two_parts() -> None:
    pace = Pace()
    pace.first_byte.add(0.5, 0)
    pace.tokens(2.0, 100, 2)
    assert pace.expected(50) == pytest.approx(0.5 + 50 * 0.02)


def test_few_tokens_say_nothing_of_their_pace() -> None:
    pace = Pace()
    pace.tokens(10.0, TOKENS_MIN - 1, 0)
    assert pace.token.value == TOKEN_S


def test_whole_answer_moves_both_parts_alike() -> None:
    pace = Pace()
    pace.whole(2 * (FIRST_BYTE_S + 100 * TOKEN_S), 100, 0)
    assert pace.first_byte.value == pytest.approx(2 * FIRST_BYTE_S)
    assert pace.token.value == pytest.approx(2 * TOKEN_S)
    assert pace.expected(100) == pytest.approx(2 * (FIRST_BYTE_S + 100 * TOKEN_S))


def test_whole_answer_without_tokens_is_all_first_byte() -> None:
    pace = Pace()
    pace.whole(3.0, 0, 0)
    assert pace.first_byte.value == pytest.approx(3.0)
    assert pace.token.value == TOKEN_S


def test_wait_that_is_not_over_counts_once_it_is_longer_than_expected() -> None:
    pace = Pace()
    pace.first_byte.add(1.0, 0)
    pace.at_least(0.5, 1)
    assert pace.first_byte.value == 1.0
    pace.at_least(4.0, 1)
    assert pace.first_byte.value == 4.0


@given(SECONDS, st.integers(0, 10**6), st.floats(0, 10**6))
def test_expectations_are_finite_and_positive(seconds: float, tokens: int, now: float) -> None:
    pace = Pace()
    pace.whole(seconds, tokens, now)
    pace.first_byte.add(seconds, now)
    pace.tokens(seconds, tokens, now)
    pace.forget(now + 1000)
    assert 0 < pace.expected(tokens) < float("inf")
