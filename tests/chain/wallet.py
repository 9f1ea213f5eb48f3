"""A payer's wallet: signs what clients send, with the libraries that clients in Python use."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import attrs
from eth_abi.abi import encode
from eth_account import Account
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak
from mpp.methods.tempo.fee_payer_envelope import encode_fee_payer_envelope
from pytempo import Call, TempoTransaction  # type: ignore[import-untyped]

from app.chain import abi
from app.chain.backend import Offer
from app.clock import SystemClock
from app.mpp.descriptor import ZERO_ADDRESS, Descriptor
from app.mpp.voucher import signing_hash

EXPIRING = 2**256 - 1
GWEI = 10**9
VALIDITY_S = 20


def now_s() -> int:
    """Seconds since the epoch."""
    return SystemClock().now_ms() // 1000


def new_key() -> str:
    """A fresh private key in hexadecimal."""
    return "0x" + secrets.token_hex(32)


@dataclass(frozen=True)
class Opening:
    """An open that was signed: the payload of its credential, and what it will be."""

    payload: dict[str, Any]
    descriptor: Descriptor
    channel_id: str
    transaction: TempoTransaction | None = None


@dataclass
class Wallet:
    """One account. ``changes`` of its methods go into the transaction as they are."""

    offer: Offer
    key: str = field(default_factory=new_key)

    @property
    def address(self) -> str:
        """The account, in lowercase."""
        address: str = Account.from_key(self.key).address
        return address.lower()

    @property
    def source(self) -> str:
        """The account as a credential names it."""
        return f"did:pkh:eip155:{self.offer.chain_id}:{self.address}"

    def transaction(
        self, calls: Sequence[tuple[str, bytes]], *, sponsored: bool = False, **changes: Any
    ) -> TempoTransaction:
        """A signed Tempo transaction."""
        fields: dict[str, Any] = {
            "chain_id": self.offer.chain_id,
            "gas_limit": 1_900_000,
            "max_fee_per_gas": 25 * GWEI,
            "max_priority_fee_per_gas": 0,
            "nonce_key": EXPIRING,
            "valid_before": now_s() + VALIDITY_S,
            "fee_token": None if sponsored else self.offer.currency,
            "awaiting_fee_payer": sponsored,
            "calls": tuple(Call.create(to=to, data=data) for to, data in calls),
        }
        return TempoTransaction.create(**{**fields, **changes}).sign(self.key)

    def wire(self, transaction: TempoTransaction) -> str:
        """As it is sent: an envelope where somebody else is to pay the fees."""
        raw = encode_fee_payer_envelope(transaction) if transaction.awaiting_fee_payer else transaction.encode()
        return "0x" + raw.hex()

    def voucher(self, channel_id: str, amount: int, *, key: str | None = None) -> str:
        """A voucher's signature."""
        digest = signing_hash(self.offer.domain, channel_id=channel_id, cumulative_amount=amount)
        return "0x" + bytes(Account.from_key(key or self.key).unsafe_sign_hash(digest).signature).hex()

    # Protocol v2.

    def open_v2(
        self,
        deposit: int,
        *,
        sponsored: bool = False,
        payee: str | None = None,
        token: str | None = None,
        operator: str | None = None,
        escrow: str | None = None,
        extra: Sequence[tuple[str, bytes]] = (),
        suffix: bytes = b"",
        **changes: Any,
    ) -> Opening:
        """An open of a channel, ours unless something is named."""
        offer, salt = self.offer, secrets.token_bytes(32)
        arguments = (
            payee or offer.recipient,
            operator or offer.operator or ZERO_ADDRESS,
            token or offer.currency,
            deposit,
            salt,
            self.address,
        )
        call = (escrow or offer.escrow, abi.V2_OPEN.call(*arguments) + suffix)
        signed = self.transaction((call, *extra), sponsored=sponsored, **changes)
        descriptor = Descriptor(
            payer=self.address,
            payee=arguments[0],
            operator=arguments[1],
            token=arguments[2],
            salt="0x" + salt.hex(),
            authorized_signer=self.address,
            expiring_nonce_hash="0x" + keccak(signed.encode_for_signing() + bytes.fromhex(self.address[2:])).hex(),
        )
        channel_id = descriptor.channel_id(protocol="v2", escrow=offer.escrow, chain_id=offer.chain_id)
        payload = {
            "action": "open",
            "type": "transaction",
            "channelId": channel_id,
            "transaction": self.wire(signed),
            "descriptor": descriptor.to_wire(),
            "authorizedSigner": self.address,
            "cumulativeAmount": "0",
            "signature": self.voucher(channel_id, 0),
        }
        return Opening(payload=payload, descriptor=descriptor, channel_id=channel_id, transaction=signed)

    def top_up_v2(self, opened: Opening, amount: int, *, sponsored: bool = False, **changes: Any) -> dict[str, Any]:
        """A top-up's payload."""
        call = abi.V2_TOP_UP.call(abi.descriptor_tuple(opened.descriptor), amount)
        signed = self.transaction(((self.offer.escrow, call),), sponsored=sponsored, **changes)
        return {
            "action": "topUp",
            "type": "transaction",
            "channelId": opened.channel_id,
            "transaction": self.wire(signed),
            "descriptor": opened.descriptor.to_wire(),
            "additionalDeposit": str(amount),
        }

    # Protocol v1.

    def open_v1(
        self,
        deposit: int,
        *,
        sponsored: bool = False,
        payee: str | None = None,
        token: str | None = None,
        escrow: str | None = None,
        spender: str | None = None,
        approved: int | None = None,
        extra: Sequence[tuple[str, bytes]] = (),
        **changes: Any,
    ) -> Opening:
        """An approval and an open of a channel, ours unless something is named."""
        offer, salt = self.offer, secrets.token_bytes(32)
        payee, token, escrow = payee or offer.recipient, token or offer.currency, escrow or offer.escrow
        approval = abi.APPROVE.call(spender or escrow, deposit if approved is None else approved)
        opening = abi.V1_OPEN.call(payee, token, deposit, salt, self.address)
        signed = self.transaction(((token, approval), (escrow, opening), *extra), sponsored=sponsored, **changes)
        descriptor = Descriptor(
            payer=self.address, payee=payee, token=token, salt="0x" + salt.hex(), authorized_signer=self.address
        )
        channel_id = descriptor.channel_id(protocol="v1", escrow=offer.escrow, chain_id=offer.chain_id)
        payload = {
            "action": "open",
            "type": "transaction",
            "channelId": channel_id,
            "transaction": self.wire(signed),
            "authorizedSigner": self.address,
            "cumulativeAmount": "0",
            "signature": self.voucher(channel_id, 0),
        }
        return Opening(payload=payload, descriptor=descriptor, channel_id=channel_id, transaction=signed)

    def top_up_v1(
        self, opened: Opening, amount: int, *, wide: bool = True, approved: int | None = None, **changes: Any
    ) -> dict[str, Any]:
        """A top-up's payload, with the deployed contract's function or the draft's."""
        function = abi.V1_TOP_UP_256 if wide else abi.V1_TOP_UP
        approval = abi.APPROVE.call(self.offer.escrow, amount if approved is None else approved)
        call = function.call(bytes.fromhex(opened.channel_id[2:]), amount)
        signed = self.transaction(((self.offer.currency, approval), (self.offer.escrow, call)), **changes)
        return {
            "action": "topUp",
            "type": "transaction",
            "channelId": opened.channel_id,
            "transaction": self.wire(signed),
            "additionalDeposit": str(amount),
        }

    # Requests to close, which go to the chain and not to us.

    def request_close(self, opened: Opening) -> bytes:
        """A signed request to close, to be broadcast."""
        if self.offer.protocol == "v2":
            function = abi.Function("requestClose", (abi.DESCRIPTOR,))
            data = function.call(abi.descriptor_tuple(opened.descriptor))
        else:
            data = abi.Function("requestClose", ("bytes32",)).call(bytes.fromhex(opened.channel_id[2:]))
        return bytes(self.transaction(((self.offer.escrow, data),)).encode())

    # EVM.

    def sign_evm(self, to: str, data: bytes, *, nonce: int) -> bytes:
        """A signed EIP-1559 call, to be broadcast."""
        transaction = {
            "chainId": self.offer.chain_id,
            "nonce": nonce,
            "to": to_checksum_address(to),
            "value": 0,
            "data": data,
            "gas": 500_000,
            "maxFeePerGas": 10 * GWEI,
            "maxPriorityFeePerGas": 0,
        }
        return bytes(Account.sign_transaction(transaction, self.key).raw_transaction)

    def authorize(self, value: int, nonce: bytes, *, token_name: str, **changes: Any) -> tuple[dict[str, Any], str]:
        """An EIP-3009 authorization to the escrow, and its signature."""
        message: dict[str, Any] = {
            "from": self.address,
            "to": self.offer.escrow,
            "value": value,
            "validAfter": 0,
            "validBefore": now_s() + 300,
            "nonce": nonce,
            **changes,
        }
        types = {
            "ReceiveWithAuthorization": [
                {"name": "from", "type": "address"},
                {"name": "to", "type": "address"},
                {"name": "value", "type": "uint256"},
                {"name": "validAfter", "type": "uint256"},
                {"name": "validBefore", "type": "uint256"},
                {"name": "nonce", "type": "bytes32"},
            ]
        }
        domain = {
            "name": token_name,
            "version": "1",
            "chainId": self.offer.chain_id,
            "verifyingContract": self.offer.currency,
        }
        signed = Account.sign_typed_data(self.key, domain, types, message)
        shown = {
            "from": message["from"],
            "to": message["to"],
            "value": str(message["value"]),
            "validAfter": str(message["validAfter"]),
            "validBefore": str(message["validBefore"]),
            "nonce": "0x" + message["nonce"].hex(),
        }
        return shown, "0x" + bytes(signed.signature).hex()


def resigned(transaction: TempoTransaction, key: str, **changes: Any) -> TempoTransaction:
    """The same transaction with changes, signed by ``key``."""
    return attrs.evolve(transaction, sender_signature=None, sender_address=None, **changes).sign(key)


def evm_nonce(types: Sequence[str], values: Sequence[Any]) -> bytes:
    """The nonce that commits an authorization to a channel."""
    return keccak(encode(types, values))
