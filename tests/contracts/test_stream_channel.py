"""Each function of the escrow, what it does and what it refuses."""

import pytest

from tests.contracts.bench import DEPOSIT, GRACE_S, Bench, Record, only, same
from tests.contracts.node import Reverted
from tests.contracts.vouchers import ZERO, new_key

UINT128_MAX = 2**128 - 1


def refused(bench: Bench, error: str, name: str, *arguments: object, sender: str) -> None:
    """The call reverts with this error."""
    with pytest.raises(Reverted) as caught:
        bench.escrow.call(name, *arguments, sender=sender)
    assert caught.value.error == error


# Open.


@pytest.mark.parametrize("delegated", [False, True])
def test_open_takes_the_deposit_and_keeps_a_record(bench: Bench, delegated: bool) -> None:
    signer = bench.stranger.address if delegated else ZERO
    salt, before = bench.salt(), bench.balance(bench.payer.address)
    arguments = (bench.payee, bench.token.address, DEPOSIT, salt, signer)
    event = only(bench.escrow.send("open", *arguments, sender=bench.payer.address))
    channel_id = bench.channel_id(salt, signer=signer)
    assert event.name == "ChannelOpened"
    assert event.values == {
        "channelId": channel_id,
        "payer": bench.payer.address.lower(),
        "payee": bench.payee.lower(),
        "token": bench.token.address.lower(),
        "authorizedSigner": signer.lower(),
        "salt": salt,
        "deposit": DEPOSIT,
    }
    record = bench.record(channel_id)
    assert (record.finalized, record.close_requested_at, record.deposit, record.settled) == (False, 0, DEPOSIT, 0)
    assert same(record.payer, bench.payer.address)
    assert same(record.payee, bench.payee)
    assert same(record.token, bench.token.address)
    assert same(record.authorized_signer, signer)
    assert bench.balance(bench.payer.address) == before - DEPOSIT
    assert bench.balance(bench.escrow.address) == DEPOSIT


def test_open_refuses_what_makes_no_channel(bench: Bench) -> None:
    token, sender = bench.token.address, bench.payer.address
    refused(bench, "InvalidPayee", "open", ZERO, token, 1, bench.salt(), ZERO, sender=sender)
    refused(bench, "ZeroDeposit", "open", bench.payee, token, 0, bench.salt(), ZERO, sender=sender)


def test_open_needs_the_money(bench: Bench) -> None:
    rich = bench.balance(bench.payer.address)
    arguments = (bench.payee, bench.token.address, rich + 1, bench.salt(), ZERO)
    with pytest.raises(Reverted, match=r"^0xe450d38c"):  # ERC20InsufficientBalance
        bench.escrow.call("open", *arguments, sender=bench.payer.address)
    with pytest.raises(Reverted, match=r"^0xfb8f41b2"):  # ERC20InsufficientAllowance
        bench.escrow.call("open", *arguments[:2], 1, *arguments[3:], sender=bench.accounts[4].address)


def test_open_id_is_used_once(bench: Bench) -> None:
    salt = bench.salt()
    arguments = (bench.payee, bench.token.address, DEPOSIT, salt, ZERO)
    bench.open(salt=salt)
    refused(bench, "ChannelAlreadyExists", "open", *arguments, sender=bench.payer.address)
    # Another payer's is another channel.
    bench.escrow.call("open", *arguments, sender=bench.stranger.address)


@pytest.mark.parametrize("end", ["close", "expire"])
def test_finalized_id_is_never_opened_again(bench: Bench, end: str) -> None:
    salt = bench.salt()
    channel_id = bench.open(salt=salt)
    voucher = bench.voucher(channel_id, 10)
    getattr(bench, end)(channel_id)
    arguments = (bench.payee, bench.token.address, DEPOSIT, salt, ZERO)
    refused(bench, "ChannelAlreadyExists", "open", *arguments, sender=bench.payer.address)
    assert bench.record(channel_id).finalized
    payer, payee = bench.payer.address, bench.payee
    refused(bench, "ChannelFinalized", "settle", channel_id, 10, voucher, sender=payee)
    refused(bench, "ChannelFinalized", "close", channel_id, 10, voucher, sender=payee)
    refused(bench, "ChannelFinalized", "closeWithCapture", channel_id, 10, 5, voucher, sender=payee)
    refused(bench, "ChannelFinalized", "topUp(bytes32,uint256)", channel_id, 1, sender=payer)
    refused(bench, "ChannelFinalized", "requestClose", channel_id, sender=payer)
    refused(bench, "ChannelFinalized", "withdraw", channel_id, sender=payer)


