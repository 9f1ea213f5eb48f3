"""One-shot payments: a whole answer at its ceiling, or money for an API key's balance, by one transfer.

What a request did not use of its ceiling stays on the wallet's account here. A challenge is paid once and
buys once: its id is the request's idempotency key, so that the same credential gets the same answer again.
"""

import asyncio
import secrets
from dataclasses import dataclass

from mpp import BodyDigest, Credential, Receipt

from app import log
from app.chain.backend import ChainUnavailable, Offer, TransactionRefused
from app.chain.charge import Charged, ChargeRequest, TempoCharge
from app.clock import MS_PER_SECOND, Clock, EpochMs, to_datetime
from app.errors import PaymentProblem, PaymentTooFast
from app.ledger.account import TREASURY
from app.ledger.journal import Journal
from app.ledger.operation import Post
from app.ledger.transfer import CHARGE, POSTED, Transfer
from app.money import BaseUnits, NanoUsd, base_units_up, nano_usd_of
from app.mpp.challenge import Challenges, Opaque, decoded, expiry_of
from app.mpp.session import amount_of
from app.rails import funds
from app.rails.challenger import Ask
from app.rails.charge_store import ChargeStore
from app.rails.credential import malformed
from app.rails.rail import Payer
from app.settings import MppSettings

CHARGE_INTENT = "charge"
# At once: each asks the node again and again for a transaction that anybody may have made up.
CHARGES_MAX = 32
NAMED_S = 5.0

_log = log.get("mpp_charge")


@dataclass(frozen=True, slots=True)
class Paid:
    """A one-shot payment that is in the ledger."""

    account_id: str
    payer: str
    amount: NanoUsd
    challenge_id: str
    receipt: str


class ChargeRail:
    """Charges on one chain."""

    def __init__(
        self,
        *,
        challenges: Challenges,
        offer: Offer,
        collector: TempoCharge,
        store: ChargeStore,
        journal: Journal,
        settings: MppSettings,
        clock: Clock,
    ) -> None:
        self._challenges = challenges
        self._offer = offer
        self._collector = collector
        self._store = store
        self._journal = journal
        self._settings = settings
        self._clock = clock
        self._running = 0

    def challenge(self, ask: Ask, amount: NanoUsd, *, account_id: str = "") -> tuple[str, str]:
        """A ``WWW-Authenticate`` header for ``amount``, rounded up; with the account that it is for, if any."""
        offer = self._offer
        issued = self._challenges.issue(
            method=offer.method,
            intent=CHARGE_INTENT,
            request={
                "amount": str(base_units_up(amount)),
                "currency": offer.currency,
                "recipient": offer.recipient,
                "methodDetails": {"chainId": offer.chain_id},
            },
            expires_at=EpochMs(self._clock.now_ms() + self._settings.challenge_ttl_s * MS_PER_SECOND),
            digest=BodyDigest.compute(ask.content) if ask.content is not None else None,
            description=ask.description,
            opaque=Opaque(secrets.token_urlsafe(12), ask.route, ask.price_ids, account_id).to_wire(),
        )
        return "WWW-Authenticate", issued.header

    def account_of(self, credential: Credential) -> str:
        """Whose balance a challenge of ours is for; empty for nobody's, and for a challenge that is not ours."""
        echo = credential.challenge
        return Opaque.parse(echo.opaque).account_id if self._challenges.is_ours(echo) else ""

    async def collect(self, credential: Credential, ask: Ask) -> Paid:
        """See a payment through and credit it, once. Raises `PaymentProblem`."""
        echo = credential.challenge
        if not self._challenges.is_ours(echo):
            raise self._problem("the challenge was not made here, or was changed", "invalid-challenge")
        request, opaque = decoded(echo.request), Opaque.parse(echo.opaque)
        expires_at = expiry_of(echo)
        claimed = await asyncio.to_thread(self._store.paid_by, echo.id) is not None
        if expires_at is None or (expires_at <= self._clock.now_ms() and not claimed):
            raise self._problem("the challenge has expired", "payment-expired")
        if ask.content is None or echo.digest is None or not BodyDigest.verify(echo.digest, ask.content):
            raise self._problem("the challenge was for another body", "invalid-challenge")
        if opaque.route != ask.route:
            raise self._problem("the challenge was for another route", "invalid-challenge")
        if (request.get("currency"), request.get("recipient")) != (self._offer.currency, self._offer.recipient):
            raise self._problem("what the challenge asked for is not taken any more", "invalid-challenge")
        if not isinstance(credential.payload, dict):
            raise malformed("payload must be an object")
        amount = amount_of(request.get("amount"), name="amount")
        charged = await self._collected(credential, amount)
        account_id = opaque.account_id or await asyncio.to_thread(self._store.wallet_account, charged.payer)
        credited = nano_usd_of(charged.amount)
        now = self._clock.now_ms()
        transfer_id = f"charge:{charged.tx_hash}"
        move = Transfer(transfer_id, CHARGE, POSTED, TREASURY, account_id, credited, None, None, charged.payer, now)
        first = funds.check_posted(await self._journal.submit(Post(move)))
        if first:
            _log.info("charge_credited", tx_hash=charged.tx_hash, account_id=account_id, amount=int(credited))
        receipt = Receipt.success(charged.tx_hash, timestamp=to_datetime(now).replace(microsecond=0))
        return Paid(account_id, charged.payer, credited, echo.id, receipt.to_payment_receipt())

    async def _collected(self, credential: Credential, amount: BaseUnits) -> Charged:
        if self._running >= CHARGES_MAX:
            raise PaymentTooFast(
                "too many payments are being looked for; try again", slug="rate-limited", retry_after_s=2
            )
        self._running += 1
        try:
            return await self._looked_for(credential, amount)
        finally:
            self._running -= 1

    async def _looked_for(self, credential: Credential, amount: BaseUnits) -> Charged:
        echo, confirm_s = credential.challenge, self._settings.confirm_timeout_s
        timeout_s = min(NAMED_S, confirm_s) if credential.payload.get("type") == "hash" else confirm_s
        wanted = ChargeRequest(echo.id, echo.realm, self._offer.currency, self._offer.recipient, amount)
        try:
            charged = await self._collector.collect(
                credential.payload, wanted, source=credential.source, timeout_s=timeout_s
            )
        except TransactionRefused as refused:
            if refused.malformed:
                raise malformed(str(refused)) from refused
            raise self._problem(str(refused), "verification-failed") from refused
        except ChainUnavailable as error:
            raise self._problem("the chain cannot be seen; present the same credential again", None) from error
        if charged is None:
            raise self._problem("the payment is not mined yet; present the same credential again", None)
        return charged

    @staticmethod
    def _problem(message: str, slug: str | None) -> PaymentProblem:
        return PaymentProblem(message, slug=slug or "verification-failed", retry_after_s=None if slug else 2)

    @staticmethod
    def payer(paid: Paid) -> Payer:
        """The payer of a request that was charged for."""
        customer_id = paid.account_id.partition(":")[2]
        return Payer(paid.account_id, customer_id, secret=paid.challenge_id, receipt=paid.receipt)

    async def aclose(self) -> None:
        """Give connections back."""
        await self._collector.aclose()
