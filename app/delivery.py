"""Delivering a stream: nothing leaves before a hold pays for it, and nothing is committed per chunk.

A stream's output is covered by windows. The next window is asked for when half of the current one is
used, so that it is usually held before it is needed; each window grows while funds are ample and is
as small as what is left when they are not. What a crash may bill is marked durably before the first
content and with every window.
"""

import asyncio
from collections.abc import Callable
from typing import Protocol

from app.admission import Plan, window_tokens_max
from app.clock import Clock
from app.errors import FareboxError, Overloaded
from app.ledger.account import REVENUE
from app.ledger.journal import Journal
from app.ledger.operation import Deliver, Extend, Extended, Refused, Result, Row
from app.money import PICO_PER_NANO, ZERO, NanoUsd, cost_nano_usd
from app.pricing.price_book import Usage
from app.pricing.quote import TokenRatio
from app.rails.rail import Payer
from app.routing.candidates import Candidate
from app.settings import LedgerSettings
from app.upstream.sse import frame

EVENT_STREAM = "text/event-stream; charset=utf-8"
UNGATED = 2**62
WINDOWS_MAX = 4096
HOLD_LOST = "hold_lost"


class Client(Protocol):
    """The side of a paid request that answers its client."""

    started: bool

    async def respond(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        """A whole answer."""
        ...

    async def begin(self, headers: list[tuple[str, str]], *, media_type: str = EVENT_STREAM) -> None:
        """The head of an answer that goes out while it is made: an event stream, or bytes."""
        ...

    async def send(self, data: bytes) -> None:
        """Part of such an answer; returns when it was handed to the connection."""
        ...

    async def end(self) -> None:
        """Its end."""
        ...


class FundsExhausted(Exception):
    """The held windows are used up and cannot be extended."""

    def __init__(self, refused: Refused) -> None:
        super().__init__(refused.reason)
        self.refused = refused


class Delivery:
    """What one stream has held, delivered and marked."""

    def __init__(
        self,
        *,
        request_id: str,
        payer: Payer,
        model: str,
        plan: Plan,
        held_tokens: int,
        owner_id: str,
        journal: Journal,
        clock: Clock,
        settings: LedgerSettings,
        ratio: TokenRatio,
        keep: Callable[[bytes], None] | None = None,
    ) -> None:
        self._request_id = request_id
        self._payer = payer
        self._plan = plan
        self._owner_id = owner_id
        self._journal = journal
        self._clock = clock
        self._settings = settings
        self._ratio = ratio
        # Called with what was handed to the client, and nothing else: a replay gives no more than that.
        self._keep = keep
        self._condition = payer.condition(model=model, tokens=0)
        self._candidate: Candidate | None = None
        self._held_tokens = held_tokens
        self._window = max(1, held_tokens)
        self._sequence = 0
        self._extension: asyncio.Future[Result] | None = None
        self.delivered_bytes = 0
        self.sending_since_s: float | None = None
        self.last_sent_s = clock.monotonic_s()
        # Spent on the client, not on its provider: on writing to it, and on waiting for its money.
        self.waited_s = 0.0

    @property
    def content_sent(self) -> bool:
        """Whether content has been handed to the client: from here on no other provider may serve."""
        return self._candidate is not None

    @property
    def covered_bytes(self) -> int:
        """Output bytes that the holds pay for: one token a byte, unless the whole limit is held."""
        return UNGATED if self._held_tokens >= self._plan.output_tokens_max else self._held_tokens

    async def deliver(self, client: Client, candidate: Candidate, frames: list[tuple[bytes, int]]) -> None:
        """Send events, each with the output bytes up to its end, as far as holds reach.

        Raises `FundsExhausted` after sending what is covered, and `FareboxError` if the ledger is away.
        """
        if self._candidate is None:
            await self._mark(candidate)
        needed = frames[-1][1]
        while needed > self.covered_bytes:
            refused = await self._extend(needed)
            if refused is not None:
                frames = await self._send_covered(client, frames)
                refused = await self._wait_for_funds(client, refused, needed)
            if refused is not None:
                raise FundsExhausted(refused)
        await self.send(client, b"".join([frame(data) for data, _ in frames]))
        self.delivered_bytes = needed
        if self._extension is None and self.covered_bytes - needed < self._window // 2:
            self._ask(needed)

    async def send(self, client: Client, data: bytes) -> None:
        """Hand bytes to the client; the moment is kept, so that a client that stops reading is noticed."""
        self.sending_since_s = since_s = self._clock.monotonic_s()
        try:
            await client.send(data)
        finally:
            self.sending_since_s = None
            self.last_sent_s = now_s = self._clock.monotonic_s()
            self.waited_s += now_s - since_s
        if self._keep is not None:
            self._keep(data)

    async def say(self, client: Client, data: bytes) -> None:
        """Hand an event of ours to the client: no content, and no part of a replay."""
        self.sending_since_s = self._clock.monotonic_s()
        try:
            await client.send(data)
        finally:
            self.sending_since_s = None
            self.last_sent_s = self._clock.monotonic_s()

    async def settle(self) -> None:
        """Wait for a window that was asked for ahead, so that the capture resolves it too."""
        if self._extension is not None:
            extension, self._extension = self._extension, None
            await asyncio.wait((extension,))
            extension.exception()

    async def _send_covered(self, client: Client, frames: list[tuple[bytes, int]]) -> list[tuple[bytes, int]]:
        """Send what the holds pay for; gives what is left."""
        covered = [(data, end) for data, end in frames if end <= self.covered_bytes]
        if covered:
            await self.send(client, b"".join([frame(data) for data, _ in covered]))
            self.delivered_bytes = covered[-1][1]
        return frames[len(covered) :]

    async def _wait_for_funds(self, client: Client, refused: Refused, needed: int) -> Refused | None:
        """Pause a channel's stream until a voucher pays for more; any other payer's stream is at its end.

        While it waits nothing is read from the provider, whose sending stops at the transport's buffers.
        """
        session = self._payer.session
        if session is None:
            return refused

        async def again() -> Result:
            self._ask(needed)
            return await self._asked()

        async def say(data: bytes) -> None:
            await self.say(client, data)

        wanted, minimum = self._wants(needed)
        since_s = self._clock.monotonic_s()
        try:
            result = await session.wait(
                refused, minimum=self._price(minimum), wanted=self._price(wanted), attempt=again, say=say
            )
        finally:
            self.waited_s += self._clock.monotonic_s() - since_s
        return self._held(result)

    def _held(self, result: Result) -> Refused | None:
        """Count a window that was granted. Raises `Overloaded` where the holds were resolved by somebody else."""
        if isinstance(result, Extended):
            self._window = self._tokens(result.granted)
            self._held_tokens += self._window
            return None
        if isinstance(result, Refused) and result.reason == HOLD_LOST:
            raise Overloaded("this request's hold was resolved while it ran; it is billed up to here", retry_after_s=1)
        return result if isinstance(result, Refused) else Refused("insufficient_balance")

    async def open(self, candidate: Candidate, *, price: NanoUsd) -> None:
        """Mark that an answer of bytes begins: from here on a crash bills all of it. Raises `Overloaded`."""
        await self._mark(candidate, price=price)

    async def _mark(self, candidate: Candidate, *, price: NanoUsd | None = None) -> None:
        self._candidate = candidate
        used, window = (self._used(0), self._window_cost(self._held_tokens)) if price is None else (price, ZERO)
        row = self._row(0, used, window)
        try:
            result = await self._journal.submit(Deliver(self._request_id, self._payer.account_id, row))
        except FareboxError:
            self._candidate = None
            raise
        if isinstance(result, Refused):
            self._candidate = None
            raise Overloaded("this request's hold was resolved while it waited; nothing was charged", retry_after_s=1)

    async def _extend(self, needed: int) -> Refused | None:
        """Make sure of one more window; gives the refusal if there is none to be had."""
        asked_ahead = self._extension is not None
        if not asked_ahead:
            self._ask(needed)
        result = await self._asked()
        if asked_ahead and isinstance(result, Refused) and result.reason != HOLD_LOST:
            # That was the answer when it was asked ahead: funds may have come since.
            self._ask(needed)
            result = await self._asked()
        return self._held(result)

    async def _asked(self) -> Result:
        """The answer to the window that was asked for."""
        extension, self._extension = self._extension, None
        return await extension if extension is not None else Refused("windows")

    def _ask(self, needed: int) -> None:
        """Submit one more window: large if funds allow, and at least what is needed now."""
        if self._plan.output_tokens_max <= self._held_tokens or self._sequence >= WINDOWS_MAX:
            return
        wanted, minimum = self._wants(needed)
        self._sequence += 1
        sequence, used = self._sequence, self._used(self.delivered_bytes)
        self._extension = self._journal.submit(
            Extend(
                request_id=self._request_id,
                sequence=sequence,
                account_id=self._payer.account_id,
                credit_account=REVENUE,
                owner_id=self._owner_id,
                amount=self._price(wanted),
                required=self._price(minimum),
                delivery=lambda granted: self._row(sequence, used, self._window_cost(self._tokens(granted))),
                key=self._condition,
                channel=self._payer.session.running() if self._payer.session is not None else None,
            )
        )

    def _wants(self, needed: int) -> tuple[int, int]:
        """Tokens that the next window should have, and that it must have."""
        remaining = self._plan.output_tokens_max - self._held_tokens
        minimum = min(remaining, max(1, needed - self._held_tokens))
        wanted = min(remaining, window_tokens_max(self._plan.output_price, self._settings))
        return max(minimum, min(wanted, self._window * self._settings.window_growth)), minimum

    def _price(self, tokens: int) -> NanoUsd:
        return cost_nano_usd(((tokens, self._plan.output_price),))

    def _tokens(self, amount: NanoUsd) -> int:
        price = self._plan.output_price
        return amount * PICO_PER_NANO // price if price else self._plan.output_tokens_max

    def _used(self, text_bytes: int) -> NanoUsd:
        """What a crash at this point would have used, by the learned ratio."""
        tokens = min(self._ratio.output_tokens(text_bytes), self._plan.output_tokens_max)
        usage = Usage(self._plan.prompt_tokens_expected, tokens)
        return self._candidate.price.charge(usage) if self._candidate else NanoUsd(0)

    def _window_cost(self, tokens: int) -> NanoUsd:
        """What a window of so many tokens could use, by the learned ratio."""
        return (
            self._candidate.price.charge(Usage(0, self._ratio.output_tokens(tokens))) if self._candidate else NanoUsd(0)
        )

    def _row(self, sequence: int, used: NanoUsd, window: NanoUsd) -> Row:
        candidate = self._candidate
        name, price_id = (candidate.provider.name, candidate.price.id) if candidate else ("", "")
        return (self._request_id, sequence, name, price_id, used, window, self._clock.now_ms())
