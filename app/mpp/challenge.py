"""Challenges: what a payer is asked for, bound by an HMAC so that none needs to be remembered. Pure.

Source: `draft-httpauth-payment-00`. The id is computed over the parameters as they stand on the wire, so
that an echoed challenge is verified without decoding what a stranger sent.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import orjson
from mpp import Challenge, ChallengeEcho

from app.clock import EpochMs, to_datetime

REQUEST_CHARACTERS_MAX = 16_384
SECRET_CHARACTERS_MIN = 32


@dataclass(frozen=True, slots=True)
class Issued:
    """A challenge as it is offered: the header's value, and what it may be told apart by."""

    id: str
    method: str
    intent: str
    header: str


class Challenges:
    """Makes challenges of one realm and recognises them again. The secret before stays valid for its own."""

    def __init__(self, *, realm: str, secret: str, previous: str | None = None) -> None:
        self.realm = realm
        self._secret = secret
        self._secrets = [secret.encode(), *([previous.encode()] if previous else [])]

    def __repr__(self) -> str:
        return f"Challenges(realm={self.realm!r})"

    def issue(
        self,
        *,
        method: str,
        intent: str,
        request: Mapping[str, Any],
        expires_at: EpochMs,
        digest: str | None = None,
        description: str | None = None,
        opaque: Mapping[str, str] | None = None,
    ) -> Issued:
        """A fresh challenge."""
        challenge = Challenge.create(
            secret_key=self._secret,
            realm=self.realm,
            method=method,
            intent=intent,
            request=dict(request),
            expires=to_datetime(expires_at).strftime("%Y-%m-%dT%H:%M:%SZ"),
            digest=digest,
            description=description,
            meta=dict(opaque) if opaque is not None else None,
        )
        return Issued(challenge.id, method, intent, challenge.to_www_authenticate(self.realm))

    def is_ours(self, echo: ChallengeEcho) -> bool:
        """Whether this process, or one with its secret, made the challenge exactly so. Constant time."""
        slots = (echo.realm, echo.method, echo.intent, echo.request, echo.expires, echo.digest, echo.opaque)
        if echo.header is not None or echo.realm != self.realm or any("|" in (slot or "") for slot in slots[1:]):
            return False
        text = "|".join(slot or "" for slot in slots).encode("utf-8", "replace")
        given = echo.id.encode("utf-8", "replace")
        matches = [hmac.compare_digest(_identifier(secret, text), given) for secret in self._secrets]
        return any(matches)


def _identifier(secret: bytes, text: bytes) -> bytes:
    return base64.urlsafe_b64encode(hmac.new(secret, text, hashlib.sha256).digest()).rstrip(b"=")


def expiry_of(echo: ChallengeEcho) -> EpochMs | None:
    """When a challenge of ours expires; None for a missing or malformed ``expires``, which is refused."""
    try:
        moment = datetime.strptime(echo.expires or "", "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return None
    return EpochMs(int(moment.timestamp()) * 1000)


def decoded(text: str | None) -> Mapping[str, Any]:
    """The object in a base64url parameter. Raises `ValueError`."""
    if text is None or len(text) > REQUEST_CHARACTERS_MAX:
        raise ValueError("the parameter is missing or too long")
    try:
        value = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (binascii.Error, UnicodeEncodeError, orjson.JSONDecodeError) as error:
        raise ValueError("the parameter is no base64url JSON") from error
    if not isinstance(value, dict):
        raise ValueError("the parameter is no JSON object")
    return value


@dataclass(frozen=True, slots=True)
class Opaque:
    """What a challenge of ours remembers: the route and the prices that it was quoted for."""

    nonce: str
    route: str
    price_ids: tuple[str, ...] = field(default=())
    # For money that goes to an account: whose. The payer need not name it again.
    account_id: str = ""

    def to_wire(self) -> dict[str, str]:
        """Strings alone, as the specification has it."""
        wire = {"nonce": self.nonce, "prices": ",".join(self.price_ids), "route": self.route}
        return wire | {"account": self.account_id} if self.account_id else wire

    @classmethod
    def parse(cls, text: str | None) -> "Opaque":
        """Of a challenge that is ours. Raises `ValueError`."""
        value = decoded(text)
        prices = str(value.get("prices", ""))
        found = tuple(filter(None, prices.split(",")))
        return cls(str(value.get("nonce", "")), str(value.get("route", "")), found, str(value.get("account", "")))
