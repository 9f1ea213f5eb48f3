"""The parameters of a chat completion: accepted, checked, taken out or refused, each by its name."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission import PaidRequest
from app.api import chat_parameters
from app.api.chat_parameters import CHECKS, OURS
from app.api.parameters import REFUSED
from app.api.routing_parameters import ROUTING
from app.endpoints import CHAT
from app.errors import InvalidRequest, NotFound
from app.routing.candidates import NO_WISHES
from app.settings import InferenceSettings, SearchSettings, Settings
from tests.api.paid_models import SETTINGS, incoming

PATH = "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "fare", "parameters": {"type": "object"}}}
IMAGE = "data:image/png;base64,iVBORw0KGgo="

ACCEPTED: dict[str, list[Any]] = {
    "max_tokens": [1, 4096, 2**31 - 1],
    "max_completion_tokens": [1, 2**31 - 1],
    "temperature": [0, 2, 0.7],
    "top_p": [0, 1, 0.5],
    "n": [1, 16],
    "stop": ["END", ["a"], ["a", "b", "c", "d"]],
    "presence_penalty": [-2, 2, 0.5],
    "frequency_penalty": [-2, 2],
    "logit_bias": [{}, {"50256": -100, "11": 100}],
    "user": ["me", ""],
    "tools": [[], [TOOL], [{"type": "custom", "custom": {"name": "x"}}]],
    "tool_choice": ["none", "auto", "required", {"type": "function", "function": {"name": "fare"}}],
    "parallel_tool_calls": [True, False],
    "response_format": [{"type": "json_object"}],
    "seed": [0, -1, 2**63 - 1],
    "logprobs": [True, False],
    "top_logprobs": [0, 20],
    "reasoning_effort": ["none", "minimal", "low", "medium", "high", "xhigh"],
    "modalities": [["text"], ["text", "audio"]],
    "something_new": [1, "x", {"a": [1]}],
}
WRONG: dict[str, list[Any]] = {
    "model": [1, [], {}, True],
    "stream": ["true", 1, 0, []],
    "stream_options": [True, [], "usage"],
    "max_tokens": [0, -1, 2**31, 1.5, "1", True],
    "max_completion_tokens": [0, 2**31, "1", False, [1]],
    "temperature": [-0.1, 2.1, "1", True, [], 1e300],
    "top_p": [-0.5, 1.1, "1", True, -2],
    "n": [0, 17, 1.0, "1", True],
    "stop": [1, ["a"] * 5, [1], {}, [["a"]]],
    "presence_penalty": [-2.1, 2.1, "0"],
    "frequency_penalty": [-2.1, 2.1, "0"],
    "logit_bias": [[], "x", 1],
    "user": [1, {}, []],
    "tools": [{}, "x", [TOOL] * 513],
    "tool_choice": ["any", 1, [], ["auto"]],
    "parallel_tool_calls": ["true", 1],
    "response_format": ["json", []],
    "seed": [1.5, "1", True],
    "logprobs": [1, "true"],
    "top_logprobs": [-1, 21, True],
    "reasoning_effort": ["extreme", 1, ["low"], {}],
    "modalities": ["audio", {}],
    "routing_strategy": ["dearest", 1, [], {}],
    "allow_external": ["true", 1],
    "max_input_price_per_million": [-1, 1.5, "1", True, 10**9],
    "max_output_price_per_million": [-1, 1.5, "1", True, 10**9],
    "timeout_ms": [0, 30_001, 1.5, "1", True],
    "provider": ["openai", [], 1],
    "messages": [None, [], {}, "Hello", HELLO * 10_001],
    "web_search": ["auto", 1, []],
    "web_search_options": [True, [], "medium"],
}
NOT_OFFERED: dict[str, list[Any]] = {
    "best_of": [2, 0, "1", True],
    "models": [["a", "b"], "a"],
    "route": ["fallback"],
    "service_tier": ["flex", "priority", 1],
    "store": [True, "false", 0],
    "metadata": [{"a": "b"}],
    "plugins": [[{"id": "web"}]],
    "background": [True],
    "prediction": [{"type": "content", "content": "x"}],
    "transforms": [["middle-out"]],
    "fallbacks": [["a"]],
    "api_key": ["sk-x"],
    "api_base": ["http://10.0.0.1"],
    "base_url": ["http://10.0.0.1"],
    "extra_headers": [{"a": "b"}],
    "extra_body": [{"a": "b"}],
    "priority": [1, -1, False],
    "deferred": [True],
    "lora": [[{"id": 0, "scale": 1.0}]],
    "lora_path": ["other"],
    "adapter_id": ["other"],
    "user_config": [{"model_list": []}],
    "custom_llm_provider": ["other"],
    "bootstrap_host": ["10.0.0.1"],
    "kv_transfer_params": [{"remote_host": "10.0.0.1"}],
    "n_predict": [100_000, -1, 1],
    "num_predict": [100_000],
    "max_new_tokens": [100_000],
    "max_output_tokens": [100_000],
    "max_tokens_to_sample": [100_000],
    "max_length": [100_000],
    "thinking_budget": [38_912, 0],
    "n_cmpl": [8, True],
    "num_generations": [5],
    "num_return_sequences": [4],
    "candidate_count": [8],
    "use_beam_search": [True, 1],
    "num_beams": [8],
    "beam_width": [8],
    "options": [{"num_predict": 100_000}],
    "parameters": [{"max_new_tokens": 100_000}],
    "sampling_params": [{"max_new_tokens": 100_000}],
    "generation_config": [{"maxOutputTokens": 100_000}],
    "generationConfig": [{"maxOutputTokens": 100_000}],
    "search_parameters": [{"mode": "on"}, {}, {"mode": "off", "sources": []}],
    "enable_search": [True, 0],
    "search_options": [{"forced_search": True}],
    "enable_code_interpreter": [True],
    "venice_parameters": [{"enable_web_search": "on"}],
    "compound_custom": [{"tools": {"enabled_tools": ["web_search"]}}],
    "search_settings": [{"country": "GB"}],
    "connectors": [[{"id": "web-search"}]],
    "data_sources": [[{"type": "azure_search"}]],
    "mcp_servers": [[{"type": "url", "url": "http://10.0.0.1"}]],
    "chat_template": ["{% for i in range(9999) %}{{ messages }}{% endfor %}"],
    "mm_processor_kwargs": [{"max_pixels": 10**9}],
    "media_io_kwargs": [{"video": {"num_frames": -1}}],
    "vl_high_resolution_images": [True],
}


def parse(settings: Settings = SETTINGS, /, **parameters: Any) -> PaidRequest:
    body = {"model": "m", "messages": HELLO, **parameters}
    return chat_parameters.parse(incoming(PATH, body, settings=settings))


def refused(**parameters: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**parameters)
    error = caught.value
    assert error.param is not None
    assert error.message.startswith(error.param)
    return error


def user(*parts: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


def pairs(table: dict[str, list[Any]]) -> list[Any]:
    cases = [(name, value) for name, listed in table.items() for value in listed]
    return [pytest.param(*case, id=f"{case[0]}-{json.dumps(case[1])[:20]}") for case in cases]


# Every parameter.


@pytest.mark.parametrize(("name", "value"), pairs(ACCEPTED))
def test_parameter_in_range_goes_upstream_as_it_is(name: str, value: Any) -> None:
    assert parse(**{name: value}).body[name] == value


@pytest.mark.parametrize(("name", "value"), pairs(WRONG))
def test_parameter_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    error = refused(**{name: value})
    assert (error.param, error.code, error.status) == (name, "invalid_parameter", 400)


@pytest.mark.parametrize(("name", "value"), pairs(NOT_OFFERED))
def test_parameter_that_costs_or_keeps_more_is_refused_by_name(name: str, value: Any) -> None:
    error = refused(**{name: value})
    assert (error.param, error.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, harmless in REFUSED.items() for value in harmless])
def test_parameter_that_asks_for_nothing_is_dropped(name: str, value: Any) -> None:
    assert name not in parse(**{name: value}).body


@pytest.mark.parametrize("name", [*CHECKS, *REFUSED])
def test_every_known_parameter_has_its_cases_here(name: str) -> None:
    assert name in WRONG or name in NOT_OFFERED


@pytest.mark.parametrize("name", [name for name in CHECKS if name != "model"])
def test_null_is_the_same_as_left_out(name: str) -> None:
    assert parse(**{name: None}) == replaced_content(parse(), **{name: None})


def replaced_content(request: PaidRequest, **parameters: Any) -> PaidRequest:
    """The content is kept as it came: an idempotency key binds it."""
    content = orjson.dumps({"model": "m", "messages": HELLO, **parameters})
    return PaidRequest(**{name: getattr(request, name) for name in request.__slots__} | {"content": content})


@pytest.mark.parametrize("model", [None, ""])
def test_model_is_required(model: str | None) -> None:
    error = refused(model=model)
    assert (error.param, error.code) == ("model", "missing_parameter")


def test_top_p_of_minus_one_is_accepted_and_dropped() -> None:
    for value in (-1, -1.0):
        assert "top_p" not in parse(top_p=value).body


def test_output_limit_is_the_newer_parameter_first() -> None:
    both = parse(max_tokens=5, max_completion_tokens=7)
    assert (both.output_limit, both.output_limit_param) == (7, "max_completion_tokens")
    old = parse(max_tokens=5)
    assert (old.output_limit, old.output_limit_param) == (5, "max_tokens")
    assert parse().output_limit is None


def test_choices_are_counted() -> None:
    assert parse(n=3).choices == 3
    assert parse().choices == 1


def test_stream_default_is_a_setting() -> None:
    streaming = Settings(inference=InferenceSettings(stream_default=True))
    assert parse().stream is False
    assert parse(streaming).stream is True
    assert parse(streaming, stream=False).stream is False
    assert parse(stream=True).stream is True


def test_stream_options_belong_to_streams() -> None:
    assert parse(stream=True, stream_options={"include_usage": True}).include_usage is True
    assert parse(stream=True, stream_options={"include_usage": False}).include_usage is False
    assert parse(stream=True).include_usage is False
    assert refused(stream_options={"include_usage": True}).param == "stream_options"
    assert refused(stream=True, stream_options={"include_usage": "yes"}).param == "stream_options.include_usage"


def test_logit_bias_names_the_token() -> None:
    assert refused(logit_bias={"11": 101}).param == "logit_bias.11"
    assert refused(logit_bias={"11": "1"}).param == "logit_bias.11"


@pytest.mark.parametrize("wrong", [{"type": "web_search"}, {"type": []}, {"type": None}, "x", None])
def test_tools_name_the_one_that_is_wrong(wrong: Any) -> None:
    assert refused(tools=[TOOL, wrong]).param == "tools[1]"


def test_tool_of_a_servers_own_is_refused_by_its_name() -> None:
    assert refused(tools=[{"googleSearch": {}}]).param == "tools[0].googleSearch"
    assert refused(tools=[TOOL, {**TOOL, "search_context_size": "high"}]).param == "tools[1].search_context_size"
    cached = {**TOOL, "cache_control": {"type": "ephemeral"}, "strict": True}
    assert parse(tools=[cached]).body["tools"] == [cached]


# Routing.


def test_routing_parameters_are_ours_alone() -> None:
    wishes = {
        "routing_strategy": "cheapest",
        "allow_external": True,
        "max_input_price_per_million": 10,
        "max_output_price_per_million": 20,
        "timeout_ms": 1500,
        "provider": {"order": ["a"], "only": ["a", "b"], "ignore": ["c"], "sort": "price", "allow_fallbacks": False},
    }
    assert set(wishes) == set(ROUTING)
    request = parse(**wishes)
    assert request.body == {"model": "m", "messages": HELLO}
    assert request.first_byte_timeout_s == 1.5
    found = request.wishes
    assert (found.strategy, found.allow_external) == ("cheapest", True)
    # 10 cents per million tokens are 1e-7 USD a token, which is 100,000 pico-USD.
    assert (found.max_input, found.max_output) == (100_000, 200_000)
    assert (found.order, found.only, found.ignore, found.allow_fallbacks) == (("a",), ("a", "b"), ("c",), False)


def test_request_without_wishes_has_none() -> None:
    assert parse().wishes is NO_WISHES
    assert parse().first_byte_timeout_s is None


@pytest.mark.parametrize(
    ("given_one", "missing"),
    [
        ("max_input_price_per_million", "max_output_price_per_million"),
        ("max_output_price_per_million", "max_input_price_per_million"),
    ],
)
def test_price_ceilings_come_in_pairs(given_one: str, missing: str) -> None:
    assert refused(**{given_one: 1}).param == missing
    assert refused(**{given_one: 1, missing: None}).param == missing


@pytest.mark.parametrize(("timeout_ms", "seconds"), [(1, 0.001), (30_000, 30)])
def test_timeout_is_milliseconds_to_the_first_byte(timeout_ms: int, seconds: float) -> None:
    assert parse(timeout_ms=timeout_ms).first_byte_timeout_s == seconds


@pytest.mark.parametrize("member", ["order", "only", "ignore"])
@pytest.mark.parametrize("value", ["a", [1], ["a"] * 65, {"a": 1}, [["a"]]])
def test_provider_lists_are_names(member: str, value: Any) -> None:
    assert refused(provider={member: value}).param == f"provider.{member}"


@pytest.mark.parametrize(
    ("provider", "param"),
    [
        ({"allow_fallbacks": "no"}, "provider.allow_fallbacks"),
        ({"allow_fallbacks": 0}, "provider.allow_fallbacks"),
        ({"sort": "random"}, "provider.sort"),
        ({"sort": []}, "provider.sort"),
        ({"data_collection": "deny"}, "provider.data_collection"),
        ({"zdr": True}, "provider.zdr"),
        ({"max_price": 1}, "provider.max_price"),
        ({"max_price": {"image": 1}}, "provider.max_price.image"),
        ({"max_price": {"prompt": "cheap"}}, "provider.max_price.prompt"),
        ({"max_price": {"prompt": True}}, "provider.max_price.prompt"),
        ({"max_price": {"completion": -1}}, "provider.max_price.completion"),
        ({"max_price": {"completion": 1e-9}}, "provider.max_price.completion"),
        ({"max_price": {"completion": [1]}}, "provider.max_price.completion"),
    ],
)
def test_wish_that_cannot_be_kept_is_refused(provider: dict[str, Any], param: str) -> None:
    assert refused(provider=provider).param == param


def test_lower_of_two_price_ceilings_counts() -> None:
    ceilings = {"max_input_price_per_million": 50, "max_output_price_per_million": 50}
    found = parse(provider={"max_price": {"prompt": 0.1, "completion": "0.75"}}, **ceilings).wishes
    assert (found.max_input, found.max_output) == (100_000, 500_000)
    alone = parse(provider={"max_price": {"completion": 2}}).wishes
    assert (alone.max_input, alone.max_output) == (None, 2_000_000)


def test_members_of_provider_that_are_null_are_left_out() -> None:
    nothing = dict.fromkeys(("order", "only", "ignore", "sort", "max_price", "allow_fallbacks", "zdr"))
    found = parse(provider=nothing).wishes
    assert (found.order, found.max_input, found.allow_fallbacks) == ((), None, None)


# The prompt's size.


@pytest.mark.parametrize(
    ("messages", "size"),
    [
        (HELLO, (5, 1, 0, 0)),
        ([{"role": "system", "content": "é"}, *HELLO], (7, 2, 0, 0)),
        (user({"type": "text", "text": "fare"}, {"type": "text", "text": "?"}), (5, 1, 0, 0)),
        (user({"type": "refusal", "refusal": "no"}), (2, 1, 0, 0)),
        (
            user({"type": "image_url", "image_url": {"url": IMAGE}}, {"type": "image_url", "image_url": IMAGE}),
            (0, 1, 2, 0),
        ),
        (user({"type": "image_url", "image_url": {"url": "https://images.example/a.png"}}), (0, 1, 1, 0)),
        (user({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}}), (0, 1, 0, 8)),
        (user({"type": "input_audio", "input_audio": {"data": "data:;base64,UklGRg=="}}), (0, 1, 0, 21)),
        ([{"role": "assistant", "content": None, "refusal": "x"}], (len('{"refusal":"x"}'), 1, 0, 0)),
        ([{"role": "tool", "content": "5", "tool_call_id": "c"}], (1 + len('{"tool_call_id":"c"}'), 1, 0, 0)),
    ],
)
def test_prompt_is_measured_by_its_parts(messages: list[Any], size: tuple[int, ...]) -> None:
    found = parse(messages=messages).size
    assert (found.text_bytes, found.messages, found.images, found.audio_bytes) == size


@pytest.mark.parametrize(
    "name", ["tools", "response_format", "functions", "documents", "chat_template_kwargs", "tool_choice"]
)
def test_what_may_become_prompt_counts_as_prompt(name: str) -> None:
    values = {
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "x" * 99}},
        "response_format": {"type": "json_schema", "json_schema": TOOL},
    }
    value: Any = values.get(name, ["x" * 99])
    assert parse(**{name: value}).size.text_bytes == 5 + len(orjson.dumps(value))


LONG = "x" * 100_000
SOUND = {"data": "UklGRg==", "format": "wav"}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "text", "text": "a", "more": LONG},
        {"type": "refusal", "refusal": "a", "text": LONG},
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral", "more": LONG}},
        {"type": "image_url", "image_url": {"url": IMAGE, "detail": LONG}},
        {"type": "image_url", "image_url": {"url": IMAGE, "alt": LONG}},
        {"type": "image_url", "image_url": IMAGE, "text": LONG},
        {"type": "input_audio", "input_audio": {**SOUND, "transcript": LONG}},
        {"type": "input_audio", "input_audio": {**SOUND, "format": LONG}},
        {"type": "input_audio", "input_audio": SOUND, "text": [{"nested": LONG}]},
    ],
)
def test_members_of_a_part_that_are_not_known_count_as_prompt(part: dict[str, Any]) -> None:
    request = parse(messages=user(part))
    assert request.body["messages"][0]["content"] == [part]
    assert len(LONG) < request.size.text_bytes < len(LONG) + 100


@pytest.mark.parametrize("cached", [{"type": "ephemeral"}, {"type": "ephemeral", "ttl": "1h"}, None])
def test_members_of_a_part_that_are_no_prompt_are_sent_on_and_cost_nothing(cached: Any) -> None:
    parts = [
        {"type": "text", "text": "fare", "cache_control": cached},
        {"type": "image_url", "image_url": {"url": IMAGE, "detail": "high"}, "cache_control": cached},
        {"type": "input_audio", "input_audio": SOUND, "cache_control": cached},
    ]
    request = parse(messages=user(*parts))
    assert request.body["messages"][0]["content"] == parts
    assert request.size.text_bytes == len("fare")


def test_audio_is_priced_where_it_is_said_or_heard() -> None:
    heard = user({"type": "input_audio", "input_audio": {"data": "UklGRg==", "format": "wav"}})
    assert parse(messages=heard).audio
    assert parse(modalities=["text", "audio"]).audio
    assert not parse(modalities=["text"]).audio


@pytest.mark.parametrize(
    "url",
    [
        "http://images.example/a.png",
        "https://evil.example/a.png",
        "https://images.example.evil.example/a.png",
        "https://images.example@evil.example/a.png",
        "https://evil.example/images.example",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "data:text/html,x",
        "//images.example/a.png",
        "https://[",
        "https://[::1",
        "",
        None,
        {"url": IMAGE},
        7,
    ],
)
def test_media_that_a_provider_would_fetch_are_refused(url: Any) -> None:
    messages = user({"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": url}})
    assert refused(messages=messages).param == "messages[0].content[1].image_url.url"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("Hello", "messages[1].role"),
        ({"content": "x"}, "messages[1].role"),
        ({"role": "root", "content": "x"}, "messages[1].role"),
        ({"role": [], "content": "x"}, "messages[1].role"),
        ({"role": "user", "content": 1}, "messages[1].content"),
        ({"role": "user", "content": {}}, "messages[1].content"),
        ({"role": "user", "content": ["x"]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": []}]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "video_url", "video_url": {"url": "x"}}]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "file", "file": {"file_id": "x"}}]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}, "messages[1].content[0]"),
        ({"role": "user", "content": [{"type": "input_audio", "input_audio": "x"}]}, "messages[1].content[0]"),
        (user({"type": "input_audio", "input_audio": {"data": "https://10.0.0.1/a.wav"}})[0], "messages[1].content[0]"),
        (user({"type": "input_audio", "input_audio": {"data": "file:///a.wav"}})[0], "messages[1].content[0]"),
    ],
)
def test_message_that_is_wrong_is_named(message: Any, param: str) -> None:
    assert refused(messages=[*HELLO, message]).param == param


# What a model must be able to do.


def test_request_is_one_of_chat() -> None:
    request = parse()
    assert (request.endpoint, request.path, request.needs, dict(request.units)) == (CHAT, PATH, frozenset(), {})


@pytest.mark.parametrize(
    ("parameters", "needs"),
    [
        ({"tools": [TOOL]}, {"tools"}),
        ({"tools": []}, set()),
        ({"functions": [{"name": "fare"}]}, {"tools"}),
        ({"messages": user({"type": "image_url", "image_url": IMAGE})}, {"vision"}),
        ({"messages": user({"type": "input_audio", "input_audio": {"data": "AAAA"}})}, {"audio"}),
        ({"modalities": ["text", "audio"]}, {"audio"}),
        ({"modalities": ["text"]}, set()),
        ({"web_search": True}, {"tools"}),
    ],
)
def test_request_needs_what_it_uses(parameters: dict[str, Any], needs: set[str]) -> None:
    assert parse(**parameters).needs == needs


def test_model_that_cannot_chat_is_refused() -> None:
    assert (refused(model="embeds").param, refused(model="embeds").code) == ("model", "model_not_capable")


def test_unknown_model_is_not_found() -> None:
    with pytest.raises(NotFound):
        parse(model="nobody")


# Web search.

LONDON = {"type": "approximate", "approximate": {"country": "gb", "city": "London", "region": "x", "timezone": "y"}}


def test_search_is_a_bounded_number_of_searches() -> None:
    request = parse(web_search=True)
    assert request.units == {"web_search": SETTINGS.search.searches_max}
    assert request.search is not None
    assert (request.search.results, request.search.country, request.search.safesearch) == (5, None, "moderate")
    assert (request.search.rounds_max, request.search.result_bytes_max) == (3, 1200)
    assert not {"web_search", "web_search_options"} & set(request.body)


@pytest.mark.parametrize(
    ("parameters", "searching"),
    [
        ({}, False),
        ({"web_search": None}, False),
        ({"web_search": False}, False),
        ({"web_search": True}, True),
        ({"web_search_options": {}}, True),
        ({"web_search": False, "web_search_options": {"safesearch": "off"}}, False),
        ({"model": "searches"}, True),
        ({"model": "searches", "web_search": False}, False),
        ({"model": "chats"}, False),
        # A default is nobody's wish: it steps back.
        ({"model": "searches", "n": 2}, False),
        ({"model": "searches", "tools": [{"type": "function", "function": {"name": "web_search"}}]}, False),
    ],
)
def test_model_searches_where_it_is_asked_to_or_does_so_by_default(parameters: dict[str, Any], searching: bool) -> None:
    request = parse(**parameters)
    assert (request.search is not None) is searching
    assert ("web_search" in request.units) is searching


def test_nobody_searches_where_search_is_off() -> None:
    off = Settings(inference=InferenceSettings(), search=SearchSettings())
    assert parse(off, model="searches").search is None
    with pytest.raises(InvalidRequest, match=r"search\.backend") as caught:
        parse(off, web_search=True)
    assert caught.value.param == "web_search"


@pytest.mark.parametrize(
    ("parameters", "word"),
    [
        ({"model": "chats"}, "chats"),
        ({"n": 2}, "n = 1"),
        ({"tools": [TOOL, {"type": "function", "function": {"name": "web_search"}}]}, "tool"),
        ({"tools": [{"type": "custom", "custom": {"name": "web_search"}}]}, "tool"),
        ({"tools": [{"function": {"name": "web_search"}}]}, "tool"),
        ({"functions": [{"name": "web_search"}]}, "tool"),
    ],
)
def test_search_that_cannot_be_is_refused_with_its_reason(parameters: dict[str, Any], word: str) -> None:
    error = refused(web_search=True, **parameters)
    assert (error.param, error.code) == ("web_search", "unsupported_parameter")
    assert word in error.message
    assert refused(web_search_options={}, **parameters).param == "web_search_options"


def test_search_options_are_within_the_operators_bounds() -> None:
    options = {"search_context_size": "high", "user_location": LONDON, "safesearch": "strict", "accept_language": "en"}
    found = parse(web_search_options=options).search
    assert found is not None
    assert (found.results, found.country, found.safesearch, found.language) == (10, "GB", "strict", "en")
    low = parse(web_search_options={"search_context_size": "low", "user_location": None}).search
    assert low is not None
    assert (low.results, low.country) == (3, None)


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"search_context_size": "huge"}, "search_context_size"),
        ({"search_context_size": 5}, "search_context_size"),
        ({"safesearch": True}, "safesearch"),
        ({"unknown": 1}, "unknown"),
        ({"accept_language": "en\r\nX: y"}, "accept_language"),
        ({"accept_language": ""}, "accept_language"),
        ({"accept_language": "é"}, "accept_language"),
        ({"accept_language": "a" * 101}, "accept_language"),
        ({"accept_language": ["en"]}, "accept_language"),
        ({"user_location": "US"}, "user_location"),
        ({"user_location": {"type": "exact"}}, "user_location.type"),
        ({"user_location": {"country": "US"}}, "user_location.country"),
        ({"user_location": {"approximate": "US"}}, "user_location.approximate"),
        ({"user_location": {"approximate": {"country": "USA"}}}, "user_location.approximate.country"),
        ({"user_location": {"approximate": {"country": "ÀÉ"}}}, "user_location.approximate.country"),
        ({"user_location": {"approximate": {"country": 1}}}, "user_location.approximate.country"),
        ({"user_location": {"approximate": {"city": ["x"]}}}, "user_location.approximate.city"),
        ({"user_location": {"approximate": {"latitude": "1"}}}, "user_location.approximate.latitude"),
    ],
)
def test_search_option_that_is_wrong_is_named(options: dict[str, Any], param: str) -> None:
    assert refused(web_search=True, web_search_options=options).param == f"web_search_options.{param}"


# Anything at all.

names = st.sampled_from(
    [
        "role",
        "content",
        "type",
        "text",
        "url",
        "data",
        "image_url",
        "input_audio",
        "order",
        "max_price",
        "prompt",
        "sort",
        "approximate",
        "country",
    ]
) | st.text(st.characters(codec="utf-8"), max_size=4)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63) + 1, 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.sampled_from(["user", "text", "image_url", "input_audio", "function", "cheapest", "https://[", "audio"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
listed = [
    (name, value) for table in (ACCEPTED, WRONG, NOT_OFFERED) for name, given_ in table.items() for value in given_
]
small = [(name, value) for name, value in listed if len(str(value)) < 500]
parameters = st.sampled_from([*CHECKS, *REFUSED, "messages", "functions", "other"])
messages_ = st.lists(
    st.fixed_dictionaries({"role": st.sampled_from(["user", "tool"]) | json_values, "content": json_values}), max_size=3
)


@given(
    st.lists(st.sampled_from(small) | st.tuples(parameters, json_values), max_size=8).map(dict),
    messages_ | json_values | st.just(HELLO),
)
def test_any_object_is_a_request_or_an_invalid_request(body: dict[str, Any], messages: Any) -> None:
    sent = {"model": "m", "messages": messages, **body}
    try:
        request = chat_parameters.parse(incoming(PATH, sent))
    except (InvalidRequest, NotFound) as error:
        named = error.param
    else:
        assert orjson.dumps(request.body)
        assert not set(request.body) & {*OURS, *REFUSED}
        assert request.choices >= 1
        return
    assert named
