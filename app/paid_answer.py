"""The bytes of one paid answer: its headers, a whole body, a stream's end, and what a replay keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from app.admission import PaidRequest
from app.answer import Headers, Transcript, error_event
from app.ledger.operation import Captured
from app.metering import StreamMeter
from app.money import format_usd
from app.reckoning import Ending, spoken_usage
from app.routing.candidates import Candidate
from app.shapes import Told
from app.upstream.provider import DONE
from app.upstream.sse import frame

if TYPE_CHECKING:
    from app.rails.session import Session


@dataclass(frozen=True, slots=True)
class Answer:
    """What an answer is made of.

    ``limit_clipped`` is the output limit where it is not the caller's; ``receipt`` is a one-shot payment's.
    """

    id: str
    request: PaidRequest
    session: Session | None
    receipt: str | None
    served: Candidate | None
    limit_clipped: int | None
    meter: StreamMeter | None

    def headers(self, captured: Captured | None = None, *, units: int = 0) -> Headers:
        """Before the capture: of a stream's head; after it: of a whole answer, with its cost."""
        headers = [("x-request-id", self.id), ("id", self.id)]
        if self.served is not None:
            headers.append(("x-farebox-provider", self.served.provider.name))
            headers.append(("backend", ", ".join(f"{name}={value}" for name, value in self.backend.items())))
        if captured is not None:
            headers.append(("x-farebox-cost", format_usd(captured.charged)))
        elif self.served is not None and self.request.endpoint.answer == "bytes":
            # Known before the capture: it is of the question alone.
            price = self.served.price.charge(spoken_usage(self.request))
            headers.append(("x-farebox-cost", format_usd(price)))
        if self.limit_clipped is not None:
            headers.append(("x-farebox-max-tokens", str(self.limit_clipped)))
        if self.receipt is not None:
            headers += [("Payment-Receipt", self.receipt), ("cache-control", "private")]
        if self.session is not None:
            view = (captured.channel if captured is not None else None) or self.session.view
            headers.append(("Payment-Receipt", self.session.receipt(view, units=units).to_header()))
            headers.append(("cache-control", "private" if captured is not None else "private, no-cache, no-transform"))
        return headers

    @property
    def backend(self) -> dict[str, str]:
        """What clients are told of where their answer was made."""
        if self.served is None:
            return {}
        provider = self.served.provider
        return {"engine_type": provider.engine_type, "machine_name": provider.machine_name}

    def whole(self, ending: Ending, captured: Captured) -> tuple[str, bytes]:
        """A whole answer's media type and body."""
        told = Told(self.id, self.request.model, ending.usage, captured.charged, self.backend)
        return self.request.shape.whole(ending.body or {}, told)

    def terminal(self, ending: Ending, captured: Captured) -> list[bytes]:
        """The last events of a stream."""
        receipt = self.receipt_events(captured, units=ending.usage.total_tokens)
        shape = self.request.shape
        if ending.error is not None:
            return [error_event(ending.error, shape), *receipt]
        if self.meter is None or ending.status != "completed":
            return receipt
        chunks = self.meter.closing_chunks(ending.usage, captured.charged, shown=self.request.include_usage)
        if shape.rewrites_chunks:
            chunks = [shown for chunk in chunks if (shown := shape.chunk(chunk)) is not None]
        # Before [DONE], after which SDKs read no further.
        return [*map(frame, chunks), *receipt, frame(DONE)]

    def receipt_events(self, captured: Captured | None, *, units: int = 0) -> list[bytes]:
        """A channel's last event, whatever the stream came to: with it the client knows what was spent."""
        if self.session is None:
            return []
        view = (captured.channel if captured is not None else None) or self.session.view
        return [self.session.receipt(view, units=units).to_event()]

    def stored(self, ending: Ending, transcript: Transcript | None) -> Callable[[Captured], bytes | None] | None:
        """Makes the answer that a replay returns, in the commit that charges for it."""
        if transcript is None:
            return None

        def seal(captured: Captured) -> bytes | None:
            headers = self.headers(captured, units=ending.usage.total_tokens)
            if ending.body is not None:
                return transcript.sealed_whole(*self.whole(ending, captured), headers)
            if ending.media_type is not None:
                # Bytes that broke off have no end that says so: nothing of them is given again.
                whole = ending.status == "completed"
                return transcript.sealed_bytes(ending.media_type, ending.tail, headers) if whole else None
            return transcript.sealed_stream(self.terminal(ending, captured), headers)

        return seal
