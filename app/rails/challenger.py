"""What a wallet is asked for: the challenges of one request, for every kind of channel on offer.

The first challenge asks for one base unit: clients add what a challenge asks to what they signed before,
on every request, so a full quote there would run ahead of what is spent until the deposit is gone. What is
short is asked for when the channel is known: in mid-stream, or by a second challenge.
"""

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mpp import BodyDigest, ChallengeEcho

from app.chain.backend import Offer
from app.channels.channel import ChannelView
from app.clock import MS_PER_SECOND, Clock, EpochMs
from app.errors import PaymentProblem
from app.money import BaseUnits, NanoUsd, base_units_up, format_usd, parse_usd
from app.mpp.accept import ordered
from app.mpp.challenge import Challenges, Opaque
from app.mpp.descriptor import Descriptor
from app.mpp.voucher import Voucher
from app.settings import MppSettings

SESSION = "session"
ONE = BaseUnits(1)


@dataclass(frozen=True, slots=True)
class Ask:
    """The request that challenges are for. ``content`` None: management, which buys nothing."""

    route: str
    content: bytes | None
    accept_payment: str | None = None
    price_ids: tuple[str, ...] = ()
    description: str | None = None


@dataclass(frozen=True, slots=True)
class Known:
    """A channel that a challenge is for, as it may be shown to whoever asks.

    ``voucher`` is the highest one with its signature: for a proven payer alone.
    """

    channel_id: str
    offer: Offer
    descriptor: Descriptor
    view: ChannelView
    required: BaseUnits | None = None
    # What its client signed just now, which is what it adds the asked amount to; None: what was accepted.
    presented: BaseUnits | None = None
    # What it is told was accepted; None: what was. A client that falls back after a failure refuses to close
    # with a snapshot above what it had signed before.
    shown: BaseUnits | None = None
    voucher: Voucher | None = field(default=None, repr=False)

    @property
    def base(self) -> BaseUnits:
        """What its client has signed, as far as we know."""
        return self.view.accepted_cumulative if self.presented is None else self.presented


class Challenger:
    """Makes 402s."""

    def __init__(self, challenges: Challenges, offers: Sequence[Offer], settings: MppSettings, clock: Clock) -> None:
        self.challenges = challenges
        self.offers = tuple(offers)
        self._settings = settings
        self._clock = clock
        self._deposit = str(base_units_up(parse_usd(settings.suggested_deposit)))
        delta = base_units_up(parse_usd(settings.min_voucher_delta))
        self._delta = str(delta)
        # What every challenge asks at least: zero is no amount, and less than the delta would be refused.
        self.least = BaseUnits(max(ONE, delta))

    def problem(
        self,
        message: str,
        ask: Ask,
        *,
        slug: str = "payment-required",
        known: Known | None = None,
        retry_after_s: int | None = None,
        details: dict[str, object] | None = None,
    ) -> PaymentProblem:
        """A 402 with fresh challenges; for a known channel, the one that continues it."""
        extra: dict[str, object] = dict(details or {})
        if known is not None:
            extra["channelId"] = known.channel_id
            if known.required is not None:
                top_up = max(0, known.required - known.view.accepted_cumulative)
                extra |= {"requiredCumulative": str(known.required), "requiredTopUp": str(top_up)}
        return PaymentProblem(
            message, slug=slug, headers=self.headers(ask, known), retry_after_s=retry_after_s, details=extra
        )

    def headers(self, ask: Ask, known: Known | None) -> list[tuple[str, str]]:
        """One ``WWW-Authenticate`` for each way to pay, in the order that the client would rather."""
        offers = [known.offer] if known is not None else list(self.offers)
        offers = ordered(ask.accept_payment, offers, name=lambda offer: (offer.method, SESSION))
        opaque = Opaque(secrets.token_urlsafe(12), ask.route, ask.price_ids).to_wire()
        digest = BodyDigest.compute(ask.content) if ask.content is not None else None
        expires_at = EpochMs(self._clock.now_ms() + self._settings.challenge_ttl_s * MS_PER_SECOND)
        found = []
        for offer in offers:
            issued = self.challenges.issue(
                method=offer.method,
                intent=SESSION,
                request=self._request(offer, known),
                expires_at=expires_at,
                digest=digest,
                description=ask.description,
                opaque=opaque,
            )
            found.append(("WWW-Authenticate", issued.header))
        return found

    def _request(self, offer: Offer, known: Known | None) -> dict[str, Any]:
        details: dict[str, Any] = {"chainId": offer.chain_id, "escrowContract": offer.escrow}
        if self._delta != "0":
            details["minVoucherDelta"] = self._delta
        if offer.fee_payer:
            details["feePayer"] = True
        if offer.method == "tempo":
            details["sessionProtocol"] = offer.protocol
        else:
            details["credentialTypes"] = ["authorization", "hash"] if offer.fee_payer else ["hash"]
        if offer.operator is not None:
            details["operator"] = offer.operator
        amount = self.least
        if known is not None:
            details["channelId"] = known.channel_id
            if known.required is not None:
                amount = BaseUnits(max(self.least, known.required - known.base))
            if offer.protocol == "v2":
                details["sessionSnapshot"] = snapshot(known)
        return {
            "amount": str(amount),
            "currency": offer.currency,
            "recipient": offer.recipient,
            "suggestedDeposit": self._deposit,
            "unitType": "request",
            "methodDetails": details,
        }

    def offer_of(self, echo: ChallengeEcho, request: Mapping[str, Any]) -> Offer | None:
        """The offer that a challenge of ours was made for; None if it is not offered any more."""
        details = request.get("methodDetails")
        if not isinstance(details, Mapping):
            return None
        for offer in self.offers:
            if (
                offer.method == echo.method
                and offer.chain_id == details.get("chainId")
                and offer.escrow == details.get("escrowContract")
                and offer.currency == request.get("currency")
                and offer.recipient == request.get("recipient")
                and offer.operator == details.get("operator")
                and (offer.method != "tempo" or offer.protocol == details.get("sessionProtocol"))
            ):
                return offer
        return None


def snapshot(known: Known) -> dict[str, Any]:
    """A reusable channel's state for a v2 client. Source: `draft-tempo-session-00`, "Session Snapshot"."""
    view = known.view
    required = known.required if known.required is not None else BaseUnits(view.accepted_cumulative + ONE)
    shown = known.shown if known.shown is not None else view.accepted_cumulative
    fields: dict[str, Any] = {
        "acceptedCumulative": str(shown),
        "chainId": known.offer.chain_id,
        "channelId": known.channel_id,
        "deposit": str(view.deposit),
        "descriptor": known.descriptor.to_wire(),
        "escrow": known.offer.escrow,
        "requiredCumulative": str(required),
        "settled": str(view.settled),
        "spent": str(view.spent_cumulative),
    }
    if view.close_requested_at:
        fields["closeRequestedAt"] = str(view.close_requested_at)
    if known.voucher is not None:
        fields["highestVoucher"] = {
            "channelId": known.channel_id,
            "cumulativeAmount": str(known.voucher.cumulative_amount),
            "signature": known.voucher.signature,
        }
    return fields


def usd(amount: NanoUsd) -> str:
    """An amount as problems say it."""
    return f"{format_usd(amount)} USD"
