"""What identifies a channel, and the id that is derived from it. Pure.

Source: `draft-tempo-session-00`, "Contract-Backed Channel State" and "Channel Descriptor".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eth_abi.abi import encode
from eth_utils.crypto import keccak

Protocol = Literal["v1", "v2"]

ZERO_ADDRESS = "0x" + "00" * 20
ZERO_HASH = "0x" + "00" * 32
_HEX = frozenset("0123456789abcdef")


def hex_of(value: object, *, size: int) -> str:
    """A hexadecimal string of ``size`` bytes in lowercase. Raises `ValueError` for anything else."""
    if not isinstance(value, str) or len(value) != 2 + 2 * size:
        raise ValueError(f"expected 0x and {2 * size} hexadecimal digits")
    text = value.lower()
    if not text.startswith("0x") or not _HEX.issuperset(text[2:]):
        raise ValueError(f"expected 0x and {2 * size} hexadecimal digits")
    return text


def address(value: object) -> str:
    """An address in lowercase. Raises `ValueError`."""
    return hex_of(value, size=20)


def hash_of(value: object) -> str:
    """A bytes32 in lowercase. Raises `ValueError`."""
    return hex_of(value, size=32)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Who pays whom in which token, in lowercase hexadecimal.

    v1 and evm channels have neither ``operator`` nor ``expiring_nonce_hash``: both are zero there.
    """

    payer: str
    payee: str
    token: str
    salt: str
    authorized_signer: str = ZERO_ADDRESS
    operator: str = ZERO_ADDRESS
    expiring_nonce_hash: str = ZERO_HASH

    @property
    def signer(self) -> str:
        """Who signs this channel's vouchers."""
        return self.payer if self.authorized_signer == ZERO_ADDRESS else self.authorized_signer

    @classmethod
    def parse(cls, value: object) -> "Descriptor":
        """From a credential's ``descriptor``. Raises `ValueError` naming the field."""
        if not isinstance(value, Mapping):
            raise ValueError("descriptor must be an object")
        fields: dict[str, Any] = {}
        for name, (wire, size) in _FIELDS.items():
            try:
                fields[name] = hex_of(value.get(wire), size=size)
            except ValueError as error:
                raise ValueError(f"descriptor.{wire}: {error}") from error
        return cls(**fields)

    def to_wire(self) -> dict[str, str]:
        """As clients of protocol v2 send and read it."""
        return {wire: getattr(self, name) for name, (wire, _) in _FIELDS.items()}

    def channel_id(self, *, protocol: Protocol, escrow: str, chain_id: int) -> str:
        """The channel's id on one escrow of one chain."""
        if protocol == "v1":
            types: tuple[str, ...] = ("address", "address", "address", "bytes32", "address", "address", "uint256")
            values: tuple[Any, ...] = (
                self.payer,
                self.payee,
                self.token,
                bytes.fromhex(self.salt[2:]),
                self.authorized_signer,
                escrow,
                chain_id,
            )
        else:
            types = (*("address",) * 4, "bytes32", "address", "bytes32", "address", "uint256")
            values = (
                self.payer,
                self.payee,
                self.operator,
                self.token,
                bytes.fromhex(self.salt[2:]),
                self.authorized_signer,
                bytes.fromhex(self.expiring_nonce_hash[2:]),
                escrow,
                chain_id,
            )
        return "0x" + keccak(encode(types, values)).hex()


_FIELDS: Mapping[str, tuple[str, int]] = {
    "payer": ("payer", 20),
    "payee": ("payee", 20),
    "operator": ("operator", 20),
    "token": ("token", 20),
    "salt": ("salt", 32),
    "authorized_signer": ("authorizedSigner", 20),
    "expiring_nonce_hash": ("expiringNonceHash", 32),
}