def test_unknown_channel_is_not_found(bench: Bench) -> None:
    nothing, payer, payee = b"\5" * 32, bench.payer.address, bench.payee
    refused(bench, "ChannelNotFound", "settle", nothing, 1, b"", sender=payee)
    refused(bench, "ChannelNotFound", "close", nothing, 0, b"", sender=payee)
    refused(bench, "ChannelNotFound", "closeWithCapture", nothing, 0, 0, b"", sender=payee)
    refused(bench, "ChannelNotFound", "topUp(bytes32,uint256)", nothing, 1, sender=payer)
    refused(bench, "ChannelNotFound", "requestClose", nothing, sender=payer)
    refused(bench, "ChannelNotFound", "withdraw", nothing, sender=payer)
    assert bench.record(nothing) == Record(False, 0, ZERO, ZERO, ZERO, ZERO, 0, 0)


# Settle.


def test_settle_pays_what_a_voucher_adds(bench: Bench) -> None:
    channel_id, before = bench.open(), bench.balance(bench.payee)
    for amount, delta in ((300, 300), (301, 1), (DEPOSIT, DEPOSIT - 301)):
        voucher = bench.voucher(channel_id, amount)
        event = only(bench.escrow.send("settle", channel_id, amount, voucher, sender=bench.payee))
        assert event.name == "Settled"
        assert event.values == {
            "channelId": channel_id,
            "payer": bench.payer.address.lower(),
            "payee": bench.payee.lower(),
            "cumulativeAmount": amount,
            "deltaPaid": delta,
            "newSettled": amount,
        }
        assert bench.balance(bench.payee) == before + amount
        assert (bench.record(channel_id).settled, bench.record(channel_id).finalized) == (amount, False)


def test_settle_refuses(bench: Bench) -> None:
    channel_id = bench.open()
    voucher = bench.voucher(channel_id, 500)
    refused(bench, "NotPayee", "settle", channel_id, 500, voucher, sender=bench.payer.address)
    refused(bench, "NotPayee", "settle", channel_id, 500, voucher, sender=bench.stranger.address)
    above = bench.voucher(channel_id, DEPOSIT + 1)
    refused(bench, "AmountExceedsDeposit", "settle", channel_id, DEPOSIT + 1, above, sender=bench.payee)
    refused(bench, "AmountNotIncreasing", "settle", channel_id, 0, b"", sender=bench.payee)
    bench.escrow.send("settle", channel_id, 500, voucher, sender=bench.payee)
    refused(bench, "AmountNotIncreasing", "settle", channel_id, 500, voucher, sender=bench.payee)
    lower = bench.voucher(channel_id, 499)
    refused(bench, "AmountNotIncreasing", "settle", channel_id, 499, lower, sender=bench.payee)


# Close.


def closed(bench: Bench, channel_id: bytes, name: str, *arguments: object) -> tuple[int, int]:
    """Close; what the event says that the payee and the payer got in all, checked against balances."""
    settled = bench.record(channel_id).settled
    payer, payee = bench.balance(bench.payer.address), bench.balance(bench.payee)
    event = only(bench.escrow.send(name, channel_id, *arguments, sender=bench.payee))
    assert (event.name, event.values["channelId"]) == ("ChannelClosed", channel_id)
    paid, refund = event.values["settledToPayee"], event.values["refundedToPayer"]
    assert bench.balance(bench.payee) - payee == paid - settled
    assert bench.balance(bench.payer.address) - payer == refund
    record = bench.record(channel_id)
    assert (record.finalized, record.settled, record.deposit) == (True, paid, paid + refund)
    assert bench.balance(bench.escrow.address) == 0
    return paid, refund


def test_close_pays_the_voucher_and_refunds_the_rest(bench: Bench) -> None:
    channel_id = bench.open()
    assert closed(bench, channel_id, "close", 400, bench.voucher(channel_id, 400)) == (400, DEPOSIT - 400)


def test_close_after_settlements(bench: Bench) -> None:
    channel_id = bench.open()
    bench.escrow.send("settle", channel_id, 100, bench.voucher(channel_id, 100), sender=bench.payee)
    assert closed(bench, channel_id, "close", DEPOSIT, bench.voucher(channel_id, DEPOSIT)) == (DEPOSIT, 0)


@pytest.mark.parametrize("amount", [0, 99, 100])
def test_close_at_what_was_settled_needs_no_signature(bench: Bench, amount: int) -> None:
    channel_id = bench.open()
    bench.escrow.send("settle", channel_id, 100, bench.voucher(channel_id, 100), sender=bench.payee)
    assert closed(bench, channel_id, "close", amount, b"") == (100, DEPOSIT - 100)


