"""One-shot payments on a real chain: bound to their challenge, and good once."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from eth_utils.crypto import keccak
from mpp.methods.tempo import attribution

from app.chain import abi
from app.chain.backend import TransactionRefused
from app.chain.charge import Charged, ChargeRequest, TempoCharge
from app.chain.registry import charge_for
from app.clock import SystemClock
from app.money import BaseUnits
from app.settings import ChannelSettings, MppSettings
from tests.chain.conftest import Bench
from tests.chain.wallet import Wallet

AMOUNT = 250_000
REALM = "farebox.test"
STRANGER = "0x" + "5e" * 20
PATH_USD = "0x20c0000000000000000000000000000000000000"
TRANSFER = abi.Function("transfer", ("address", "uint256"))


class Claims:
    """Which transaction has paid what."""

    def __init__(self) -> None:
        self.taken: dict[str, str] = {}

    async def claim(self, tx_hash: str, *, challenge_id: str, payer: str, amount: BaseUnits) -> bool:
        assert payer.startswith("0x")
        assert amount > 0
        return self.taken.setdefault(tx_hash, challenge_id) == challenge_id


class Till:
    """Takes charges for challenges of ours."""

    def __init__(self, bench: Bench, charge: TempoCharge, claims: Claims) -> None:
        self.bench = bench
        self.charge = charge
        self.claims = claims

    def request(self, challenge_id: str = "challenge-1") -> ChargeRequest:
        offer = self.bench.backend.offer
        return ChargeRequest(
            challenge_id=challenge_id,
            realm=REALM,
            currency=offer.currency,
            recipient=offer.recipient,
            amount=BaseUnits(AMOUNT),
        )

    def pull(self, wallet: Wallet, request: ChargeRequest, **changes: Any) -> dict[str, Any]:
        memo = changes.pop("memo", attribution.encode(request.challenge_id, request.realm, "client"))
        to, token = changes.pop("to", request.recipient), changes.pop("token", request.currency)
        data = abi.TRANSFER_WITH_MEMO.call(to, changes.pop("amount", AMOUNT), bytes.fromhex(memo[2:]))
        calls = changes.pop("calls", ((token, data),))
        signed = wallet.transaction(calls, **changes)
        return {"type": "transaction", "signature": wallet.wire(signed)}

    async def collect(self, payload: dict[str, Any], request: ChargeRequest, source: str | None = None) -> Charged:
        found = await self.charge.collect(payload, request, source=source, timeout_s=10)
        assert found is not None
        return found


@pytest.fixture
async def till(v2: Bench) -> AsyncIterator[Till]:
    """A till at the backend's chain."""
    offer, claims = v2.backend.offer, Claims()
    settings = ChannelSettings(
        backend="tempo-v2",
        chain_id=offer.chain_id,
        rpc_url=v2.chain.rpc_url,
        escrow=offer.escrow,
        currency=offer.currency,
    )
    charge = charge_for(settings, MppSettings(), backend=v2.backend, claims=claims, clock=SystemClock())
    yield Till(v2, charge, claims)
    await charge.aclose()


async def test_transaction_pays_and_can_be_presented_again(till: Till) -> None:
    wallet, request = till.bench.wallet(), till.request()
    before = till.bench.chain.balance(request.recipient)
    payload = till.pull(wallet, request)
    charged = await till.collect(payload, request, wallet.source)
    assert (charged.payer, charged.amount) == (wallet.address, AMOUNT)
    assert till.claims.taken == {charged.tx_hash: request.challenge_id}
    assert await till.collect(payload, request, wallet.source) == charged
    assert till.bench.chain.balance(request.recipient) == before + AMOUNT


async def test_hash_of_a_mined_payment_pays(till: Till) -> None:
    wallet, request = till.bench.wallet(), till.request()
    raw = till.pull(wallet, request)["signature"]
    tx_hash = "0x" + keccak(bytes.fromhex(raw[2:])).hex()
    await till.bench.mine(bytes.fromhex(raw[2:]), tx_hash)
    payload = {"type": "hash", "hash": tx_hash}
    charged = await till.collect(payload, request, wallet.source)
    assert charged == Charged(payer=wallet.address, tx_hash=tx_hash, amount=BaseUnits(AMOUNT))
    with pytest.raises(TransactionRefused, match="memo"):
        await till.collect(payload, till.request("challenge-2"))
    with pytest.raises(TransactionRefused, match="source"):
        await till.collect(payload, request, Wallet(till.bench.backend.offer).source)


