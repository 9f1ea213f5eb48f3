"""Which provider is asked first, which next, and which are passed over: one process's own view of them.

    eligible -> `Router.order` -> for each of the chain: `Router.begin` -> `Flight` -> worked | failed | dropped

Everything that is known of a provider comes from the flights of this process's own requests. Nothing
here waits, and nothing outlives the process: after a restart every provider is unknown and well.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil
from random import Random

from app import log, metrics
from app.clock import Clock
from app.errors import NoProviderAvailable
from app.routing import scoring
from app.routing.breaker import Breaker, State, Why
from app.routing.candidates import Candidate
from app.routing.facts import Facts
from app.routing.pace import FIRST_BYTE_S, TOKEN_S, Pace, fastest_known
from app.routing.wishes import BALANCED, CHEAPEST, NO_WISHES, Wishes
from app.settings import InferenceSettings
from app.upstream.provider import UpstreamError

# Who failed so lately is tried last by `balanced`.
OUTAGE_S = 30.0
# A provider that refuses our account, and a quota whose end is not said.
REFUSED_S = 60.0
QUOTA_S = 60.0
# Averages are aged and stalls are noticed at most so often.
REFRESH_S = 0.5
# So many attempts on their way at once double the time that is expected.
IN_FLIGHT_DOUBLING = 16
# Successes that an unknown provider is believed to have had.
SUCCESSES_BELIEVED = 4
REFUSED = "refused"
RATE_LIMITED = "rate_limited"
TIMEOUT = "timeout"
# Of the time to the first byte, what surely was all of it: clocks differ a little.
NEARLY_ALL = 0.99
QUOTA = "quota"

_log = log.get("routing")


@dataclass(frozen=True, slots=True)
class ProviderState:
    """How a provider does with a model, for people. ``retry_after_s`` is set while nothing goes there."""

    provider: str
    model: str
    breaker: State
    why: Why
    retry_after_s: int | None
    in_flight: int
    success_rate: float
    first_byte_s: float | None
    tokens_per_second: float | None


class Track:
    """All that is known of one provider and model."""

    __slots__ = (
        "breaker",
        "firm_until_s",
        "first_byte_s",
        "in_flight",
        "key",
        "model",
        "pace",
        "success",
        "tail_until_s",
        "token_s",
        "waiting",
    )

    def __init__(self, key: str, requests_min: int) -> None:
        self.key = key
        self.model = key.partition("\n")[2]
        self.breaker = Breaker(requests_min)
        self.pace = Pace()
        self.in_flight = 0
        # Streams without a first byte, and when they began: the oldest is the first.
        self.waiting: dict[Flight, float] = {}
        # An outage counts until then; what opened the breaker counts until then whatever works meanwhile.
        self.tail_until_s = self.firm_until_s = 0.0
        self.first_byte_s = self.token_s = self.success = 1.0
        self.score()

    def score(self) -> None:
        """Work out what the strategies read, so that they need not."""
        load = 1 + self.in_flight / IN_FLIGHT_DOUBLING
        pace, breaker = self.pace, self.breaker
        self.first_byte_s = pace.first_byte.value * load
        self.token_s = pace.token.value * load
        successes = breaker.successes + SUCCESSES_BELIEVED
        self.success = successes / (successes + breaker.failures)

    def refresh(self, now_s: float) -> bool:
        """Age what is known; false once nothing of it can change by itself."""
        forgetting = self.pace.forget(now_s)
        if self.waiting:
            self.pace.at_least(now_s - next(iter(self.waiting.values())), now_s)
        self.breaker.age(now_s)
        self.score()
        counted = self.breaker.successes + self.breaker.failures
        return bool(forgetting or self.in_flight or counted)


class _Tracks(dict[str, Track]):
    """By `Candidate.key`; as many as are configured."""

    def __init__(self, requests_min: int) -> None:
        self.requests_min = requests_min
        self.of_model: dict[str, list[Track]] = {}

    def __missing__(self, key: str) -> Track:
        track = self[key] = Track(key, self.requests_min)
        self.of_model.setdefault(track.model, []).append(track)
        return track

    def compare(self, model: str) -> None:
        """What is unknown of the providers of a model is believed to be like the best that is known."""
        tracks = self.of_model[model]
        first_byte_s = fastest_known((track.pace.first_byte for track in tracks), otherwise=FIRST_BYTE_S)
        token_s = fastest_known((track.pace.token for track in tracks), otherwise=TOKEN_S)
        for track in tracks:
            track.pace.first_byte.suppose(first_byte_s)
            track.pace.token.suppose(token_s)
            track.score()


class Router:
    """Orders candidates, and learns from what becomes of each attempt."""

    def __init__(self, clock: Clock, rng: Random, settings: InferenceSettings) -> None:
        self._clock = clock
        self._rng = rng
        self._attempts_max = settings.attempts_max
        self.timeout_s = settings.upstream_timeout_s * NEARLY_ALL
        self._tracks = _Tracks(settings.breaker_requests_min)
        self._rest_s_max = settings.rest_s_max
        # Those whose breaker is not closed; by provider, those that refused us.
        self._unwell: dict[str, Track] = {}
        self._refused: dict[str, Breaker] = {}
        self._troubled: dict[str, Track] = {}
        self._lively: dict[str, Track] = {}
        self._refresh_at_s = 0.0

    def order(self, candidates: Sequence[Candidate], facts: Facts, wishes: Wishes = NO_WISHES) -> list[Candidate]:
        """The candidates to try, in order: at most `inference.attempts_max`, each once.

        Raises `NoProviderAvailable`, with the soonest moment to come back, when all are passed over.
        """
        now_s = self._clock.monotonic_s()
        if now_s >= self._refresh_at_s:
            self._refresh(now_s)
        well = candidates
        if self._unwell or self._refused:
            well = [each for each in candidates if self._allows(each, now_s)]
            if not well:
                raise self.resting(candidates)
        count = self._attempts_max if wishes.falls_back or wishes.order else 1
        chain: list[Candidate] = []
        if wishes.order:
            rank = {name: index for index, name in enumerate(wishes.order)}
            chain = sorted((each for each in well if each.name in rank), key=lambda each: rank[each.name])[:count]
            well = [each for each in well if each.name not in rank]
        for group in self._groups(well, facts, wishes):
            if len(chain) < count and group:
                chain += self._ranked(group, facts, wishes, count=count - len(chain))
        return chain

    def begin(self, candidate: Candidate, *, stream: bool = False, payer: str = "") -> "Flight | None":
        """An attempt begins. None: it must not, for the breaker opened meanwhile or its one probe is on its way.

        A ``stream`` says when its first byte came, and until then takes at least as long as it has waited; of any
        other answer only the whole is timed.
        """
        now_s = self._clock.monotonic_s()
        if (self._unwell or self._refused) and not self._allows(candidate, now_s):
            return None
        track = self._tracks[candidate.key]
        probe = track.breaker.begin(now_s)
        account = self._refused.get(candidate.name)
        flight = Flight(self, candidate, track, probe=probe, account=account, payer=payer, stream=stream, now_s=now_s)
        track.in_flight += 1
        if stream:
            track.waiting[flight] = now_s
        track.score()
        self._lively[track.key] = track
        return flight

    def resting(self, candidates: Iterable[Candidate]) -> NoProviderAvailable:
        """What a request is told when every candidate is passed over."""
        now_s = self._clock.monotonic_s()
        soonest_s = min((self._wait_s(each, now_s) for each in candidates), default=0.0)
        return NoProviderAvailable(
            "every provider that could serve this failed a moment ago and is being left alone",
            code="providers_resting",
            retry_after_s=max(1, ceil(soonest_s)),
        )

    def state(self, candidates: Iterable[Candidate]) -> list[ProviderState]:
        """How each candidate does, in their order."""
        now_s = self._clock.monotonic_s()
        return [self._state(each, now_s) for each in candidates]

    def _state(self, candidate: Candidate, now_s: float) -> ProviderState:
        track = self._tracks.get(candidate.key) or Track(candidate.key, self._tracks.requests_min)
        account, breaker, pace = self._refused.get(candidate.name), track.breaker, track.pace
        worse = account if account is not None and (account.until_s or 0) >= (breaker.until_s or 0) else breaker
        wait_s = self._wait_s(candidate, now_s)
        return ProviderState(
            provider=candidate.name,
            model=candidate.model.id,
            breaker=worse.state(now_s),
            why=worse.why,
            retry_after_s=ceil(wait_s) if wait_s > 0 else None,
            in_flight=track.in_flight,
            success_rate=track.success,
            first_byte_s=pace.first_byte.value if pace.first_byte.measured else None,
            tokens_per_second=1 / pace.token.value if pace.token.measured else None,
        )

    def _allows(self, candidate: Candidate, now_s: float) -> bool:
        account, track = self._refused.get(candidate.name), self._unwell.get(candidate.key)
        if account is not None:
            if not account.allows(now_s):
                return False
            if account.until_s is None:
                del self._refused[candidate.name]
        if track is not None:
            if not track.breaker.allows(now_s):
                return False
            if track.breaker.until_s is None:
                del self._unwell[candidate.key]
        return True

    def _wait_s(self, candidate: Candidate, now_s: float) -> float:
        account, track = self._refused.get(candidate.name), self._unwell.get(candidate.key)
        breakers = [account, track.breaker if track is not None else None]
        return max(((each.until_s or now_s) - now_s for each in breakers if each is not None), default=0.0)

    def _groups(self, candidates: Sequence[Candidate], facts: Facts, wishes: Wishes) -> list[Sequence[Candidate]]:
        """First those that can give the whole output asked for; of these, for `balanced`, the untroubled first."""
        limit, groups = facts.output_limit, [candidates]
        if limit is not None and any(each.output_max < limit for each in candidates):
            groups = [
                [each for each in candidates if each.output_max >= limit],
                [each for each in candidates if each.output_max < limit],
            ]
        if wishes.chosen != BALANCED or not self._troubled:
            return groups
        troubled = self._troubled
        return [
            [each for each in group if (each.key in troubled) is last] for group in groups for last in (False, True)
        ]

    def _ranked(
        self, candidates: Sequence[Candidate], facts: Facts, wishes: Wishes, *, count: int
    ) -> Sequence[Candidate]:
        if len(candidates) == 1:
            return candidates
        strategy, rng, tracks = wishes.chosen, self._rng, self._tracks
        if strategy == BALANCED:
            weights = scoring.weights(candidates, [tracks[each.key] for each in candidates], facts)
            return scoring.drawn(candidates, weights, rng, count=count)
        if strategy == CHEAPEST:
            troubled = self._troubled
            return scoring.cheapest(candidates, facts, rng, count=count, troubled=lambda each: each.key in troubled)
        return scoring.fastest(candidates, lambda each: scoring.seconds(tracks[each.key], facts), rng, count=count)

    def _refresh(self, now_s: float) -> None:
        self._refresh_at_s = now_s + REFRESH_S
        for model in {track.model for track in self._lively.values()}:
            self._tracks.compare(model)
        for track in [each for each in self._lively.values() if not each.refresh(now_s)]:
            del self._lively[track.key]
        for track in [each for each in self._troubled.values() if now_s >= each.tail_until_s]:
            del self._troubled[track.key]

    # What flights say.

    def _worked(self, flight: "Flight", now_s: float) -> None:
        track = flight.track
        track.breaker.worked(now_s, probe=flight.probe, payer=flight.payer)
        if track.breaker.until_s is None and self._unwell.pop(track.key, None) is not None:
            _log.info("breaker_closed", provider=flight.candidate.name, model=flight.candidate.model.id)
        track.tail_until_s = track.firm_until_s
        if now_s >= track.tail_until_s:
            self._troubled.pop(track.key, None)

    def _failed(self, flight: "Flight", error: UpstreamError, now_s: float) -> None:
        """The provider's fault. A probe that is told to wait counts as one that failed."""
        candidate, track = flight.candidate, flight.track
        breaker, wait_s = track.breaker, min(float(error.retry_after_s or 0), self._rest_s_max)
        why: Why = "asked_to_wait"
        if candidate.provider.kind == QUOTA and (error.status == 429 or error.result == RATE_LIMITED):
            wait_s, why, opened = wait_s or min(QUOTA_S, self._rest_s_max), "quota_used_up", False
        else:
            opened = breaker.failed(now_s, probe=flight.probe, payer=flight.payer)
            track.tail_until_s = now_s + OUTAGE_S
        if wait_s > 0:
            breaker.open(now_s + wait_s, why)
            opened = True
        if opened:
            self._unwell[track.key] = track
            track.firm_until_s = track.tail_until_s
            metrics.breakers_opened.labels(candidate.name, breaker.why).inc()
            open_s = ceil((breaker.until_s or now_s) - now_s)
            _log.warning(
                "breaker_opened", provider=candidate.name, model=candidate.model.id, why=breaker.why, open_s=open_s
            )
        if track.tail_until_s > now_s:
            self._troubled[track.key] = track

    def _account_refused(self, flight: "Flight", error: UpstreamError, now_s: float) -> None:
        """401, 402 or 403: the operator's account there, so no model of that provider can be served."""
        name = flight.candidate.name
        known = self._refused.get(name)
        if known is not None and known is not flight.account:
            return
        rest_s = min(REFUSED_S, self._rest_s_max)
        if rest_s > 0:
            account = known or Breaker()
            account.open(now_s + rest_s, "refused")
            self._refused[name] = account
        metrics.alerts.labels("provider_refused_us").inc()
        metrics.breakers_opened.labels(name, REFUSED).inc()
        _log.error("provider_refused_us", provider=name, status=error.status, open_s=rest_s)


