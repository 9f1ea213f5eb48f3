"""The payee's key: signs settlements and sponsorships, and is shown nowhere. Pure."""

from coincurve import PrivateKey
from eth_utils.crypto import keccak

from app.mpp.voucher import ORDER

KEY_BYTES = 32


class Signer:
    """A secp256k1 key and its account."""

    __slots__ = ("_key", "address")

    def __init__(self, key: bytes) -> None:
        """Raises `ValueError` for what is no private key; the message does not show it."""
        if len(key) != KEY_BYTES or not 0 < int.from_bytes(key, "big") < ORDER:
            raise ValueError("a private key is 32 bytes, neither zero nor past the curve's order")
        self._key = PrivateKey(key)
        self.address = "0x" + keccak(self._key.public_key.format(compressed=False)[1:])[12:].hex()

    def sign(self, digest: bytes) -> tuple[int, int, int]:
        """Parity (0 or 1), r and s. Deterministic (RFC 6979) and low-s: signing again gives the same bytes,
        so that a transaction which is prepared twice has one hash."""
        raw = self._key.sign_recoverable(digest, hasher=None)
        return raw[64], int.from_bytes(raw[:32], "big"), int.from_bytes(raw[32:64], "big")
