"""The way of a paid request: asked unpaid, answered with a voucher, kept going while it streams. As flows.

    request ─► 402 ─► offer that is trusted ─► channel (found, or opened) ─► voucher ─► the same request, paid
    stream: payment-need-voucher ─► top-up if the deposit is short ─► voucher on another connection

Every request asks unpaid first, also with a channel and a price in hand: a challenge binds the body's digest.
A voucher never says less than an earlier one, and never more than what was asked for.

Source: `draft-tempo-session-00`, "Session Flow", "Per-Request Processing" and "Voucher Submission Transport".
"""

import json
from typing import Any

import httpx

from farebox_client.challenge import Offer, read_offers
from farebox_client.channel import Channel
from farebox_client.channels import Channels, Claim
from farebox_client.errors import ChannelUnavailable, NotTrusted, PaymentError, PaymentRefused, ServerMisbehaved
from farebox_client.flow import Flow, drop, pause, read, send, work
from farebox_client.payment import (
    DELTA_TOO_SMALL,
    EXCEEDS_DEPOSIT,
    FATAL,
    FINAL,
    FINALIZED,
    GONE,
    INSUFFICIENT,
    REQUIRED,
    Payment,
    Problem,
    read_problem,
    request_of,
    retry_after,
)
from farebox_client.receipt import (
    Receipt,
    check_statement,
    read_need_voucher,
    read_receipt,
    read_receipt_header,
)
from farebox_client.sse import NEED_VOUCHER, PaymentEvent
from farebox_client.wallet import Wallet

ROUNDS_MAX = 8
ATTEMPTS_MAX = 5
RETRY_S = 0.2
CLOSING_POLLS_MAX = 20
CLOSING_POLL_S = 0.5
# A stream that asks for the same voucher again and again, and delivers nothing between.
REPEATS_MAX = 16
STUCK_MAX = 2


