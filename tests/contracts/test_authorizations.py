"""Opens and top-ups with EIP-3009: the payer signs, anybody submits, nobody can use it for anything else."""

import pytest
from eth_abi.abi import encode
from eth_account.signers.local import LocalAccount
from eth_utils.crypto import keccak

from tests.contracts.bench import DEPOSIT, EVER, Bench, only, same
from tests.contracts.node import Reverted
from tests.contracts.vouchers import ZERO, Authorization

OPEN = ("address", "address", "address", "bytes32", "address")
TOP_UP = ("bytes32", "uint128", "address", "bytes32")
ERRORS = {name: "0x" + keccak(text=f"{name}()")[:4].hex() for name in (
    *("InvalidAuthorization", "AuthorizationExpired", "AuthorizationNotYetValid", "AuthorizationAlreadyUsed"),
    "CallerMustBeRecipient",
)}  # fmt: skip


def authorization(bench: Bench, value: int, nonce: bytes, payer: LocalAccount | None = None) -> Authorization:
    """To pay the escrow, at any time."""
    return Authorization((payer or bench.payer).address, bench.escrow.address, value, 0, EVER, nonce)


def open_nonce(bench: Bench, salt: bytes, *, payee: str | None = None, signer: str = ZERO) -> bytes:
    """By the formula of the specification."""
    values = [bench.payer.address, payee or bench.payee, bench.token.address, salt, signer]
    return keccak(encode(OPEN, values))


def open_arguments(bench: Bench, salt: bytes, /, **changes: object) -> tuple[object, ...]:
    """The arguments of a good open, with changes."""
    signed = authorization(bench, DEPOSIT, open_nonce(bench, salt))
    arguments = {
        "payee": bench.payee,
        "token": bench.token.address,
        "deposit": DEPOSIT,
        "salt": salt,
        "signer": ZERO,
        "from": bench.payer.address,
        "after": 0,
        "before": EVER,
        "nonce": signed.nonce,
        "signature": signed.sign(bench.token_domain, bench.payer),
    }
    return tuple({**arguments, **changes}.values())


def refused(bench: Bench, error: str, name: str, *arguments: object) -> None:
    """The call reverts with this error, of the escrow or of the token."""
    with pytest.raises(Reverted) as caught:
        bench.escrow.call(name, *arguments, sender=bench.stranger.address)
    assert caught.value.error == ERRORS.get(error, error)


def test_relayer_opens_the_payers_channel(bench: Bench) -> None:
    salt, before = bench.salt(), bench.balance(bench.payer.address)
    bench.token.send("approve", bench.escrow.address, 0, sender=bench.payer.address)
    relayer = bench.stranger.address
    event = only(bench.escrow.send("openWithAuthorization", *open_arguments(bench, salt), sender=relayer))
    channel_id = bench.channel_id(salt)
    assert (event.name, event.values["channelId"]) == ("ChannelOpened", channel_id)
    record = bench.record(channel_id)
    assert same(record.payer, bench.payer.address)
    assert record.deposit == bench.balance(bench.escrow.address) == DEPOSIT
    assert bench.balance(bench.payer.address) == before - DEPOSIT
    # Its vouchers and its end are those of any other channel.
    voucher = bench.voucher(channel_id, 10)
    bench.escrow.send("close", channel_id, 10, voucher, sender=bench.payee)
    assert bench.balance(bench.payer.address) == before - 10


@pytest.mark.parametrize("changed", ["payee", "token", "salt", "signer", "from", "nonce"])
def test_open_nonce_commits_to_the_channel(bench: Bench, changed: str) -> None:
    salt, stranger = bench.salt(), bench.stranger.address
    other = {"salt": bench.salt(), "nonce": b"\1" * 32}.get(changed, stranger)
    refused(bench, "NonceMismatch", "openWithAuthorization", *open_arguments(bench, salt, **{changed: other}))


def test_front_runner_cannot_become_the_payee(bench: Bench) -> None:
    salt, stranger = bench.salt(), bench.stranger.address
    # With the nonce of its own channel, the signature is no longer the payer's.
    own = {"payee": stranger, "nonce": open_nonce(bench, salt, payee=stranger)}
    refused(bench, "InvalidAuthorization", "openWithAuthorization", *open_arguments(bench, salt, **own))
    own = {"signer": stranger, "nonce": open_nonce(bench, salt, signer=stranger)}
    refused(bench, "InvalidAuthorization", "openWithAuthorization", *open_arguments(bench, salt, **own))
    refused(bench, "InvalidAuthorization", "openWithAuthorization", *open_arguments(bench, salt, deposit=1))


def test_front_runner_cannot_spend_the_authorization_at_the_token(bench: Bench) -> None:
    salt, stranger = bench.salt(), bench.stranger.address
    signed = authorization(bench, DEPOSIT, open_nonce(bench, salt))
    signature = signed.sign(bench.token_domain, bench.payer)
    arguments = (signed.payer, signed.to, DEPOSIT, 0, EVER, signed.nonce, signature)
    parameters = "(address,address,uint256,uint256,uint256,bytes32,bytes)"
    for name, error in (("receive", "CallerMustBeRecipient"), ("transfer", "InvalidAuthorization")):
        with pytest.raises(Reverted, match=f"^{error}$"):
            bench.token.call(f"{name}WithAuthorization{parameters}", *arguments, sender=stranger)
    # A front runner that submits the very same open only pays for it.
    bench.escrow.send("openWithAuthorization", *open_arguments(bench, salt), sender=stranger)
    assert bench.record(bench.channel_id(salt)).deposit == DEPOSIT


