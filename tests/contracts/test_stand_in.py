"""The stand-in for the channel reserve behaves as the precompile is specified, on a Tempo chain's own token."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
from eth_abi.abi import encode
from eth_account import Account
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak

from app.devnet import Devnet, DevnetThread, reserve
from app.devnet.tempo_transaction import RawCall
from tests.contracts.bench import GRACE_S, only
from tests.contracts.node import Contract, Node, Reverted, node_of
from tests.contracts.vouchers import ZERO, Domain, compact, high_s, new_key, sign
from tests.devnet_fixtures import TempoChain

DEPOSIT = 1_000_000
UINT96_MAX = 2**96 - 1
# Tempo takes a quarter of a million for a new word of storage.
GAS = 5_000_000
Descriptor = tuple[str, str, str, str, bytes, str, bytes]


class Reserve:
    """The stand-in on a Tempo chain, past the shim: what the shim would write is written here."""

    def __init__(self, chain: TempoChain, node: Node) -> None:
        self.node = node
        self.chain_id = chain.chain_id
        self.token = chain.token
        self.contract = Contract(node, "ChannelReserveStandIn", chain.escrow_v2, gas=GAS)
        self.payer: LocalAccount = Account.from_key(chain.accounts[1].private_key)
        self.payee = chain.accounts[0].address
        self.operator = chain.accounts[3].address
        self.stranger = chain.accounts[4].address
        self.domain = Domain("TIP20 Channel Reserve", chain.chain_id, chain.escrow_v2, "uint96")
        self.chain = chain
        self._numbers = count(1)

    def salt(self) -> bytes:
        """One that was not used."""
        return next(self._numbers).to_bytes(32, "big")

    def tell(self, name: str, *arguments: Any, opening_hash: bytes = b"") -> None:
        """Write what a shim would for a call of the payer."""
        data = bytes.fromhex(self.contract.codec.call_data(name, arguments)[2:])
        calls = (RawCall(reserve.RESERVE, data),)
        for write in reserve.writes(bytes.fromhex(self.payer.address[2:]), calls, opening_hash):
            place = ("0x" + write.address.hex(), "0x" + write.slot.hex(), "0x" + write.value.hex())
            self.node.rpc("anvil_setStorageAt", *place)

    def open(self, *, operator: str = ZERO, signer: str = ZERO, deposit: int = DEPOSIT) -> Descriptor:
        """A channel from the payer to the payee."""
        salt = self.salt()
        nonce_hash = keccak(b"opens with" + salt)
        arguments = (self.payee, operator, self.token, deposit, salt, signer)
        self.tell("open", *arguments, opening_hash=nonce_hash)
        self.contract.send("open", *arguments, sender=self.payer.address)
        return (self.payer.address, self.payee, operator, self.token, salt, signer, nonce_hash)

    def channel_id(self, descriptor: Descriptor) -> bytes:
        """By the formula of the specification."""
        types = ["address"] * 4 + ["bytes32", "address", "bytes32", "address", "uint256"]
        return keccak(encode(types, [*descriptor, self.contract.address, self.chain_id]))

    def voucher(self, descriptor: Descriptor, amount: int, key: LocalAccount | None = None) -> bytes:
        """A voucher's signature."""
        return sign(key or self.payer, self.domain.voucher(self.channel_id(descriptor), amount))

    def state(self, descriptor: Descriptor) -> tuple[int, int, int]:
        """Settled, deposit, and when a close was requested."""
        found: tuple[int, int, int] = self.contract.call("getChannelState", self.channel_id(descriptor))
        return found

    def refused(self, error: str, name: str, *arguments: Any, sender: str) -> None:
        """The call reverts with this error."""
        with pytest.raises(Reverted) as caught:
            self.contract.call(name, *arguments, sender=sender)
        assert caught.value.error == error


@pytest.fixture(scope="module")
def shared_reserve() -> Iterator[Reserve]:
    """A chain of this module's own: its clock is moved."""
    with DevnetThread(Devnet()) as chain:
        node = node_of(chain)
        yield Reserve(chain, node)
        node.close()


@pytest.fixture
def channels(shared_reserve: Reserve) -> Iterator[Reserve]:
    """The same, as it was at first."""
    snapshot = shared_reserve.node.rpc("evm_snapshot")
    yield shared_reserve
    shared_reserve.node.rpc("evm_revert", snapshot)


