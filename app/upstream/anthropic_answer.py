"""From the Messages API's answers to OpenAI's: the way back in `app.upstream.anthropic`. Pure, no I/O.

Text is text, ``tool_use`` a tool call, ``thinking`` is ``reasoning_content``. Thinking that is redacted, its
signatures, citations and blocks of kinds that are not asked for are not shown; they are in the usage all the same.

Usage: Anthropic's ``input_tokens`` leave out what was read from or written to a cache, OpenAI's
``prompt_tokens`` hold all of it. ``output_tokens`` hold thinking in both; how much of them it was is known
where ``output_tokens_details`` says so. The counts of a stream are cumulative.

Formats: https://platform.claude.com/docs/en/api/messages and .../build-with-claude/streaming, as of version
2023-06-01, in which new kinds of events and blocks may appear at any time.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import orjson

from app.upstream.provider import DONE, UpstreamError

TOKENS_MAX = 10**9
ID_CHARACTERS_MAX = 128
# One is open at a time today; their number in one answer is bounded by its size alone.
BLOCKS_OPEN_MAX = 64
FINISH: Mapping[str, str] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_ID_PREFIX = "msg_"
_NO_ID = re.compile(r"[^A-Za-z0-9_-]")
# What a stream's tool call says where its arguments never come.
_NO_ARGUMENTS: Mapping[str, Any] = {}
_TAIL = b',"logprobs":null,"finish_reason":null}]}'


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Block(msgspec.Struct):
    type: str
    id: str = ""
    name: str = ""
    text: str = ""
    thinking: str = ""
    input: dict[str, Any] | None = None


class _Message(msgspec.Struct):
    id: str = ""
    usage: Any = None


class _Event(msgspec.Struct):
    type: str
    index: int = -1
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: Any = None
    error: Any = None


class _Kind(msgspec.Struct):
    type: str


class _Open:
    """A block that has begun: of a tool call, its number, and its input as long as no other arguments came."""

    __slots__ = ("input", "kind", "tool")

    def __init__(self, kind: str, *, tool: int = 0, given: Mapping[str, Any] | None = None) -> None:
        self.kind = kind
        self.tool = tool
        self.input = given


_decode = msgspec.json.Decoder(_Event).decode
_decode_kind = msgspec.json.Decoder(_Kind).decode
_KNOWN = frozenset(
    {
        "message_start",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    }
)
# Which kind of block each delta belongs to.
_BLOCK_OF = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "tool_use"}


def completion(body: Any, *, request_id: str, model: str, created: int) -> dict[str, Any]:
    """A whole message as a chat completion. Raises `UpstreamError` where it is none."""
    blocks = body.get("content") if isinstance(body, dict) else None
    if not isinstance(body, dict) or body.get("type", "message") != "message" or not isinstance(blocks, list):
        raise _no_message()
    text: list[str] = []
    thinking: list[str] = []
    calls: list[dict[str, Any]] = []
    for raw in blocks:
        try:
            block = msgspec.convert(raw, _Block)
        except msgspec.ValidationError as error:
            raise _no_message() from error
        if block.type == "text":
            text.append(block.text)
        elif block.type == "thinking":
            thinking.append(block.thinking)
        elif block.type == "tool_use":
            function = {"name": block.name, "arguments": orjson.dumps(block.input or _NO_ARGUMENTS).decode()}
            calls.append({"id": _call_id(block.id, len(calls)), "type": "function", "function": function})
    said = "".join(text)
    message: dict[str, Any] = {"role": "assistant", "content": said if said or not calls else None, "refusal": None}
    if any(thinking):
        message["reasoning_content"] = "".join(thinking)
    if calls:
        message["tool_calls"] = calls
    reason = body.get("stop_reason")
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason(reason)}
    answer: dict[str, Any] = {
        "id": completion_id(body.get("id"), request_id),
        "object": "chat.completion",
        "created": created,
        "model": model,
        "choices": [choice],
    }
    usage = Counts().add(body.get("usage")).report()
    return answer | {"usage": usage} if usage is not None else answer


def completion_id(given: Any, request_id: str) -> str:
    """An id in OpenAI's manner from the message's, of which nothing odd is kept; else from the request's."""
    text = given.removeprefix(_ID_PREFIX) if isinstance(given, str) else ""
    return f"chatcmpl-{(_NO_ID.sub('', text) or _NO_ID.sub('', request_id))[:ID_CHARACTERS_MAX]}"


