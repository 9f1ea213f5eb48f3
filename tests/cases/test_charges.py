"""One-shot payments from a wallet: a whole answer by one transfer, and money for a key's balance."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from mpp import Challenge
from mpp.methods.tempo import attribution

from app.chain import abi
from tests.devnet_fixtures import TempoChain
from tests.serving import FareboxServer
from tests.sessions import PATH, PayingWallet, challenges_of, chat, paid_server, receipt_of

TOPUPS = "/v1/topups"


@pytest.fixture(scope="module")
def server(devnet: TempoChain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FareboxServer]:
    folder = tmp_path_factory.mktemp("charges")
    with paid_server(folder, devnet, database_url=f"sqlite:///{folder / 'books.db'}") as running:
        yield running
        running.assert_green()


@pytest.fixture
def wallet(server: FareboxServer, devnet: TempoChain) -> Iterator[PayingWallet]:
    made = PayingWallet.on(server, devnet)
    with made.http:
        yield made


def charge_challenge(response: httpx.Response) -> Challenge:
    """The one-shot challenge of a 402."""
    assert response.status_code == 402, response.text
    return next(each for each in challenges_of(response) if each.intent == "charge")


def transfer(wallet: PayingWallet, challenge: Challenge, *, amount: int | None = None) -> dict[str, Any]:
    """A transfer that is bound to a challenge."""
    memo = attribution.encode(challenge.id, challenge.realm, "client")
    paid = int(challenge.request["amount"]) if amount is None else amount
    data = abi.TRANSFER_WITH_MEMO.call(challenge.request["recipient"], paid, bytes.fromhex(memo[2:]))
    signed = wallet.wallet.transaction(((challenge.request["currency"], data),))
    return {"type": "transaction", "signature": wallet.wallet.wire(signed)}


def balance(server: FareboxServer, account_id: str) -> int:
    """What an account has, in nano-USD."""
    (row,) = server.rows("SELECT * FROM accounts WHERE id = :id", id=account_id)
    left: int = row["credits_posted"] - row["debits_posted"] - row["debits_pending"]
    return left


def test_a_whole_answer_is_paid_by_one_transfer_and_once(
    server: FareboxServer, devnet: TempoChain, wallet: PayingWallet
) -> None:
    body = chat("one shot", max_tokens=100)
    challenge = charge_challenge(wallet.unpaid(body))
    before = devnet.balance(wallet.wallet.offer.recipient)
    payload = transfer(wallet, challenge)
    answer = wallet.send(body, challenge, payload)
    assert answer.status_code == 200, answer.text
    assert receipt_of(answer)["status"] == "success"
    assert answer.headers["cache-control"] == "private"
    again = wallet.send(body, challenge, payload)
    assert (again.status_code, again.content) == (200, answer.content)
    assert again.headers["idempotent-replayed"] == "true"
    paid = int(challenge.request["amount"])
    assert devnet.balance(wallet.wallet.offer.recipient) - before == paid
    account = f"customer:wallet_{wallet.wallet.address[2:]}"
    cost = round(float(answer.headers["x-farebox-cost"]) * 1e9)
    assert 0 < cost < paid * 1000
    assert balance(server, account) == paid * 1000 - cost


def test_a_charge_for_a_cheap_body_buys_no_dear_one(wallet: PayingWallet) -> None:
    cheap, dear = chat("x", max_tokens=1), chat("x" * 2000, max_tokens=1000)
    challenge = charge_challenge(wallet.unpaid(cheap))
    answer = wallet.send(dear, challenge, transfer(wallet, challenge))
    assert answer.status_code == 402
    assert "another body" in answer.json()["detail"]
    assert charge_challenge(answer)


def test_a_transfer_of_less_is_refused(wallet: PayingWallet) -> None:
    body = chat("short", max_tokens=50)
    challenge = charge_challenge(wallet.unpaid(body))
    answer = wallet.send(body, challenge, transfer(wallet, challenge, amount=1))
    assert answer.status_code == 402
    assert "amount" in answer.json()["detail"]


def test_streams_offer_no_charge_and_accept_payment_chooses_it(wallet: PayingWallet) -> None:
    streamed = challenges_of(wallet.unpaid(chat("s", stream=True)))
    assert {each.intent for each in streamed} == {"session"}
    only = challenges_of(wallet.unpaid(chat("s"), **{"accept-payment": "tempo/charge"}))
    assert [each.intent for each in only] == ["charge"]
    both = challenges_of(wallet.unpaid(chat("s"), **{"accept-payment": "tempo/charge, tempo/session;q=0.5"}))
    assert [each.intent for each in both] == ["charge", "session", "session"]


def test_a_wallet_tops_up_a_key_once(server: FareboxServer, devnet: TempoChain, wallet: PayingWallet) -> None:
    payer = server.payer("1.00")
    body = b'{"amount": "2.50"}'
    first = wallet.http.post(TOPUPS, content=body, headers=payer.headers)
    challenge = charge_challenge(first)
    assert challenge.request["amount"] == "2500000"
    wallet.path = TOPUPS
    payload = transfer(wallet, challenge)
    answers = [wallet.send(body, challenge, payload, **{"x-api-key": payer.key}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    assert answers[0].json()["amount"] == "2.50"
    assert receipt_of(answers[0])["reference"].startswith("0x")
    funds = wallet.http.get("/v1/credits", headers=payer.headers).json()
    assert float(funds["available"]) == 3.5


def test_a_top_up_needs_a_key_first_and_a_sane_amount(server: FareboxServer, wallet: PayingWallet) -> None:
    payer = server.payer("1.00")
    assert wallet.http.post(TOPUPS, content=b'{"amount": "1.00"}').status_code == 401
    for amount in ('"-1"', '"1e99"', "1.5", '"0"', '"abc"', "null"):
        answer = wallet.http.post(TOPUPS, content=b'{"amount": %s}' % amount.encode(), headers=payer.headers)
        assert answer.status_code == 400, amount
    foreign = charge_challenge(wallet.unpaid(chat("y", max_tokens=5)))
    wallet.path = TOPUPS
    answer = wallet.send(b'{"amount": "1.00"}', foreign, transfer(wallet, foreign))
    assert answer.status_code in {401, 402}
    wallet.path = PATH


def test_a_charge_credential_that_is_nothing_is_refused(wallet: PayingWallet) -> None:
    body = chat("z", max_tokens=5)
    challenge = charge_challenge(wallet.unpaid(body))
    for payload in ({}, {"type": "hash"}, {"type": "transaction", "signature": "0x76"}, {"type": "other"}):
        assert wallet.send(body, challenge, payload).status_code in {400, 402}
