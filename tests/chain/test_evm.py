"""The contract escrow on plain EVM: opens that clients broadcast, and opens by EIP-3009 that we carry."""

import asyncio
import secrets
from typing import Any

import pytest

from app.chain import abi
from app.chain.backend import ChainUnavailable, Funding, Signed, TransactionRefused
from app.chain.sponsorship import FEE_MAX
from app.money import BaseUnits
from app.mpp.descriptor import ZERO_ADDRESS, Descriptor
from tests.chain.conftest import PAYER_FUNDS, Bench, BenchMaker
from tests.chain.wallet import Opening, Wallet, evm_nonce, now_s
from tests.devnet_fixtures import EvmChain

DEPOSIT = 1_000_000
STRANGER = "0x" + "5e" * 20
OPEN_TYPES = ("address", "address", "address", "bytes32", "address")
TOP_UP_TYPES = ("bytes32", "uint128", "address", "bytes32")


class Client:
    """A wallet that does its own transactions."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.wallet = bench.wallet()
        bench.chain.rpc("anvil_setBalance", self.wallet.address, hex(10**18))
        self.nonce = 0

    def send(self, to: str, data: bytes) -> str:
        """Broadcast a call; its hash."""
        raw = self.wallet.sign_evm(to, data, nonce=self.nonce)
        self.nonce += 1
        return str(self.bench.chain.rpc("eth_sendRawTransaction", "0x" + raw.hex()))

    def described(self, *, signer: str | None = None) -> tuple[Descriptor, str]:
        """A channel that is not open yet."""
        offer = self.wallet.offer
        descriptor = Descriptor(
            payer=self.wallet.address,
            payee=offer.recipient,
            token=offer.currency,
            salt="0x" + secrets.token_hex(32),
            authorized_signer=signer or ZERO_ADDRESS,
        )
        return descriptor, descriptor.channel_id(protocol="v1", escrow=offer.escrow, chain_id=offer.chain_id)

    def open(self, deposit: int = DEPOSIT, **changes: str) -> tuple[Opening, str]:
        """Approve and open; the payload, and the transaction's hash."""
        offer = self.wallet.offer
        descriptor, channel_id = self.described(signer=changes.get("signer"))
        self.send(offer.currency, abi.APPROVE.call(offer.escrow, 2**128))
        tx_hash = self.send(
            offer.escrow,
            abi.V1_OPEN.call(
                changes.get("payee", offer.recipient),
                offer.currency,
                deposit,
                bytes.fromhex(descriptor.salt[2:]),
                descriptor.authorized_signer,
            ),
        )
        payload = {
            "action": "open",
            "type": "hash",
            "channelId": channel_id,
            "hash": tx_hash,
            "salt": descriptor.salt,
            "cumulativeAmount": "0",
            "signature": self.wallet.voucher(channel_id, 0),
        }
        return Opening(payload=payload, descriptor=descriptor, channel_id=channel_id), tx_hash

    def authorized(self, deposit: int = DEPOSIT, **changes: Any) -> Opening:
        """An authorized open's payload."""
        descriptor, channel_id = self.described()
        values = (descriptor.payer, descriptor.payee, descriptor.token, bytes.fromhex(descriptor.salt[2:]))
        nonce = evm_nonce(OPEN_TYPES, (*values, descriptor.authorized_signer))
        fields: dict[str, Any] = {"value": deposit, "nonce": nonce, "token_name": "Test USD", **changes}
        authorization, signature = self.wallet.authorize(**fields)
        payload = {
            "action": "open",
            "type": "authorization",
            "channelId": channel_id,
            "authorization": authorization,
            "signature": signature,
            "salt": descriptor.salt,
            "cumulativeAmount": "0",
            "voucherSignature": self.wallet.voucher(channel_id, 0),
        }
        return Opening(payload=payload, descriptor=descriptor, channel_id=channel_id)


async def opened(bench: Bench) -> tuple[Client, Opening]:
    client = Client(bench)
    opening, tx_hash = client.open()
    funding = bench.backend.decode_open(opening.payload, source=client.wallet.source)
    assert (funding.amount, funding.tx_hash, funding.raw) == (0, tx_hash, None)
    funding = await bench.backend.prepare(funding)
    assert (funding.amount, funding.descriptor, funding.channel_id) == (
        DEPOSIT,
        opening.descriptor,
        opening.channel_id,
    )
    mined = await bench.backend.wait(tx_hash, timeout_s=10)
    assert mined is not None
    assert mined.succeeded
    return client, opening


