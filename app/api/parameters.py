"""What the parsers of all paid endpoints share: checks by parameter, what is refused, and whom a model is asked of.

A parser checks what it knows, takes out what is ours, refuses what nobody would pay for, and passes on the rest:
what multiplies output, chooses models or tiers, keeps data or adds paid tools never goes upstream blindly. Where
the amount is known before (images, speech, transcriptions), what is not known is refused instead.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson

from app.api.incoming import Incoming
from app.endpoints import Endpoint
from app.errors import InvalidRequest
from app.routing.candidates import Candidate

Check = Callable[[str, Any], None]

CHOICES_MAX = 16
STOPS_MAX = 4
LOGIT_BIAS_MAX = 100
NAME_CHARACTERS_SHOWN = 100
TOKEN_IDS_MAX = 1_000_000
TOKEN_ID_MAX = 2**31 - 1


def refuse(name: str, message: str) -> InvalidRequest:
    """A parameter whose value is wrong."""
    return InvalidRequest(f"{name}: {message}", code="invalid_parameter", param=name)


def unsupported(name: str, message: str = "not offered here; leave it out") -> InvalidRequest:
    """A parameter that is known, and not sold."""
    return InvalidRequest(f"{name}: {message}", code="unsupported_parameter", param=name)


def missing(name: str, message: str) -> InvalidRequest:
    """A parameter that must be there."""
    return InvalidRequest(f"{name}: {message}", code="missing_parameter", param=name)


def number(least: float, most: float) -> Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            raise refuse(name, f"must be a number from {least:g} to {most:g}")

    return check


def integer(least: int, most: int) -> Check:
    def check(name: str, value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise refuse(name, f"must be an integer from {least} to {most}")

    return check


def kind(of: type, word: str) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, of):
            raise refuse(name, f"must be {word}")

    return check


def one_of(*allowed: str) -> Check:
    def check(name: str, value: Any) -> None:
        if value not in allowed:
            raise refuse(name, f"must be one of {', '.join(allowed)}")

    return check


def text(characters_max: int) -> Check:
    def check(name: str, value: Any) -> None:
        if not isinstance(value, str) or not 0 < len(value) <= characters_max:
            raise refuse(name, f"must be a string of 1 to {characters_max} characters")

    return check


def stops(name: str, value: Any) -> None:
    """One stop sequence, or a few."""
    listed = [value] if isinstance(value, str) else value
    if not isinstance(listed, list) or len(listed) > STOPS_MAX or not all(isinstance(stop, str) for stop in listed):
        raise refuse(name, f"must be a string or a list of up to {STOPS_MAX} strings")


def top_p(name: str, value: Any) -> None:
    """A share of the probability; -1 is some servers' word for "not set"."""
    if value != -1:
        number(0, 1)(name, value)


def logit_bias(name: str, value: Any) -> None:
    OBJECT(name, value)
    for token, bias in value.items():
        number(-LOGIT_BIAS_MAX, LOGIT_BIAS_MAX)(f"{name}.{token[:NAME_CHARACTERS_SHOWN]}", bias)


def stream_options(name: str, value: Any) -> None:
    OBJECT(name, value)
    BOOLEAN(f"{name}.include_usage", value.get("include_usage", False))


STRING = kind(str, "a string")
OBJECT = kind(dict, "an object")
BOOLEAN = kind(bool, "true or false")
LIST = kind(list, "a list")
TOKENS = integer(1, 2**31 - 1)

# What chat and plain completions have in common.
GENERATION: Mapping[str, Check] = {
    "model": STRING,
    "stream": BOOLEAN,
    "stream_options": stream_options,
    "max_tokens": TOKENS,
    "max_completion_tokens": TOKENS,
    "temperature": number(0, 2),
    "top_p": top_p,
    "n": integer(1, CHOICES_MAX),
    "stop": stops,
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "logit_bias": logit_bias,
    "user": STRING,
    "seed": integer(-(2**63), 2**63 - 1),
}

