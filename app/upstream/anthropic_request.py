"""From a chat request to a request of the Messages API: the way out of `app.upstream.anthropic`. Pure.

Only what is named here is sent, so that nothing that multiplies cost or keeps data can pass unseen:

==========================  ==================================================================================
``max_tokens``              the request's output limit, thinking included
``temperature``             at most 1, the API's most; 1 is its default and not sent
``top_p``                   unless ``temperature`` is sent: models refuse both together; 1 is not sent
``stop``                    ``stop_sequences``; a stop of white space alone, which the API refuses, is refused
``tools``, ``tool_choice``  functions with their schema as ``input_schema``; ``required`` is ``any``; with
                            ``parallel_tool_calls`` false, ``disable_parallel_tool_use``. ``strict`` is left out
``reasoning_effort``        adaptive thinking with ``output_config.effort``; of models that know no such thing a
                            budget (`BUDGETS`, at most three quarters of the output limit, at least 1024 tokens
                            or none). ``none`` switches thinking off. With thinking, ``temperature`` and
                            ``top_p`` are left out; where a tool must be called there is no thinking, and with
                            a budget none between a call and its answer: the API refuses these
``response_format``         ``json_schema`` is ``output_config.format``; objects that do not say whether they
                            are closed are closed, as the API demands. ``json_object`` is refused
==========================  ==================================================================================

Refused, as the caller's fault: ``n`` above 1, ``logprobs``, output other than text, custom tools, the old
``functions``. Left out: ``seed``, ``logit_bias``, the penalties, ``user`` (nothing of who asks leaves here) and
all that is not known. The conversation: `app.upstream.anthropic_messages`.

Which forms a model takes is learned from its refusals (`refused_form`): `FORMS` are the names of what can be
left out.

Format: https://platform.claude.com/docs/en/api/messages, version 2023-06-01: for what is sent here, the next one,
2026-10-21, differs in taking no ``temperature`` and ``top_p`` of any model.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import orjson

from app.upstream.anthropic_messages import Block, cache_mark, conversation, malformed, unsupported
from app.upstream.provider import Call

SAMPLING = ("temperature", "top_p")
# The API's own default for both: newer models refuse any other value, and some the parameter.
SAMPLING_DEFAULT = 1
# What the API calls each effort, and the budget for models that are told one.
EFFORTS: Mapping[str, str] = {
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
    "max": "max",
}
BUDGETS: Mapping[str, int] = {
    "minimal": 1024,
    "low": 2048,
    "medium": 8192,
    "high": 16_384,
    "xhigh": 32_768,
    "max": 65_536,
}
BUDGET_MIN = 1024
# Efforts that not every model has, and the most that all have.
RARE_EFFORTS = ("xhigh", "max")
COMMON_EFFORT = "high"
FORMS = (*SAMPLING, "adaptive", "display", "effort", *RARE_EFFORTS, "budget", "disabled")
# An error may name a caller's own URL, which must teach nothing.
_URL = re.compile(r"\S+://\S+")
# Where a schema holds schemas: in an object by name, in a list, or as the value itself.
_SCHEMAS_BY_NAME = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")
_SCHEMAS_LISTED = ("anyOf", "allOf", "oneOf", "prefixItems")
_SCHEMAS_DIRECT = ("items", "not", "if", "then", "else", "contains", "additionalProperties", "propertyNames")


def request_content(call: Call, refused: Collection[str] = ()) -> tuple[dict[str, Any], bytes]:
    """The request for the Messages API, and its bytes. Raises `UpstreamError`, the caller's fault."""
    try:
        body = request_body(call, refused)
        return body, orjson.dumps(body)
    except orjson.JSONEncodeError as error:
        raise malformed("messages", "too deeply nested") from error


def request_body(call: Call, refused: Collection[str] = ()) -> dict[str, Any]:
    """The request without the forms that the model is known to refuse."""
    asked = call.body
    _refuse_unsupported(asked)
    system, messages = conversation(asked.get("messages") or ())
    body: dict[str, Any] = {
        "model": call.upstream_model,
        "max_tokens": call.output_limit,
        "stream": call.stream,
        "messages": messages,
    }
    if system:
        body["system"] = system
    stops = _stops(asked.get("stop"))
    if stops:
        body["stop_sequences"] = stops
    tools = _tools(asked.get("tools"))
    if tools:
        body["tools"] = tools
        body |= _tool_choice(asked)
    output_format = _output_format(asked.get("response_format"))
    if output_format:
        body["output_config"] = {"format": output_format}
    _think(body, call, refused)
    if body.get("thinking", {}).get("type") not in {"adaptive", "enabled"}:
        _sample(body, asked, refused)
    return body


def refused_form(sent: Mapping[str, Any], words: str) -> str | None:
    """The form of a request that an error's words complain of, if it was sent; what to leave out next."""
    thinking, config = sent.get("thinking") or {}, sent.get("output_config") or {}
    kind, effort = thinking.get("type"), config.get("effort")
    words = _URL.sub("", words)
    for name in SAMPLING:
        if name in sent and name in words:
            return name
    if "display" in thinking and "display" in words:
        return "display"
    if kind == "adaptive" and "adaptive" in words:
        return "adaptive"
    if len(config) == 1 and effort is not None and "output_config" in words and "effort" not in words:
        return "effort"
    if effort is not None and "effort" in words:
        return effort if effort in RARE_EFFORTS else "effort"
    if kind in {"enabled", "disabled"} and "thinking" in words:
        return "budget" if kind == "enabled" else "disabled"
    return None


