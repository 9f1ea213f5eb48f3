"""One paid request's side of a channel: what it presented, how it waits for vouchers, what it is told.

The channel's money is the ledger's like any account's. What is here is only what a payer by channel has
and a payer by key has not.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from app.chain.backend import Offer
from app.channels.channel import ChannelView
from app.clock import Clock, EpochMs, to_datetime
from app.errors import FareboxError, PaymentGone, PaymentProblem
from app.ledger.operation import ChannelCondition, Refused, Result
from app.money import BaseUnits, NanoUsd, base_units_down, format_usd, nano_usd_of
from app.mpp.descriptor import Descriptor
from app.mpp.session import SessionReceipt, need_voucher_event
from app.rails.pauses import Pauses, Waiter
from app.upstream.sse import comment

Say = Callable[[bytes], Awaitable[None]]
# Makes a 402 with a challenge that continues the session: its message, problem type and required cumulative.
Problem = Callable[["Session", str, str, BaseUnits | None], PaymentProblem]


@dataclass(slots=True)
class Session:
    """A request that a channel pays for."""

    channel_id: str
    offer: Offer
    descriptor: Descriptor
    challenge_id: str
    expires_at: EpochMs
    # What the voucher that came with the request covers, and how the channel stood when it was taken.
    presented: NanoUsd
    view: ChannelView
    # The request opened its channel: from here on it is never answered as if nothing had been paid.
    opened: bool
    price_ids: tuple[str, ...]
    suggested_deposit: NanoUsd
    exposure_max: NanoUsd
    pauses: Pauses
    clock: Clock
    voucher_timeout_s: float
    # The largest window in USD on an escrow whose close pays whole vouchers; None elsewhere.
    window_cost_max: str | None
    problem: Problem = field(repr=False)
    # Makes the 410 of a channel that serves no more.
    gone: Callable[[str], PaymentGone] = field(repr=False)
    silence_comment_s: float = 10.0
    # The least that a voucher must add.
    least: BaseUnits = BaseUnits(1)
    client_gone: bool = False
    # What 402s for this request say was accepted; None: what was.
    shown_accepted: BaseUnits | None = None

    def proven(self, view: ChannelView | None) -> bool:
        """Whether what was presented can only be the payer's: the chain never published one so high."""
        return view is not None and view.proves(base_units_down(self.presented))

    def give_up(self) -> None:
        """The client is gone: what waits for its voucher steps out of the line."""
        self.client_gone = True
        self.pauses.wake_all(self.channel_id)

    def condition(self) -> ChannelCondition:
        """What the request's first hold needs: rule 1, and the claim of its challenge."""
        return ChannelCondition(self.channel_id, self.presented, self.exposure_max, self.challenge_id, self.expires_at)

    def running(self) -> ChannelCondition:
        """What each further hold of the same request needs."""
        return ChannelCondition(self.channel_id, self.presented, self.exposure_max)

    @property
    def buyable(self) -> NanoUsd:
        """The most that this request can be paid for: the deposit, and one more where clients add it."""
        left = NanoUsd(nano_usd_of(self.view.deposit) - self.view.spent - self.view.held)
        return NanoUsd(left + self.suggested_deposit if self.offer.tops_up else left)

    def receipt(self, view: ChannelView, *, units: int, tx_hash: str | None = None) -> SessionReceipt:
        """What the payer is told. On v1 clients close at what receipts say was accepted: that is spent there."""
        spent = view.spent_cumulative
        accepted = spent if self.offer.protocol == "v1" else view.accepted_cumulative
        at = to_datetime(self.clock.now_ms())
        return SessionReceipt(
            self.offer.method, self.challenge_id, self.channel_id, accepted, spent, units, at, tx_hash
        )

    def refusal(self, refused: Refused) -> PaymentProblem:
        """What a refused hold means to a request that does not wait."""
        view = self.view = refused.channel or self.view
        match refused.reason:
            case "insufficient_balance":
                required = max(
                    view.required_cumulative(wanted=refused.required), BaseUnits(view.accepted_cumulative + self.least)
                )
                message = (
                    f"the request needs up to {format_usd(refused.required)} USD on this channel: "
                    f"sign a voucher of {required} in all"
                )
                return self.problem(self, message, "session/insufficient-balance", required)
            case "challenge_used":
                return self.problem(
                    self, "this challenge bought content already; ask for another", "session/challenge-not-found", None
                )
            case "exposure":
                waiting = (
                    "too much of this channel is not settled yet; try again in a moment, "
                    "or close this channel and open another"
                )
                return self.problem(self, waiting, "session/insufficient-balance", None)
            case _:
                what = "is closed" if refused.reason == "channel_finalized" else "is closing"
                return self.gone(f"the channel {what}")

    def kept(self, error: FareboxError) -> PaymentProblem:
        """What went wrong after a channel was opened: its client must not take it for lost."""
        return self.problem(
            self, f"the channel is open and nothing was charged, but: {error.message}", "payment-required", None
        )

    async def wait(
        self,
        refused: Refused,
        *,
        minimum: NanoUsd,
        wanted: NanoUsd,
        attempt: Callable[[], Awaitable[Result]],
        say: Say,
    ) -> Result:
        """Pause until ``attempt`` holds funds, or time is up; gives its last result.

        ``wanted`` is asked for as far as the deposit goes, and never less than ``minimum``.
        """
        waiter = self.pauses.join(self.channel_id, wanted=wanted)
        said: tuple[BaseUnits, BaseUnits, BaseUnits] | None = None
        ends_s = self.clock.monotonic_s() + self.voucher_timeout_s
        try:
            while True:
                view = refused.channel
                if view is None or refused.reason not in {"insufficient_balance", "exposure"}:
                    return refused
                if view.accepted != self.view.accepted:
                    ends_s = self.clock.monotonic_s() + self.voucher_timeout_s
                self.view = view
                if refused.reason == "insufficient_balance":
                    event = self._asks(view, waiter, minimum=minimum)
                    if event is None:
                        return refused
                    if event != said:
                        said = event
                        required, accepted, deposit = event
                        self.pauses.ask(self.channel_id, required)
                        await say(
                            need_voucher_event(self.channel_id, required=required, accepted=accepted, deposit=deposit)
                        )
                if not await self._woken(waiter, ends_s, say=say) or self.client_gone:
                    return refused
                # A voucher that arrived while this request waited was presented for it.
                self.presented = NanoUsd(2**62)
                result = await attempt()
                if not isinstance(result, Refused):
                    return result
                refused = result
        finally:
            self.pauses.leave(self.channel_id, waiter)

    def _asks(
        self, view: ChannelView, waiter: Waiter, *, minimum: NanoUsd
    ) -> tuple[BaseUnits, BaseUnits, BaseUnits] | None:
        """What to ask for: (required, accepted, deposit); None where no voucher could help."""
        before = NanoUsd(self.pauses.wanted(self.channel_id, waiter) - waiter.wanted)
        required = view.required_cumulative(wanted=NanoUsd(before + waiter.wanted))
        least = view.required_cumulative(wanted=minimum)
        if required > view.deposit >= least:
            # What fits into the deposit needs no top-up.
            required = view.deposit
        elif required > view.deposit and not self.offer.tops_up:
            return None
        # Asking for what was accepted already would be answered by nobody, and for hardly more be refused.
        required = max(required, BaseUnits(view.accepted_cumulative + self.least))
        if required > view.deposit > view.accepted_cumulative and least <= view.deposit:
            required = view.deposit
        if required > view.deposit and not self.offer.tops_up:
            return None
        return required, view.accepted_cumulative, view.deposit

    async def _woken(self, waiter: Waiter, ends_s: float, *, say: Say) -> bool:
        """Whether something changed before time was up; the silence is broken by comments."""
        while (left_s := ends_s - self.clock.monotonic_s()) > 0:
            try:
                async with asyncio.timeout(min(left_s, self.silence_comment_s)):
                    await waiter.woken.wait()
            except TimeoutError:
                await say(comment(b"farebox"))
                continue
            waiter.woken.clear()
            return True
        return False

    def released(self) -> None:
        """Funds may have come free: whoever waits looks again."""
        self.pauses.wake(self.channel_id)
