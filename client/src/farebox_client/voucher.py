"""Vouchers: EIP-712 messages that authorise a cumulative amount on one channel. Pure.

Source: `draft-tempo-session-00`, "Voucher Signing Format"; `draft-evm-session-00` differs in its domain name.
"""

from typing import Any

from eth_abi.abi import encode
from eth_account.signers.local import LocalAccount
from eth_typing import Hash32
from eth_utils.crypto import keccak

from farebox_client.amounts import UINT96_MAX, UINT128_MAX
from farebox_client.channel import Kind, Parts
from farebox_client.hexadecimal import raw

_DOMAIN_NAMES: dict[Kind, str] = {
    "tempo-v2": "TIP20 Channel Reserve",
    "tempo-v1": "Tempo Stream Channel",
    "evm": "EVM Payment Channel",
}
_DOMAIN_TYPE = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")


def amount_max(kind: Kind) -> int:
    """The largest amount that a channel of this kind can hold."""
    return UINT96_MAX if kind == "tempo-v2" else UINT128_MAX


def digest(parts: Parts, *, cumulative: int) -> bytes:
    """The 32 bytes to sign. Raises `ValueError` for an amount out of the channel's range."""
    if not 0 <= cumulative <= amount_max(parts.kind):
        raise ValueError("the cumulative amount is out of range")
    bits = 96 if parts.kind == "tempo-v2" else 128
    domain = keccak(
        _DOMAIN_TYPE
        + keccak(_DOMAIN_NAMES[parts.kind].encode())
        + keccak(b"1")
        + encode(("uint256", "address"), (parts.chain_id, parts.escrow))
    )
    body = keccak(
        keccak(f"Voucher(bytes32 channelId,uint{bits} cumulativeAmount)".encode())
        + raw(parts.channel_id)
        + cumulative.to_bytes(32, "big")
    )
    return keccak(b"\x19\x01" + domain + body)


def sign_hash(account: LocalAccount, message_hash: bytes) -> str:
    """A canonical signature (low s) of 65 bytes, v being 27 or 28, as 0x and hexadecimal."""
    signed = account.unsafe_sign_hash(Hash32(message_hash))
    return "0x" + (signed.r.to_bytes(32, "big") + signed.s.to_bytes(32, "big") + bytes((signed.v,))).hex()


def sign(account: LocalAccount, parts: Parts, *, cumulative: int) -> str:
    """The signature of a voucher. Whoever calls has recorded ``cumulative`` durably before."""
    return sign_hash(account, digest(parts, cumulative=cumulative))


def members(account: LocalAccount, parts: Parts, *, cumulative: int) -> dict[str, Any]:
    """A voucher as members of a credential's payload."""
    payload: dict[str, Any] = {
        "channelId": parts.channel_id,
        "cumulativeAmount": str(cumulative),
        "signature": sign(account, parts, cumulative=cumulative),
    }
    if parts.kind == "tempo-v2":
        payload["descriptor"] = parts.descriptor
    return payload
