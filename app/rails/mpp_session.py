"""The session rail: ``Authorization: Payment`` with a channel's credential, for content or to manage it.

    form -> challenge (ours, in time, this body, this route) -> channel -> signature -> voucher persisted

What a voucher credits, what a request may hold and what a close captures are decided by the ledger. A
request that opened a channel is never refused as if nothing had been paid.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from mpp import BodyDigest, Credential

from app import log, metrics
from app.chain.backend import ChannelBackend, Offer
from app.channels.channel import ChannelView
from app.channels.store import ChannelRecord, ChannelStore
from app.clock import Clock, EpochMs
from app.errors import InvariantViolated, Overloaded, PaymentGone, PaymentProblem, PaymentTooFast
from app.ledger.account import channel_account
from app.ledger.journal import Journal
from app.ledger.operation import AcceptVoucher, Changed, Freeze, Refused
from app.money import BaseUnits, NanoUsd, base_units_down, base_units_up, nano_usd_of, parse_usd
from app.mpp.challenge import Opaque, decoded, expiry_of
from app.mpp.descriptor import Descriptor
from app.mpp.session import PayloadMalformed, SessionPayload, SessionReceipt, parse_payload
from app.mpp.voucher import SignatureInvalid, Voucher, signer_of
from app.rails.chain_work import ChainWork
from app.rails.challenger import Ask, Challenger, Known
from app.rails.credential import malformed
from app.rails.funding import Funder
from app.rails.pauses import Pauses
from app.rails.rail import Payer
from app.rails.session import Session
from app.rails.voucher_rate import VoucherRate
from app.settings import MppSettings

KNOWN_MAX = 65_536
# Service pauses where what is unsettled and held would exceed so many times what is settled at: holds are bounds,
# several times what they come to.
EXPOSURE_FACTOR = 10
BELOW_ACCEPTED = "below-accepted"

_log = log.get("mpp_session")


@dataclass(frozen=True, slots=True)
class Managed:
    """The answer to a management action: a receipt, and no content.

    ``proven`` says that the credential's voucher can only be the payer's.
    """

    receipt: SessionReceipt
    proven: bool = False


@dataclass(slots=True)
class _Found:
    """A channel and where it lives, which never changes; ``highest`` is what this process saw accepted."""

    backend: ChannelBackend
    descriptor: Descriptor
    highest: int = 0


@dataclass(frozen=True, slots=True)
class _Checked:
    """A credential whose challenge is ours."""

    payload: SessionPayload
    offer: Offer
    opaque: Opaque
    challenge_id: str
    expires_at: EpochMs
    source: str | None


class SessionRail:
    """Sessions on every kind of channel that is offered."""

    def __init__(
        self,
        *,
        challenger: Challenger,
        backends: Sequence[ChannelBackend],
        store: ChannelStore,
        journal: Journal,
        settings: MppSettings,
        clock: Clock,
        pauses: Pauses,
        funder: Funder,
        chain: ChainWork,
        silence_comment_s: float,
    ) -> None:
        self.challenger = challenger
        self.settings = settings
        self.pauses = pauses
        self._backends = {backend.offer: backend for backend in backends}
        self._store = store
        self._journal = journal
        self._clock = clock
        self._funder = funder
        self._chain = chain
        self._silence_comment_s = silence_comment_s
        self._rate = VoucherRate(clock, per_second=settings.vouchers_per_second)
        self._known: OrderedDict[str, _Found] = OrderedDict()
        self._min_delta = base_units_up(parse_usd(settings.min_voucher_delta))
        self._suggested = parse_usd(settings.suggested_deposit)
        self._exposure_max = NanoUsd(parse_usd(settings.exposure_max) * EXPOSURE_FACTOR)
        self.chains_were_seen = False
        # Set by the composition root: ends the streams of a channel that stopped.
        self.on_stopped: Callable[[str], None] = lambda _channel_id: None

    # What the edge calls.

    def sees_every_chain(self) -> bool:
        """Whether service on every kind of channel goes on; remembered once it was so."""
        seen = all(self._chain.lag_of(each) <= self.settings.chain_lag_max_s for each in self._backends.values())
        self.chains_were_seen = self.chains_were_seen or seen
        return seen

    async def required(self, ask: Ask, *, session_header: str | None) -> PaymentProblem:
        """The 402 of a request without a credential; with the channel that the client says it has."""
        if all(self._chain.lag_of(each) > self.settings.chain_lag_max_s for each in self._backends.values()):
            raise Overloaded("payments from wallets are paused, because no chain can be seen", retry_after_s=30)
        known = None
        if session_header is not None and len(session_header) <= 80:
            found = await self._found(session_header.strip().lower())
            if found is not None and found.backend.offer.protocol == "v2":
                record = await asyncio.to_thread(self._store.find, session_header.strip().lower())
                if record is not None and record.view.status == "open" and not record.view.close_requested_at:
                    known = Known(record.id, found.backend.offer, record.descriptor, record.view)
        return self.challenger.problem("payment is required: open a channel or sign a voucher", ask, known=known)

    async def authenticate(self, credential: Credential, ask: Ask) -> Payer:
        """The payer of a content request. Raises `PaymentProblem`.

        The voucher is durable when this returns. A voucher below the highest is let through: whether it
        covers the request is decided with the hold.
        """
        checked = self._check(credential, ask)
        self._must_see_chain(self._backends[checked.offer], ask)
        payload = checked.payload
        opened = payload.action == "open"
        found = await self._opened(checked, ask) if opened else await self._existing(payload, checked, ask)
        voucher = payload.voucher
        if voucher is None:
            raise InvariantViolated("a content credential without a voucher")
        self._verify(found, voucher, checked, ask)
        result = await self._accept(voucher, must=opened)
        if isinstance(result, Refused):
            result = await self._after_refusal(result, found, voucher)
        if isinstance(result, Refused) and (result.reason != BELOW_ACCEPTED or result.channel is None):
            raise await self._refused(result, found, voucher, ask)
        view = result.channel
        if view is None:
            raise InvariantViolated("a voucher's answer without its channel")
        payer = self._payer(checked, found, view, presented=voucher.cumulative_amount, ask=ask, opened=opened)
        if payer.session is not None and isinstance(result, Changed) and not opened:
            payer.session.shown_accepted = base_units_down(result.accepted_before)
        return payer

    async def manage(self, credential: Credential, ask: Ask) -> Managed:
        """``open``, ``voucher``, ``topUp`` or ``close`` without content: never charged, never sent to a provider."""
        checked = self._check(credential, ask)
        match checked.payload.action:
            case "open":
                found = await self._opened(checked, ask)
                view = await self._take(checked, found, ask)
            case "voucher":
                found = await self._existing(checked.payload, checked, ask)
                view = await self._take(checked, found, ask)
            case "topUp":
                found = await self._existing(checked.payload, checked, ask)
                view = await self._funder.top_up(
                    checked.payload, found.backend, found.descriptor, ask, source=checked.source
                )
                self.pauses.wake(checked.payload.channel_id)
            case "close":
                return await self._close(checked, ask)
        voucher = checked.payload.voucher
        proven = voucher is not None and view.proves(BaseUnits(voucher.cumulative_amount))
        return Managed(self._receipt(checked, found, view), proven)

    def changed(self, channel_id: str, stopped: bool) -> None:
        """A channel changed on the chain or in another process."""
        if stopped:
            self.stopped(channel_id)
        else:
            self.pauses.wake(channel_id)

    def missed(self) -> None:
        """Nobody knows what changed: whoever waits looks again."""
        self.pauses.wake_everyone()

    def stopped(self, channel_id: str) -> None:
        """A channel serves nothing new: what streams on it ends, and what waits learns why."""
        self.pauses.wake_all(channel_id)
        self.on_stopped(channel_id)

    # The challenge.

    def _check(self, credential: Credential, ask: Ask) -> _Checked:
        try:
            payload = parse_payload(credential.payload)
        except PayloadMalformed as error:
            raise malformed(str(error)) from error
        echo = credential.challenge
        content = ask.content is not None
        if not self.challenger.challenges.is_ours(echo):
            raise self._challenge_problem("the challenge was not made here, or was changed", ask)
        request, opaque = decoded(echo.request), Opaque.parse(echo.opaque)
        offer = self.challenger.offer_of(echo, request) if echo.intent == "session" else None
        if offer is None:
            raise self._challenge_problem("what the challenge offered is not offered any more", ask)
        expires_at = expiry_of(echo)
        waived = not content and offer.protocol == "v1" and offer.method == "tempo"
        if expires_at is None or (expires_at <= self._clock.now_ms() and not waived):
            raise self._challenge_problem("the challenge has expired", ask)
        if content and ask.content is not None:
            if echo.digest is None:
                raise self._challenge_problem("the challenge was for no body: it buys no content", ask)
            if not BodyDigest.verify(echo.digest, ask.content):
                raise self._challenge_problem("the challenge was for another body", ask)
            if opaque.route != ask.route:
                raise self._challenge_problem("the challenge was for another route", ask)
            if payload.action not in {"open", "voucher"}:
                raise malformed(f"{payload.action} is sent without a body")
        return _Checked(payload, offer, opaque, echo.id, expires_at, credential.source)

    def _challenge_problem(self, message: str, ask: Ask) -> PaymentProblem:
        return self.challenger.problem(message, ask, slug="session/challenge-not-found")

    def _must_see_chain(self, backend: ChannelBackend, ask: Ask) -> None:
        """Rule 5: no service on channels while nobody knows what the chain says of them."""
        if self._chain.lag_of(backend) > self.settings.chain_lag_max_s:
            metrics.refusals.labels("chain_lag").inc()
            raise self.challenger.problem(
                "payments on this chain are paused, because it cannot be seen; try again", ask, retry_after_s=30
            )

    # The channel.

    async def _found(self, channel_id: str) -> _Found | None:
        found = self._known.get(channel_id)
        if found is None:
            record = await asyncio.to_thread(self._store.find, channel_id)
            # One of a kind that is not served any more is as good as unknown: its payer may open another.
            with suppress(PaymentProblem):
                found = self._remember(record) if record is not None else None
        return found

    def _remember(self, record: ChannelRecord) -> _Found:
        for offer, backend in self._backends.items():
            descriptor = record.descriptor
            if (offer.backend, offer.chain_id, offer.escrow) == (record.backend, record.chain_id, record.escrow) and (
                offer.currency,
                offer.recipient,
            ) == (descriptor.token, descriptor.payee):
                found = self._known[record.id] = _Found(backend, descriptor, record.view.accepted_cumulative)
                if len(self._known) > KNOWN_MAX:
                    self._known.popitem(last=False)
                return found
        raise PaymentProblem("this kind of channel is not served here any more", slug="session/channel-not-found")

    async def _existing(self, payload: SessionPayload, checked: _Checked, ask: Ask) -> _Found:
        found = await self._found(payload.channel_id)
        if found is None:
            raise self._gone("no such channel is known here", "session/channel-not-found", ask, payload.channel_id)
        if found.backend.offer != checked.offer:
            raise self._challenge_problem("the challenge was for another kind of channel", ask)
        if checked.offer.protocol == "v2" and payload.descriptor is None:
            raise malformed("payload.descriptor is required")
        if payload.descriptor is not None and payload.descriptor != found.descriptor:
            raise self.challenger.problem("the descriptor is not the channel's", ask, slug="session/signer-mismatch")
        return found

    def _gone(self, message: str, slug: str, ask: Ask, channel_id: str) -> PaymentGone:
        return PaymentGone(
            message, slug=slug, headers=self.challenger.headers(ask, None), details={"channelId": channel_id}
        )

    async def _opened(self, checked: _Checked, ask: Ask) -> _Found:
        """The channel of an ``open``: mined, read from the chain and kept."""
        payload, voucher = checked.payload, checked.payload.voucher
        if voucher is None:
            raise malformed("an open carries a voucher")
        if await self._found(payload.channel_id) is not None:
            return await self._existing(payload, checked, ask)
        backend = self._backends[checked.offer]

        def verify(descriptor: Descriptor) -> None:
            self._verify(_Found(backend, descriptor), voucher, checked, ask)

        return self._remember(await self._funder.open(payload, backend, ask, source=checked.source, verify=verify))

    # The voucher.

    def _verify(self, found: _Found, voucher: Voucher, checked: _Checked, ask: Ask) -> None:
        """The signature, then the rate. Raises `PaymentProblem`.

        Only a voucher above all that were accepted takes from the channel's own bucket: nobody but the payer has
        one. Anybody may have read the others on chain, and must not use the payer's rate up. Content is not slowed
        down by its own vouchers.
        """
        if checked.source is not None and not self._is_payer(checked.source, found):
            raise self.challenger.problem(
                "the credential's source is not the channel's payer", ask, slug="session/signer-mismatch"
            )
        try:
            signer = signer_of(found.backend.offer.domain, voucher)
        except (SignatureInvalid, ValueError) as error:
            raise self.challenger.problem(
                f"the voucher's signature is not good: {error}", ask, slug="session/invalid-signature"
            ) from error
        if signer != found.descriptor.signer:
            raise self.challenger.problem(
                "the voucher was not signed by the channel's signer, or not for this channel, escrow and chain",
                ask,
                slug="session/signer-mismatch",
            )
        bucket = voucher.channel_id if voucher.cumulative_amount > found.highest else f"{voucher.channel_id} again"
        if not self._rate.allows(bucket, take=ask.content is None):
            raise PaymentTooFast("vouchers of this channel come too fast", slug="rate-limited", retry_after_s=1)

    @staticmethod
    def _is_payer(source: str, found: _Found) -> bool:
        prefix = f"did:pkh:eip155:{found.backend.offer.chain_id}:"
        return source.lower() in {prefix + found.descriptor.payer, prefix + found.descriptor.signer}

    async def _accept(self, voucher: Voucher, *, must: bool = False) -> Changed | Refused:
        """Persist a voucher. ``must``: also where the ledger is busy, because its channel was just opened."""
        amount = BaseUnits(voucher.cumulative_amount)
        operation = AcceptVoucher(voucher.channel_id, amount, voucher.signature, self._min_delta)
        result = await self._journal.submit(operation, must=must)
        if not isinstance(result, Changed | Refused):
            raise InvariantViolated("the ledger answered a voucher with something else")
        known = self._known.get(voucher.channel_id)
        if known is not None and result.channel is not None:
            known.highest = max(known.highest, result.channel.accepted_cumulative)
        if isinstance(result, Changed) and result.first:
            metrics.vouchers.inc()
            self.pauses.wake(voucher.channel_id)
        return result

    async def _after_refusal(self, refused: Refused, found: _Found, voucher: Voucher) -> Changed | Refused:
        """A voucher above the deposit as we know it: perhaps the payer added to it without telling us."""
        if refused.reason != "amount-exceeds-deposit":
            return refused
        if await self._funder.look(voucher.channel_id, found.backend) is None:
            return refused
        return await self._accept(voucher)

    async def _take(self, checked: _Checked, found: _Found, ask: Ask) -> ChannelView:
        voucher = checked.payload.voucher
        if voucher is None:
            raise malformed("payload.cumulativeAmount and payload.signature are required")
        self._verify(found, voucher, checked, ask)
        result = await self._accept(voucher)
        if isinstance(result, Refused):
            result = await self._after_refusal(result, found, voucher)
        if isinstance(result, Refused):
            # Several streams' answers may overtake each other: one that we asked for is late, and not wrong.
            late = self.pauses.was_asked(voucher.channel_id, voucher.cumulative_amount)
            if late and result.reason == BELOW_ACCEPTED and result.channel is not None:
                return result.channel
            raise await self._refused(result, found, voucher, ask)
        return result.channel

    async def _refused(self, refused: Refused, found: _Found, voucher: Voucher, ask: Ask) -> PaymentProblem:
        """Why a voucher, a close or a hold is refused, with what lets the client go on."""
        view = refused.channel
        channel_id = voucher.channel_id
        if refused.reason in {"channel-finalized", "channel_finalized", "channel_closing"}:
            what = "closed" if view is not None and view.status == "closed" else "closing"
            return self._gone(f"the channel is {what}", "session/channel-finalized", ask, channel_id)
        if view is None:
            return self._gone("no such channel is known here", "session/channel-not-found", ask, channel_id)
        slug = "delta-too-small" if refused.reason == BELOW_ACCEPTED else refused.reason.replace("_", "-")
        known = await self._shown(found, view, channel_id, proven=view.proves(BaseUnits(voucher.cumulative_amount)))
        messages = {
            BELOW_ACCEPTED: f"a voucher of {view.accepted_cumulative} was accepted before; sign at least that",
            "amount-exceeds-deposit": f"the voucher exceeds the channel's deposit of {view.deposit}",
            "delta-too-small": f"a voucher must add at least {self._min_delta}",
            "insufficient-balance": f"the voucher does not cover the {view.spent_cumulative} that were spent",
        }
        message = messages.get(refused.reason, "the voucher is refused")
        return self.challenger.problem(message, ask, slug=f"session/{slug}", known=known)

    async def _shown(self, found: _Found, view: ChannelView, channel_id: str, *, proven: bool) -> Known:
        """The channel as its payer is shown it: the highest signature for who is proven alone."""
        highest = await asyncio.to_thread(self._store.highest_voucher, channel_id) if proven else None
        return Known(channel_id, found.backend.offer, found.descriptor, view, voucher=highest)

    # Content.

    def _payer(
        self, checked: _Checked, found: _Found, view: ChannelView, *, presented: int, ask: Ask, opened: bool
    ) -> Payer:
        offer = found.backend.offer

        def problem(session: Session, message: str, slug: str, required: BaseUnits | None) -> PaymentProblem:
            signed = BaseUnits(presented)
            known = Known(
                session.channel_id, offer, session.descriptor, session.view, required, signed, session.shown_accepted
            )
            return self.challenger.problem(message, ask, slug=slug, known=known)

        def gone(message: str) -> PaymentGone:
            return self._gone(message, "session/channel-finalized", ask, view.id)

        session = Session(
            channel_id=view.id,
            offer=offer,
            descriptor=found.descriptor,
            challenge_id=checked.challenge_id,
            expires_at=checked.expires_at,
            presented=nano_usd_of(BaseUnits(presented)),
            view=view,
            opened=opened,
            price_ids=checked.opaque.price_ids,
            suggested_deposit=self._suggested,
            exposure_max=self._exposure_max,
            pauses=self.pauses,
            clock=self._clock,
            voucher_timeout_s=self.settings.voucher_timeout_s,
            window_cost_max=None if offer.captures_less else self.settings.v1_exposure_max,
            problem=problem,
            gone=gone,
            silence_comment_s=self._silence_comment_s,
            least=self.challenger.least,
        )
        account_id = channel_account(view.id)
        # A wallet presents nothing secret twice: its Idempotency-Key is what a stored answer is sealed with.
        return Payer(account_id, f"wallet:{found.descriptor.payer}", secret=account_id, session=session)

    def _receipt(
        self,
        checked: _Checked,
        found: _Found,
        view: ChannelView,
        *,
        tx_hash: str | None = None,
        accepted: int | None = None,
    ) -> SessionReceipt:
        payer = self._payer(checked, found, view, presented=0, ask=Ask(route="", content=None), opened=False)
        if payer.session is None:
            raise InvariantViolated("a session without a session")
        receipt = payer.session.receipt(view, units=0, tx_hash=tx_hash)
        return receipt if accepted is None else replace(receipt, accepted=BaseUnits(accepted))

    # Close.

    async def _close(self, checked: _Checked, ask: Ask) -> Managed:
        found = await self._existing(checked.payload, checked, ask)
        voucher = checked.payload.voucher
        if voucher is None:
            raise malformed("payload.cumulativeAmount and payload.signature are required")
        self._verify(found, voucher, checked, ask)
        record = await asyncio.to_thread(self._store.find, voucher.channel_id)
        if record is not None and record.view.status == "open":
            # What a stranger read on chain ends nothing that runs. Clients of v2 and evm sign all that they ever
            # signed; those of v1 sign what was spent, which may be settled already.
            amount, view, offer = BaseUnits(voucher.cumulative_amount), record.view, found.backend.offer
            less = amount < view.accepted_cumulative and (offer.protocol == "v2" or offer.method == "evm")
            if (less or view.held) and not view.proves(amount):
                raise await self._refused(Refused(BELOW_ACCEPTED, channel=view), found, voucher, ask)
        if record is None or record.view.status != "closed":
            frozen = await self._journal.submit(
                Freeze(voucher.channel_id, BaseUnits(voucher.cumulative_amount), voucher.signature)
            )
            if isinstance(frozen, Refused) and frozen.reason != "channel-finalized":
                raise await self._refused(frozen, found, voucher, ask)
            self.stopped(voucher.channel_id)
        try:
            async with asyncio.timeout(self.settings.confirm_timeout_s):
                tx_hash = await self._chain.close(voucher.channel_id)
        except TimeoutError as error:
            # Not a failure: the close goes on without the client, who may ask again.
            raise await self._still_closing(found, voucher, ask) from error
        record = await asyncio.to_thread(self._store.find, voucher.channel_id)
        if record is None:
            raise InvariantViolated(f"channel {voucher.channel_id} is gone after its close")
        _log.info("channel_closed", channel_id=voucher.channel_id, tx_hash=tx_hash)
        accepted = None if found.backend.offer.protocol == "v1" else voucher.cumulative_amount
        return Managed(self._receipt(checked, found, record.view, tx_hash=tx_hash, accepted=accepted))

    async def _still_closing(self, found: _Found, voucher: Voucher, ask: Ask) -> PaymentProblem:
        record = await asyncio.to_thread(self._store.find, voucher.channel_id)
        if record is None:
            raise InvariantViolated(f"channel {voucher.channel_id} is gone during its close")
        known = await self._shown(found, record.view, voucher.channel_id, proven=False)
        return self.challenger.problem(
            "the channel is being closed on chain; ask again for the receipt", ask, known=known, retry_after_s=5
        )
