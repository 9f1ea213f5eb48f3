from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.clock import EpochMs, SystemClock, month_of, to_datetime, to_rfc3339
from tests.clocks import FakeClock

MOMENTS = st.integers(0, 4_102_444_800_000).map(EpochMs)


@given(MOMENTS)
def test_rfc3339_text_keeps_every_millisecond(at: EpochMs) -> None:
    parsed = datetime.fromisoformat(to_rfc3339(at))
    seconds = int(parsed.timestamp() // 1)
    assert seconds * 1000 + parsed.microsecond // 1000 == at


def test_rfc3339_text_is_utc_with_milliseconds() -> None:
    assert to_rfc3339(EpochMs(1_760_000_000_007)) == "2025-10-09T08:53:20.007Z"


def test_records_are_aware_utc() -> None:
    assert to_datetime(EpochMs(0)) == datetime(1970, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("moment", "month"),
    [
        (datetime(2025, 12, 31, 23, 59, 59, 999_000, tzinfo=UTC), 202512),
        (datetime(2026, 1, 1, tzinfo=UTC), 202601),
    ],
)
def test_a_month_begins_at_midnight_utc(moment: datetime, month: int) -> None:
    assert month_of(EpochMs(round(moment.timestamp() * 1000))) == month


def test_the_system_clock_tells_milliseconds_of_now() -> None:
    clock = SystemClock()
    before = datetime.now(UTC).timestamp()
    now = clock.now_ms()
    after = datetime.now(UTC).timestamp()
    assert before - 1 <= now / 1000 <= after + 1


def test_the_system_clock_never_goes_back() -> None:
    clock = SystemClock()
    readings = [clock.monotonic_s() for _ in range(100)]
    assert readings == sorted(readings)


def test_a_fake_clock_moves_only_when_it_is_told() -> None:
    clock = FakeClock()
    before = clock.now_ms(), clock.monotonic_s()
    clock.advance(1500)
    assert (clock.now_ms() - before[0], clock.monotonic_s() - before[1]) == (1500, 1.5)
