from dataclasses import replace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission import PaidRequest, Plan, plan_for, refusal, window_tokens_max
from app.endpoints import CHAT, IMAGES
from app.errors import AuthenticationFailed, BillingRefused, NoProviderAvailable, PermissionDenied, RateLimited
from app.ledger.operation import Admitted, Refused
from app.money import NanoUsd, PicoUsd, parse_price, parse_price_per_million, parse_usd
from app.pricing.price_book import PriceVersion
from app.pricing.quote import TOOLS_PREAMBLE_TOKENS, PromptSize, TokenRatio
from app.routing.candidates import Candidate
from app.search.options import SearchOptions
from app.settings import InferenceSettings, LedgerSettings, ModelSettings
from app.upstream.provider import Provider
from tests.serving import model

INFERENCE, LEDGER = InferenceSettings(), LedgerSettings()
TOKENS = st.integers(1, 10**6)
PRICES = st.integers(0, 10**9).map(PicoUsd)
AMOUNTS = st.integers(0, 10**12).map(NanoUsd)
PLANS = st.builds(
    Plan,
    prompt_tokens_max=TOKENS,
    prompt_tokens_expected=TOKENS,
    limit=TOKENS,
    limit_defaulted=st.booleans(),
    choices=st.integers(1, 16),
    input_price=PRICES,
    output_price=PRICES,
    window=TOKENS,
    whole=st.booleans(),
)


class Named:
    kind = "native"

    def __init__(self, name: str) -> None:
        self.name = name


def candidate(
    name: str = "p", *, price: dict[str, str] | None = None, context: int = 10_000, most: int = 2000, **changes: Any
) -> Candidate:
    settings = ModelSettings.model_validate(model("m", context_window=context, max_output_tokens=most, **changes))
    texts = price or {"input": "1.00", "output": "4.00"}
    prices = {unit: parse_price_per_million(text) for unit, text in texts.items()}
    return Candidate(cast("Provider", Named(name)), settings, PriceVersion(f"{name}:m:1", name, "m", 1, prices, {}))


def request(**changes: Any) -> PaidRequest:
    asked = PaidRequest(CHAT, "/v1/chat/completions", "m", {}, b"", True, PromptSize(100))
    return replace(asked, **changes)


def plan(*candidates: Candidate, inference: InferenceSettings = INFERENCE, **changes: Any) -> Plan:
    return plan_for(request(**changes), candidates or [candidate()], TokenRatio(), inference=inference, ledger=LEDGER)


def billing(refused: Refused, planned: Plan | None, limit_param: str = "max_tokens") -> BillingRefused:
    error = refusal(refused, planned, limit_param=limit_param)
    assert isinstance(error, BillingRefused)
    return error


class TestArithmetic:
    @given(plan=PLANS, amount=AMOUNTS)
    def test_affordable_tokens_never_cost_more_than_the_amount_and_one_more_does(
        self, plan: Plan, amount: NanoUsd
    ) -> None:
        tokens = plan.affordable(amount)
        assert tokens >= 0
        if tokens:
            assert plan.cost(tokens) <= amount
        if plan.output_price:
            assert plan.cost(tokens + 1) > amount

    @given(plan=PLANS, amount=AMOUNTS, free=AMOUNTS)
    def test_granted_tokens_never_cost_more_than_the_grant(self, plan: Plan, amount: NanoUsd, free: NanoUsd) -> None:
        free = NanoUsd(max(free, plan.required))
        granted = Admitted(NanoUsd(min(plan.first_hold, free)), free)
        admitted, held = plan.admitted(granted)
        assert 0 <= held <= admitted.output_tokens_max <= plan.output_tokens_max
        assert plan.cost(held) <= granted.granted
        assert admitted.cost(admitted.output_tokens_max) <= free
        assert admitted.limit >= 1

    @given(plan=PLANS)
    def test_what_is_required_is_never_more_than_the_ceiling(self, plan: Plan) -> None:
        assert plan.required <= plan.ceiling
        assert plan.required == (plan.cost(plan.choices) if plan.limit_defaulted else plan.ceiling)

    @given(plan=PLANS)
    def test_ceiling_is_what_affords_the_limit(self, plan: Plan) -> None:
        assert plan.affordable(plan.ceiling) >= plan.output_tokens_max

    def test_funds_for_one_token_a_choice_give_that(self) -> None:
        planned = plan(choices=3)
        assert planned.limit_defaulted
        admitted, held = planned.admitted(Admitted(planned.required, planned.required))
        assert (admitted.limit, held) == (1, 3)

    def test_limit_of_the_caller_is_never_clipped(self) -> None:
        planned = plan(output_limit=500)
        admitted, held = planned.admitted(Admitted(planned.first_hold, planned.ceiling))
        assert (admitted, held) == (planned, planned.window)

    def test_free_output_is_unlimited_by_funds(self) -> None:
        planned = plan(candidate(price={"input": "1.00", "output": "0"}))
        assert planned.affordable(planned.required) == planned.output_tokens_max
        assert planned.affordable(NanoUsd(planned.required - 1)) == 0


