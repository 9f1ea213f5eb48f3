"""Sandboxes in a hurry, calls to them, and how their streams are read."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from app.endpoints import Endpoint
from app.settings import SANDBOX
from app.upstream.provider import DONE, Call, Provider, Upload, UpstreamError
from app.upstream.sandbox import SandboxProvider
from tests.clocks import FakeClock

PACE = 1_000_000.0


def sandbox(name: str = "sandbox", **settings: Any) -> SandboxProvider:
    quick = {"tokens_per_second": PACE, "first_token_ms": 0, "name": name}
    return SandboxProvider(SANDBOX.model_copy(update=quick | settings))


def call(prompt: str = "hello there", *, limit: int = 1000, timeout_s: float = 5, **body: Any) -> Call:
    """A chat completion."""
    messages = body.pop("messages", [{"role": "user", "content": prompt}])
    return Call(
        request_id="request",
        upstream_model="echo",
        body={"model": "sandbox/echo", "messages": messages, **body},
        stream=True,
        output_limit=limit,
        first_byte_timeout_s=timeout_s,
    )


async def lists(provider: Provider, asked: Call) -> list[list[bytes]]:
    async with provider.stream(asked) as events:
        return [event async for event in events]


async def chunks(provider: Provider, asked: Call) -> list[dict[str, Any]]:
    """The stream's chunks, which must end with `DONE`."""
    data = [item for event in await lists(provider, asked) for item in event]
    assert data[-1] == DONE
    return [json.loads(item) for item in data[:-1]]


def deltas(stream: list[dict[str, Any]], index: int = 0) -> list[dict[str, Any]]:
    return [choice["delta"] for chunk in stream for choice in chunk["choices"] if choice["index"] == index]


def text_of(stream: list[dict[str, Any]], key: str = "content", index: int = 0) -> str:
    return "".join(delta.get(key) or "" for delta in deltas(stream, index))


def finishes(stream: list[dict[str, Any]]) -> list[str]:
    return [choice["finish_reason"] for chunk in stream for choice in chunk["choices"] if choice["finish_reason"]]


def usages(stream: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [chunk["usage"] for chunk in stream if chunk.get("usage")]


def asked(endpoint: Endpoint, *, upload: Upload | None = None, timeout_s: float = 5, **body: Any) -> Call:
    """A call to any endpoint."""
    return Call(
        request_id="request",
        upstream_model="echo",
        body={"model": "sandbox/any", **body},
        stream=bool(body.get("stream")),
        output_limit=1000,
        first_byte_timeout_s=timeout_s,
        endpoint=endpoint.name,
        upload=upload,
    )


def recording(content: bytes = bytes(32_000), filename: str = "speech.mp3") -> Upload:
    """A file to transcribe: two seconds, if it is what its size says."""
    return Upload(filename, "audio/mpeg", content)


async def error_of(provider: Provider, asked: Call) -> UpstreamError:
    with pytest.raises(UpstreamError) as caught:
        await lists(provider, asked)
    return caught.value


async def refusal_of(asked_for: Call) -> UpstreamError:
    """How a whole answer fails, which must be the caller's fault."""
    with pytest.raises(UpstreamError) as caught:
        await sandbox().complete(asked_for)
    assert (caught.value.result, caught.value.callers_fault) == ("rejected", True)
    return caught.value


class Timeline:
    """A clock that sleeping moves, so that a schedule can be read without waiting for it."""

    def __init__(self, **settings: Any) -> None:
        self.clock = FakeClock()
        self.provider = SandboxProvider(SANDBOX.model_copy(update=settings), clock=self.clock, sleep=self._sleep)
        self.slept = 0

    async def _sleep(self, seconds: float) -> None:
        self.slept += seconds > 0
        self.clock.advance(round(seconds * 1000))
        await asyncio.sleep(0)

    async def events(self, asked: Call) -> AsyncIterator[tuple[int, list[bytes]]]:
        async with self.provider.stream(asked) as events:
            async for event in events:
                yield round(self.clock.monotonic_s() * 1000), event

    async def error(self, asked: Call) -> UpstreamError:
        try:
            async for _ in self.events(asked):
                pass
        except UpstreamError as error:
            return error
        raise AssertionError("the stream did not fail")
