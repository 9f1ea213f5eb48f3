"""Cases 1, 6, 10 to 13, 16 and 20a to 20c: what a voucher is worth, to whom, and how often."""

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from app.mpp.voucher import ORDER
from tests.cases import channel
from tests.cases.channel import SMALL, SPOKEN, bought, funded, held, opened, problem_of, row, snapshot_of, standing
from tests.chain.wallet import Wallet, new_key
from tests.devnet_fixtures import TempoChain
from tests.serving import FareboxServer
from tests.sessions import DEPOSIT, PayingWallet, chat, receipt_of

NANO_PER_BASE_UNIT = 1000
CREDIT = 5_000

both = pytest.mark.parametrize("backend", ["tempo-v2", "tempo-v1"])


def accepted(wallet: PayingWallet) -> int:
    """What the channel has accepted, in base units."""
    return int(row(wallet)["accepted"]) // NANO_PER_BASE_UNIT


def vouchers(wallet: PayingWallet) -> list[int]:
    """The amounts of the vouchers that were kept."""
    statement = "SELECT amount FROM vouchers WHERE channel_id = :id ORDER BY amount"
    return [int(found["amount"]) for found in wallet.server.rows(statement, id=wallet.channel_id)]


def settled(wallet: PayingWallet, amount: int) -> None:
    """Make it so that the chain has published the channel's voucher of ``amount``, which was spent."""
    with wallet.server.engine.connect().execution_options(writes=True) as connection, connection.begin():
        connection.exec_driver_sql(
            f"UPDATE channels SET published = {amount} WHERE id = '{wallet.channel_id}' AND spent >= {amount} * 1000"
        )
    assert row(wallet)["published"] == amount


# 1: again.


@both
def test_equal_voucher_is_a_success_that_changes_nothing(backend: str, till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, credit=CREDIT, backend=backend)
    before = standing(wallet)
    for _ in range(3):
        answer = wallet.update(CREDIT)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer.headers["cache-control"] == "private"
    assert standing(wallet) == before
    assert vouchers(wallet) == [CREDIT]
    till.assert_green()


def test_voucher_presented_again_buys_no_more_than_it_paid_for(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet)
    required = int(
        problem_of(
            wallet.send(SMALL, wallet.challenge(SMALL), wallet.voucher_payload(1)), 402, "session/insufficient-balance"
        )["requiredCumulative"]
    )
    payload = wallet.voucher_payload(required)
    first = wallet.send(SMALL, wallet.challenge(SMALL), payload)
    assert first.status_code == 200
    served = 1
    for _ in range(20):
        again = wallet.send(SMALL, wallet.challenge(SMALL), payload)
        if again.status_code == 402:
            break
        served += 1
    problem = problem_of(again, 402, "session/insufficient-balance")
    assert int(problem["requiredTopUp"]) == int(problem["requiredCumulative"]) - required > 0
    # The ceiling was held for each, and what was not used came back: the voucher was never overdrawn.
    assert bought(wallet) == served
    assert channel.charged(wallet) == row(wallet)["spent"] <= required * NANO_PER_BASE_UNIT
    assert held(wallet) == 0
    till.assert_green()


# 20c and the second challenge.


def test_shortfall_is_asked_for_by_a_second_challenge_with_a_snapshot(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet)
    first = wallet.challenge(SMALL)
    assert first.request["amount"] == "1"
    refused = wallet.send(SMALL, first, wallet.voucher_payload(2))
    problem = problem_of(refused, 402, "session/insufficient-balance")
    snapshot = snapshot_of(wallet, refused)
    # What was accepted before this request: its client has rolled back what the refusal left without a receipt.
    assert snapshot["acceptedCumulative"] == "1"
    assert snapshot["spent"] == "0"
    assert snapshot["deposit"] == str(DEPOSIT)
    assert snapshot["requiredCumulative"] == problem["requiredCumulative"]
    assert snapshot["descriptor"] == wallet.descriptor.to_wire()
    assert int(problem["requiredTopUp"]) == int(problem["requiredCumulative"]) - 2
    second = wallet.pick(refused)
    assert second.request["amount"] == problem["requiredTopUp"]
    paid = wallet.send(SMALL, second, wallet.voucher_payload(2 + int(second.request["amount"])))
    assert paid.status_code == 200
    assert receipt_of(paid)["acceptedCumulative"] == problem["requiredCumulative"]
    till.assert_green()