async def test_claimed_transaction_pays_nothing_else(till: Till) -> None:
    wallet, request = till.bench.wallet(), till.request()
    payload = till.pull(wallet, request)
    tx_hash = "0x" + keccak(bytes.fromhex(payload["signature"][2:])).hex()
    till.claims.taken[tx_hash] = "another"
    for shown in (payload, {"type": "hash", "hash": tx_hash}):
        with pytest.raises(TransactionRefused, match="something else"):
            await till.collect(shown, request)
        await till.bench.mine(bytes.fromhex(payload["signature"][2:]), tx_hash)


async def test_unmined_payment_is_neither_taken_nor_refused(till: Till) -> None:
    payload = {"type": "hash", "hash": "0x" + "77" * 32}
    assert await till.charge.collect(payload, till.request(), source=None, timeout_s=0.1) is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"memo": attribution.encode("challenge-2", REALM)}, "memo"),
        ({"memo": attribution.encode("challenge-1", "elsewhere")}, "memo"),
        ({"memo": "0x" + "00" * 32}, "memo"),
        ({"to": STRANGER}, "recipient"),
        ({"amount": AMOUNT - 1}, "amount"),
        ({"amount": AMOUNT + 1}, "amount"),
        ({"token": "0x20c0000000000000000000000000000000000001"}, "one call"),
        (
            {"calls": (("0x20c0000000000000000000000000000000000000", TRANSFER.call(STRANGER, AMOUNT)),)},
            "expected a call",
        ),
        ({"calls": (("0x20c0000000000000000000000000000000000000", b""),) * 2}, "one call"),
        ({"chain_id": 1}, "for chain 1"),
        ({"sponsored": True}, "not sponsored"),
        ({"valid_before": 1_700_000_000}, "expired"),
        ({"valid_after": 4_000_000_000, "valid_before": 4_000_000_100}, "not valid yet"),
    ],
)
async def test_another_transfer_is_refused(till: Till, changes: dict[str, Any], message: str) -> None:
    wallet, request = Wallet(till.bench.backend.offer), till.request()
    with pytest.raises(TransactionRefused, match=message):
        await till.collect(till.pull(wallet, request, **changes), request)
    assert till.claims.taken == {}


async def test_wrong_source_or_payload_is_refused(till: Till) -> None:
    wallet, request = Wallet(till.bench.backend.offer), till.request()
    with pytest.raises(TransactionRefused, match="source"):
        await till.collect(till.pull(wallet, request), request, Wallet(wallet.offer).source)
    for payload in ({}, {"type": "proof"}, {"type": "transaction"}, {"type": "hash", "hash": "0x"}):
        with pytest.raises(TransactionRefused) as caught:
            await till.collect(payload, request)
        assert caught.value.malformed
    assert till.claims.taken == {}


async def test_payment_that_holds_no_such_transfer_is_refused(till: Till) -> None:
    wallet, request = till.bench.wallet(), till.request()
    signed = wallet.transaction(((request.currency, TRANSFER.call(request.recipient, AMOUNT)),))
    await till.bench.mine(signed.encode(), "0x" + signed.hash().hex())
    with pytest.raises(TransactionRefused, match="no such transfer"):
        await till.collect({"type": "hash", "hash": "0x" + signed.hash().hex()}, request)


async def test_mined_payment_must_be_what_was_asked_for(till: Till) -> None:
    wallet, request = till.bench.wallet(), till.request()
    for changes in ({"amount": AMOUNT - 1}, {"to": STRANGER}):
        raw = bytes.fromhex(till.pull(wallet, request, **changes)["signature"][2:])
        tx_hash = "0x" + keccak(raw).hex()
        await till.bench.mine(raw, tx_hash)
        with pytest.raises(TransactionRefused, match="no such transfer"):
            await till.collect({"type": "hash", "hash": tx_hash}, request)
    raw = bytes.fromhex(till.pull(wallet, request)["signature"][2:])
    tx_hash = "0x" + keccak(raw).hex()
    await till.bench.mine(raw, tx_hash)
    dearer = replace(request, currency="0x20c0000000000000000000000000000000000001")
    with pytest.raises(TransactionRefused, match="no such transfer"):
        await till.collect({"type": "hash", "hash": tx_hash}, dearer)
    assert till.claims.taken == {}


async def test_reverted_payment_is_refused(till: Till) -> None:
    wallet, request = till.bench.wallet(funds=AMOUNT - 1), till.request()
    with pytest.raises(TransactionRefused, match="reverted"):
        await till.collect(till.pull(wallet, request), request)
