"""Wallets at the edge: what a request asks for, told to the session rail, and the rail's answers as HTTP."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mpp import Credential

from app.admission import PaidRequest, facts_of, plan_for
from app.delivery import Client
from app.errors import PaymentMalformed, PaymentProblem
from app.ledger.ids import new_id
from app.ledger.price_store import PriceStore
from app.money import NanoUsd
from app.mpp.accept import ordered
from app.mpp.challenge import Opaque
from app.pricing.price_book import PriceVersion
from app.pricing.price_list import price_list
from app.proxy import Proxy
from app.rails.challenger import SESSION, Ask
from app.rails.credential import channel_of
from app.rails.mpp_charge import CHARGE_INTENT, ChargeRail
from app.rails.mpp_session import SessionRail
from app.rails.rail import Payer
from app.routing.candidates import Candidate, eligible

MANAGEMENT = frozenset({"topUp", "close"})
# Prices that one challenge promises.
PROMISED_MAX = 16
TEMPO = "tempo"


@dataclass(frozen=True, slots=True)
class Wallets:
    """The session rail as the paid endpoints use it."""

    rail: SessionRail
    proxy: Proxy
    prices: PriceStore
    charge: ChargeRail | None = None

    async def required(self, path: str, headers: Mapping[bytes, bytes], request: PaidRequest | None) -> PaymentProblem:
        """The 402 of a request without a credential."""
        ask = self._ask(path, headers, request)
        problem = await self.rail.required(ask, session_header=channel_of(headers))
        # Who has a channel is not asked to pay twice over.
        if request is not None and self.charge is not None and not request.stream and channel_of(headers) is None:
            self._offer_charge(self.charge, problem, ask, request)
        return problem

    def _offer_charge(self, charge: ChargeRail, problem: PaymentProblem, ask: Ask, request: PaidRequest) -> None:
        """A whole answer may also be paid by one transfer of its ceiling."""
        ours = (TEMPO, CHARGE_INTENT)
        names = [*((offer.method, SESSION) for offer in self.rail.challenger.offers), ours]
        kept = ordered(ask.accept_payment, names, name=lambda name: name)
        if ours not in kept:
            return
        header = charge.challenge(ask, self._ceiling(request))
        sessions = problem.headers if any(intent == SESSION for _, intent in kept) else ()
        problem.headers = (header, *sessions) if kept[0] == ours else (*sessions, header)

    def _ceiling(self, request: PaidRequest) -> NanoUsd:
        candidates = self._candidates(request)
        settings, ratio = self.proxy.settings, self.proxy.ratio(candidates[0].model.id)
        plan = plan_for(request, candidates, ratio, inference=settings.inference, ledger=settings.ledger)
        return plan.ceiling

    def _candidates(self, request: PaidRequest) -> list[Candidate]:
        """Every provider that could serve a request, whichever will: their prices are what is promised."""
        found = self.proxy.catalog.find(request.model)
        ratio = self.proxy.ratio(found[0].model.id)
        facts = facts_of(request, ratio, rail="wallet", inference=self.proxy.settings.inference)
        fit = eligible(found, facts, request.wishes)
        # Each is named in the challenge, and a header has its bounds.
        return sorted(fit, key=_promised_price)[:PROMISED_MAX] if len(fit) > PROMISED_MAX else fit

    async def paid_once(
        self, credential: Credential, path: str, headers: Mapping[bytes, bytes], request: PaidRequest
    ) -> tuple[Payer, PaidRequest]:
        """The payer of a whole answer by one transfer; the challenge is its idempotency key."""
        ask, charge = self._ask(path, headers, request), self.charge
        if charge is None:
            raise PaymentMalformed("one-shot payments are not offered here", slug="method-unsupported")
        try:
            paid = await charge.collect(credential, ask)
        except PaymentProblem as problem:
            if problem.status == 402 and not problem.headers:
                problem.headers = (charge.challenge(ask, self._ceiling(request)),)
            raise
        opaque = Opaque.parse(credential.challenge.opaque)
        promised = await self._promised(opaque.price_ids, request)
        key = f"charge-{paid.challenge_id}"
        return charge.payer(paid), replace(request, prices=promised, idempotency_key=key)

    @staticmethod
    def pays_once(credential: Credential) -> bool:
        """Whether it is one transfer for one answer."""
        return credential.challenge.intent == CHARGE_INTENT

    @staticmethod
    def manages(credential: Credential) -> bool:
        """Whether the action is one that never buys content, whatever body came with it."""
        payload = credential.payload
        action = payload.get("action") if isinstance(payload, Mapping) else None
        # A list cannot be looked up in a set, and is refused where payloads are read.
        return isinstance(action, str) and action in MANAGEMENT

    async def manage(self, credential: Credential, path: str, headers: Mapping[bytes, bytes], client: Client) -> None:
        """Answer an action on a channel: a receipt and no body."""
        managed = await self.rail.manage(credential, self._ask(path, headers, None))
        request_id = new_id("req", self.proxy.clock.now_ms())
        receipt = ("Payment-Receipt", managed.receipt.to_header())
        await client.respond(200, [("x-request-id", request_id), receipt, ("cache-control", "private")], b"")

    async def authenticate(
        self, credential: Credential, path: str, headers: Mapping[bytes, bytes], request: PaidRequest
    ) -> tuple[Payer, PaidRequest]:
        """The payer of a content request, and the request at the prices that its challenge promised."""
        payer = await self.rail.authenticate(credential, self._ask(path, headers, request))
        session = payer.session
        if session is None:
            return payer, request
        promised = await self._promised(session.price_ids, request)
        return payer, replace(request, prices=promised)

    def _ask(self, path: str, headers: Mapping[bytes, bytes], request: PaidRequest | None) -> Ask:
        accept = headers.get(b"accept-payment")
        accept_payment = accept.decode("latin-1") if accept is not None else None
        route = path.rstrip("/")
        if request is None:
            return Ask(route, None, accept_payment)
        candidates, endpoint = self._candidates(request), request.endpoint
        tokens = (("input", endpoint.input_tokens), ("output", endpoint.output_tokens))
        units = [*(unit for unit, billed in tokens if billed), *request.units]
        description = price_list(candidates[0].model.id, [each.price for each in candidates], units=units)
        return Ask(route, request.content, accept_payment, tuple(each.price.id for each in candidates), description)

    async def _promised(self, price_ids: tuple[str, ...], request: PaidRequest) -> dict[tuple[str, str], PriceVersion]:
        """The prices of a challenge; empty where they are those of now."""
        current = {each.price.id: each.price for each in self.proxy.catalog.find(request.model)}
        if all(price_id in current for price_id in price_ids):
            found = {price_id: current[price_id] for price_id in price_ids}
            if len(found) == len(current):
                return {}
        else:
            found = await asyncio.to_thread(self.prices.read, price_ids)
        return {(version.provider, version.model): version for version in found.values()}


def _promised_price(candidate: Candidate) -> int:
    return sum(candidate.price.prices.values())
