"""Books made the way the product makes them: through the stores and the journal's own path."""

from dataclasses import dataclass

from sqlalchemy import Engine

from app.ledger.account import REVENUE
from app.ledger.budget import KeyCondition
from app.ledger.journal_store import JournalStore
from app.ledger.lease_store import LeaseStore
from app.ledger.operation import (
    Admit,
    Admitted,
    Capture,
    Captured,
    Claim,
    Deliver,
    Extend,
    Extended,
    Operation,
    Outcome,
    Post,
    Posted,
    Result,
    Row,
    Sweep,
)
from app.ledger.price_store import PriceStore
from app.ledger.transfer import TOP_UP
from app.money import ZERO, NanoUsd, parse_usd
from app.pricing.price_book import Usage
from app.rails import funds
from app.rails.customer_store import CustomerRecord, CustomerStore
from app.rails.key_store import KeyIdentity, KeyLimits, KeyStore
from app.settings import SANDBOX
from tests.clocks import FakeClock

PEPPER = b"a pepper of thirty-two bytes....."
OWNER = "own_books"
MODEL = SANDBOX.models[0].id
ONE = Usage(prompt_tokens=1000, completion_tokens=500, cached_tokens=100, reasoning_tokens=50)


@dataclass(frozen=True)
class Payer:
    """A key with its secret, as a client has it."""

    key_id: str
    customer_id: str
    secret: str
    identity: KeyIdentity


class LiveBooks:
    """Customers, keys and requests in every state that a server can leave them in."""

    def __init__(self, engine: Engine, clock: FakeClock) -> None:
        self.engine = engine
        self.clock = clock
        self.customers = CustomerStore(engine, clock)
        self.keys = KeyStore(engine, clock, PEPPER)
        self.prices = PriceStore(engine, clock)
        self.version = self.prices.sync([SANDBOX])[SANDBOX.name, MODEL]
        self.leases = LeaseStore(engine)
        self.leases.register(OWNER, now=clock.now_ms())
        self.charge_of_one = self.version.charge(ONE)

    def customer(self, *, credit: str | None, credit_limit: str = "0") -> tuple[CustomerRecord, Payer]:
        """A customer with paid-in credit and one key."""
        made = self.customers.create("Ada", credit_limit=parse_usd(credit_limit))
        if credit is not None:
            self.credit(made.id, credit)
        return made, self.key(made.id)

    def key(self, customer_id: str, limits: KeyLimits | None = None) -> Payer:
        record, secret = self.keys.create(customer_id, "laptop", limits or KeyLimits())
        identity = self.keys.identify(secret)
        assert identity is not None
        return Payer(record.id, customer_id, secret, identity)

    def credit(self, customer_id: str, usd: str, *, credit_id: str | None = None) -> None:
        transfer = funds.credit(
            credit_id=credit_id or f"for-{customer_id}",
            customer_id=customer_id,
            amount=parse_usd(usd),
            kind=TOP_UP,
            note=None,
            at=self.clock.now_ms(),
        )
        assert self.apply(Post(transfer)) == Posted()

    def refund(self, customer_id: str, usd: str, *, refund_id: str = "r1", paid: bool = False) -> None:
        now = self.clock.now_ms()
        recorded = funds.refund(refund_id=refund_id, customer_id=customer_id, amount=parse_usd(usd), note=None, at=now)
        assert self.apply(Post(recorded)) == Posted()
        if paid:
            assert self.apply(Post(funds.refund_paid(recorded, note=None, at=now))) == Posted()

    def apply(self, operation: Operation) -> Result:
        store = JournalStore(self.engine, self.clock)
        try:
            return store.apply([operation])[0]
        finally:
            store.close()

    def admit(self, payer: Payer, request_id: str, *, amount: int = 1_000_000, claim: Claim | None = None) -> None:
        identity = payer.identity
        row = (
            request_id,
            identity.account_id,
            payer.key_id,
            "/v1/chat/completions",
            MODEL,
            True,
            500,
            1500,
            amount,
            self.clock.now_ms(),
        )
        condition = KeyCondition(payer.key_id, identity.key_hash, MODEL, 1500)
        admit = Admit(
            request_id,
            identity.account_id,
            REVENUE,
            OWNER,
            NanoUsd(amount),
            NanoUsd(amount),
            row,
            condition,
            claim,
        )
        assert isinstance(self.apply(admit), Admitted)

    def deliver(self, payer: Payer, request_id: str, *, used: int, window: int) -> None:
        self.apply(Deliver(request_id, payer.identity.account_id, self._mark(request_id, 0, used, window)))

    def extend(self, payer: Payer, request_id: str, *, amount: int, used: int) -> None:
        condition = KeyCondition(payer.key_id, payer.identity.key_hash, MODEL, 0)
        extend = Extend(
            request_id,
            1,
            payer.identity.account_id,
            REVENUE,
            OWNER,
            NanoUsd(amount),
            NanoUsd(amount),
            lambda granted: self._mark(request_id, 1, used, granted),
            condition,
        )
        assert isinstance(self.apply(extend), Extended)

    def capture(self, payer: Payer, request_id: str, usage: Usage | None, *, claimed: bool = False) -> Captured:
        """End a request: with what was used, or (None) as one that no provider could answer."""
        served = usage is not None
        used = usage or Usage(0, 0)
        outcome = Outcome(
            "ok" if served else "failed",
            SANDBOX.name if served else None,
            MODEL if served else None,
            self.version.id if served else None,
            (
                used.prompt_tokens,
                used.cached_tokens,
                used.cache_write_tokens,
                used.audio_input_tokens,
                used.completion_tokens,
                used.reasoning_tokens,
                used.audio_output_tokens,
            ),
            False,
            self.version.charge(used) if served else ZERO,
            self.version.upstream_cost(used) if served else ZERO,
            "stop" if served else None,
            None if served else "all_providers_failed",
            12 if served else None,
            34,
        )
        attempt = (request_id, 1, SANDBOX.name, MODEL, "ok" if served else "error", 200, self.clock.now_ms(), 34)
        capture = Capture(
            request_id,
            payer.identity.account_id,
            payer.key_id,
            outcome,
            attempts=[attempt],
            claimed=claimed,
            forget_claim=claimed and not served,
        )
        result = self.apply(capture)
        assert isinstance(result, Captured)
        return result

    def served(self, payer: Payer, request_id: str) -> Captured:
        """A request from beginning to end."""
        self.admit(payer, request_id)
        return self.capture(payer, request_id, ONE)

    def sweep(self, payer: Payer, request_id: str) -> Captured:
        result = self.apply(Sweep(request_id, payer.identity.account_id, payer.key_id, OWNER, None))
        assert isinstance(result, Captured)
        return result

    def _mark(self, request_id: str, sequence: int, used: int, window: int) -> Row:
        return (request_id, sequence, SANDBOX.name, self.version.id, used, window, self.clock.now_ms())
