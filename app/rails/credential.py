"""The ``Payment`` scheme's credential in a request's head. It is never logged."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from app.errors import PaymentMalformed

if TYPE_CHECKING:
    from mpp import Credential

SCHEME = "payment"
# What an OpenAI SDK sends when its user pays by wallet: it cannot leave the key out.
PLACEHOLDERS = frozenset({"", "wallet"})


def malformed(message: str) -> PaymentMalformed:
    """A credential that cannot be read."""
    return PaymentMalformed(message, slug="malformed-credential")


def is_payment(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request carries a ``Payment`` credential."""
    return headers.get(b"authorization", b"").split(b" ", 1)[0].strip().lower() == SCHEME.encode()


def is_wallet(headers: Mapping[bytes, bytes]) -> bool:
    """Whether a request has no credential at all, or the placeholder that stands for a wallet."""
    scheme, _, bearer = headers.get(b"authorization", b"").decode("latin-1").strip().partition(" ")
    if scheme and scheme.lower() != "bearer":
        return False
    key = headers.get(b"x-api-key", b"").decode("latin-1").strip()
    return bearer.strip().lower() in PLACEHOLDERS and key.lower() in PLACEHOLDERS


def parse(headers: Mapping[bytes, bytes]) -> Credential:
    """The credential. Raises `PaymentMalformed`, also for two of them."""
    # A server that no wallet pays does not need it.
    from mpp import Credential
    from mpp._parsing import ParseError

    text = headers.get(b"authorization", b"").decode("latin-1").strip()
    token = text.partition(" ")[2].strip()
    if "," in token or " " in token:
        raise malformed("send one Payment credential")
    if headers.get(b"x-api-key") and headers[b"x-api-key"].decode("latin-1").strip().lower() not in PLACEHOLDERS:
        raise malformed("send one credential: Authorization: Payment or x-api-key, not both")
    try:
        credential = Credential.from_authorization(text)
        json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)), object_pairs_hook=_named_once)
        return credential
    except (ParseError, ValueError, TypeError, RecursionError) as error:
        raise malformed("the Payment credential is not base64url JSON with a challenge and a payload") from error


def _named_once(members: list[tuple[str, Any]]) -> None:
    """Whoever checked the first of two members could be shown the second: I-JSON has no such objects."""
    if len({name for name, _ in members}) != len(members):
        raise ValueError("a name stands twice in the credential")


def channel_of(headers: Mapping[bytes, bytes]) -> str | None:
    """The channel that a client says it has: ``Payment-Session``."""
    value = headers.get(b"payment-session")
    return value.decode("latin-1") if value else None