def test_close_without_any_voucher_refunds_everything(bench: Bench) -> None:
    channel_id = bench.open()
    assert closed(bench, channel_id, "close", 0, b"") == (0, DEPOSIT)


def test_close_refuses(bench: Bench) -> None:
    channel_id = bench.open()
    voucher = bench.voucher(channel_id, 500)
    for sender in (bench.payer.address, bench.stranger.address):
        refused(bench, "NotPayee", "close", channel_id, 500, voucher, sender=sender)
        refused(bench, "NotPayee", "close", channel_id, 0, b"", sender=sender)
    above = bench.voucher(channel_id, DEPOSIT + 1)
    refused(bench, "AmountExceedsDeposit", "close", channel_id, DEPOSIT + 1, above, sender=bench.payee)
    refused(bench, "InvalidSignature", "close", channel_id, 501, voucher, sender=bench.payee)
    refused(bench, "InvalidSignature", "close", channel_id, 1, b"", sender=bench.payee)


@pytest.mark.parametrize("capture", [0, 1, 499, 500])
def test_close_captures_less_than_the_voucher(bench: Bench, capture: int) -> None:
    channel_id = bench.open()
    voucher = bench.voucher(channel_id, 500)
    assert closed(bench, channel_id, "closeWithCapture", 500, capture, voucher) == (capture, DEPOSIT - capture)


def test_close_captures_of_a_voucher_above_the_deposit(bench: Bench) -> None:
    channel_id = bench.open()
    voucher = bench.voucher(channel_id, UINT128_MAX)
    assert closed(bench, channel_id, "closeWithCapture", UINT128_MAX, DEPOSIT, voucher) == (DEPOSIT, 0)


def test_close_captures_what_was_settled_without_a_signature(bench: Bench) -> None:
    channel_id = bench.open()
    bench.escrow.send("settle", channel_id, 100, bench.voucher(channel_id, 100), sender=bench.payee)
    assert closed(bench, channel_id, "closeWithCapture", 100, 100, b"") == (100, DEPOSIT - 100)


def test_close_with_capture_refuses(bench: Bench) -> None:
    channel_id, payee = bench.open(), bench.payee
    bench.escrow.send("settle", channel_id, 100, bench.voucher(channel_id, 100), sender=payee)
    voucher, name = bench.voucher(channel_id, 500), "closeWithCapture"
    for sender in (bench.payer.address, bench.stranger.address):
        refused(bench, "NotPayee", name, channel_id, 500, 400, voucher, sender=sender)
    refused(bench, "CaptureAmountInvalid", name, channel_id, 500, 501, voucher, sender=payee)
    refused(bench, "CaptureAmountInvalid", name, channel_id, 500, 99, voucher, sender=payee)
    refused(bench, "InvalidSignature", name, channel_id, 501, 500, voucher, sender=payee)
    refused(bench, "InvalidSignature", name, channel_id, 500, 400, b"", sender=payee)
    above = bench.voucher(channel_id, UINT128_MAX)
    refused(bench, "AmountExceedsDeposit", name, channel_id, UINT128_MAX, DEPOSIT + 1, above, sender=payee)


# Top up.


@pytest.mark.parametrize("name", ["topUp(bytes32,uint256)", "topUp(bytes32,uint128)"])
def test_top_up_adds_to_the_deposit(bench: Bench, name: str) -> None:
    channel_id, before = bench.open(), bench.balance(bench.payer.address)
    event = only(bench.escrow.send(name, channel_id, 25, sender=bench.payer.address))
    assert event.name == "TopUp"
    assert event.values == {
        "channelId": channel_id,
        "payer": bench.payer.address.lower(),
        "payee": bench.payee.lower(),
        "additionalDeposit": 25,
        "newDeposit": DEPOSIT + 25,
    }
    assert bench.record(channel_id).deposit == DEPOSIT + 25
    assert bench.balance(bench.payer.address) == before - 25
    voucher = bench.voucher(channel_id, DEPOSIT + 25)
    assert closed(bench, channel_id, "close", DEPOSIT + 25, voucher) == (DEPOSIT + 25, 0)


def test_top_up_refuses(bench: Bench) -> None:
    channel_id, name, payer = bench.open(), "topUp(bytes32,uint256)", bench.payer.address
    refused(bench, "NotPayer", name, channel_id, 1, sender=bench.payee)
    refused(bench, "NotPayer", name, channel_id, 1, sender=bench.stranger.address)
    refused(bench, "ZeroDeposit", name, channel_id, 0, sender=payer)
    refused(bench, "DepositOverflow", name, channel_id, UINT128_MAX - DEPOSIT + 1, sender=payer)
    # A truncated amount would be a deposit of one unit that the payee believes to be huge.
    refused(bench, "DepositOverflow", name, channel_id, 2**128 + 1, sender=payer)


