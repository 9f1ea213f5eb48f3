"""A provider that says what a test wrote, round by round, and a backend that finds what a test wrote."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import orjson

from app.endpoints import CHAT
from app.search.backend import SearchResult
from app.search.loop import SearchingProvider
from app.search.options import SearchOptions
from app.settings import SearchSettings
from app.upstream.provider import DONE, Call, Download, UpstreamError
from tests.clocks import FakeClock

OPTIONS = SearchOptions(results=3, result_bytes_max=200, rounds_max=2, searches_max=4)
SETTINGS = SearchSettings(backend="sandbox", timeout_s=5)


def usage(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    """A provider's report."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion, **more}


def search(query: str, *, call_id: str = "", index: int = 0) -> dict[str, Any]:
    """A model's call of the tool."""
    return tool_call("web_search", orjson.dumps({"query": query}).decode(), call_id=call_id, index=index)


def tool_call(name: str, arguments: str, *, call_id: str = "", index: int = 0) -> dict[str, Any]:
    """A model's call of a tool."""
    function = {"name": name, "arguments": arguments}
    return {"index": index, "id": call_id or f"call_{name}_{index}", "type": "function", "function": function}


@dataclass
class Round:
    """What a model says when it is asked once. ``events`` instead: exactly these."""

    text: Sequence[str] = ()
    calls: Sequence[dict[str, Any]] = ()
    finish: str | None = None
    usage: Mapping[str, Any] | None = field(default_factory=lambda: usage(10, 5))
    error: UpstreamError | None = None
    reasoning: str = ""
    events: Sequence[bytes] | None = None

    @property
    def ends(self) -> str:
        return self.finish or ("tool_calls" if self.calls else "stop")


class ScriptedProvider:
    """Answers with its rounds in their order, and keeps what it was asked."""

    name = "scripted"
    kind = "native"
    engine_type = "scripted"
    machine_name = "machine"
    endpoints = frozenset({CHAT.name})

    def __init__(self, *rounds: Round) -> None:
        self.rounds = list(rounds)
        self.asked: list[Call] = []
        self.open_streams = 0
        self.given = 0
        self.closed = False

    def _next(self, call: Call) -> tuple[Round, str]:
        self.asked.append(call)
        said = self.rounds[len(self.asked) - 1]
        if said.error is not None:
            raise said.error
        return said, f"chatcmpl-{len(self.asked)}"

    async def complete(self, call: Call) -> dict[str, Any]:
        said, own_id = self._next(call)
        message: dict[str, Any] = {"role": "assistant", "content": "".join(said.text) or None}
        if said.reasoning:
            message["reasoning_content"] = said.reasoning
        if said.calls:
            message["tool_calls"] = [{name: call[name] for name in call if name != "index"} for call in said.calls]
        body = {"id": own_id, "object": "chat.completion", "created": len(self.asked), "model": "upstream"}
        body["choices"] = [{"index": 0, "message": message, "finish_reason": said.ends}]
        return body | ({"usage": dict(said.usage)} if said.usage is not None else {})

    @asynccontextmanager
    async def stream(self, call: Call) -> AsyncIterator[AsyncIterator[list[bytes]]]:
        said, own_id = self._next(call)
        self.open_streams += 1
        events = self._events(list(said.events if said.events is not None else chunks(said, own_id)))
        try:
            yield events
        finally:
            await events.aclose()  # type: ignore[attr-defined]
            self.open_streams -= 1

    def download(self, call: Call) -> AbstractAsyncContextManager[Download]:
        raise NotImplementedError

    async def close(self) -> None:
        self.closed = True

    async def _events(self, events: Sequence[bytes]) -> AsyncIterator[list[bytes]]:
        for event in events:
            self.given += 1
            yield [event]


def head(own_id: str) -> dict[str, Any]:
    number = int(own_id.rpartition("-")[2])
    return {"id": own_id, "object": "chat.completion.chunk", "created": number, "model": "upstream"}