def test_open_binds_the_channel_to_its_transaction(channels: Reserve) -> None:
    salt, nonce_hash = channels.salt(), keccak(b"a transaction")
    arguments = (channels.payee, channels.operator, channels.token, DEPOSIT, salt, channels.stranger)
    channels.tell("open", *arguments, opening_hash=nonce_hash)
    event = only(channels.contract.send("open", *arguments, sender=channels.payer.address))
    payer, payee = channels.payer.address, channels.payee
    descriptor = (payer, payee, channels.operator, channels.token, salt, channels.stranger, nonce_hash)
    channel_id = channels.channel_id(descriptor)
    assert event.name == "ChannelOpened"
    assert event.values == {
        "channelId": channel_id,
        "payer": payer.lower(),
        "payee": payee.lower(),
        "operator": channels.operator.lower(),
        "token": channels.token,
        "authorizedSigner": channels.stranger.lower(),
        "salt": salt,
        "expiringNonceHash": nonce_hash,
        "deposit": DEPOSIT,
    }
    assert channels.contract.call("computeChannelId", *descriptor) == channel_id
    assert channels.state(descriptor) == (0, DEPOSIT, 0)
    found, state = channels.contract.call("getChannel", descriptor)
    assert (found, state) == (tuple(_lower(descriptor)), (0, DEPOSIT, 0))
    assert channels.contract.call("getChannelStatesBatch", [b"\0" * 32, channel_id]) == ((0, 0, 0), (0, DEPOSIT, 0))
    assert channels.chain.balance(channels.contract.address) == DEPOSIT


def _lower(descriptor: Descriptor) -> list[str | bytes]:
    return [part.lower() if isinstance(part, str) else part for part in descriptor]


def test_open_uses_up_the_transactions_hash(channels: Reserve) -> None:
    descriptor = channels.open()
    arguments = (channels.payee, ZERO, channels.token, DEPOSIT, descriptor[4], ZERO)
    channels.refused("ExpiringNonceHashNotSet", "open", *arguments, sender=channels.payer.address)
    channels.tell("open", *arguments, opening_hash=descriptor[6])
    channels.refused("ChannelAlreadyExists", "open", *arguments, sender=channels.payer.address)


def test_open_refuses_what_makes_no_channel(channels: Reserve) -> None:
    payer, token, salt = channels.payer.address, channels.token, channels.salt()
    channels.refused("InvalidPayee", "open", ZERO, ZERO, token, 1, salt, ZERO, sender=payer)
    channels.refused("InvalidPayee", "open", token, ZERO, token, 1, salt, ZERO, sender=payer)
    channels.refused("InvalidToken", "open", channels.payee, ZERO, payer, 1, salt, ZERO, sender=payer)
    channels.refused("ZeroDeposit", "open", channels.payee, ZERO, token, 0, salt, ZERO, sender=payer)


def test_digest_is_that_of_the_specification(channels: Reserve) -> None:
    assert channels.contract.call("domainSeparator") == channels.domain.separator()
    channel_id = b"\7" * 32
    digest = channels.contract.call("getVoucherDigest", channel_id, UINT96_MAX)
    assert digest == channels.domain.voucher(channel_id, UINT96_MAX)


@pytest.mark.parametrize("by_operator", [False, True])
def test_settle_pays_the_payee_whoever_of_its_side_asks(channels: Reserve, by_operator: bool) -> None:
    descriptor = channels.open(operator=channels.operator)
    sender, other = channels.payee, channels.operator
    if by_operator:
        sender, other = other, sender
    voucher = channels.voucher(descriptor, 300)
    before = channels.chain.balance(channels.contract.address)
    event = only(channels.contract.send("settle", descriptor, 300, voucher, sender=sender))
    assert event.name == "Settled"
    assert (event.values["cumulativeAmount"], event.values["deltaPaid"], event.values["newSettled"]) == (300, 300, 300)
    assert channels.state(descriptor) == (300, DEPOSIT, 0)
    assert channels.chain.balance(channels.contract.address) == before - 300
    channels.refused("AmountNotIncreasing", "settle", descriptor, 300, voucher, sender=other)


def test_settle_refuses(channels: Reserve) -> None:
    descriptor = channels.open()
    voucher = channels.voucher(descriptor, 500)
    # The zero address is whoever simulates without an address; where there is no operator it is nobody.
    for sender in (channels.payer.address, channels.operator, channels.stranger, ZERO):
        channels.refused("NotPayeeOrOperator", "settle", descriptor, 500, voucher, sender=sender)
    above = channels.voucher(descriptor, DEPOSIT + 1)
    channels.refused("AmountExceedsDeposit", "settle", descriptor, DEPOSIT + 1, above, sender=channels.payee)
    channels.refused("InvalidSignature", "settle", descriptor, 501, voucher, sender=channels.payee)
    unknown = (*descriptor[:6], b"\1" * 32)
    channels.refused("ChannelNotFound", "settle", unknown, 500, voucher, sender=channels.payee)


def test_voucher_has_the_form_that_the_verifier_takes(channels: Reserve) -> None:
    descriptor, payee = channels.open(), channels.payee
    voucher = channels.voucher(descriptor, 5)
    for form in (compact(voucher), high_s(voucher), voucher[:64], b""):
        channels.refused("InvalidSignature", "settle", descriptor, 5, form, sender=payee)
    channels.contract.call("settle", descriptor, 5, voucher, sender=payee)


