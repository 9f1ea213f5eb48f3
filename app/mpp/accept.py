"""``Accept-Payment``: which challenges a client can answer, and which it would rather. Pure.

Source: `draft-httpauth-payment-00`, "Client Payment Preferences". A malformed header is ignored.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
RANGES_MAX = 32


def ordered(header: str | None, offers: Sequence[T], *, name: Callable[[T], tuple[str, str]]) -> list[T]:
    """The offers that the header accepts, dearest to the client first; all of them where none matches.

    ``name`` gives an offer's method and intent. Our own order decides between equals.
    """
    ranges = _ranges(header)
    if not ranges:
        return list(offers)
    weighed = [(weight, offer) for offer in offers if (weight := _weight(ranges, *name(offer))) > 0]
    if not weighed:
        return list(offers)
    return [offer for _, offer in sorted(weighed, key=lambda pair: -pair[0])]


def _ranges(header: str | None) -> list[tuple[str, str, float]]:
    found: list[tuple[str, str, float]] = []
    for item in (header or "").lower().split(",")[:RANGES_MAX]:
        token, *parameters = (part.strip() for part in item.split(";"))
        if not token:
            continue
        method, slash, intent = token.partition("/")
        if not slash or not method or not intent:
            return []
        weight = 1.0
        for parameter in parameters:
            key, _, value = parameter.partition("=")
            if key.strip() != "q":
                continue
            try:
                weight = float(value)
            except ValueError:
                return []
            if not 0 <= weight <= 1:
                return []
        found.append((method, intent, weight))
    return found


def _weight(ranges: list[tuple[str, str, float]], method: str, intent: str) -> float:
    best, weight = -1, 0.0
    for wanted_method, wanted_intent, given in ranges:
        if wanted_method not in {"*", method} or wanted_intent not in {"*", intent}:
            continue
        # The most specific range decides.
        specific = 2 * (wanted_method != "*") + (wanted_intent != "*")
        if specific > best:
            best, weight = specific, given
    return weight