def finish_reason(reason: Any) -> str:
    """OpenAI's word; a reason that is not known ended the answer all the same."""
    return FINISH.get(reason, "stop") if isinstance(reason, str) else "stop"


class Counts:
    """The usage of one answer, from one report or several that are cumulative."""

    __slots__ = ("cached", "input", "output", "thinking", "written")

    def __init__(self) -> None:
        self.input = self.cached = self.written = self.thinking = 0
        self.output: int | None = None

    def add(self, report: Any) -> "Counts":
        """Take one more report. Counts never fall, so a later report may leave out what an earlier one said."""
        if not isinstance(report, dict):
            return self
        self.input = max(self.input, _count(report.get("input_tokens")))
        self.cached = max(self.cached, _count(report.get("cache_read_input_tokens")))
        self.written = max(self.written, _count(report.get("cache_creation_input_tokens")))
        if type(report.get("output_tokens")) is int:
            self.output = max(self.output or 0, _count(report["output_tokens"]))
        details = report.get("output_tokens_details")
        if isinstance(details, dict):
            self.thinking = max(self.thinking, _count(details.get("thinking_tokens")))
        return self

    def report(self) -> dict[str, Any] | None:
        """As OpenAI reports usage; None if there is no count of both prompt and output."""
        prompt = self.input + self.cached + self.written
        if self.output is None or not prompt:
            return None
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self.output,
            "total_tokens": prompt + self.output,
            "prompt_tokens_details": {"cached_tokens": self.cached, "cache_write_tokens": self.written},
            "completion_tokens_details": {"reasoning_tokens": min(self.thinking, self.output)},
        }


