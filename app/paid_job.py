"""The paid request: who pays, quote, hold, route, upstream, meter, capture, answer.

    admit -> serve (attempts, fail-over before the first content) -> capture -> close

One `PaidJob` is one request and its own task. It always ends in a capture, however it was ended: its
client left, a provider failed, the funds ran out, the process is stopping. The capture is durable
before the terminal bytes of the answer are sent.
"""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field, replace

from app import log, metrics
from app.admission import PaidRequest, Plan, facts_of, plan_for, priced, refusal, request_row
from app.answer import Transcript, as_ours, error_event, replay
from app.clock import MS_PER_SECOND, EpochMs
from app.deadline import Deadline
from app.delivery import EVENT_STREAM, Client, Delivery, FundsExhausted
from app.errors import FareboxError, InvariantViolated, Overloaded
from app.ledger.account import REVENUE
from app.ledger.ids import new_id
from app.ledger.journal import Journal
from app.ledger.operation import Admit, Admitted, Capture, Captured, Claim, ClaimFound, Refused
from app.money import ZERO
from app.paid_answer import Answer
from app.pricing.quote import TokenRatio
from app.rails import idempotency
from app.rails.rail import Payer
from app.reckoning import NOTHING, Ending, count, outcome_of
from app.routing.candidates import Candidate, Catalog, eligible
from app.serving import Serving, Upstreams
from app.session_terms import admitted, refused_error, softened, terms_for
from app.upstream.provider import UpstreamError
from app.upstream.sse import comment

SHUTDOWN = "shutdown"
# The payer closes the channel, or asked the chain to: the client is there and is told.
CHANNEL_CLOSING = "channel closing"
_CLIENT_IS_THERE = frozenset({None, SHUTDOWN, CHANNEL_CLOSING})
# Time for the last words of an answer that the process's end cut short.
LAST_WORDS_S = 1.0

_log = log.get("paid_job")


