"""The published mppx client, as its users run it, in front of a real server and a local chain.

Every channel is closed at the end by the client itself, and what the chain then paid is what the receipts
said, what the books say, and what the channel's row says.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.ledger.account import channel_account
from app.money import base_units_down
from tests.devnet_fixtures import TempoChain
from tests.interop.mppx_process import MppxFailed, MppxProcess, MppxWallet, Read, validate
from tests.serving import FareboxServer
from tests.sessions import PATH, chat, paid_server

FUNDS = 10_000_000
SMALL = chat("[[sandbox tokens=60]]small", max_tokens=100)
SMALL_STREAM = chat("[[sandbox tokens=60]]small", max_tokens=100, stream=True)
LONG = chat("[[sandbox tokens=2000]]at length", max_tokens=3000, stream=True)
BASE_UNITS_PER_TOKEN = 4
# Gas is priced in parts of a base unit so small.
FEE_SCALE = 10**12


@pytest.fixture(scope="module")
def server(devnet: TempoChain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FareboxServer]:
    """A server that tests share; one of them kills it, and starts it again."""
    folder = tmp_path_factory.mktemp("mppx-server")
    # A client on the same machine as the provider's sandbox is faster than any that a limit is meant for.
    limits = {"vouchers_per_second": 1000}
    with paid_server(folder, devnet, database_url=f"sqlite:///{folder}/books.db", mpp=limits) as server:
        yield server


@pytest.fixture(scope="module")
def client(
    devnet: TempoChain, server: FareboxServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MppxProcess]:
    """The client's process."""
    with MppxProcess(tmp_path_factory.mktemp("mppx"), devnet, server.url + PATH) as process:
        yield process


