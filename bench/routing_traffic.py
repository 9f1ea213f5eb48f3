"""Made-up traffic of the shape that recorded traffic has, for the simulator of routing: seeded, so always the same.

Nothing here was recorded. Sizes of prompts and answers are lognormal with a long tail, as every published trace of LLM
traffic shows them; arrivals are a Poisson process whose rate swings like a day (here: half an hour) and has bursts.
"""

from dataclasses import dataclass
from math import exp, log, pi, sin
from random import Random

LENGTH_S = 1800.0
RATE_PER_S = 4.0
SWING = 0.6
# Begin, end and how many times the rate.
BURSTS = ((420.0, 450.0, 3.0), (1290.0, 1330.0, 2.5))
PROMPT_MEDIAN, PROMPT_SIGMA, PROMPT_MAX = 600, 1.1, 30_000
OUTPUT_MEDIAN, OUTPUT_SIGMA, OUTPUT_MAX = 180, 0.9, 4000
# What the proxy has learned to expect of an answer: the mean of the distribution.
OUTPUT_EXPECTED = round(OUTPUT_MEDIAN * exp(OUTPUT_SIGMA**2 / 2))


@dataclass(frozen=True)
class Arrival:
    """A request: when, and how many tokens it and its answer have."""

    at_s: float
    prompt: int
    output: int


@dataclass(frozen=True)
class Incident:
    """What goes wrong at a provider from one moment to another.

    ``slow``: everything takes ``factor`` times as long. ``down``: a quick 500. ``hangs``: no first byte before the
    time-out. ``busy``: 429 with ``Retry-After``. ``cuts``: streams break off in the middle.
    """

    kind: str
    begin_s: float
    end_s: float
    factor: float = 1.0


@dataclass(frozen=True)
class Behaviour:
    """A provider: prices in USD per million tokens, its pace when idle, and what it can carry at once."""

    name: str
    kind: str
    input: str
    output: str
    first_byte_s: float
    tokens_per_s: float
    carries: int
    fails: float = 0.002
    quota_per_minute: int | None = None
    incidents: tuple[Incident, ...] = ()

    def incident(self, at_s: float) -> Incident | None:
        """What is wrong at a moment."""
        return next((each for each in self.incidents if each.begin_s <= at_s < each.end_s), None)


PROVIDERS = (
    Behaviour("native-1", "native", "0.20", "0.60", 0.25, 60, 40, incidents=(Incident("slow", 300, 480, 6.0),)),
    Behaviour("native-2", "native", "0.22", "0.66", 0.35, 45, 30, incidents=(Incident("hangs", 1140, 1260),)),
    Behaviour("quota", "quota", "0.15", "0.45", 0.45, 55, 60, quota_per_minute=40),
    Behaviour("external-a", "external", "0.30", "0.90", 0.40, 90, 400, incidents=(Incident("busy", 1440, 1560),)),
    Behaviour("external-b", "external", "0.45", "1.35", 0.20, 150, 400, incidents=(Incident("down", 720, 900),)),
    Behaviour("external-c", "external", "0.25", "0.75", 0.90, 30, 400, fails=0.03),
    Behaviour("external-d", "external", "0.60", "2.40", 0.30, 100, 400, incidents=(Incident("cuts", 960, 1020),)),
)


def rate_per_s(at_s: float) -> float:
    """Arrivals per second at a moment."""
    burst = next((factor for begin_s, end_s, factor in BURSTS if begin_s <= at_s < end_s), 1.0)
    return RATE_PER_S * (1 + SWING * sin(2 * pi * at_s / LENGTH_S)) * burst


def arrivals(seed: int, *, length_s: float = LENGTH_S) -> list[Arrival]:
    """All requests of a run, by thinning a faster Poisson process."""
    rng, found, at_s = Random(seed), list[Arrival](), 0.0
    most = RATE_PER_S * (1 + SWING) * max(factor for _, _, factor in BURSTS)
    while True:
        at_s += rng.expovariate(most)
        if at_s >= length_s:
            return found
        prompt = _lognormal(rng, PROMPT_MEDIAN, PROMPT_SIGMA, PROMPT_MAX)
        output = _lognormal(rng, OUTPUT_MEDIAN, OUTPUT_SIGMA, OUTPUT_MAX)
        if rng.random() < rate_per_s(at_s) / most:
            found.append(Arrival(at_s, prompt, output))


def _lognormal(rng: Random, median: int, sigma: float, most: int) -> int:
    return max(1, min(most, round(rng.lognormvariate(log(median), sigma))))
