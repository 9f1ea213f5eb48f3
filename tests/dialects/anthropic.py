"""A real HTTP server that answers ``POST /v1/messages`` as Anthropic does, strict about what it is asked.

The model in the body chooses the answer, with what the model takes after a slash::

    ok cached tools nothing            whole messages (`anthropic_answers.MESSAGES`), streamed where asked
    status:N  status:N:WORDS           an error
    cut  error_first  error_late       a stream without its end; an error as an event, before or after content
    error200  notjson  odd             answers that are no message
    gated                              waits in mid-stream until the client leaves

    NAME/old                           thinks within a budget, and knows no adaptive thinking and no effort
    NAME/new                           thinks as it sees fit, and takes no budget and no sampling
"""

import asyncio
import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from aiohttp import web

from tests.dialects import anthropic_answers as answers

PATH = "/v1/messages"
VERSION = "2023-06-01"
START_S_MAX = 10.0
LEAVE_S_MAX = 30.0
BODY_BYTES_MAX = 1 << 26
RETRY_AFTER_S = 7
THINKING_MIN = 1024
KNOWN = frozenset(
    {
        *("model", "max_tokens", "stream", "messages", "system", "stop_sequences", "tools", "tool_choice"),
        *("output_config", "thinking", "temperature", "top_p"),
    }
)
ADAPTIVE_REFUSED = "adaptive thinking is not supported on this model"
EFFORT_REFUSED = "This model does not support the effort parameter."
BUDGET_REFUSED = (
    '"thinking.type.enabled" is not supported for this model. Use "thinking.type.adaptive" and "output_config.effort" '
    "to control thinking behavior."
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request that arrived."""

    path: str
    headers: Mapping[str, str]
    body: Any


class AnthropicServer:
    """The server, in a thread and an event loop of its own; ``requests`` are in the order of arrival."""

    def __init__(self) -> None:
        self.requests: list[Asked] = []
        self.left = threading.Event()
        self.port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="anthropic", daemon=True)
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def last(self) -> Any:
        """The newest request's body."""
        return self.requests[-1].body

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(START_S_MAX):
            raise TimeoutError("the server did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_S_MAX)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = json.loads(await request.read())
        self.requests.append(Asked(request.path, dict(request.headers), body))
        if request.path != PATH or request.headers.get("anthropic-version") != VERSION:
            return _error(404, "Not Found")
        complaint = complaint_of(body)
        if complaint is not None:
            return _error(400, complaint)
        name, _, parameter = body["model"].partition("/")[0].partition(":")
        if name == "status":
            status, _, words = parameter.partition(":")
            return _error(int(status), words or f"organization {answers.SECRET_ORGANIZATION} cannot do this")
        if name == "error200":
            return web.json_response(answers.error("api_error", "Internal server error"))
        if name == "notjson":
            return web.Response(text="<html>", content_type="text/html")
        if name == "odd":
            return web.json_response({"type": "message", "content": [{"type": 7}]})
        whole = answers.MESSAGES.get(name, answers.MESSAGES["ok"])
        if not body["stream"]:
            return web.json_response(whole)
        return await self._stream(request, name, list(answers.events(whole)))

    async def _stream(self, request: web.Request, name: str, events: list[answers.Event]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
        await response.prepare(request)
        if name == "cut":
            events = events[:-1]
        elif name == "error_first":
            events = [events[0], answers.error("overloaded_error", "Overloaded")]
        elif name == "error_late":
            events = [*events[:4], answers.error("api_error", "Internal server error")]
        elif name == "gated":
            await self._until_left(response, events[:4])
        await response.write(b"".join(map(answers.encoded, events)))
        await response.write_eof()
        return response

    async def _until_left(self, response: web.StreamResponse, events: Iterable[answers.Event]) -> None:
        try:
            await response.write(b"".join(map(answers.encoded, events)))
            await asyncio.sleep(LEAVE_S_MAX)
        finally:
            self.left.set()


def complaint_of(body: Any) -> str | None:
    """What is wrong with a request, in the API's manner; none if it takes it."""
    for name in body:
        if name not in KNOWN:
            return f"{name}: Extra inputs are not permitted"
    return _of_messages(body["messages"]) or _of_parameters(body) or _of_model(body)


def _of_messages(messages: list[Any]) -> str | None:
    called: set[str] = set()
    for index, message in enumerate(messages):
        blocks = message["content"]
        if not blocks:
            return f"messages.{index}: all messages must have non-empty content"
        if index and message["role"] == messages[index - 1]["role"]:
            return "messages: roles must alternate between user and assistant"
        results = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
        if results != called:
            return f"messages.{index}: `tool_use` ids were found without `tool_result` blocks immediately after"
        if any(block["type"] == "text" and not block["text"].strip() for block in blocks):
            return f"messages.{index}: text content blocks must contain non-whitespace text"
        called = {block["id"] for block in blocks if block["type"] == "tool_use"}
    last = messages[-1]
    if last["role"] == "assistant" and last["content"][-1].get("text", "").endswith((" ", "\n")):
        return "messages: final assistant content cannot end with trailing whitespace"
    return None


def _of_parameters(body: Any) -> str | None:
    thinking = body.get("thinking", {}).get("type")
    if not 0 <= body.get("temperature", 1) <= 1:
        return "temperature: range: 0..1"
    if "temperature" in body and "top_p" in body:
        return "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
    if thinking in {"enabled", "adaptive"} and ("temperature" in body or "top_p" in body):
        return "`temperature` may only be set to 1 when thinking is enabled."
    if thinking in {"enabled", "adaptive"} and body.get("tool_choice", {}).get("type") in {"any", "tool"}:
        return "Thinking may not be enabled when tool_choice forces tool use."
    if thinking == "enabled" and not THINKING_MIN <= body["thinking"]["budget_tokens"] < body["max_tokens"]:
        return "`max_tokens` must be greater than `thinking.budget_tokens`."
    if any(not stop.strip() for stop in body.get("stop_sequences", ())):
        return "stop_sequences: each stop sequence must contain non-whitespace"
    return None


def _of_model(body: Any) -> str | None:
    age, thinking = body["model"].partition("/")[2], body.get("thinking", {}).get("type")
    if age == "old":
        if "effort" in body.get("output_config", {}):
            return EFFORT_REFUSED
        if thinking == "adaptive":
            return ADAPTIVE_REFUSED
        if thinking == "enabled" and any(block["type"] == "tool_result" for block in body["messages"][-1]["content"]):
            return "Expected `thinking` or `redacted_thinking`, but found `tool_use`."
    if age == "new":
        for name in ("temperature", "top_p"):
            if name in body:
                return f"`{name}` is deprecated for this model."
        if thinking == "enabled":
            return BUDGET_REFUSED
    return None


def _error(status: int, words: str) -> web.Response:
    kind = answers.STATUS_TYPES.get(status, "api_error")
    headers = {"retry-after": str(RETRY_AFTER_S)} if status in {429, 529} else {}
    return web.json_response(answers.error(kind, words), status=status, headers=headers)
