"""No balance goes below its limit, no hold is another request's, and money leaves once."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.cases.chat import (
    NANO_USD_PER_TOKEN,
    PROMPT,
    TIMEOUT_S,
    Stream,
    charge,
    estimated,
    eventually,
    owed,
    stream,
    streaming,
    usd,
    whole,
)
from tests.cases.conftest import WINDOW_TOKENS
from tests.dialects import answers
from tests.dialects.server import GATED_AFTER, DialectServer
from tests.serving import ADMIN_TOKEN, FareboxServer, Payer

BEFORE_GATE = "".join(answers.CONTENT[:GATED_AFTER])
REPORTED = owed(prompt=11, output=5)
TOKENS_PER_MESSAGE = 16
# What a hold reckons with: a token a byte of prompt, and each output token at the dearest price it can have.
PROMPT_BOUND = (len(PROMPT) + TOKENS_PER_MESSAGE) * NANO_USD_PER_TOKEN["input"]
TOKEN_BOUND = NANO_USD_PER_TOKEN["reasoning"]
FIRST_WINDOW_TOKENS = 256


def free(farebox: FareboxServer, payer: Payer) -> int:
    """What the payer can still spend, in nano-USD."""
    row = farebox.balance(payer)
    left: int = row["credits_posted"] + row["credit_limit"] - row["debits_posted"] - row["debits_pending"]
    return left


def admin(farebox: FareboxServer, method: str, path: str, body: Any = None) -> httpx.Response:
    """A call of the admin API."""
    headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
    return httpx.request(method, f"{farebox.url}/admin/api/{path}", json=body, headers=headers, timeout=TIMEOUT_S)


class TestOverrun:
    def test_overrun_is_taken_from_free_funds_and_the_rest_is_a_loss_never_anothers_hold(
        self, shop: FareboxServer, shared_dialects: DialectServer
    ) -> None:
        payer = shop.payer("0.10")
        shared_dialects.clear()
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(whole, shop, payer, "slow_head", max_tokens=1000)
            assert shared_dialects.wait_for_requests(1)
            held = shop.balance(payer)["debits_pending"]
            assert held == PROMPT_BOUND + 1000 * TOKEN_BOUND
            content = "[[sandbox tokens=3 lie=100000]]" + PROMPT
            answer = whole(shop, payer, "lying", content=content, max_tokens=10)
            assert answer.status_code == 200
            assert shop.balance(payer)["debits_pending"] == held
            assert free(shop, payer) == 0
            shared_dialects.last.release()
            assert other.result().status_code == 200
        shop.wait_settled(payer, requests=2)
        used = {row["model"]: row for row in shop.outcomes(payer)}
        price = owed(prompt=-(-len(content) // 4), output=100_000)
        charged = 100_000_000 - held
        assert (used["lying"]["price"], used["lying"]["charged"], used["lying"]["loss"]) == (
            price,
            charged,
            price - charged,
        )
        assert (used["slow_head"]["charged"], used["slow_head"]["loss"]) == (REPORTED, 0)
        assert answer.headers["x-farebox-cost"] == usd(charged)
        assert free(shop, payer) == held - REPORTED
        shop.assert_green()

    @pytest.mark.parametrize("streams", [False, True])
    def test_output_beyond_the_limit_is_charged_whole_where_funds_are_free(
        self, shop: FareboxServer, streams: bool
    ) -> None:
        payer, content = shop.payer(), "[[sandbox overrun=50]]" + PROMPT
        assert whole(shop, payer, "plain", content=content, max_tokens=10, stream=streams).status_code == 200
        charged = charge(shop, payer)
        assert charged == owed(prompt=-(-len(content) // 4), output=60)
        assert charged > (len(content) + TOKENS_PER_MESSAGE) * 1000 + 10 * TOKEN_BOUND
        assert shop.outcomes(payer)[0]["loss"] == 0
        shop.assert_green()


class TestLimit:
    @pytest.mark.parametrize(("credit", "credit_limit"), [("1.00", "0"), ("0", "1.00")])
    def test_stream_whose_funds_run_out_ends_in_an_error_and_bills_what_was_delivered(
        self, shop: FareboxServer, shared_dialects: DialectServer, credit: str, credit_limit: str
    ) -> None:
        payer = shop.payer(credit, credit_limit=credit_limit)
        shared_dialects.clear()
        with streaming(shop, payer, "gated") as found, ThreadPoolExecutor(1) as pool:
            found.read_until(lambda stream: stream.text == BEFORE_GATE)
            # Its windows: two are used up, and a third of 7 tokens is held ahead for 9 bytes of text.
            held = PROMPT_BOUND + 3 * WINDOW_TOKENS * TOKEN_BOUND
            eventually(lambda: bool(shop.balance(payer)["debits_pending"] == held))
            rest = (free(shop, payer) - PROMPT_BOUND) // TOKEN_BOUND
            other = pool.submit(whole, shop, payer, "slow_head", max_tokens=rest)
            assert shared_dialects.wait_for_requests(2)
            shared_dialects.requests[0].release()
            found.read_all()
            shared_dialects.requests[1].release()
            assert other.result().status_code == 200
        assert found.text == BEFORE_GATE
        assert found.error is not None
        assert (found.error["type"], found.error["code"]) == ("billing_error", "insufficient_balance")
        assert not found.done
        shop.wait_settled(payer, requests=2)
        used = {row["model"]: row for row in shop.outcomes(payer)}
        assert (used["gated"]["status"], used["gated"]["estimated"]) == ("exhausted", 1)
        # Our count, or the delivered share of the provider's if its report came in the same read: 14 of 24 bytes.
        assert used["gated"]["charged"] in {estimated(BEFORE_GATE), owed(prompt=11, output=3)}
        assert used["slow_head"]["charged"] == REPORTED
        assert free(shop, payer) == 10**9 - used["gated"]["charged"] - REPORTED
        shop.assert_green()

    def test_long_streams_together_cannot_drive_a_balance_below_its_limit(self, farebox: FareboxServer) -> None:
        payer, streams, content = farebox.payer("0.04"), 6, "[[sandbox tokens=2000]]"
        with ThreadPoolExecutor(streams) as pool:
            ended = list(pool.map(lambda _: stream(farebox, payer, "sandbox/echo", content=content), range(streams)))
        admitted = [found for found in ended if found.status == 200]
        farebox.wait_settled(payer, requests=len(admitted))
        charged = {row["request_id"]: row["charged"] for row in farebox.outcomes(payer)}
        for found in admitted:
            tokens = len(found.text) // 4
            cost = charged.pop(found.headers["x-request-id"])
            if found.done:
                assert cost == owed(prompt=6, output=tokens)
            else:
                assert _ran_out(found)
                # Our own count: by a ratio between one and sixteen bytes a token.
                assert owed(output=tokens // 4) <= cost <= owed(prompt=len(content), output=4 * tokens)
        assert charged == {}
        outcomes = farebox.outcomes(payer)
        assert sum(row["loss"] for row in outcomes) == 0
        assert len(admitted) < streams or any(len(found.text) < 8000 for found in admitted)
        assert 0 <= free(farebox, payer) == 40_000_000 - sum(row["charged"] for row in outcomes)
        farebox.assert_green()

    def test_large_balance_is_held_like_any_other(self, farebox: FareboxServer, shared_dialects: DialectServer) -> None:
        payer = farebox.payer("900000.00")
        with streaming(farebox, payer, "dialect/gated") as found:
            found.read_until(lambda stream: stream.text == BEFORE_GATE)
            held = farebox.balance(payer)["debits_pending"]
            assert held == PROMPT_BOUND + FIRST_WINDOW_TOKENS * TOKEN_BOUND
            shared_dialects.last.release()
            found.read_all()
        assert charge(farebox, payer) == REPORTED
        farebox.assert_green()

    def test_large_balance_is_refused_like_any_other(self, shop: FareboxServer) -> None:
        payer = shop.payer("400000.00")
        refused = whole(shop, payer, "dear", max_tokens=500_000)
        assert refused.status_code == 402
        assert shop.outcomes(payer) == []
        assert whole(shop, payer, "dear", content="[[sandbox tokens=1]]", max_tokens=300_000).status_code == 200
        assert charge(shop, payer) == 5 * 1000 + 10**9
        shop.assert_green()


class TestAffordable:
    @pytest.mark.parametrize("streams", [False, True])
    @pytest.mark.parametrize("parameter", ["max_tokens", "max_completion_tokens"])
    def test_limit_beyond_the_funds_is_refused_with_what_would_be_affordable(
        self, farebox: FareboxServer, streams: bool, parameter: str
    ) -> None:
        payer = farebox.payer("0.001")

        def limited(tokens: int) -> httpx.Response:
            parameters: dict[str, Any] = {parameter: tokens, "stream": streams}
            return whole(farebox, payer, "sandbox/echo", **parameters)

        refused = limited(1000)
        assert refused.status_code == 402
        error = refused.json()["error"]
        assert (error["type"], error["code"], error["param"]) == ("billing_error", "insufficient_balance", parameter)
        assert error["required"] == usd(PROMPT_BOUND + 1000 * TOKEN_BOUND)
        assert error["available"] == "0.001"
        affordable = error["affordable_tokens"]
        assert affordable == (1_000_000 - PROMPT_BOUND) // TOKEN_BOUND
        assert f"{parameter} to at most {affordable}" in error["message"]
        assert refused.headers["x-should-retry"] == "false"
        assert limited(affordable + 1).status_code == 402
        assert limited(affordable).status_code == 200
        farebox.wait_settled(payer, requests=1)
        farebox.assert_green()

    @pytest.mark.parametrize("streams", [False, True])
    def test_defaulted_limit_is_clipped_to_the_funds_and_the_answer_says_so(
        self, farebox: FareboxServer, streams: bool
    ) -> None:
        content = "[[sandbox tokens=500]]"
        bound = (len(content) + TOKENS_PER_MESSAGE) * 1000
        payer = farebox.payer(usd(bound + 100 * TOKEN_BOUND))
        answer = whole(farebox, payer, "sandbox/echo", content=content, stream=streams)
        assert answer.status_code == 200
        assert answer.headers["x-farebox-max-tokens"] == "100"
        assert charge(farebox, payer) == owed(prompt=-(-len(content) // 4), output=100)
        assert farebox.outcomes(payer)[0]["finish_reason"] == "length"
        farebox.assert_green()

    def test_ample_funds_clip_nothing(self, farebox: FareboxServer) -> None:
        payer = farebox.payer()
        assert "x-farebox-max-tokens" not in whole(farebox, payer, "sandbox/echo").headers
        farebox.assert_green()

    @pytest.mark.parametrize("choices", [1, 3])
    @pytest.mark.parametrize("streams", [False, True])
    def test_funds_for_one_more_token_buy_that_token(self, farebox: FareboxServer, streams: bool, choices: int) -> None:
        least = PROMPT_BOUND + choices * TOKEN_BOUND
        poor = farebox.payer(usd(least - 1))
        refused = whole(farebox, poor, "sandbox/echo", stream=streams, n=choices)
        assert (refused.status_code, refused.json()["error"]["affordable_tokens"]) == (402, 0)
        payer = farebox.payer(usd(least))
        answer = whole(farebox, payer, "sandbox/echo", stream=streams, n=choices)
        assert answer.status_code == 200
        assert answer.headers["x-farebox-max-tokens"] == "1"
        assert charge(farebox, payer) == owed(prompt=8, output=choices)
        farebox.assert_green()


class TestRetrieval:
    @pytest.mark.parametrize("streams", [False, True])
    def test_looking_at_what_was_bought_is_never_charged(self, farebox: FareboxServer, streams: bool) -> None:
        payer, key = farebox.payer(), {"Idempotency-Key": "kept"}
        answer = whole(farebox, payer, "dialect/ok", headers=key, stream=streams)
        request_id = answer.headers["x-request-id"]
        before = farebox.balance(payer)
        for _ in range(2):
            for path in (f"generations/{request_id}", "usage", "usage?group_by=model", "credits", "balance", "key"):
                found = httpx.get(f"{farebox.url}/v1/{path}", headers=payer.headers, timeout=TIMEOUT_S)
                assert found.status_code == 200
            assert whole(farebox, payer, "dialect/ok", headers=key, stream=streams).content == answer.content
        generation = httpx.get(f"{farebox.url}/v1/generations/{request_id}", headers=payer.headers, timeout=TIMEOUT_S)
        assert generation.json()["cost"] == usd(REPORTED)
        assert farebox.balance(payer) == before
        assert charge(farebox, payer) == REPORTED
        farebox.assert_green()

    def test_generation_is_its_owners_alone(self, farebox: FareboxServer) -> None:
        owner, stranger = farebox.payer(), farebox.payer()
        path = f"{farebox.url}/v1/generations/{whole(farebox, owner, 'dialect/ok').headers['x-request-id']}"
        seen = [httpx.get(path, headers=each.headers, timeout=TIMEOUT_S).status_code for each in (owner, stranger)]
        assert seen == [200, 404]
        farebox.assert_green()


class TestRefunds:
    def test_refund_is_recorded_before_it_is_paid_out_and_each_once(self, farebox: FareboxServer) -> None:
        payer = farebox.payer("5.00")
        refund = {"id": f"goodbye-{payer.customer_id}", "customer_id": payer.customer_id, "amount": "2.00"}
        recorded = admin(farebox, "POST", "refunds", refund)
        assert (recorded.status_code, recorded.json()["first"], recorded.json()["paid_at"]) == (201, True, None)
        assert free(farebox, payer) == 3_000_000_000
        assert admin(farebox, "POST", "refunds", refund).json()["first"] is False
        paid = [admin(farebox, "POST", f"refunds/{refund['id']}/paid", {}).json() for _ in range(2)]
        assert [each["first"] for each in paid] == [True, False]
        assert paid[0]["paid_at"] == paid[1]["paid_at"] is not None
        assert free(farebox, payer) == 3_000_000_000
        moved = farebox.rows("SELECT kind, amount FROM transfers WHERE id LIKE :id", id=f"refund:{refund['id']}%")
        assert sorted((row["kind"], row["amount"]) for row in moved) == [
            ("refund", 2_000_000_000),
            ("refund_paid", 2_000_000_000),
        ]
        farebox.assert_green()

    def test_refund_asked_for_at_once_many_times_is_made_once(self, farebox: FareboxServer) -> None:
        payer, times = farebox.payer("5.00"), 8
        refund = {"id": f"hasty-{payer.customer_id}", "customer_id": payer.customer_id, "amount": "2.00"}
        with ThreadPoolExecutor(times) as pool:
            replies = list(pool.map(lambda _: admin(farebox, "POST", "refunds", refund), range(times)))
        assert sorted(reply.status_code for reply in replies) == [200] * (times - 1) + [201]
        assert free(farebox, payer) == 3_000_000_000
        farebox.assert_green()

    def test_refund_that_was_not_recorded_cannot_be_paid(self, farebox: FareboxServer) -> None:
        assert admin(farebox, "POST", "refunds/never-recorded/paid", {}).status_code == 404
        farebox.assert_green()

    def test_refund_id_stands_for_one_amount(self, farebox: FareboxServer) -> None:
        payer = farebox.payer("5.00")
        refund = {"id": f"changed-{payer.customer_id}", "customer_id": payer.customer_id, "amount": "2.00"}
        assert admin(farebox, "POST", "refunds", refund).status_code == 201
        assert admin(farebox, "POST", "refunds", {**refund, "amount": "3.00"}).status_code == 409
        assert free(farebox, payer) == 3_000_000_000
        farebox.assert_green()

    @pytest.mark.parametrize(("credit", "credit_limit"), [("1.00", "0"), ("1.00", "50.00")])
    def test_refund_never_takes_held_or_borrowed_funds(
        self, farebox: FareboxServer, shared_dialects: DialectServer, credit: str, credit_limit: str
    ) -> None:
        payer = farebox.payer(credit, credit_limit=credit_limit)
        refund = {"id": f"greedy-{payer.customer_id}", "customer_id": payer.customer_id}
        with streaming(farebox, payer, "dialect/gated") as found:
            found.read_until(lambda stream: stream.text == BEFORE_GATE)
            own = 1_000_000_000 - farebox.balance(payer)["debits_pending"]
            refused = admin(farebox, "POST", "refunds", {**refund, "amount": usd(own + 1)})
            assert refused.status_code == 402
            assert admin(farebox, "POST", "refunds", {**refund, "amount": usd(own)}).status_code == 201
            shared_dialects.last.release()
            found.read_all()
        assert found.done
        farebox.wait_settled(payer, requests=1)
        assert farebox.outcomes(payer)[0]["charged"] == REPORTED
        farebox.assert_green()


def _ran_out(found: Stream) -> bool:
    return found.error is not None and found.error["code"] == "insufficient_balance"
