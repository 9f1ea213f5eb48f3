"""What a request may cost, and how much of it is held before anything is sent.

The ceiling is the dearest of the candidates. A whole answer holds its ceiling; a stream holds its
prompt and a first window of output, and extends ahead of delivery. All arithmetic here is pure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Literal

import orjson

from app.clock import EpochMs
from app.endpoints import Endpoint
from app.errors import (
    AuthenticationFailed,
    BillingRefused,
    FareboxError,
    NoProviderAvailable,
    PermissionDenied,
    RateLimited,
)
from app.ledger.operation import Admitted, Refused, Row
from app.money import PICO_PER_NANO, NanoUsd, PicoUsd, cost_nano_usd, format_usd, parse_usd, units_affordable
from app.pricing.price_book import PriceVersion
from app.pricing.quote import PromptSize, TokenRatio, output_bound
from app.rails.rail import Payer
from app.routing.candidates import Candidate, Wishes
from app.routing.facts import Facts
from app.search import bounds
from app.search.options import SearchOptions
from app.settings import NO_LIMIT, InferenceSettings, LedgerSettings
from app.shapes import OPENAI, Shape
from app.upstream.provider import Upload


@dataclass(frozen=True, slots=True)
class PaidRequest:
    """A validated request, whatever rail pays for it. ``body`` is what goes upstream.

    ``needs`` are capabilities beside the endpoint's own. ``units`` is the most that may be used of what is no
    token, by unit, and what is held for it; ``units_expected`` is billed where no provider says what was used.
    """

    endpoint: Endpoint
    path: str
    model: str
    body: Mapping[str, Any]
    content: bytes
    stream: bool
    size: PromptSize
    choices: int = 1
    output_limit: int | None = None
    output_limit_param: str = "max_tokens"
    include_usage: bool = False
    audio: bool = False
    wishes: Wishes = Wishes()
    first_byte_timeout_s: float | None = None
    idempotency_key: str | None = None
    needs: frozenset[str] = frozenset()
    units: Mapping[str, int] = field(default_factory=dict)
    units_expected: Mapping[str, int] = field(default_factory=dict)
    search: SearchOptions | None = None
    upload: Upload | None = None
    shape: Shape = OPENAI
    # Prices that a challenge promised, by provider and model; empty: those of now.
    prices: Mapping[tuple[str, str], PriceVersion] = field(default_factory=dict)

    @property
    def fingerprint(self) -> bytes:
        """What an idempotency key stands for: the body; of a form what is in it, for boundaries are made anew."""
        if self.upload is None:
            return self.content
        fields = {"model": self.model, "body": self.body, "file": self.upload.filename, "shape": repr(self.shape)}
        return orjson.dumps(fields, option=orjson.OPT_SORT_KEYS) + b"\n" + self.upload.content

    @property
    def in_parts(self) -> bool:
        """Whether the answer goes out while it is made: as events, or as bytes."""
        return self.stream or self.endpoint.answer == "bytes"


def priced(request: PaidRequest, candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """The candidates at the prices that the request was promised; one that was not promised is left out.

    Raises `NoProviderAvailable`.
    """
    if not request.prices:
        return candidates
    found = [
        replace(candidate, price=request.prices[candidate.provider.name, candidate.model.id])
        for candidate in candidates
        if (candidate.provider.name, candidate.model.id) in request.prices
    ]
    if not found:
        raise NoProviderAvailable("no provider is left at the price that the challenge promised; ask again")
    return found


def facts_of(
    request: PaidRequest, ratio: TokenRatio, *, rail: Literal["api_key", "wallet"], inference: InferenceSettings
) -> Facts:
    """What routing needs to know of a request, expected by the learned ratios of its model."""
    endpoint, prompt, output = request.endpoint, 0, 0
    if endpoint.input_tokens:
        prompt = ratio.prompt_tokens(request.size, tokens_max=NO_LIMIT)
    if endpoint.output_tokens:
        limit = request.output_limit or inference.default_max_tokens
        output = ratio.answer_tokens(limit=limit) * request.choices
    return Facts(
        endpoint=endpoint,
        needs=request.needs,
        prompt_tokens_min=request.size.tokens_min if endpoint.input_tokens else 0,
        prompt_tokens_expected=prompt,
        output_tokens_expected=output,
        output_limit=request.output_limit,
        units=request.units_expected or request.units,
        rail=rail,
        stream=request.stream,
        search=request.search is not None,
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """A request's bounds. Token counts are totals over all choices, except ``limit``.

    ``unit_price`` is what all that is no token can cost together. Where no output is billed by tokens,
    ``limit`` is 0 and the whole is held at once.
    """

    prompt_tokens_max: int
    prompt_tokens_expected: int
    limit: int
    limit_defaulted: bool
    choices: int
    input_price: PicoUsd
    output_price: PicoUsd
    window: int
    whole: bool
    unit_price: PicoUsd = PicoUsd(0)

    @property
    def output_tokens_max(self) -> int:
        """All output that may be produced."""
        return self.limit * self.choices

    @property
    def ceiling(self) -> NanoUsd:
        """The most that the request can cost."""
        return self.cost(self.output_tokens_max)

    @property
    def required(self) -> NanoUsd:
        """What must be free: the ceiling of a limit that the caller set, else one token a choice."""
        return self.cost(self.choices) if self.limit_defaulted else self.ceiling

    @property
    def first_hold(self) -> NanoUsd:
        """What is held before anything is sent."""
        return self.ceiling if self.whole else self.cost(self.window)

    def cost(self, output_tokens: int) -> NanoUsd:
        """The ceiling of the prompt with so many output tokens."""
        tokens = (self.prompt_tokens_max, self.input_price), (output_tokens, self.output_price)
        return cost_nano_usd((*tokens, (1, self.unit_price)))

    def affordable(self, amount: NanoUsd) -> int:
        """Output tokens, over all choices, that ``amount`` buys beside the prompt."""
        left = amount * PICO_PER_NANO - self.prompt_tokens_max * self.input_price - self.unit_price
        if self.output_price == 0:
            return self.output_tokens_max if left >= 0 else 0
        return max(0, left // self.output_price)

    def within(self, funds: NanoUsd) -> "Plan":
        """The plan with its limit clipped to what ``funds`` can still buy, and no longer a default."""
        limit = max(1, min(self.limit, self.affordable(funds) // self.choices))
        window = max(1, min(self.window, limit * self.choices))
        return replace(self, limit=limit, limit_defaulted=False, window=window)

    def admitted(self, granted: Admitted) -> tuple["Plan", int]:
        """The plan as the ledger let it: with a default limit clipped, and the tokens that are held."""
        plan = self
        if self.limit_defaulted and self.limit:
            plan = replace(self, limit=min(self.limit, self.affordable(granted.free) // self.choices))
        held = plan.output_tokens_max if self.whole else self.affordable(granted.granted)
        return plan, min(held, plan.output_tokens_max)


def plan_for(
    request: PaidRequest,
    candidates: Sequence[Candidate],
    ratio: TokenRatio,
    *,
    inference: InferenceSettings,
    ledger: LedgerSettings,
) -> Plan:
    """Bound a request over its candidates, which can all serve it. Raises `NoProviderAvailable` for no price."""
    endpoint, model_limit = request.endpoint, max(candidate.model.output_max for candidate in candidates)
    context = max(candidate.model.context for candidate in candidates)
    prompt_max = expected = limit = 0
    if endpoint.input_tokens:
        prompt_max = request.size.tokens_max(image_tokens_max=inference.image_tokens_max, context_window=context)
        expected = ratio.prompt_tokens(request.size, tokens_max=prompt_max)
    if endpoint.output_tokens:
        default = inference.default_max_tokens
        limit = output_bound(requested=request.output_limit, default=default, model_max=model_limit)
        if request.output_limit is None:
            limit = max(1, min(limit, context - expected // request.size.prompts))
    if request.search is not None:
        # Every round sends the conversation again, with what was found.
        prompt_max = bounds.prompt_tokens_max(
            prompt_max, options=request.search, output_limit=limit, context_window=context
        )
    dearest = [_dearest(candidate, request) for candidate in candidates]
    input_price, output_price, unit_price = (PicoUsd(max(prices)) for prices in zip(*dearest, strict=True))
    window = min(ledger.window_tokens_min * request.choices, limit * request.choices)
    return Plan(
        prompt_tokens_max=prompt_max,
        prompt_tokens_expected=expected,
        limit=limit,
        limit_defaulted=request.output_limit is None and endpoint.output_tokens,
        choices=request.choices,
        input_price=input_price,
        output_price=output_price,
        window=max(1, min(window, window_tokens_max(output_price, ledger))),
        # Where a model bills tokens that it does not stream (as it does for its searches), windows would be
        # blind to them.
        whole=not request.stream
        or request.search is not None
        or any(candidate.model.hidden_reasoning for candidate in candidates),
        unit_price=unit_price,
    )


def _dearest(candidate: Candidate, request: PaidRequest) -> tuple[int, int, int]:
    """The most that a token of the prompt, a token of output and all units together cost at one provider.

    Raises `NoProviderAvailable` for a unit that it does not sell.
    """
    price, endpoint, audio = candidate.price, request.endpoint, request.audio
    if not price.sells(request.units):
        raise NoProviderAvailable(f"{candidate.model.id} has no price for what this request uses")
    return (
        price.dearest("input", audio=audio) if endpoint.input_tokens else 0,
        price.dearest("output", audio=audio) if endpoint.output_tokens else 0,
        sum(count * price.price(unit) for unit, count in request.units.items()),
    )


def request_row(request_id: str, payer: Payer, request: PaidRequest, plan: Plan, *, model_id: str, at: EpochMs) -> Row:
    """The row of `requests`, in the order of its columns."""
    tokens = plan.prompt_tokens_expected + plan.output_tokens_max
    return (
        request_id,
        payer.account_id,
        payer.key_id,
        request.endpoint.name,
        model_id,
        request.stream,
        plan.limit,
        tokens,
        plan.ceiling,
        at,
    )


@lru_cache(maxsize=1024)
def _window_tokens(output_price: PicoUsd, cost_max: str) -> int:
    return max(1, units_affordable(parse_usd(cost_max), price=output_price)) if output_price else 2**31


def window_tokens_max(output_price: PicoUsd, ledger: LedgerSettings) -> int:
    """The largest window in tokens: the one that costs `window_cost_max`."""
    return _window_tokens(output_price, ledger.window_cost_max)


_KEY_REFUSALS: Mapping[str, tuple[type[FareboxError], str]] = {
    "revoked": (AuthenticationFailed, "this API key has been revoked or rotated"),
    "expired": (AuthenticationFailed, "this API key has expired"),
    "model_not_allowed": (PermissionDenied, "this API key may not use this model"),
}


# Said in mid-stream, where no challenge can be sent any more.
_CHANNEL_STOPS: Mapping[str, str] = {
    "channel_closing": "the channel is closing: this is all that was delivered and billed",
    "channel_finalized": "the channel is closed: this is all that was delivered and billed",
    "channel_not_found": "the channel is not known here any more",
    "challenge_used": "this challenge bought content already",
    "exposure": "too much of this channel is not settled yet",
}


def refusal(refused: Refused, plan: Plan | None, *, limit_param: str) -> FareboxError:
    """The error that tells a payer why the ledger refused, and what would help."""
    if refused.reason in _KEY_REFUSALS:
        kind, message = _KEY_REFUSALS[refused.reason]
        return kind(message, code=refused.reason if kind is PermissionDenied else f"api_key_{refused.reason}")
    if refused.reason.endswith("_per_minute"):
        what = refused.reason.replace("_", " ")
        return RateLimited(
            f"the limit of {refused.limit} {what} of this key is used up",
            code=refused.reason,
            retry_after_s=refused.retry_after_s,
        )
    if refused.reason in _CHANNEL_STOPS:
        return BillingRefused(_CHANNEL_STOPS[refused.reason], code=refused.reason)
    available, required = format_usd(refused.available), format_usd(refused.required)
    details: dict[str, object] = {"available": available, "required": required, "currency": "USD"}
    subject = "this key's spend limit leaves" if refused.reason == "spend_limit" else "the balance has"
    advice = "raise the limit" if refused.reason == "spend_limit" else "top up the balance"
    message = f"{subject} {available} USD free and the request needs up to {required} USD; {advice}"
    if plan is not None and plan.limit:
        tokens = plan.affordable(refused.available) // plan.choices
        details["affordable_tokens"] = tokens
        if tokens:
            message += f", or set {limit_param} to at most {tokens}"
    return BillingRefused(
        message + ".", code=refused.reason, param=limit_param if plan and plan.limit else None, details=details
    )
