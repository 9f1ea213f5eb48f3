import pytest

from app.clock import EpochMs, to_rfc3339
from app.errors import InvalidRequest
from app.reconcile.period import day_of, parse_expiry, parse_moment
from tests.clocks import START_MS


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-01-31", "2026-01-31T00:00:00.000Z"),
        ("2026-01-31T12:00:00", "2026-01-31T12:00:00.000Z"),
        ("2026-01-31T12:00:00.5Z", "2026-01-31T12:00:00.500Z"),
        ("2026-01-31T12:00:00+02:00", "2026-01-31T10:00:00.000Z"),
    ],
)
def test_a_moment_without_an_offset_is_utc(text: str, moment: str) -> None:
    assert to_rfc3339(parse_moment(text, param="from")) == moment


def test_the_last_day_of_a_period_is_in_it() -> None:
    assert to_rfc3339(parse_moment("2026-01-31", param="to", end=True)) == "2026-02-01T00:00:00.000Z"
    assert to_rfc3339(parse_moment("2026-01-31T12:00:00Z", param="to", end=True)) == "2026-01-31T12:00:00.000Z"


@pytest.mark.parametrize("text", ["", "today", "2026-13-01", "9999-12-31", "1" * 41, "2026-01-31T25:00", "NaN", "\x00"])
def test_what_is_no_moment_is_refused_by_name(text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_moment(text, param="to", end=True)
    assert caught.value.param == "to"


@pytest.mark.parametrize(
    ("text", "ms"), [("30d", 2_592_000_000), ("12h", 43_200_000), ("90m", 5_400_000), ("5s", 5000)]
)
def test_an_expiry_can_be_a_span_from_now(text: str, ms: int) -> None:
    assert parse_expiry(text, now=START_MS, param="--expires") == START_MS + ms


@pytest.mark.parametrize("text", ["30", "d", "-1d", "36501d", "999999999d", "1.5d", "1w"])
def test_an_expiry_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        parse_expiry(text, now=START_MS, param="--expires")


def test_an_expiry_can_be_a_date() -> None:
    assert parse_expiry("1970-01-02", now=START_MS, param="--expires") == EpochMs(86_400_000)


def test_days_are_counted_from_the_epoch() -> None:
    assert [day_of(0), day_of(20_370)] == ["1970-01-01", "2025-10-09"]
