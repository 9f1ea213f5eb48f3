"""Tempo transactions (types 0x76 and 0x78): decoding what clients signed, and signing our own. Pure.

Source: the Tempo transaction specification that `draft-tempo-session-00` refers to. A transaction is a
list of 14 fields; the sender signs 0x76 over the first 13, a fee payer signs 0x78 over the same with the
sender's address in slot 11. Where somebody else is to pay, the sender's signing form has an empty fee
token and a zero byte in slot 11. What clients send to be sponsored is the 0x78 envelope, whose slot 11
holds the sender, or 0x76 with the zero byte.

Only secp256k1 accounts are taken: a passkey's or an access key's transaction cannot be attributed
to its sender without asking the chain.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from eth_utils.crypto import keccak

from app.chain import rlp
from app.chain.backend import TransactionRefused
from app.chain.signer import Signer
from app.money import BaseUnits
from app.mpp.voucher import HALF_ORDER, ORDER, SignatureInvalid, recover

TRANSACTION: Final = 0x76
FEE_PAYER_ENVELOPE: Final = 0x78
# An open is about 500 bytes; calls are few and their data small.
TRANSACTION_BYTES_MAX = 8192
EXPIRING_NONCE_KEY = 2**256 - 1
# Gas prices are in 1e-18 USD, fee tokens in 1e-6 USD.
ATTO_PER_BASE_UNIT = 10**12

_FIELDS = 14
_DEPTH_MAX = 4
_ADDRESS_BYTES = 20
_SIGNATURE_BYTES = 65
_AWAITED = b"\0"


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a batch; ``to`` in lowercase hexadecimal, ``value`` in native units (Tempo has none)."""

    to: str
    data: bytes
    value: int = 0


@dataclass(frozen=True, slots=True)
class FeePayerSignature:
    """A fee payer's signature over the 0x78 form."""

    parity: int
    r: int
    s: int


