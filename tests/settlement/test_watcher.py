"""What payers do on chain without telling us, seen by nodes that lag, fail and make no sense."""

import math
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from app import metrics
from app.chain import abi
from app.chain.backend import ChainUnavailable, ChannelState
from app.channels.outbox_store import CONFIRMED, FAILED
from app.ledger import transfer as kinds
from app.ledger.account import ADJUSTMENTS, escrow_account
from app.money import BaseUnits
from app.settlement.recovery import NEVER_MINED_MS
from app.settlement.watcher import KEEP_EVERY_BLOCKS, RECONCILE_EVERY_S, REREAD_BLOCKS
from app.tables import fundings
from tests.chain.conftest import BenchMaker
from tests.chain.faulty_node import Drop, FaultyNode, Raw, Refusal, Result, on, times
from tests.devnet_fixtures import TempoChain
from tests.ledger.proof import prove, rows
from tests.settlement.conftest import DEPOSIT, Shop, ShopMaker, transaction_hash
from tests.settlement.test_crashes import Killed, before_it_is_broadcast, through, value
from tests.settlement.test_settler import moves

GRACE_S = 15 * 60


@pytest.fixture
async def node(devnet: TempoChain) -> AsyncIterator[FaultyNode]:
    async with FaultyNode(devnet.rpc_url) as node:
        yield node


@pytest.fixture(params=["tempo-v1", "tempo-v2"])
async def either(request: pytest.FixtureRequest, make_shop: ShopMaker, devnet: TempoChain) -> Shop:
    """A shop on each escrow."""
    return await make_shop(devnet, request.param)


# What payers do.


async def test_close_request_stops_the_channel_and_is_answered_by_a_close(either: Shop) -> None:
    shop = either
    channel_id = await shop.open(voucher=50_000)
    watcher, settler = shop.watcher(), shop.settler()
    await watcher.look()
    request = await shop.hold(channel_id, 40_000_000)
    await shop.request_close(channel_id)
    await watcher.look()
    [view] = shop.changed
    assert (view.id, view.status, bool(view.close_requested_at)) == (channel_id, "open", True)
    # What runs is captured first.
    assert not await settler.turn()
    await shop.capture(channel_id, request, 30_000_000)
    await shop.until_done(settler)
    state = await shop.on_chain(channel_id)
    assert (state.finalized, state.settled) == (True, 30_000)
    assert shop.record(channel_id).view.status == "closed"
    prove(shop.engine)


async def test_close_that_was_requested_while_nobody_looked_is_found_at_the_start(either: Shop) -> None:
    shop = either
    channel_id = await shop.open(voucher=50_000)
    await shop.spend(channel_id, 40_000_000)
    await shop.watcher().look()
    await shop.request_close(channel_id)
    # Not even by its events, which other replicas have passed: the first look compares every channel.
    for _ in range(REREAD_BLOCKS + 1):
        shop.bench.chain.mine()
    shop.outbox.keep_position(_position_name(shop), block=(await shop.backend.head()).block)
    restarted, settler = shop.watcher(), shop.settler(owner_id="own_b")
    await restarted.look()
    assert [view.id for view in shop.changed] == [channel_id]
    await shop.until_done(settler)
    assert (await shop.on_chain(channel_id)).settled == 40_000
    assert [row.state for row in shop.settlements(channel_id)] == [CONFIRMED]


async def test_stopped_channel_serves_again_once_the_payer_adds_to_it(either: Shop) -> None:
    shop = either
    channel_id = await shop.open(voucher=50_000)
    watcher = shop.watcher()
    await shop.request_close(channel_id)
    await watcher.look()
    await shop.top_up(channel_id, 250_000)
    await watcher.look()
    stopped, cancelled = shop.changed
    assert stopped.close_requested_at > 0
    assert (cancelled.close_requested_at, cancelled.deposit) == (0, DEPOSIT + 250_000)
    await shop.spend(channel_id, 40_000_000)


async def test_deposit_that_grew_is_told(either: Shop) -> None:
    shop = either
    channel_id = await shop.open()
    watcher = shop.watcher()
    await watcher.look()
    assert not shop.changed
    await shop.top_up(channel_id, 1)
    await watcher.look()
    await watcher.look()
    assert [(view.id, view.deposit) for view in shop.changed] == [(channel_id, DEPOSIT + 1)]


