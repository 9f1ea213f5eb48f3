"""The fields of clients' credential payloads, checked one by one. Pure.

Every function raises `TransactionRefused`, malformed, naming the field.
"""

import re
from collections.abc import Mapping
from typing import Any

from app.chain.backend import TransactionRefused
from app.mpp.descriptor import Descriptor, address, hash_of, hex_of

# 2**256 has 78 digits; no amount is that large, but an authorization's times may be.
DIGITS_MAX = 78
SIGNATURE_BYTES = 65

_DIGITS = re.compile(r"[0-9]+")
_SOURCE = re.compile(r"did:pkh:eip155:([0-9]{1,20}):(0x[0-9a-fA-F]{40})")


def require_type(payload: Mapping[str, Any], *allowed: str) -> str:
    """Which of the ``allowed`` credential types it is."""
    kind = payload.get("type")
    if kind not in allowed:
        raise TransactionRefused(f"type: expected {' or '.join(allowed)}", malformed=True)
    return str(kind)


def hash_field(payload: Mapping[str, Any], name: str) -> str:
    """A bytes32 in lowercase."""
    try:
        return hash_of(payload.get(name))
    except ValueError as error:
        raise TransactionRefused(f"{name}: {error}", malformed=True) from error


def address_field(payload: Mapping[str, Any], name: str) -> str:
    """An address in lowercase."""
    try:
        return address(payload.get(name))
    except ValueError as error:
        raise TransactionRefused(f"{name}: {error}", malformed=True) from error


def optional_address(payload: Mapping[str, Any], name: str) -> str | None:
    """An address in lowercase, or None where the field is absent."""
    return None if payload.get(name) is None else address_field(payload, name)


def signature_field(payload: Mapping[str, Any], name: str) -> str:
    """A packed signature of 65 bytes in lowercase; who made it is not looked at."""
    try:
        return hex_of(payload.get(name), size=SIGNATURE_BYTES)
    except ValueError as error:
        raise TransactionRefused(f"{name}: {error}", malformed=True) from error


def integer_field(payload: Mapping[str, Any], name: str) -> int:
    """A natural number from its decimal digits."""
    text = payload.get(name)
    if not isinstance(text, str) or len(text) > DIGITS_MAX or not _DIGITS.fullmatch(text):
        raise TransactionRefused(f"{name}: expected decimal digits", malformed=True)
    return int(text)


def object_field(payload: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A JSON object."""
    value = payload.get(name)
    if not isinstance(value, Mapping):
        raise TransactionRefused(f"{name}: expected an object", malformed=True)
    return value


def descriptor_field(payload: Mapping[str, Any]) -> Descriptor:
    """The channel's descriptor (v2)."""
    try:
        return Descriptor.parse(payload.get("descriptor"))
    except ValueError as error:
        raise TransactionRefused(str(error), malformed=True) from error


def source_address(source: str, *, chain_id: int) -> str:
    """The account of a credential's ``source``, a ``did:pkh`` of this chain, in lowercase."""
    found = _SOURCE.fullmatch(source)
    if found is None or int(found[1]) != chain_id:
        raise TransactionRefused("source: expected did:pkh:eip155 with this chain's id and an address", malformed=True)
    return found[2].lower()
