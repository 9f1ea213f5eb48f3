"""``Idempotency-Key``: what is claimed with the hold, and how an answer is kept for a replay.

The claim is a keyed hash of payer and key, with a keyed hash of the body. The answer is encrypted
(AES-256-GCM) with a key derived (HKDF-SHA256) from the payer's credential and the idempotency key, so
that the database alone reveals nothing of it.
"""

import hashlib
import hmac
import os

import msgspec

from app.clock import EpochMs
from app.errors import InvalidRequest
from app.ledger.operation import Claim
from app.rails.rail import Payer

KEY_CHARACTERS_MAX = 255
NONCE_BYTES = 12
_INFO = b"farebox stored answer v1"


class StoredAnswer(msgspec.Struct):
    """An answer as it was sent."""

    status: int
    content_type: str
    headers: list[tuple[str, str]]
    body: bytes


def parse_key(text: str | None) -> str | None:
    """The header's value, bounded. Raises `InvalidRequest`."""
    if text is None:
        return None
    if not 0 < len(text) <= KEY_CHARACTERS_MAX or not text.isascii() or not text.isprintable():
        raise InvalidRequest(
            f"Idempotency-Key is 1 to {KEY_CHARACTERS_MAX} printable ASCII characters", param="Idempotency-Key"
        )
    return text


def claim(*, payer: Payer, key: str, path: str, body: bytes, pepper: bytes, expires_at: EpochMs) -> Claim:
    """What to claim for this payer, key and body."""
    scope = f"{payer.account_id}\n{key}".encode()
    body_hash = hmac.new(pepper, b"body\n" + path.encode() + b"\n" + body, hashlib.sha256).hexdigest()
    return Claim(hmac.new(pepper, b"claim\n" + scope, hashlib.sha256).hexdigest(), body_hash, expires_at)


def seal(answer: StoredAnswer, *, payer: Payer, key: str) -> bytes:
    """Encrypt an answer for this payer and key."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(_derived(payer, key)).encrypt(nonce, msgspec.msgpack.encode(answer), _INFO)


def unseal(sealed: bytes, *, payer: Payer, key: str) -> StoredAnswer | None:
    """Decrypt an answer; None if the credential is not the one that it was stored under."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    try:
        plain = AESGCM(_derived(payer, key)).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], _INFO)
    except InvalidTag:
        return None
    return msgspec.msgpack.decode(plain, type=StoredAnswer)


def _derived(payer: Payer, key: str) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), 32, salt=key.encode(), info=_INFO).derive(payer.secret.encode())
