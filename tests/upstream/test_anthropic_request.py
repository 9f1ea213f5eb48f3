"""What is sent to the Messages API for a chat request, and what is refused before anything is sent."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.upstream.anthropic_request import (
    BUDGET_MIN,
    BUDGETS,
    EFFORTS,
    FORMS,
    closed,
    refused_form,
    request_body,
    request_content,
)
from app.upstream.provider import Call, UpstreamError
from tests.dialects.anthropic import ADAPTIVE_REFUSED, BUDGET_REFUSED, EFFORT_REFUSED, complaint_of

HELLO: list[dict[str, Any]] = [{"role": "user", "content": "Hello"}]
PIXEL = "iVBORw0KGgo="
SEARCH = {"type": "function", "function": {"name": "search", "parameters": {"type": "object", "properties": {}}}}
BUDGET_FORM = frozenset({"adaptive", "effort"})


def call(messages: Any = None, *, limit: int = 4096, stream: bool = False, **parameters: Any) -> Call:
    body = {"model": "asked/for", "messages": HELLO if messages is None else messages, **parameters}
    return Call("req_1", "claude-test", body, stream, limit, 10)


def sent(messages: Any = None, *, refused: frozenset[str] = frozenset(), **parameters: Any) -> dict[str, Any]:
    """The request, which the API would take."""
    body, _ = request_content(call(messages, **parameters), refused)
    assert complaint_of(body) is None
    return body


def refusal(messages: Any = None, **parameters: Any) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        request_content(call(messages, **parameters))
    assert caught.value.callers_fault
    assert caught.value.status == 400
    return caught.value


def said(role: str, text: str) -> dict[str, Any]:
    return {"role": role, "content": [{"type": "text", "text": text}]}


def called(*ids: str, arguments: str = "{}") -> dict[str, Any]:
    function = {"name": "search", "arguments": arguments}
    return {"role": "assistant", "tool_calls": [{"id": each, "type": "function", "function": function} for each in ids]}


def result(call_id: str, content: Any = "found", **members: Any) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content, **members}


def test_smallest_request() -> None:
    assert sent() == {
        "model": "claude-test",
        "max_tokens": 4096,
        "stream": False,
        "messages": [said("user", "Hello")],
    }


def test_instructions_become_the_system_prompt_in_their_order() -> None:
    messages = [
        {"role": "system", "content": "One"},
        {"role": "developer", "content": [{"type": "text", "text": "Two"}]},
        *HELLO,
        {"role": "system", "content": "Three"},
    ]
    body = sent(messages)
    assert [block["text"] for block in body["system"]] == ["One", "Two", "Three"]
    assert body["messages"] == [said("user", "Hello")]


def test_messages_of_one_role_in_a_row_become_one() -> None:
    messages = [*HELLO, {"role": "user", "content": "there"}, {"role": "assistant", "content": "Hi"}, *HELLO]
    assert [(turn["role"], len(turn["content"])) for turn in sent(messages)["messages"]] == [
        ("user", 2),
        ("assistant", 1),
        ("user", 1),
    ]


def test_tool_calls_and_their_results_keep_together() -> None:
    messages = [
        *HELLO,
        called("call_1", "call_2", arguments='{"q": "fare", "n": 2}') | {"content": "Looking"},
        result("call_1"),
        result("call_2", [{"type": "text", "text": "more"}]),
        {"role": "user", "content": "and?"},
    ]
    turns = sent(messages)["messages"]
    arguments = {"q": "fare", "n": 2}
    assert turns[1:] == [
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Looking"},
                {"type": "tool_use", "id": "call_1", "name": "search", "input": arguments},
                {"type": "tool_use", "id": "call_2", "name": "search", "input": arguments},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "found"}]},
                {"type": "tool_result", "tool_use_id": "call_2", "content": [{"type": "text", "text": "more"}]},
                {"type": "text", "text": "and?"},
            ],
        },
    ]


@pytest.mark.parametrize("odd", ["functions.search:0", "ü", "x" * 65])
def test_call_ids_that_the_api_refuses_are_replaced_alike_in_call_and_result(odd: str) -> None:
    turns = sent([*HELLO, called(odd, odd + "1"), result(odd), result(odd + "1")])["messages"]
    ids = [block["id"] for block in turns[1]["content"]]
    assert ids == [block["tool_use_id"] for block in turns[2]["content"]]
    assert len(set(ids)) == 2
    assert all(each.isascii() and len(each) <= 64 and ":" not in each for each in ids)


@pytest.mark.parametrize("arguments", ["{", "[1]", "null", "\x00", "[" * 2000, 7])
def test_arguments_that_are_no_object_are_the_callers_fault(arguments: Any) -> None:
    error = refusal([*HELLO, called("call_1", arguments=arguments), result("call_1")])
    assert error.message.startswith("messages[1].tool_calls[0].function.arguments")
    assert not error.fail_over


def test_arguments_nested_past_what_can_be_sent_are_the_callers_fault() -> None:
    deep = '{"a":' * 600 + "{}" + "}" * 600
    assert not refusal([*HELLO, called("call_1", arguments=deep), result("call_1")]).fail_over


@pytest.mark.parametrize("arguments", ["", " ", None])
def test_call_without_arguments_has_none(arguments: Any) -> None:
    turns = sent([*HELLO, called("call_1", arguments=arguments), result("call_1", "")])["messages"]
    assert turns[1]["content"][0]["input"] == {}
    assert turns[2]["content"] == [{"type": "tool_result", "tool_use_id": "call_1"}]


def test_images_are_sent_by_data_or_by_url() -> None:
    parts = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": f"data:image/JPG;charset=utf-8;base64,{PIXEL}"}},
        {"type": "image_url", "image_url": {"url": "https://media.example/a.png"}},
    ]
    content = sent([{"role": "user", "content": parts}])["messages"][0]["content"]
    assert [block.get("source") for block in content] == [
        None,
        {"type": "base64", "media_type": "image/png", "data": PIXEL},
        {"type": "base64", "media_type": "image/jpeg", "data": PIXEL},
        {"type": "url", "url": "https://media.example/a.png"},
    ]


@pytest.mark.parametrize(
    ("url", "fail_over"),
    [("data:image/svg+xml;base64,AA", True), ("data:image/png,AA", False), ("http://media.example", False), (7, False)],
)
def test_image_that_cannot_be_sent_is_the_callers_fault(url: Any, fail_over: bool) -> None:
    error = refusal([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}])
    assert error.message.startswith("messages[0].content[0].image_url")
    assert error.fail_over is fail_over


@pytest.mark.parametrize(
    "message",
    [
        {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "AA", "format": "wav"}}]},
        {"role": "function", "name": "search", "content": "found"},
        {"role": "assistant", "function_call": {"name": "search", "arguments": "{}"}},
        {"role": "assistant", "tool_calls": [{"id": "1", "type": "custom", "custom": {"name": "a", "input": "b"}}]},
        {"role": "assistant", "tool_calls": "search"},
        {"role": "system", "content": [{"type": "image_url", "image_url": f"data:image/png;base64,{PIXEL}"}]},
        {"role": "tool", "content": "found"},
        {"role": "user", "content": 7},
    ],
)
def test_message_that_cannot_be_said_is_the_callers_fault(message: dict[str, Any]) -> None:
    assert refusal([*HELLO, message]).message.startswith("messages[1]")


@pytest.mark.parametrize("content", ["", " \n", None, [], [{"type": "text", "text": "\t"}]])
def test_message_without_text_is_left_out(content: Any) -> None:
    assert sent([*HELLO, {"role": "assistant", "content": content}])["messages"] == [said("user", "Hello")]
    assert refusal([{"role": "user", "content": content}]).message.startswith("messages:")


def test_answer_to_be_continued_ends_without_white_space() -> None:
    assert sent([*HELLO, {"role": "assistant", "content": "The fare is \n"}])["messages"][1] == said(
        "assistant", "The fare is"
    )


def test_refusal_and_reasoning_of_earlier_turns() -> None:
    turn = {"role": "assistant", "content": None, "refusal": "No.", "reasoning_content": "hm", "name": "bot"}
    assert sent([*HELLO, turn, *HELLO])["messages"][1] == said("assistant", "No.")


def test_cache_marks_pass_through_from_parts_messages_and_tools() -> None:
    mark = {"type": "ephemeral"}
    marked = {"cache_control": mark}
    part = {"type": "text", "text": "x", **marked}
    messages = [
        {"role": "system", "content": [part]},
        {"role": "user", "content": "Hello", **marked},
        called("call_1"),
        result("call_1", [part]),
    ]
    body = sent(messages, tools=[SEARCH | {"cache_control": {**mark, "ttl": "5m"}}])
    assert body["system"] == [part]
    assert body["messages"][0]["content"][0]["cache_control"] == mark
    assert body["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "call_1", "content": [{"type": "text", "text": "x"}], **marked}
    ]
    assert body["tools"][0]["cache_control"] == mark


@pytest.mark.parametrize(
    "mark", [{"type": "ephemeral", "ttl": "1h"}, {"type": "ephemeral", "ttl": []}, {"type": "forever"}, "ephemeral"]
)
def test_cache_mark_that_costs_more_than_its_price_says_is_refused(mark: Any) -> None:
    part = {"type": "text", "text": "x", "cache_control": mark}
    assert "cache_control" in refusal([{"role": "user", "content": [part]}]).message


def test_tools_and_their_choice() -> None:
    function = {"name": "fare", "description": "Fares", "strict": True, "parameters": {"properties": {"to": {}}}}
    body = sent(tools=[SEARCH, {"type": "function", "function": function}, {"function": {"name": "now"}}])
    assert body["tools"] == [
        {"name": "search", "input_schema": {"type": "object", "properties": {}}},
        {"name": "fare", "description": "Fares", "input_schema": {"type": "object", "properties": {"to": {}}}},
        {"name": "now", "input_schema": {"type": "object", "properties": {}}},
    ]
    assert "tool_choice" not in body


@pytest.mark.parametrize(
    ("choice", "parallel", "given"),
    [
        ("none", None, {"type": "none"}),
        ("none", False, {"type": "none"}),
        ("auto", None, None),
        ("auto", False, {"type": "auto", "disable_parallel_tool_use": True}),
        ("required", True, {"type": "any"}),
        ("required", False, {"type": "any", "disable_parallel_tool_use": True}),
        ({"type": "function", "function": {"name": "search"}}, None, {"type": "tool", "name": "search"}),
    ],
)
def test_tool_choice(choice: Any, parallel: bool | None, given: Any) -> None:
    more: dict[str, Any] = {} if parallel is None else {"parallel_tool_calls": parallel}
    assert sent(tools=[SEARCH], tool_choice=choice, **more).get("tool_choice") == given
    assert "tool_choice" not in sent(tool_choice="auto", **more)


@pytest.mark.parametrize(
    ("temperature", "top_p", "given"),
    [
        (0, None, {"temperature": 0}),
        (0.4, 0.9, {"temperature": 0.4}),
        (1, 0.9, {"top_p": 0.9}),
        (1.7, None, {}),
        (None, 1, {}),
    ],
)
def test_sampling_within_what_models_take(temperature: float | None, top_p: float | None, given: Any) -> None:
    asked: dict[str, Any] = {
        name: value for name, value in (("temperature", temperature), ("top_p", top_p)) if value is not None
    }
    body = sent(**asked)
    assert {name: body[name] for name in ("temperature", "top_p") if name in body} == given


@pytest.mark.parametrize(("stop", "given"), [("END", ["END"]), (["a", "\nb"], ["a", "\nb"]), ([], None)])
def test_stops(stop: Any, given: Any) -> None:
    assert sent(stop=stop).get("stop_sequences") == given


@pytest.mark.parametrize(
    "parameters",
    [
        {"n": 2},
        {"logprobs": True},
        {"top_logprobs": 3},
        {"modalities": ["text", "audio"]},
        {"functions": [{"name": "search"}]},
        {"stop": "\n"},
        {"stop": ["END", ""]},
        {"response_format": {"type": "json_object"}},
        {"response_format": {"type": "json_schema"}},
        {"tools": [{"type": "custom", "custom": {"name": "a"}}]},
        {"tools": [{"type": "function"}]},
        {"tools": [SEARCH], "tool_choice": {"type": "allowed_tools"}},
    ],
)
def test_what_the_api_cannot_do_is_refused_by_name(parameters: dict[str, Any]) -> None:
    assert any(refusal(**parameters).message.startswith(name) for name in parameters)


def test_what_is_not_named_is_not_sent() -> None:
    harmless: dict[str, Any] = {
        "seed": 1,
        "logit_bias": {"5": 1},
        "presence_penalty": 1,
        "frequency_penalty": 1,
        "user": "someone",
        "n": 1,
        "logprobs": False,
        "modalities": ["text"],
        "response_format": {"type": "text"},
        "stream_options": {"include_usage": True},
        "service_tier": "priority",
        "speed": "fast",
        "mcp_servers": [{"url": "https://elsewhere.example"}],
        "thinking": {"type": "enabled", "budget_tokens": 10**6},
        "max_tokens": 10**6,
    }
    assert sent(**harmless) == sent()


def test_schema_of_the_answer_is_closed_everywhere_and_the_callers_is_not_touched() -> None:
    inner = {"type": ["object", "null"], "properties": {"properties": {"type": "string"}}}
    schema = {
        "type": "object",
        "properties": {"type": {"type": "string"}, "list": {"type": "array", "items": inner}},
        "$defs": {"a": {"anyOf": [{"type": "object"}, {"type": "object", "additionalProperties": {"type": "object"}}]}},
    }
    copy = repr(schema)
    body = sent(response_format={"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}})
    closed_inner = inner | {"additionalProperties": False}
    assert body["output_config"]["format"] == {
        "type": "json_schema",
        "schema": {
            "type": "object",
            "properties": {"type": {"type": "string"}, "list": {"type": "array", "items": closed_inner}},
            "$defs": {
                "a": {
                    "anyOf": [
                        {"type": "object", "additionalProperties": False},
                        {"type": "object", "additionalProperties": {"type": "object", "additionalProperties": False}},
                    ]
                }
            },
            "additionalProperties": False,
        },
    }
    assert repr(schema) == copy


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "properties", "items", "anyOf", "$defs", "x"]),
            inner | st.sampled_from(["object", "string"]),
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(st.dictionaries(st.sampled_from(["type", "properties", "items", "anyOf", "not", "$defs"]), json_values))
def test_any_schema_can_be_closed_and_closing_twice_changes_nothing(schema: dict[str, Any]) -> None:
    once = closed(schema)
    assert closed(once) == once


@pytest.mark.parametrize("effort", EFFORTS)
def test_effort_asks_for_adaptive_thinking_in_summary(effort: str) -> None:
    body = sent(reasoning_effort=effort, temperature=0.2, top_p=0.5)
    assert body["thinking"] == {"type": "adaptive", "display": "summarized"}
    assert body["output_config"] == {"effort": EFFORTS[effort]}


def test_effort_that_a_model_lacks_becomes_the_most_that_all_have() -> None:
    assert sent(reasoning_effort="max", refused=frozenset({"max"}))["output_config"] == {"effort": "high"}
    assert "output_config" not in sent(reasoning_effort="max", refused=frozenset({"effort"}))


@given(effort=st.sampled_from(sorted(EFFORTS)), limit=st.integers(1, 200_000))
def test_budget_is_within_the_output_limit_or_there_is_none(effort: str, limit: int) -> None:
    body = sent(reasoning_effort=effort, limit=limit, refused=BUDGET_FORM)
    thinking = body.get("thinking")
    if thinking is None:
        assert limit * 3 // 4 < BUDGET_MIN
    else:
        assert BUDGET_MIN <= thinking["budget_tokens"] <= BUDGETS[effort]
        assert thinking["budget_tokens"] <= limit * 3 / 4


def test_no_effort_switches_thinking_off() -> None:
    assert sent(reasoning_effort="none", temperature=0)["thinking"] == {"type": "disabled"}
    assert sent(reasoning_effort="none", temperature=0)["temperature"] == 0
    assert "thinking" not in sent(reasoning_effort="none", refused=frozenset({"disabled"}))


def test_no_thinking_where_a_tool_must_be_called() -> None:
    body = sent(tools=[SEARCH], tool_choice="required", reasoning_effort="high", temperature=0)
    assert "thinking" not in body
    assert body["temperature"] == 0


def test_no_budget_between_a_call_and_its_answer() -> None:
    loop = [*HELLO, called("call_1"), result("call_1")]
    assert "thinking" not in sent(loop, reasoning_effort="low", refused=BUDGET_FORM)
    assert sent(loop, reasoning_effort="low")["thinking"]["type"] == "adaptive"
    assert "thinking" in sent([*loop, said("assistant", "Done"), *HELLO], reasoning_effort="low", refused=BUDGET_FORM)


@pytest.mark.parametrize(
    ("parameters", "words", "form"),
    [
        ({"temperature": 0}, "`temperature` is deprecated for this model.", "temperature"),
        ({"top_p": 0.5}, "`top_p` is deprecated for this model.", "top_p"),
        ({"reasoning_effort": "high"}, ADAPTIVE_REFUSED, "adaptive"),
        ({"reasoning_effort": "high"}, EFFORT_REFUSED, "effort"),
        ({"reasoning_effort": "max"}, "output_config: Extra inputs are not permitted", "effort"),
        ({"reasoning_effort": "max"}, "effort: 'max' is not supported by this model", "max"),
        ({"reasoning_effort": "high"}, "thinking.adaptive.display: Extra inputs are not permitted", "display"),
        ({"reasoning_effort": "none"}, '"thinking.type.disabled" is not supported for this model.', "disabled"),
        ({"reasoning_effort": "high"}, "prompt is too long: 200001 tokens", None),
        ({}, "`temperature` is deprecated for this model.", None),
        ({"temperature": 0}, "Unable to download https://caller.example/temperature", None),
    ],
)
def test_form_that_a_model_refuses_is_named(parameters: Mapping[str, Any], words: str, form: str | None) -> None:
    assert refused_form(sent(**parameters), words) == form
    assert form is None or form in FORMS


def test_budget_that_a_model_refuses_is_named() -> None:
    assert refused_form(sent(reasoning_effort="high", refused=BUDGET_FORM), BUDGET_REFUSED) == "budget"


def test_stream_and_limit_are_the_calls_own() -> None:
    body = request_body(call(stream=True, limit=7, max_tokens=100))
    assert (body["stream"], body["max_tokens"]) == (True, 7)
