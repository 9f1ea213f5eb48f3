"""What was used is billed once, at the price of who served it, and nothing else is."""

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from app.pricing.quote import CONTEXT_BYTES_PER_TOKEN_MAX
from app.serving import TEXT_BYTES_SLACK
from tests.cases.chat import (
    PATH,
    PROMPT,
    PROMPT_TOKENS,
    TIMEOUT_S,
    alerts,
    attempts,
    body,
    charge,
    estimated,
    owed,
    stream,
    streaming,
    whole,
)
from tests.cases.conftest import AMBIGUOUS
from tests.dialects import answers
from tests.dialects.server import GATED_AFTER, DialectServer
from tests.serving import ADMIN_TOKEN, FareboxServer, Payer

BEFORE_GATE = "".join(answers.CONTENT[:GATED_AFTER])
REPORTED = owed(prompt=answers.USAGE.prompt, output=answers.USAGE.completion)


def sandbox_prompt(content: str) -> int:
    """The sandbox's prompt tokens: 4 bytes each, its script among them."""
    return -(-len(content) // 4)


@contextmanager
def waiting(farebox: FareboxServer, payer: Payer, sent: dict[str, object], **headers: str) -> Iterator[socket.socket]:
    """A connection on which a request was sent and nothing is read; leaving closes it."""
    content = json.dumps(sent, separators=(",", ":")).encode()
    lines = {**payer.headers, "Host": "localhost", "Content-Type": "application/json", **headers}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    with socket.create_connection(("127.0.0.1", farebox.port), timeout=TIMEOUT_S) as connection:
        connection.sendall(f"POST {PATH} HTTP/1.1\r\n{head}Content-Length: {len(content)}\r\n\r\n".encode() + content)
        yield connection


class TestAbort:
    def test_aborted_stream_is_billed_for_what_was_delivered_and_stops_the_upstream(
        self, farebox: FareboxServer, shared_dialects: DialectServer
    ) -> None:
        payer = farebox.payer()
        with streaming(farebox, payer, "dialect/gated") as found:
            found.read_until(lambda stream: stream.text == BEFORE_GATE)
            held = farebox.balance(payer)["debits_pending"]
        assert shared_dialects.last.wait_closed()
        assert held > estimated(BEFORE_GATE) == charge(farebox, payer)
        (outcome,) = farebox.outcomes(payer)
        assert (outcome["status"], outcome["estimated"]) == ("aborted", 1)
        assert attempts(farebox, payer) == [("dialects", "abandoned")]
        farebox.assert_green()

    def test_stream_aborted_in_a_partial_event_is_billed_for_what_was_delivered(
        self, farebox: FareboxServer, shared_dialects: DialectServer
    ) -> None:
        payer = farebox.payer()
        with streaming(farebox, payer, "dialect/midline") as found:
            found.read_until(lambda stream: stream.text == answers.CONTENT[0])
        assert shared_dialects.last.wait_closed()
        assert charge(farebox, payer) == estimated(answers.CONTENT[0])
        farebox.assert_green()

    def test_endless_stream_stops_when_its_client_leaves(
        self, farebox: FareboxServer, shared_dialects: DialectServer
    ) -> None:
        payer = farebox.payer()
        with streaming(farebox, payer, "dialect/flood") as found:
            found.read_until(lambda stream: bool(stream.text))
        assert shared_dialects.last.wait_closed()
        charged = charge(farebox, payer)
        assert estimated(found.text) <= charged < owed(prompt=PROMPT_TOKENS, output=answers.FLOOD_EVENTS_MAX)
        assert shared_dialects.last.events_written < answers.FLOOD_EVENTS_MAX
        farebox.assert_green()

    def test_abandoned_whole_answer_is_finished_billed_once_and_replayed(
        self, farebox: FareboxServer, shared_dialects: DialectServer
    ) -> None:
        payer = farebox.payer()
        sent = body("dialect/slow_head")
        shared_dialects.clear()
        with waiting(farebox, payer, sent, **{"Idempotency-Key": "walked-away"}):
            assert shared_dialects.wait_for_requests(1)
        recorded = shared_dialects.last
        again = whole(farebox, payer, "dialect/slow_head", headers={"Idempotency-Key": "walked-away"})
        assert (again.status_code, again.json()["error"]["code"]) == (409, "idempotency_running")
        recorded.release()
        assert charge(farebox, payer) == REPORTED
        assert not recorded.closed
        replayed = whole(farebox, payer, "dialect/slow_head", headers={"Idempotency-Key": "walked-away"})
        assert replayed.json()["choices"][0]["message"]["content"] == answers.TEXT
        assert charge(farebox, payer) == REPORTED
        assert len(shared_dialects.requests) == 1
        farebox.assert_green()

    def test_stream_aborted_before_the_provider_answered_costs_nothing(
        self, farebox: FareboxServer, shared_dialects: DialectServer
    ) -> None:
        payer = farebox.payer()
        shared_dialects.clear()
        with waiting(farebox, payer, body("dialect/slow_head", stream=True)):
            assert shared_dialects.wait_for_requests(1)
        assert shared_dialects.last.wait_closed()
        assert charge(farebox, payer) == 0
        farebox.assert_green()

    def test_stream_aborted_before_its_first_token_costs_the_prompt_at_most(self, shop: FareboxServer) -> None:
        payer = shop.payer()
        # The provider has begun to answer and says nothing: the client sees a comment, and leaves.
        with streaming(shop, payer, "plain", content="[[sandbox silent_ms=60000]]" + PROMPT) as found:
            found.read_until(lambda stream: stream.raw.startswith(b":"))
            assert found.events == []
        assert charge(shop, payer) == owed(prompt=sandbox_prompt("[[sandbox silent_ms=60000]]" + PROMPT))
        (outcome,) = shop.outcomes(payer)
        assert (outcome["status"], outcome["completion_tokens"]) == ("aborted", 0)
        shop.assert_green()


class TestNoOutput:
    @pytest.mark.parametrize("streams", [False, True])
    def test_answer_without_output_bills_the_prompt(self, farebox: FareboxServer, streams: bool) -> None:
        payer, content = farebox.payer(), "[[sandbox tokens=0]]" + PROMPT
        if streams:
            found = stream(farebox, payer, "sandbox/echo", content=content)
            assert found.done
            assert found.text == ""
        else:
            assert whole(farebox, payer, "sandbox/echo", content=content).status_code == 200
        assert charge(farebox, payer) == owed(prompt=sandbox_prompt(content))
        farebox.assert_green()

    @pytest.mark.parametrize("streams", [False, True])
    def test_error_text_of_a_provider_is_no_completion(self, farebox: FareboxServer, streams: bool) -> None:
        payer = farebox.payer()
        answer = whole(farebox, payer, "dialect/error200", stream=streams)
        assert answer.status_code == 502
        assert answer.json()["error"]["code"] == "all_providers_failed"
        assert charge(farebox, payer) == 0
        (outcome,) = farebox.outcomes(payer)
        assert (outcome["status"], outcome["prompt_tokens"], outcome["completion_tokens"]) == ("failed", 0, 0)
        farebox.assert_green()

    def test_error_after_content_bills_the_content_and_is_no_part_of_it(self, farebox: FareboxServer) -> None:
        payer = farebox.payer()
        found = stream(farebox, payer, "dialect/error_late")
        assert found.text == BEFORE_GATE
        assert found.error is not None
        assert not found.done
        assert charge(farebox, payer) == estimated(BEFORE_GATE)
        farebox.assert_green()


class TestReports:
    @pytest.mark.parametrize("streams", [False, True])
    def test_explicit_zero_usage_stays_zero(self, farebox: FareboxServer, streams: bool) -> None:
        payer = farebox.payer()
        assert whole(farebox, payer, "dialect/zero", stream=streams).status_code == 200
        assert charge(farebox, payer) == 0
        (outcome,) = farebox.outcomes(payer)
        assert (outcome["status"], outcome["estimated"], outcome["completion_tokens"]) == ("completed", 0, 0)
        farebox.assert_green()

    @pytest.mark.parametrize("streams", [False, True])
    def test_missing_usage_is_estimated_and_marked(self, farebox: FareboxServer, streams: bool) -> None:
        payer = farebox.payer()
        if streams:
            usage = stream(farebox, payer, "dialect/none", stream_options={"include_usage": True}).usage
        else:
            usage = whole(farebox, payer, "dialect/none").json()["usage"]
        assert usage is not None
        assert usage["estimated"] is True
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (PROMPT_TOKENS, 6)
        assert charge(farebox, payer) == estimated(answers.TEXT) == owed(prompt=PROMPT_TOKENS, output=6)
        assert farebox.outcomes(payer)[0]["estimated"] == 1
        farebox.assert_green()

    @pytest.mark.parametrize(
        ("dialect", "expected"),
        [("vllm", REPORTED), ("gemini", owed(prompt=11, output=5, reasoning=9))],
    )
    def test_last_of_several_cumulative_reports_counts_not_their_sum(
        self, farebox: FareboxServer, dialect: str, expected: int
    ) -> None:
        payer = farebox.payer()
        found = stream(farebox, payer, f"dialect/{dialect}", stream_options={"include_usage": True})
        assert [bool(event["choices"]) for event in found.events if event.get("usage")] == [False]
        assert charge(farebox, payer) == expected
        farebox.assert_green()

    def test_usage_counts_where_the_output_limit_cut_the_answer(self, farebox: FareboxServer) -> None:
        payer, content = farebox.payer(), "[[sandbox tokens=50 usage=cumulative]]" + PROMPT
        found = stream(farebox, payer, "sandbox/echo", content=content, max_tokens=20)
        assert found.events[-1]["choices"][0]["finish_reason"] == "length"
        assert charge(farebox, payer) == owed(prompt=sandbox_prompt(content), output=20)
        farebox.assert_green()

    @pytest.mark.parametrize("streams", [False, True])
    def test_cached_and_reasoning_tokens_bill_once_at_their_own_prices(
        self, farebox: FareboxServer, streams: bool
    ) -> None:
        payer, content = farebox.payer(), "[[sandbox tokens=10 reasoning=7 hidden=5 cached=6]]" + PROMPT
        assert whole(farebox, payer, "sandbox/echo", content=content, stream=streams).status_code == 200
        prompt = sandbox_prompt(content)
        assert charge(farebox, payer) == owed(prompt=prompt - 6, cached=6, output=10, reasoning=12)
        (outcome,) = farebox.outcomes(payer)
        assert (outcome["cached_tokens"], outcome["reasoning_tokens"]) == (6, 12)
        assert (outcome["prompt_tokens"], outcome["completion_tokens"]) == (prompt, 22)
        farebox.assert_green()

    def test_usage_beyond_what_a_model_can_produce_is_cut_to_it(self, shop: FareboxServer) -> None:
        payer, content = shop.payer("20.00"), "[[sandbox tokens=3 lie=900000]]" + PROMPT
        before = alerts(shop, "usage_output")
        assert whole(shop, payer, "lying", content=content).status_code == 200
        assert charge(shop, payer) == owed(prompt=sandbox_prompt(content), output=500_000)
        assert alerts(shop, "usage_output") == before + 1
        shop.assert_green()

    def test_provider_that_refuses_stream_options_is_metered_and_asked_without_them(
        self, farebox: FareboxServer, shared_dialects: DialectServer
    ) -> None:
        for _ in range(2):
            payer = farebox.payer()
            shared_dialects.clear()
            found = stream(farebox, payer, "dialect/strict", stream_options={"include_usage": True})
            assert found.done
            assert found.usage is not None
            assert found.usage["estimated"] is True
            assert charge(farebox, payer) == estimated(answers.TEXT)
            assert attempts(farebox, payer) == [("dialects", "ok")]
        # What was learned stays learned: the second stream took one request, without the parameter.
        assert ["stream_options" in recorded.body for recorded in shared_dialects.requests] == [False]
        farebox.assert_green()


class TestOverlong:
    def test_stream_that_goes_on_past_its_limit_is_ended_and_billed_for_no_more_than_it(
        self, shop: FareboxServer
    ) -> None:
        payer, content = shop.payer(), "[[sandbox tokens=10 overrun=20000 chunk=64]]" + PROMPT
        found = stream(shop, payer, "plain", content=content, max_tokens=10)
        assert found.error is not None
        assert found.error["code"] == "upstream_interrupted"
        assert not found.done
        assert len(found.text) <= TEXT_BYTES_SLACK + 10 * CONTEXT_BYTES_PER_TOKEN_MAX
        assert charge(shop, payer) == owed(prompt=sandbox_prompt(content), output=10)
        assert attempts(shop, payer) == [("first", "overrun")]
        shop.assert_green()


class TestFallback:
    @pytest.mark.parametrize(
        ("name", "failure", "result"),
        [
            ("both/0", "fail=connect", "connect"),
            ("both/1", "fail=status:503", "server_error"),
            ("both/2", "fail=status:429", "rate_limited"),
            ("both/3", "fail=status:401", "refused"),
        ],
    )
    @pytest.mark.parametrize("streams", [False, True])
    def test_fallback_bills_the_provider_that_served_and_every_attempt_has_its_row(
        self, shop: FareboxServer, name: str, failure: str, result: str, streams: bool
    ) -> None:
        payer, content = shop.payer(), f"[[sandbox tokens=10 {failure} at=first]]" + PROMPT
        name = f"{name}/stream" if streams else name
        answer = whole(shop, payer, name, content=content, stream=streams, provider={"order": ["first"]})
        assert answer.status_code == 200
        assert answer.headers["x-farebox-provider"] == "second"
        prompt = sandbox_prompt(content)
        assert charge(shop, payer) == 3_000 * prompt + 7_000 * 10
        (outcome,) = shop.outcomes(payer)
        assert (outcome["provider"], outcome["upstream_model"]) == ("second", name)
        assert outcome["cost"] == 1_100 * prompt + 2_300 * 10
        assert attempts(shop, payer) == [("first", result), ("second", "ok")]
        shop.assert_green()

    def test_provider_that_failed_is_passed_over_for_a_while(self, resting: FareboxServer) -> None:
        payer, content = resting.payer(), "[[sandbox tokens=1 fail=connect at=first]]" + PROMPT
        for _ in range(7):
            answer = whole(resting, payer, "failing", content=content, provider={"order": ["first"]})
            assert answer.status_code == 200
        tried = attempts(resting, payer)
        assert tried == [("first", "connect"), ("second", "ok")] * 5 + [("second", "ok")] * 2
        resting.wait_settled(payer)
        resting.assert_green()

    def test_provider_that_refuses_our_account_is_left_alone_with_all_its_models(self, resting: FareboxServer) -> None:
        payer, content = resting.payer(), "[[sandbox tokens=1 fail=status:402 at=refusing]]" + PROMPT
        before = alerts(resting, "provider_refused_us")
        for name in ("refused", "refused", "refused/too"):
            answer = whole(resting, payer, name, content=content, provider={"order": ["refusing"]})
            assert (answer.status_code, answer.headers["x-farebox-provider"]) == (200, "second")
        assert attempts(resting, payer) == [("refusing", "refused"), *[("second", "ok")] * 3]
        assert alerts(resting, "provider_refused_us") == before + 1
        alone = whole(resting, payer, "refused", content=PROMPT, provider={"only": ["refusing"]})
        assert (alone.status_code, alone.json()["error"]["code"]) == (503, "providers_resting")
        assert 1 <= int(alone.headers["retry-after"]) <= 60
        shown = httpx.get(
            f"{resting.url}/admin/api/providers", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}, timeout=TIMEOUT_S
        )
        breakers = {(row["provider"], row["model"]): (row["breaker"], row["why"]) for row in shown.json()["data"]}
        assert breakers["refusing", "refused/too"] == ("open", "refused")
        assert breakers["second", "refused"] == ("closed", "")
        resting.wait_settled(payer)
        resting.assert_green()

    def test_no_fallback_once_content_was_delivered(self, shop: FareboxServer) -> None:
        payer, content = shop.payer(), "[[sandbox tokens=10 fail=error_event after=4 at=first]]" + PROMPT
        found = stream(shop, payer, "both/5", content=content, provider={"order": ["first"]})
        assert found.error is not None
        assert found.error["code"] == "upstream_interrupted"
        assert not found.done
        assert len(found.text) == 16
        assert charge(shop, payer) == owed(prompt=sandbox_prompt(content), output=4)
        assert attempts(shop, payer) == [("first", "interrupted")]
        shop.assert_green()

    @pytest.mark.parametrize("streams", [False, True])
    @pytest.mark.parametrize("failure", AMBIGUOUS)
    def test_request_that_may_have_been_taken_up_is_not_sent_to_another_provider(
        self, shop: FareboxServer, shared_dialects: DialectServer, failure: str, streams: bool
    ) -> None:
        payer = shop.payer()
        # On a pooled connection a client library could take a closed connection for one to try again on.
        assert whole(shop, shop.payer(), "ok").status_code == 200
        shared_dialects.clear()
        name = f"ambiguous/{failure}/stream" if streams else f"ambiguous/{failure}"
        answer = whole(shop, payer, name, stream=streams, timeout_ms=300, provider={"order": ["dialects"]})
        # A stream that was silent for long has begun with a comment, and says the error as an event.
        begun = answer.status_code == 200 and streams and failure == "slow_head"
        assert begun or answer.status_code == 502
        error = json.loads(answer.text.split("data: ")[1] if begun else answer.text)["error"]
        assert error["attempts"] == 1
        assert "[DONE]" not in answer.text
        assert charge(shop, payer) == 0
        result = "timeout" if failure == "slow_head" else "interrupted"
        assert attempts(shop, payer) == [("dialects", result)]
        assert len(shared_dialects.requests) == 1
        shop.assert_green()


