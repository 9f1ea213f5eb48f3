"""The paid request: who pays, quote, hold, route, upstream, meter, capture, answer.

    admit -> serve (attempts, fail-over before the first content) -> capture -> close

One `PaidJob` is one request and its own task. It always ends in a capture, however it was ended: its
client left, a provider failed, the funds ran out, the process is stopping. The capture is durable
before the terminal bytes of the answer are sent.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from app import log, metrics
from app.admission import PaidRequest, Plan, plan_for, priced, refusal, request_row
from app.answer import Transcript, as_ours, error_event, replay
from app.clock import MS_PER_SECOND, Clock, EpochMs
from app.deadline import Deadline
from app.delivery import Client, Delivery, FundsExhausted
from app.errors import FareboxError, InvariantViolated, Overloaded
from app.ledger.account import REVENUE
from app.ledger.ids import new_id
from app.ledger.journal import Journal
from app.ledger.operation import Admit, Admitted, Capture, Captured, Claim, ClaimFound, Refused, Row
from app.metering import StreamMeter, completion_text_bytes
from app.money import ZERO
from app.paid_answer import Answer
from app.pricing.price_book import Usage
from app.pricing.quote import TokenRatio
from app.rails import idempotency
from app.rails.rail import Payer
from app.reckoning import NOTHING, Billed, Ending, count, delivered_usage, outcome_of, reported_usage
from app.routing.candidates import Candidate, Catalog, choose
from app.routing.health import Health
from app.session_terms import admitted, refused_error, softened, terms_for
from app.settings import Settings
from app.upstream.provider import Call, UpstreamError
from app.upstream.sse import comment

PRELUDE_EVENTS_MAX = 64
SHUTDOWN = "shutdown"
# The payer closes the channel, or asked the chain to: the client is there and is told.
CHANNEL_CLOSING = "channel closing"
_CLIENT_IS_THERE = frozenset({None, SHUTDOWN, CHANNEL_CLOSING})
# Time for the last words of an answer that the process's end cut short.
LAST_WORDS_S = 1.0

_log = log.get("paid_job")


@dataclass(slots=True)
class Shared:
    """What every paid request of a process shares."""

    settings: Settings
    clock: Clock
    journal: Journal
    catalog: Catalog
    health: Health
    owner_id: str
    pepper: bytes = field(repr=False)
    ratios: dict[str, TokenRatio] = field(default_factory=dict)
    in_flight: dict[str, "PaidJob"] = field(default_factory=dict)

    def ratio(self, model: str) -> TokenRatio:
        """The learned bytes per token of a model."""
        return self.ratios.setdefault(model, TokenRatio())


class PaidJob:
    """One paid request, from admission to the last byte."""

    def __init__(self, shared: Shared, request: PaidRequest, payer: Payer, client: Client) -> None:
        self._shared = shared
        self._request = request
        self._payer = payer
        self.account_id = payer.account_id
        self._client = client
        self._clock = shared.clock
        self._started_s = shared.clock.monotonic_s()
        self._admitted_at = shared.clock.now_ms()
        self.id = new_id("req", self._admitted_at)
        self.task: asyncio.Task[None] | None = None
        self._serving = False
        self._stopped: str | None = None
        self._cut = False
        self._ending: Deadline | None = None
        self._claim: Claim | None = None
        self._candidates: list[Candidate] = []
        self._plan: Plan | None = None
        self._delivery: Delivery | None = None
        self._served: Candidate | None = None
        self._meter: StreamMeter | None = None
        self._attempts: list[Row] = []
        self._first_token_s: float | None = None
        self._transcript: Transcript | None = None
        self._limit_clipped = False
        self._commenting: asyncio.Task[None] | None = None

    # Outside: the edge and the watchdog.

    def start(self) -> asyncio.Task[None]:
        """Run the job as its own task, which outlives its client."""
        self.task = asyncio.ensure_future(self._run())
        self._shared.in_flight[self.id] = self
        return self.task

    def stop(self, why: str, *, now: bool = False) -> None:
        """The client is gone, or time is up. A stream ends at once; a whole answer is finished first."""
        first = self._stopped is None
        if self._payer.session is not None and why != CHANNEL_CLOSING:
            self._payer.session.give_up()
        self._stopped = self._stopped or why
        self._cut = self._cut or now
        if now and self._ending is not None:
            self._ending.shorten(LAST_WORDS_S)
        if self._request.stream or now:
            self._cancel()
        elif first:
            timeout_s = self._shared.settings.server.abandoned_timeout_s
            asyncio.get_running_loop().call_later(timeout_s, self._cancel)

    @property
    def finishes_alone(self) -> bool:
        """Whether the job goes on without its client."""
        return not self._request.stream

    def _cancel(self) -> None:
        if self._serving and self.task is not None:
            self._serving = False
            self.task.cancel()

    def watch(self, now_s: float) -> None:
        """Called a few times a second."""
        delivery, server = self._delivery, self._shared.settings.server
        if delivery is None or not self._serving or not self._request.stream:
            return
        if delivery.sending_since_s is not None:
            if now_s - delivery.sending_since_s > server.client_write_timeout_s:
                self.stop("client does not read")
        elif now_s - delivery.last_sent_s > server.silence_comment_s and self._commenting is None:
            delivery.last_sent_s = now_s
            self._commenting = asyncio.ensure_future(self._comment(delivery))

    async def _comment(self, delivery: Delivery) -> None:
        # Seen by the watch like any other write, so that a client that does not read cannot hide in it.
        delivery.sending_since_s = self._clock.monotonic_s()
        try:
            await self._begin()
            await self._client.send(comment(b"farebox"))
        except Exception as error:
            _log.debug("comment_not_sent", request_id=self.id, error=type(error).__name__)
        finally:
            delivery.sending_since_s = None
            self._commenting = None

    # Inside: the way of a request.

    async def _run(self) -> None:
        try:
            try:
                found = await self._admit()
            except FareboxError as error:
                await self._refuse(error)
                return
            if found is not None:
                with suppress(TimeoutError), self._time_to_end():
                    await replay(
                        found, claim=self._claim, request=self._request, payer=self._payer, client=self._client
                    )
                return
            ending = await self._serve_to_an_end()
            captured = await self._capture(ending)
            with suppress(TimeoutError), self._time_to_end():
                await self._close(ending, captured)
        finally:
            self._shared.in_flight.pop(self.id, None)

    async def _refuse(self, error: FareboxError) -> None:
        """Nothing was held. A stream that began to wait, or opened its channel, learns it as an event."""
        if not self._client.started and not self._must_stream:
            raise softened(error, self._payer.session)
        with suppress(TimeoutError), self._time_to_end():
            await self._begin()
            await self._client.send(b"".join([error_event(error), *self._answer.receipt_events(None)]))
            await self._client.end()

    def _time_to_end(self) -> Deadline:
        """A client that does not read its answer's end is not waited for; it is billed already."""
        self._ending = Deadline(LAST_WORDS_S if self._cut else self._shared.settings.server.client_write_timeout_s)
        return self._ending

    async def _admit(self) -> ClaimFound | None:
        """Quote and hold. Raises what the ledger's refusal means to the payer."""
        shared, request = self._shared, self._request
        found = priced(request, shared.catalog.find(request.model))
        self._candidates = choose(found, request.wishes, shared.health)
        model_id = self._candidates[0].model.id
        plan = plan_for(
            request,
            self._candidates,
            shared.ratio(model_id),
            inference=shared.settings.inference,
            ledger=shared.settings.ledger,
        )
        session, asked_limit = self._payer.session, plan.limit
        plan, required, ledger = terms_for(plan, request, session, ledger=shared.settings.ledger)
        # Known before the head of a stream that begins by waiting.
        self._plan, self._limit_clipped = plan, plan.limit < asked_limit
        self._claim_key()
        tokens = plan.prompt_tokens_expected + plan.output_tokens_max
        row = request_row(self.id, self._payer, request, plan, model_id=model_id, at=self._admitted_at)
        first = Admit(
            request_id=self.id,
            account_id=self._payer.account_id,
            credit_account=REVENUE,
            owner_id=shared.owner_id,
            amount=plan.first_hold,
            required=required,
            request=row,
            key=self._payer.condition(model=model_id, tokens=tokens),
            claim=self._claim,
            channel=session.condition() if session is not None else None,
        )
        result = await admitted(first, session, request, submit=shared.journal.submit, say=self._say)
        if isinstance(result, ClaimFound):
            return result
        if isinstance(result, Refused):
            error = refused_error(result, plan, request, session, started=self._client.started)
            metrics.refusals.labels(error.code).inc()
            raise error
        if not isinstance(result, Admitted):
            raise InvariantViolated("the ledger answered an admission with something else")
        self._tokens_admitted = tokens
        self._plan, held_tokens = plan.admitted(result)
        self._delivery = Delivery(
            request_id=self.id,
            payer=self._payer,
            model=model_id,
            plan=self._plan,
            held_tokens=held_tokens,
            owner_id=shared.owner_id,
            journal=shared.journal,
            clock=shared.clock,
            settings=ledger,
            ratio=shared.ratio(model_id),
            keep=self._transcript.add if self._transcript is not None else None,
        )
        self._limit_clipped = self._plan.limit < asked_limit
        return None

    async def _say(self, data: bytes) -> None:
        """An event of ours before anything was held."""
        await self._begin()
        await self._client.send(data)

    def _claim_key(self) -> None:
        """With an idempotency key: what is claimed in the commit of the hold, and where the answer is kept."""
        key, settings = self._request.idempotency_key, self._shared.settings.ledger
        if key is None:
            return
        self._claim = idempotency.claim(
            payer=self._payer,
            key=key,
            path=self._request.path,
            body=self._request.content,
            pepper=self._shared.pepper,
            expires_at=EpochMs(self._admitted_at + settings.idempotency_ttl_s * MS_PER_SECOND),
        )
        self._transcript = Transcript(payer=self._payer, key=key, bytes_max=settings.idempotency_bytes_max)

    async def _serve_to_an_end(self) -> Ending:
        """Serve until there is an end of any kind; never raises, so that a capture always follows."""
        if self._stopped and (self._request.stream or self._cut):
            return Ending("aborted", NOTHING, error=self._why_stopped())
        self._serving = True
        try:
            return await self._serve()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            return Ending("aborted", self._used(), self._finish_reason, self._why_stopped())
        except FundsExhausted as exhausted:
            problem = refused_error(exhausted.refused, None, self._request, self._payer.session, started=True)
            return Ending("exhausted", self._used(), self._finish_reason, problem)
        except UpstreamError as failed:
            problem = as_ours(failed, attempts=len(self._attempts), delivered=self._content_sent)
            return Ending("failed", self._used(), self._finish_reason, problem)
        except FareboxError as error:
            return Ending("failed", self._used(), self._finish_reason, error)
        except Exception as error:
            metrics.alerts.labels("internal_error").inc()
            _log.error("request_failed", request_id=self.id, exc_info=error)
            problem = InvariantViolated("an internal error ended this request")
            return Ending("failed", self._used(), self._finish_reason, problem)
        finally:
            self._serving = False

    def _why_stopped(self) -> FareboxError | None:
        """What a client that is still there is told."""
        if self._stopped == CHANNEL_CLOSING:
            return refusal(Refused("channel_closing"), None, limit_param="")
        return Overloaded("this server is shutting down") if self._stopped == SHUTDOWN else None

    async def _serve(self) -> Ending:
        """Try the candidates in order; the first that works serves. Raises the last `UpstreamError`."""
        serve_one = self._stream_from if self._request.stream else self._complete_from
        failure: UpstreamError | None = None
        for candidate in self._candidates:
            started_s, started_at = self._clock.monotonic_s(), self._clock.now_ms()
            result, status = "abandoned", None
            name, model_id = candidate.provider.name, candidate.model.id
            try:
                ending = await serve_one(candidate)
                result, status = "ok", 200
                self._shared.health.worked(name, model_id)
                return ending
            except UpstreamError as error:
                result, status, failure = error.result, error.status, error
                if not error.callers_fault:
                    self._shared.health.failed(name, model_id, retry_after_s=error.retry_after_s)
                    _log.warning("attempt_failed", request_id=self.id, provider=name, result=result, status=status)
                if self._content_sent or not error.fail_over:
                    raise
            except FundsExhausted:
                result, status = "funds_exhausted", 200
                raise
            finally:
                duration_ms = int((self._clock.monotonic_s() - started_s) * MS_PER_SECOND)
                number = len(self._attempts) + 1
                self._attempts.append(
                    (self.id, number, name, candidate.upstream_model, result, status, started_at, duration_ms)
                )
                metrics.count_attempt(name, result)
        raise failure or UpstreamError("none", "no provider was tried")

    async def _complete_from(self, candidate: Candidate) -> Ending:
        body = await candidate.provider.complete(self._call(candidate))
        self._served = candidate
        usage = self._reported(body.get("usage"), candidate, completion_text_bytes(body))
        choices = body["choices"]
        reason = choices[0].get("finish_reason") if choices and isinstance(choices[0], dict) else None
        return Ending("completed", usage, reason if isinstance(reason, str) else None, body=body)

    async def _stream_from(self, candidate: Candidate) -> Ending:
        request, delivery = self._request, self._delivery
        if delivery is None:
            raise InvariantViolated("a stream without an admission")
        meter = StreamMeter(model=request.model, final_usage=self._shared.settings.inference.usage_in_final_chunk)
        async with candidate.provider.stream(self._call(candidate)) as events:
            self._meter, self._served = meter, candidate
            try:
                await self._relay(events, meter, delivery, candidate)
            except UpstreamError:
                if not self._content_sent:
                    self._meter = self._served = None
                raise
        usage = self._reported(meter.usage, candidate, meter.text_bytes)
        return Ending("completed", usage, meter.finish_reason)

    async def _relay(
        self, events: AsyncIterator[list[bytes]], meter: StreamMeter, delivery: Delivery, candidate: Candidate
    ) -> None:
        """Events from the provider to the client. What comes before content waits for it, bounded."""
        frames: list[tuple[bytes, int]] = []
        async for batch in events:
            failure: UpstreamError | None = None
            for data in batch:
                try:
                    shown = meter.read(data)
                except UpstreamError as error:
                    failure = error
                    break
                if shown is not None:
                    frames.append((shown, meter.text_bytes))
            begun = meter.text_bytes or meter.finished or len(frames) > PRELUDE_EVENTS_MAX
            if frames and begun and (failure is None or meter.text_bytes):
                await self._deliver(delivery, candidate, frames)
                frames = []
            if failure is not None:
                raise failure
            if meter.done:
                return
        if not meter.finished:
            raise UpstreamError("interrupted", "the provider's answer was cut off")

    async def _deliver(self, delivery: Delivery, candidate: Candidate, frames: list[tuple[bytes, int]]) -> None:
        if self._commenting is not None:
            await asyncio.wait((self._commenting,))
        if self._first_token_s is None:
            self._first_token_s = self._clock.monotonic_s() - self._started_s
            metrics.observe_first_token(candidate.provider.name, self._first_token_s)
        await self._begin()
        await delivery.deliver(self._client, candidate, frames)

    async def _begin(self) -> None:
        if not self._client.started:
            await self._client.begin(self._answer.headers())

    # The end: usage, capture, terminal bytes.

    def _reported(self, report: Any, candidate: Candidate, text_bytes: int) -> Usage:
        if self._plan is None:
            raise InvariantViolated("usage without an admission")
        billed = Billed(self.id, self._request, self._plan, candidate, self._shared.ratio(candidate.model.id))
        return reported_usage(report, billed, text_bytes=text_bytes)

    def _used(self) -> Usage:
        """What was delivered of an answer that did not end well; nothing if no provider answered."""
        candidate = self._served
        if self._meter is None or self._delivery is None or candidate is None or self._plan is None:
            return NOTHING
        billed = Billed(self.id, self._request, self._plan, candidate, self._shared.ratio(candidate.model.id))
        return delivered_usage(self._meter, billed, delivered_bytes=self._delivery.delivered_bytes)

    async def _capture(self, ending: Ending) -> Captured:
        """Resolve the holds, durably. From here on nothing is cancelled."""
        if self._delivery is not None:
            await self._delivery.settle()
        outcome = outcome_of(
            ending,
            self._served,
            first_token_s=self._first_token_s,
            duration_s=self._clock.monotonic_s() - self._started_s,
        )
        result = await self._shared.journal.submit(
            Capture(
                request_id=self.id,
                account_id=self._payer.account_id,
                key_id=self._payer.key_id,
                outcome=outcome,
                attempts=self._attempts,
                tokens_admitted=self._tokens_admitted,
                tokens_used=ending.usage.total_tokens,
                admitted_at_ms=self._admitted_at,
                claimed=self._claim is not None,
                answer=self._answer.stored(ending, self._transcript),
                forget_claim=outcome.price == ZERO and ending.status != "completed",
                challenge_id=self._payer.session.challenge_id if self._payer.session is not None else None,
            ),
            must=True,
        )
        if not isinstance(result, Captured):
            raise InvariantViolated("the ledger answered a capture with something else")
        if self._payer.session is not None:
            self._payer.session.released()
        count(outcome, result, request_id=self.id, endpoint=self._request.endpoint)
        return result

    async def _close(self, ending: Ending, captured: Captured) -> None:
        """The terminal bytes, after the capture."""
        if self._commenting is not None:
            await asyncio.wait((self._commenting,))
        if ending.body is not None:
            if not self._stopped:
                headers = self._answer.headers(captured, units=ending.usage.total_tokens)
                await self._client.respond(200, headers, self._answer.whole(ending.body, ending, captured))
            return
        if not self._client.started:
            if ending.error is not None and self._stopped in _CLIENT_IS_THERE and not self._must_stream:
                raise softened(ending.error, self._payer.session)
            if ending.status != "completed" and not self._must_stream:
                return
        if self._stopped not in _CLIENT_IS_THERE:
            return
        await self._begin()
        await self._client.send(b"".join(self._answer.terminal(ending, captured)))
        await self._client.end()

    @property
    def _answer(self) -> Answer:
        clipped = self._plan.limit if self._limit_clipped and self._plan is not None else None
        payer = self._payer
        return Answer(self.id, self._request, payer.session, payer.receipt, self._served, clipped, self._meter)

    # Small things.

    @property
    def _must_stream(self) -> bool:
        """Whether trouble is told as an event: the request opened its channel, and no status may deny that."""
        session = self._payer.session
        return session is not None and session.opened and self._request.stream

    @property
    def _content_sent(self) -> bool:
        return self._delivery is not None and self._delivery.content_sent

    @property
    def _finish_reason(self) -> str | None:
        return self._meter.finish_reason if self._meter else None

    def _call(self, candidate: Candidate) -> Call:
        plan, request = self._plan, self._request
        limit = min(plan.limit if plan else 0, candidate.model.max_output_tokens)
        timeout_s = request.first_byte_timeout_s or self._shared.settings.inference.upstream_timeout_s
        return Call(self.id, candidate.upstream_model, request.body, request.stream, limit, timeout_s)
