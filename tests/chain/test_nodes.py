"""Nodes that are behind, that forget, that fail, and that are another chain's."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.chain import abi
from app.chain.backend import ChainUnavailable, TransactionRefused
from app.chain.escrow import LAG_POLLS
from app.chain.rpc import ATTEMPTS
from app.money import BaseUnits
from app.settings import SettingsError
from tests.chain.conftest import Bench, BenchMaker
from tests.chain.faulty_node import Drop, FaultyNode, Raw, Refusal, Result, Rule, on, times
from tests.chain.wallet import GWEI, Opening, Wallet
from tests.devnet_fixtures import EvmChain, TempoChain

DEPOSIT = 1_000_000


@pytest.fixture
async def node(devnet: TempoChain) -> AsyncIterator[FaultyNode]:
    """A faulty node in front of the Tempo chain."""
    async with FaultyNode(devnet.rpc_url) as node:
        yield node


def open_(bench: Bench) -> tuple[Wallet, Opening]:
    wallet = bench.wallet()
    v2 = bench.backend.offer.protocol == "v2"
    return wallet, wallet.open_v2(DEPOSIT) if v2 else wallet.open_v1(DEPOSIT)


async def mine(bench: Bench, opening: Opening) -> str:
    funding = bench.backend.decode_open(opening.payload)
    assert funding.raw is not None
    assert funding.tx_hash is not None
    await bench.mine(funding.raw, funding.tx_hash)
    return funding.tx_hash


def behind(count: int) -> Rule:
    """A replica whose newest block is from before everything, ``count`` times."""
    return times(count, on("eth_blockNumber", Result("0x1")))


@pytest.mark.parametrize("kind", ["tempo-v1", "tempo-v2"])
async def test_lagging_node_does_not_unmake_an_open(
    devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker, kind: str
) -> None:
    bench = await make_bench(devnet, kind, rpc_url=node.url)
    _, opening = open_(bench)
    await mine(bench, opening)
    node.rules = [behind(3)]
    state = await bench.backend.channel(opening.channel_id)
    assert state is not None
    assert state.deposit == DEPOSIT


async def test_replica_without_the_block_is_asked_again(
    devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker
) -> None:
    bench = await make_bench(devnet, "tempo-v2", rpc_url=node.url)
    _, opening = open_(bench)
    await mine(bench, opening)
    asked: list[Any] = []

    def elsewhere(method: str, params: list[Any]) -> Any:
        if method == "eth_call":
            asked.append(params[1])
            return Refusal(-32000, "header not found")
        return None

    node.rules = [times(2, elsewhere)]
    assert await bench.backend.channel(opening.channel_id) is not None
    assert len(asked) == 2
    # By number: a replica that is behind must not answer from its own newest block.
    assert all(block != "latest" and int(block, 16) > 0 for block in asked)


async def test_node_that_stays_behind_is_no_evidence(
    devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.chain.escrow.LAG_POLL_S", 0.001)
    bench = await make_bench(devnet, "tempo-v2", rpc_url=node.url)
    _, opening = open_(bench)
    await mine(bench, opening)
    node.rules = [behind(LAG_POLLS)]
    with pytest.raises(ChainUnavailable, match="behind"):
        await bench.backend.channel(opening.channel_id)


async def test_empty_state_alone_does_not_finalize(
    devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker
) -> None:
    """A zero deposit is what a node shows in the middle of a settlement; only the event says that it is over."""
    v2, v1 = [await make_bench(devnet, kind, rpc_url=node.url) for kind in ("tempo-v2", "tempo-v1")]
    _, opening = open_(v2)
    await mine(v2, opening)
    node.rules = [times(1, on("eth_call", Result("0x" + "00" * 96)))]
    assert await v2.backend.channel(opening.channel_id) is None
    _, opening = open_(v1)
    await mine(v1, opening)

    async def emptied(method: str, params: list[Any]) -> Any:
        if method != "eth_call":
            return None
        state = (await node.forward(method, params)).value
        return Result(state[: 2 + 6 * 64] + "00" * 32 + state[2 + 7 * 64 :])

    node.rules = [emptied]
    state = await v1.backend.channel(opening.channel_id)
    assert state is not None
    assert (state.deposit, state.finalized) == (0, False)


async def test_answer_that_is_lost_does_not_lose_the_transaction(
    devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker
) -> None:
    """The node takes the transaction and drops the connection: sending again finds it there."""
    bench = await make_bench(devnet, "tempo-v2", rpc_url=node.url)

    async def taken(method: str, params: list[Any]) -> Any:
        if method != "eth_sendRawTransaction":
            return None
        await node.forward(method, params)
        return Drop()

    for broken in (times(1, taken), times(ATTEMPTS, taken)):
        _, opening = open_(bench)
        funding = bench.backend.decode_open(opening.payload)
        assert funding.raw is not None
        assert funding.tx_hash is not None
        node.rules = [broken]
        try:
            await bench.backend.broadcast(funding.raw)
        except ChainUnavailable:
            assert broken is not None
        mined = await bench.backend.wait(funding.tx_hash, timeout_s=10)
        assert mined is not None
        assert mined.succeeded


@pytest.mark.parametrize("message", ["already known", "ALREADY_EXISTS: already exists", "nonce too low"])
async def test_refusal_of_what_is_there_is_a_success(
    devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker, message: str
) -> None:
    bench = await make_bench(devnet, "tempo-v2", rpc_url=node.url)
    _, opening = open_(bench)
    await mine(bench, opening)
    node.rules = [on("eth_sendRawTransaction", Refusal(-32000, message))]
    funding = bench.backend.decode_open(opening.payload)
    assert funding.raw is not None
    await bench.backend.broadcast(funding.raw)


@pytest.mark.parametrize(
    ("refusal", "raised"),
    [
        (Refusal(-32000, "nonce too low"), TransactionRefused),
        (Refusal(-32003, "transaction expired"), TransactionRefused),
        (Refusal(-32000, "txpool is full"), ChainUnavailable),
        (Refusal(-32005, "slow down"), ChainUnavailable),
        (Refusal(-32603, "oops"), ChainUnavailable),
        (Result("0x" + "00" * 32), ChainUnavailable),
        (Raw(b"", status=502), ChainUnavailable),
    ],
)
async def test_refusals_of_what_is_not_there(
    devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker, refusal: object, raised: type[Exception]
) -> None:
    bench = await make_bench(devnet, "tempo-v2", rpc_url=node.url)
    funding = bench.backend.decode_open(open_(bench)[1].payload)
    node.rules = [on("eth_sendRawTransaction", refusal)]
    assert funding.raw is not None
    with pytest.raises(raised):
        await bench.backend.broadcast(funding.raw)


async def test_waiting_outlives_failures_and_ends(devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker) -> None:
    bench = await make_bench(devnet, "tempo-v2", rpc_url=node.url)
    tx_hash = await mine(bench, open_(bench)[1])
    node.rules = [times(ATTEMPTS + 1, on("eth_getTransactionReceipt", Raw(b"?")))]
    assert await bench.backend.wait(tx_hash, timeout_s=10) is not None
    node.rules = [on("eth_getTransactionReceipt", Result(None))]
    assert await bench.backend.wait(tx_hash, timeout_s=0.1) is None


@pytest.mark.parametrize(
    "receipt",
    [
        pytest.param({"transactionHash": "0x" + "11" * 32, "blockNumber": "0x1", "status": "0x1"}, id="another's"),
        pytest.param("yes", id="words"),
        pytest.param({}, id="empty"),
    ],
)
async def test_nonsense_is_no_receipt(
    devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker, receipt: object
) -> None:
    bench = await make_bench(devnet, "tempo-v2", rpc_url=node.url, payee_funds=0)
    node.rules = [on("eth_getTransactionReceipt", Result(receipt))]
    with pytest.raises(ChainUnavailable):
        await bench.backend.mined("0x" + "22" * 32)


async def test_receipt_of_the_pool_is_not_mined(devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker) -> None:
    bench = await make_bench(devnet, "tempo-v2", rpc_url=node.url, payee_funds=0)
    node.rules = [on("eth_getTransactionReceipt", Result({"transactionHash": "0x" + "22" * 32, "blockNumber": None}))]
    assert await bench.backend.mined("0x" + "22" * 32) is None


async def test_events_wait_for_the_node_and_come_in_ranges(
    devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker
) -> None:
    bench = await make_bench(devnet, "tempo-v2", rpc_url=node.url, mpp={"log_range_max": 2})
    first = (await bench.backend.head()).block
    openings = [open_(bench)[1] for _ in range(3)]
    for opening in openings:
        await mine(bench, opening)
    last = (await bench.backend.head()).block
    node.asked.clear()
    found = await bench.backend.events(first=first, last=last)
    assert [event.channel_id for event in found] == [opening.channel_id for opening in openings]
    assert [event.block for event in found] == sorted(event.block for event in found)
    assert node.asked.count("eth_getLogs") == -(-(last - first + 1) // 2)
    with pytest.raises(ChainUnavailable, match="behind"):
        await bench.backend.events(first=first, last=last + 1000)


async def test_events_of_others_are_not_ours(devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker) -> None:
    bench, other = [await make_bench(devnet, "tempo-v2", rpc_url=node.url) for _ in range(2)]
    first = (await bench.backend.head()).block
    await mine(other, open_(other)[1])
    last = (await bench.backend.head()).block

    async def unfiltered(method: str, params: list[Any]) -> Any:
        if method != "eth_getLogs":
            return None
        return await node.forward(method, [{**params[0], "topics": []}])

    node.rules = [unfiltered]
    assert await bench.backend.events(first=first, last=last) == []
    assert [event.kind for event in await other.backend.events(first=first, last=last)] == ["opened"]

    def elsewhere(entry: dict[str, Any]) -> Rule:
        return on("eth_getLogs", Result([entry]))

    async def unnamed(method: str, params: list[Any]) -> Any:
        if method != "eth_getLogs":
            return None
        return Result([{**entry, "transactionHash": None} for entry in (await node.forward(method, params)).value])

    node.rules = [unnamed]
    with pytest.raises(ChainUnavailable):
        await other.backend.events(first=first, last=last)
    for entry in ({"blockNumber": hex(last + 1), "topics": ["0x"] * 4}, {"blockNumber": hex(last), "topics": "none"}):
        node.rules = [elsewhere(entry)]
        with pytest.raises(ChainUnavailable):
            await bench.backend.events(first=first, last=last)


async def test_removed_events_are_not_there(devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker) -> None:
    bench = await make_bench(devnet, "tempo-v2", rpc_url=node.url)
    first = (await bench.backend.head()).block
    await mine(bench, open_(bench)[1])
    last = (await bench.backend.head()).block

    async def reorganised(method: str, params: list[Any]) -> Any:
        if method != "eth_getLogs":
            return None
        return Result([{**entry, "removed": True} for entry in (await node.forward(method, params)).value])

    assert await bench.backend.events(first=first, last=last)
    node.rules = [reorganised]
    assert await bench.backend.events(first=first, last=last) == []


# What is checked before a server starts.


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chain_id": 4217}, "chain_id is 4217, but the node's is 1337"),
        ({"escrow": "0x" + "11" * 20}, "escrow 0x1{40} is no contract"),
        ({"currency": "0x" + "11" * 20}, "currency 0x1{40} is no contract"),
        ({"escrow": "0x20c0000000000000000000000000000000000000"}, "channel escrow"),
    ],
)
@pytest.mark.parametrize("kind", ["tempo-v1", "tempo-v2"])
async def test_wrong_settings_are_named(
    devnet: TempoChain, make_bench: BenchMaker, kind: str, settings: dict[str, Any], message: str
) -> None:
    bench = await make_bench(devnet, kind, payee_funds=0, **settings)
    with pytest.raises(SettingsError, match=message):
        await bench.backend.check()


async def test_escrow_of_another_method_is_refused(
    devnet: TempoChain, evm_chain: EvmChain, make_bench: BenchMaker
) -> None:
    mixed = await make_bench(
        devnet, "tempo-v1", payee_funds=0, rpc_url=evm_chain.rpc_url, chain_id=31337, currency=evm_chain.token
    )
    for bench in (
        mixed,
        await make_bench(devnet, "tempo-v1", payee_funds=0, escrow=devnet.escrow_v2),
        await make_bench(devnet, "tempo-v2", payee_funds=0, escrow=devnet.escrow_v1),
    ):
        with pytest.raises(SettingsError, match="escrow"):
            await bench.backend.check()


async def test_token_needs_six_decimals(devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker) -> None:
    bench = await make_bench(devnet, "tempo-v2", rpc_url=node.url, payee_funds=0)

    def eighteen(method: str, params: list[Any]) -> Any:
        token = method == "eth_call" and params[0]["to"] == devnet.token
        return Result("0x" + f"{18:064x}") if token else None

    node.rules = [eighteen]
    with pytest.raises(SettingsError, match="6 decimals"):
        await bench.backend.check()


async def test_escrow_without_capture_must_be_called_foreign(
    devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker
) -> None:
    def unknown_function(method: str, params: list[Any]) -> Any:
        probe = method == "eth_call" and len(params[0]["data"]) > 2 + 8 + 3 * 64
        return Refusal(3, "execution reverted") if probe else None

    for foreign in (False, True):
        bench = await make_bench(devnet, "tempo-v1", rpc_url=node.url, payee_funds=0, foreign_escrow=foreign)
        node.rules = [unknown_function]
        if foreign:
            await bench.backend.check()
        else:
            with pytest.raises(SettingsError, match="closeWithCapture"):
                await bench.backend.check()


@pytest.mark.parametrize(
    ("function", "setting"),
    [(abi.OPEN_WITH_AUTHORIZATION, "escrow"), (abi.RECEIVE_WITH_AUTHORIZATION, "currency")],
)
async def test_authorizations_need_escrow_and_token(
    evm_chain: EvmChain, make_bench: BenchMaker, function: abi.Function, setting: str
) -> None:
    def unknown_function(method: str, params: list[Any]) -> Any:
        asked = method == "eth_call" and params[0]["data"].startswith("0x" + function.selector.hex())
        return Refusal(3, "execution reverted") if asked else None

    async with FaultyNode(evm_chain.rpc_url) as node:
        node.rules = [unknown_function]
        plain = await make_bench(evm_chain, "evm", rpc_url=node.url, payee_funds=0)
        await plain.backend.check()
        bench = await make_bench(evm_chain, "evm", rpc_url=node.url, payee_funds=0, eip3009=True)
        with pytest.raises(SettingsError, match=setting):
            await bench.backend.check()


@pytest.mark.parametrize("price", [101 * GWEI, 2**127])
async def test_price_that_a_node_makes_up_is_not_paid(
    devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker, price: int
) -> None:
    bench = await make_bench(devnet, "tempo-v2", rpc_url=node.url)
    wallet, opening = open_(bench)
    await mine(bench, opening)
    node.rules = [on("eth_gasPrice", Result(hex(price)))]
    with pytest.raises(ChainUnavailable, match="more than is ever paid"):
        await bench.backend.sign_settle(
            channel_id=opening.channel_id,
            descriptor=opening.descriptor,
            amount=BaseUnits(1),
            signature=wallet.voucher(opening.channel_id, 1),
            nonce=0,
        )
