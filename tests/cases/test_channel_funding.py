"""Cases 12, 13, 15, 17 and 18: what opens a channel, who pays for it, and nodes and processes that fail meanwhile."""

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.chain import abi
from tests.cases import channel
from tests.cases.channel import (
    SMALL,
    SPOKEN,
    bought,
    charged,
    eventually,
    faulty,
    funded,
    held,
    opened,
    problem_of,
    row,
)
from tests.chain.faulty_node import Drop, FaultyNode, Result, on, times
from tests.devnet_fixtures import TempoChain
from tests.dialects.server import DialectServer
from tests.serving import FareboxServer, model, sandbox, upstream
from tests.sessions import DEPOSIT, FUNDS, PayingWallet, chat, receipt_of

ANOTHER = "0x" + "22" * 20
NANO_PER_BASE_UNIT = 1000
NOTHING = Result("0x" + "00" * 96)
GATED = chat("hi").replace(b"sandbox/echo", b"gated")

both = pytest.mark.parametrize("backend", ["tempo-v2", "tempo-v1"])
Shop = tuple[FareboxServer, FaultyNode]


@pytest.fixture(scope="module")
def sponsor(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, devnet: TempoChain, shared_dialects: DialectServer
) -> Iterator[Shop]:
    """A server that pays its clients' fees, and its node, which a test may break."""
    with (
        faulty(devnet) as node,
        channel.shop(
            tmp_path_factory.mktemp("sponsor"),
            sqlite_template,
            devnet,
            channel={"rpc_url": node.url, "fee_payer": True},
            mpp={"confirm_timeout_s": 3},
            providers=[sandbox(), upstream("dialects", shared_dialects.base_url, [model("gated")])],
        ) as server,
    ):
        yield server, node


def unopened(wallet: PayingWallet, chain: TempoChain) -> None:
    """Nothing was kept, nothing was broadcast, nothing was paid."""
    assert wallet.server.rows("SELECT id FROM channels WHERE id = :id", id=wallet.channel_id) == []
    assert wallet.server.rows("SELECT state FROM fundings WHERE channel_id = :id", id=wallet.channel_id) == []
    assert chain.balance(wallet.wallet.address) == FUNDS


# 12: what is opened.


