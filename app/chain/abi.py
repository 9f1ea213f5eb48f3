"""The few functions and events of tokens and escrows that Farebox calls and reads, by hand. Pure.

Sources: the reference interface in `draft-tempo-session-00` (v1), the TIP-20 channel reserve's interface
as `mppx` publishes it (v2), `draft-evm-session-00` (EIP-3009 opens), ERC-20. Decoding is strict: call data
that is not the one canonical encoding of its arguments is refused, so that a signature never covers
bytes that nobody looked at.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError, EncodingError
from eth_utils.crypto import keccak

from app.chain.backend import EventKind
from app.mpp.descriptor import Descriptor

DESCRIPTOR = "(address,address,address,address,bytes32,address,bytes32)"
SELECTOR_BYTES = 4


@dataclass(frozen=True)
class Function:
    """A function by its name and its arguments' types."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...] = ()

    @cached_property
    def selector(self) -> bytes:
        """The four bytes that call data begins with."""
        return keccak(f"{self.name}({','.join(self.inputs)})".encode())[:SELECTOR_BYTES]

    def call(self, *arguments: Any) -> bytes:
        """Call data. Raises `ValueError` for arguments out of range."""
        try:
            return self.selector + encode(self.inputs, arguments)
        except (EncodingError, OverflowError) as error:
            raise ValueError(f"{self.name}: {error}") from error

    def arguments(self, data: bytes) -> tuple[Any, ...]:
        """The arguments of call data. Raises `ValueError` for another function or any other encoding."""
        if data[:SELECTOR_BYTES] != self.selector:
            raise ValueError(f"expected a call of {self.name}")
        try:
            arguments = decode(self.inputs, data[SELECTOR_BYTES:])
        except (DecodingError, OverflowError, ValueError) as error:
            raise ValueError(f"{self.name}: the call data cannot be read") from error
        if self.call(*arguments) != data:
            raise ValueError(f"{self.name}: the call data is not encoded canonically")
        return tuple(arguments)

    def result(self, data: bytes) -> tuple[Any, ...]:
        """What a call returned. Raises `ValueError`."""
        try:
            return tuple(decode(self.outputs, data))
        except (DecodingError, OverflowError, ValueError) as error:
            raise ValueError(f"{self.name}: the result cannot be read") from error


def topic(signature: str) -> str:
    """The first topic of an event, in lowercase hexadecimal."""
    return "0x" + keccak(signature.encode()).hex()


def address_topic(address: str) -> str:
    """An address as an indexed argument."""
    return "0x" + "00" * 12 + address[2:]


def descriptor_tuple(descriptor: Descriptor) -> tuple[Any, ...]:
    """A descriptor as v2 functions take it."""
    return (
        descriptor.payer,
        descriptor.payee,
        descriptor.operator,
        descriptor.token,
        bytes.fromhex(descriptor.salt[2:]),
        descriptor.authorized_signer,
        bytes.fromhex(descriptor.expiring_nonce_hash[2:]),
    )


def descriptor_of(values: Sequence[Any]) -> Descriptor:
    """The inverse of `descriptor_tuple`."""
    payer, payee, operator, token, salt, signer, nonce_hash = values
    return Descriptor(
        payer=payer.lower(),
        payee=payee.lower(),
        operator=operator.lower(),
        token=token.lower(),
        salt="0x" + salt.hex(),
        authorized_signer=signer.lower(),
        expiring_nonce_hash="0x" + nonce_hash.hex(),
    )


# Tokens.
DECIMALS = Function("decimals", (), ("uint8",))
BALANCE_OF = Function("balanceOf", ("address",), ("uint256",))
APPROVE = Function("approve", ("address", "uint256"), ("bool",))
TRANSFER_WITH_MEMO = Function("transferWithMemo", ("address", "uint256", "bytes32"))
RECEIVE_WITH_AUTHORIZATION = Function(
    "receiveWithAuthorization", ("address", "address", "uint256", "uint256", "uint256", "bytes32", "bytes")
)
TRANSFER_TOPIC = topic("Transfer(address,address,uint256)")
TRANSFER_WITH_MEMO_TOPIC = topic("TransferWithMemo(address,address,uint256,bytes32)")


