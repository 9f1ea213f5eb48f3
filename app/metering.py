"""From a provider's events to usage: what was said, what was counted, what the client is shown.

The hot path of a stream: one event is decoded into the few fields that matter and, unless something
in it must change, its bytes go out as they came in. Output is counted by bytes of text, never by
chunks; the provider's usage is taken from wherever it stands, and the last report wins.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

import msgspec
import orjson

from app.endpoints import CHAT, COMPLETIONS, Endpoint
from app.money import NanoUsd, format_usd
from app.pricing.price_book import Usage
from app.upstream.provider import DONE, UpstreamError, safe_message

TOKENS_MAX = 10**9
# prompt_tokens, completion_tokens, total_tokens and nothing else: no details to look for.
PLAIN_MEMBERS = 3
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: list[_ToolCall] | None = None
    function_call: _Function | None = None
    audio: dict[str, Any] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    # Of a completion that is no chat.
    text: str | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: dict[str, Any] | None = None
    error: Any = None
    model: str | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


def _length(text: str | None) -> int:
    if not text:
        return 0
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _delta_bytes(delta: _Delta) -> int:
    total = _length(delta.content)
    if delta.reasoning_content or delta.reasoning:
        # Some servers send the same reasoning under both names: it is one text.
        total += max(_length(delta.reasoning_content), _length(delta.reasoning))
    if delta.refusal:
        total += _length(delta.refusal)
    for call in delta.tool_calls or ():
        if call.function is not None:
            total += _length(call.function.name) + _length(call.function.arguments)
    if delta.function_call is not None:
        total += _length(delta.function_call.name) + _length(delta.function_call.arguments)
    if delta.audio:
        total += sum(_length(value) for value in delta.audio.values() if isinstance(value, str))
    return total


class StreamMeter:
    """Reads one provider's stream for one request."""

    def __init__(self, *, model: str, final_usage: bool, endpoint: Endpoint = CHAT) -> None:
        self._model = model
        self._object = "text_completion" if endpoint is COMPLETIONS else "chat.completion.chunk"
        self._final_usage = final_usage
        self._upstream_model: str | None = None
        self._rename: tuple[bytes, bytes] | None = None
        self._template: dict[str, Any] = {}
        self._held_finish: dict[str, Any] | None = None
        self.text_bytes = 0
        self.usage: Mapping[str, Any] | None = None
        # The text up to the last report.
        self.reported_bytes = 0
        self.finish_reason: str | None = None
        self.done = False

    @property
    def finished(self) -> bool:
        """Whether the provider ended its answer: a stream that just stops has failed."""
        return self.done or self.finish_reason is not None

    def read(self, data: bytes) -> bytes | None:
        """Count one event; gives what the client is to see of it, or None.

        Raises `UpstreamError` for an error event and for nonsense.
        """
        if data == DONE:
            self.done = True
            return None
        try:
            chunk = _decode(data)
        except msgspec.DecodeError as error:
            return self._read_odd(data, error)
        if chunk.error is not None:
            raise _error_event(chunk.error)
        if chunk.choices is None:
            return self._read_odd(data, None)
        finish = False
        for choice in chunk.choices:
            if choice.delta is not None:
                self.text_bytes += _delta_bytes(choice.delta)
            if choice.text is not None:
                self.text_bytes += _length(choice.text)
            if choice.finish_reason is not None:
                self.finish_reason = choice.finish_reason
                finish = True
        if not self._template or chunk.model != self._upstream_model:
            self._learn(data, chunk.model)
        if chunk.usage is not None or (finish and self._final_usage):
            return self._reworked(data, chunk, finish=finish)
        return data.replace(*self._rename, 1) if self._rename else data

    def closing_chunks(self, usage: Usage, cost: NanoUsd, *, shown: bool) -> list[bytes]:
        """The events that show usage at the end: a chunk of its own, or merged into the finish chunk."""
        if self._final_usage:
            last = self._held_finish or {**self._template, "choices": []}
            return [orjson.dumps({**last, "usage": shown_usage(usage, cost)})]
        if not shown:
            return []
        return [orjson.dumps({**self._template, "choices": [], "usage": shown_usage(usage, cost)})]

    def _learn(self, data: bytes, model: str | None) -> None:
        """What the provider calls the answer and itself: Azure's first chunk leaves both empty, its second does not."""
        chunk = orjson.loads(data)
        kept = ("id", "object", "created", "system_fingerprint")
        self._template |= {name: chunk[name] for name in kept if chunk.get(name)}
        self._template.setdefault("object", self._object)
        self._template["model"] = self._model
        self._upstream_model, self._rename = model, None
        if model is not None and model != self._model:
            # A quote inside a JSON string is always escaped, so these bytes can only be the member.
            spaced = b'"model": ' if b'"model": ' in data else b'"model":'
            self._rename = (spaced + orjson.dumps(model), spaced + orjson.dumps(self._model))

    def _reworked(self, data: bytes, chunk: _Chunk, *, finish: bool) -> bytes | None:
        """A chunk with usage, or the last one: the usage is kept, and shown by us at the end."""
        if chunk.usage is not None:
            self.usage, self.reported_bytes = chunk.usage, self.text_bytes
        if not chunk.choices:
            return None
        body = orjson.loads(data)
        body.pop("usage", None)
        if "model" in body:
            body["model"] = self._model
        if finish and self._final_usage:
            earlier, self._held_finish = self._held_finish, body
            return orjson.dumps(earlier) if earlier is not None else None
        return orjson.dumps(body)

    def _read_odd(self, data: bytes, error: Exception | None) -> bytes | None:
        """Valid JSON of an unknown shape is passed on and counted whole; anything else ends the stream."""
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError:
            whole = _without_lone_surrogates(data)
            if whole is None or whole == data:
                raise UpstreamError("not_json", "the provider sent an event that is not JSON") from error
            return self.read(whole)
        if not isinstance(body, dict):
            raise UpstreamError("not_a_chunk", "the provider sent an event that is not a chunk") from error
        if body.get("error"):
            raise _error_event(body["error"])
        usage = body.pop("usage", None)
        if isinstance(usage, dict):
            self.usage, self.reported_bytes = usage, self.text_bytes
        if not body.get("choices"):
            return None
        self.text_bytes += len(data)
        if "model" in body:
            body["model"] = self._model
        return orjson.dumps(body)