def test_second_challenge_of_v1_asks_for_the_shortfall_and_shows_no_snapshot(
    till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = opened(till, devnet, backend="tempo-v1")
    refused = wallet.send(SMALL, wallet.challenge(SMALL), wallet.voucher_payload(2))
    problem = problem_of(refused, 402, "session/insufficient-balance")
    challenge = wallet.pick(refused)
    assert challenge.request["amount"] == problem["requiredTopUp"]
    assert challenge.request["methodDetails"]["channelId"] == wallet.channel_id
    assert "sessionSnapshot" not in challenge.request["methodDetails"]
    assert wallet.send(SMALL, challenge, wallet.voucher_payload(int(problem["requiredCumulative"]))).status_code == 200
    till.assert_green()


@both
def test_lower_voucher_is_refused_in_management_and_nothing_is_taken_back(
    backend: str, till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = opened(till, devnet, credit=CREDIT, backend=backend)
    problem_of(wallet.update(CREDIT - 1), 402, "session/delta-too-small")
    assert accepted(wallet) == CREDIT
    till.assert_green()


def test_client_that_rolled_back_recovers_from_the_snapshot_without_a_second_channel(
    till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = opened(till, devnet)
    assert wallet.complete(SMALL).status_code == 200
    top = wallet.cumulative
    lower = wallet.update(top - 1)
    problem_of(lower, 402, "session/delta-too-small")
    snapshot = snapshot_of(wallet, lower)
    assert snapshot["acceptedCumulative"] == str(top)
    # The payer is proven by a voucher that no chain has seen: it is shown its own highest one.
    shown = snapshot["highestVoucher"]
    assert shown["cumulativeAmount"] == str(top)
    assert shown["signature"] == wallet.wallet.voucher(wallet.channel_id, top)
    low = wallet.close(1)
    problem_of(low, 402, "session/insufficient-balance")
    assert snapshot_of(wallet, low)["acceptedCumulative"] == str(top)
    wallet.cumulative = int(snapshot["acceptedCumulative"])
    assert wallet.complete(SMALL).status_code == 200
    assert bought(wallet) == 2
    assert row(wallet)["status"] == "open"
    till.assert_green()


def test_session_header_shows_the_channel_without_its_voucher(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, credit=CREDIT)
    header = {"payment-session": "0x" + wallet.channel_id[2:].upper()}
    shown = wallet.unpaid(SMALL, **header)
    snapshot = snapshot_of(wallet, shown)
    assert snapshot["channelId"] == wallet.channel_id
    assert snapshot["acceptedCumulative"] == str(CREDIT)
    assert "highestVoucher" not in snapshot
    assert wallet.wallet.voucher(wallet.channel_id, CREDIT)[2:] not in shown.text + str(shown.headers)
    for nothing in ("0x" + "00" * 32, "x" * 500, ""):
        bare = wallet.pick(wallet.unpaid(SMALL, **{"payment-session": nothing}))
        assert "channelId" not in bare.request["methodDetails"]
    till.assert_green()


# 20a: who presents it.


@pytest.mark.parametrize("body", [SMALL, SPOKEN], ids=["whole", "stream"])
def test_settled_voucher_is_worth_nothing_to_a_stranger(body: bytes, till: FareboxServer, devnet: TempoChain) -> None:
    """What a stranger reads on chain: payer, descriptor, channel id, voucher. The challenge is fresh, and its own."""
    wallet = opened(till, devnet)
    assert wallet.complete(chat("spend it", max_tokens=2000)).status_code == 200
    top = int(row(wallet)["spent"]) // NANO_PER_BASE_UNIT
    published = wallet.voucher_payload(top)
    settled(wallet, top)
    # The payer has paid for more, which nobody else may use.
    assert wallet.complete(chat("spend more", max_tokens=5000)).status_code == 200
    before = standing(wallet)
    with httpx.Client(base_url=till.url, timeout=5) as http:
        stranger = PayingWallet(till, wallet.wallet, http, wallet.opening)
        answer = stranger.send(body, stranger.challenge(body), published)
        problem_of(answer, 402, "session/insufficient-balance")
        managed = stranger.send(b"", stranger.challenge(b""), published)
        closed = stranger.send(b"", stranger.challenge(b""), {**published, "action": "close"})
    for refused in (answer, managed, closed):
        assert "highestVoucher" not in str(refused.headers)
        assert refused.status_code != 200
        assert not refused.headers.get("payment-receipt")
    assert standing(wallet) == before
    assert bought(wallet) == 2
    till.assert_green()


def test_settled_voucher_closes_nothing_for_a_stranger(till: FareboxServer, devnet: TempoChain) -> None:
    """All that was spent is settled, so that the published voucher would cover a close."""
    wallet = opened(till, devnet)
    assert wallet.complete(SMALL).status_code == 200
    top = int(row(wallet)["spent"]) // NANO_PER_BASE_UNIT
    settled(wallet, top)
    before = standing(wallet)
    refused = wallet.close(top)
    problem_of(refused, 402, "session/delta-too-small")
    assert "highestVoucher" not in snapshot_of(wallet, refused)
    assert standing(wallet) == before
    # The payer's own voucher does.
    assert wallet.close().status_code == 200
    till.assert_green()


def test_stranger_never_waits_in_line_for_the_payers_next_voucher(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet)
    assert wallet.complete(chat("spend it", max_tokens=2000)).status_code == 200
    top = int(row(wallet)["spent"]) // NANO_PER_BASE_UNIT
    settled(wallet, top)
    dear = chat("[[sandbox tokens=900]]", stream=True, max_tokens=5000)
    with httpx.Client(base_url=till.url, timeout=5) as http:
        stranger = PayingWallet(till, wallet.wallet, http, wallet.opening)
        answer = stranger.send(dear, stranger.challenge(dear), wallet.voucher_payload(top))
    # Refused at once: a stream that waits answers 200 and would be served by what the payer signs next.
    problem_of(answer, 402, "session/insufficient-balance")
    assert wallet.stream(dear).error is None
    assert bought(wallet) == 2
    till.assert_green()


def test_settled_voucher_replays_no_stored_answer(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet)
    key = {"idempotency-key": "the-first-key-anybody-would-try"}
    body = chat("what I asked is private", max_tokens=2000)
    first = wallet.complete(body, **key)
    assert first.status_code == 200
    again = wallet.complete(body, **key)
    assert again.json() == first.json()
    top = int(row(wallet)["spent"]) // NANO_PER_BASE_UNIT
    settled(wallet, top)
    stranger = wallet.send(body, wallet.challenge(body), wallet.voucher_payload(top), **key)
    assert stranger.status_code != 200
    assert first.json()["choices"][0]["message"]["content"] not in stranger.text
    assert bought(wallet) == 1
    till.assert_green()


# 10 and 11: which channel, and whose signature.


@both
def test_channel_id_in_any_case_is_one_channel(backend: str, till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, backend=backend)
    payload = wallet.voucher_payload(CREDIT)
    signature = "0x" + payload["signature"][2:].upper()
    upper = {**payload, "channelId": "0x" + payload["channelId"][2:].upper(), "signature": signature}
    if "descriptor" in upper:
        upper["descriptor"] = {name: "0x" + value[2:].upper() for name, value in upper["descriptor"].items()}
    answer = wallet.send(b"", wallet.challenge(b""), upper)
    assert answer.status_code == 200, answer.text
    assert receipt_of(answer)["channelId"] == wallet.channel_id
    again = wallet.send(b"", wallet.challenge(b""), payload)
    assert again.status_code == 200
    assert till.rows("SELECT count(*) AS n FROM channels WHERE lower(id) = :id", id=wallet.channel_id) == [{"n": 1}]
    assert vouchers(wallet)[-1] == CREDIT
    till.assert_green()


def high_s(signature: str) -> str:
    """The other form of a signature, which the chain refuses and mathematics does not."""
    r, s, v = signature[2:66], int(signature[66:130], 16), int(signature[130:], 16)
    return f"0x{r}{ORDER - s:064x}{55 - v:02x}"


def compact(signature: str) -> str:
    """The 64 bytes of EIP-2098."""
    s, v = int(signature[66:130], 16), int(signature[130:], 16)
    return f"0x{signature[2:66]}{s | (v - 27) << 255:064x}"


def test_short_form_of_a_signature_is_as_good(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet)
    for amount in range(CREDIT, CREDIT + 6):
        payload = wallet.voucher_payload(amount)
        payload["signature"] = compact(payload["signature"])
        assert wallet.send(b"", wallet.challenge(b""), payload).status_code == 200
    assert accepted(wallet) == CREDIT + 5
    till.assert_green()


def for_another(name: str) -> Callable[[PayingWallet, PayingWallet], str]:
    """A voucher of the same amount that was signed for something else."""

    def sign(wallet: PayingWallet, other: PayingWallet) -> str:
        offer, channel_id, key = wallet.wallet.offer, wallet.channel_id, wallet.wallet.key
        domain = offer.domain
        match name:
            case "chain":
                offer = _with(offer, domain=_with(domain, chain_id=domain.chain_id + 1))
            case "escrow":
                offer = _with(offer, domain=_with(domain, escrow=other.wallet.offer.escrow))
            case "name":
                offer = _with(offer, domain=_with(domain, name=other.wallet.offer.domain.name))
            case "type":
                offer = _with(offer, domain=_with(domain, amount_bits=other.wallet.offer.domain.amount_bits))
            case "channel":
                channel_id = other.channel_id
            case "signer":
                key = new_key()
        return Wallet(offer, key).voucher(channel_id, CREDIT)

    return sign


def _with(value: Any, **changes: Any) -> Any:
    from dataclasses import replace

    return replace(value, **changes)


@pytest.mark.parametrize("what", ["chain", "escrow", "name", "type", "channel", "signer"])
@both
def test_voucher_that_was_signed_for_something_else_is_refused(
    backend: str, what: str, till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = opened(till, devnet, backend=backend)
    other = opened(till, devnet, backend="tempo-v1" if backend == "tempo-v2" else "tempo-v2")
    payload = {**wallet.voucher_payload(CREDIT), "signature": for_another(what)(wallet, other)}
    for body in (b"", SMALL):
        problem_of(wallet.send(body, wallet.challenge(body), payload), 402, "session/signer-mismatch")
    assert accepted(wallet) == 1
    till.assert_green()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        (high_s, 400),
        (lambda text: text[:-2] + "1d", 400),
        (lambda text: "0x" + "00" * 65, 400),
        (lambda text: text[:-4], 400),
        (lambda text: text + "00", 400),
        (lambda text: "0x  " + compact(text)[2:], 400),
        (lambda text: text[2:], 400),
        (lambda text: 7, 400),
        (lambda text: None, 400),
        (lambda text: f"0x{'ff' * 31}fe" + text[66:], 400),
    ],
    ids=[
        *("high s", "recovery id", "zeros", "two bytes short", "a byte long", "spaces", "no prefix", "number", "none"),
        "r beyond the order",
    ],
)
def test_signature_of_no_good_form_is_malformed(
    change: Callable[[str], Any], status: int, till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = opened(till, devnet)
    payload = wallet.voucher_payload(CREDIT)
    refused = wallet.send(b"", wallet.challenge(b""), {**payload, "signature": change(payload["signature"])})
    problem_of(refused, status, "malformed-credential")
    assert accepted(wallet) == 1
    till.assert_green()


def test_signature_that_no_key_made_is_refused(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet)
    # 5 is the abscissa of no point of the curve.
    signature = f"0x{5:064x}{1:064x}1b"
    refused = wallet.send(b"", wallet.challenge(b""), {**wallet.voucher_payload(CREDIT), "signature": signature})
    problem_of(refused, 402, "session/invalid-signature")
    till.assert_green()


@pytest.mark.parametrize(
    "source",
    [
        lambda wallet, chain: f"did:pkh:eip155:{chain.chain_id}:{Wallet(wallet.offer).address}",
        lambda wallet, chain: f"did:pkh:eip155:{chain.chain_id + 1}:{wallet.address}",
        lambda wallet, chain: wallet.address,
        lambda wallet, chain: "did:key:z6Mk",
    ],
    ids=["another account", "another chain", "no did", "another method"],
)
def test_wrong_source_is_refused(source: Any, till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet)
    for body in (b"", SMALL):
        text = wallet.credential(
            wallet.challenge(body), wallet.voucher_payload(CREDIT), source=source(wallet.wallet, devnet)
        )
        headers = {"authorization": text, **({"content-type": "application/json"} if body else {})}
        problem_of(wallet.http.post(wallet.path, content=body, headers=headers), 402, "session/signer-mismatch")
    assert accepted(wallet) == 1
    till.assert_green()


def test_source_in_any_case_and_no_source_are_taken(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet)
    challenge = wallet.challenge(b"")
    source = wallet.wallet.source.replace(wallet.wallet.address, wallet.wallet.address.upper().replace("0X", "0x"))
    text = wallet.credential(challenge, wallet.voucher_payload(CREDIT), source=source)
    assert wallet.http.post(wallet.path, headers={"authorization": text}).status_code == 200
    document = channel.document_of(wallet.credential(challenge, wallet.voucher_payload(CREDIT + 1)))
    del document["source"]
    text = channel.raw_credential(document)
    assert wallet.http.post(wallet.path, headers={"authorization": text}).status_code == 200
    till.assert_green()


# 12 and 16: descriptors and deposits.


@both
def test_foreign_descriptor_is_refused(backend: str, till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, backend=backend)
    other = opened(till, devnet, backend=backend)
    payload = {**wallet.voucher_payload(CREDIT), "descriptor": other.descriptor.to_wire()}
    problem_of(wallet.send(b"", wallet.challenge(b""), payload), 402, "session/signer-mismatch")
    for name in ("payee", "token", "operator", "payer"):
        if backend == "tempo-v1" and name == "operator":
            continue
        wrong = {**wallet.descriptor.to_wire(), name: "0x" + "11" * 20}
        for action in ("voucher", "close"):
            refused = wallet.send(
                b"",
                wallet.challenge(b""),
                {**wallet.voucher_payload(CREDIT, action=action), "descriptor": wrong},
            )
            problem_of(refused, 402, "session/signer-mismatch")
    assert accepted(wallet) == 1
    assert row(wallet)["status"] == "open"
    till.assert_green()


def test_v2_needs_its_descriptor(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet)
    payload = wallet.voucher_payload(CREDIT)
    del payload["descriptor"]
    problem_of(wallet.send(b"", wallet.challenge(b""), payload), 400, "malformed-credential")
    till.assert_green()


def test_channel_that_nobody_knows_is_gone_and_another_may_be_opened(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = funded(till, devnet)
    wallet.open_payload()
    for body in (b"", SMALL, SPOKEN):
        gone = wallet.send(body, wallet.challenge(body), wallet.voucher_payload(CREDIT))
        problem_of(gone, 410, "session/channel-not-found")
        assert wallet.pick(gone).request["suggestedDeposit"]
    till.assert_green()


def test_challenge_of_one_protocol_pays_on_no_channel_of_the_other(till: FareboxServer, devnet: TempoChain) -> None:
    old, new = opened(till, devnet, backend="tempo-v1"), opened(till, devnet)
    for wallet, other in ((old, new), (new, old)):
        for body in (b"", SMALL):
            refused = wallet.send(body, other.challenge(body), wallet.voucher_payload(CREDIT))
            problem_of(refused, 402, "session/challenge-not-found")
        assert accepted(wallet) == 1
    till.assert_green()


@both
def test_voucher_beyond_the_deposit_is_refused(backend: str, till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, backend=backend)
    for amount in (DEPOSIT + 1, 2**96 - 1):
        problem_of(wallet.update(amount), 402, "session/amount-exceeds-deposit")
    assert wallet.update(DEPOSIT).status_code == 200
    assert accepted(wallet) == DEPOSIT
    till.assert_green()


def test_voucher_does_not_overwrite_a_fresher_deposit(till: FareboxServer, devnet: TempoChain) -> None:
    """The payer tops up, and a voucher that is signed before it is known arrives right after."""
    wallet = opened(till, devnet)
    assert wallet.top_up(DEPOSIT).status_code == 200
    for amount in (10, DEPOSIT + 10):
        assert wallet.update(amount).status_code == 200
        assert row(wallet)["deposit"] == 2 * DEPOSIT
    till.assert_green()


def test_deposit_that_was_added_behind_our_back_is_seen_when_a_voucher_needs_it(
    till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = opened(till, devnet)
    assert wallet.opening is not None
    payload = wallet.wallet.top_up_v2(wallet.opening, DEPOSIT)
    httpx.post(
        devnet.rpc_url,
        json={"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransactionSync", "params": [payload["transaction"]]},
        timeout=30,
    ).raise_for_status()
    assert wallet.update(DEPOSIT + 5).status_code == 200
    assert row(wallet)["deposit"] == 2 * DEPOSIT
    till.assert_green()
