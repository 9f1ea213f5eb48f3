"""The API-key rail: ``Authorization: Bearer <key>`` or ``x-api-key: <key>``, one of them."""

import asyncio
from collections.abc import Mapping

from app.errors import AuthenticationFailed, InvalidRequest
from app.rails.key_store import KeyStore
from app.rails.rail import Payer

KEY_CHARACTERS_MAX = 256
BEARER = "bearer"


def credential(headers: Mapping[bytes, bytes]) -> str | None:
    """The API key that a request carries, if any. Raises `InvalidRequest` for two different ones."""
    authorization = headers.get(b"authorization", b"").decode("latin-1").strip()
    header_key = headers.get(b"x-api-key", b"").decode("latin-1").strip()
    scheme, _, bearer = authorization.partition(" ")
    bearer = bearer.strip()
    if authorization and scheme.lower() != BEARER:
        # The scheme is not repeated: without one, it is the key itself that stands here.
        raise AuthenticationFailed("the authorization scheme is not known here; send Authorization: Bearer <key>")
    if bearer and header_key and bearer != header_key:
        raise InvalidRequest("send one credential: Authorization or x-api-key, not both", param="x-api-key")
    return bearer or header_key or None


class ApiKeyRail:
    """Finds the payer of an API key. What the key may do is decided with the hold, in the database."""

    def __init__(self, keys: KeyStore) -> None:
        self._keys = keys

    async def authenticate(self, headers: Mapping[bytes, bytes]) -> Payer:
        secret = credential(headers)
        if secret is None:
            raise AuthenticationFailed(
                "no API key: send Authorization: Bearer <key> or x-api-key: <key>", code="missing_api_key"
            )
        if len(secret) > KEY_CHARACTERS_MAX or not secret.isascii():
            raise AuthenticationFailed("the API key is not known here")
        identity = self._keys.cached(secret) or await asyncio.to_thread(self._keys.identify, secret)
        if identity is None:
            raise AuthenticationFailed("the API key is not known here; it may have been revoked or mistyped")
        return Payer(
            identity.account_id,
            identity.customer_id,
            identity.key_id,
            identity.key_hash,
            secret,
            routing=identity.routing,
        )