# Values that mean "nothing extra" are dropped; anything else costs or stores what nobody agreed to, or tells a
# provider where to go. Servers of OpenAI's kind read their own words, too, and theirs may go before ours: what is
# not known here is sent on (`unknown_bytes`), so what would get past a hold has to stand in this list.
_ELSEWHERE: Mapping[str, tuple[Any, ...]] = {
    # Other models and tiers than were priced, what is kept, and answers that are fetched later.
    "models": (None, []),
    "route": (None,),
    "fallbacks": (None, []),
    "service_tier": (None, "auto", "default"),
    "priority": (None, 0),
    "store": (None, False),
    "metadata": (None, {}),
    "background": (None, False),
    "deferred": (None, False),
    "lora": (None, []),
    "lora_path": (None,),
    "adapter_id": (None,),
    # A gateway, or a server of a cluster: where to go, and with whose key.
    "api_key": (None,),
    "api_base": (None,),
    "base_url": (None,),
    "extra_headers": (None, {}),
    "extra_body": (None, {}),
    "user_config": (None, {}),
    "custom_llm_provider": (None,),
    "bootstrap_host": (None,),
    "kv_transfer_params": (None, {}),
}
# More output than the limit, or more answers than were asked for, by the words of llama.cpp, vLLM, SGLang,
# text-generation-inference, Ollama, Cohere and Google.
_MORE_OUTPUT: Mapping[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "prediction": (None,),
    "n_predict": (None,),
    "num_predict": (None,),
    "max_new_tokens": (None,),
    "max_output_tokens": (None,),
    "max_tokens_to_sample": (None,),
    "max_length": (None,),
    "thinking_budget": (None,),
    "n_cmpl": (None, 1),
    "num_generations": (None, 1),
    "num_return_sequences": (None, 1),
    "candidate_count": (None, 1),
    "use_beam_search": (None, False),
    "num_beams": (None, 1),
    "beam_width": (None, 1),
    "options": (None, {}),
    "parameters": (None, {}),
    "sampling_params": (None, {}),
    "generation_config": (None, {}),
    "generationConfig": (None, {}),
}
# Paid tools, and prompts that grow on the way.
_MORE_INPUT: Mapping[str, tuple[Any, ...]] = {
    "plugins": (None, []),
    "transforms": (None, []),
    "search_parameters": (None, {"mode": "off"}),
    "enable_search": (None, False),
    "search_options": (None, {}),
    "enable_code_interpreter": (None, False),
    "venice_parameters": (None, {}),
    "compound_custom": (None, {}),
    "search_settings": (None, {}),
    "connectors": (None, []),
    "data_sources": (None, []),
    "mcp_servers": (None, []),
    # A template may say the same words over and over; media may be made of more tokens than they have at most.
    "chat_template": (None,),
    "mm_processor_kwargs": (None, {}),
    "media_io_kwargs": (None, {}),
    "vl_high_resolution_images": (None, False),
}
REFUSED: Mapping[str, tuple[Any, ...]] = {**_ELSEWHERE, **_MORE_OUTPUT, **_MORE_INPUT}
# Where the answer is one, whole, and made without the web.
SINGLE: Mapping[str, tuple[Any, ...]] = {
    "n": (None, 1),
    "stream": (None, False),
    "stream_options": (None,),
    "web_search": (None, False),
    "web_search_options": (None,),
}


def check_all(
    body: dict[str, Any],
    checks: Mapping[str, Check],
    refused: Mapping[str, tuple[Any, ...]],
    *,
    only_known: bool = False,
) -> None:
    """Check every member; a null that means "not said" is taken out. Raises `InvalidRequest`.

    ``only_known``: what is not known here is refused. So it is where an amount is billed that is known before: then
    any word of a provider's own may change what is made for it.
    """
    nulls = [name for name, value in body.items() if value is None]
    for name in [name for name in nulls if name in checks or (only_known and name not in refused)]:
        del body[name]
    for name, value in body.items():
        check = checks.get(name)
        if check is not None:
            check(name, value)
        # False and 0 are equal in Python, and are not the same wish.
        elif name in refused and not any(value == one and type(value) is type(one) for one in refused[name]):
            raise unsupported(name)
        elif only_known and name not in refused:
            raise unsupported(name[:NAME_CHARACTERS_SHOWN], "not known here; leave it out")


def unknown_bytes(body: Mapping[str, Any], known: Mapping[str, Any], refused: Mapping[str, Any]) -> int:
    """Bytes of what is not known here: a provider may make prompt of it (`documents`, templates, instructions)."""
    return sum(len(orjson.dumps(body[name])) for name in body if name not in known and name not in refused)


def named_model(body: Mapping[str, Any]) -> str:
    """The model that the body names. Raises `InvalidRequest`."""
    model = body.get("model")
    if not model or not isinstance(model, str):
        raise missing("model", "say which model; GET /v1/models lists them")
    return model


def default_model(incoming: Incoming, endpoint: Endpoint) -> str:
    """The first model that can do it, for bodies that may name none. Raises `InvalidRequest`."""
    for model_id, candidates in incoming.catalog.models.items():
        if any(endpoint.capability in candidate.model.capabilities for candidate in candidates):
            return model_id
    raise missing("model", "no model here can do this; GET /v1/models lists them all")


def capable(incoming: Incoming, model: str, endpoint: Endpoint) -> Sequence[Candidate]:
    """The candidates of a model that can do what is asked. Raises `NotFound` and `InvalidRequest`."""
    found = incoming.catalog.find(model)
    able = [candidate for candidate in found if endpoint.capability in candidate.model.capabilities]
    if not able:
        can = ", ".join(sorted({word for candidate in found for word in candidate.model.capabilities}))
        message = f"model: {found[0].model.id!r} cannot do {endpoint.capability}, only {can}"
        raise InvalidRequest(message, code="model_not_capable", param="model")
    return able


def token_ids(name: str, value: Sequence[Any], candidates: Sequence[Candidate]) -> int:
    """How many token ids these are. They mean something to one tokenizer alone, so the model must declare it."""
    tokenizers = {candidate.model.tokenizer for candidate in candidates}
    if len(tokenizers) != 1 or None in tokenizers:
        raise refuse(name, f"token ids are not taken by {candidates[0].model.id!r}; send text")
    if not 0 < len(value) <= TOKEN_IDS_MAX:
        raise refuse(name, f"must be 1 to {TOKEN_IDS_MAX} token ids")
    if not all(type(token) is int and 0 <= token <= TOKEN_ID_MAX for token in value):
        raise refuse(name, f"must be token ids from 0 to {TOKEN_ID_MAX}")
    return len(value)