class TestPrices:
    def test_model_without_a_price_for_what_it_can_do_is_refused_at_start(self, tmp_path: Path) -> None:
        config = tmp_path / "farebox.toml"
        config.write_text(
            "[[providers]]\n"
            'name = "local"\n'
            'base_url = "http://127.0.0.1:9/v1"\n'
            "[[providers.models]]\n"
            'id = "half-priced"\n'
            "context_window = 1000\n"
            "max_output_tokens = 100\n"
            'price = { input = "1.00" }\n'
        )
        command = [sys.executable, "-m", "app.cli", "serve", "--config", str(config)]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert ended.returncode == 2
        assert "half-priced" in ended.stderr
        assert "price.output" in ended.stderr

    @pytest.mark.parametrize(
        ("script", "unit"), [("cached=6", "cached_input"), ("reasoning=6", "reasoning"), ("hidden=6", "reasoning")]
    )
    def test_reported_unit_without_a_price_bills_at_its_parents_and_raises_an_alert(
        self, shop: FareboxServer, script: str, unit: str
    ) -> None:
        payer, content = shop.payer(), f"[[sandbox tokens=10 {script}]]" + PROMPT
        before = alerts(shop, f"usage_{unit}")
        assert whole(shop, payer, "unpriced", content=content).status_code == 200
        output = 10 if unit == "cached_input" else 16
        assert charge(shop, payer) == owed(prompt=sandbox_prompt(content), output=output)
        assert alerts(shop, f"usage_{unit}") == before + 1
        shop.assert_green()
