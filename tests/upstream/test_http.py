"""What every adapter gets from the connections it shares: bounds in time and bytes, and what was surely not sent."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp.http import StreamWriter

from app.settings import InferenceSettings, ProviderSettings
from app.upstream.http import WRITE_BYTES, Body, HttpUpstream
from app.upstream.provider import Call, UpstreamError
from tests.dialects import answers
from tests.dialects.fixtures import dialects
from tests.dialects.server import DialectServer

__all__ = ["dialects"]

PATH = "/chat/completions"


@asynccontextmanager
async def opened(
    base_url: str, *, settings: dict[str, Any] | None = None, **inference: float
) -> AsyncIterator[HttpUpstream]:
    provider = {"name": "upstream", "base_url": base_url, **(settings or {})}
    http = HttpUpstream(
        ProviderSettings.model_validate(provider), InferenceSettings.model_validate(inference), engine="openai"
    )
    yield http
    await http.close()


def call(*, timeout_s: float = 10) -> Call:
    return Call("req_1", "m", {}, False, 100, timeout_s)


async def ask(http: HttpUpstream, dialect: str, *, timeout_s: float = 10, filler: str = "") -> Any:
    body = Body(orjson.dumps({"model": dialect, "messages": [], "filler": filler}))
    async with http.post(call(timeout_s=timeout_s), http.url(PATH), body=body) as response:
        return await http.whole(response)


async def test_silence_before_the_first_byte_may_be_longer_than_in_mid_answer(dialects: DialectServer) -> None:
    async with opened(dialects.base_url, upstream_idle_timeout_s=0.05) as http:
        assert await ask(http, "slow_head:200") == answers.completion("ok")


@pytest.mark.parametrize(("path", "dialect"), [(PATH, "midline"), ("/audio/speech", "head_alone")])
async def test_silence_in_mid_answer_is_bounded_also_where_the_first_byte_may_take_long(
    dialects: DialectServer, path: str, dialect: str
) -> None:
    body = Body(orjson.dumps({"model": dialect}))
    async with (
        asyncio.timeout(5),
        opened(dialects.base_url, upstream_idle_timeout_s=0.05) as http,
        http.post(call(timeout_s=30), http.url(path), body=body) as response,
    ):
        with pytest.raises(UpstreamError) as caught:
            assert [block async for block in http.blocks(response)]
    assert (caught.value.result, caught.value.fail_over) == ("interrupted", False)
    assert await asyncio.to_thread(dialects.last.wait_closed)


async def test_connection_is_taken_back_with_the_time_of_its_next_call(dialects: DialectServer) -> None:
    async with opened(dialects.base_url, upstream_idle_timeout_s=0.05) as http:
        for _ in range(2):
            assert await ask(http, "slow_head:100") == answers.completion("ok")
    assert len(dialects.requests) == 2


async def test_call_that_found_no_free_connection_was_not_sent(dialects: DialectServer) -> None:
    async with opened(dialects.base_url, settings={"connections_max": 1}) as http:
        first = asyncio.create_task(ask(http, "gated"))
        assert await asyncio.to_thread(dialects.wait_for_requests, 1)
        with pytest.raises(UpstreamError) as caught:
            await ask(http, "ok", timeout_s=0.05)
        dialects.last.release()
        await first
    assert (caught.value.result, caught.value.fail_over) == ("timeout", True)
    assert len(dialects.requests) == 1


async def test_call_that_was_written_in_part_may_have_been_taken_up() -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen()
        async with opened(f"http://127.0.0.1:{deaf.getsockname()[1]}/v1") as http:
            with pytest.raises(UpstreamError) as caught:
                await ask(http, "ok", timeout_s=0.2, filler="x" * (16 << 20))
    assert (caught.value.result, caught.value.fail_over) == ("timeout", False)


async def test_long_body_arrives_whole(dialects: DialectServer) -> None:
    content = orjson.dumps({"model": "ok", "filler": "x" * (4 << 20)})
    async with opened(dialects.base_url) as http:
        body = Body(content[:100], content[100:])
        async with http.post(call(), http.url(PATH), body=body) as response:
            await http.whole(response)
    assert dialects.last.content == content
    assert dialects.last.headers["content-length"] == str(len(content))


async def test_long_body_is_written_in_blocks_and_leaves_the_loop_to_others() -> None:
    """Also where the reader is so fast that no write ever waits."""

    turns = 0

    class Fast(StreamWriter):
        def __init__(self) -> None:
            self.sizes: list[int] = []

        async def write(self, chunk: Any, **_: Any) -> None:
            self.sizes.append(len(chunk))

    async def neighbour() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    writer = Fast()
    other = asyncio.create_task(neighbour())
    await Body(b"head", bytes(10 * WRITE_BYTES + 1)).write(writer)
    other.cancel()
    assert writer.sizes == [4, *[WRITE_BYTES] * 10, 1]
    assert turns >= 10


@pytest.mark.parametrize(
    ("base_url", "path", "expected"),
    [
        ("http://a.example/v1", "/embeddings", "http://a.example/v1/embeddings"),
        ("http://a.example/v1/", "/embeddings", "http://a.example/v1/embeddings"),
        ("https://api.cohere.example", "/v2/rerank", "https://api.cohere.example/v2/rerank"),
        ("https://api.cohere.example/v2", "/v2/rerank", "https://api.cohere.example/v2/rerank"),
        ("https://api.cohere.example/v1/", "/v2/rerank", "https://api.cohere.example/v2/rerank"),
        ("https://proxy.example/cohere/v1", "/v2/rerank", "https://proxy.example/cohere/v2/rerank"),
        ("https://proxy.example/v1beta", "/v2/rerank", "https://proxy.example/v1beta/v2/rerank"),
    ],
)
async def test_version_of_a_path_replaces_that_of_the_base(base_url: str, path: str, expected: str) -> None:
    async with opened(base_url) as http:
        assert str(http.url(path)) == expected


async def test_key_is_read_from_its_variable_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened("http://a.example", settings={"api_key_env": "TEST_HTTP_KEY"}) as http:
        assert http.key() is None
        monkeypatch.setenv("TEST_HTTP_KEY", " sk-1\n")
        assert http.key() == "sk-1"
        monkeypatch.setenv("TEST_HTTP_KEY", "  ")
        assert http.key() is None


def test_body_says_how_long_it_is_and_whether_it_was_begun() -> None:
    body = Body(b"abc", b"de", content_type="text/plain")
    assert (body.size, body.content_type, body.begun, body.decode()) == (5, "text/plain", False, "abcde")
