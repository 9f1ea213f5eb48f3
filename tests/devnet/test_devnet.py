"""A Tempo chain as its clients see it, through the shim."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account import Account
from eth_utils.crypto import keccak
from pytempo import Call  # type: ignore[import-untyped]

from app.devnet import Devnet, DevnetThread
from app.devnet.rpc import Rpc
from app.devnet.shim import GAS_LIMIT, Shim
from tests.clocks import FakeClock
from tests.contracts.codec import Codec
from tests.devnet.wallet import EXPIRING, now, open_call, request, rpc, send, transaction, transfer
from tests.devnet_fixtures import EvmChain, TempoChain

ESCROW_V1 = "0x700b6A60ce7EaaEA56F065753d8dcB9653dbAD35"
ALLOWED = 10**6


def fresh(chain: TempoChain, base_units: int = ALLOWED) -> Any:
    """A new wallet with money."""
    wallet = Account.create()
    chain.fund(wallet.address, base_units)
    return wallet


def key_of(account: Any) -> str:
    """As the wallet's library takes it."""
    return bytes(account.key).hex()


def opened(receipt: dict[str, Any]) -> dict[str, Any]:
    """The values of the one channel that a transaction opened."""
    codec = Codec("ChannelReserveStandIn")
    events = [codec.event(log) for log in receipt["logs"]]
    (found,) = [event.values for event in events if event is not None and event.name == "ChannelOpened"]
    return found


# The chain itself.


def test_addresses_are_the_same_on_every_start(devnet: TempoChain, new_devnet: Callable[[], TempoChain]) -> None:
    for chain in (devnet, new_devnet()):
        assert (chain.chain_id, chain.escrow_v1) == (1337, ESCROW_V1)
        assert chain.escrow_v2 == "0x4d50500000000000000000000000000000000000"
        assert chain.token == "0x20c0000000000000000000000000000000000000"
        for escrow in (chain.escrow_v1, chain.escrow_v2):
            assert len(rpc(chain.rpc_url, "eth_getCode", escrow, "latest")) > 1000
    assert len({account.address for account in devnet.accounts}) == 10
    for account in devnet.accounts:
        assert Account.from_key(account.private_key).address == account.address
        assert devnet.balance(account.address) > 10**9


def test_funded_money_can_be_spent(devnet: TempoChain) -> None:
    wallet, other = fresh(devnet), Account.create().address
    devnet.fund(wallet.address, 5)
    assert devnet.balance(wallet.address) == ALLOWED + 5
    receipt = send(devnet, transaction(devnet, transfer(devnet.token, other, 7)).sign(key_of(wallet)))
    assert receipt["status"] == "0x1"
    assert devnet.balance(other) == 7
    # The fee is the gas at its price, in millionths of a dollar, rounded up.
    fee = -(-int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16) // 10**12)
    assert devnet.balance(wallet.address) == ALLOWED + 5 - 7 - fee


def test_clock_of_a_chain_of_ones_own_moves(new_devnet: Callable[[], TempoChain]) -> None:
    chain = new_devnet()
    before = now(chain)
    chain.increase_time(900)
    assert now(chain) >= before + 900
    number = int(rpc(chain.rpc_url, "eth_blockNumber"), 16)
    chain.mine()
    assert int(rpc(chain.rpc_url, "eth_blockNumber"), 16) == number + 1


def test_chain_goes_back_to_a_snapshot(new_devnet: Callable[[], TempoChain]) -> None:
    chain = new_devnet()
    wallet = fresh(chain)
    snapshot = chain.snapshot()
    send(chain, transaction(chain, transfer(chain.token, chain.escrow_v1, 5)).sign(key_of(wallet)))
    assert chain.balance(wallet.address) < ALLOWED
    chain.revert(snapshot)
    assert chain.balance(wallet.address) == ALLOWED


def test_chain_goes_on_from_its_state_file(tmp_path: Path) -> None:
    path = tmp_path / "chain.json"
    wallet = Account.create()
    for number in (1, 2):
        with DevnetThread(Devnet(state_file=path)) as chain:
            assert chain.balance(wallet.address) == (number - 1) * 11
            assert chain.escrow_v1 == ESCROW_V1
            chain.fund(wallet.address, 11)
            chain.mine()
    assert path.stat().st_size > 0


