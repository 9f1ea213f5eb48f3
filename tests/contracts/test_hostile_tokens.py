"""Tokens that take fees, lie, or call back in the middle of a transfer."""

from enum import IntEnum

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from tests.contracts.bench import EVER, Bench
from tests.contracts.node import Contract, Reverted
from tests.contracts.vouchers import ZERO

DEPOSIT = 10_000
REENTRANT = keccak(text="ReentrancyGuardReentrantCall()")[:4]


class Mode(IntEnum):
    """As in the contract."""

    HONEST = 0
    TAKES_FEE = 1
    RETURNS_FALSE = 2
    REENTERS = 3


@pytest.fixture
def token(bench: Bench) -> Contract:
    """A hostile token; the payer has some, and has approved the escrow."""
    found = Contract.deploy(bench.node, "HostileToken", bench.payee)
    found.send("mint", bench.payer.address, 10 * DEPOSIT, sender=bench.payee)
    found.send("approve", bench.escrow.address, 10 * DEPOSIT, sender=bench.payer.address)
    return found


def behave(bench: Bench, token: Contract, mode: Mode, payload: str = "0x") -> None:
    """Tell the token how to act, once where it calls back."""
    target = bench.escrow.address
    token.send("behave", mode, target, bytes.fromhex(payload[2:]), sender=bench.payee)


def open_channel(bench: Bench, token: Contract, salt: bytes) -> bytes:
    """A channel in the hostile token."""
    arguments = (bench.payee, token.address, DEPOSIT, salt, ZERO)
    bench.escrow.send("open", *arguments, sender=bench.payer.address)
    return bench.channel_id(salt, token=token.address)


@pytest.mark.parametrize(
    ("mode", "error"),
    [(Mode.TAKES_FEE, "TransferFailed"), (Mode.RETURNS_FALSE, "SafeERC20FailedOperation")],
)
def test_deposit_that_does_not_arrive_is_refused(bench: Bench, token: Contract, mode: Mode, error: str) -> None:
    channel_id = open_channel(bench, token, bench.salt())
    behave(bench, token, mode)
    with pytest.raises(Reverted, match=error):
        open_channel(bench, token, bench.salt())
    with pytest.raises(Reverted, match=error):
        bench.escrow.send("topUp(bytes32,uint256)", channel_id, 500, sender=bench.payer.address)
    assert bench.record(channel_id).deposit == bench.balance(bench.escrow.address, token) == DEPOSIT


@pytest.mark.parametrize("mode", [Mode.TAKES_FEE, Mode.RETURNS_FALSE])
def test_authorized_deposit_that_does_not_arrive_is_refused(bench: Bench, token: Contract, mode: Mode) -> None:
    channel_id, salt = open_channel(bench, token, bench.salt()), bench.salt()
    behave(bench, token, mode)
    payer = bench.payer.address
    values = [payer, bench.payee, token.address, salt, ZERO]
    nonce = keccak(encode(["address", "address", "address", "bytes32", "address"], values))
    arguments = (bench.payee, token.address, DEPOSIT, salt, ZERO, payer, 0, EVER, nonce, b"")
    with pytest.raises(Reverted, match="TransferFailed"):
        bench.escrow.send("openWithAuthorization", *arguments, sender=bench.payee)
    nonce = keccak(encode(["bytes32", "uint128", "address", "bytes32"], [channel_id, 5_000, payer, salt]))
    more = (channel_id, 5_000, payer, salt, 0, EVER, nonce, b"")
    with pytest.raises(Reverted, match="TransferFailed"):
        bench.escrow.send("topUpWithAuthorization", *more, sender=bench.payee)


def test_payout_that_fails_undoes_everything(bench: Bench, token: Contract) -> None:
    channel_id = open_channel(bench, token, bench.salt())
    behave(bench, token, Mode.RETURNS_FALSE)
    voucher = bench.voucher(channel_id, 100)
    for name in ("settle", "close"):
        with pytest.raises(Reverted, match="SafeERC20FailedOperation"):
            bench.escrow.send(name, channel_id, 100, voucher, sender=bench.payee)
    record = bench.record(channel_id)
    assert (record.settled, record.finalized) == (0, False)


def test_address_without_code_is_no_token(bench: Bench) -> None:
    arguments = (bench.payee, bench.stranger.address, DEPOSIT, bench.salt(), ZERO)
    with pytest.raises(Reverted):
        bench.escrow.call("open", *arguments, sender=bench.payer.address)


def test_token_that_is_the_payee_cannot_settle_twice_in_one_call(bench: Bench, token: Contract) -> None:
    salt = bench.salt()
    arguments = (token.address, token.address, DEPOSIT, salt, ZERO)
    bench.escrow.send("open", *arguments, sender=bench.payer.address)
    open_channel(bench, token, bench.salt())
    channel_id = bench.escrow.call("computeChannelId", bench.payer.address, token.address, token.address, salt, ZERO)
    voucher = bench.voucher(channel_id, DEPOSIT)
    settle = bench.escrow.codec.call_data("settle", (channel_id, DEPOSIT, voucher))
    for name, inner in (("settle", (channel_id, DEPOSIT, voucher)), ("close", (channel_id, DEPOSIT, voucher))):
        behave(bench, token, Mode.REENTERS, bench.escrow.codec.call_data(name, inner))
        snapshot = bench.node.rpc("evm_snapshot")
        token.send("act", bench.escrow.address, bytes.fromhex(settle[2:]), sender=bench.payee)
        assert not token.call("reentered")
        assert token.call("answer") == REENTRANT
        assert bench.balance(bench.escrow.address, token) == DEPOSIT
        bench.node.rpc("evm_revert", snapshot)


def test_deposits_inside_a_deposit_are_not_counted_twice(bench: Bench, token: Contract) -> None:
    own = (bench.payee, token.address, DEPOSIT, bench.salt(), ZERO)
    nested = bench.escrow.codec.call_data("open", own)
    token.send("mint", token.address, DEPOSIT, sender=bench.payee)
    approve = token.codec.call_data("approve", (bench.escrow.address, DEPOSIT))
    token.send("act", token.address, bytes.fromhex(approve[2:]), sender=bench.payee)
    behave(bench, token, Mode.REENTERS, nested)
    channel_id = open_channel(bench, token, bench.salt())
    assert not token.call("reentered")
    assert token.call("answer") == REENTRANT
    assert bench.record(channel_id).deposit == bench.balance(bench.escrow.address, token) == DEPOSIT
