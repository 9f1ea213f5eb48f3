"""Whose signature on what makes a voucher, and in which forms."""

from dataclasses import replace

import pytest

from tests.contracts.bench import DEPOSIT, Bench
from tests.contracts.node import Contract, Reverted
from tests.contracts.vouchers import ZERO, compact, high_s, new_key, sign

AMOUNT = 500


def accepted(bench: Bench, channel_id: bytes, signature: bytes) -> bool:
    """Whether every function that takes a voucher takes this one; they must agree."""
    calls = {
        "settle": (AMOUNT, signature),
        "close": (AMOUNT, signature),
        "closeWithCapture": (AMOUNT, AMOUNT - 1, signature),
    }
    answers = set()
    for name, arguments in calls.items():
        try:
            bench.escrow.call(name, channel_id, *arguments, sender=bench.payee)
            answers.add("")
        except Reverted as reverted:
            answers.add(reverted.error)
    (answer,) = answers
    assert answer in {"", "InvalidSignature"}
    return not answer


def test_payer_signs_where_no_signer_is_named(bench: Bench) -> None:
    channel_id = bench.open()
    assert accepted(bench, channel_id, bench.voucher(channel_id, AMOUNT))
    assert not accepted(bench, channel_id, bench.voucher(channel_id, AMOUNT, bench.stranger))


def test_named_signer_signs_and_the_payer_does_not(bench: Bench) -> None:
    key = new_key()
    channel_id = bench.open(signer=key.address)
    assert accepted(bench, channel_id, bench.voucher(channel_id, AMOUNT, key))
    assert not accepted(bench, channel_id, bench.voucher(channel_id, AMOUNT))


def test_voucher_is_bound_to_amount_and_channel(bench: Bench) -> None:
    channel_id, other = bench.open(), bench.open()
    assert not accepted(bench, channel_id, bench.voucher(channel_id, AMOUNT - 1))
    assert not accepted(bench, channel_id, bench.voucher(channel_id, AMOUNT + 1))
    assert not accepted(bench, channel_id, bench.voucher(other, AMOUNT))


@pytest.mark.parametrize("change", ["chain_id", "contract", "name"])
def test_voucher_is_bound_to_chain_escrow_and_method(bench: Bench, change: str) -> None:
    channel_id = bench.open()
    domain = {
        "chain_id": replace(bench.domain, chain_id=bench.chain_id + 1),
        "contract": replace(bench.domain, contract=bench.token.address),
        "name": replace(bench.domain, name="Tempo Stream Channel"),
    }[change]
    assert accepted(bench, channel_id, sign(bench.payer, bench.domain.voucher(channel_id, AMOUNT)))
    assert not accepted(bench, channel_id, sign(bench.payer, domain.voucher(channel_id, AMOUNT)))


def test_voucher_of_another_deployment_is_worthless(bench: Bench) -> None:
    twin = Contract.deploy(bench.node, "StreamChannel", bench.payee, bench.domain.name)
    channel_id = bench.open()
    assert twin.call("computeChannelId", bench.payer.address, bench.payee, bench.token.address, b"\1" * 32, ZERO)
    assert not accepted(bench, channel_id, sign(bench.payer, twin.call("getVoucherDigest", channel_id, AMOUNT)))


def test_signature_may_be_compact(bench: Bench) -> None:
    channel_id = bench.open()
    signature = bench.voucher(channel_id, AMOUNT)
    assert len(compact(signature)) == 64
    assert accepted(bench, channel_id, compact(signature))
    wrong = bench.voucher(channel_id, AMOUNT, bench.stranger)
    assert not accepted(bench, channel_id, compact(wrong))


def test_signature_with_a_high_s_is_refused(bench: Bench) -> None:
    channel_id = bench.open()
    twin = high_s(bench.voucher(channel_id, AMOUNT))
    # The same key is recovered from it: nothing but the rule refuses it.
    body = {"to": "0x" + "1".rjust(40, "0"), "data": "0x" + _precompile_input(bench, channel_id, twin).hex()}
    assert bench.node.rpc("eth_call", body, "latest")[-40:] == bench.payer.address[2:].lower()
    assert not accepted(bench, channel_id, twin)


def _precompile_input(bench: Bench, channel_id: bytes, signature: bytes) -> bytes:
    digest = bench.domain.voucher(channel_id, AMOUNT)
    return digest + signature[64:].rjust(32, b"\0") + signature[:64]


@pytest.mark.parametrize("length", [0, 1, 63, 66, 130])
def test_signature_has_one_of_two_lengths(bench: Bench, length: int) -> None:
    channel_id = bench.open()
    signature = bench.voucher(channel_id, AMOUNT)
    assert not accepted(bench, channel_id, (signature * 2)[:length])


@pytest.mark.parametrize("broken", [b"\0" * 65, b"\0" * 64, b"\xff" * 65, b"\xff" * 64])
def test_garbage_recovers_nobody(bench: Bench, broken: bytes) -> None:
    # Not even where "nobody" would be the named signer: then the payer signs.
    assert not accepted(bench, bench.open(), broken)


@pytest.mark.parametrize("v", [0, 1, 26, 29, 255])
def test_recovery_byte_is_27_or_28(bench: Bench, v: int) -> None:
    channel_id = bench.open()
    assert not accepted(bench, channel_id, bench.voucher(channel_id, AMOUNT)[:64] + bytes([v]))


# Signers with code.


def test_contract_wallet_signs_by_its_own_rule(bench: Bench) -> None:
    owner = new_key()
    wallet = Contract.deploy(bench.node, "Wallet", bench.payee, owner.address)
    channel_id = bench.open(signer=wallet.address)
    voucher = bench.voucher(channel_id, AMOUNT, owner)
    assert accepted(bench, channel_id, voucher)
    assert not accepted(bench, channel_id, bench.voucher(channel_id, AMOUNT, bench.stranger))
    wallet.send("refuse", sender=bench.payee)
    assert not accepted(bench, channel_id, voucher)


def test_account_that_delegates_its_code_stays_bound_by_its_vouchers(bench: Bench) -> None:
    channel_id = bench.open()
    voucher = bench.voucher(channel_id, AMOUNT)
    refusing = Contract.deploy(bench.node, "Wallet", bench.payee, bench.stranger.address)
    code = bench.node.rpc("eth_getCode", refusing.address, "latest")
    bench.node.rpc("anvil_setCode", bench.payer.address, code)
    try:
        assert accepted(bench, channel_id, voucher)
    finally:
        bench.node.rpc("anvil_setCode", bench.payer.address, "0x")


def test_signer_whose_code_knows_no_signatures_is_no_signer(bench: Bench) -> None:
    channel_id = bench.open(signer=bench.token.address)
    assert not accepted(bench, channel_id, bench.voucher(channel_id, AMOUNT))
    # The payer is not at its mercy: the money comes back.
    bench.close(channel_id)
    assert bench.record(channel_id).deposit == DEPOSIT
