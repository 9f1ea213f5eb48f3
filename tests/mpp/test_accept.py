"""``Accept-Payment``: what it leaves, in which order, and that it never leaves nothing."""

import pytest

from app.mpp.accept import RANGES_MAX, ordered

OFFERS = [("tempo", "session"), ("evm", "session"), ("tempo", "charge"), ("stripe", "charge")]


def left(header: str | None) -> list[tuple[str, str]]:
    return ordered(header, OFFERS, name=lambda offer: offer)


@pytest.mark.parametrize(
    "header",
    [
        *(None, "", " ", ",", "tempo", "tempo/", "/session", "tempo/session;q=x", "tempo/session;q=2"),
        *("tempo/session;q=-1", "tempo/session;q=nan", "*/*", "lightning/charge", "*/*;q=0", "tempo/session, evm"),
    ],
)
def test_header_that_says_nothing_of_use_leaves_everything(header: str | None) -> None:
    assert left(header) == OFFERS


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("tempo/session", [OFFERS[0]]),
        ("TEMPO/Session", [OFFERS[0]]),
        ("*/session", OFFERS[:2]),
        ("tempo/*", [OFFERS[0], OFFERS[2]]),
        ("evm/session, tempo/session;q=0.5", [OFFERS[1], OFFERS[0]]),
        ("*/*;q=0.1, stripe/charge", [OFFERS[3], *OFFERS[:3]]),
        ("tempo/*, tempo/session;q=0", [OFFERS[2]]),
        ("*/session;q=0.9, tempo/*;q=0.2", [OFFERS[1], OFFERS[0], OFFERS[2]]),
        (" evm / session ; q=1 ".replace(" / ", "/"), [OFFERS[1]]),
        ("evm/session;level=1;q=0.5,tempo/charge;q=0.6", [OFFERS[2], OFFERS[1]]),
    ],
)
def test_preferences_filter_and_order(header: str, expected: list[tuple[str, str]]) -> None:
    assert left(header) == expected


def test_our_order_decides_between_equals() -> None:
    assert left("stripe/charge;q=0.5, tempo/charge;q=0.5, evm/session;q=0.5") == OFFERS[1:]


def test_ranges_beyond_the_bound_are_not_read() -> None:
    assert left(",".join(["x/y"] * RANGES_MAX + ["evm/session"])) == OFFERS
    assert left(",".join(["x/y"] * (RANGES_MAX - 1) + ["evm/session"])) == [OFFERS[1]]
