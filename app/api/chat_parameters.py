"""The parameters of a chat completion: each is checked, priced, taken out or refused; the rest pass.

Routing parameters are ours and never reach a provider. What multiplies output, chooses models or
tiers, keeps data or adds paid tools is priced or refused, never passed on blindly.
"""

from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import orjson

from app.admission import PaidRequest
from app.errors import InvalidRequest
from app.money import PicoUsd, parse_price_per_million
from app.pricing.quote import PromptSize
from app.routing.candidates import NO_WISHES, PICO_USD_PER_CENT_PER_MILLION, Wishes
from app.settings import Settings

Check = Callable[[str, Any], None]

MESSAGES_MAX = 10_000
CHOICES_MAX = 16
STOPS_MAX = 4
TOOLS_MAX = 512
TIMEOUT_MS_MAX = 30_000
CENTS_MAX = 100_000_000
NAMES_MAX = 64
NAME_CHARACTERS_SHOWN = 100
LOGIT_BIAS_MAX = 100
# Tuples, not sets: what a client sends may not be hashable.
ROLES = ("assistant", "developer", "function", "system", "tool", "user")
TOOL_TYPES = ("function", "custom")
TOOL_CHOICES = ("none", "auto", "required")
TEXT_PARTS = ("text", "refusal")
STRATEGIES = ("cheapest", "fastest", "balanced")
EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")


def _refuse(name: str, message: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: {message}", code="invalid_parameter", param=name)


def _number(least: float, most: float) -> Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise _refuse(name, f"must be a number from {least:g} to {most:g}")

    return check


def _integer(least: int, most: int) -> Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _refuse(name, f"must be an integer from {least} to {most}")

    return check


def _kind(kind: type, word: str) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, kind):
            raise _refuse(name, f"must be {word}")

    return check


def _one_of(*allowed: str) -> Check:
    def check(name: str, value: Any) -> None:
        if value not in allowed:
            raise _refuse(name, f"must be one of {', '.join(allowed)}")

    return check


def _stop(name: str, value: Any) -> None:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > STOPS_MAX or not all(isinstance(stop, str) for stop in stops):
        raise _refuse(name, f"must be a string or a list of up to {STOPS_MAX} strings")


def _top_p(name: str, value: Any) -> None:
    if value != -1:
        _number(0, 1)(name, value)


def _tools(name: str, value: Any) -> None:
    if not isinstance(value, list) or len(value) > TOOLS_MAX:
        raise _refuse(name, f"must be a list of up to {TOOLS_MAX} tools")
    for index, tool in enumerate(value):
        if not isinstance(tool, dict) or tool.get("type", "function") not in TOOL_TYPES:
            raise _refuse(f"{name}[{index}]", "only function tools can be used here")


def _tool_choice(name: str, value: Any) -> None:
    if not isinstance(value, dict) and value not in TOOL_CHOICES:
        raise _refuse(name, "must be none, auto, required or a tool")


