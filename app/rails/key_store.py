"""API keys: made once, shown once, and stored only as a keyed hash.

A key is found through the unique index of its hash. What it may do (revocation, expiry, models,
spend, rates) is decided on its row in the transaction of the hold, never from memory.
"""

import base64
import hmac
import os
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import ColumnElement, Engine, Row, insert, select, update

from app.clock import MS_PER_MINUTE, Clock, EpochMs, month_of, to_rfc3339
from app.errors import AuthenticationFailed, InvalidRequest, NotFound
from app.ledger.account import customer_account
from app.ledger.ids import new_id
from app.money import AMOUNT_NANO_USD_MAX, ZERO, NanoUsd, format_usd
from app.rails.label import checked_label, may_be_id
from app.routing.defaults import parameters_of, wishes_of
from app.routing.wishes import NO_WISHES, Wishes
from app.tables import api_keys, customers

SECRET_PREFIX = "sk-fb-"  # noqa: S105 - what every key begins with is no secret
SECRET_BYTES = 32
SECRET_CHARACTERS = len(SECRET_PREFIX) + 43
IDENTITIES_MAX = 8192
# What was changed by another process (a key's routing) is seen after so long.
IDENTITY_S_MAX = 10.0
KEYS_LISTED_MAX = 1000
MODELS_MAX = 1000
RATE_MAX = 10**12
# The last moment that RFC 3339 can write.
EXPIRES_AT_MS_MAX = 253_402_300_799_999


@dataclass(frozen=True, slots=True)
class KeyLimits:
    """What a key may do at most; None does not limit. Raises `InvalidRequest` naming the limit."""

    spend_limit: NanoUsd | None = None
    spend_limit_month: NanoUsd | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    models: tuple[str, ...] | None = None
    expires_at_ms: EpochMs | None = None

    def __post_init__(self) -> None:
        bounds = (
            ("spend_limit", AMOUNT_NANO_USD_MAX),
            ("spend_limit_month", AMOUNT_NANO_USD_MAX),
            ("requests_per_minute", RATE_MAX),
            ("tokens_per_minute", RATE_MAX),
            ("expires_at_ms", EXPIRES_AT_MS_MAX),
        )
        for name, maximum in bounds:
            value = getattr(self, name)
            if value is not None and not 0 < value <= maximum:
                raise InvalidRequest(f"{name} must be positive and in range", param=name)
        if self.models is not None:
            if not 0 < len(self.models) <= MODELS_MAX:
                raise InvalidRequest("models must name at least one model", param="models")
            for model in self.models:
                if checked_label(model, param="models") != model:
                    raise InvalidRequest("models must not have space around their names", param="models")


