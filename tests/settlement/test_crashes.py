"""A process that dies between any two steps of a settlement, nodes that fail, lie or lag, and rivals."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from prometheus_client import Counter
from sqlalchemy import select

from app import metrics
from app.chain.backend import ChannelBackend, TransactionRefused
from app.channels.outbox_store import CONFIRMED, FAILED, INTENT, SIGNED, OutboxStore, SettlementRecord
from app.ledger import transfer as kinds
from app.ledger.journal import Journal
from app.ledger.journal_store import JournalStore
from app.settings import LedgerSettings
from app.settlement.lane import ATTEMPTS_MAX, PROOF_S
from app.settlement.policy import FAILED_PAUSE_MS
from app.tables import transfers
from tests.chain.conftest import BenchMaker
from tests.chain.faulty_node import Drop, FaultyNode, Refusal, Result, on, times
from tests.chain.wallet import Wallet
from tests.devnet_fixtures import TempoChain
from tests.ledger.proof import prove
from tests.settlement.conftest import CLOSE_S_MAX, LEASE_S, Shop, ShopMaker, transaction_hash

TRANSIENT = Refusal(-32603, "the node is not well")
LEASE_MS = int(LEASE_S * 1000)


class Killed(BaseException):
    """The process died here."""


def dies(*_: object, **__: object) -> Any:
    raise Killed


def value(counter: Counter, *labels: str) -> float:
    found: float = counter.labels(*labels)._value.get()
    return found


def fees(shop: Shop) -> list[int]:
    with shop.engine.connect() as connection:
        found = connection.execute(select(transfers.c.amount).where(transfers.c.kind == kinds.CHAIN_FEE))
        return list(found.scalars())


async def spent(shop: Shop, *, price: int = 40_000_000) -> str:
    """A channel that owes something and is to be closed."""
    channel_id = await shop.open(voucher=50_000)
    await shop.spend(channel_id, price)
    await shop.freeze(channel_id)
    return channel_id


async def closed_once(shop: Shop, channel_id: str, *, capture: int = 40_000) -> SettlementRecord:
    """The channel is closed, on chain and in the books, by one transaction, and its fee is booked once."""
    [row] = shop.settlements(channel_id)
    assert (row.state, row.capture) == (CONFIRMED, capture), row.error
    state, view = await shop.on_chain(channel_id), shop.record(channel_id).view
    assert (state.finalized, state.settled, view.status, view.settled) == (True, capture, "closed", capture)
    assert row.tx_hash is not None
    mined = await shop.backend.mined(row.tx_hash)
    assert mined is not None
    assert mined.succeeded
    assert fees(shop) == [(row.fee or 0) * 1000]
    prove(shop.engine)
    return row


@pytest.fixture
async def node(devnet: TempoChain) -> AsyncIterator[FaultyNode]:
    async with FaultyNode(devnet.rpc_url) as node:
        yield node


async def through(node: FaultyNode, shop: Shop, make_bench: BenchMaker) -> ChannelBackend:
    """The shop's own backend with another way to the chain."""
    kind = shop.backend.offer.backend
    bench = await make_bench(shop.bench.chain, kind, rpc_url=node.url, payee_key=shop.bench.payee_key, payee_funds=0)
    return bench.backend


# Killed.


