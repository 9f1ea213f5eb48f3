"""Serving one request: the attempts, and the way of an answer from a provider to its client.

A request's candidates are tried in their order. The next one is asked only while nothing of an answer was
sent, and never where the one before may have done the work.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from app import log, metrics
from app.admission import PaidRequest, Plan
from app.clock import MS_PER_SECOND, Clock
from app.delivery import Client, Delivery, FundsExhausted
from app.errors import InvariantViolated
from app.ledger.operation import Row
from app.metering import StreamMeter, completion_text_bytes
from app.pricing.price_book import Usage
from app.pricing.quote import CONTEXT_BYTES_PER_TOKEN_MAX, TokenRatio
from app.reckoning import NOTHING, Billed, Ending, answered_usage, delivered_usage, reported_usage, spoken_usage
from app.routing.candidates import Candidate
from app.routing.router import Router
from app.search.backend import SearchBackend
from app.search.loop import SearchingProvider
from app.settings import Settings
from app.upstream.provider import TOO_LARGE, Call, Provider, UpstreamError

PRELUDE_EVENTS_MAX = 64
# No answer within its limit has more text: a token is rarely longer, and a short answer may be of long ones.
TEXT_BYTES_SLACK = 4096
# A client that was waited for so long in all may itself be why its provider gave up.
SLOW_READER_S = 10.0

_log = log.get("serving")


@dataclass(slots=True)
class Upstreams:
    """What serving needs of its process."""

    settings: Settings
    clock: Clock
    router: Router
    search: SearchBackend | None


@dataclass(slots=True)
class Serving:
    """One admitted request at its providers.

    ``begin`` sends the head of an answer that goes out while it is made, and waits for whatever else is being
    written.
    """

    upstreams: Upstreams
    request_id: str
    payer: str
    request: PaidRequest
    candidates: list[Candidate]
    plan: Plan
    delivery: Delivery
    ratio: TokenRatio
    client: Client
    begin: Callable[[], Awaitable[None]]
    started_s: float
    served: Candidate | None = None
    meter: StreamMeter | None = None
    media_type: str | None = None
    first_token_s: float | None = None
    attempts: list[Row] = field(default_factory=list)

    async def serve(self) -> Ending:
        """Try the candidates in order; the first that works serves.

        Raises the last `UpstreamError`, and `NoProviderAvailable` where all have begun to rest since admission.
        """
        serve_one = self._serve_one()
        clock, router = self.upstreams.clock, self.upstreams.router
        failure: UpstreamError | None = None
        for candidate in self.candidates:
            started_s, started_at = clock.monotonic_s(), clock.now_ms()
            result, status = "abandoned", None
            # Only what is answered in parts has a first byte to measure.
            flight = router.begin(candidate, stream=self.request.in_parts, payer=self.payer)
            if flight is None:
                continue
            try:
                ending = await serve_one(candidate, flight.first_byte)
                result, status = "ok", 200
                flight.worked(tokens=ending.usage.completion_tokens, waited_s=self.delivery.waited_s)
                return ending
            except UpstreamError as error:
                result, status, failure = error.result, error.status, error
                flight.failed(error)
                if not error.callers_fault:
                    name = candidate.provider.name
                    _log.warning(
                        "attempt_failed", request_id=self.request_id, provider=name, result=result, status=status
                    )
                if self.delivery.content_sent or not error.fail_over:
                    raise
            except FundsExhausted:
                result, status = "funds_exhausted", 200
                raise
            finally:
                flight.dropped()
                duration_ms = int((clock.monotonic_s() - started_s) * MS_PER_SECOND)
                self._note_attempt(candidate, result, status, started_at=started_at, duration_ms=duration_ms)
        raise failure or router.resting(self.candidates)

    def used(self, *, failed: UpstreamError | None = None, ours: bool = False) -> Usage:
        """What was delivered of an answer that did not end well; nothing if no provider answered.

        ``failed`` is the provider's failure that ended it; ``ours``: it was a failure of this process.
        """
        if self.served is None:
            return NOTHING
        if self.request.endpoint.answer == "bytes":
            return NOTHING if self._spoken_for_nothing(failed, ours=ours) else spoken_usage(self.request)
        if self.meter is None:
            return NOTHING
        return delivered_usage(self.meter, self._billed(self.served), delivered_bytes=self.delivery.delivered_bytes)

    def _spoken_for_nothing(self, failed: UpstreamError | None, *, ours: bool) -> bool:
        """Whether bytes that broke off are not billed; else the question is used up once a provider answers.

        That it broke off is lost to us, but not where our own bound did it, or a client that hardly reads.
        """
        if failed is not None:
            return failed.result != TOO_LARGE and self.delivery.waited_s < SLOW_READER_S
        return ours

    def _serve_one(self) -> Callable[[Candidate, Callable[[], None]], Awaitable[Ending]]:
        if self.request.stream:
            return self._stream_from
        return self._download_from if self.request.endpoint.answer == "bytes" else self._complete_from

    def _note_attempt(
        self, candidate: Candidate, result: str, status: int | None, *, started_at: int, duration_ms: int
    ) -> None:
        number, name = len(self.attempts) + 1, candidate.provider.name
        self.attempts.append(
            (self.request_id, number, name, candidate.upstream_model, result, status, started_at, duration_ms)
        )
        metrics.count_attempt(name, result)

    async def _complete_from(self, candidate: Candidate, first_byte: Callable[[], None]) -> Ending:
        body = await self._provider(candidate).complete(self._call(candidate))
        first_byte()
        self.served, shape = candidate, self.request.shape
        if shape.is_large(body):
            body = await asyncio.to_thread(shape.prepared, body)
        text_bytes = completion_text_bytes(body) if self.request.endpoint.output_tokens else 0
        usage = answered_usage(body, self._billed(candidate), text_bytes=text_bytes)
        choices = body.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        reason = first.get("finish_reason") if isinstance(first, dict) else None
        return Ending("completed", usage, reason if isinstance(reason, str) else None, body=body)

    async def _stream_from(self, candidate: Candidate, first_byte: Callable[[], None]) -> Ending:
        settings = self.upstreams.settings.inference
        meter = StreamMeter(
            model=self.request.model, final_usage=settings.usage_in_final_chunk, endpoint=self.request.endpoint
        )
        async with self._provider(candidate).stream(self._call(candidate)) as events:
            self.meter, self.served = meter, candidate
            try:
                await self._relay(events, meter, candidate, first_byte)
            except UpstreamError:
                if not self.delivery.content_sent:
                    self.meter = self.served = None
                raise
        usage = reported_usage(meter.usage, self._billed(candidate), text_bytes=meter.text_bytes)
        return Ending("completed", usage, meter.finish_reason)

    async def _relay(
        self,
        events: AsyncIterator[list[bytes]],
        meter: StreamMeter,
        candidate: Candidate,
        first_byte: Callable[[], None],
    ) -> None:
        """Events from the provider to the client. What comes before content waits for it, bounded."""
        frames: list[tuple[bytes, int]] = []
        shape, most = self.request.shape, self._text_bytes_max
        async for batch in events:
            failure: UpstreamError | None = None
            for data in batch:
                try:
                    shown = meter.read(data)
                except UpstreamError as error:
                    failure = error
                    break
                if shown is not None and shape.rewrites_chunks:
                    shown = shape.chunk(shown)
                if shown is not None:
                    frames.append((shown, meter.text_bytes))
            if meter.text_bytes > most:
                # Held is the whole limit, and this would go on for nothing.
                raise UpstreamError("overrun", "the provider went on past the output limit", fail_over=False)
            begun = meter.text_bytes or meter.finished or len(frames) > PRELUDE_EVENTS_MAX
            if frames and begun and (failure is None or meter.text_bytes):
                await self._deliver(candidate, frames, first_byte)
                frames = []
            if failure is not None:
                raise failure
            if meter.done:
                return
        if not meter.finished:
            raise UpstreamError("interrupted", "the provider's answer was cut off")

    async def _deliver(
        self, candidate: Candidate, frames: list[tuple[bytes, int]], first_byte: Callable[[], None]
    ) -> None:
        if self.first_token_s is None:
            first_byte()
            self._note_first(candidate)
        await self.begin()
        await self.delivery.deliver(self.client, candidate, frames)

    async def _download_from(self, candidate: Candidate, first_byte: Callable[[], None]) -> Ending:
        """Bytes from the provider to the client; the last block waits for the capture."""
        async with self._provider(candidate).download(self._call(candidate)) as download:
            usage, tail = spoken_usage(self.request), b""
            try:
                async for block in download.blocks:
                    if not tail:
                        first_byte()
                        self._note_first(candidate)
                        self.served, self.media_type = candidate, download.content_type
                    else:
                        if not self.delivery.content_sent:
                            await self.delivery.open(candidate, price=candidate.price.charge(usage))
                        await self.begin()
                        await self.delivery.send(self.client, tail)
                    tail = block
            except UpstreamError:
                if not self.delivery.content_sent:
                    self.served = self.media_type = None
                raise
        if not tail:
            raise UpstreamError("empty", "the provider's answer is empty", status=200)
        return Ending("completed", usage, media_type=download.content_type, tail=tail)

    @property
    def _text_bytes_max(self) -> int:
        """More text than this is no answer within the limit, whatever its tokens are."""
        return TEXT_BYTES_SLACK + self.plan.output_tokens_max * CONTEXT_BYTES_PER_TOKEN_MAX

    def _note_first(self, candidate: Candidate) -> None:
        self.first_token_s = self.upstreams.clock.monotonic_s() - self.started_s
        metrics.observe_first_token(candidate.provider.name, self.first_token_s)

    def _provider(self, candidate: Candidate) -> Provider:
        """The provider, or the loop around it in which the model's searches are run."""
        options, backend = self.request.search, self.upstreams.search
        if options is None:
            return candidate.provider
        if backend is None:
            raise InvariantViolated("a request that searches the web where nothing searches")
        upstreams = self.upstreams
        return SearchingProvider(
            candidate.provider,
            backend,
            options=options,
            settings=upstreams.settings.search,
            clock=upstreams.clock,
            context_window=candidate.model.context,
        )

    def _call(self, candidate: Candidate) -> Call:
        request = self.request
        return Call(
            self.request_id,
            candidate.upstream_model,
            request.body,
            request.stream,
            min(self.plan.limit, candidate.model.output_max),
            request.first_byte_timeout_s or self.upstreams.settings.inference.upstream_timeout_s,
            request.endpoint.name,
            request.upload,
        )

    def _billed(self, candidate: Candidate) -> Billed:
        return Billed(self.request_id, self.request, self.plan, candidate, self.ratio)