def test_open_authorization_is_used_once(bench: Bench) -> None:
    salt = bench.salt()
    arguments = open_arguments(bench, salt)
    bench.escrow.send("openWithAuthorization", *arguments, sender=bench.payee)
    refused(bench, "ChannelAlreadyExists", "openWithAuthorization", *arguments)
    bench.close(bench.channel_id(salt))
    refused(bench, "ChannelAlreadyExists", "openWithAuthorization", *arguments)


def test_open_refuses_what_makes_no_channel(bench: Bench) -> None:
    salt = bench.salt()
    nobody = {"payee": ZERO, "nonce": open_nonce(bench, salt, payee=ZERO)}
    refused(bench, "InvalidPayee", "openWithAuthorization", *open_arguments(bench, salt, **nobody))
    refused(bench, "ZeroDeposit", "openWithAuthorization", *open_arguments(bench, salt, deposit=0))
    refused(bench, "AuthorizationExpired", "openWithAuthorization", *open_arguments(bench, salt, before=1))
    refused(bench, "AuthorizationNotYetValid", "openWithAuthorization", *open_arguments(bench, salt, after=EVER))


# Top up.


def top_up_arguments(
    bench: Bench, channel_id: bytes, salt: bytes, amount: int, payer: LocalAccount | None = None
) -> tuple[object, ...]:
    """The arguments of a good top-up."""
    payer = payer or bench.payer
    nonce = keccak(encode(TOP_UP, [channel_id, amount, payer.address, salt]))
    signed = authorization(bench, amount, nonce, payer)
    return (channel_id, amount, payer.address, salt, 0, EVER, nonce, signed.sign(bench.token_domain, payer))


def test_relayer_tops_up_and_the_payers_request_to_close_is_cancelled(bench: Bench) -> None:
    channel_id, before = bench.open(), bench.balance(bench.payer.address)
    bench.request_close(channel_id)
    arguments = top_up_arguments(bench, channel_id, bench.salt(), 25)
    events = bench.escrow.send("topUpWithAuthorization", *arguments, sender=bench.payee)
    assert [event.name for event in events] == ["CloseRequestCancelled", "TopUp"]
    assert (events[1].values["additionalDeposit"], events[1].values["newDeposit"]) == (25, DEPOSIT + 25)
    record = bench.record(channel_id)
    assert (record.deposit, record.close_requested_at) == (DEPOSIT + 25, 0)
    assert bench.balance(bench.payer.address) == before - 25
    refused(bench, "AuthorizationAlreadyUsed", "topUpWithAuthorization", *arguments)


def test_strangers_top_up_cannot_hold_the_payers_money(bench: Bench) -> None:
    channel_id = bench.open()
    ends, before = bench.request_close(channel_id), bench.balance(bench.payer.address)
    arguments = top_up_arguments(bench, channel_id, bench.salt(), 1, bench.stranger)
    event = only(bench.escrow.send("topUpWithAuthorization", *arguments, sender=bench.payee))
    assert event.name == "TopUp"
    bench.node.next_block_at(ends)
    bench.escrow.send("withdraw", channel_id, sender=bench.payer.address)
    assert bench.balance(bench.payer.address) == before + DEPOSIT + 1


def test_top_up_nonce_commits_to_channel_amount_payer_and_salt(bench: Bench) -> None:
    channel_id, other, salt = bench.open(), bench.open(), bench.salt()
    good = top_up_arguments(bench, channel_id, salt, 25)
    for place, value in ((0, other), (1, 26), (2, bench.stranger.address), (3, bench.salt()), (6, b"\1" * 32)):
        changed = (*good[:place], value, *good[place + 1 :])
        refused(bench, "NonceMismatch", "topUpWithAuthorization", *changed)
    # With the other channel's own nonce, the signature is no longer the payer's.
    redirected = (other, *good[1:6], keccak(encode(TOP_UP, [other, 25, bench.payer.address, salt])), good[7])
    refused(bench, "InvalidAuthorization", "topUpWithAuthorization", *redirected)


def test_top_up_refuses_nothing_and_too_much_and_the_dead(bench: Bench) -> None:
    channel_id, name = bench.open(), "topUpWithAuthorization"
    refused(bench, "ZeroDeposit", name, *top_up_arguments(bench, channel_id, bench.salt(), 0))
    huge = top_up_arguments(bench, channel_id, bench.salt(), 2**128 - DEPOSIT)
    refused(bench, "DepositOverflow", name, *huge)
    refused(bench, "ChannelNotFound", name, *top_up_arguments(bench, b"\3" * 32, bench.salt(), 1))
    bench.close(channel_id)
    refused(bench, "ChannelFinalized", name, *top_up_arguments(bench, channel_id, bench.salt(), 1))
