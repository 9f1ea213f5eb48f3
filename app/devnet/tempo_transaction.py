"""What the shim must know of a signed Tempo transaction: its sender, its calls, its expiring-nonce hash.

A development node has no channel reserve, so nothing on it derives the hash that binds a channel to the
transaction which opened it: ``keccak256(encodeForSigning ++ sender)``.
"""

from dataclasses import dataclass
from typing import Any

import rlp  # type: ignore[import-untyped]
from eth_account import Account
from eth_keys.datatypes import Signature
from eth_utils.crypto import keccak

TEMPO_TYPE = 0x76
# TIP-1009: the lane of nonces that only expire.
EXPIRING_NONCE_KEY = 2**256 - 1
# Positions in the list that is signed.
_CALLS, _NONCE_KEY, _NONCE, _VALID_BEFORE, _FEE_TOKEN, _FEE_PAYER = 4, 6, 7, 8, 10, 11
_FIELDS = (14, 15)
# Where nonce, target and data stand in Ethereum's own types: access list, dynamic fee, delegation.
_POSITIONS = {0x01: (1, 4, 6), 0x02: (1, 5, 7), 0x04: (1, 5, 7)}
_LEGACY_POSITIONS = (0, 3, 5)
_EIP155_V_MIN = 35
_SECP256K1_BYTES = 65
# A key of the account signs for it: one byte of type, the account, the key's own signature.
_KEYCHAIN_TYPES = (0x03, 0x04)


class Undecodable(Exception):
    """Not a transaction that this module reads; the node says what is wrong with it."""


@dataclass(frozen=True, slots=True)
class RawCall:
    """One call of a transaction."""

    to: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class RawTransaction:
    """A signed transaction as far as the shim reads it; ``valid_before`` is in seconds, 0 for never."""

    sender: bytes
    calls: tuple[RawCall, ...]
    expiring_nonce_hash: bytes
    nonce_key: int
    nonce: int
    valid_before: int


def decode(raw: bytes) -> RawTransaction:
    """Read a signed transaction of any type. Raises `Undecodable`."""
    try:
        return _decode_tempo(raw) if raw[:1] == bytes([TEMPO_TYPE]) else _decode_ethereum(raw)
    except Undecodable:
        raise
    except Exception as error:
        raise Undecodable(str(error)) from error


def _decode_tempo(raw: bytes) -> RawTransaction:
    fields: list[Any] = rlp.decode(raw[1:])
    if len(fields) not in _FIELDS:
        raise Undecodable(f"{len(fields)} fields")
    *signed, signature = fields
    if signed[_FEE_PAYER]:
        # The sender signs before it knows who pays, and in what.
        signed[_FEE_TOKEN] = b""
        signed[_FEE_PAYER] = b"\0"
    preimage = bytes([TEMPO_TYPE]) + rlp.encode(signed)
    sender = _sender(signature, keccak(preimage))
    return RawTransaction(
        sender=sender,
        calls=tuple(RawCall(to, data) for to, _, data in signed[_CALLS]),
        expiring_nonce_hash=keccak(preimage + sender),
        nonce_key=int.from_bytes(signed[_NONCE_KEY], "big"),
        nonce=int.from_bytes(signed[_NONCE], "big"),
        valid_before=int.from_bytes(signed[_VALID_BEFORE], "big"),
    )


def _decode_ethereum(raw: bytes) -> RawTransaction:
    sender = bytes.fromhex(Account.recover_transaction(raw)[2:])
    if raw[0] in _POSITIONS:
        fields: list[Any] = rlp.decode(raw[1:])
        nonce_at, to_at, data_at = _POSITIONS[raw[0]]
        preimage = raw[:1] + rlp.encode(fields[:-3])
    else:
        fields = rlp.decode(raw)
        nonce_at, to_at, data_at = _LEGACY_POSITIONS
        v = int.from_bytes(fields[6], "big")
        # EIP-155 signs over the chain as well.
        preimage = rlp.encode([*fields[:6], *(((v - 35) // 2, 0, 0) if v >= _EIP155_V_MIN else ())])
    return RawTransaction(
        sender=sender,
        calls=(RawCall(fields[to_at], fields[data_at]),),
        expiring_nonce_hash=keccak(preimage + sender),
        nonce_key=0,
        nonce=int.from_bytes(fields[nonce_at], "big"),
        valid_before=0,
    )


def _sender(signature: bytes, digest: bytes) -> bytes:
    if len(signature) == _SECP256K1_BYTES:
        parity = signature[-1] - 27 if signature[-1] > 1 else signature[-1]
        key = Signature(signature[:-1] + bytes([parity])).recover_public_key_from_msg_hash(digest)
        return key.to_canonical_address()
    if signature[0] in _KEYCHAIN_TYPES:
        return signature[1:21]
    raise Undecodable("signed by a kind of key that is not read here")
