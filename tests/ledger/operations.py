"""Operations, budgets and books with plain defaults, so that a test states only what it is about."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from app.clock import MS_PER_MINUTE, EpochMs, month_of
from app.ledger import transfer as transfers
from app.ledger.account import REVENUE, TREASURY, Account, customer_account
from app.ledger.books import Books
from app.ledger.budget import KeyBudget, KeyCondition
from app.ledger.operation import Admit, Capture, Captured, Claim, Deliver, Extend, Outcome, Post, Row, Sweep
from app.ledger.transfer import Transfer
from app.money import NanoUsd
from tests.clocks import START_MS

CUSTOMER = "c1"
ACCOUNT = customer_account(CUSTOMER)
KEY = "k1"
KEY_HASH = "hash-of-k1"
OWNER = "o1"
MODEL = "m"
PROVIDER = "p"
VERSION = "p:m:1"


def condition(key_id: str = KEY, *, key_hash: str = KEY_HASH, model: str = MODEL, tokens: int = 10) -> KeyCondition:
    return KeyCondition(key_id, key_hash, model, tokens)


def claim(key_hash: str = "claim", *, body_hash: str = "body", expires_in_ms: int = MS_PER_MINUTE) -> Claim:
    return Claim(key_hash, body_hash, EpochMs(START_MS + expires_in_ms))


def admit(
    request_id: str = "r1",
    *,
    amount: int,
    required: int = 1,
    account_id: str = ACCOUNT,
    owner_id: str = OWNER,
    key: KeyCondition | None = None,
    claim: Claim | None = None,
) -> Admit:
    key_id = key.key_id if key else None
    return Admit(
        request_id,
        account_id,
        REVENUE,
        owner_id,
        NanoUsd(amount),
        NanoUsd(required),
        (request_id, account_id, key_id, "/v1/chat/completions", MODEL, True, 100, 10, amount, START_MS),
        key,
        claim,
    )


def mark(request_id: str, *, used: int, window: int, sequence: int = 0) -> Row:
    return (request_id, sequence, PROVIDER, VERSION, used, window, START_MS)


def deliver(request_id: str = "r1", *, window: int, used: int = 0, account_id: str = ACCOUNT) -> Deliver:
    return Deliver(request_id, account_id, mark(request_id, used=used, window=window))


def extend(
    request_id: str = "r1",
    *,
    sequence: int,
    amount: int,
    required: int = 1,
    used: int = 0,
    account_id: str = ACCOUNT,
    owner_id: str = OWNER,
    key: KeyCondition | None = None,
) -> Extend:
    """The mark of a window says that all of what it holds may be used."""
    return Extend(
        request_id,
        sequence,
        account_id,
        REVENUE,
        owner_id,
        NanoUsd(amount),
        NanoUsd(required),
        lambda granted: mark(request_id, used=used, window=granted, sequence=sequence),
        key,
    )


def capture(
    request_id: str = "r1",
    *,
    price: int,
    cost: int = 0,
    account_id: str = ACCOUNT,
    key_id: str | None = None,
    attempts: tuple[Row, ...] = (),
    tokens_admitted: int = 0,
    tokens_used: int = 0,
    admitted_at_ms: EpochMs = START_MS,
    claimed: bool = False,
    answer: Callable[[Captured], bytes | None] | None = None,
    forget_claim: bool = False,
) -> Capture:
    outcome = Outcome(
        "ok",
        PROVIDER,
        MODEL,
        VERSION,
        (10, 0, 0, 0, 5, 0, 0),
        False,
        NanoUsd(price),
        NanoUsd(cost),
        "stop",
        None,
        12,
        34,
    )
    return Capture(
        request_id,
        account_id,
        key_id,
        outcome,
        attempts,
        tokens_admitted,
        tokens_used,
        admitted_at_ms,
        claimed,
        answer,
        forget_claim,
    )


def sweep(
    request_id: str = "r1",
    *,
    silent_since: int | None,
    account_id: str = ACCOUNT,
    key_id: str | None = None,
    owner_id: str = OWNER,
) -> Sweep:
    since = None if silent_since is None else EpochMs(silent_since)
    return Sweep(request_id, account_id, key_id, owner_id, since)


def post(
    transfer_id: str,
    *,
    amount: int,
    debit: str = TREASURY,
    credit: str = ACCOUNT,
    kind: str = transfers.TOP_UP,
) -> Post:
    return Post(
        Transfer(transfer_id, kind, transfers.POSTED, debit, credit, NanoUsd(amount), None, None, None, START_MS)
    )


# What no decision foresees and the database refuses: a transfer from an account to itself.
IMPOSSIBLE = post("impossible", amount=1, debit=TREASURY, credit=TREASURY)


def budget(**changes: Any) -> KeyBudget:
    """A key without limits, changed."""
    unlimited = KeyBudget(
        id=KEY,
        hash=KEY_HASH,
        revoked_at_ms=None,
        expires_at_ms=None,
        models=None,
        spend_limit=None,
        spend_limit_month=None,
        requests_per_minute=None,
        tokens_per_minute=None,
        spent=NanoUsd(0),
        held=NanoUsd(0),
        month=month_of(START_MS),
        spent_month=NanoUsd(0),
        minute=START_MS // MS_PER_MINUTE,
        minute_requests=0,
        minute_tokens=0,
        version=0,
    )
    return replace(unlimited, **changes)


def books(*, credits: int = 0, credit_limit: int = 0, key: KeyBudget | None = None, now: int = START_MS) -> Books:
    """Books as a batch reads them: one customer, and a key of theirs."""
    account = Account(ACCOUNT, credits_posted=NanoUsd(credits), credit_limit=NanoUsd(credit_limit))
    return Books(now=EpochMs(now), accounts={ACCOUNT: account}, keys={key.id: key} if key else {})