async def settle(bench: Bench, client: Client, opening: Opening, amount: int) -> Signed:
    return await bench.backend.sign_settle(
        channel_id=opening.channel_id,
        descriptor=opening.descriptor,
        amount=BaseUnits(amount),
        signature=client.wallet.voucher(opening.channel_id, amount),
        nonce=await bench.backend.next_nonce(),
    )


async def test_check_passes(evm: Bench) -> None:
    await evm.backend.check()


async def test_clients_own_open_is_found(evm: Bench) -> None:
    _, opening = await opened(evm)
    state = await evm.backend.channel(opening.channel_id)
    assert state is not None
    assert (state.deposit, state.settled, state.finalized) == (DEPOSIT, 0, False)


async def test_signer_that_is_left_out_may_be_written_as_the_payer(evm: Bench) -> None:
    client = Client(evm)
    opening, _ = client.open(signer=client.wallet.address)
    funding = await evm.backend.prepare(evm.backend.decode_open(opening.payload, source=client.wallet.source))
    assert funding.descriptor.authorized_signer == client.wallet.address


async def test_settle_then_close_captures_less_than_the_voucher(evm: Bench) -> None:
    client, opening = await opened(evm)
    first = (await evm.backend.head()).block
    signed = await settle(evm, client, opening, 300_000)
    mined = await evm.mine(signed.raw, signed.tx_hash)
    assert (mined.succeeded, mined.fee, mined.fee_native > 0) == (True, None, True)
    signed = await evm.backend.sign_close(
        channel_id=opening.channel_id,
        descriptor=opening.descriptor,
        amount=BaseUnits(900_000),
        capture=BaseUnits(400_000),
        signature=client.wallet.voucher(opening.channel_id, 900_000),
        nonce=await evm.backend.next_nonce(),
    )
    mined = await evm.mine(signed.raw, signed.tx_hash)
    assert evm.chain.balance(evm.backend.account) == 10_000_000 + 400_000
    assert evm.chain.balance(client.wallet.address) == PAYER_FUNDS - 400_000
    state = await evm.backend.channel(opening.channel_id)
    assert state is not None
    assert (state.settled, state.finalized) == (400_000, True)
    kinds = [event.kind for event in await evm.backend.events(first=first, last=mined.block)]
    assert kinds[-2:] == ["settled", "closed"]


async def test_requested_close_is_seen(evm: Bench) -> None:
    client, opening = await opened(evm)
    request = abi.Function("requestClose", ("bytes32",)).call(bytes.fromhex(opening.channel_id[2:]))
    tx_hash = client.send(client.wallet.offer.escrow, request)
    mined = await evm.backend.wait(tx_hash, timeout_s=10)
    assert mined is not None
    state = await evm.backend.channel(opening.channel_id)
    assert state is not None
    assert state.close_requested_at > 0
    kinds = [event.kind for event in await evm.backend.events(first=mined.block, last=mined.block)]
    assert kinds == ["close_requested"]


async def test_top_up_by_hash(evm: Bench) -> None:
    client, opening = await opened(evm)
    call = abi.V1_TOP_UP.call(bytes.fromhex(opening.channel_id[2:]), 250_000)
    tx_hash = client.send(client.wallet.offer.escrow, call)
    payload = {"type": "hash", "channelId": opening.channel_id, "hash": tx_hash, "additionalDeposit": "250000"}
    channel: dict[str, Any] = {"channel_id": opening.channel_id, "descriptor": opening.descriptor}
    funding = evm.backend.decode_top_up(payload, **channel, source=client.wallet.source)
    assert (await evm.backend.prepare(funding)).amount == 250_000
    more = evm.backend.decode_top_up({**payload, "additionalDeposit": "250001"}, **channel, source=client.wallet.source)
    with pytest.raises(TransactionRefused, match="additionalDeposit"):
        await evm.backend.prepare(more)
    with pytest.raises(TransactionRefused, match="source"):
        evm.backend.decode_top_up(payload, **channel, source=Wallet(client.wallet.offer).source)


async def carried(bench: Bench, funding: Funding) -> Funding:
    """An authorization, mined in a transaction of ours."""
    prepared = await bench.backend.prepare(funding, nonce=await bench.backend.next_nonce())
    assert prepared.raw is not None
    assert prepared.tx_hash is not None
    assert await bench.backend.prepare(prepared) == prepared
    assert (await bench.mine(prepared.raw, prepared.tx_hash)).succeeded
    return prepared