def before_the_plan(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    monkeypatch.setattr(backend, "next_nonce", dies)


def before_it_is_signed(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    monkeypatch.setattr(backend, "sign_close", dies)


def before_it_is_kept(monkeypatch: pytest.MonkeyPatch, _: Any) -> None:
    monkeypatch.setattr(OutboxStore, "keep_signed", dies)


def before_it_is_broadcast(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    monkeypatch.setattr(backend, "broadcast", dies)


def before_its_receipt(monkeypatch: pytest.MonkeyPatch, backend: Any) -> None:
    monkeypatch.setattr(backend, "mined", dies)


def before_it_is_booked(monkeypatch: pytest.MonkeyPatch, _: Any) -> None:
    monkeypatch.setattr("app.settlement.lane.take", dies)


def before_its_fee_is_booked(monkeypatch: pytest.MonkeyPatch, _: Any) -> None:
    monkeypatch.setattr("app.settlement.lane.chain_fee", dies)


def before_its_end_is_kept(monkeypatch: pytest.MonkeyPatch, _: Any) -> None:
    monkeypatch.setattr(OutboxStore, "end", dies)


@pytest.mark.parametrize(
    ("where", "state"),
    [
        (before_the_plan, INTENT),
        (before_it_is_signed, INTENT),
        (before_it_is_kept, INTENT),
        (before_it_is_broadcast, SIGNED),
        (before_its_receipt, SIGNED),
        (before_it_is_booked, SIGNED),
        (before_its_fee_is_booked, SIGNED),
        (before_its_end_is_kept, SIGNED),
    ],
)
async def test_killed_settler_is_gone_on_with(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, where: Callable[[pytest.MonkeyPatch, Any], None], state: str
) -> None:
    channel_id = await spent(shop)
    with monkeypatch.context() as patch:
        where(patch, shop.backend)
        settler = shop.settler()
        with pytest.raises(Killed):
            await shop.until_done(settler)
    [row] = shop.settlements(channel_id)
    assert row.state == state
    # The dead one's lease keeps others out until it is over.
    successor = shop.settler(owner_id="own_b")
    assert not await successor.turn()
    assert shop.settlements(channel_id)[0].state == state
    shop.clock.advance(LEASE_MS)
    await shop.until_done(successor)
    closed = await closed_once(shop, channel_id)
    # What was signed is sent again byte for byte.
    assert row.tx_hash in {None, closed.tx_hash}


async def test_only_server_of_a_file_need_not_wait_for_a_dead_ones_lease(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    channel_id = await spent(shop)
    with monkeypatch.context() as patch:
        before_it_is_broadcast(patch, shop.backend)
        with pytest.raises(Killed):
            await shop.settler().turn()
    await shop.until_done(shop.settler(owner_id="own_b", alone=True))
    await closed_once(shop, channel_id)


# Nodes.


async def test_node_that_fails_once_at_any_call_delays_and_repeats_nothing(
    shop: Shop, node: FaultyNode, make_bench: BenchMaker
) -> None:
    backend = await through(node, shop, make_bench)
    counted = await shop.open(voucher=50_000)
    await shop.freeze(counted)
    await shop.until_done(shop.settler(backend, alone=True))
    calls = len(node.asked)
    assert calls > 10
    for number in range(calls):
        channel_id = await shop.open(voucher=50_000)
        await shop.spend(channel_id, 40_000_000)
        await shop.freeze(channel_id)
        node.rules, passed = [], iter(range(number + 1))
        node.rules.append(lambda *_, passed=passed, number=number: TRANSIENT if next(passed, -1) == number else None)
        await shop.until_done(shop.settler(backend, alone=True))
        node.rules.clear()
        [row] = shop.settlements(channel_id)
        assert (row.state, row.capture) == (CONFIRMED, 40_000), (number, row.error)
    prove(shop.engine)


async def test_node_that_is_away_is_waited_for(shop: Shop, node: FaultyNode, make_bench: BenchMaker) -> None:
    channel_id = await spent(shop)
    settler = shop.settler(await through(node, shop, make_bench))
    node.rules.append(lambda *_: Drop())
    for _ in range(2):
        assert await settler.turn()
    assert [row.state for row in shop.settlements(channel_id)] == [INTENT]
    node.rules.clear()
    await shop.until_done(settler)
    await closed_once(shop, channel_id)


async def test_pool_that_forgets_is_told_again(shop: Shop, node: FaultyNode, make_bench: BenchMaker) -> None:
    """No receipt is no failure: the same bytes, after a while."""
    channel_id = await spent(shop)
    settler = shop.settler(await through(node, shop, make_bench))
    swallowed: list[str] = []

    def swallow(method: str, params: list[Any]) -> Any:
        if method != "eth_sendRawTransaction":
            return None
        swallowed.append(params[0])
        return Result(transaction_hash(bytes.fromhex(params[0][2:])))

    node.rules.append(times(2, swallow))
    await shop.until_done(settler)
    row = await closed_once(shop, channel_id)
    assert len(swallowed) == 2
    assert len(set(swallowed)) == 1
    assert transaction_hash(bytes.fromhex(swallowed[0][2:])) == row.tx_hash


async def test_receipt_that_is_late_is_not_taken_for_a_stolen_nonce(
    shop: Shop, node: FaultyNode, make_bench: BenchMaker
) -> None:
    """One address, several nodes: the nonce is known to be used before the receipt is."""
    channel_id = await spent(shop)
    settler = shop.settler(await through(node, shop, make_bench))
    node.rules.append(times(8, on("eth_getTransactionReceipt", Result(None))))
    await shop.until_done(settler)
    await closed_once(shop, channel_id)
    assert node.asked.count("eth_sendRawTransaction") == 1


async def test_nonce_that_another_transaction_used_is_replaced(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    channel_id = await spent(shop)
    with monkeypatch.context() as patch:
        before_it_is_broadcast(patch, shop.backend)
        with pytest.raises(Killed):
            await shop.settler().turn()
    [signed] = shop.settlements(channel_id)
    # Somebody uses the payee's key elsewhere.
    other = Wallet(shop.backend.offer, key=shop.bench.payee_key).transaction(
        ((shop.backend.offer.currency, bytes.fromhex("18160ddd")),), nonce_key=0, nonce=signed.nonce, valid_before=None
    )
    raw = bytes(other.encode())
    assert (await shop.bench.mine(raw, transaction_hash(raw))).succeeded
    settler = shop.settler(alone=True)
    for _ in range(3):
        assert await settler.turn()
        # Not before it is sure.
        assert shop.settlements(channel_id)[0].tx_hash == signed.tx_hash
    shop.clock.advance(int(PROOF_S * 1000))
    await shop.until_done(settler)
    row = await closed_once(shop, channel_id)
    assert row.nonce == (signed.nonce or 0) + 1
    assert row.attempts == 1


def reverting(count: int) -> Callable[[str, list[Any]], Any]:
    """Transactions that are mined and do nothing: ``count`` of them."""
    taken: set[str] = set()

    def rule(method: str, params: list[Any]) -> Any:
        if method == "eth_sendRawTransaction":
            tx_hash = transaction_hash(bytes.fromhex(params[0][2:]))
            if tx_hash in taken or len(taken) < count:
                taken.add(tx_hash)
                return Result(tx_hash)
        if method == "eth_getTransactionReceipt" and params[0] in taken:
            receipt = {"transactionHash": params[0], "blockNumber": "0x1", "status": "0x0", "gasUsed": "0x5208"}
            return Result({**receipt, "effectiveGasPrice": "0x4a817c800", "from": "0x" + "00" * 20, "logs": []})
        return None

    return rule


async def test_reverted_transaction_is_signed_again(shop: Shop, node: FaultyNode, make_bench: BenchMaker) -> None:
    channel_id = await spent(shop)
    settler = shop.settler(await through(node, shop, make_bench))
    node.rules.append(reverting(1))
    await settler.turn()
    await settler.turn()
    [row] = shop.settlements(channel_id)
    assert (row.state, row.attempts, row.error, row.tx_hash) == (INTENT, 1, "the transaction reverted", None)
    node.rules.clear()
    await shop.until_done(settler)
    [row] = shop.settlements(channel_id)
    assert (row.state, row.attempts) == (CONFIRMED, 1)
    # What the first one cost is booked, too.
    assert sum(fees(shop)) == (row.fee or 0) * 1000
    assert len(fees(shop)) == 2
    assert shop.record(channel_id).view.status == "closed"


async def test_transaction_that_reverts_again_and_again_is_given_up_with_an_alert(
    shop: Shop, node: FaultyNode, make_bench: BenchMaker
) -> None:
    channel_id = await spent(shop)
    settler, alerts = shop.settler(await through(node, shop, make_bench)), value(metrics.alerts, "settlement_failed")
    # The same bytes have the same hash: one that is taken once is taken each time.
    node.rules.append(reverting(1))
    node.rules.append(on("eth_gasPrice", Result("0x4a817c800")))
    for _ in range(200):
        await settler.turn()
        shop.clock.advance(1000)
    rows = shop.settlements(channel_id)
    assert (rows[0].state, rows[0].attempts, rows[0].error) == (FAILED, ATTEMPTS_MAX, "the transaction reverted")
    assert value(metrics.alerts, "settlement_failed") == alerts + 1
    assert [row.id for row in shop.outbox.failed_settlements()] == [rows[0].id]
    assert len(rows) == 1
    # The channel still can be closed, and is, after a pause.
    node.rules.clear()
    shop.clock.advance(FAILED_PAUSE_MS)
    await shop.until_done(settler)
    assert [row.state for row in shop.settlements(channel_id)] == [FAILED, CONFIRMED]
    assert shop.record(channel_id).view.status == "closed"


async def test_lie_about_a_revert_is_settled_by_the_state_on_chain(
    shop: Shop, node: FaultyNode, make_bench: BenchMaker
) -> None:
    channel_id = await spent(shop)
    settler = shop.settler(await through(node, shop, make_bench))

    async def lie(method: str, params: list[Any]) -> Any:
        answer = await node.forward(method, params)
        if method == "eth_getTransactionReceipt" and isinstance(answer, Result) and answer.value:
            answer.value["status"] = "0x0"
        return answer

    node.rules.append(lie)
    await shop.until_done(settler)
    [row] = shop.settlements(channel_id)
    assert row.state == FAILED
    assert row.attempts == 0
    view = shop.record(channel_id).view
    assert (view.status, view.settled) == ("closed", 40_000)
    assert node.asked.count("eth_sendRawTransaction") == 1


async def test_channel_that_the_node_does_not_know_is_waited_for(
    shop: Shop, node: FaultyNode, make_bench: BenchMaker
) -> None:
    """Behind, or in the middle of something: not gone."""
    channel_id = await spent(shop)
    settler = shop.settler(await through(node, shop, make_bench))
    node.rules.append(on("eth_call", Result("0x" + "00" * 32 * 8)))
    for _ in range(3):
        assert await settler.turn()
        shop.clock.advance(1000)
    [row] = shop.settlements(channel_id)
    assert (row.state, row.error) == (INTENT, "the node does not know the channel")
    node.rules.clear()
    await shop.until_done(settler)
    await closed_once(shop, channel_id)


async def test_refused_transaction_is_signed_again_with_its_nonce(
    shop: Shop, node: FaultyNode, make_bench: BenchMaker
) -> None:
    """As after the price of gas rose: the nonce stays, so only one of the two can ever be mined."""
    channel_id = await spent(shop)
    settler = shop.settler(await through(node, shop, make_bench))
    node.rules.append(times(3, on("eth_sendRawTransaction", Refusal(-32000, "max fee per gas less than base fee"))))
    for _ in range(20):
        await settler.turn()
        shop.clock.advance(1000)
        if shop.settlements(channel_id)[0].state == SIGNED:
            node.rules.append(on("eth_gasPrice", Result(hex(30 * 10**9))))
    row = await closed_once(shop, channel_id)
    assert row.attempts == 0


# Rivals.


async def test_two_replicas_never_settle_with_one_nonce(
    make_shop: ShopMaker, devnet: TempoChain, postgres_url: str
) -> None:
    shop = await make_shop(devnet, url=postgres_url)
    channels = [await shop.open(voucher=50_000) for _ in range(6)]
    for channel_id in channels:
        await shop.spend(channel_id, 40_000_000)
        await shop.freeze(channel_id)
    journal = Journal(JournalStore(shop.engine, shop.clock), LedgerSettings())
    journal.start()
    one, other = shop.settler(), shop.settler(owner_id="own_b")
    other._journal = journal
    for _ in range(10):
        await asyncio.gather(one.turn(), other.turn())
        shop.clock.advance(LEASE_MS // 3)
    await journal.close(timeout_s=CLOSE_S_MAX)
    rows = [row for channel_id in channels for row in shop.settlements(channel_id)]
    assert [row.state for row in rows] == [CONFIRMED] * 6
    assert len({row.nonce for row in rows}) == 6
    assert all(row.attempts == 0 for row in rows)
    prove(shop.engine)


@pytest.mark.parametrize("rival", [False, True])
async def test_settler_that_slept_through_its_lease_keeps_nothing(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, rival: bool
) -> None:
    """Suspended just before it kept what it signed, while its lease ran out and another took it."""
    channel_id = await spent(shop)
    sleeper, sign = shop.settler(), shop.backend.sign_close

    async def slowly(**fields: Any) -> Any:
        signed = await sign(**fields)
        shop.clock.advance(LEASE_MS)
        if rival:
            assert shop.outbox.take_lease(shop.settlements(channel_id)[0].account, owner_id="own_b", ttl_ms=LEASE_MS)
        return signed

    with monkeypatch.context() as patch:
        patch.setattr(shop.backend, "sign_close", slowly)
        # What is not kept, nobody sees.
        patch.setattr(shop.backend, "broadcast", dies)
        await sleeper.turn()
    assert [row.state for row in shop.settlements(channel_id)] == [INTENT]


async def test_several_under_way_have_successive_nonces(shop: Shop, node: FaultyNode, make_bench: BenchMaker) -> None:
    channels = [await spent(shop) for _ in range(3)]
    settler = shop.settler(await through(node, shop, make_bench))
    node.rules.append(
        lambda method, params: (
            Result(transaction_hash(bytes.fromhex(params[0][2:]))) if method == "eth_sendRawTransaction" else None
        )
    )
    await settler.turn()
    assert sorted(shop.settlements(channel_id)[0].nonce or 0 for channel_id in channels) == [0, 1, 2]
    node.rules.clear()
    await shop.until_done(settler)
    assert [shop.settlements(channel_id)[0].state for channel_id in channels] == [CONFIRMED] * 3
    prove(shop.engine)


async def test_nonce_that_was_lent_is_not_used_for_a_settlement(shop: Shop) -> None:
    channel_id = await spent(shop)
    settler = shop.settler()
    async with settler.lend_nonce(shop.backend) as lent:
        pass
    await settler.turn()
    [row] = shop.settlements(channel_id)
    assert row.nonce == lent + 1
    # What was lent and never mined leaves no gap for ever: the next settlement fills it.
    shop.clock.advance(61_000)
    other = await spent(shop)
    await settler.turn()
    assert shop.settlements(other)[0].nonce == lent


async def test_nonce_of_what_failed_is_free_at_once(shop: Shop) -> None:
    channel_id = await spent(shop)
    settler = shop.settler()
    lent = -1
    with pytest.raises(TransactionRefused):
        async with settler.lend_nonce(shop.backend) as lent:
            raise TransactionRefused("it would revert")
    await settler.turn()
    assert shop.settlements(channel_id)[0].nonce == lent
