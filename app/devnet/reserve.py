"""What a channel reserve precompile knows by itself and its stand-in must be told, as storage writes.

The stand-in (`contracts/src/ChannelReserveStandIn.sol`) reads the hash of the transaction that opens a
channel from its slot 0, and takes deposits with ``transferFrom``, which needs an allowance in the token.
"""

from dataclasses import dataclass

from eth_abi.abi import decode
from eth_abi.exceptions import DecodingError
from eth_utils.abi import function_signature_to_4byte_selector
from eth_utils.crypto import keccak

from app.devnet.tempo_transaction import RawCall

RESERVE = bytes.fromhex("4d50500000000000000000000000000000000000")
# Of every TIP-20 token, in the node's own precompile.
BALANCES_SLOT = 9
ALLOWANCES_SLOT = 10
# Never used up by a deposit, so that concurrent opens of one payer do not take each other's.
AMPLE = (1 << 255).to_bytes(32, "big")

_DESCRIPTOR = "(address,address,address,address,bytes32,address,bytes32)"
_OPEN = ("address", "address", "address", "uint96", "bytes32", "address")
_TOP_UP = (_DESCRIPTOR, "uint96")
_OPEN_SELECTOR = function_signature_to_4byte_selector(f"open({','.join(_OPEN)})")
_TOP_UP_SELECTOR = function_signature_to_4byte_selector(f"topUp({','.join(_TOP_UP)})")


@dataclass(frozen=True, slots=True)
class StorageWrite:
    """One word of a contract's storage."""

    address: bytes
    slot: bytes
    value: bytes


def mapping_slot(key: bytes, slot: bytes | int) -> bytes:
    """Where Solidity keeps a mapping's value."""
    place = slot if isinstance(slot, bytes) else slot.to_bytes(32, "big")
    return keccak(key.rjust(32, b"\0") + place)


def balance_slot(owner: bytes) -> bytes:
    """Where a TIP-20 token keeps an account's balance."""
    return mapping_slot(owner, BALANCES_SLOT)


def writes(sender: bytes, calls: tuple[RawCall, ...], opening_hash: bytes) -> list[StorageWrite]:
    """What must be in storage for these calls to do at the stand-in what they do at the precompile."""
    found: list[StorageWrite] = []
    for call in calls:
        if call.to != RESERVE:
            continue
        token, salt = _funded(call.data)
        if token is not None:
            allowance = mapping_slot(RESERVE, mapping_slot(sender, ALLOWANCES_SLOT))
            found.append(StorageWrite(token, allowance, AMPLE))
        if salt is not None:
            found.append(StorageWrite(RESERVE, mapping_slot(salt, mapping_slot(sender, 0)), opening_hash))
    return found


def _funded(data: bytes) -> tuple[bytes | None, bytes | None]:
    """The token that a call takes a deposit in, and the salt of the channel that it opens."""
    try:
        if data[:4] == _OPEN_SELECTOR:
            _, _, token, _, salt, _ = decode(_OPEN, data[4:])
            return bytes.fromhex(token[2:]), salt
        if data[:4] == _TOP_UP_SELECTOR:
            descriptor, _ = decode(_TOP_UP, data[4:])
            return bytes.fromhex(descriptor[3][2:]), None
    except DecodingError:
        # The stand-in itself refuses what cannot be read.
        pass
    return None, None