class TestPlan:
    def test_prompt_is_bounded_by_bytes_and_expected_by_the_ratio(self) -> None:
        planned = plan()
        assert (planned.prompt_tokens_max, planned.prompt_tokens_expected) == (116, 25)

    def test_prompt_is_never_bounded_beyond_the_context(self) -> None:
        assert plan(candidate(context=50)).prompt_tokens_max == 50

    def test_tools_may_bill_what_a_servers_template_says_of_them(self) -> None:
        assert plan(size=PromptSize(100, tools=True)).prompt_tokens_max == 116 + TOOLS_PREAMBLE_TOKENS

    def test_what_is_no_token_is_held_whole_at_the_dearest_price(self) -> None:
        size, cheap, dear = "image:1024x1024", candidate("a"), candidate("b")
        cheap = replace(cheap, price=replace(cheap.price, prices={size: parse_price("0.04")}))
        dear = replace(dear, price=replace(dear.price, prices={size: parse_price("0.05")}))
        asked: dict[str, Any] = {"endpoint": IMAGES, "units": {size: 3}, "stream": False, "size": PromptSize(0, 0)}
        planned = plan(cheap, dear, **asked)
        assert planned.ceiling == planned.required == planned.first_hold == parse_usd("0.15")
        assert (planned.limit, planned.limit_defaulted, planned.whole) == (0, False, True)
        assert planned.admitted(Admitted(planned.ceiling, planned.ceiling)) == (planned, 0)
        with pytest.raises(NoProviderAvailable, match="no price"):
            plan(cheap, dear, **{**asked, "units": {"image:1x1": 1}})

    def test_searches_are_held_beside_the_prompts_of_all_rounds(self) -> None:
        priced = candidate()
        priced = replace(priced, price=replace(priced.price, prices={**priced.price.prices, "web_search": PicoUsd(5)}))
        options = SearchOptions(results=5, result_bytes_max=1200, rounds_max=3, searches_max=4)
        planned = plan(priced, search=options, units={"web_search": 4})
        assert planned.unit_price == 20
        assert planned.prompt_tokens_max > 4 * plan(priced).prompt_tokens_max
        assert planned.prompt_tokens_expected == plan(priced).prompt_tokens_expected

    def test_prices_are_the_dearest_of_the_candidates_and_their_units(self) -> None:
        first = candidate("a", price={"input": "1.00", "output": "4.00", "reasoning": "6.00"})
        second = candidate("b", price={"input": "2.00", "output": "3.00", "cached_input": "2.50"})
        planned = plan(first, second)
        assert planned.input_price == parse_price_per_million("2.50")
        assert planned.output_price == parse_price_per_million("6.00")

    def test_audio_prices_count_only_where_there_is_audio(self) -> None:
        audible = candidate(price={"input": "1.00", "output": "4.00", "audio_input": "9.00", "audio_output": "20.00"})
        assert plan(audible).output_price == parse_price_per_million("4.00")
        assert plan(audible, audio=True).output_price == parse_price_per_million("20.00")
        assert plan(audible, audio=True).input_price == parse_price_per_million("9.00")

    @pytest.mark.parametrize(
        ("requested", "most", "limit"), [(None, 9000, 4096), (None, 2000, 2000), (50, 2000, 50), (9999, 2000, 2000)]
    )
    def test_limit_is_the_callers_else_the_default_never_above_the_models(
        self, requested: int | None, most: int, limit: int
    ) -> None:
        planned = plan(candidate(most=most), output_limit=requested)
        assert (planned.limit, planned.limit_defaulted) == (limit, requested is None)

    def test_defaulted_limit_fits_into_the_context_beside_the_prompt(self) -> None:
        assert plan(candidate(context=125)).limit == 100
        assert plan(candidate(context=25)).limit == 1

    def test_choices_multiply_the_ceiling(self) -> None:
        one, three = plan(output_limit=100), plan(output_limit=100, choices=3)
        assert three.output_tokens_max == 300
        assert three.ceiling - one.ceiling == 200 * 4000

    def test_whole_answer_holds_its_ceiling_and_a_stream_one_window(self) -> None:
        assert plan(stream=False).first_hold == plan().ceiling
        assert plan().first_hold == plan().cost(LEDGER.window_tokens_min)
        assert plan(choices=2).window == 2 * LEDGER.window_tokens_min
        assert plan(output_limit=5).first_hold == plan(output_limit=5).ceiling

    def test_stream_of_a_model_that_hides_reasoning_holds_its_ceiling(self) -> None:
        planned = plan(candidate("a"), candidate("b", hidden_reasoning=True))
        assert planned.first_hold == planned.ceiling

    @pytest.mark.parametrize(("price", "tokens"), [("0.25", 1_000_000), ("4.00", 62_500), ("1000000.00", 1)])
    def test_window_never_costs_more_than_its_bound_unless_it_is_one_token(self, price: str, tokens: int) -> None:
        assert LEDGER.window_cost_max == "0.25"
        assert window_tokens_max(parse_price_per_million(price), LEDGER) == tokens
        dear = plan(candidate(price={"input": "1.00", "output": price}))
        assert dear.window == min(tokens, LEDGER.window_tokens_min)


