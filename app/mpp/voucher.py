"""Vouchers: cumulative amounts that a channel's signer authorises by EIP-712. Pure.

Source: `draft-tempo-session-00`, "Voucher Signing Format"; the evm draft differs in its domain name.
"""

from dataclasses import dataclass, field
from functools import lru_cache

from coincurve import PublicKey
from eth_abi.abi import encode
from eth_utils.crypto import keccak

# secp256k1, SEC 2 section 2.4.1: above half the order a signature has a second form.
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
HALF_ORDER = ORDER // 2
_DOMAIN_TYPE = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
_UINT256_BYTES = 32


class SignatureInvalid(ValueError):
    """Not a canonical signature of 65 bytes or of EIP-2098's 64."""


@dataclass(frozen=True, slots=True)
class VoucherDomain:
    """Where vouchers are valid: one escrow on one chain. ``amount_bits`` is 96 for protocol v2."""

    name: str
    chain_id: int
    escrow: str
    amount_bits: int

    @property
    def amount_max(self) -> int:
        """The largest cumulative amount, in base units."""
        return int(2**self.amount_bits) - 1


@dataclass(frozen=True, slots=True)
class Voucher:
    """``cumulative_amount`` base units of one channel, in all; the signature is 0x and hexadecimal."""

    channel_id: str
    cumulative_amount: int
    signature: str = field(repr=False)


@lru_cache(maxsize=64)
def _domain_separator(domain: VoucherDomain) -> bytes:
    return keccak(
        _DOMAIN_TYPE
        + keccak(domain.name.encode())
        + keccak(b"1")
        + encode(("uint256", "address"), (domain.chain_id, domain.escrow))
    )


@lru_cache(maxsize=4)
def _voucher_type(amount_bits: int) -> bytes:
    return keccak(f"Voucher(bytes32 channelId,uint{amount_bits} cumulativeAmount)".encode())


def signing_hash(domain: VoucherDomain, *, channel_id: str, cumulative_amount: int) -> bytes:
    """The 32 bytes that a channel's signer signs. Raises `ValueError` for an amount out of range."""
    if not 0 <= cumulative_amount <= domain.amount_max:
        raise ValueError("the cumulative amount is out of range")
    body = (
        _voucher_type(domain.amount_bits)
        + bytes.fromhex(channel_id[2:])
        + cumulative_amount.to_bytes(_UINT256_BYTES, "big")
    )
    return keccak(b"\x19\x01" + _domain_separator(domain) + keccak(body))


def signature_bytes(text: object) -> bytes:
    """A signature as r, s and a recovery id of 0 or 1. Raises `SignatureInvalid`, for high-s ones too."""
    if not isinstance(text, str) or len(text) not in {130, 132} or not text.startswith("0x"):
        raise SignatureInvalid("a signature is 0x and 65 bytes, or 64 as of EIP-2098, in hexadecimal")
    try:
        raw = bytes.fromhex(text[2:])
    except ValueError as error:
        raise SignatureInvalid("a signature is hexadecimal") from error
    if 2 + 2 * len(raw) != len(text):
        # `fromhex` reads past spaces: one signature would have many texts.
        raise SignatureInvalid("a signature is hexadecimal")
    if len(raw) == 65:
        r, s, parity = raw[:32], int.from_bytes(raw[32:64], "big"), raw[64] - 27 if raw[64] >= 27 else raw[64]
    elif len(raw) == 64:
        r, s = raw[:32], int.from_bytes(raw[32:], "big")
        parity, s = s >> 255, s & (2**255 - 1)
    else:
        raise SignatureInvalid("a signature is 65 bytes, or 64 as of EIP-2098")
    if parity not in {0, 1} or not 0 < s <= HALF_ORDER or not 0 < int.from_bytes(r, "big") < ORDER:
        raise SignatureInvalid("the signature is not canonical (low s, recovery id 27 or 28)")
    return r + s.to_bytes(32, "big") + bytes((parity,))


def recover(digest: bytes, signature: bytes) -> str:
    """The address that signed ``digest``, in lowercase. Raises `SignatureInvalid`."""
    try:
        key = PublicKey.from_signature_and_message(signature, digest, hasher=None)
    except Exception as error:  # coincurve raises bare `Exception` and `ValueError` alike
        raise SignatureInvalid("no key made this signature") from error
    return "0x" + keccak(key.format(compressed=False)[1:])[12:].hex()


def signer_of(domain: VoucherDomain, voucher: Voucher) -> str:
    """Who signed a voucher. Raises `SignatureInvalid` or `ValueError`."""
    digest = signing_hash(domain, channel_id=voucher.channel_id, cumulative_amount=voucher.cumulative_amount)
    return recover(digest, signature_bytes(voucher.signature))