@dataclass(slots=True)
class Shared(Upstreams):
    """What every paid request of a process shares."""

    journal: Journal
    catalog: Catalog
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
        self._is_serving = False
        self._stopped: str | None = None
        self._cut = False
        self._ending: Deadline | None = None
        self._claim: Claim | None = None
        self._plan: Plan | None = None
        self._delivery: Delivery | None = None
        self._serving: Serving | None = None
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
        """The client is gone, or time is up. What goes out in parts ends at once; a whole answer is finished first."""
        first = self._stopped is None
        if self._payer.session is not None and why != CHANNEL_CLOSING:
            self._payer.session.give_up()
        self._stopped = self._stopped or why
        self._cut = self._cut or now
        if now and self._ending is not None:
            self._ending.shorten(LAST_WORDS_S)
        if self._request.in_parts or now:
            self._cancel()
        elif first:
            timeout_s = self._shared.settings.server.abandoned_timeout_s
            asyncio.get_running_loop().call_later(timeout_s, self._cancel)

    @property
    def finishes_alone(self) -> bool:
        """Whether the job goes on without its client."""
        return not self._request.in_parts

    def _cancel(self) -> None:
        if self._is_serving and self.task is not None:
            self._is_serving = False
            self.task.cancel()

    def watch(self, now_s: float) -> None:
        """Called a few times a second."""
        delivery, server = self._delivery, self._shared.settings.server
        if delivery is None or not self._is_serving or not self._request.in_parts:
            return
        if delivery.sending_since_s is not None:
            if now_s - delivery.sending_since_s > server.client_write_timeout_s:
                self.stop("client does not read")
        elif not self._request.stream:
            return
        elif now_s - delivery.last_sent_s > server.silence_comment_s and self._commenting is None:
            delivery.last_sent_s = now_s
            self._commenting = asyncio.ensure_future(self._comment(delivery))

    async def _comment(self, delivery: Delivery) -> None:
        # Seen by the watch like any other write, so that a client that does not read cannot hide in it.
        delivery.sending_since_s = self._clock.monotonic_s()
        try:
            await self._begin(named=False)
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
            events = [error_event(error, self._request.shape), *self._answer.receipt_events(None)]
            await self._client.send(b"".join(events))
            await self._client.end()

    def _time_to_end(self) -> Deadline:
        """A client that does not read its answer's end is not waited for; it is billed already."""
        self._ending = Deadline(LAST_WORDS_S if self._cut else self._shared.settings.server.client_write_timeout_s)
        return self._ending

    async def _admit(self) -> ClaimFound | None:
        """Quote and hold. Raises what the ledger's refusal means to the payer."""
        shared, request = self._shared, self._request
        candidates = self._route()
        model_id = candidates[0].model.id
        ratio = shared.ratio(model_id)
        plan = plan_for(
            request,
            candidates,
            ratio,
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
            ratio=ratio,
            keep=self._transcript.add if self._transcript is not None else None,
        )
        self._limit_clipped = self._plan.limit < asked_limit
        self._serving = self._to_serve(candidates, self._plan, self._delivery, ratio)
        return None

    def _to_serve(self, candidates: list[Candidate], plan: Plan, delivery: Delivery, ratio: TokenRatio) -> Serving:
        return Serving(
            upstreams=self._shared,
            request_id=self.id,
            payer=self.account_id,
            request=self._request,
            candidates=candidates,
            plan=plan,
            delivery=delivery,
            ratio=ratio,
            client=self._client,
            begin=self._begin_content,
            started_s=self._started_s,
        )

    def _route(self) -> list[Candidate]:
        """The providers to try, in order. Raises `NoProviderAvailable`, `InvalidRequest` and `NotFound`."""
        shared, request = self._shared, self._request
        found = priced(request, shared.catalog.find(request.model))
        facts = facts_of(
            request,
            shared.ratio(found[0].model.id),
            rail="api_key" if self._payer.key_id is not None else "wallet",
            inference=shared.settings.inference,
        )
        defaults = self._payer.routing
        wishes = request.wishes.over(defaults) if defaults is not None else request.wishes
        return shared.router.order(eligible(found, facts, wishes), facts, wishes)

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
            body=self._request.fingerprint,
            pepper=self._shared.pepper,
            expires_at=EpochMs(self._admitted_at + settings.idempotency_ttl_s * MS_PER_SECOND),
        )
        self._transcript = Transcript(payer=self._payer, key=key, bytes_max=settings.idempotency_bytes_max)

    async def _serve_to_an_end(self) -> Ending:
        """Serve until there is an end of any kind; never raises, so that a capture always follows."""
        serving = self._serving
        if serving is None:
            raise InvariantViolated("a request is served that was not admitted")
        if self._stopped and (self._request.in_parts or self._cut):
            return Ending("aborted", NOTHING, error=self._why_stopped())
        self._is_serving = True
        try:
            return await serving.serve()
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            return self._ended("aborted", self._why_stopped(), serving)
        except FundsExhausted as exhausted:
            problem = refused_error(exhausted.refused, None, self._request, self._payer.session, started=True)
            return self._ended("exhausted", problem, serving)
        except UpstreamError as failed:
            delivered = serving.delivery.content_sent
            problem = as_ours(failed, attempts=len(serving.attempts), delivered=delivered)
            return self._ended("failed", problem, serving, failed=failed)
        except FareboxError as error:
            return self._ended("failed", error, serving)
        except Exception as error:
            metrics.alerts.labels("internal_error").inc()
            _log.error("request_failed", request_id=self.id, exc_info=error)
            return self._ended("failed", InvariantViolated("an internal error ended this request"), serving)
        finally:
            self._is_serving = False

    def _ended(
        self, status: str, error: FareboxError | None, serving: Serving, *, failed: UpstreamError | None = None
    ) -> Ending:
        # Who is told of an error in place of an answer has nothing to pay for, whatever the provider had begun.
        nothing = error is not None and not (self._client.started and serving.delivery.content_sent)
        usage = NOTHING if nothing else serving.used(failed=failed, ours=status == "failed" and failed is None)
        reason = serving.meter.finish_reason if serving.meter is not None else None
        return Ending(status, usage, reason, error, media_type=serving.media_type)

    def _why_stopped(self) -> FareboxError | None:
        """What a client that is still there is told."""
        if self._stopped == CHANNEL_CLOSING:
            return refusal(Refused("channel_closing"), None, limit_param="")
        return Overloaded("this server is shutting down") if self._stopped == SHUTDOWN else None

    async def _begin_content(self) -> None:
        if self._commenting is not None:
            await asyncio.wait((self._commenting,))
        await self._begin()

    async def _begin(self, *, named: bool = True) -> None:
        """The head, once. Before content another provider may still serve, so none is ``named``."""
        if not self._client.started:
            media_type = self._serving.media_type if self._serving is not None else None
            answer = self._answer if named else replace(self._answer, served=None)
            await self._client.begin(answer.headers(), media_type=media_type or EVENT_STREAM)

    # The end: usage, capture, terminal bytes.

    async def _capture(self, ending: Ending) -> Captured:
        """Resolve the holds, durably. From here on nothing is cancelled."""
        if self._delivery is not None:
            await self._delivery.settle()
        serving = self._serving
        outcome = outcome_of(
            ending,
            serving.served if serving is not None else None,
            first_token_s=serving.first_token_s if serving is not None else None,
            duration_s=self._clock.monotonic_s() - self._started_s,
        )
        result = await self._shared.journal.submit(
            Capture(
                request_id=self.id,
                account_id=self._payer.account_id,
                key_id=self._payer.key_id,
                outcome=outcome,
                attempts=serving.attempts if serving is not None else (),
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
        count(outcome, result, request_id=self.id, endpoint=self._request.endpoint.name)
        return result

    async def _close(self, ending: Ending, captured: Captured) -> None:
        """The terminal bytes, after the capture."""
        if self._commenting is not None:
            await asyncio.wait((self._commenting,))
        if ending.body is not None:
            if self._stopped in _CLIENT_IS_THERE:
                media_type, body = self._answer.whole(ending, captured)
                headers = self._answer.headers(captured, units=ending.usage.total_tokens)
                await self._client.respond(200, [("content-type", media_type), *headers], body)
            return
        if not self._client.started:
            if ending.error is not None and self._stopped in _CLIENT_IS_THERE and not self._must_stream:
                raise softened(ending.error, self._payer.session)
            if ending.status != "completed" and not self._must_stream:
                return
        if self._stopped not in _CLIENT_IS_THERE:
            return
        if ending.media_type is not None:
            # Bytes that broke off must not look whole: the connection is closed without their end.
            if ending.status == "completed":
                await self._begin()
                await self._client.send(ending.tail)
                await self._client.end()
            return
        await self._begin()
        await self._client.send(b"".join(self._answer.terminal(ending, captured)))
        await self._client.end()

    @property
    def _answer(self) -> Answer:
        clipped = self._plan.limit if self._limit_clipped and self._plan is not None else None
        payer, serving = self._payer, self._serving
        served, meter = (serving.served, serving.meter) if serving is not None else (None, None)
        return Answer(self.id, self._request, payer.session, payer.receipt, served, clipped, meter)

    # Small things.

    @property
    def _must_stream(self) -> bool:
        """Whether trouble is told as an event: the request opened its channel, and no status may deny that."""
        session = self._payer.session
        return session is not None and session.opened and self._request.stream
