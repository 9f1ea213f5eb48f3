"""A request with an ``Idempotency-Key`` runs and is charged once; its answer is given again as it was delivered."""

import httpx
import pytest

from app.ledger.account import REFUNDS, customer_account
from app.ledger.transfer import REFUND
from tests.cases.chat import PROMPT, charge, estimated, eventually, owed, stream, streaming, whole
from tests.dialects import answers
from tests.dialects.server import GATED_AFTER, DialectServer
from tests.serving import FareboxServer, Payer

KEY = {"Idempotency-Key": "the same request"}
BEFORE_GATE = "".join(answers.CONTENT[:GATED_AFTER])
REPORTED = owed(prompt=11, output=5)
USAGE = {"stream_options": {"include_usage": True}}


def conflict(answer: httpx.Response) -> str:
    """The code of a conflict."""
    assert answer.status_code == 409
    error = answer.json()["error"]
    assert (error["type"], error["param"]) == ("idempotency_error", "Idempotency-Key")
    code: str = error["code"]
    return code


def drain(farebox: FareboxServer, payer: Payer) -> None:
    """Take all of the payer's free funds."""
    account = farebox.balance(payer)
    free = account["credits_posted"] - account["debits_posted"] - account["debits_pending"]
    farebox.post(REFUND, customer_account(payer.customer_id), REFUNDS, free)


@pytest.mark.parametrize("parameters", [{}, {"stream": True}, {"stream": True, **USAGE}])
def test_answer_is_replayed_to_the_byte_and_not_charged_again(
    farebox: FareboxServer, shared_dialects: DialectServer, parameters: dict[str, object]
) -> None:
    payer = farebox.payer()
    shared_dialects.clear()
    first = whole(farebox, payer, "dialect/deepseek", headers=KEY, **parameters)
    assert first.status_code == 200
    assert "idempotent-replayed" not in first.headers
    for _ in range(2):
        again = whole(farebox, payer, "dialect/deepseek", headers=KEY, **parameters)
        assert again.status_code == 200
        assert again.content == first.content
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["x-request-id"] == first.headers["x-request-id"]
        assert again.headers["content-type"] == first.headers["content-type"]
    assert charge(farebox, payer) == owed(prompt=7, cached=4, output=5, reasoning=3)
    assert len(shared_dialects.requests) == 1
    farebox.assert_green()


def test_key_belongs_to_its_customer(farebox: FareboxServer) -> None:
    payers = [farebox.payer(), farebox.payer()]
    replies = [whole(farebox, payer, "dialect/ok", headers=KEY) for payer in payers]
    assert ["idempotent-replayed" in reply.headers for reply in replies] == [False, False]
    assert [charge(farebox, payer) for payer in payers] == [REPORTED, REPORTED]
    farebox.assert_green()


