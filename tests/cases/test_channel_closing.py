"""Cases 5, 6, 18 to 20: the end of a channel, and what settling it may never do to those who stream."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cases import channel
from tests.cases.channel import (
    SMALL,
    SPOKEN,
    bought,
    charged,
    eventually,
    faulty,
    held,
    opened,
    problem_of,
    row,
    send_raw,
    settlements,
    snapshot_of,
    until,
    waiting,
)
from tests.chain.faulty_node import Drop, FaultyNode, Rule, on
from tests.conftest import PostgresServer
from tests.devnet_fixtures import TempoChain
from tests.dialects.server import DialectServer
from tests.serving import FareboxServer, model, sandbox, upstream
from tests.sessions import DEPOSIT, PayingWallet, Streamed, chat, paid_server, receipt_of

NANO_PER_BASE_UNIT = 1000
GATED = json.dumps({"model": "gated", "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
# More than what is left unsettled on a server that settles soon.
LARGE = chat("[[sandbox tokens=600]]", max_tokens=600)
CONFIRM_S = 1.0
SEND = ("eth_sendRawTransaction", "eth_sendRawTransactionSync")

both = pytest.mark.parametrize("backend", ["tempo-v2", "tempo-v1"])


def spent(wallet: PayingWallet) -> int:
    """What was spent, in base units."""
    return int(row(wallet)["spent"]) // NANO_PER_BASE_UNIT


def money(wallet: PayingWallet, chain: TempoChain) -> int:
    """What the payer has on chain."""
    return chain.balance(wallet.wallet.address)


def receipt_on(chain: TempoChain, tx_hash: str) -> dict[str, Any]:
    """A transaction as the chain has it."""
    found: dict[str, Any] = chain.rpc("eth_getTransactionReceipt", tx_hash)
    return found


@contextmanager
def broken(node: FaultyNode, *rules: Rule) -> Iterator[None]:
    """The node goes wrong by these rules, and is well again."""
    node.rules = list(rules)
    try:
        yield
    finally:
        node.rules = []


def closed(wallet: PayingWallet) -> bool:
    """Whether the channel is over, and seen to be."""
    return bool(row(wallet)["status"] == "closed")


# 6: what a close pays.


@both
def test_close_pays_what_was_spent_and_gives_back_the_rest(
    backend: str, till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = opened(till, devnet, credit=200_000, backend=backend)
    assert wallet.complete(SMALL).status_code == 200
    before, used = money(wallet, devnet), spent(wallet)
    assert 0 < used < 1000 < wallet.cumulative
    challenge = wallet.challenge(b"")
    # Clients of v1 sign what receipts said was accepted, those of v2 all that they ever signed.
    amount = used if backend == "tempo-v1" else wallet.cumulative
    answer = wallet.send(b"", challenge, wallet.voucher_payload(amount, action="close"))
    assert answer.status_code == 200, answer.text
    receipt = receipt_of(answer)
    assert receipt["challengeId"] == challenge.id
    assert receipt["acceptedCumulative"] == str(amount)
    assert receipt["spent"] == str(used)
    assert int(receipt_on(devnet, receipt["txHash"])["status"], 16) == 1
    assert money(wallet, devnet) == before + DEPOSIT - used
    (only,) = settlements(wallet)
    assert (only["kind"], only["capture"], only["tx_hash"]) == ("close", used, receipt["txHash"])
    assert closed(wallet)
    till.assert_green()


def test_close_again_gives_the_receipt_again_and_pays_nothing(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, credit=200_000)
    assert wallet.complete(SMALL).status_code == 200
    first = wallet.close()
    after = money(wallet, devnet)
    again = wallet.close()
    assert again.status_code == 200, again.text
    assert receipt_of(again)["txHash"] == receipt_of(first)["txHash"]
    assert len(settlements(wallet)) == 1
    assert money(wallet, devnet) == after
    till.assert_green()


@both
def test_channel_of_which_nothing_was_spent_is_closed_for_nothing(
    backend: str, till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = opened(till, devnet, backend=backend)
    before = money(wallet, devnet)
    answer = wallet.close()
    assert answer.status_code == 200, answer.text
    assert receipt_of(answer)["spent"] == "0"
    assert money(wallet, devnet) == before + DEPOSIT
    till.assert_green()


Shaky = tuple[FareboxServer, FaultyNode]


@pytest.fixture(scope="module")
def shaky(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, devnet: TempoChain) -> Iterator[Shaky]:
    """A server that settles soon and waits for nothing long, and its node, which a test may break."""
    with (
        faulty(devnet) as node,
        channel.shop(
            tmp_path_factory.mktemp("shaky"),
            sqlite_template,
            devnet,
            mpp={"exposure_max": "0.002", "confirm_timeout_s": CONFIRM_S},
            ledger={"window_cost_max": "0.001"},
            channel={"rpc_url": node.url},
        ) as server,
    ):
        yield server, node


def price_of(server: FareboxServer, chain: TempoChain) -> int:
    """What `LARGE` costs, in base units: the sandbox always says the same."""
    wallet = opened(server, chain, credit=50_000)
    assert wallet.complete(LARGE).status_code == 200
    return spent(wallet)


def test_close_at_the_amount_that_is_settled_already_works(
    till: FareboxServer, shaky: Shaky, devnet: TempoChain
) -> None:
    server, _ = shaky
    cost = price_of(till, devnet)
    # Clients of v1 close at what was spent, however much they signed.
    wallet = opened(server, devnet, backend="tempo-v1")
    # A voucher of just what will be spent, which settling can take in full.
    assert wallet.update(cost).status_code == 200
    assert wallet.complete(LARGE).status_code == 200
    assert spent(wallet) == cost
    eventually(lambda: row(wallet)["settled"] == cost)
    before = money(wallet, devnet)
    answer = wallet.close(cost)
    assert answer.status_code == 200, answer.text
    assert money(wallet, devnet) == before + DEPOSIT - cost
    assert [each["kind"] for each in settlements(wallet)] == ["settle", "close"]
    assert sum(each["capture"] for each in settlements(wallet)[:1]) == cost
    server.assert_green()


def test_only_what_was_spent_goes_on_chain_while_a_channel_is_open(
    till: FareboxServer, shaky: Shaky, devnet: TempoChain
) -> None:
    server, _ = shaky
    cost = price_of(till, devnet)
    wallet = opened(server, devnet)
    for amount in (10, cost, cost + 5, 100_000):
        assert wallet.update(amount).status_code == 200
    assert wallet.complete(LARGE).status_code == 200
    eventually(lambda: row(wallet)["settled"] == cost)
    assert [each["amount"] for each in settlements(wallet)] == [cost]
    found = row(wallet)
    assert found["published"] == cost <= found["spent"] // NANO_PER_BASE_UNIT < found["accepted"]
    # What the chain published now buys nothing, from whoever it comes.
    refused = wallet.send(LARGE, wallet.challenge(LARGE), wallet.voucher_payload(cost))
    problem_of(refused, 402, "session/insufficient-balance")
    assert "highestVoucher" not in snapshot_of(wallet, refused)
    server.assert_green()


# 5: after the payer asked to close.


@both
def test_request_to_close_ends_a_stream_with_what_was_delivered(
    backend: str, till: FareboxServer, devnet: TempoChain, shared_dialects: DialectServer
) -> None:
    wallet = opened(till, devnet, credit=200_000, backend=backend)
    assert wallet.opening is not None
    arrived = len(shared_dialects.requests)
    challenge = wallet.challenge(GATED)
    with wallet.streaming(GATED, challenge, wallet.voucher_payload(200_001)) as (response, events):
        assert response.status_code == 200
        first = next(events)
        assert shared_dialects.wait_for_requests(arrived + 1)
        asked = [each for each in shared_dialects.requests[arrived:] if each.model == "gated"][-1]
        send_raw(devnet, wallet.wallet.request_close(wallet.opening))
        seen = Streamed([first, *events], response.headers)
    assert asked.wait_closed()
    assert seen.error is not None
    assert "clos" in seen.error["message"]
    assert seen.events[-1].name == "payment-receipt"
    assert seen.text
    (outcome,) = channel.outcomes(wallet)
    assert outcome["status"] == "aborted"
    assert 0 < outcome["charged"] == row(wallet)["spent"]
    assert int(seen.receipt["spent"]) == spent(wallet)
    eventually(lambda: closed(wallet))
    (only,) = settlements(wallet)
    assert (only["kind"], only["capture"]) == ("close", spent(wallet))
    till.assert_green()


def test_nothing_is_served_and_no_voucher_taken_once_the_payer_asked_to_close(
    till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = opened(till, devnet)
    assert wallet.opening is not None
    challenges = {body: wallet.challenge(body) for body in (SMALL, SPOKEN, b"")}
    with waiting(wallet, SPOKEN) as (_, events):
        send_raw(devnet, wallet.wallet.request_close(wallet.opening))
        # What waits for a voucher learns that none is taken any more.
        seen = Streamed(list(events), httpx.Headers())
    assert seen.error is not None
    for body, challenge in challenges.items():
        problem_of(wallet.send(body, challenge, wallet.voucher_payload(300_000)), 410, "session/channel-finalized")
    assert bought(wallet) == 0
    assert row(wallet)["accepted"] == 2 * NANO_PER_BASE_UNIT
    eventually(lambda: closed(wallet))
    problem_of(wallet.update(300_001), 410, "session/channel-finalized")
    shown = wallet.unpaid(SMALL, **{"payment-session": wallet.channel_id})
    assert "channelId" not in wallet.pick(shown).request["methodDetails"]
    till.assert_green()


def test_close_ends_streams_of_its_channel_and_no_others(
    till: FareboxServer, devnet: TempoChain, shared_dialects: DialectServer
) -> None:
    wallet, other = (opened(till, devnet, credit=200_000) for _ in range(2))
    arrived = len(shared_dialects.requests)
    with (
        wallet.streaming(GATED, wallet.challenge(GATED), wallet.voucher_payload(200_001)) as (_, events),
        other.streaming(GATED, other.challenge(GATED), other.voucher_payload(200_001)) as (_, others),
    ):
        firsts = [next(events), next(others)]
        wallet.cumulative = 200_001
        answer = wallet.close()
        assert answer.status_code == 200, answer.text
        ended = Streamed([firsts[0], *events], httpx.Headers())
        for request in shared_dialects.requests[arrived:]:
            request.release()
        whole = Streamed([firsts[1], *others], httpx.Headers())
    assert ended.error is not None
    assert ended.receipt["spent"] == receipt_of(answer)["spent"] == str(spent(wallet))
    assert whole.error is None
    assert closed(wallet)
    assert row(other)["status"] == "open"
    assert charged(wallet) == row(wallet)["spent"] > 0
    till.assert_green()


@both
def test_close_below_what_was_spent_is_refused_and_the_channel_serves_on(
    backend: str, till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = opened(till, devnet, credit=200_000, backend=backend)
    assert wallet.complete(SMALL).status_code == 200
    problem_of(wallet.close(spent(wallet) - 1), 402, "session/insufficient-balance")
    assert wallet.close(0).status_code == 402
    problem_of(wallet.close(DEPOSIT + 1), 402, "session/amount-exceeds-deposit")
    assert row(wallet)["status"] == "open"
    assert settlements(wallet) == []
    assert wallet.complete(SMALL).status_code == 200
    till.assert_green()


# 18 and 19: the chain and the process fail.


def test_close_that_a_crash_interrupts_is_gone_on_with(shaky: Shaky, devnet: TempoChain) -> None:
    """Killed when the close is marked and signed and could not be sent: neither lost, nor done twice."""
    server, node = shaky
    wallet = opened(server, devnet, credit=200_000)
    assert wallet.complete(SMALL).status_code == 200
    used, before = spent(wallet), money(wallet, devnet)
    with broken(node, *(on(method, Drop()) for method in SEND)):
        answer = wallet.close()
        problem_of(answer, 402, "payment-required")
        assert int(answer.headers["retry-after"]) > 0
        assert row(wallet)["status"] == "closing"
        server.kill()
        assert money(wallet, devnet) == before
    channel.restart(server)
    eventually(lambda: closed(wallet))
    again = wallet.close()
    assert again.status_code == 200, again.text
    assert receipt_of(again)["spent"] == str(used)
    assert money(wallet, devnet) == before + DEPOSIT - used
    assert [each["kind"] for each in settlements(wallet)] == ["close"]
    server.assert_green()


def test_receipt_that_does_not_come_in_time_is_no_failure(shaky: Shaky, devnet: TempoChain) -> None:
    server, node = shaky
    wallet = opened(server, devnet, credit=200_000)
    assert wallet.complete(SMALL).status_code == 200
    before, used = money(wallet, devnet), spent(wallet)
    with broken(node, on("eth_getTransactionReceipt", Drop())):
        problem_of(wallet.close(), 402, "payment-required")
        # It is mined, and nobody could be told.
        eventually(lambda: money(wallet, devnet) == before + DEPOSIT - used)
        problem_of(wallet.close(), 402, "payment-required")
    eventually(lambda: closed(wallet))
    assert wallet.close().status_code == 200
    assert len(settlements(wallet)) == 1
    server.assert_green()


def test_node_that_is_away_neither_ends_nor_delays_a_stream(shaky: Shaky, devnet: TempoChain) -> None:
    server, node = shaky
    wallet = opened(server, devnet)
    # Vouchers that settling can take, once they are spent.
    for amount in range(500, 4000, 500):
        assert wallet.update(amount).status_code == 200
    with broken(node, lambda method, params: Drop()):
        seen = wallet.stream(chat("[[sandbox tokens=600]]", stream=True, max_tokens=700))
        assert seen.error is None
        assert spent(wallet) > 2000
        assert row(wallet)["settled"] == 0
        asked = len(node.asked)
        eventually(lambda: len(node.asked) > asked)
    eventually(lambda: row(wallet)["settled"] > 0)
    assert row(wallet)["settled"] <= spent(wallet)
    server.assert_green()


# 20: replicas.


@pytest.fixture(scope="module")
def replicas(
    postgres: PostgresServer,
    tmp_path_factory: pytest.TempPathFactory,
    devnet: TempoChain,
    shared_dialects: DialectServer,
) -> Iterator[tuple[FareboxServer, FareboxServer]]:
    """Two processes on one PostgreSQL, with the same key of the same payee."""
    url = postgres.create()
    folder = tmp_path_factory.mktemp("replicas")
    providers = [sandbox(), upstream("dialects", shared_dialects.base_url, [model("gated")])]

    def server() -> FareboxServer:
        mpp = {"vouchers_per_second": channel.PER_SECOND}
        return paid_server(folder, devnet, database_url=url, mpp=mpp, providers=providers)

    with server() as one, server() as other:
        channel.wait_seen(one)
        channel.wait_seen(other)
        yield one, other
    postgres.drop(url)


def test_replicas_never_settle_with_the_same_nonce(
    replicas: tuple[FareboxServer, FareboxServer], devnet: TempoChain
) -> None:
    one, other = replicas
    wallets = [opened(one, devnet, credit=200_000) for _ in range(6)]
    for wallet in wallets:
        assert wallet.complete(SMALL).status_code == 200
    closers = [channel.moved(wallet, other) if number % 2 else wallet for number, wallet in enumerate(wallets)]
    with ThreadPoolExecutor(len(closers)) as pool:
        answers = list(pool.map(lambda each: each.close(), closers))
    assert [answer.status_code for answer in answers] == [200] * len(closers), [each.text for each in answers]
    sent = [each for wallet in wallets for each in settlements(wallet)]
    assert len(sent) == len(wallets)
    assert len({each["nonce"] for each in sent}) == len(sent)
    assert {each["state"] for each in sent} == {"confirmed"}
    assert len({receipt_of(answer)["txHash"] for answer in answers}) == len(wallets)
    one.assert_green()


def test_channel_that_one_replica_closes_serves_nothing_at_the_other(
    replicas: tuple[FareboxServer, FareboxServer], devnet: TempoChain, shared_dialects: DialectServer
) -> None:
    one, other = replicas
    wallet = opened(one, devnet, credit=200_000)
    moved = channel.moved(wallet, other)
    held_back = wallet.challenge(SMALL)
    with wallet.streaming(GATED, wallet.challenge(GATED), wallet.voucher_payload(200_001)) as (_, events):
        first = next(events)
        moved.cumulative = 200_001
        answer = moved.close()
        assert answer.status_code == 200, answer.text
        seen = Streamed([first, *events], httpx.Headers())
    assert seen.error is not None
    assert charged(wallet) == row(wallet)["spent"] > 0
    assert receipt_of(answer)["spent"] == str(spent(wallet))
    refused = wallet.send(SMALL, held_back, wallet.voucher_payload(200_001))
    problem_of(refused, 410, "session/channel-finalized")
    assert held(wallet) == 0
    one.assert_green()


def test_one_challenge_and_one_credit_buy_once_at_two_replicas(
    replicas: tuple[FareboxServer, FareboxServer], devnet: TempoChain
) -> None:
    one, other = replicas
    wallet = opened(one, devnet)
    moved = channel.moved(wallet, other)
    body = chat("[[sandbox first_ms=300 tokens=50]]", max_tokens=100)
    refused = wallet.send(body, wallet.challenge(body), wallet.voucher_payload(1))
    amount = int(problem_of(refused, 402, "session/insufficient-balance")["requiredCumulative"])
    same = wallet.challenge(body)
    plans = [(each, same if number < 4 else each.challenge(body)) for number, each in enumerate([wallet, moved] * 4)]
    with ThreadPoolExecutor(len(plans)) as pool:
        answers = list(pool.map(lambda plan: plan[0].send(body, plan[1], wallet.voucher_payload(amount)), plans))
    assert sorted(answer.status_code for answer in answers) == [200] + [402] * 7
    assert bought(wallet) == 1
    one.assert_green()


def test_voucher_at_one_replica_resumes_a_stream_at_the_other(
    replicas: tuple[FareboxServer, FareboxServer], devnet: TempoChain
) -> None:
    one, other = replicas
    wallet = opened(one, devnet)
    moved = channel.moved(wallet, other)
    with waiting(wallet, chat("[[sandbox tokens=600]]", stream=True, max_tokens=700)) as (asked, events):
        assert moved.update(int(asked.json["requiredCumulative"])).status_code == 200
        more = until(events, "payment-need-voucher")
        assert moved.update(int(more.json["requiredCumulative"])).status_code == 200
        seen = Streamed(list(events), httpx.Headers())
    assert seen.error is None
    assert charged(wallet) == row(wallet)["spent"] > 0
    one.assert_green()