class Session:
    """Pays requests from one wallet. Every method that is a flow may raise `PaymentError` and `httpx.HTTPError`."""

    def __init__(self, wallet: Wallet) -> None:
        self.wallet = wallet
        self.channels = Channels(wallet)

    # A request.

    def pay(self, payment: Payment) -> Flow[httpx.Response]:
        """Send a request and pay for it: the response, its body unread, is the caller's.

        A 402 without a session challenge is returned as it is.
        """
        known = yield from work(lambda: self.wallet.store.current(payer=self.wallet.address, origin=payment.origin))
        session = known[0].channel_id if known else None
        response = yield from send(request_of(self.wallet, payment, session=session))
        for _ in range(ROUNDS_MAX):
            offers = read_offers(response.headers.get_list("www-authenticate")) if response.status_code == 402 else []
            if not offers and not (response.status_code == 410 and payment.channel is not None):
                yield from self._accept(payment, response)
                return response
            problem = read_problem(response.status_code, (yield from read(response)))
            response = yield from self._round(payment, offers, problem)
        if response.status_code in {402, 410}:
            raise read_problem(response.status_code, (yield from read(response))).error()
        yield from self._accept(payment, response)
        return response

    def _round(self, payment: Payment, offers: list[Offer], problem: Problem) -> Flow[httpx.Response]:
        """Answer one refusal with the next credential."""
        channel = payment.channel
        if channel is not None and (problem.status == 410 or problem.type in GONE):
            return (yield from self._gone(payment, channel, problem))
        if channel is not None and problem.type in FATAL:
            raise problem.error()
        offer = self._choose(payment, offers)
        if channel is None or not offer.serves(channel.parts):
            return (yield from self._first(payment, offer))
        if channel.opening:
            channel = yield from self._opened(channel, offer, problem)
        channel = yield from self._learn(channel, offer)
        required = offer.snapshot.required if offer.snapshot is not None else problem.required
        if not required and problem.type != REQUIRED:
            required = payment.presented + (problem.top_up or offer.amount)
        # A challenge asks for one base unit where it asks for nothing in particular.
        payment.stuck = 0 if required > payment.presented + 1 else payment.stuck + 1
        if payment.stuck > STUCK_MAX or (payment.stuck and problem.type == REQUIRED):
            # A better voucher is not what the server wants.
            raise problem.error()
        if payment.stuck == STUCK_MAX and problem.type == INSUFFICIENT:
            # Nor is it a voucher alone that is short: it is the deposit behind it.
            payment.channel = channel
            channel = yield from self.top_up(payment, needed=channel.deposit + 1)
        if problem.type == EXCEEDS_DEPOSIT:
            channel = yield from self.channels.refresh(channel)
        return (yield from self._present(payment, offer, channel, at_least=max(required, payment.presented)))

    def _choose(self, payment: Payment, offers: list[Offer]) -> Offer:
        """The server's first offer that is trusted; one that the channel in use can answer comes before.

        Raises `NotTrusted` or `LimitReached` as the first offer does, if none will do.
        """
        refused: PaymentError | None = None
        if payment.channel is not None:
            parts = payment.channel.parts
            offers = sorted(offers, key=lambda each: not each.serves(parts))
        for offer in offers:
            try:
                self.wallet.trust.check(offer, origin=payment.origin, pin=self.wallet.store.pin)
                self._check_price(payment, offer)
            except PaymentError as error:
                refused = refused or error
                continue
            payment.offer = offer
            return offer
        raise refused or NotTrusted(f"{payment.origin} offers no way to pay")

    def _check_price(self, payment: Payment, offer: Offer) -> None:
        self.wallet.limits.check_prices(offer.description)
        first = payment.prices.setdefault(offer.kind, offer.description)
        if offer.description != first:
            raise ServerMisbehaved(
                f"{payment.origin} changed its prices while the request was being paid: {first!r} became "
                f"{offer.description!r}"
            )

    def _first(self, payment: Payment, offer: Offer) -> Flow[httpx.Response]:
        """Answer the first challenge: with the channel there is, or a new one. One process at a time decides."""
        claim = self.channels.opening_claim(offer, payment.origin)
        channel = yield from self._find(payment, offer)
        if channel is not None and channel.status == "open":
            return (yield from self._resume(payment, offer, channel))
        yield from claim.take()
        with claim.released():
            channel = yield from self._find(payment, offer)
            if channel is not None and channel.status == "opening":
                channel = yield from self.channels.refresh(channel)
            if channel is None or channel.status in {"failed", "closed"}:
                return (yield from self._open(payment, offer))
        if channel.status == "leaving":
            raise ChannelUnavailable(
                f"a close of channel {channel.channel_id} was requested on chain: withdraw it, or add to its deposit "
                "to go on using it (farebox-client withdraw, farebox-client top-up)"
            )
        return (yield from self._resume(payment, offer, channel))

    def _find(self, payment: Payment, offer: Offer) -> Flow[Channel | None]:
        store, payer = self.wallet.store, self.wallet.address
        found = yield from work(lambda: store.current(payer=payer, origin=payment.origin))
        return next((channel for channel in found if offer.serves(channel.parts)), None)

    def _open(self, payment: Payment, offer: Offer) -> Flow[httpx.Response]:
        channel, payload = yield from self.channels.open(payment.bill, offer, origin=payment.origin, url=payment.url)
        payment.channel, payment.presented = channel, channel.signed
        # The claim is held until the server has answered: another request would find a channel that opens.
        response = yield from send(request_of(self.wallet, payment, offer=offer, payload=payload))
        if response.status_code < 400:
            name = channel.channel_id
            payment.channel = yield from work(lambda: self.wallet.store.note(name))
        return response

    def _resume(self, payment: Payment, offer: Offer, channel: Channel) -> Flow[httpx.Response]:
        channel = yield from self._learn(channel, offer)
        required = offer.snapshot.required if offer.snapshot is not None else 0
        at_least = max(channel.signed, channel.spent + offer.amount, required)
        return (yield from self._present(payment, offer, channel, at_least=at_least))

    def _present(self, payment: Payment, offer: Offer, channel: Channel, *, at_least: int) -> Flow[httpx.Response]:
        """The request with a voucher of ``at_least`` base units in all."""
        name, payment.channel = channel.channel_id, channel
        if channel.accepted < at_least < channel.accepted + offer.min_voucher_delta:
            at_least = min(channel.accepted + offer.min_voucher_delta, channel.deposit)
        if at_least > channel.deposit:
            channel = yield from self.top_up(payment, needed=at_least)
        channel = yield from self.channels.sign(payment.bill, channel, at_least=at_least)
        yield from work(lambda: self.wallet.store.set_challenge(name, challenge=offer.header, url=payment.url))
        # What was signed for another request of the channel is shown too: a lower voucher may be refused.
        payment.channel, payment.presented = channel, channel.signed
        payload = self.channels.voucher(channel, cumulative=channel.signed, action="voucher")
        return (yield from send(request_of(self.wallet, payment, offer=offer, payload=payload)))

    def _opened(self, channel: Channel, offer: Offer, problem: Problem) -> Flow[Channel]:
        """A channel whose open was answered with another challenge, which says whether the server knows it now.

        If not, it stays written down with what opened it: the next request finds out what became of it.
        """
        name = channel.channel_id
        if name not in {offer.channel_id, offer.snapshot.channel_id if offer.snapshot else None}:
            raise problem.error()
        return (yield from work(lambda: self.wallet.store.note(name)))

    def _learn(self, channel: Channel, offer: Offer) -> Flow[Channel]:
        """What a snapshot says of the channel, after it was held against what was signed."""
        snapshot = offer.snapshot
        if snapshot is None or snapshot.channel_id != channel.channel_id:
            return channel
        store, name = self.wallet.store, channel.channel_id
        # Another request may have signed more since.
        channel = yield from work(lambda: store.get(name))
        check_statement(channel, channel_id=snapshot.channel_id, accepted=snapshot.accepted, spent=snapshot.spent)
        return (yield from work(lambda: store.note(name, accepted=snapshot.accepted, spent=snapshot.spent)))

    def _gone(self, payment: Payment, channel: Channel, problem: Problem) -> Flow[httpx.Response]:
        """The server knows nothing of the channel: the chain decides whether that is so."""
        found = yield from self.channels.refresh(channel)
        for _ in range(CLOSING_POLLS_MAX if problem.type == FINALIZED else 0):
            if found.status == "closed":
                break
            # Another process closes it, and the transaction is on its way.
            yield from pause(CLOSING_POLL_S)
            found = yield from self.channels.refresh(channel)
        if found.status == "closed":
            payment.channel, payment.presented = None, 0
            return (yield from send(request_of(self.wallet, payment)))
        if found.opening and payment.offer is not None:
            # The transaction was mined, and the server did not learn of it: the same open tells it.
            payment.channel, payment.presented = found, found.signed
            payload = json.loads(found.opening)
            payment.presented = int(payload["cumulativeAmount"])
            return (yield from send(request_of(self.wallet, payment, offer=payment.offer, payload=payload)))
        raise ChannelUnavailable(
            f"{payment.origin} does not serve channel {channel.channel_id} any more ({problem.text}), but the chain "
            f"still holds its deposit. Get it back with: farebox-client withdraw {channel.channel_id}"
        )

    # What comes back.

    def _accept(self, payment: Payment, response: httpx.Response) -> Flow[None]:
        text = response.headers.get("payment-receipt")
        if text is None or payment.channel is None:
            return
        try:
            yield from self.keep_receipt(payment, read_receipt_header(text))
        except PaymentError:
            # Nobody else will give the connection back.
            yield from drop(response)
            raise

    def keep_receipt(self, payment: Payment, receipt: Receipt) -> Flow[Receipt]:
        """Check a receipt and keep it. Raises `ServerMisbehaved`."""
        channel = payment.channel
        if channel is None:
            raise ServerMisbehaved("the server sent a receipt for a request that was not paid")
        store, name = self.wallet.store, channel.channel_id
        # Another stream may have signed more since.
        channel = yield from work(lambda: store.get(name))
        check_statement(channel, channel_id=receipt.channel_id, accepted=receipt.accepted, spent=receipt.spent)
        payment.channel = yield from work(lambda: store.note(name, accepted=receipt.accepted, spent=receipt.spent))
        if self.wallet.on_receipt is not None:
            self.wallet.on_receipt(receipt)
        return receipt

    def on_event(self, payment: Payment, event: PaymentEvent) -> Flow[None]:
        """Do what a payment event in a stream asks for."""
        if event.name == NEED_VOUCHER:
            yield from self._need_voucher(payment, event.data)
        else:
            yield from self.keep_receipt(payment, read_receipt(event.data))

    def _need_voucher(self, payment: Payment, members: dict[str, Any]) -> Flow[None]:
        need, channel, offer = read_need_voucher(members), payment.channel, payment.offer
        if channel is None or offer is None:
            raise ServerMisbehaved("the server asks for a voucher in a stream that was not paid")
        name = channel.channel_id
        channel = yield from work(lambda: self.wallet.store.get(name))
        check_statement(channel, channel_id=need.channel_id, accepted=need.accepted, spent=0)
        payment.repeats = payment.repeats + 1 if need.required <= payment.delivered else 0
        if payment.repeats > REPEATS_MAX:
            raise ServerMisbehaved("the server asks again and again for a voucher that it has")
        required = need.required
        if channel.accepted < required < channel.accepted + offer.min_voucher_delta:
            required = min(channel.accepted + offer.min_voucher_delta, max(required, channel.deposit))
        payment.channel = channel
        if required > channel.deposit:
            channel = yield from self.top_up(payment, needed=required)
        payment.channel = yield from self.channels.sign(payment.bill, channel, at_least=required)
        yield from self._deliver(payment, name)

    def _deliver(self, payment: Payment, name: str) -> Flow[None]:
        """Show the highest voucher; a higher one that another stream signed may have come first."""
        shown = 0
        while True:
            channel = yield from work(lambda: self.wallet.store.get(name))
            payload = self.channels.voucher(channel, cumulative=channel.signed, action="voucher")
            try:
                yield from self.manage(payment, payload)
            except PaymentRefused as error:
                if error.problem_type != DELTA_TOO_SMALL or channel.signed <= shown:
                    raise
                shown = channel.signed
                continue
            payment.delivered = max(payment.delivered, channel.signed)
            return

    # Requests without a body.

    def top_up(self, payment: Payment, *, needed: int) -> Flow[Channel]:
        """Add to the deposit until it covers ``needed`` base units. One process at a time does."""
        channel, offer = payment.channel, payment.offer
        if channel is None or offer is None:
            raise ChannelUnavailable("there is no channel to add to")
        name = channel.channel_id
        # Refused before the chain is asked: an absurd amount is the server's to explain.
        self.channels.top_up_amount(offer, channel, needed=needed)
        self.wallet.limits.check_voucher(added=payment.bill.added + needed - channel.signed, today=0)
        claim = Claim(self.wallet.store, f"top-up|{name}")
        yield from claim.take()
        with claim.released():
            channel = yield from self.channels.refresh(channel)
            if needed <= channel.deposit and channel.status == "open":
                return channel
            amount = self.channels.top_up_amount(offer, channel, needed=needed)
            payment.channel = channel
            payload = yield from self.channels.funding(offer, channel, amount)
            yield from self.manage(payment, payload)
            channel = yield from self.channels.refresh(channel)
        if channel.deposit < needed:
            raise ServerMisbehaved(f"the server took a top-up of channel {name}, but the chain does not show it")
        payment.channel = channel
        return channel

    def manage(self, payment: Payment, payload: dict[str, Any]) -> Flow[Receipt | None]:
        """Send a credential without a body, on a connection of its own. Doing it twice changes nothing.

        Tried again after a lost connection, with a fresh challenge where the first has expired, and later
        where the server says so.
        """
        failure: Exception | None = None
        wait = RETRY_S
        for attempt in range(ATTEMPTS_MAX):
            if attempt:
                yield from pause(wait)
            if payment.offer is None:
                raise ChannelUnavailable("there is no challenge to answer")
            try:
                response = yield from send(
                    request_of(self.wallet, payment, offer=payment.offer, payload=payload, manage=True)
                )
                content = yield from read(response)
            except httpx.TransportError as error:
                failure = error
                continue
            if response.is_success:
                text = response.headers.get("payment-receipt")
                return (yield from self.keep_receipt(payment, read_receipt_header(text))) if text else None
            problem = read_problem(response.status_code, content)
            failure = problem.error()
            wait = retry_after(response) or RETRY_S * (attempt + 1)
            if problem.type in FINAL or problem.status not in {402, 429, 502, 503}:
                raise failure
            if problem.status == 402:
                self._renew(payment, response)
        raise failure or ChannelUnavailable("the server did not answer")

    def _renew(self, payment: Payment, response: httpx.Response) -> None:
        """Go on with a fresh challenge of the same channel, if there is one."""
        channel = payment.channel
        for offer in read_offers(response.headers.get_list("www-authenticate")):
            if channel is not None and offer.serves(channel.parts):
                payment.offer = offer
                return