@dataclass(frozen=True, slots=True)
class KeyIdentity:
    """Whose key a secret is. The hash lets the hold see that the secret was not rotated since."""

    key_id: str
    key_hash: str
    customer_id: str
    account_id: str
    routing: Wishes | None = None


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """A key as its row stands, without anything that could be used as the key."""

    id: str
    customer_id: str
    account_id: str
    label: str
    hint: str
    created_at_ms: EpochMs
    revoked_at_ms: EpochMs | None
    limits: KeyLimits
    routing: Wishes
    spent: NanoUsd
    held: NanoUsd
    spent_month: NanoUsd
    minute_requests: int
    minute_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON shows it; amounts are exact USD decimals."""
        limits = self.limits
        return {
            "id": self.id,
            "customer_id": self.customer_id,
            "label": self.label,
            "hint": self.hint,
            "created_at": to_rfc3339(self.created_at_ms),
            "revoked_at": _moment(self.revoked_at_ms),
            "expires_at": _moment(limits.expires_at_ms),
            "models": list(limits.models) if limits.models is not None else None,
            "spend_limit": _usd(limits.spend_limit),
            "spend_limit_month": _usd(limits.spend_limit_month),
            "requests_per_minute": limits.requests_per_minute,
            "tokens_per_minute": limits.tokens_per_minute,
            "routing": parameters_of(self.routing) or None,
            "spent": format_usd(self.spent),
            "spent_month": format_usd(self.spent_month),
            "held": format_usd(self.held),
        }


class KeyStore:
    """Makes, finds and changes API keys. ``pepper`` is the secret that keys are hashed with.

    `identify` remembers who a secret belongs to for `IDENTITY_S_MAX`, for at most `IDENTITIES_MAX` keys and
    never for unknown ones. A remembered identity grants nothing by itself: every hold checks the hash, the
    revocation and the limits again in the database, so a revoked or rotated key buys nothing in any
    process from the moment of that commit. What answers without a hold uses `authenticate`.
    """

    def __init__(self, engine: Engine, clock: Clock, pepper: bytes) -> None:
        self._engine = engine
        self._clock = clock
        self._pepper = pepper
        # With the monotonic time at which each was read.
        self._identities: OrderedDict[str, tuple[KeyIdentity, float]] = OrderedDict()
        self._lock = threading.Lock()

    def cached(self, secret: str) -> KeyIdentity | None:
        """The remembered identity, without a look at the database."""
        key_hash = self._hash(secret)
        with self._lock:
            known = self._identities.get(key_hash)
            if known is None or self._clock.monotonic_s() - known[1] >= IDENTITY_S_MAX:
                return None
            self._identities.move_to_end(key_hash)
        return known[0]

    def identify(self, secret: str) -> KeyIdentity | None:
        """Who the key belongs to; None if it is unknown or revoked."""
        identity = self.cached(secret)
        if identity is not None:
            return identity
        read_s, row = self._clock.monotonic_s(), self._find(secret)
        if row is None or row.revoked_at_ms is not None:
            return None
        routing = _wishes(row.routing)
        identity = KeyIdentity(
            row.id,
            row.hash,
            row.customer_id,
            customer_account(row.customer_id),
            routing if routing != NO_WISHES else None,
        )
        with self._lock:
            self._identities[identity.key_hash] = identity, read_s
            self._identities.move_to_end(identity.key_hash)
            while len(self._identities) > IDENTITIES_MAX:
                self._identities.popitem(last=False)
        return identity

    def authenticate(self, secret: str) -> KeyRecord:
        """The key as its row stands now. Raises `AuthenticationFailed` if it may not be used."""
        row = self._find(secret)
        if row is None:
            raise AuthenticationFailed("the API key is not known here; it may have been mistyped or rotated")
        if row.revoked_at_ms is not None:
            raise AuthenticationFailed("the API key has been revoked")
        if row.expires_at_ms is not None and self._clock.now_ms() >= row.expires_at_ms:
            raise AuthenticationFailed("the API key has expired")
        return self._record(row)

    def read(self, key_id: str) -> KeyRecord:
        """One key. Raises `NotFound`."""
        rows = self._select(api_keys.c.id == key_id, limit=1) if may_be_id(key_id) else []
        if not rows:
            raise _unknown(key_id)
        return rows[0]

    def list(
        self, customer_id: str | None = None, *, after: str = "", limit: int = KEYS_LISTED_MAX
    ) -> Sequence[KeyRecord]:
        """Keys in the order of their ids, those past ``after``."""
        condition = api_keys.c.id > after
        if customer_id is not None:
            condition &= api_keys.c.customer_id == customer_id
        return self._select(condition, limit=min(limit, KEYS_LISTED_MAX))

    def create(
        self, customer_id: str, label: str, limits: KeyLimits, *, routing: Wishes = NO_WISHES
    ) -> tuple[KeyRecord, str]:
        """A new key and its secret, which is not kept. Raises `NotFound` for an unknown customer."""
        now = self._clock.now_ms()
        self._check_expiry(limits, now=now)
        secret = _new_secret()
        row = {
            "id": new_id("key", now),
            "customer_id": customer_id,
            "label": checked_label(label, param="label"),
            "hash": self._hash(secret),
            "hint": _hint(secret),
            "created_at_ms": now,
            "revoked_at_ms": None,
            **_limit_columns(limits),
            "routing": _routing_column(routing),
            **dict.fromkeys(("spent", "held", "spent_month", "minute_requests", "minute_tokens", "version"), 0),
            "month": month_of(now),
            "minute": now // MS_PER_MINUTE,
        }
        customer = select(customers.c.id).where(customers.c.id == customer_id)
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            if not may_be_id(customer_id) or connection.execute(customer).first() is None:
                raise NotFound(f"there is no customer {customer_id!r}", param="customer_id")
            connection.execute(insert(api_keys).values(row))
        return self.read(str(row["id"])), secret

    def rotate(self, key_id: str) -> tuple[KeyRecord, str]:
        """A new secret for the same key; the old one stops at once. Raises `NotFound`."""
        secret = _new_secret()
        old_hash = self._change(key_id, hash=self._hash(secret), hint=_hint(secret), refuse_revoked=True)
        self._forget(old_hash)
        return self.read(key_id), secret

    def revoke(self, key_id: str) -> KeyRecord:
        """Stop a key at once and for good; again, it changes nothing. Raises `NotFound`."""
        if self.read(key_id).revoked_at_ms is None:
            self._forget(self._change(key_id, revoked_at_ms=self._clock.now_ms()))
        return self.read(key_id)

    def set_limits(self, key_id: str, limits: KeyLimits, *, routing: Wishes | None = None) -> KeyRecord:
        """Replace all of a key's limits; they hold from the next hold on. Raises `NotFound`.

        And its routing, if given: that holds here at once, and after `IDENTITY_S_MAX` in other processes.
        """
        self._check_expiry(limits, now=self._clock.now_ms())
        columns: dict[str, Any] = {"routing": _routing_column(routing)} if routing is not None else {}
        self._forget(self._change(key_id, **_limit_columns(limits), **columns))
        return self.read(key_id)

    def _change(self, key_id: str, *, refuse_revoked: bool = False, **columns: Any) -> str:
        """Change a row and return the hash that it had; the journal sees that its version changed."""
        known = select(api_keys.c.hash, api_keys.c.revoked_at_ms).where(api_keys.c.id == key_id).with_for_update()
        with self._engine.connect().execution_options(writes=True) as connection, connection.begin():
            row = connection.execute(known).first() if may_be_id(key_id) else None
            if row is None:
                raise _unknown(key_id)
            if refuse_revoked and row.revoked_at_ms is not None:
                raise InvalidRequest(f"key {key_id} was revoked; create a new one", param="key_id")
            changed = {**columns, "version": api_keys.c.version + 1}
            if "revoked_at_ms" in columns:
                # Two who revoke at once: the first moment stays.
                changed["revoked_at_ms"] = row.revoked_at_ms or columns["revoked_at_ms"]
            connection.execute(update(api_keys).where(api_keys.c.id == key_id).values(changed))
            return str(row.hash)

    def _check_expiry(self, limits: KeyLimits, *, now: EpochMs) -> None:
        if limits.expires_at_ms is not None and limits.expires_at_ms <= now:
            raise InvalidRequest("expires_at is in the past", param="expires_at")

    def _hash(self, secret: str) -> str:
        return hmac.digest(self._pepper, secret.encode(errors="surrogatepass"), "sha256").hex()

    def _find(self, secret: str) -> Row[Any] | None:
        if len(secret) != SECRET_CHARACTERS or not secret.startswith(SECRET_PREFIX):
            return None
        key_hash = self._hash(secret)
        with self._engine.connect() as connection:
            row = connection.execute(select(api_keys).where(api_keys.c.hash == key_hash)).first()
        return row if row is not None and hmac.compare_digest(row.hash, key_hash) else None

    def _select(self, condition: ColumnElement[bool], *, limit: int) -> Sequence[KeyRecord]:
        statement = select(api_keys).where(condition).order_by(api_keys.c.id).limit(limit)
        with self._engine.connect() as connection:
            return [self._record(row) for row in connection.execute(statement)]

    def _record(self, row: Row[Any]) -> KeyRecord:
        now = self._clock.now_ms()
        this_month, this_minute = row.month == month_of(now), row.minute == now // MS_PER_MINUTE
        return KeyRecord(
            id=row.id,
            customer_id=row.customer_id,
            account_id=customer_account(row.customer_id),
            label=row.label,
            hint=row.hint,
            created_at_ms=EpochMs(row.created_at_ms),
            revoked_at_ms=row.revoked_at_ms,
            limits=KeyLimits(
                spend_limit=row.spend_limit,
                spend_limit_month=row.spend_limit_month,
                requests_per_minute=row.requests_per_minute,
                tokens_per_minute=row.tokens_per_minute,
                models=tuple(orjson.loads(row.models)) if row.models is not None else None,
                expires_at_ms=row.expires_at_ms,
            ),
            routing=_wishes(row.routing),
            spent=NanoUsd(row.spent),
            held=NanoUsd(row.held),
            spent_month=NanoUsd(row.spent_month) if this_month else ZERO,
            minute_requests=row.minute_requests if this_minute else 0,
            minute_tokens=row.minute_tokens if this_minute else 0,
        )

    def _forget(self, key_hash: str) -> None:
        with self._lock:
            self._identities.pop(key_hash, None)


def _new_secret() -> str:
    return SECRET_PREFIX + base64.urlsafe_b64encode(os.urandom(SECRET_BYTES)).rstrip(b"=").decode()


def _hint(secret: str) -> str:
    return f"{secret[:10]}...{secret[-4:]}"


def _unknown(key_id: str) -> NotFound:
    return NotFound(f"there is no key {key_id[:64]!r}", param="key_id")


def _usd(amount: NanoUsd | None) -> str | None:
    return format_usd(amount) if amount is not None else None


def _moment(at: EpochMs | None) -> str | None:
    return to_rfc3339(at) if at is not None else None


def _wishes(text: str | None) -> Wishes:
    return wishes_of(orjson.loads(text)) if text is not None else NO_WISHES


def _routing_column(routing: Wishes) -> str | None:
    return orjson.dumps(parameters_of(routing)).decode() if routing != NO_WISHES else None


def _limit_columns(limits: KeyLimits) -> dict[str, Any]:
    return {
        "spend_limit": limits.spend_limit,
        "spend_limit_month": limits.spend_limit_month,
        "requests_per_minute": limits.requests_per_minute,
        "tokens_per_minute": limits.tokens_per_minute,
        "models": orjson.dumps(limits.models).decode() if limits.models is not None else None,
        "expires_at_ms": limits.expires_at_ms,
    }