async def withdrawn(shop: Shop, channel_id: str) -> None:
    """The payer's money back, after the grace period."""
    wallet, opening = shop._opened[channel_id]
    if shop.backend.offer.protocol == "v2":
        data = abi.Function("withdraw", (abi.DESCRIPTOR,)).call(abi.descriptor_tuple(opening.descriptor))
    else:
        data = abi.Function("withdraw", ("bytes32",)).call(bytes.fromhex(channel_id[2:]))
    head = await shop.backend.head()
    raw = bytes(wallet.transaction(((shop.backend.offer.escrow, data),), valid_before=head.timestamp + 20).encode())
    assert (await shop.bench.mine(raw, transaction_hash(raw))).succeeded


@pytest.mark.parametrize("kind", ["tempo-v1", "tempo-v2"])
async def test_grace_period_that_nobody_used_costs_what_was_not_settled(
    make_shop: ShopMaker, new_devnet: Callable[[], TempoChain], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Down for longer than that, with a close that was signed and never sent: it must not be sent in vain for ever."""
    chain = new_devnet()
    shop = await make_shop(chain, kind)
    late, lost = await shop.open(voucher=50_000), await shop.open(voucher=50_000)
    for channel_id in (late, lost):
        await shop.spend(channel_id, 40_000_000)
        await shop.request_close(channel_id)
    await shop.watcher().look()
    with monkeypatch.context() as patch:
        before_it_is_broadcast(patch, shop.backend)
        with pytest.raises(Killed):
            await shop.until_done(shop.settler())
    chain.increase_time(GRACE_S + 60)
    await withdrawn(shop, lost)
    alerts = value(metrics.alerts, "uncollected")
    watcher, settler = shop.watcher(), shop.settler(owner_id="own_b", alone=True)
    await watcher.look()
    await shop.until_done(settler)
    # The other payer was not as quick: what he used is ours.
    assert (await shop.on_chain(late)).settled == 40_000
    assert [row.state for row in shop.settlements(late)] == [CONFIRMED]
    assert [row.state for row in shop.settlements(lost)] == [FAILED]
    assert value(metrics.alerts, "uncollected") == alerts + 1
    assert [shop.record(channel_id).view.status for channel_id in (late, lost)] == ["closed", "closed"]
    assert moves(shop, kinds.UNCOLLECTED) == [(ADJUSTMENTS, escrow_account(lost), 40_000_000)]
    prove(shop.engine)


async def test_close_that_the_watcher_sees_first_is_booked_in_full(
    either: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = either
    channel_id = await shop.open(voucher=50_000)
    await shop.spend(channel_id, 40_000_000)
    await shop.freeze(channel_id)
    with monkeypatch.context() as patch:
        patch.setattr(shop.backend, "mined", _dies)
        with pytest.raises(Killed):
            await shop.until_done(shop.settler())
    await shop.watcher().look()
    view = shop.record(channel_id).view
    assert (view.status, view.settled) == ("closed", 40_000)
    assert not moves(shop, kinds.UNCOLLECTED)
    await shop.until_done(shop.settler(owner_id="own_b", alone=True))
    assert [row.state for row in shop.settlements(channel_id)] == [CONFIRMED]
    prove(shop.engine)


async def test_block_that_is_taken_back_takes_its_close_request_with_it(
    make_shop: ShopMaker, new_devnet: Callable[[], TempoChain]
) -> None:
    chain = new_devnet()
    shop = await make_shop(chain)
    channel_id = await shop.open()
    watcher = shop.watcher()
    await watcher.look()
    before = chain.snapshot()
    await shop.request_close(channel_id)
    await watcher.look()
    assert shop.record(channel_id).view.close_requested_at
    chain.revert(before)
    for _ in range(2):
        chain.mine()
    shop.clock.advance(int(RECONCILE_EVERY_S * 1000))
    await shop.watcher().look()
    assert not shop.record(channel_id).view.close_requested_at


# Opens that nobody recorded.


async def test_open_that_was_mined_and_not_recorded_is_recovered(either: Shop) -> None:
    shop = either
    wallet, opening = shop.signed_open()
    await shop.fund(opening, wallet, voucher=70_000)
    assert shop.channels.find(opening.channel_id) is None
    await shop.watcher().look()
    record = shop.record(opening.channel_id)
    assert (record.descriptor, record.view.deposit, record.view.accepted) == (opening.descriptor, DEPOSIT, 70_000_000)
    [kept] = rows(shop.engine, fundings)
    assert (kept.state, kept.error, kept.raw) == ("mined", None, None)
    # The client goes on as if nothing had happened, and so does the watcher.
    await shop.accept(opening.channel_id, 80_000)
    await shop.watcher().look()
    assert shop.record(opening.channel_id).view.accepted == 80_000_000
    prove(shop.engine)


async def test_open_that_reverted_is_marked(shop: Shop) -> None:
    wallet, opening = shop.signed_open(funds=DEPOSIT // 2)
    tx_hash = await shop.fund(opening, wallet, mine=False)
    [funding] = shop.channels.open_fundings()
    await shop.backend.broadcast(funding.raw or b"")
    assert await shop.backend.wait(tx_hash, timeout_s=20)
    await shop.watcher().look()
    [kept] = rows(shop.engine, fundings)
    assert (kept.state, kept.error) == ("failed", "it reverted")
    assert shop.channels.find(opening.channel_id) is None


async def test_open_that_was_never_sent_is_given_up_and_not_sent_for_its_payer(shop: Shop) -> None:
    wallet, opening = shop.signed_open()
    await shop.fund(opening, wallet, mine=False)
    watcher = shop.watcher()
    await watcher.look()
    assert len(shop.channels.open_fundings()) == 1
    shop.clock.advance(NEVER_MINED_MS + 1)
    await watcher.look()
    [kept] = rows(shop.engine, fundings)
    assert (kept.state, kept.error) == ("failed", "it was not mined")
    assert shop.bench.chain.balance(wallet.address) > DEPOSIT


async def test_recovered_voucher_counts_once_beside_the_request_that_brought_it(shop: Shop) -> None:
    wallet, opening = shop.signed_open()
    tx_hash = await shop.fund(opening, wallet, voucher=70_000)
    await shop.watcher().look()
    shop.channels.end_funding(tx_hash, state="mined")
    await shop.accept(opening.channel_id, 90_000)
    view = shop.record(opening.channel_id).view
    assert view.accepted == 90_000_000
    prove(shop.engine)


# Nodes.


async def test_reading_goes_on_where_it_ended_in_bounded_ranges(
    make_shop: ShopMaker, devnet: TempoChain, make_bench: BenchMaker
) -> None:
    shop = await make_shop(devnet, mpp={"log_range_max": 5})
    asked: list[tuple[int, int]] = []
    async with FaultyNode(devnet.rpc_url) as node:

        def watched(method: str, params: list[Any]) -> None:
            if method == "eth_getLogs":
                asked.append((int(params[0]["fromBlock"], 16), int(params[0]["toBlock"], 16)))

        node.rules.append(watched)
        backend = await through(node, shop, make_bench)
        await shop.open()
        await shop.watcher(backend).look()
        head = asked[-1][1]
        for _ in range(2 * KEEP_EVERY_BLOCKS):
            devnet.mine()
        asked.clear()
        await shop.watcher(backend).look()
    assert all(last - first < 5 for first, last in asked)
    # The last blocks again, then all that is new, each once.
    assert head - REREAD_BLOCKS - KEEP_EVERY_BLOCKS < asked[0][0] <= head - REREAD_BLOCKS + 1
    assert [first for first, _ in asked[1:]] == [last + 1 for _, last in asked[:-1]]
    assert asked[-1][1] == (await shop.backend.head()).block


async def test_node_that_is_behind_is_no_news(shop: Shop, node: FaultyNode, make_bench: BenchMaker) -> None:
    watcher = shop.watcher(await through(node, shop, make_bench))
    assert watcher.lag_s == math.inf
    channel_id = await shop.open()
    for _ in range(REREAD_BLOCKS):
        shop.bench.chain.mine()
    await watcher.look()
    assert watcher.lag_s == 0
    assert watcher.lag_of(shop.backend) == 0
    head = (await shop.backend.head()).block
    await shop.request_close(channel_id)

    async def behind(method: str, params: list[Any]) -> Any:
        answer = await node.forward(method, params)
        if method == "eth_getBlockByNumber" and isinstance(answer, Result):
            answer.value["number"] = hex(head - REREAD_BLOCKS - 1)
        return answer

    node.rules.append(behind)
    shop.clock.advance(301_000)
    with pytest.raises(ChainUnavailable, match="behind"):
        await watcher.look()
    # The rail stops serving at 300 s.
    assert watcher.lag_s == 301
    assert not shop.record(channel_id).view.close_requested_at
    node.rules.clear()
    await watcher.look()
    assert watcher.lag_s == 0
    assert shop.record(channel_id).view.close_requested_at


GARBAGE = (
    Raw(b"<html>"),
    Raw(b'{"jsonrpc":"2.0","id":null,"result":[]}'),
    Raw(b"", status=503),
    Result(None),
    Result("0x"),
    Result({"number": "0xzz", "timestamp": []}),
    Result([{"blockNumber": "0x1", "topics": []}]),
    Result("0x" + "ff" * 32),
    Result(hex(2**63)),
    Refusal(-32000, "header not found"),
)


async def test_garbage_is_survived_and_changes_nothing(shop: Shop, node: FaultyNode, make_bench: BenchMaker) -> None:
    channel_id = await shop.open(voucher=50_000)
    await shop.spend(channel_id, 40_000_000)
    backend = await through(node, shop, make_bench)
    before = shop.record(channel_id)
    for method in ("eth_getBlockByNumber", "eth_blockNumber", "eth_call", "eth_getLogs"):
        for garbage in GARBAGE:
            # A few times, and then the node is well: what is asked again gets its answer.
            node.rules[:] = [times(3, on(method, garbage))]
            watcher = shop.watcher(backend)
            try:
                await watcher.look()
            except ChainUnavailable:
                assert watcher.lag_s == math.inf
            node.rules.clear()
            assert shop.record(channel_id) == before, (method, garbage)
    await shop.watcher(backend).look()
    assert shop.record(channel_id) == before
    head = (await shop.backend.head()).block
    kept = shop.outbox.position(_position_name(shop))
    assert kept is not None
    assert kept[0] <= head


async def test_watcher_outlives_its_node(shop: Shop, node: FaultyNode, make_bench: BenchMaker) -> None:
    channel_id = await shop.open()
    node.rules.append(times(2, lambda *_: Drop()))
    watcher = shop.watcher(await through(node, shop, make_bench))
    seen = _Event()
    watcher.on_changed = seen.set
    watcher._every_s = 0.05
    watcher.start()
    try:
        await shop.request_close(channel_id)
        await seen.wait()
    finally:
        await watcher.stop()
    assert shop.record(channel_id).view.close_requested_at


@pytest.mark.parametrize("kind", ["tempo-v1", "tempo-v2"])
async def test_empty_state_is_not_the_end_of_a_channel(
    make_shop: ShopMaker, devnet: TempoChain, node: FaultyNode, make_bench: BenchMaker, kind: str
) -> None:
    """In the middle of a settlement, or behind: no deposit, and no event that says that it is over."""
    shop = await make_shop(devnet, kind)
    channel_id = await shop.open(voucher=50_000)
    before = shop.record(channel_id)
    node.rules.append(on("eth_call", Result("0x" + "00" * 32 * 8)))
    watcher, alerts = (
        shop.watcher(await through(node, shop, make_bench)),
        value(metrics.alerts, "channel_unknown_to_node"),
    )
    await watcher.look()
    await watcher.look()
    assert shop.record(channel_id) == before
    assert value(metrics.alerts, "channel_unknown_to_node") == alerts + 1
    assert not shop.changed
    node.rules.clear()
    await shop.top_up(channel_id, 5)
    await watcher.look()
    assert shop.record(channel_id).view.deposit == DEPOSIT + 5


async def test_zero_deposit_is_not_the_end_of_a_channel(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some deployed escrows show it in the middle of a settlement."""
    channel_id = await shop.open(voucher=50_000)
    before, state = shop.record(channel_id), await shop.on_chain(channel_id)

    async def emptied(_: str) -> ChannelState:
        return replace(state, deposit=BaseUnits(0))

    with monkeypatch.context() as patch:
        patch.setattr(shop.backend, "channel", emptied)
        await shop.watcher().look()
    assert shop.record(channel_id) == before
    assert not shop.changed


async def test_close_request_is_believed_even_where_the_state_cannot_be_read(
    reserve: Shop, node: FaultyNode, make_bench: BenchMaker
) -> None:
    channel_id = await reserve.open()
    watcher = reserve.watcher(await through(node, reserve, make_bench))
    await watcher.look()
    await reserve.request_close(channel_id)
    node.rules.append(on("eth_call", Result("0x" + "00" * 32 * 3)))
    await watcher.look()
    assert reserve.record(channel_id).view.close_requested_at
    assert [view.id for view in reserve.changed] == [channel_id]


async def test_events_of_strangers_are_nobodys(shop: Shop) -> None:
    """Anybody may open a channel to us without telling."""
    watcher = shop.watcher()
    await watcher.look()
    wallet, opening = shop.signed_open()
    funding = await shop.backend.prepare(shop.backend.decode_open(opening.payload, source=wallet.source))
    assert (await shop.bench.mine(funding.raw or b"", funding.tx_hash or "")).succeeded
    await watcher.look()
    assert shop.channels.find(opening.channel_id) is None
    assert not shop.changed


class _Event:
    """Set by a callback, waited for by the test."""

    def __init__(self) -> None:
        import asyncio

        self._event = asyncio.Event()

    def set(self, _: object) -> None:
        self._event.set()

    async def wait(self) -> None:
        import asyncio

        async with asyncio.timeout(20):
            await self._event.wait()


def _dies(*_: object, **__: object) -> Any:
    raise Killed


def _position_name(shop: Shop) -> str:
    from app.chain.places import watch_name

    return watch_name(shop.backend)