def test_port_is_chosen_and_refused_when_taken() -> None:
    with DevnetThread(Devnet()) as chain:
        port = httpx.URL(chain.rpc_url).port
        assert port is not None
        with pytest.raises(OSError, match="address already in use"), DevnetThread(Devnet(port=port)):
            raise AssertionError
    with DevnetThread(Devnet(port=port)) as chain:
        assert chain.rpc_url == f"http://127.0.0.1:{port}"


async def test_chain_is_an_asynchronous_context_manager() -> None:
    async with Devnet() as chain:
        assert await chain.balance(chain.accounts[0].address) > 0
        assert int(await chain.rpc("eth_chainId"), 16) == chain.chain_id
    with pytest.raises(RuntimeError):
        await chain.mine()
    await chain.stop()


def test_plain_chain_has_a_token_and_the_escrow(evm_chain: EvmChain) -> None:
    assert evm_chain.chain_id == 31337
    wallet = Account.create().address
    evm_chain.fund(wallet, 5)
    assert (evm_chain.balance(wallet), evm_chain.balance(evm_chain.accounts[1].address)) == (5, 10**9)
    codec = Codec("StreamChannel")
    call = {"to": evm_chain.escrow_v1, "data": codec.call_data("eip712Domain", ())}
    assert codec.result("eip712Domain", rpc(evm_chain.rpc_url, "eth_call", call, "latest"))[1] == "EVM Payment Channel"
    with pytest.raises(AttributeError):
        _ = evm_chain.escrow_v2


def test_two_chains_are_two(new_evm_chain: Callable[[], EvmChain]) -> None:
    first, second = new_evm_chain(), new_evm_chain()
    first.mine()
    numbers = [int(rpc(chain.rpc_url, "eth_blockNumber"), 16) for chain in (first, second)]
    assert numbers[0] == numbers[1] + 1


# Transactions through the shim.