@pytest.mark.parametrize("name", ["payee", "token", "escrow", "operator"])
@both
def test_open_of_a_channel_that_is_not_ours_is_refused_before_it_is_broadcast(
    backend: str, name: str, till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = funded(till, devnet, backend)
    if (backend, name) == ("tempo-v1", "operator"):
        # v1 has none: the second word that could be wrong is who may take the deposit.
        name = "spender"
    changes: dict[str, Any] = {name: ANOTHER}
    for body in (b"", SMALL, SPOKEN):
        refused = wallet.send(body, wallet.challenge(body), wallet.open_payload(**changes))
        assert refused.status_code in {400, 402}, refused.text
        assert "payment-receipt" not in refused.headers
        unopened(wallet, devnet)
    till.assert_green()


def other_call(chain: TempoChain) -> tuple[str, bytes]:
    """A transfer of the payer's money to somebody."""
    return chain.token, abi.Function("transfer", ("address", "uint256")).call(ANOTHER, 5)


@pytest.mark.parametrize(
    "changes",
    [
        lambda payload: {"channelId": "0x" + "ab" * 32},
        lambda payload: {"transaction": payload["transaction"][:-2]},
        lambda payload: {"transaction": payload["transaction"] + "00"},
        lambda payload: {"transaction": "0x76"},
        lambda payload: {"transaction": None},
        lambda payload: {"type": "hash"},
        lambda payload: {"authorizedSigner": ANOTHER},
        lambda payload: {"descriptor": {**payload["descriptor"], "payee": ANOTHER}},
        lambda payload: {"cumulativeAmount": str(DEPOSIT + 1)},
        lambda payload: {"signature": "0x" + "11" * 64 + "1b"},
    ],
    ids=[
        *("channel", "cut", "longer", "no transaction", "none", "type", "signer", "descriptor", "beyond", "signature"),
    ],
)
def test_open_that_does_not_say_what_its_transaction_does_is_refused(
    changes: Callable[[dict[str, Any]], dict[str, Any]], till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = funded(till, devnet)
    payload = wallet.open_payload()
    refused = wallet.send(SMALL, wallet.challenge(SMALL), {**payload, **changes(payload)})
    assert refused.status_code in {400, 402}, refused.text
    unopened(wallet, devnet)
    till.assert_green()


@both
def test_open_twice_is_one_channel(backend: str, till: FareboxServer, devnet: TempoChain) -> None:
    wallet = funded(till, devnet, backend)
    payload = wallet.open_payload(amount=50_000)
    for body in (b"", b"", SPOKEN):
        assert wallet.send(body, wallet.challenge(body), payload).status_code == 200
    assert row(wallet)["accepted"] == 50_000 * NANO_PER_BASE_UNIT
    assert row(wallet)["deposit"] == DEPOSIT
    till.assert_green()


@both
def test_top_up_adds_what_its_transaction_adds(backend: str, till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, backend=backend)
    assert wallet.opening is not None
    build = wallet.wallet.top_up_v2 if backend == "tempo-v2" else wallet.wallet.top_up_v1
    lying = {**build(wallet.opening, 1000), "additionalDeposit": "1000000"}
    assert wallet.send(b"", wallet.challenge(b""), lying).status_code in {400, 402}
    assert row(wallet)["deposit"] == DEPOSIT
    honest = build(wallet.opening, 1000)
    answer = wallet.send(b"", wallet.challenge(b""), honest)
    assert answer.status_code == 200, answer.text
    assert receipt_of(answer)["units"] == 0
    assert wallet.send(b"", wallet.challenge(b""), honest).status_code in {200, 402}
    assert row(wallet)["deposit"] == DEPOSIT + 1000
    till.assert_green()


def test_open_with_trouble_at_the_first_voucher_still_tells_of_the_channel(
    till: FareboxServer, devnet: TempoChain
) -> None:
    """The deposit is on chain; what the request itself would cost is far more than it."""
    wallet = funded(till, devnet)
    body = chat("dear", max_tokens=400_000)
    refused = wallet.send(body, wallet.challenge(body), wallet.open_payload())
    assert refused.status_code == 402
    assert wallet.pick(refused).request["methodDetails"]["channelId"] == wallet.channel_id
    assert row(wallet)["status"] == "open"
    till.assert_green()


# 13: recovered.


@both
def test_channel_that_was_settled_before_we_knew_it_starts_at_what_was_settled(
    backend: str, till: FareboxServer, sqlite_template: Path, tmp_path: Path, devnet: TempoChain
) -> None:
    """Our database was lost after a settlement: what the chain has paid out cannot be spent again."""
    wallet = funded(till, devnet, backend)
    payload = wallet.open_payload(amount=200)
    assert wallet.send(b"", wallet.challenge(b""), payload).status_code == 200
    assert wallet.complete(SMALL).status_code == 200
    assert row(wallet)["spent"] > 200 * NANO_PER_BASE_UNIT
    settle(wallet, devnet, 200)
    with channel.shop(tmp_path, sqlite_template, devnet) as lost:
        again = PayingWallet(lost, wallet.wallet, httpx.Client(base_url=lost.url, timeout=30), wallet.opening, 200)
        channel.WALLETS.append(again)
        answer = again.send(b"", again.challenge(b""), payload)
        assert answer.status_code == 200, answer.text
        found = row(again)
        assert (found["settled"], found["published"]) == (200, 200)
        assert found["spent"] == found["accepted"] == 200 * NANO_PER_BASE_UNIT
        assert receipt_of(answer)["spent"] == "200"
        refused = again.send(SMALL, again.challenge(SMALL), payload)
        assert refused.status_code == 402
        assert bought(again) == 0
        assert again.complete(SMALL).status_code == 200
        assert row(again)["spent"] == 200 * NANO_PER_BASE_UNIT + charged(again)
        lost.assert_green()


def settle(wallet: PayingWallet, chain: TempoChain, amount: int) -> None:
    """Settle a voucher on chain with the payee's key, behind every server's back."""
    from app.chain.registry import backend_for
    from app.clock import SystemClock
    from app.money import BaseUnits
    from app.settings import ChannelSettings, MppSettings
    from tests.sessions import channel_settings

    class NoBudget:
        async def reserve(self, amount: BaseUnits, *, tx_hash: str) -> bool:
            return False

        async def settle(self, fee: BaseUnits, *, tx_hash: str) -> None:
            return None

    async def work() -> None:
        settings = ChannelSettings.model_validate(channel_settings(chain, wallet.wallet.offer.backend))
        key = bytes.fromhex(chain.accounts[0].private_key[2:])
        backend = backend_for(settings, MppSettings(), payee_key=key, clock=SystemClock(), budget=NoBudget())
        try:
            signed = await backend.sign_settle(
                channel_id=wallet.channel_id,
                descriptor=wallet.descriptor,
                amount=BaseUnits(amount),
                signature=wallet.wallet.voucher(wallet.channel_id, amount),
                nonce=await backend.next_nonce(),
            )
            await backend.broadcast(signed.raw)
            mined = await backend.wait(signed.tx_hash, timeout_s=20)
            assert mined is not None
            assert mined.succeeded
        finally:
            await backend.aclose()

    asyncio.run(work())


# 15: nodes that lag.


@both
def test_node_that_lags_does_not_refuse_a_good_open(backend: str, sponsor: Shop, devnet: TempoChain) -> None:
    server, node = sponsor
    wallet = funded(server, devnet, backend)
    payload = wallet.open_payload(5000)
    size = 3 if backend == "tempo-v2" else 8
    # After the transaction was mined, the node answers thrice as if the channel had never been.
    mined = False

    def lagging(method: str, params: list[Any]) -> Any:
        nonlocal mined
        mined = mined or method in {"eth_sendRawTransaction", "eth_sendRawTransactionSync"}
        called = method == "eth_call" and params[0].get("to", "").lower() == wallet.wallet.offer.escrow
        return Result("0x" + "00" * 32 * size) if mined and called else None

    node.rules = [times(3, lagging)]
    try:
        answer = wallet.send(SPOKEN, wallet.challenge(SPOKEN), {**payload, **first_voucher(wallet, 5000)})
    finally:
        node.rules = []
    assert answer.status_code == 200, answer.text
    assert "[DONE]" in answer.text
    assert row(wallet)["deposit"] == 5000
    server.assert_green()


def first_voucher(wallet: PayingWallet, amount: int) -> dict[str, Any]:
    """The members of a payload that say the voucher."""
    wallet.cumulative = amount
    return {"cumulativeAmount": str(amount), "signature": wallet.wallet.voucher(wallet.channel_id, amount)}


def test_empty_state_of_a_channel_is_no_end_of_it(sponsor: Shop, devnet: TempoChain) -> None:
    """What a node shows that is behind, or in the middle of a settlement: nothing under this id."""
    server, node = sponsor
    wallet = opened(server, devnet, credit=100_000)
    looked = 0

    def empty(method: str, params: list[Any]) -> Any:
        nonlocal looked
        if method == "eth_call" and params[0].get("to", "").lower() == wallet.wallet.offer.escrow:
            looked += 1
            return NOTHING
        return None

    node.rules = [empty]
    try:
        # Beyond the deposit, so that the chain is asked at once what the channel has now.
        problem_of(wallet.update(DEPOSIT + 1), 402, "session/amount-exceeds-deposit")
        assert looked
        assert wallet.send(SMALL, wallet.challenge(SMALL), wallet.voucher_payload(100_000)).status_code == 200
    finally:
        node.rules = []
    found = row(wallet)
    assert (found["status"], found["deposit"]) == ("open", DEPOSIT)
    server.assert_green()


# 17: fees.


@both
def test_open_and_top_up_are_sponsored_and_cost_the_client_no_fee(
    backend: str, sponsor: Shop, devnet: TempoChain
) -> None:
    server, _ = sponsor
    wallet = funded(server, devnet, backend)
    challenge = wallet.challenge(b"")
    assert challenge.request["methodDetails"]["feePayer"] is True
    answer = wallet.send(b"", challenge, wallet.open_payload(sponsored=True))
    assert answer.status_code == 200, answer.text
    assert devnet.balance(wallet.wallet.address) == FUNDS - DEPOSIT
    server.assert_green()


@pytest.mark.parametrize(
    "changes",
    [
        lambda chain: {"extra": (other_call(chain),)},
        lambda chain: {"gas_limit": 3_000_000},
        lambda chain: {"max_fee_per_gas": 10**12},
        lambda chain: {"max_priority_fee_per_gas": 10**11, "max_fee_per_gas": 10**11},
        lambda chain: {"fee_token": ANOTHER},
        lambda chain: {"nonce_key": 1, "nonce": 0},
        lambda chain: {"valid_before": None},
        lambda chain: {"payee": ANOTHER},
        lambda chain: {"escrow": ANOTHER},
    ],
    ids=["call", "gas", "price", "priority", "token", "nonce", "validity", "payee", "escrow"],
)
def test_nothing_else_is_sponsored(
    changes: Callable[[TempoChain], dict[str, Any]], sponsor: Shop, devnet: TempoChain
) -> None:
    server, node = sponsor
    wallet = funded(server, devnet)
    payload = wallet.open_payload(sponsored=True, **changes(devnet))
    sent = node.asked.count("eth_sendRawTransaction") + node.asked.count("eth_sendRawTransactionSync")
    refused = wallet.send(b"", wallet.challenge(b""), payload)
    assert refused.status_code in {400, 402}, refused.text
    unopened(wallet, devnet)
    assert sent == node.asked.count("eth_sendRawTransaction") + node.asked.count("eth_sendRawTransactionSync")
    server.assert_green()


def test_fees_are_not_paid_where_it_is_not_offered(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = funded(till, devnet)
    challenge = wallet.challenge(b"")
    assert "feePayer" not in challenge.request["methodDetails"]
    refused = wallet.send(b"", challenge, wallet.open_payload(sponsored=True))
    assert refused.status_code in {400, 402}
    unopened(wallet, devnet)
    till.assert_green()


# 18: the process dies between the parts of one operation.


def test_open_that_was_mined_while_we_were_dead_is_found(sponsor: Shop, devnet: TempoChain) -> None:
    """Killed after the broadcast, before anything was known of it: the deposit and its voucher are not lost."""
    server, node = sponsor
    wallet = funded(server, devnet)
    payload = {**wallet.open_payload(), **first_voucher(wallet, 50_000)}
    challenge = wallet.challenge(b"")
    node.rules = [on("eth_getTransactionReceipt", Drop())]
    try:
        problem_of(wallet.send(b"", challenge, payload), 402, "verification-failed")
        server.kill()
    finally:
        node.rules = []
    eventually(lambda: devnet.balance(wallet.wallet.address) < FUNDS)
    assert server.rows("SELECT id FROM channels WHERE id = :id", id=wallet.channel_id) == []
    channel.restart(server)
    eventually(lambda: server.rows("SELECT id FROM channels WHERE id = :id", id=wallet.channel_id))
    eventually(lambda: row(wallet)["accepted"] == 50_000 * NANO_PER_BASE_UNIT)
    assert wallet.complete(SMALL).status_code == 200
    server.assert_green()


def test_crash_during_a_whole_answer_charges_nothing_and_keeps_the_voucher(
    sponsor: Shop, devnet: TempoChain, shared_dialects: DialectServer
) -> None:
    """Killed between the hold and its capture: the voucher was persisted apart, and is credited once."""
    server, _ = sponsor
    wallet = opened(server, devnet)
    arrived = len(shared_dialects.requests)
    # The dialect waits with its answer until it is told to go on, which it never is.
    payload, challenge = wallet.voucher_payload(100_000), wallet.challenge(GATED)
    with pytest.raises(httpx.TransportError), asyncio.Runner() as runner:
        runner.run(killed(server, wallet, challenge, payload, shared_dialects, arrived))
    assert held(wallet) > 0
    channel.restart(server)
    eventually(lambda: held(wallet) == 0)
    found = row(wallet)
    assert (found["spent"], found["accepted"]) == (0, 100_000 * NANO_PER_BASE_UNIT)
    # What the dead process claimed stays claimed; a fresh challenge with the same voucher is served.
    problem_of(wallet.send(GATED, challenge, payload), 402, "session/challenge-not-found")
    assert wallet.send(SMALL, wallet.challenge(SMALL), payload).status_code == 200
    assert row(wallet)["accepted"] == 100_000 * NANO_PER_BASE_UNIT
    assert charged(wallet) == row(wallet)["spent"]
    server.assert_green()


async def killed(
    server: FareboxServer,
    wallet: PayingWallet,
    challenge: Any,
    payload: dict[str, Any],
    dialects: DialectServer,
    arrived: int,
) -> None:
    """Send, and kill the server when the provider has the request."""
    sent = asyncio.ensure_future(asyncio.to_thread(wallet.send, GATED, challenge, payload))
    assert await asyncio.to_thread(dialects.wait_for_requests, arrived + 1)
    server.kill()
    await sent


def test_crash_in_mid_stream_charges_no_more_than_its_window(sponsor: Shop, devnet: TempoChain) -> None:
    server, _ = sponsor
    wallet = opened(server, devnet)
    body = chat("[[sandbox tokens=2000]]", stream=True, max_tokens=3000)
    with channel.waiting(wallet, body) as (asked, events):
        required = int(asked.json["requiredCumulative"])
        assert wallet.update(required).status_code == 200
        channel.until(events, "payment-need-voucher")
        held_before = held(wallet)
        server.kill()
    channel.restart(server)
    eventually(lambda: held(wallet) == 0)
    assert 0 < row(wallet)["spent"] == charged(wallet) <= held_before <= required * NANO_PER_BASE_UNIT
    wallet.cumulative = required
    assert wallet.complete(SMALL).status_code == 200
    server.assert_green()
