"""What the strict edge knows of chains: addresses, ABIs, transactions and vouchers, by other code than the client's."""

from typing import Any

import rlp  # type: ignore[import-untyped]
from eth_abi.abi import decode
from eth_account import Account
from eth_account.messages import encode_typed_data
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

CHAIN_ID = 4217
RESERVE = "0x4d50500000000000000000000000000000000000"
ESCROW_V1 = "0x9d136eea063ede5418a6bc7beaff009bbb6cfa70"
TOKEN = "0x20c0000000000000000000000000000000000000"
PAYEE = "0x742d35cc6634c0532925a3b844bc9e7595f8fe00"
DESCRIPTOR_NAMES = ("payer", "payee", "operator", "token", "salt", "authorizedSigner", "expiringNonceHash")
DESCRIPTOR = "(address,address,address,address,bytes32,address,bytes32)"


def voucher_domain(kind: str, chain_id: int, escrow: str) -> dict[str, Any]:
    """An EIP-712 domain as the drafts write it down."""
    names = {"tempo-v2": "TIP20 Channel Reserve", "tempo-v1": "Tempo Stream Channel", "evm": "EVM Payment Channel"}
    return {"name": names[kind], "version": "1", "chainId": chain_id, "verifyingContract": to_checksum_address(escrow)}


def voucher_message(domain: dict[str, Any], kind: str, channel_id: str, amount: int) -> Any:
    """A voucher as typed data."""
    members = [
        {"name": "channelId", "type": "bytes32"},
        {"name": "cumulativeAmount", "type": "uint96" if kind == "tempo-v2" else "uint128"},
    ]
    message = {"channelId": bytes.fromhex(channel_id[2:]), "cumulativeAmount": amount}
    return encode_typed_data(domain, {"Voucher": members}, message)


def selector(signature: str) -> bytes:
    """The first four bytes of a call."""
    return keccak(signature.encode())[:4]


def arguments(signature: str, data: bytes) -> tuple[Any, ...]:
    """The arguments of a call, which must be of ``signature``."""
    assert data[:4] == selector(signature), signature
    # All types are static, so that a tuple of them is encoded like its members.
    (values,) = decode([signature[signature.index("(") :]], data[4:])
    return tuple(values)


def hexed(value: Any) -> str:
    """An argument as JSON has it."""
    return "0x" + value.hex() if isinstance(value, bytes) else str(value)


def decoded(raw: str, *, sponsored: bool) -> tuple[list[tuple[str, bytes]], str, bytes, int]:
    """A Tempo transaction: its calls, who signed it, what was signed, and until when it is valid."""
    data = bytes.fromhex(raw[2:])
    assert data[0] == (0x78 if sponsored else 0x76)
    fields = rlp.decode(data[1:])
    assert len(fields) == 14
    *unsigned, signature = fields
    if sponsored:
        unsigned[10], unsigned[11] = b"", b"\x00"
    else:
        assert unsigned[10] == bytes.fromhex(TOKEN[2:])
        assert unsigned[11] == b""
    signing = b"\x76" + rlp.encode(unsigned)
    # Expiring nonces: the highest key, and nonce 0.
    assert (unsigned[6], unsigned[7]) == (b"\xff" * 32, b"")
    signer = Account._recover_hash(keccak(signing), signature=signature)
    if sponsored:
        assert fields[11] == bytes.fromhex(signer[2:])
    calls = [("0x" + to.hex(), data) for to, _, data in unsigned[4]]
    return calls, signer.lower(), signing, int.from_bytes(unsigned[8], "big")
