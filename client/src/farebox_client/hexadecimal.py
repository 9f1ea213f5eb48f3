"""Addresses and hashes in lowercase hexadecimal. Pure.

Source: `draft-tempo-session-00`, "Hexadecimal Values": any case in, lowercase out.
"""

from eth_utils.address import to_checksum_address

ADDRESS_BYTES = 20
HASH_BYTES = 32
ZERO_ADDRESS = "0x" + "00" * ADDRESS_BYTES
ZERO_HASH = "0x" + "00" * HASH_BYTES
_DIGITS = frozenset("0123456789abcdef")


def _hex(value: object, size: int) -> str:
    text = value.lower() if isinstance(value, str) else ""
    if len(text) != 2 + 2 * size or not text.startswith("0x") or not _DIGITS.issuperset(text[2:]):
        raise ValueError(f"expected 0x and {2 * size} hexadecimal digits")
    return text


def address(value: object) -> str:
    """An address, lowercase. Raises `ValueError`."""
    return _hex(value, ADDRESS_BYTES)


def bytes32(value: object) -> str:
    """A hash, salt or channel id, lowercase. Raises `ValueError`."""
    return _hex(value, HASH_BYTES)


def raw(text: str) -> bytes:
    """The bytes of a ``0x`` string."""
    return bytes.fromhex(text[2:])


def did(payer: str, *, chain_id: int) -> str:
    """A payer as the ``source`` of a credential, by the did:pkh method."""
    return f"did:pkh:eip155:{chain_id}:{to_checksum_address(payer)}"