def test_other_body_under_the_same_key_is_refused(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    assert whole(farebox, payer, "dialect/ok", headers=KEY).status_code == 200
    other = whole(farebox, payer, "dialect/ok", headers=KEY, content=PROMPT + "!")
    assert conflict(other) == "idempotency_body_differs"
    assert other.headers["x-should-retry"] == "false"
    assert charge(farebox, payer) == REPORTED
    farebox.assert_green()


def test_running_request_is_not_started_again(farebox: FareboxServer, shared_dialects: DialectServer) -> None:
    payer = farebox.payer()
    shared_dialects.clear()
    with streaming(farebox, payer, "dialect/gated", headers=KEY) as running:
        running.read_until(lambda found: found.text == BEFORE_GATE)
        again = whole(farebox, payer, "dialect/gated", headers=KEY, stream=True)
        assert conflict(again) == "idempotency_running"
        assert again.headers["retry-after"] == "1"
        shared_dialects.last.release()
        running.read_all()
    assert running.done
    assert stream(farebox, payer, "dialect/gated", headers=KEY).raw == running.raw
    assert charge(farebox, payer) == REPORTED
    assert len(shared_dialects.requests) == 1
    farebox.assert_green()


def test_aborted_stream_is_replayed_to_the_delivered_point_and_ends_in_an_error(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    with streaming(farebox, payer, "dialect/gated", headers=KEY) as aborted:
        aborted.read_until(lambda found: found.text == BEFORE_GATE)
    assert charge(farebox, payer) == estimated(BEFORE_GATE)
    again = stream(farebox, payer, "dialect/gated", headers=KEY)
    assert again.raw.startswith(aborted.raw)
    assert again.text == BEFORE_GATE
    assert again.events[-1]["error"]["code"] == "stream_interrupted"
    assert not again.done
    assert charge(farebox, payer) == estimated(BEFORE_GATE)
    farebox.assert_green()


def test_stream_that_ran_out_of_funds_is_replayed_without_what_was_not_paid(
    shop: FareboxServer, shared_dialects: DialectServer
) -> None:
    payer = shop.payer()
    with streaming(shop, payer, "gated", headers=KEY) as first:
        first.read_until(lambda found: found.text == BEFORE_GATE)
        account = customer_account(payer.customer_id)
        eventually(lambda: len(shop.rows("SELECT id FROM holds WHERE account_id = :id", id=account)) == 3)
        drain(shop, payer)
        shared_dialects.last.release()
        first.read_all()
    assert first.error is not None
    assert stream(shop, payer, "gated", headers=KEY).raw == first.raw
    assert first.text == BEFORE_GATE
    shop.wait_settled(payer, requests=1)
    (outcome,) = shop.outcomes(payer)
    assert outcome["charged"] in {estimated(BEFORE_GATE), owed(prompt=11, output=3)}
    shop.assert_green()


def test_stream_that_failed_after_content_is_replayed_with_its_error(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    first = stream(farebox, payer, "dialect/error_late", headers=KEY)
    assert first.error is not None
    assert stream(farebox, payer, "dialect/error_late", headers=KEY).raw == first.raw
    assert charge(farebox, payer) == estimated(first.text)
    farebox.assert_green()


@pytest.mark.parametrize("streams", [False, True])
def test_failed_request_that_cost_nothing_gives_its_key_back(farebox: FareboxServer, streams: bool) -> None:
    payer, content = farebox.payer(), f"[[sandbox tokens=4 fail=status:503 times=1]]{PROMPT}{streams}"
    failed = whole(farebox, payer, "sandbox/echo", content=content, headers=KEY, stream=streams)
    assert failed.status_code == 502
    again = whole(farebox, payer, "sandbox/echo", content=content, headers=KEY, stream=streams)
    assert again.status_code == 200
    assert "idempotent-replayed" not in again.headers
    farebox.wait_settled(payer, requests=2)
    charges = [outcome["charged"] for outcome in farebox.outcomes(payer)]
    assert charges == [0, owed(prompt=-(-len(content) // 4), output=4)]
    farebox.assert_green()


def test_refused_request_does_not_take_its_key(farebox: FareboxServer) -> None:
    payer = farebox.payer("0")
    assert whole(farebox, payer, "dialect/ok", headers=KEY).status_code == 402
    assert whole(farebox, payer, "dialect/ok", headers=KEY).status_code == 402
    assert farebox.outcomes(payer) == []
    farebox.assert_green()


@pytest.mark.parametrize("streams", [False, True])
def test_answer_past_the_bound_is_not_kept_and_says_so(farebox: FareboxServer, streams: bool) -> None:
    payer = farebox.payer()
    first = whole(farebox, payer, "dialect/big", headers=KEY, stream=streams, max_tokens=100_000)
    assert len(first.content) > answers.BIG_BYTES
    again = whole(farebox, payer, "dialect/big", headers=KEY, stream=streams, max_tokens=100_000)
    assert conflict(again) == "idempotency_answer_not_kept"
    assert again.headers["x-should-retry"] == "false"
    assert first.headers["x-request-id"] in again.json()["error"]["message"]
    assert charge(farebox, payer) == owed(prompt=11, output=answers.BIG_BYTES // 4)
    farebox.assert_green()


def test_stored_answer_is_not_readable_in_the_database(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    assert whole(farebox, payer, "dialect/ok", headers=KEY).status_code == 200
    (claim,) = farebox.rows(
        "SELECT answer, key_hash FROM idempotency_claims WHERE account_id = :id",
        id=customer_account(payer.customer_id),
    )
    assert claim["answer"]
    assert answers.TEXT.encode() not in claim["answer"]
    assert KEY["Idempotency-Key"] not in claim["key_hash"]
    farebox.assert_green()