def test_top_up_cancels_a_request_to_close(bench: Bench) -> None:
    channel_id = bench.open()
    ends = bench.request_close(channel_id)
    cancelled, added = bench.escrow.send("topUp(bytes32,uint256)", channel_id, 1, sender=bench.payer.address)
    assert (cancelled.name, added.name) == ("CloseRequestCancelled", "TopUp")
    assert cancelled.values["channelId"] == channel_id
    assert bench.record(channel_id).close_requested_at == 0
    bench.node.next_block_at(ends)
    bench.node.rpc("evm_mine")
    refused(bench, "CloseNotReady", "withdraw", channel_id, sender=bench.payer.address)
    # The next request starts a grace period of its own.
    assert bench.request_close(channel_id) > ends + GRACE_S - 1


# Request to close, and withdraw.


def test_request_starts_a_grace_period(bench: Bench) -> None:
    channel_id = bench.open()
    bench.node.next_block_at(at := bench.node.now() + 100)
    event = only(bench.escrow.send("requestClose", channel_id, sender=bench.payer.address))
    assert (event.name, event.values["channelId"]) == ("CloseRequested", channel_id)
    assert event.values["closeGraceEnd"] == at + GRACE_S
    assert bench.record(channel_id).close_requested_at == at


def test_second_request_moves_nothing(bench: Bench) -> None:
    channel_id = bench.open()
    ends = bench.request_close(channel_id)
    bench.node.next_block_at(ends - 10)
    assert bench.escrow.send("requestClose", channel_id, sender=bench.payer.address) == []
    assert bench.record(channel_id).close_requested_at == ends - GRACE_S


def test_only_the_payer_requests_and_withdraws(bench: Bench) -> None:
    channel_id = bench.open()
    for sender in (bench.payee, bench.stranger.address):
        refused(bench, "NotPayer", "requestClose", channel_id, sender=sender)
        refused(bench, "NotPayer", "withdraw", channel_id, sender=sender)


def test_withdraw_needs_a_request(bench: Bench) -> None:
    channel_id = bench.open()
    refused(bench, "CloseNotReady", "withdraw", channel_id, sender=bench.payer.address)


def test_withdraw_is_open_from_the_last_second_of_grace(bench: Bench) -> None:
    channel_id = bench.open()
    bench.escrow.send("settle", channel_id, 100, bench.voucher(channel_id, 100), sender=bench.payee)
    ends, before = bench.request_close(channel_id), bench.balance(bench.payer.address)
    bench.node.next_block_at(ends - 1)
    with pytest.raises(Reverted, match="CloseNotReady"):
        bench.escrow.send("withdraw", channel_id, sender=bench.payer.address)
    bench.node.next_block_at(ends)
    expired, over = bench.escrow.send("withdraw", channel_id, sender=bench.payer.address)
    assert (expired.name, over.name) == ("ChannelExpired", "ChannelClosed")
    assert (over.values["settledToPayee"], over.values["refundedToPayer"]) == (100, DEPOSIT - 100)
    assert bench.balance(bench.payer.address) == before + DEPOSIT - 100
    assert bench.record(channel_id).finalized
    refused(bench, "ChannelFinalized", "withdraw", channel_id, sender=bench.payer.address)


@pytest.mark.parametrize("late", [0, 10 * GRACE_S])
def test_payee_may_settle_and_close_until_the_withdrawal(bench: Bench, late: int) -> None:
    channel_id = bench.open()
    ends = bench.request_close(channel_id)
    bench.node.next_block_at(ends - GRACE_S + 60 + late)
    bench.escrow.send("settle", channel_id, 7, bench.voucher(channel_id, 7), sender=bench.payee)
    assert closed(bench, channel_id, "close", 9, bench.voucher(channel_id, 9)) == (9, DEPOSIT - 9)


def test_channels_do_not_touch_each_other(bench: Bench) -> None:
    mine, other = bench.open(100), bench.open(100)
    bench.escrow.send("close", mine, 100, bench.voucher(mine, 100), sender=bench.payee)
    assert bench.record(other).settled == 0
    assert bench.balance(bench.escrow.address) == 100
    refused(bench, "AmountExceedsDeposit", "settle", other, 101, bench.voucher(other, 101), sender=bench.payee)
    key = new_key()
    refused(bench, "InvalidSignature", "settle", other, 1, bench.voucher(other, 1, key), sender=bench.payee)