def chunk(own_id: str, delta: Mapping[str, Any], finish: str | None = None) -> bytes:
    """One event of a stream."""
    return orjson.dumps({**head(own_id), "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def chunks(said: Round, own_id: str) -> list[bytes]:
    """A round as OpenAI streams it: arguments come in pieces."""
    events = [chunk(own_id, {"role": "assistant", "content": ""})]
    if said.reasoning:
        events.append(chunk(own_id, {"reasoning_content": said.reasoning}))
    events += [chunk(own_id, {"content": piece}) for piece in said.text]
    for call in said.calls:
        arguments = call["function"]["arguments"]
        begun = {**call, "function": {"name": call["function"]["name"], "arguments": ""}}
        events.append(chunk(own_id, {"tool_calls": [begun]}))
        for piece in (arguments[:5], arguments[5:]):
            events.append(chunk(own_id, {"tool_calls": [{"index": call["index"], "function": {"arguments": piece}}]}))
    events.append(chunk(own_id, {}, said.ends))
    if said.usage is not None:
        events.append(orjson.dumps({**head(own_id), "choices": [], "usage": said.usage}))
    return [*events, DONE]


class ScriptedBackend:
    """Finds ``pages`` for each query; an exception is raised. Counts what is under way."""

    name = "scripted"

    def __init__(self, *pages: SearchResult, failure: Exception | None = None) -> None:
        self.pages = list(pages) or [page(1), page(2)]
        self.by_query: dict[str, list[SearchResult]] = {}
        self.failure = failure
        self.queries: list[str] = []
        self.under_way = 0
        self.most_under_way = 0
        self.started = asyncio.Event()
        self.gate: asyncio.Event | None = None

    async def search(self, query: str, options: SearchOptions) -> list[SearchResult]:
        self.queries.append(query)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        self.started.set()
        try:
            if self.gate is not None:
                await self.gate.wait()
            else:
                await asyncio.sleep(0)
            if self.failure is not None:
                raise self.failure
            return self.by_query.get(query, self.pages)
        finally:
            self.under_way -= 1

    async def close(self) -> None:
        pass


def page(number: int, *, text: str = "what it says") -> SearchResult:
    """A page that is found."""
    return SearchResult(f"Page {number}", f"https://example.org/{number}", text, "2025-10-07")


def searching(
    provider: Any,
    backend: Any,
    *,
    options: SearchOptions = OPTIONS,
    settings: SearchSettings = SETTINGS,
    context_window: int = 100_000,
) -> SearchingProvider:
    """The loop around both."""
    return SearchingProvider(
        provider, backend, options=options, settings=settings, clock=FakeClock(), context_window=context_window
    )


def call(*, stream: bool = False, limit: int = 1000, **body: Any) -> Call:
    """A request to it."""
    asked = {"model": "m", "messages": [{"role": "user", "content": "What is new?"}], **body}
    return Call("req_1", "upstream", asked, stream, limit, 10.0)


async def streamed(provider: SearchingProvider, asked: Call) -> list[bytes]:
    """The data of every event."""
    async with provider.stream(asked) as batches:
        return [data async for batch in batches for data in batch]


def parsed(events: Sequence[bytes]) -> list[dict[str, Any]]:
    """The chunks of a stream that ended well."""
    assert events[-1] == DONE
    return [orjson.loads(event) for event in events[:-1]]


def text_of(events: Sequence[dict[str, Any]]) -> str:
    """All content of a stream."""
    return "".join(
        choice["delta"].get("content") or "" for event in events for choice in event["choices"] if choice["delta"]
    )


def finishes(events: Sequence[dict[str, Any]]) -> list[str]:
    """The finish reasons that were shown."""
    return [c["finish_reason"] for event in events for c in event["choices"] if c.get("finish_reason")]


def reports(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The usage that was given on."""
    return [event["usage"] for event in events if event.get("usage")]