def _without_lone_surrogates(data: bytes) -> bytes | None:
    """The event with each half of a surrogate pair replaced, if it is JSON otherwise.

    Providers that cut text by UTF-16 units send a character outside the first plane in two events.
    """
    try:
        text = json.dumps(json.loads(data), ensure_ascii=False, separators=(",", ":"))
    except (ValueError, RecursionError):
        return None
    return _SURROGATE.sub("\ufffd", text).encode()


def _error_event(error: Any) -> UpstreamError:
    message = error.get("message") if isinstance(error, dict) else error
    return UpstreamError("error_event", f"the provider reported an error: {safe_message(message)}", status=200)


def completion_text_bytes(body: Mapping[str, Any]) -> int:
    """Bytes of text in a whole answer, counted as a stream's would be."""
    total, choices = 0, body.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        text = choice.get("text") if isinstance(choice, dict) else None
        total += _length(text if isinstance(text, str) else None)
        try:
            total += _delta_bytes(msgspec.convert(message or {}, _Delta))
        except msgspec.ValidationError:
            total += len(orjson.dumps(message))
    return total


def usage_from(report: Any, *, prompt_max: int, output_max: int) -> tuple[Usage | None, tuple[str, ...]]:
    """A provider's usage report as ours, and what is odd about it; None if there is no usable one.

    The known dialects: OpenAI's details, DeepSeek's ``prompt_cache_hit_tokens``, Anthropic-style cache
    fields, reasoning that the completion's count leaves out: named (xAI), or only in the total (Gemini).
    A report past what the model can physically use (``prompt_max``, ``output_max``) is cut to it: nobody
    pays for a lie.
    """
    if not isinstance(report, Mapping):
        return None, ()
    prompt, completion = _count(report, "prompt_tokens"), _count(report, "completion_tokens")
    if prompt is None or completion is None:
        return None, ()
    plain = len(report) == PLAIN_MEMBERS and report.get("total_tokens") == prompt + completion
    if plain and prompt <= prompt_max and completion <= output_max:
        return Usage(prompt, completion), ()
    prompt_details = _details(report, "prompt_tokens_details")
    output_details = _details(report, "completion_tokens_details")
    reasoning = _first(_count(output_details, "reasoning_tokens"), _count(report, "reasoning_tokens"))
    total = _count(report, "total_tokens")
    if not reasoning and total is not None and len(report) == PLAIN_MEMBERS:
        reasoning = max(0, total - prompt - completion)
    if reasoning and total == prompt + completion + reasoning:
        completion += reasoning
    odd = [
        name
        for name, value, most in (("prompt", prompt, prompt_max), ("output", completion, output_max))
        if value > most
    ]
    prompt, completion = min(prompt, prompt_max), min(completion, output_max)
    cached = _first(
        _count(prompt_details, "cached_tokens"),
        _count(report, "prompt_cache_hit_tokens"),
        _count(report, "cache_read_input_tokens"),
    )
    written = _first(_count(prompt_details, "cache_write_tokens"), _count(report, "cache_creation_input_tokens"))
    cached = min(cached, prompt)
    written = min(written, prompt - cached)
    audio_input = min(_first(_count(prompt_details, "audio_tokens")), prompt - cached - written)
    reasoning = min(reasoning, completion)
    audio_output = min(_first(_count(output_details, "audio_tokens")), completion - reasoning)
    usage = Usage(prompt, completion, cached, written, audio_input, reasoning, audio_output)
    return usage, tuple(odd)


def shown_usage(usage: Usage, cost: NanoUsd) -> dict[str, Any]:
    """The `usage` member that a client sees: ours alone, so nothing of the provider's price leaks."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens, "audio_tokens": usage.audio_input_tokens},
        "completion_tokens_details": {
            "reasoning_tokens": usage.reasoning_tokens,
            "audio_tokens": usage.audio_output_tokens,
        },
        "reasoning_tokens": usage.reasoning_tokens,
        "cost": orjson.Fragment(format_usd(cost).encode()),
        **({"estimated": True} if usage.estimated else {}),
    }


def _count(report: Mapping[str, Any], name: str) -> int | None:
    value = report.get(name)
    if type(value) is int and 0 <= value <= TOKENS_MAX:
        return value
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        return None
    return min(value, TOKENS_MAX)


def _details(report: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    details = report.get(name)
    return details if isinstance(details, Mapping) else {}


def _first(*counts: int | None) -> int:
    return next((count for count in counts if count), 0)
