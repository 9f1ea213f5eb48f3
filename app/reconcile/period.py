"""Moments as people write them in a query or on a command line. Pure."""

import re
from datetime import UTC, date, datetime, timedelta

from app.clock import MS_PER_SECOND, EpochMs
from app.errors import InvalidRequest

TEXT_CHARACTERS_MAX = 40
DAYS_MAX = 36_500
MS_PER_DAY = 86_400_000
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_SPAN = re.compile(r"(\d{1,9})([smhd])")
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


def parse_moment(text: str, *, param: str, end: bool = False) -> EpochMs:
    """An ISO 8601 date or moment; without an offset it is UTC. Raises `InvalidRequest`.

    A bare date is its first moment; with ``end``, the first moment of the next day, so that a period
    "from the 1st to the 31st" has the 31st in it.
    """
    if len(text) > TEXT_CHARACTERS_MAX:
        raise _unreadable(param)
    try:
        if _DATE.fullmatch(text):
            day = date.fromisoformat(text) + timedelta(days=1 if end else 0)
            moment = datetime(day.year, day.month, day.day, tzinfo=UTC)
        else:
            moment = datetime.fromisoformat(text)
        moment = moment.replace(tzinfo=moment.tzinfo or UTC)
        since_epoch = moment - datetime(1970, 1, 1, tzinfo=UTC)
    except (ValueError, OverflowError) as error:
        raise _unreadable(param) from error
    return EpochMs(since_epoch // timedelta(milliseconds=1))


def parse_expiry(text: str, *, now: EpochMs, param: str) -> EpochMs:
    """A span from now (``30d``, ``12h``, ``90m``) or a moment. Raises `InvalidRequest`."""
    span = _SPAN.fullmatch(text.strip())
    if span is None:
        return parse_moment(text.strip(), param=param)
    seconds = int(span[1]) * _UNITS_S[span[2]]
    if seconds > DAYS_MAX * _UNITS_S["d"]:
        raise InvalidRequest(f"{param} is more than {DAYS_MAX} days away", param=param)
    return EpochMs(now + seconds * MS_PER_SECOND)


def day_of(number: int) -> str:
    """The date of a number of days since the epoch."""
    return (date(1970, 1, 1) + timedelta(days=number)).isoformat()


def _unreadable(param: str) -> InvalidRequest:
    return InvalidRequest(f"{param} must be a date such as 2026-01-31 or an ISO 8601 moment", param=param)
