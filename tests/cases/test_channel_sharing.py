"""Cases 2, 3 and 7: requests that share a channel, streams that wait for its vouchers, and what a stream says."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import monotonic

import pytest

from tests.cases import channel
from tests.cases.channel import SMALL, SPOKEN, bought, charged, funded, held, opened, problem_of, row, until, waiting
from tests.devnet_fixtures import TempoChain
from tests.dialects import answers
from tests.serving import FareboxServer
from tests.sessions import Event, PayingWallet, Streamed, chat, receipt_of

NANO_PER_BASE_UNIT = 1000
PATIENCE_S = 1.0
MANY = 12

both = pytest.mark.parametrize("backend", ["tempo-v2", "tempo-v1"])


@pytest.fixture(scope="module")
def hasty(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, devnet: TempoChain
) -> Iterator[FareboxServer]:
    """A server that waits for vouchers a moment only, and takes few of them."""
    with channel.shop(
        tmp_path_factory.mktemp("hasty"),
        sqlite_template,
        devnet,
        mpp={"voucher_timeout_s": PATIENCE_S, "vouchers_per_second": 1},
        server={"silence_comment_s": 0.1},
    ) as server:
        yield server


def ceiling(wallet: PayingWallet, body: bytes) -> int:
    """What a request must be able to hold, in base units: its refusal says it."""
    refused = wallet.send(body, wallet.challenge(body), wallet.voucher_payload(wallet.cumulative))
    return int(problem_of(refused, 402, "session/insufficient-balance")["requiredCumulative"])


def required(event: Event) -> int:
    return int(event.json["requiredCumulative"])


def rest(events: Iterator[Event]) -> Streamed:
    """The rest of a stream."""
    return Streamed(list(events), None)  # type: ignore[arg-type]


# 2: at once.


@both
def test_requests_at_once_on_credit_for_one_pass_one(backend: str, till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, backend=backend)
    body = chat("[[sandbox first_ms=300 tokens=50]]", max_tokens=100)
    amount = ceiling(wallet, body)
    challenges = [wallet.challenge(body) for _ in range(MANY)]
    with ThreadPoolExecutor(MANY) as pool:
        found = list(pool.map(lambda each: wallet.send(body, each, wallet.voucher_payload(amount)), challenges))
    assert sorted(answer.status_code for answer in found) == [200] + [402] * (MANY - 1)
    assert bought(wallet) == 1
    assert charged(wallet) == row(wallet)["spent"] <= amount * NANO_PER_BASE_UNIT
    assert held(wallet) == 0
    till.assert_green()


def test_requests_at_once_are_each_charged_once(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, credit=500_000)
    challenges = [wallet.challenge(body) for body in (SMALL, SPOKEN) * MANY]
    with ThreadPoolExecutor(2 * MANY) as pool:
        found = list(
            pool.map(
                lambda number: wallet.send(
                    (SMALL, SPOKEN)[number % 2], challenges[number], wallet.voucher_payload(500_000 + number)
                ),
                range(2 * MANY),
            )
        )
    assert {answer.status_code for answer in found} == {200}
    outcomes = channel.outcomes(wallet)
    assert len(outcomes) == 2 * MANY
    assert len({outcome["charged"] for outcome in outcomes}) == 1
    assert charged(wallet) == row(wallet)["spent"] == 2 * MANY * outcomes[0]["charged"]
    # No receipt says more than was spent, and one of them says all.
    spent = [int(receipt_of(answer)["spent"]) for answer in found[::2]]
    assert max(spent) <= row(wallet)["spent"] // NANO_PER_BASE_UNIT
    till.assert_green()


def test_sixty_small_requests_fit_into_one_deposit(till: FareboxServer, devnet: TempoChain) -> None:
    """Each is quoted a hundred times what it costs; a client that authorised the quotes would be out of money soon."""
    deposit = 60_000
    wallet = funded(till, devnet)
    assert wallet.open(deposit).status_code == 200
    body = chat("hi [[sandbox tokens=10]]")
    quote = 0
    for _ in range(60):
        answer = wallet.complete(body)
        assert answer.status_code == 200, answer.text
        receipt = receipt_of(answer)
        quote = max(quote, int(receipt["acceptedCumulative"]) - int(receipt["spent"]))
    assert bought(wallet) == 60
    assert 60 * quote > 10 * deposit
    assert wallet.cumulative <= deposit == row(wallet)["deposit"]
    assert charged(wallet) == row(wallet)["spent"]
    till.assert_green()


# 3: streams that wait.


@both
def test_stream_asks_for_vouchers_as_it_goes_and_ends_with_a_receipt(
    backend: str, till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = funded(till, devnet, backend)
    seen = wallet.stream(chat("[[sandbox tokens=2000]]", stream=True, max_tokens=3000), payload=wallet.open_payload())
    assert seen.error is None
    assert seen.pauses >= 2
    for event in seen.events:
        if event.name == "payment-need-voucher":
            assert set(event.json) == {"channelId", "requiredCumulative", "acceptedCumulative", "deposit"}
            assert all(isinstance(value, str) for value in event.json.values())
            assert event.json["channelId"] == wallet.channel_id
            assert int(event.json["acceptedCumulative"]) < required(event) <= int(event.json["deposit"])
    assert [event.name for event in seen.events[-2:]] == ["payment-receipt", "message"]
    assert seen.events[-1].data == "[DONE]"
    assert int(seen.receipt["spent"]) == row(wallet)["spent"] // NANO_PER_BASE_UNIT
    assert int(seen.receipt["acceptedCumulative"]) <= wallet.cumulative
    assert seen.receipt["units"] > 2000
    assert "private" in seen.headers["cache-control"] or "no-cache" in seen.headers["cache-control"]
    till.assert_green()


def test_short_voucher_serves_the_first_of_two_and_the_second_asks_again(
    till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = opened(till, devnet)
    first = chat("[[sandbox tokens=100]]", stream=True, max_tokens=100)
    second = chat("a longer prompt " * 60 + "[[sandbox tokens=100]]", stream=True, max_tokens=100)
    with ExitStack() as stack:
        asked, one = stack.enter_context(waiting(wallet, first))
        asked_too, two = stack.enter_context(waiting(wallet, second))
        # The second stands behind the first, and asks for both.
        assert required(asked_too) > required(asked)
        # Short even for the first: it asks again for the same.
        assert wallet.update(10).status_code == 200
        while (again := until(one, "payment-need-voucher")).json["acceptedCumulative"] != "10":
            # The voucher that came with the second request was one base unit more, and as short.
            assert required(again) == required(asked)
        assert required(again) == required(asked)
        assert wallet.update(required(asked)).status_code == 200
        served = rest(one)
        assert served.error is None
        assert served.text
        more = until(two, "payment-need-voucher")
        assert int(more.json["acceptedCumulative"]) == required(asked) < required(more)
        assert wallet.update(required(more)).status_code == 200
        assert rest(two).error is None
    assert bought(wallet) == 2
    assert charged(wallet) == row(wallet)["spent"]
    till.assert_green()


def test_one_voucher_serves_all_who_wait(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet)
    with ExitStack() as stack:
        waits = [stack.enter_context(waiting(wallet, SPOKEN)) for _ in range(4)]
        asked = [event for event, _ in waits]
        assert [required(event) for event in asked] == sorted({required(event) for event in asked})
        assert wallet.update(required(asked[-1])).status_code == 200
        for _, events in waits:
            seen = rest(events)
            assert (seen.error, bool(seen.text)) == (None, True)
    assert bought(wallet) == 4
    assert held(wallet) == 0
    till.assert_green()


def test_concurrent_streams_may_present_equal_and_lower_vouchers(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, credit=400_000)
    for amount in (400_000, 390_000, 20_000):
        challenge = wallet.challenge(SPOKEN)
        with wallet.streaming(SPOKEN, challenge, wallet.voucher_payload(amount)) as (response, events):
            assert response.status_code == 200
            assert rest(events).error is None
    assert row(wallet)["accepted"] == 400_000 * NANO_PER_BASE_UNIT
    # A voucher that does not cover what is spent already buys nothing of what others paid for.
    refused = wallet.send(SMALL, wallet.challenge(SMALL), wallet.voucher_payload(100))
    problem_of(refused, 402, "session/insufficient-balance")
    assert bought(wallet) == 3
    till.assert_green()


def test_silence_of_a_pause_is_broken_by_comments(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet)
    challenge = wallet.challenge(SPOKEN)
    headers = {"content-type": "application/json"}
    headers["authorization"] = wallet.credential(challenge, wallet.voucher_payload(2))
    with wallet.http.stream("POST", wallet.path, content=SPOKEN, headers=headers) as response:
        lines = response.iter_lines()
        comments = 0
        while comments < 3:
            comments += next(lines).startswith(":")
        assert wallet.update(50_000).status_code == 200
        assert "data: [DONE]" in list(lines)
    till.assert_green()


def test_client_that_leaves_while_it_waits_costs_nothing_and_holds_nobody_up(
    till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = opened(till, devnet)
    with ExitStack() as stack:
        with waiting(wallet, SPOKEN):
            asked, events = stack.enter_context(waiting(wallet, SPOKEN))
        # Alone in the line now, it is served by less than it asked for.
        assert wallet.update(required(asked) // 2 + 10).status_code == 200
        assert rest(events).error is None
    assert bought(wallet) == 1
    assert held(wallet) == 0
    till.assert_green()


@both
def test_pause_that_expires_ends_in_an_error_and_a_receipt(
    backend: str, hasty: FareboxServer, devnet: TempoChain
) -> None:
    wallet = opened(hasty, devnet, backend=backend)
    before = monotonic()
    with waiting(wallet, SPOKEN) as (_, events):
        seen = rest(events)
    assert monotonic() - before >= PATIENCE_S * 0.9
    assert seen.error is not None
    assert seen.error["code"] == "no_voucher"
    assert seen.events[-1].name == "payment-receipt"
    assert seen.receipt["spent"] == "0"
    assert bought(wallet) == 0
    hasty.assert_green()


def test_pause_in_mid_stream_that_expires_bills_what_was_delivered(hasty: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(hasty, devnet)
    with waiting(wallet, chat("[[sandbox tokens=2000]]", stream=True, max_tokens=3000)) as (asked, events):
        assert wallet.update(required(asked) - 3).status_code == 200
        more = until(events, "payment-need-voucher")
        assert required(more) > int(more.json["acceptedCumulative"])
        seen = rest(events)
    assert seen.error is not None
    receipt = seen.receipt
    assert 0 < int(receipt["spent"]) <= int(receipt["acceptedCumulative"]) == required(asked) - 3
    assert [outcome["status"] for outcome in channel.outcomes(wallet)] == ["exhausted"]
    assert charged(wallet) == row(wallet)["spent"]
    assert held(wallet) == 0
    hasty.assert_green()


def test_vouchers_that_come_too_fast_are_told_to_wait(hasty: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(hasty, devnet)
    other = opened(hasty, devnet)
    for amount in range(2, 40):
        answer = wallet.update(amount)
        if answer.status_code != 200:
            break
    problem_of(answer, 429, answer.json()["type"].rpartition("problems/")[2])
    assert answer.headers["retry-after"] == "1"
    assert amount < 20
    # Nobody else is slowed down.
    assert other.update(2).status_code == 200
    hasty.assert_green()


@both
def test_stream_that_needs_more_than_the_deposit(backend: str, till: FareboxServer, devnet: TempoChain) -> None:
    """Clients of v2 add to it and go on; those of v1 never do: their stream ends when the deposit is gone."""
    wallet = funded(till, devnet, backend)
    body = chat("[[sandbox tokens=1500]]", stream=True, max_tokens=2000)
    seen = wallet.stream(body, payload=wallet.open_payload(3000))
    spent = row(wallet)["spent"]
    assert charged(wallet) == spent
    assert int(seen.receipt["spent"]) == spent // NANO_PER_BASE_UNIT
    if backend == "tempo-v2":
        assert seen.error is None
        assert spent > 3000 * NANO_PER_BASE_UNIT
        assert row(wallet)["deposit"] > 3000
    else:
        assert all(required(event) <= 3000 for event in seen.events if event.name == "payment-need-voucher")
        # The provider was told what the deposit can still pay for.
        assert [outcome["finish_reason"] for outcome in channel.outcomes(wallet)] == ["length"]
        assert 1500 * NANO_PER_BASE_UNIT < spent <= 3000 * NANO_PER_BASE_UNIT
        assert row(wallet)["deposit"] == 3000
    till.assert_green()


# 7: what a stream says.


def test_text_and_events_of_a_provider_forge_no_event_of_ours(till: FareboxServer, devnet: TempoChain) -> None:
    """The provider's text has line breaks and ``event: payment-receipt``; it also sends such an event of its own."""
    wallet = opened(till, devnet, credit=100_000)
    body = json.dumps({"model": "forging", "messages": [{"role": "user", "content": "hi"}], "stream": True}).encode()
    challenge = wallet.challenge(body)
    headers = {"content-type": "application/json"}
    headers["authorization"] = wallet.credential(challenge, wallet.voucher_payload(100_001))
    answer = wallet.http.post(wallet.path, content=body, headers=headers)
    assert answer.status_code == 200
    assert answer.content.count(b"\r") == 0
    names = [line for line in answer.text.split("\n") if line.startswith("event:")]
    assert names == ["event: payment-receipt"]
    assert answers.FORGED_DATA not in answer.text
    events = [block for block in answer.text.split("\n\n") if block and not block.startswith(":")]
    chunks = [json.loads(block[6:]) for block in events if block.startswith("data: {")]
    text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
    assert text == answers.HOSTILE_TEXT
    receipt = json.loads(events[-2].partition("\ndata: ")[2])
    assert int(receipt["spent"]) == row(wallet)["spent"] // NANO_PER_BASE_UNIT
    till.assert_green()


@pytest.mark.parametrize("stream", [False, True])
def test_trouble_after_an_open_never_says_that_nothing_is_open(
    stream: bool, till: FareboxServer, devnet: TempoChain
) -> None:
    """A bare refusal makes clients open again, or forget the channel and the money in it."""
    wallet = funded(till, devnet)
    body = chat("[[sandbox fail=status:500]]", stream=stream, max_tokens=50)
    payload = wallet.open_payload(amount=5000)
    answer = wallet.send(body, wallet.challenge(body), payload)
    if stream:
        assert answer.status_code == 200
        assert '"error"' in answer.text
        assert "event: payment-receipt" in answer.text
    else:
        problem_of(answer, 402, "payment-required")
        assert channel.snapshot_of(wallet, answer)["acceptedCumulative"] == "5000"
    assert row(wallet)["spent"] == 0
    assert held(wallet) == 0
    # The same open again is no second channel.
    body = chat("again", stream=stream, max_tokens=50)
    assert wallet.send(body, wallet.challenge(body), payload).status_code == 200
    assert till.rows("SELECT count(*) AS n FROM channels WHERE payer = :id", id=wallet.wallet.address) == [{"n": 1}]
    till.assert_green()