def test_named_signer_signs_and_the_payer_does_not(channels: Reserve) -> None:
    key = new_key()
    descriptor = channels.open(signer=key.address)
    channels.contract.call("settle", descriptor, 5, channels.voucher(descriptor, 5, key), sender=channels.payee)
    payers = channels.voucher(descriptor, 5)
    channels.refused("InvalidSignature", "settle", descriptor, 5, payers, sender=channels.payee)


@pytest.mark.parametrize(("amount", "capture"), [(500, 500), (500, 1), (500, 0), (UINT96_MAX, DEPOSIT)])
def test_close_captures_and_refunds(channels: Reserve, amount: int, capture: int) -> None:
    descriptor = channels.open()
    voucher = channels.voucher(descriptor, amount)
    event = only(channels.contract.send("close", descriptor, amount, capture, voucher, sender=channels.payee))
    assert event.name == "ChannelClosed"
    assert (event.values["settledToPayee"], event.values["refundedToPayer"]) == (capture, DEPOSIT - capture)
    assert channels.state(descriptor) == (0, 0, 0)
    assert channels.chain.balance(channels.contract.address) == 0
    channels.refused("ChannelNotFound", "close", descriptor, amount, capture, voucher, sender=channels.payee)


def test_close_at_what_was_settled_needs_no_signature(channels: Reserve) -> None:
    descriptor = channels.open(operator=channels.operator)
    channels.contract.send("settle", descriptor, 100, channels.voucher(descriptor, 100), sender=channels.payee)
    event = only(channels.contract.send("close", descriptor, 100, 100, b"", sender=channels.operator))
    assert (event.values["settledToPayee"], event.values["refundedToPayer"]) == (100, DEPOSIT - 100)


def test_close_refuses(channels: Reserve) -> None:
    descriptor, payee = channels.open(), channels.payee
    channels.contract.send("settle", descriptor, 100, channels.voucher(descriptor, 100), sender=payee)
    voucher = channels.voucher(descriptor, 500)
    channels.refused("NotPayeeOrOperator", "close", descriptor, 500, 500, voucher, sender=channels.payer.address)
    channels.refused("CaptureAmountInvalid", "close", descriptor, 500, 501, voucher, sender=payee)
    channels.refused("CaptureAmountInvalid", "close", descriptor, 500, 99, voucher, sender=payee)
    channels.refused("InvalidSignature", "close", descriptor, 501, 500, voucher, sender=payee)
    above = channels.voucher(descriptor, UINT96_MAX)
    channels.refused("AmountExceedsDeposit", "close", descriptor, UINT96_MAX, DEPOSIT + 1, above, sender=payee)


@pytest.mark.parametrize("added", [0, 25])
def test_top_up_adds_and_cancels_a_request(channels: Reserve, added: int) -> None:
    descriptor, payer = channels.open(), channels.payer.address
    channels.contract.send("requestClose", descriptor, sender=payer)
    channels.tell("topUp", descriptor, added)
    events = channels.contract.send("topUp", descriptor, added, sender=payer)
    assert [event.name for event in events] == ["CloseRequestCancelled", "TopUp"]
    assert (events[1].values["additionalDeposit"], events[1].values["newDeposit"]) == (added, DEPOSIT + added)
    assert channels.state(descriptor) == (0, DEPOSIT + added, 0)


def test_top_up_refuses(channels: Reserve) -> None:
    descriptor, payer = channels.open(), channels.payer.address
    channels.refused("NotPayer", "topUp", descriptor, 1, sender=channels.payee)
    channels.refused("DepositOverflow", "topUp", descriptor, UINT96_MAX - DEPOSIT + 1, sender=payer)
    channels.refused("ChannelNotFound", "topUp", (*descriptor[:6], b"\1" * 32), 1, sender=payer)


def test_withdraw_is_open_from_the_last_second_of_grace(channels: Reserve) -> None:
    descriptor, payer = channels.open(), channels.payer.address
    channels.refused("CloseNotReady", "withdraw", descriptor, sender=payer)
    for sender in (channels.payee, channels.stranger):
        channels.refused("NotPayer", "requestClose", descriptor, sender=sender)
        channels.refused("NotPayer", "withdraw", descriptor, sender=sender)
    event = only(channels.contract.send("requestClose", descriptor, sender=payer))
    ends = event.values["closeGraceEnd"]
    assert channels.state(descriptor) == (0, DEPOSIT, ends - GRACE_S)
    assert channels.contract.send("requestClose", descriptor, sender=payer) == []
    channels.contract.send("settle", descriptor, 100, channels.voucher(descriptor, 100), sender=channels.payee)
    channels.node.next_block_at(ends - 1)
    with pytest.raises(Reverted, match="CloseNotReady"):
        channels.contract.send("withdraw", descriptor, sender=payer)
    channels.node.next_block_at(ends)
    event = only(channels.contract.send("withdraw", descriptor, sender=payer))
    assert event.name == "ChannelClosed"
    assert (event.values["settledToPayee"], event.values["refundedToPayer"]) == (100, DEPOSIT - 100)
    channels.refused("ChannelNotFound", "withdraw", descriptor, sender=payer)