class TestRefusal:
    def test_refused_funds_say_what_is_there_what_is_needed_and_what_would_do(self) -> None:
        planned = plan(output_limit=1000)
        error = billing(Refused("insufficient_balance", parse_usd("0.001"), planned.required), planned)
        affordable = (1_000_000 - 116 * 1000) // 4000
        assert error.details == {
            "available": "0.001",
            "required": "0.004116",
            "currency": "USD",
            "affordable_tokens": affordable,
        }
        assert f"set max_tokens to at most {affordable}" in error.message
        assert (error.status, error.code, error.param) == (402, "insufficient_balance", "max_tokens")

    def test_affordable_tokens_are_per_choice(self) -> None:
        planned = plan(output_limit=1000, choices=4)
        error = billing(Refused("insufficient_balance", parse_usd("0.001"), planned.required), planned)
        assert error.details["affordable_tokens"] == (1_000_000 - 116 * 1000) // 4000 // 4

    def test_nothing_affordable_is_not_advised(self) -> None:
        planned = plan(output_limit=1000)
        error = billing(Refused("insufficient_balance", NanoUsd(0), planned.required), planned, "max_completion_tokens")
        assert error.details["affordable_tokens"] == 0
        assert "max_completion_tokens" not in error.message
        assert "top up the balance" in error.message

    def test_spend_limit_is_told_from_the_balance(self) -> None:
        error = billing(Refused("spend_limit", NanoUsd(5), NanoUsd(10)), None)
        assert error.code == "spend_limit"
        assert "raise the limit" in error.message
        assert error.param is None

    @pytest.mark.parametrize(
        ("reason", "kind", "code"),
        [
            ("revoked", AuthenticationFailed, "api_key_revoked"),
            ("expired", AuthenticationFailed, "api_key_expired"),
            ("model_not_allowed", PermissionDenied, "model_not_allowed"),
        ],
    )
    def test_key_that_may_not(self, reason: str, kind: type[Exception], code: str) -> None:
        error = refusal(Refused(reason), None, limit_param="max_tokens")
        assert isinstance(error, kind)
        assert error.code == code

    @pytest.mark.parametrize("what", ["requests_per_minute", "tokens_per_minute"])
    def test_rate_limit_says_when_to_come_back(self, what: str) -> None:
        error = refusal(Refused(what, retry_after_s=17, limit=60), None, limit_param="max_tokens")
        assert isinstance(error, RateLimited)
        assert (error.code, error.retry_after_s) == (what, 17)
        assert "60" in error.message