def _refuse_unsupported(asked: Mapping[str, Any]) -> None:
    if (asked.get("n") or 1) != 1:
        raise unsupported("n", "this provider gives one choice")
    for name in ("logprobs", "top_logprobs"):
        if asked.get(name):
            raise unsupported(name, "this provider gives no probabilities")
    if any(kind != "text" for kind in asked.get("modalities") or ()):
        raise unsupported("modalities", "this provider answers in text")
    for name in ("functions", "function_call"):
        if asked.get(name):
            raise unsupported(name, "this provider takes tools instead")


def _stops(stop: Any) -> list[str]:
    stops = [stop] if isinstance(stop, str) else stop or []
    for text in stops:
        if not text or text.isspace():
            raise unsupported("stop", "this provider cannot stop at white space alone")
    return list(stops)


def _tools(tools: Any) -> list[Block]:
    return [_tool(f"tools[{index}]", tool) for index, tool in enumerate(tools or ())]


def _tool(where: str, tool: Mapping[str, Any]) -> Block:
    function = tool.get("function")
    if tool.get("type", "function") != "function":
        raise unsupported(where, "this provider takes function tools")
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise malformed(f"{where}.function", "must be an object with a name")
    schema = function.get("parameters")
    if not isinstance(schema, dict | None):
        raise malformed(f"{where}.function.parameters", "must be a JSON schema")
    # The API wants an object's schema; a function without parameters takes an empty one.
    given: Block = {"name": function["name"], "input_schema": {"type": "object", **(schema or {"properties": {}})}}
    if isinstance(function.get("description"), str) and function["description"]:
        given["description"] = function["description"]
    return given | cache_mark(where, tool if tool.get("cache_control") is not None else function)


def _tool_choice(asked: Mapping[str, Any]) -> Block:
    choice = asked.get("tool_choice", "auto")
    if choice == "none":
        return {"tool_choice": {"type": "none"}}
    if choice in ("auto", "required"):
        given: Block = {"type": "any" if choice == "required" else "auto"}
    else:
        function = choice.get("function") if isinstance(choice, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            raise unsupported("tool_choice", "must be none, auto, required or a function by name")
        given = {"type": "tool", "name": name}
    if asked.get("parallel_tool_calls") is False:
        given["disable_parallel_tool_use"] = True
    return {"tool_choice": given} if len(given) > 1 or choice != "auto" else {}


def _output_format(wanted: Any) -> Block | None:
    kind = wanted.get("type", "text") if isinstance(wanted, dict) else "text"
    if kind == "text":
        return None
    if kind != "json_schema":
        raise unsupported("response_format", "this provider takes json_schema, with a schema, or text")
    named = wanted.get("json_schema")
    schema = named.get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise malformed("response_format.json_schema.schema", "must be a JSON schema")
    return {"type": "json_schema", "schema": closed(schema)}


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema with every object that does not say otherwise closed to other properties."""
    copy: dict[str, Any] = orjson.loads(orjson.dumps(schema))
    waiting: list[Any] = [copy]
    while waiting:
        each = waiting.pop()
        if not isinstance(each, dict):
            continue
        kind = each.get("type")
        if kind == "object" or "properties" in each or (isinstance(kind, list) and "object" in kind):
            each.setdefault("additionalProperties", False)
        for name in _SCHEMAS_BY_NAME:
            named = each.get(name)
            waiting += named.values() if isinstance(named, dict) else ()
        for name in _SCHEMAS_LISTED:
            listed = each.get(name)
            waiting += listed if isinstance(listed, list) else ()
        waiting += [each[name] for name in _SCHEMAS_DIRECT if name in each]
    return copy


def _think(body: dict[str, Any], call: Call, refused: Collection[str]) -> None:
    """Add how much to think, in the newest form that the model takes."""
    wanted = call.body.get("reasoning_effort")
    if wanted == "none":
        if "disabled" not in refused:
            body["thinking"] = {"type": "disabled"}
        return
    forced = body.get("tool_choice", {}).get("type") in {"any", "tool"}
    if forced or not isinstance(wanted, str) or wanted not in EFFORTS:
        return
    if "adaptive" not in refused:
        # Newer models keep their thinking to themselves unless they are asked to sum it up.
        shown = {} if "display" in refused else {"display": "summarized"}
        body["thinking"] = {"type": "adaptive", **shown}
        if "effort" not in refused:
            effort = EFFORTS[wanted]
            body.setdefault("output_config", {})["effort"] = COMMON_EFFORT if effort in refused else effort
        return
    budget = min(BUDGETS[wanted], call.output_limit * 3 // 4)
    if "budget" not in refused and budget >= BUDGET_MIN and not _answers_tools(body["messages"]):
        body["thinking"] = {"type": "enabled", "budget_tokens": budget}


def _answers_tools(messages: list[Block]) -> bool:
    """Whether the model is to go on after its tool calls: the thinking before them would have to be sent too."""
    return any(block["type"] == "tool_result" for block in messages[-1]["content"])


def _sample(body: dict[str, Any], asked: Mapping[str, Any], refused: Collection[str]) -> None:
    for name in SAMPLING:
        value = asked.get(name)
        if value is not None and value < SAMPLING_DEFAULT and name not in refused:
            body[name] = value
            return