# Every escrow.
def voucher_digest(amount_bits: int) -> Function:
    """The view that says what the escrow wants signed."""
    return Function("getVoucherDigest", ("bytes32", f"uint{amount_bits}"), ("bytes32",))


# v1 and evm. The order of the state's members is the deployed contract's, which is not the draft's.
V1_OPEN = Function("open", ("address", "address", "uint128", "bytes32", "address"), ("bytes32",))
# The deployed contract's, which clients of `tempo` call, and the one of the evm draft's text.
V1_TOP_UP_256 = Function("topUp", ("bytes32", "uint256"))
V1_TOP_UP = Function("topUp", ("bytes32", "uint128"))
V1_SETTLE = Function("settle", ("bytes32", "uint128", "bytes"))
V1_CLOSE = Function("close", ("bytes32", "uint128", "bytes"))
V1_CLOSE_WITH_CAPTURE = Function("closeWithCapture", ("bytes32", "uint128", "uint128", "bytes"))
V1_GET_CHANNEL = Function(
    "getChannel", ("bytes32",), ("bool", "uint64", "address", "address", "address", "address", "uint128", "uint128")
)
OPEN_WITH_AUTHORIZATION = Function(
    "openWithAuthorization",
    (
        *("address", "address", "uint128", "bytes32", "address"),
        *("address", "uint256", "uint256", "bytes32", "bytes"),
    ),
    ("bytes32",),
)
TOP_UP_WITH_AUTHORIZATION = Function(
    "topUpWithAuthorization",
    ("bytes32", "uint128", "address", "bytes32", "uint256", "uint256", "bytes32", "bytes"),
)
V1_TOPICS: Mapping[str, EventKind] = {
    # With the salt in the deployed contract, without it in the draft's text.
    topic("ChannelOpened(bytes32,address,address,address,address,bytes32,uint256)"): "opened",
    topic("ChannelOpened(bytes32,address,address,address,address,uint256)"): "opened",
    topic("TopUp(bytes32,address,address,uint256,uint256)"): "topped_up",
    topic("Settled(bytes32,address,address,uint256,uint256,uint256)"): "settled",
    topic("CloseRequested(bytes32,address,address,uint256)"): "close_requested",
    topic("CloseRequestCancelled(bytes32,address,address)"): "close_request_cancelled",
    topic("ChannelClosed(bytes32,address,address,uint256,uint256)"): "closed",
    topic("ChannelExpired(bytes32,address,address)"): "closed",
}

# v2.
V2_OPEN = Function("open", ("address", "address", "address", "uint96", "bytes32", "address"), ("bytes32",))
V2_TOP_UP = Function("topUp", (DESCRIPTOR, "uint96"))
V2_SETTLE = Function("settle", (DESCRIPTOR, "uint96", "bytes"))
V2_CLOSE = Function("close", (DESCRIPTOR, "uint96", "uint96", "bytes"))
V2_GET_CHANNEL_STATE = Function("getChannelState", ("bytes32",), ("uint96", "uint96", "uint32"))
V2_CLOSED_TOPIC = topic("ChannelClosed(bytes32,address,address,uint96,uint96)")
V2_TOPICS: Mapping[str, EventKind] = {
    topic("ChannelOpened(bytes32,address,address,address,address,address,bytes32,bytes32,uint96)"): "opened",
    topic("TopUp(bytes32,address,address,uint96,uint96)"): "topped_up",
    topic("Settled(bytes32,address,address,uint96,uint96,uint96)"): "settled",
    topic("CloseRequested(bytes32,address,address,uint256)"): "close_requested",
    topic("CloseRequestCancelled(bytes32,address,address)"): "close_request_cancelled",
    V2_CLOSED_TOPIC: "closed",
}