class Flight:
    """One attempt on its way. It ends once; what is said after that is not heard."""

    __slots__ = (
        "_account_probe",
        "_began_s",
        "_ended",
        "_first_byte_s",
        "_router",
        "_stream",
        "account",
        "candidate",
        "payer",
        "probe",
        "track",
    )

    def __init__(
        self,
        router: Router,
        candidate: Candidate,
        track: Track,
        *,
        probe: int,
        account: Breaker | None,
        payer: str,
        stream: bool,
        now_s: float,
    ) -> None:
        self.candidate = candidate
        self.track = track
        self.probe = probe
        # Of a provider that refused us: this attempt is the probe whether it still does.
        self.account = account
        self.payer = payer
        self._account_probe = account.begin(now_s) if account is not None else 0
        self._router = router
        self._stream = stream
        self._began_s = now_s
        self._first_byte_s: float | None = None
        self._ended = False

    def first_byte(self) -> None:
        """The provider began to answer."""
        if self._ended or self._first_byte_s is not None or not self._stream:
            return
        self._first_byte_s = now_s = self._router._clock.monotonic_s()
        self.track.waiting.pop(self, None)
        self.track.pace.first_byte.add(now_s - self._began_s, now_s)
        self.track.score()
        self._account_is_good()
        self.track.breaker.streams(now_s, probe=self.probe)

    def worked(self, *, tokens: int = 0, waited_s: float = 0.0) -> None:
        """The whole answer came. ``tokens`` are those of the output; ``waited_s`` was spent on the client."""
        if not self._end():
            return
        now_s = self._router._clock.monotonic_s()
        pace = self.track.pace
        if self._first_byte_s is None:
            pace.whole(max(0.0, now_s - self._began_s - waited_s), tokens, now_s)
        else:
            pace.tokens(max(0.0, now_s - self._first_byte_s - waited_s), tokens, now_s)
        self._account_is_good()
        self._router._worked(self, now_s)
        self.track.score()

    def failed(self, error: UpstreamError) -> None:
        """The attempt failed: by the provider's fault, the caller's or haste, or the operator's account there."""
        waiting = self in self.track.waiting
        if not self._end():
            return
        router = self._router
        now_s = router._clock.monotonic_s()
        if error.result == REFUSED and not error.callers_fault:
            self._release()
            router._account_refused(self, error, now_s)
            return
        if error.status is not None:
            self._account_is_good()
        elif self.account is not None:
            self.account.release(probe=self._account_probe)
        if error.callers_fault or self._was_hurried(error, now_s):
            self._release()
            if waiting:
                self._slow(now_s)
            return
        if waiting:
            self._slow(now_s)
        router._failed(self, error, now_s)
        self.track.score()

    def dropped(self) -> None:
        """The attempt was given up for the caller's sake: it says nothing about the provider."""
        if self._end():
            self._release()
            if self.account is not None:
                self.account.release(probe=self._account_probe)

    def _end(self) -> bool:
        if self._ended:
            return False
        self._ended = True
        self.track.in_flight -= 1
        self.track.waiting.pop(self, None)
        self.track.score()
        return True

    def _was_hurried(self, error: UpstreamError, now_s: float) -> bool:
        """A caller's own `timeout_ms` was up before ours: anybody could open a breaker with a wait of 1 ms."""
        early = now_s - self._began_s < self._router.timeout_s
        return error.result == TIMEOUT and self._first_byte_s is None and early

    def _slow(self, now_s: float) -> None:
        """Nothing came for so long."""
        self.track.pace.at_least(now_s - self._began_s, now_s)
        self.track.score()

    def _release(self) -> None:
        self.track.breaker.release(probe=self.probe)

    def _account_is_good(self) -> None:
        if self.account is not None and self._router._refused.get(self.candidate.name) is self.account:
            del self._router._refused[self.candidate.name]
            _log.info("provider_accepts_us", provider=self.candidate.name)