@pytest.mark.parametrize("sponsored", [False, True])
def test_reserve_channel_is_bound_to_the_transaction_that_opens_it(devnet: TempoChain, sponsored: bool) -> None:
    wallet, sponsor, salt = fresh(devnet), fresh(devnet), keccak(text=f"salt {sponsored}")
    call = open_call(devnet, deposit=ALLOWED // 2, salt=salt, payee=devnet.accounts[0].address)
    signed = transaction(devnet, call, awaiting_fee_payer=sponsored).sign(key_of(wallet))
    expected = keccak(signed.encode_for_signing() + bytes.fromhex(wallet.address[2:]))
    if sponsored:
        signed = signed.sign(key_of(sponsor), for_fee_payer=True)
    receipt = send(devnet, signed)
    assert receipt["status"] == "0x1"
    found = opened(receipt)
    assert (found["expiringNonceHash"], found["salt"]) == (expected, salt)
    assert found["payer"] == wallet.address.lower()
    spent = ALLOWED - devnet.balance(wallet.address)
    fees = ALLOWED - devnet.balance(sponsor.address)
    assert (spent == ALLOWED // 2, fees > 0) == (sponsored, sponsored)


def test_one_wallet_opens_many_channels_at_once(devnet: TempoChain) -> None:
    wallet = fresh(devnet, 10 * ALLOWED)
    payee = devnet.accounts[0].address

    async def send_all() -> list[dict[str, Any]]:
        calls = [open_call(devnet, deposit=ALLOWED, salt=keccak(text=f"{n}"), payee=payee) for n in range(4)]
        raws = ["0x" + transaction(devnet, call).sign(key_of(wallet)).encode().hex() for call in calls]
        async with httpx.AsyncClient(timeout=60) as client:
            bodies = [
                {"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransactionSync", "params": [raw]} for raw in raws
            ]
            answers = await asyncio.gather(*(client.post(devnet.rpc_url, json=body) for body in bodies))
        return [answer.json()["result"] for answer in answers]

    receipts = asyncio.run(send_all())
    assert {receipt["status"] for receipt in receipts} == {"0x1"}
    assert len({opened(receipt)["channelId"] for receipt in receipts}) == 4


def test_open_that_the_wallet_cannot_pay_reverts(devnet: TempoChain) -> None:
    wallet = fresh(devnet)
    call = open_call(devnet, deposit=2 * ALLOWED, salt=keccak(text="poor"), payee=devnet.accounts[0].address)
    assert send(devnet, transaction(devnet, call).sign(key_of(wallet)))["status"] == "0x0"


def test_contract_escrow_is_opened_by_two_calls(devnet: TempoChain) -> None:
    wallet, codec = fresh(devnet), Codec("StreamChannel")
    values = (devnet.accounts[0].address, devnet.token, ALLOWED // 2, keccak(text="v1"), wallet.address)
    approve = Codec("TestToken").call_data("approve", (devnet.escrow_v1, ALLOWED // 2))
    calls = (
        Call.create(to=devnet.token, data=approve),
        Call.create(to=devnet.escrow_v1, data=codec.call_data("open", values)),
    )
    receipt = send(devnet, transaction(devnet, *calls).sign(key_of(wallet)))
    assert receipt["status"] == "0x1"
    # Sponsors of fees refuse more; a wallet is told that this is enough.
    assert int(receipt["gasUsed"], 16) < GAS_LIMIT
    assert devnet.balance(devnet.escrow_v1) >= ALLOWED // 2


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"nonce": 1}, "expiring nonce transaction must have nonce 0"),
        ({"valid_before": 1}, "transaction expired"),
        ({"valid_before": 2**40}, "more than 30 s after"),
    ],
)
def test_transaction_that_can_never_be_mined_is_refused_at_once(
    devnet: TempoChain, changes: dict[str, int], reason: str
) -> None:
    call = transfer(devnet.token, devnet.accounts[0].address, 1)
    signed = transaction(devnet, call, **changes).sign(key_of(fresh(devnet)))
    answer = request(devnet.rpc_url, "eth_sendRawTransaction", "0x" + signed.encode().hex())
    assert reason in answer["error"]["message"]
    assert answer["id"] == 7


def test_other_lanes_of_nonces_work(devnet: TempoChain) -> None:
    wallet = fresh(devnet)
    call = transfer(devnet.token, devnet.accounts[0].address, 1)
    for fields in ({"nonce_key": 0}, {"nonce_key": 3}, {"nonce_key": 0, "nonce": 1}):
        signed = transaction(devnet, call, **{"valid_before": None, **fields}).sign(key_of(wallet))
        assert send(devnet, signed)["status"] == "0x1"


# What clients ask before they sign.


def test_fill_answers_for_tempo_transactions(devnet: TempoChain) -> None:
    wallet = fresh(devnet)
    call = {"to": devnet.token, "data": "0x", "value": "0x0"}
    wanted = {"from": wallet.address, "calls": [call], "nonceKey": hex(EXPIRING), "nonce": "0x0"}
    wanted |= {"validBefore": hex(now(devnet) + 20), "feeToken": devnet.token}
    filled = rpc(devnet.rpc_url, "eth_fillTransaction", wanted)["tx"]
    assert (filled["type"], int(filled["gas"], 16), filled["nonce"]) == ("0x76", GAS_LIMIT, "0x0")
    assert (filled["calls"], filled["nonceKey"], filled["feeToken"]) == ([call], hex(EXPIRING), devnet.token)
    assert int(filled["maxFeePerGas"], 16) >= int(filled["maxPriorityFeePerGas"], 16) > 0
    assert int(filled["chainId"], 16) == devnet.chain_id


def test_fill_answers_for_plain_transactions(devnet: TempoChain) -> None:
    wanted = {"from": devnet.accounts[4].address, "to": devnet.token, "data": "0x1234"}
    filled = rpc(devnet.rpc_url, "eth_fillTransaction", wanted)["tx"]
    assert (filled["to"], filled["input"], filled["value"]) == (devnet.token, "0x1234", "0x0")
    assert (filled["type"], int(filled["gas"], 16)) == ("0x2", GAS_LIMIT)
    asked = {**wanted, "gas": "0x5208", "feeToken": devnet.token}
    filled = rpc(devnet.rpc_url, "eth_fillTransaction", asked)["tx"]
    assert (filled["type"], filled["gas"]) == ("0x76", "0x5208")
    assert filled["calls"] == [{"to": devnet.token, "value": "0x0", "input": "0x1234"}]


def test_estimates_are_enough_for_batches(devnet: TempoChain) -> None:
    sender = devnet.accounts[4].address
    calls = [{"to": devnet.token, "data": "0x"}] * 2
    assert int(rpc(devnet.rpc_url, "eth_estimateGas", {"from": sender, "calls": calls}), 16) == GAS_LIMIT
    call = open_call(devnet, deposit=5, salt=keccak(text="estimate"), payee=devnet.accounts[0].address)
    plain = {"from": sender, "to": devnet.escrow_v2, "data": "0x" + bytes(call.data).hex()}
    assert 21_000 < int(rpc(devnet.rpc_url, "eth_estimateGas", plain), 16) < GAS_LIMIT


def test_calls_to_the_reserve_can_be_simulated(devnet: TempoChain) -> None:
    wallet = fresh(devnet)
    for deposit, error in ((5, None), (2 * ALLOWED, "error")):
        call = open_call(devnet, deposit=deposit, salt=keccak(text="call"), payee=devnet.accounts[0].address)
        body = {"to": devnet.escrow_v2, "data": "0x" + bytes(call.data).hex()}
        plain = {"from": wallet.address, **body}
        batch = {"from": wallet.address, "calls": [body]}
        for wanted in (plain, batch):
            for block in ((), ("latest",), ("latest", {wallet.address: {"balance": "0x1"}})):
                answer = request(devnet.rpc_url, "eth_call", wanted, *block)
                assert ("error" in answer) == bool(error), answer
    # Nothing was written: the transaction itself is still needed.
    assert "error" in request(devnet.node_url, "eth_call", {"from": wallet.address, **body}, "latest")


# The protocol.


def test_batches_are_answered_in_order(devnet: TempoChain) -> None:
    batch = [
        {"jsonrpc": "2.0", "id": 1, "method": "eth_chainId", "params": []},
        {"jsonrpc": "2.0", "id": 2, "method": "eth_nonsense", "params": []},
        {"jsonrpc": "2.0", "id": 3, "method": "eth_estimateGas", "params": [{"calls": [{}]}]},
        17,
    ]
    answers = httpx.post(devnet.rpc_url, json=batch).json()
    assert [answer["id"] for answer in answers] == [1, 2, 3, None]
    assert answers[0]["result"] == hex(1337)
    assert answers[1]["error"]["code"] == -32601
    assert answers[3]["error"]["code"] == -32600


@pytest.mark.parametrize("body", [b"{", b"", b"\xff\xfe"])
def test_body_that_is_no_json_is_refused(devnet: TempoChain, body: bytes) -> None:
    answer = httpx.post(devnet.rpc_url, content=body, headers={"content-type": "application/json"}).json()
    assert answer["error"]["code"] == -32700


@pytest.mark.parametrize("params", [[], ["0x"], ["nonsense"], ["0x76c0"], [None], [{}]])
@pytest.mark.parametrize("method", ["eth_sendRawTransaction", "eth_call", "eth_estimateGas", "eth_fillTransaction"])
def test_odd_parameters_are_answered(devnet: TempoChain, method: str, params: list[Any]) -> None:
    answer = request(devnet.rpc_url, method, *params)
    assert ("error" in answer) != ("result" in answer)


@pytest.mark.parametrize(("seconds_later", "mined"), [(60, 1), (0, 0)])
async def test_idle_chains_clock_is_brought_forward_before_it_is_looked_at(seconds_later: int, mined: int) -> None:
    async with Devnet() as chain:
        block = await chain.rpc("eth_getBlockByNumber", "latest", False)
        clock = FakeClock()
        clock.advance((int(block["timestamp"], 16) + seconds_later) * 1000 - clock.now_ms())
        node = Rpc(chain.node_url)
        shim = Shim(node, clock=clock)
        await shim.start("127.0.0.1", 0)
        try:
            body = {"jsonrpc": "2.0", "id": 1, "method": "eth_fillTransaction"}
            params = [{"from": chain.accounts[1].address, "to": chain.token}]
            async with httpx.AsyncClient() as client:
                answer = await client.post(f"http://127.0.0.1:{shim.port}", json={**body, "params": params})
            assert "result" in answer.json()
            number = int(await chain.rpc("eth_blockNumber"), 16)
            assert number == int(block["number"], 16) + mined
        finally:
            await shim.stop()
            await node.close()