async def test_authorizations_open_and_top_up_without_the_payers_gas(evm: Bench) -> None:
    client = Client(evm)
    evm.chain.rpc("anvil_setBalance", client.wallet.address, "0x0")
    opening = client.authorized()
    funding = evm.backend.decode_open(opening.payload)
    assert (funding.amount, funding.sponsored, funding.tx_hash) == (DEPOSIT, True, None)
    with pytest.raises(ValueError, match="nonce"):
        await evm.backend.prepare(funding)
    prepared = await carried(evm, funding)
    assert evm.budget.reserved == {prepared.tx_hash: FEE_MAX}
    salt = secrets.token_bytes(32)
    channel = bytes.fromhex(opening.channel_id[2:])
    nonce = evm_nonce(TOP_UP_TYPES, (channel, 50, client.wallet.address, salt))
    authorization, signature = client.wallet.authorize(50, nonce, token_name="Test USD")
    payload = {
        "type": "authorization",
        "channelId": opening.channel_id,
        "authorization": authorization,
        "signature": signature,
        "salt": "0x" + salt.hex(),
        "additionalDeposit": "50",
    }
    top_up = evm.backend.decode_top_up(payload, channel_id=opening.channel_id, descriptor=opening.descriptor)
    await carried(evm, top_up)
    state = await evm.backend.channel(opening.channel_id)
    assert state is not None
    assert state.deposit == DEPOSIT + 50
    with pytest.raises(TransactionRefused, match="nonce"):
        evm.backend.decode_top_up(
            {**payload, "salt": "0x" + "11" * 32}, channel_id=opening.channel_id, descriptor=opening.descriptor
        )
    stranger = Wallet(client.wallet.offer)
    theirs, their_signature = stranger.authorize(50, nonce, token_name="Test USD")
    with pytest.raises(TransactionRefused, match="only the channel's payer"):
        evm.backend.decode_top_up(
            {**payload, "authorization": theirs, "signature": their_signature},
            channel_id=opening.channel_id,
            descriptor=opening.descriptor,
        )
    with pytest.raises(TransactionRefused, match="additionalDeposit"):
        evm.backend.decode_top_up(
            {**payload, "additionalDeposit": "51"}, channel_id=opening.channel_id, descriptor=opening.descriptor
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nonce": b"\1" * 32}, "nonce"),
        ({"to": STRANGER}, "escrow"),
        ({"value": 10**10 + 1}, "deposit"),
        ({"validBefore": 1_700_000_000}, "not valid now"),
        ({"validAfter": 4_000_000_000}, "not valid now"),
        ({"from": STRANGER}, "channelId"),
    ],
)
def test_another_authorization_is_refused(evm: Bench, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(TransactionRefused, match=message):
        evm.backend.decode_open(Client(evm).authorized(**changes).payload)


async def test_authorization_that_nobody_signed_is_not_carried(evm: Bench) -> None:
    client = Client(evm)
    opening = client.authorized()
    other = client.authorized()
    for payload in (
        {**opening.payload, "signature": other.payload["signature"]},
        client.authorized(token_name="Another USD").payload,
    ):
        with pytest.raises(TransactionRefused, match="reverts"):
            await evm.backend.prepare(evm.backend.decode_open(payload), nonce=0)


async def test_budget_ends_what_is_carried(evm: Bench) -> None:
    client = Client(evm)
    fundings = [evm.backend.decode_open(client.authorized(deposit=5).payload) for _ in range(2)]
    evm.budget.limit = FEE_MAX
    assert (await evm.backend.prepare(fundings[0], nonce=0)).raw is not None
    with pytest.raises(TransactionRefused, match="budget"):
        await evm.backend.prepare(fundings[1], nonce=0)


async def test_authorizations_need_the_setting(evm_chain: EvmChain, make_bench: BenchMaker) -> None:
    bench = await make_bench(evm_chain, "evm")
    with pytest.raises(TransactionRefused, match="type"):
        bench.backend.decode_open(Client(bench).authorized().payload)


def test_another_open_is_refused(evm: Bench) -> None:
    client = Client(evm)
    opening, _ = client.open()
    payload, source = opening.payload, client.wallet.source
    with pytest.raises(TransactionRefused, match="source"):
        evm.backend.decode_open(payload)
    with pytest.raises(TransactionRefused, match="source"):
        evm.backend.decode_open(payload, source=source.replace("31337", "1"))
    for name, value in (
        ("type", "transaction"),
        ("type", "permit2"),
        ("channelId", "0x" + "11" * 32),
        ("salt", "0x" + "11" * 32),
        ("hash", "0x11"),
        ("authorizedSigner", STRANGER),
    ):
        with pytest.raises(TransactionRefused):
            evm.backend.decode_open({**payload, name: value}, source=source)
    with pytest.raises(TransactionRefused, match="channelId"):
        evm.backend.decode_open(payload, source=Wallet(client.wallet.offer).source)


async def test_hash_of_another_transaction_is_refused(evm: Bench) -> None:
    client = Client(evm)
    opening, _ = client.open()
    _, elsewhere = client.open(payee=STRANGER)
    transfer = client.send(client.wallet.offer.currency, abi.APPROVE.call(STRANGER, 1))
    for other in (elsewhere, transfer):
        funding = evm.backend.decode_open({**opening.payload, "hash": other}, source=client.wallet.source)
        with pytest.raises(TransactionRefused, match="did not fund"):
            await evm.backend.prepare(funding)


async def test_reverted_open_is_refused(evm: Bench) -> None:
    client = Client(evm)
    opening, _ = client.open(deposit=PAYER_FUNDS + 1)
    funding = evm.backend.decode_open(opening.payload, source=client.wallet.source)
    with pytest.raises(TransactionRefused, match="reverted"):
        await evm.backend.prepare(funding)


async def test_unknown_transaction_is_refused_after_a_while(evm_chain: EvmChain, make_bench: BenchMaker) -> None:
    bench = await make_bench(evm_chain, "evm", mpp={"confirm_timeout_s": 0.2})
    client = Client(bench)
    opening, _ = client.open()
    funding = bench.backend.decode_open({**opening.payload, "hash": "0x" + "77" * 32}, source=client.wallet.source)
    with pytest.raises(TransactionRefused, match="no such transaction"):
        await bench.backend.prepare(funding)


async def test_open_that_is_not_mined_yet_is_read_from_its_call(new_evm_chain: Any, make_bench: BenchMaker) -> None:
    chain = new_evm_chain()
    bench = await make_bench(chain, "evm", mpp={"confirm_timeout_s": 0.3})
    client = Client(bench)
    chain.rpc("evm_setAutomine", False)
    opening, tx_hash = client.open()
    funding = await bench.backend.prepare(bench.backend.decode_open(opening.payload, source=client.wallet.source))
    assert funding.amount == DEPOSIT
    assert await bench.backend.wait(tx_hash, timeout_s=0.1) is None
    # Another's open, or a transaction of which only a receipt could tell what it does.
    foreign, _ = client.open(payee=STRANGER)
    with pytest.raises(TransactionRefused, match="another channel"):
        await bench.backend.prepare(bench.backend.decode_open(foreign.payload, source=client.wallet.source))
    indirect = client.send(client.wallet.offer.currency, abi.APPROVE.call(STRANGER, 1))
    funding = bench.backend.decode_open({**opening.payload, "hash": indirect}, source=client.wallet.source)
    with pytest.raises(ChainUnavailable, match="not mined yet"):
        await bench.backend.prepare(funding)
    waiting = asyncio.create_task(bench.backend.wait(tx_hash, timeout_s=10))
    chain.mine()
    mined = await waiting
    assert mined is not None
    assert await bench.backend.channel(opening.channel_id) is not None


async def test_used_nonce_is_refused_and_the_same_transaction_is_not(evm: Bench) -> None:
    client, opening = await opened(evm)
    nonce = await evm.backend.next_nonce()
    signed = await settle(evm, client, opening, 10)
    other = await settle(evm, client, opening, 20)
    assert signed.nonce == other.nonce == nonce
    mined = await evm.mine(signed.raw, signed.tx_hash)
    await evm.backend.broadcast(signed.raw)
    assert await evm.backend.mined(signed.tx_hash) == mined
    with pytest.raises(TransactionRefused, match="nonce"):
        await evm.backend.broadcast(other.raw)


async def test_confirmations_are_waited_for(new_evm_chain: Any, make_bench: BenchMaker) -> None:
    chain = new_evm_chain()
    bench = await make_bench(chain, "evm", confirmations=3)
    client = Client(bench)
    _, tx_hash = client.open()
    for _ in range(2):
        assert await bench.backend.mined(tx_hash) is None
        chain.mine()
    assert await bench.backend.mined(tx_hash) is not None


def test_windows_are_looked_at_in_time(evm: Bench) -> None:
    opening = Client(evm).authorized(validBefore=now_s() + 5)
    with pytest.raises(TransactionRefused, match="expires too soon"):
        evm.backend.decode_open(opening.payload)
