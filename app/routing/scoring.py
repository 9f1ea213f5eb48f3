"""The three strategies: which candidates come first, given what each would cost and how well each does. Pure.

Money stays integer: what a request would cost is in pico-USD. A weight is a plain number without a unit.
"""

from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from random import Random
from typing import Protocol, TypeVar

from app.routing.candidates import Candidate
from app.routing.facts import Facts

# `cheapest` takes what is within 20 % of the lowest for equally cheap.
NEAR_NUMERATOR = 6
NEAR_DENOMINATOR = 5
# In pico-USD: added before weights are made, so that what is free has a finite one.
FLOOR = 1000
# Draws that may hit somebody who was drawn already, before the others are weighed anew.
MISSES_MAX = 4

Item = TypeVar("Item")


class Standing(Protocol):
    """How well a provider does: seconds to the first byte and per token under its load, and its success rate."""

    first_byte_s: float
    token_s: float
    success: float


def totals(candidates: Iterable[Candidate], facts: Facts) -> list[int]:
    """What this request is expected to cost at each candidate, in pico-USD."""
    prompt, output = facts.prompt_tokens_expected, facts.output_tokens_expected
    if not facts.units:
        return [prompt * each.input + output * each.output for each in candidates]
    units = facts.units.items()
    return [
        prompt * each.input + output * each.output + sum(count * each.price.price(unit) for unit, count in units)
        for each in candidates
    ]


def weights(candidates: Sequence[Candidate], standings: Iterable[Standing], facts: Facts) -> list[float]:
    """`balanced`: success rate / (seconds x square of the cost)."""
    prompt, output = facts.prompt_tokens_expected, facts.output_tokens_expected
    if facts.units:
        return [
            standing.success / ((standing.first_byte_s + output * standing.token_s) * (total + FLOOR) ** 2)
            for total, standing in zip(totals(candidates, facts), standings, strict=True)
        ]
    # All in one expression, because it is evaluated for every candidate of every request.
    return [
        standing.success
        / (
            (standing.first_byte_s + output * standing.token_s)
            * (total := prompt * each.input + output * each.output + FLOOR)
            * total
        )
        for each, standing in zip(candidates, standings, strict=True)
    ]


def seconds(standing: Standing, facts: Facts) -> float:
    """`fastest`: the expected seconds of a success, tries that fail included."""
    return (standing.first_byte_s + facts.output_tokens_expected * standing.token_s) / standing.success


def drawn(items: Sequence[Item], weighed: Sequence[float], rng: Random, *, count: int) -> list[Item]:
    """A weighted draw without replacement: each draw is among those not yet drawn, by their weights."""
    taken: dict[int, None] = {}
    cumulative, misses = list(accumulate(weighed)), 0
    last = len(items) - 1
    while len(taken) < count and len(taken) <= last:
        index = bisect(cumulative, rng.random() * cumulative[-1], 0, last)
        if index not in taken:
            taken[index] = None
        elif (misses := misses + 1) > MISSES_MAX:
            # Those drawn weigh nearly everything: weigh the others alone.
            left = [other for other in range(last + 1) if other not in taken]
            order = drawn(left, [weighed[other] for other in left], rng, count=count - len(taken))
            return [items[index] for index in (*taken, *order)]
    return [items[index] for index in taken]


def cheapest(
    candidates: Sequence[Candidate],
    facts: Facts,
    rng: Random,
    *,
    count: int,
    troubled: Callable[[Candidate], bool],
) -> list[Candidate]:
    """Those within 20 % of the lowest at random, the troubled of them last; then the others by what they cost."""
    asked = totals(candidates, facts)
    near_max = min(asked) * NEAR_NUMERATOR
    near = [each for each, total in zip(candidates, asked, strict=True) if total * NEAR_DENOMINATOR <= near_max]
    last = [each for each in near if troubled(each)]
    first = [each for each in near if not troubled(each)] if last else near
    chosen = picked(first, rng, count=count)
    chosen += picked(last, rng, count=count - len(chosen))
    if len(chosen) == count:
        return chosen
    rest = [index for index, total in enumerate(asked) if total * NEAR_DENOMINATOR > near_max]
    rest.sort(key=asked.__getitem__)
    return [*chosen, *(candidates[index] for index in rest[: count - len(chosen)])]


def picked(items: Sequence[Item], rng: Random, *, count: int) -> list[Item]:
    """So many of them at random, each order as likely as any other."""
    left, chosen = list(items), list[Item]()
    while left and len(chosen) < count:
        chosen.append(_taken(left, int(rng.random() * len(left))))
    return chosen


def fastest(items: Sequence[Item], expected: Callable[[Item], float], rng: Random, *, count: int) -> list[Item]:
    """The power of two choices, again for every place: of two drawn at random, the one expected to be done first."""
    left, chosen = list(items), list[Item]()
    while left and len(chosen) < count:
        one = int(rng.random() * len(left))
        if len(left) > 1:
            other = int(rng.random() * (len(left) - 1))
            other += other >= one
            if expected(left[other]) < expected(left[one]):
                one = other
        chosen.append(_taken(left, one))
    return chosen


def _taken(items: list[Item], index: int) -> Item:
    """The item, taken out of a list whose order does not matter."""
    items[index], items[-1] = items[-1], items[index]
    return items.pop()
