"""Vouchers and EIP-3009 authorizations, built from the specifications and not from the contracts."""

from dataclasses import dataclass, replace

from eth_abi.abi import encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_typing import Hash32
from eth_utils.crypto import keccak

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
ZERO = "0x" + "0" * 40
_DOMAIN_TYPE = keccak(text="EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")


@dataclass(frozen=True, slots=True)
class Domain:
    """An EIP-712 domain, and the integer type of its vouchers."""

    name: str
    chain_id: int
    contract: str
    amount_type: str = "uint128"

    def separator(self) -> bytes:
        """Its hash."""
        values = [_DOMAIN_TYPE, keccak(text=self.name), keccak(text="1"), self.chain_id, self.contract]
        return keccak(encode(["bytes32", "bytes32", "bytes32", "uint256", "address"], values))

    def digest(self, structure: bytes) -> bytes:
        """What is signed for a structure's hash."""
        return keccak(b"\x19\x01" + self.separator() + structure)

    def voucher(self, channel_id: bytes, amount: int) -> bytes:
        """What is signed for a voucher."""
        kind = keccak(text=f"Voucher(bytes32 channelId,{self.amount_type} cumulativeAmount)")
        return self.digest(keccak(encode(["bytes32", "bytes32", self.amount_type], [kind, channel_id, amount])))


@dataclass(frozen=True, slots=True)
class Authorization:
    """An EIP-3009 authorization to receive, or by another type's name."""

    payer: str
    to: str
    value: int
    valid_after: int
    valid_before: int
    nonce: bytes
    kind: str = "ReceiveWithAuthorization"

    def sign(self, token: Domain, key: LocalAccount) -> bytes:
        """The packed signature."""
        members = "address from,address to,uint256 value,uint256 validAfter,uint256 validBefore,bytes32 nonce"
        kind = keccak(text=f"{self.kind}({members})")
        types = ["bytes32", "address", "address", "uint256", "uint256", "uint256", "bytes32"]
        values = [kind, self.payer, self.to, self.value, self.valid_after, self.valid_before, self.nonce]
        return sign(key, token.digest(keccak(encode(types, values))))

    def but(self, **changes: object) -> "Authorization":
        """The same with changes."""
        return replace(self, **changes)  # type: ignore[arg-type]


def sign(key: LocalAccount, digest: bytes) -> bytes:
    """65 bytes, low s, v of 27 or 28."""
    return bytes(key.unsafe_sign_hash(Hash32(digest)).signature)


def compact(signature: bytes) -> bytes:
    """The EIP-2098 form."""
    s = int.from_bytes(signature[32:64], "big") | (signature[64] - 27) << 255
    return signature[:32] + s.to_bytes(32, "big")


def high_s(signature: bytes) -> bytes:
    """The other signature that recovers the same key, which is not canonical."""
    s = ORDER - int.from_bytes(signature[32:64], "big")
    return signature[:32] + s.to_bytes(32, "big") + bytes([55 - signature[64]])


def new_key() -> LocalAccount:
    """A key that nothing else uses."""
    key: LocalAccount = Account.create()
    return key