class Translation:
    """One stream's events, made chunks of. Raises `UpstreamError` for what no message can be.

    The finish is told by ``message_stop`` alone: a stream that ends before it was cut off. The role comes
    with the first content, so that an error before it leaves nothing begun.
    """

    def __init__(self, *, request_id: str, model: str, created: int) -> None:
        self._request_id = request_id
        self._model = model
        self._created = created
        self._head = b""
        self._delta = b""
        self._role = b'"role":"assistant",'
        self._open: dict[int, _Open] = {}
        self._tools = 0
        self._counts = Counts()
        self._ending_counted = False
        self._reason: str | None = None
        # Whether the model has begun to answer: what is lost from then on was work, and may be billed to us.
        self._working = False
        self.done = False

    def read(self, events: Sequence[bytes], chunks: list[bytes]) -> None:
        """Append what ``events`` are in OpenAI's words. What was appended before an error stands."""
        for data in events:
            if self.done:
                return
            try:
                event = _decode(data)
            except msgspec.DecodeError as error:
                if _unknown(data):
                    continue
                raise UpstreamError("not_an_event", "the provider sent an event that is none") from error
            if event.type == "content_block_delta":
                self._continue(event, chunks)
            elif event.type in _KNOWN:
                self._step(event, chunks)

    def _continue(self, event: _Event, chunks: list[bytes]) -> None:
        block, delta = self._open.get(event.index), event.delta
        if block is None or delta is None:
            raise _disorder()
        kind = delta.type
        if _BLOCK_OF.get(kind, block.kind) != block.kind:
            raise _disorder()
        if kind == "text_delta":
            self._say(b'"content":', delta.text, chunks)
        elif kind == "thinking_delta":
            self._say(b'"reasoning_content":', delta.thinking, chunks)
        elif kind == "input_json_delta" and delta.partial_json:
            block.input = None
            self._arguments(block, orjson.dumps(delta.partial_json), chunks)

    def _step(self, event: _Event, chunks: list[bytes]) -> None:
        if event.type == "error":
            raise _error_event(event.error, working=self._working)
        if event.type == "message_start":
            return self._begin(event, chunks)
        if not self._head:
            raise _disorder()
        if event.type == "content_block_start":
            self._open_block(event, chunks)
        elif event.type == "content_block_stop":
            self._close_block(self._open.pop(event.index, None), chunks)
        elif event.type == "message_delta":
            self._note_end(event, chunks)
        else:
            self._finish(chunks)

    def _begin(self, event: _Event, chunks: list[bytes]) -> None:
        if self._head or event.message is None:
            raise _disorder()
        known = {
            "id": completion_id(event.message.id, self._request_id),
            "object": "chat.completion.chunk",
            "created": self._created,
            "model": self._model,
        }
        self._head = orjson.dumps(known)[:-1] + b',"choices":['
        self._delta = self._head + b'{"index":0,"delta":{'
        self._counts.add(event.message.usage)
        # What the prompt costs is known from here on, also of an answer that is not read to its end.
        self._tell_usage(chunks)

    def _open_block(self, event: _Event, chunks: list[bytes]) -> None:
        begun = event.content_block
        if begun is None or event.index in self._open or len(self._open) >= BLOCKS_OPEN_MAX:
            raise _disorder()
        block = _Open(begun.type)
        self._open[event.index] = block
        self._working = True
        if begun.type == "text":
            self._say(b'"content":', begun.text, chunks)
        elif begun.type == "thinking":
            self._say(b'"reasoning_content":', begun.thinking, chunks)
        elif begun.type == "tool_use":
            block.tool, block.input = self._tools, begun.input or _NO_ARGUMENTS
            self._tools += 1
            call = {
                "index": block.tool,
                "id": _call_id(begun.id, block.tool),
                "type": "function",
                "function": {"name": begun.name, "arguments": ""},
            }
            self._put(b'"tool_calls":[' + orjson.dumps(call) + b"]", chunks)

    def _close_block(self, block: _Open | None, chunks: list[bytes]) -> None:
        if block is None:
            raise _disorder()
        if block.kind == "tool_use" and block.input is not None:
            # No arguments came in pieces: what the block began with is all of them.
            self._arguments(block, orjson.dumps(orjson.dumps(block.input).decode()), chunks)

    def _note_end(self, event: _Event, chunks: list[bytes]) -> None:
        if event.delta is not None and event.delta.stop_reason is not None:
            self._reason = event.delta.stop_reason
        if isinstance(event.usage, dict):
            self._ending_counted |= type(event.usage.get("output_tokens")) is int
            self._counts.add(event.usage)
            self._tell_usage(chunks)

    def _finish(self, chunks: list[bytes]) -> None:
        for block in self._open.values():
            self._close_block(block, chunks)
        if not self._ending_counted:
            # The count at the start is of no output yet: a report without counts makes place for an estimate.
            chunks.append(self._head + b'],"usage":{}}')
        role = self._role.removesuffix(b",")
        reason = orjson.dumps(finish_reason(self._reason))
        chunks.append(self._delta + role + b'},"logprobs":null,"finish_reason":' + reason + b"}]}")
        chunks.append(DONE)
        self.done = True

    def _say(self, member: bytes, text: str, chunks: list[bytes]) -> None:
        if text:
            self._put(member + orjson.dumps(text), chunks)

    def _arguments(self, block: _Open, piece: bytes, chunks: list[bytes]) -> None:
        self._put(b'"tool_calls":[{"index":%d,"function":{"arguments":%b}}]' % (block.tool, piece), chunks)

    def _put(self, member: bytes, chunks: list[bytes]) -> None:
        chunks.append(b"".join((self._delta, self._role, member, b"}", _TAIL)))
        self._role = b""

    def _tell_usage(self, chunks: list[bytes]) -> None:
        report = self._counts.report()
        if report is not None:
            chunks.append(self._head + b'],"usage":' + orjson.dumps(report) + b"}")


def _unknown(data: bytes) -> bool:
    """Whether this is an event of a kind that is not read here, whatever it holds."""
    try:
        return _decode_kind(data).type not in _KNOWN
    except msgspec.DecodeError:
        return False


def _error_event(error: Any, *, working: bool) -> UpstreamError:
    """An error in mid-stream. Nothing of its words goes on: they are about the provider and our account."""
    kind = error.get("type") if isinstance(error, dict) else None
    if kind in ("overloaded_error", "rate_limit_error"):
        return UpstreamError("rate_limited", "the provider is busy", status=200, fail_over=not working)
    return UpstreamError("error_event", "the provider reported an error", status=200, fail_over=not working)


def _call_id(given: str, number: int) -> str:
    return given[:ID_CHARACTERS_MAX] or f"call_{number}"


def _count(value: Any) -> int:
    return min(value, TOKENS_MAX) if type(value) is int and value > 0 else 0


def _no_message() -> UpstreamError:
    return UpstreamError("not_a_completion", "the provider's answer is not a message", status=200)


def _disorder() -> UpstreamError:
    return UpstreamError("not_an_event", "the provider's events are in no possible order")