def _logit_bias(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise _refuse(name, "must be an object")
    for token, bias in value.items():
        _number(-LOGIT_BIAS_MAX, LOGIT_BIAS_MAX)(f"{name}.{token[:NAME_CHARACTERS_SHOWN]}", bias)


def _stream_options(name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise _refuse(name, "must be an object")
    if not isinstance(value.get("include_usage", False), bool):
        raise _refuse(f"{name}.include_usage", "must be true or false")


_string = _kind(str, "a string")
_object = _kind(dict, "an object")
_boolean = _kind(bool, "true or false")

CHECKS: Mapping[str, Check] = {
    "model": _string,
    "stream": _boolean,
    "stream_options": _stream_options,
    "max_tokens": _integer(1, 2**31 - 1),
    "max_completion_tokens": _integer(1, 2**31 - 1),
    "temperature": _number(0, 2),
    "top_p": _top_p,
    "n": _integer(1, CHOICES_MAX),
    "stop": _stop,
    "presence_penalty": _number(-2, 2),
    "frequency_penalty": _number(-2, 2),
    "logit_bias": _logit_bias,
    "user": _string,
    "tools": _tools,
    "tool_choice": _tool_choice,
    "parallel_tool_calls": _boolean,
    "response_format": _object,
    "seed": _integer(-(2**63), 2**63 - 1),
    "logprobs": _boolean,
    "top_logprobs": _integer(0, 20),
    "reasoning_effort": _one_of(*EFFORTS),
    "modalities": _kind(list, "a list"),
    "routing_strategy": _one_of(*STRATEGIES),
    "allow_external": _boolean,
    "max_input_price_per_million": _integer(0, CENTS_MAX),
    "max_output_price_per_million": _integer(0, CENTS_MAX),
    "timeout_ms": _integer(1, TIMEOUT_MS_MAX),
    "provider": _object,
}

# Values that mean "nothing extra" are dropped; anything else costs or stores what nobody agreed to, or
# (the last rows) tells a provider that is a gateway itself where to go and with whose key.
REFUSED: Mapping[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "models": (None, []),
    "route": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "metadata": (None, {}),
    "plugins": (None, []),
    "web_search": (None, False),
    "web_search_options": (None,),
    "background": (None, False),
    "prediction": (None,),
    "transforms": (None, []),
    "fallbacks": (None, []),
    "api_key": (None,),
    "api_base": (None,),
    "base_url": (None,),
    "extra_headers": (None, {}),
    "extra_body": (None, {}),
}
PROMPT_PARAMETERS = ("tools", "response_format")
PROVIDER_SORTS = ("price", "throughput", "latency")
PROVIDER_MEMBERS = ("order", "only", "ignore", "sort", "max_price", "allow_fallbacks")
ROUTING = (
    "routing_strategy",
    "allow_external",
    "max_input_price_per_million",
    "max_output_price_per_million",
    "timeout_ms",
    "provider",
)


def parse(body: dict[str, Any], content: bytes, *, settings: Settings, idempotency_key: str | None) -> PaidRequest:
    """A validated request. Raises `InvalidRequest` naming the parameter."""
    for name in [name for name, value in body.items() if value is None and name in CHECKS]:
        del body[name]
    for name, value in body.items():
        check = CHECKS.get(name)
        if check is not None:
            check(name, value)
        elif name in REFUSED and value not in REFUSED[name]:
            raise InvalidRequest(f"{name}: not offered here; leave it out", code="unsupported_parameter", param=name)
    if not body.get("model"):
        raise InvalidRequest(
            "model: say which model; GET /v1/models lists them", code="missing_parameter", param="model"
        )
    size = _prompt_size(body, settings)
    limit_param = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    options = body.get("stream_options") or {}
    wishes = _wishes(body)
    timeout_ms = body.get("timeout_ms")
    upstream = {name: value for name, value in body.items() if name not in ROUTING and name not in REFUSED}
    if upstream.get("top_p") == -1:
        del upstream["top_p"]
    stream = body.get("stream", settings.inference.stream_default)
    if options and not stream:
        raise _refuse("stream_options", "only allowed when stream is true")
    modalities = body.get("modalities") or ()
    return PaidRequest(
        endpoint="chat.completions",
        path="/v1/chat/completions",
        model=body["model"],
        body=upstream,
        content=content,
        stream=stream,
        size=size,
        choices=body.get("n", 1),
        output_limit=body.get(limit_param),
        output_limit_param=limit_param,
        include_usage=bool(options.get("include_usage")),
        audio=bool(size.audio_bytes) or "audio" in modalities,
        wishes=wishes,
        first_byte_timeout_s=timeout_ms / 1000 if timeout_ms is not None else None,
        idempotency_key=idempotency_key,
    )


def _prompt_size(body: Mapping[str, Any], settings: Settings) -> PromptSize:
    messages = body.get("messages")
    if not isinstance(messages, list) or not 0 < len(messages) <= MESSAGES_MAX:
        raise InvalidRequest(
            f"messages: must be a list of 1 to {MESSAGES_MAX} messages", code="invalid_parameter", param="messages"
        )
    text = images = audio = 0
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise _refuse(f"messages[{index}].role", f"must be one of {', '.join(ROLES)}")
        content = message.get("content")
        if isinstance(content, str):
            text += len(content.encode())
        elif isinstance(content, list):
            for number, part in enumerate(content):
                sizes = _part_size(f"messages[{index}].content[{number}]", part, settings)
                text, images, audio = text + sizes[0], images + sizes[1], audio + sizes[2]
        elif content is not None:
            raise _refuse(f"messages[{index}].content", "must be a string or a list of parts")
        others = {name: value for name, value in message.items() if name not in {"role", "content"}}
        if others:
            text += len(orjson.dumps(others))
    for name, value in body.items():
        # A provider may make prompt of what is not known here (`functions`, `documents`, templates).
        if name in PROMPT_PARAMETERS or (name not in CHECKS and name not in REFUSED and name != "messages"):
            text += len(orjson.dumps(value))
    return PromptSize(text, len(messages), images, audio)


def _part_size(where: str, part: Any, settings: Settings) -> tuple[int, int, int]:
    """Text bytes, images and audio bytes of one content part."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind in TEXT_PARTS and isinstance(part.get(kind), str):
        return len(part[kind].encode()), 0, 0
    if kind == "image_url":
        image = part.get("image_url")
        url = image.get("url") if isinstance(image, dict) else image
        _media_url(f"{where}.image_url.url", url, settings)
        return 0, 1, 0
    if kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        data = part["input_audio"].get("data")
        if isinstance(data, str):
            return 0, 0, len(data)
    raise _refuse(where, "must be a part of type text, refusal, image_url or input_audio, with its content")


def _media_url(where: str, url: Any, settings: Settings) -> None:
    """Providers of ours would fetch it from inside the operator's network: data only, unless listed."""
    if not isinstance(url, str):
        raise _refuse(where, "must be a string")
    if url.startswith("data:image/"):
        return
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise _refuse(where, "must be a URL") from error
    if parts.scheme == "https" and parts.hostname in settings.inference.media_hosts:
        return
    raise _refuse(where, "must be a data:image/... URL; remote media are not fetched here")


def _wishes(body: Mapping[str, Any]) -> Wishes:
    prices = [body.get("max_input_price_per_million"), body.get("max_output_price_per_million")]
    if (prices[0] is None) != (prices[1] is None):
        missing = "max_input_price_per_million" if prices[0] is None else "max_output_price_per_million"
        raise _refuse(missing, "set both price ceilings or neither")
    if not any(name in body for name in ROUTING):
        return NO_WISHES
    provider = body.get("provider") or {}
    ceilings = [PicoUsd(price * PICO_USD_PER_CENT_PER_MILLION) if price is not None else None for price in prices]
    _check_provider(provider)
    max_price = provider.get("max_price") or {}
    return Wishes(
        strategy=body.get("routing_strategy", "balanced"),
        allow_external=body.get("allow_external"),
        max_input=_lower(ceilings[0], max_price, "prompt"),
        max_output=_lower(ceilings[1], max_price, "completion"),
        order=_names(provider, "order"),
        only=_names(provider, "only"),
        ignore=_names(provider, "ignore"),
        allow_fallbacks=provider.get("allow_fallbacks") is not False,
    )


def _check_provider(provider: Mapping[str, Any]) -> None:
    """A wish that cannot be kept is refused: to ignore it would break a promise about money or privacy."""
    for name, value in provider.items():
        if name not in PROVIDER_MEMBERS and value is not None:
            shown = f"provider.{name[:NAME_CHARACTERS_SHOWN]}"
            raise InvalidRequest(f"{shown}: not offered here; leave it out", code="unsupported_parameter", param=shown)
    if not isinstance(provider.get("allow_fallbacks", True), bool | None):
        raise _refuse("provider.allow_fallbacks", "must be true or false")
    if provider.get("sort") is not None:
        _one_of(*PROVIDER_SORTS)("provider.sort", provider["sort"])
    max_price = provider.get("max_price")
    if not isinstance(max_price, dict | None):
        raise _refuse("provider.max_price", "must be an object with prompt and completion")
    for name in max_price or ():
        if name not in {"prompt", "completion"}:
            shown = f"provider.max_price.{name[:NAME_CHARACTERS_SHOWN]}"
            raise InvalidRequest(f"{shown}: not offered here; leave it out", code="unsupported_parameter", param=shown)


def _lower(ceiling: PicoUsd | None, max_price: Mapping[str, Any], name: str) -> PicoUsd | None:
    """The lower of a ceiling and OpenRouter's, which is USD per million tokens as a number or a string."""
    value = max_price.get(name)
    if value is None:
        return ceiling
    where = f"provider.max_price.{name}"
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise _refuse(where, "must be USD per million tokens")
    try:
        # The shortest text of a JSON number is what the client wrote: no arithmetic on floats.
        price = parse_price_per_million(str(value))
    except ValueError as error:
        raise _refuse(where, "must be USD per million tokens with at most six decimal places") from error
    if price < 0:
        raise _refuse(where, "must not be negative")
    return price if ceiling is None else min(ceiling, price)


def _names(provider: Mapping[str, Any], name: str) -> tuple[str, ...]:
    names = provider.get(name) or []
    if not isinstance(names, list) or len(names) > NAMES_MAX or not all(isinstance(each, str) for each in names):
        raise _refuse(f"provider.{name}", f"must be a list of up to {NAMES_MAX} provider names")
    return tuple(names)