@dataclass(frozen=True)
class TempoTransaction:
    """A signed transaction. Fees are in 1e-18 USD per gas, times in seconds of chain time.

    ``awaits_fee_payer`` says that the sender's signature leaves the fees to somebody who has not signed yet.
    """

    chain_id: int
    max_priority_fee_per_gas: int
    max_fee_per_gas: int
    gas: int
    calls: tuple[Call, ...]
    nonce_key: int
    nonce: int
    valid_before: int | None
    valid_after: int | None
    fee_token: str | None
    sender: str
    signature: bytes
    awaits_fee_payer: bool = False
    fee_payer_signature: FeePayerSignature | None = None

    @property
    def fee_max(self) -> BaseUnits:
        """The most that it can cost, in base units of the fee token, rounded up."""
        return BaseUnits(-(-self.gas * self.max_fee_per_gas // ATTO_PER_BASE_UNIT))

    @cached_property
    def raw(self) -> bytes:
        """What a node takes. Only meaningful once nobody's signature is missing."""
        return _encoded(self, envelope=False)

    @cached_property
    def tx_hash(self) -> str:
        """The hash it is mined under."""
        return "0x" + keccak(self.raw).hex()

    @cached_property
    def expiring_nonce_hash(self) -> str:
        """What identifies it among its sender's transactions with an expiring nonce, whoever pays the fees."""
        return "0x" + keccak(_sender_form(self) + bytes.fromhex(self.sender[2:])).hex()

    def sponsored(self, signer: Signer, *, fee_token: str) -> "TempoTransaction":
        """The same transaction with ``signer`` paying its fees in ``fee_token``."""
        chosen = replace(self, fee_token=fee_token, awaits_fee_payer=False)
        parity, r, s = signer.sign(keccak(_fee_payer_form(chosen)))
        return replace(chosen, fee_payer_signature=FeePayerSignature(parity=parity, r=r, s=s))

    def fee_payer(self) -> str | None:
        """Who signed to pay the fees instead of the sender. Raises `SignatureInvalid`."""
        if self.fee_payer_signature is None:
            return None
        signature = self.fee_payer_signature
        raw = signature.r.to_bytes(32, "big") + signature.s.to_bytes(32, "big") + bytes((signature.parity,))
        return recover(keccak(_fee_payer_form(self)), raw)


def sign(
    signer: Signer,
    *,
    chain_id: int,
    nonce: int,
    calls: Sequence[Call],
    gas: int,
    max_fee_per_gas: int,
    max_priority_fee_per_gas: int,
    fee_token: str,
) -> TempoTransaction:
    """A transaction of our own, which pays its own fees, on the account's ordered nonces."""
    unsigned = TempoTransaction(
        chain_id=chain_id,
        max_priority_fee_per_gas=max_priority_fee_per_gas,
        max_fee_per_gas=max_fee_per_gas,
        gas=gas,
        calls=tuple(calls),
        nonce_key=0,
        nonce=nonce,
        valid_before=None,
        valid_after=None,
        fee_token=fee_token,
        sender=signer.address,
        signature=b"",
    )
    parity, r, s = signer.sign(keccak(_sender_form(unsigned)))
    return replace(unsigned, signature=r.to_bytes(32, "big") + s.to_bytes(32, "big") + bytes((27 + parity,)))


def parse(text: object) -> TempoTransaction:
    """A client's transaction from its hexadecimal text. Raises `TransactionRefused`, and nothing else."""
    # `fromhex` would skip blanks, and two texts would be one transaction.
    if not isinstance(text, str) or not text.startswith("0x") or not text.isascii() or not text.isalnum():
        raise TransactionRefused("transaction: expected 0x and hexadecimal digits", malformed=True)
    if len(text) > 2 + 2 * TRANSACTION_BYTES_MAX:
        raise TransactionRefused("transaction: too long", malformed=True)
    try:
        raw = bytes.fromhex(text[2:])
    except ValueError as error:
        raise TransactionRefused("transaction: expected 0x and hexadecimal digits", malformed=True) from error
    return decode(raw)


def decode(raw: bytes) -> TempoTransaction:
    """A signed transaction from its bytes. Raises `TransactionRefused`, and nothing else."""
    if not raw or raw[0] not in {TRANSACTION, FEE_PAYER_ENVELOPE}:
        raise TransactionRefused("transaction: only Tempo transactions (0x76, 0x78) are taken", malformed=True)
    if len(raw) > TRANSACTION_BYTES_MAX:
        raise TransactionRefused("transaction: too long", malformed=True)
    envelope = raw[0] == FEE_PAYER_ENVELOPE
    try:
        fields = rlp.decode(raw[1:], depth_max=_DEPTH_MAX)
        transaction = _of_fields(fields, envelope=envelope)
        # Belt and braces: what was decoded is what was sent, byte for byte but for the recovery id's form.
        if _encoded(transaction, envelope=envelope)[:-1] != raw[:-1]:
            raise ValueError("it is not encoded canonically")
    except (ValueError, OverflowError) as error:
        raise TransactionRefused(f"transaction: {error}", malformed=True) from error
    return transaction


def _of_fields(fields: rlp.Item, *, envelope: bool) -> TempoTransaction:
    if not isinstance(fields, list) or len(fields) != _FIELDS:
        raise ValueError(f"expected {_FIELDS} fields; key authorizations are not taken")
    if fields[5] != [] or fields[12] != []:
        raise ValueError("access lists and authorization lists are not taken")
    calls = fields[4]
    if not isinstance(calls, list):
        raise ValueError("expected a list of calls")
    payer_slot, fee_payer_signature = fields[11], None
    if isinstance(payer_slot, list):
        fee_payer_signature = _fee_payer_signature(payer_slot)
    transaction = TempoTransaction(
        chain_id=rlp.number(fields[0], bits=64),
        max_priority_fee_per_gas=rlp.number(fields[1], bits=128),
        max_fee_per_gas=rlp.number(fields[2], bits=128),
        gas=rlp.number(fields[3], bits=64),
        calls=tuple(_call(call) for call in calls),
        nonce_key=rlp.number(fields[6], bits=256),
        nonce=rlp.number(fields[7], bits=64),
        valid_before=rlp.number(fields[8], bits=64) or None,
        valid_after=rlp.number(fields[9], bits=64) or None,
        fee_token=None if fields[10] == b"" else _address(fields[10]),
        sender="",
        signature=_signature(fields[13]),
        awaits_fee_payer=envelope or payer_slot == _AWAITED,
        fee_payer_signature=fee_payer_signature,
    )
    if not envelope and not isinstance(payer_slot, list) and payer_slot not in {b"", _AWAITED}:
        raise ValueError("slot 11 is neither empty nor a fee payer's")
    digest = keccak(_sender_form(transaction))
    sender = recover(digest, transaction.signature[:64] + bytes((transaction.signature[64] - 27,)))
    if envelope and _address(payer_slot) != sender:
        raise ValueError("the sender did not sign it")
    transaction = replace(transaction, sender=sender)
    if fee_payer_signature is not None:
        transaction.fee_payer()
    return transaction


def _call(item: rlp.Item) -> Call:
    if not isinstance(item, list) or len(item) != 3 or not isinstance(item[2], bytes):
        raise ValueError("a call is a target, a value and data")
    return Call(to=_address(item[0]), value=rlp.number(item[1], bits=256), data=item[2])


def _address(item: rlp.Item) -> str:
    if not isinstance(item, bytes) or len(item) != _ADDRESS_BYTES:
        raise ValueError(f"an address is {_ADDRESS_BYTES} bytes")
    return "0x" + item.hex()


def _signature(item: rlp.Item) -> bytes:
    """The sender's signature with a recovery id of 27 or 28, which is the form that nodes hash."""
    if not isinstance(item, bytes) or len(item) != _SIGNATURE_BYTES:
        raise ValueError("only secp256k1 signatures of 65 bytes are taken")
    parity = item[64] - 27 if item[64] >= 27 else item[64]
    _check_canonical(parity, int.from_bytes(item[:32], "big"), int.from_bytes(item[32:64], "big"))
    return item[:64] + bytes((27 + parity,))


def _fee_payer_signature(items: list[rlp.Item]) -> FeePayerSignature:
    if len(items) != 3:
        raise ValueError("a fee payer's signature is parity, r and s")
    parity, r, s = rlp.number(items[0], bits=8), rlp.number(items[1], bits=256), rlp.number(items[2], bits=256)
    _check_canonical(parity, r, s)
    return FeePayerSignature(parity=parity, r=r, s=s)


def _check_canonical(parity: int, r: int, s: int) -> None:
    if parity not in {0, 1} or not 0 < r < ORDER or not 0 < s <= HALF_ORDER:
        raise SignatureInvalid("a signature is not canonical (low s, recovery id 27 or 28)")


def _body(transaction: TempoTransaction, *, fee_token: str | None, slot: rlp.Encodable) -> list[rlp.Encodable]:
    return [
        transaction.chain_id,
        transaction.max_priority_fee_per_gas,
        transaction.max_fee_per_gas,
        transaction.gas,
        [[bytes.fromhex(call.to[2:]), call.value, call.data] for call in transaction.calls],
        [],
        transaction.nonce_key,
        transaction.nonce,
        transaction.valid_before or 0,
        transaction.valid_after or 0,
        bytes.fromhex(fee_token[2:]) if fee_token else b"",
        slot,
        [],
    ]


def _sender_form(transaction: TempoTransaction) -> bytes:
    """What the sender signs, and what the expiring nonce's hash is made of."""
    others_pay = transaction.awaits_fee_payer or transaction.fee_payer_signature is not None
    body = _body(
        transaction,
        fee_token=None if others_pay else transaction.fee_token,
        slot=_AWAITED if others_pay else b"",
    )
    return bytes((TRANSACTION,)) + rlp.encode(body)


def _fee_payer_form(transaction: TempoTransaction) -> bytes:
    body = _body(transaction, fee_token=transaction.fee_token, slot=bytes.fromhex(transaction.sender[2:]))
    return bytes((FEE_PAYER_ENVELOPE,)) + rlp.encode(body)


def _encoded(transaction: TempoTransaction, *, envelope: bool) -> bytes:
    slot: rlp.Encodable = _AWAITED if transaction.awaits_fee_payer else b""
    if envelope:
        slot = bytes.fromhex(transaction.sender[2:])
    elif transaction.fee_payer_signature is not None:
        signature = transaction.fee_payer_signature
        slot = [signature.parity, signature.r, signature.s]
    body = _body(transaction, fee_token=transaction.fee_token, slot=slot)
    kind = FEE_PAYER_ENVELOPE if envelope else TRANSACTION
    return bytes((kind,)) + rlp.encode([*body, transaction.signature])