class Paid:
    """Closes a wallet's channel and proves what was paid."""

    def __init__(self, chain: TempoChain, server: FareboxServer) -> None:
        self.chain = chain
        self.server = server

    def channel(self, wallet: MppxWallet) -> dict[str, Any]:
        """The wallet's one channel: there is no second, on chain, in the books or in what the client signed."""
        (row,) = self.server.rows("SELECT * FROM channels WHERE payer = :payer", payer=wallet.address)
        opens = self.server.rows("SELECT * FROM fundings WHERE kind = 'open' AND channel_id = :id", id=row["id"])
        assert len(opens) == 1
        signed = {call.channel_id for call in wallet.calls if call.channel_id is not None}
        assert {each.lower() for each in signed} == {row["id"]}
        return row

    def closed(self, wallet: MppxWallet, *, spent: int) -> None:
        """Close, and compare: client, chain, ledger. ``spent``: what the last receipt said."""
        chain, server = self.chain, self.server
        server.wait_settled()
        operator = chain.accounts[0].address
        before = chain.balance(operator)
        receipt = wallet.close()
        assert int(receipt["spent"]) == spent
        row = self.channel(wallet)
        assert row["status"] == "closed"
        assert base_units_down(row["spent"]) == spent
        assert row["settled"] == spent
        assert chain.balance(operator) - before == spent - self.fee(receipt["txHash"])
        fundings = server.rows("SELECT tx_hash FROM fundings WHERE channel_id = :id", id=row["id"])
        fees = sum(self.fee(each["tx_hash"]) for each in fundings)
        assert chain.balance(wallet.address) == FUNDS - spent - fees
        charged = server.rows(
            "SELECT sum(charged) AS n FROM outcomes JOIN requests ON id = request_id WHERE account_id = :id",
            id=channel_account(row["id"]),
        )
        assert charged == [{"n": row["spent"]}]
        server.assert_green()

    def fee(self, tx_hash: str) -> int:
        """What a transaction's sender paid for it, in base units."""
        receipt = self.chain.rpc("eth_getTransactionReceipt", tx_hash)
        assert int(receipt["status"], 16) == 1
        return -(-int(receipt["gasUsed"], 16) * int(receipt["effectiveGasPrice"], 16) // FEE_SCALE)

    def last_receipt(self, wallet: MppxWallet) -> int:
        """What the last receipt said; the drop-in fetch keeps those of streams to itself."""
        (row,) = self.server.rows(
            "SELECT max(spent) AS spent FROM receipts WHERE channel_id = :id", id=self.channel(wallet)["id"]
        )
        return int(row["spent"])


@pytest.fixture
def paid(devnet: TempoChain, server: FareboxServer) -> Paid:
    """The proof at the end of each test."""
    return Paid(devnet, server)


def assert_whole(answer: Read) -> None:
    """The stream ran to its end."""
    assert answer.error is None
    assert answer.failure is None
    assert answer.data[-1] == "[DONE]"


def vouchers(wallet: MppxWallet) -> int:
    """How many vouchers the client sent beside a stream."""
    return sum(call.action == "voucher" and not call.content for call in wallet.calls)


def test_v2_manager_streams_pauses_and_tops_up_by_itself(client: MppxProcess, paid: Paid) -> None:
    wallet = client.wallet("v2", funds=FUNDS, max_deposit="2", deposit=3000)
    answer = wallet.stream(LONG)
    assert_whole(answer)
    assert vouchers(wallet) >= 3
    assert [call.status for call in wallet.calls if call.action == "topUp"] == [200]
    whole = wallet.ask(SMALL)
    assert whole["status"] == 200
    last = wallet.stream(SMALL_STREAM)
    spent = int(last.receipts[-1]["spent"])
    assert int(answer.receipts[-1]["spent"]) < int(whole["receipt"]["spent"]) < spent
    paid.closed(wallet, spent=spent)


def test_v2_sixty_small_requests_use_one_deposit(client: MppxProcess, paid: Paid) -> None:
    wallet = client.wallet("v2", funds=FUNDS, max_deposit="0.02")
    answers = wallet.ask_often(SMALL, times=60)
    assert [answer["status"] for answer in answers] == [200] * 60
    receipts = [answer["receipt"] for answer in answers]
    # The first voucher after the open is for the dearest that one request can be.
    ceiling = next(call.cumulative for call in wallet.calls if call.action == "voucher" and call.content)
    assert ceiling is not None
    ahead = max(int(each["acceptedCumulative"]) - int(each["spent"]) for each in receipts)
    assert 0 < ahead <= ceiling
    assert not [call for call in wallet.calls if call.action == "topUp"]
    paid.closed(wallet, spent=int(receipts[-1]["spent"]))


def test_v2_drop_in_fetch_shares_one_channel_among_three_requests_at_once(client: MppxProcess, paid: Paid) -> None:
    wallet = client.wallet("fetch", funds=FUNDS, max_deposit="1")
    long = [chat(f"[[sandbox tokens={1500 + number}]]at once", stream=True, max_tokens=3000) for number in range(3)]
    # None of them has a channel when it begins: one opens it, and the others wait for that.
    streams = wallet.together(long)
    assert [answer["status"] for answer in streams] == [200, 200, 200]
    for answer in streams:
        assert answer["text"].rstrip().endswith("data: [DONE]")
        assert '"error"' not in answer["text"]
    wholes = wallet.together([SMALL] * 3)
    assert [answer["status"] for answer in wholes] == [200, 200, 200]
    paid.closed(wallet, spent=paid.last_receipt(wallet))


def test_v2_stream_beyond_the_clients_own_maximum_costs_what_was_delivered(client: MppxProcess, paid: Paid) -> None:
    wallet = client.wallet("v2", funds=FUNDS, max_deposit="0.004")
    answer = wallet.stream(LONG)
    assert answer.error is not None
    assert "exceeds local maxDeposit" in answer.error
    assert 0 < len(answer.text) < 8000
    paid.server.wait_settled()
    paid.closed(wallet, spent=paid.last_receipt(wallet))


def test_v1_manager_streams_asks_sixty_times_and_closes(client: MppxProcess, paid: Paid) -> None:
    wallet = client.wallet("v1", funds=FUNDS, max_deposit="0.05")
    answer = wallet.stream(LONG)
    assert_whole(answer)
    assert vouchers(wallet) >= 3
    answers = wallet.ask_often(SMALL, times=60)
    assert [each["status"] for each in answers] == [200] * 60
    last = wallet.stream(SMALL_STREAM)
    assert_whole(last)
    paid.closed(wallet, spent=int(last.receipts[-1]["spent"]))


def test_v1_answer_is_as_long_as_its_deposit_pays_for(client: MppxProcess, paid: Paid) -> None:
    # 2,000 tokens cost 8,000 base units, and this client never adds to its deposit.
    wallet = client.wallet("v1", funds=FUNDS, max_deposit="0.004")
    answer = wallet.stream(LONG)
    assert_whole(answer)
    assert json.loads(answer.data[-2])["choices"][0]["finish_reason"] == "length"
    spent = int(answer.receipts[-1]["spent"])
    assert 2000 < spent <= 4000
    paid.closed(wallet, spent=spent)


def test_clients_go_on_with_their_channels_after_the_server_was_killed(client: MppxProcess, paid: Paid) -> None:
    wallets = [client.wallet(kind, funds=FUNDS, max_deposit="1") for kind in ("v2", "v1")]
    slow = chat("[[sandbox tokens=4000 tps=500]]at length", stream=True, max_tokens=5000)
    for wallet in wallets:
        wallet.begin(slow)
    begun = [wallet.read(200) for wallet in wallets]
    assert not [read for read in begun if read.done]
    paid.server.kill()
    for wallet in wallets:
        rest = wallet.read()
        assert rest.error is not None
        assert not rest.receipts
    paid.server.start()
    for wallet, read in zip(wallets, begun, strict=True):
        assert wallet.ask(SMALL)["status"] == 200
        last = wallet.stream(SMALL_STREAM)
        assert_whole(last)
        spent = int(last.receipts[-1]["spent"])
        # What was delivered before the kill was billed, by the process after it.
        assert spent > len(read.data) * BASE_UNITS_PER_TOKEN
        paid.closed(wallet, spent=spent)


@pytest.mark.parametrize("kind", ["v2", "fetch", "v1"])
def test_failure_of_the_provider_after_an_open_costs_no_second_channel(
    client: MppxProcess, paid: Paid, kind: str
) -> None:
    wallet = client.wallet(kind, funds=FUNDS, max_deposit="1")
    failed = wallet.ask(chat("[[sandbox fail=status:503]]whole", max_tokens=100))
    assert failed["status"] == 502
    assert failed["receipt"] is None
    # The open is mined before the provider is asked: it may never be answered by what looks like nothing.
    assert [(call.action, call.status) for call in wallet.calls] == [(None, 402), ("open", 402), ("voucher", 502)]
    good = wallet.ask(SMALL)
    assert good["status"] == 200
    paid.closed(wallet, spent=int(good["receipt"]["spent"]))


@pytest.mark.parametrize("kind", ["v2", "v1"])
def test_failure_of_the_provider_in_the_stream_of_an_open_is_an_event(
    client: MppxProcess, paid: Paid, kind: str
) -> None:
    wallet = client.wallet(kind, funds=FUNDS, max_deposit="1")
    failed = wallet.stream(chat("[[sandbox fail=status:503]]stream", stream=True, max_tokens=100))
    assert failed.error is None
    assert failed.failure is not None
    assert failed.failure["code"] == "all_providers_failed"
    assert int(failed.receipts[-1]["spent"]) == 0
    last = wallet.stream(SMALL_STREAM)
    assert_whole(last)
    paid.closed(wallet, spent=int(last.receipts[-1]["spent"]))


@pytest.mark.parametrize("kind", ["v2", "fetch", "v1"])
def test_lost_answers_cost_no_second_channel(client: MppxProcess, paid: Paid, kind: str) -> None:
    wallet = client.wallet(kind, funds=FUNDS, max_deposit="1")
    price = int(wallet.ask(SMALL)["receipt"]["spent"])
    # The session manager takes back what it signed for an answer that it never saw, and signs lower next time.
    for _ in range(3):
        wallet.lose("answer")
        with pytest.raises(MppxFailed, match="the answer was lost"):
            wallet.ask(SMALL)
    good = wallet.ask(SMALL)
    assert good["status"] == 200
    assert int(good["receipt"]["spent"]) == 5 * price
    paid.closed(wallet, spent=5 * price)


def test_validator_accepts_what_is_published(devnet: TempoChain, tmp_path: Path) -> None:
    # The validator reads a stream without answering its pauses: they are short here.
    mpp = {"realm": "127.0.0.1", "voucher_timeout_s": 1}
    with paid_server(tmp_path, devnet, database_url=f"sqlite:///{tmp_path}/books.db", mpp=mpp) as server:
        checks = validate(tmp_path, devnet, server.url)
        document = httpx.get(f"{server.url}/openapi.json", timeout=10).json()
        server.wait_settled()
        server.assert_green()
    # A credential that cannot be read is 400 by the specification; the validator would rather have 402.
    failed = [(check["label"], check.get("detail")) for check in checks if check["severity"] not in {"pass", "skip"}]
    # A top-up needs an account, and the validator leaves it out.
    operations = [path for path, item in document["paths"].items() if "x-payment-info" in item.get("post", {})]
    operations.remove("/v1/topups")
    assert PATH in operations
    assert failed == [("Malformed credential returns 402", "Got 400")] * len(operations)
    passed = [check["label"] for check in checks if check["severity"] == "pass"]
    assert passed.count("Payment: successful") == 2 * len(operations)
    assert passed.count("Receipt parseable") == 2 * len(operations)
