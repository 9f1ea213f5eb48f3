"""SIGTERM: nothing new is begun, what runs ends well or is billed, and the process leaves in order."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.faults.conditions import admitted
from tests.faults.wire import Exchange, ask, assert_billed, chat, price
from tests.serving import FareboxServer, Payer

SHUTDOWN_S = 2.0
# On a busy machine; far below what any of uvicorn's or our own timeouts would make of it.
PROMPTLY_S = 5.0


@pytest.fixture
def server(sqlite_url: str, tmp_path: Path) -> Iterator[FareboxServer]:
    """A server that gives its streams two seconds."""
    with FareboxServer(tmp_path, database_url=sqlite_url, server={"shutdown_timeout_s": SHUTDOWN_S}) as running:
        yield running


@pytest.fixture
def either(database_url: str, tmp_path: Path) -> Iterator[FareboxServer]:
    """The same on SQLite and on PostgreSQL."""
    with FareboxServer(tmp_path, database_url=database_url, server={"shutdown_timeout_s": SHUTDOWN_S}) as running:
        yield running


def send(server: FareboxServer, sent: signal.Signals) -> None:
    assert server.process is not None
    server.process.send_signal(sent)


@asynccontextmanager
async def stopped(server: FareboxServer, *, within_s: float) -> AsyncIterator[None]:
    """SIGTERM, then what the test looks at, then the end: exit code 0, in time, with everything in order."""
    assert server.process is not None
    began = time.monotonic()
    send(server, signal.SIGTERM)
    yield
    code = await asyncio.to_thread(server.process.wait, 60)
    assert code == 0, server.log.read_text()
    assert time.monotonic() - began < within_s
    assert server.rows("SELECT id FROM owners") == []
    assert server.rows("SELECT id FROM holds") == []
    assert "Traceback" not in server.log.read_text()
    server.assert_green()


async def begun(server: FareboxServer, payer: Payer, script: str) -> Exchange:
    """A stream that has shown its first text."""
    exchange = await Exchange.send(server.port, payer, chat(script, stream=True))
    await exchange.first()
    return exchange


async def refusing(server: FareboxServer) -> None:
    """Wait until nobody can connect any more."""
    async with asyncio.timeout(PROMPTLY_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            except OSError:
                return
            writer.close()


async def test_a_stream_that_can_finish_does(server: FareboxServer) -> None:
    payer = server.payer()
    stream = await begun(server, payer, "tokens=100 tps=200")
    async with stopped(server, within_s=SHUTDOWN_S + PROMPTLY_S):
        seen = await stream.finish()
    assert seen.whole
    assert seen.tokens == 100
    (row,) = server.outcomes(payer)
    assert_billed(seen, row)


async def test_a_stream_that_cannot_finish_is_told_so_and_billed_for_what_came(either: FareboxServer) -> None:
    payer = either.payer()
    stream = await begun(either, payer, "tokens=20000 tps=100")
    async with stopped(either, within_s=SHUTDOWN_S + PROMPTLY_S):
        began = time.monotonic()
        seen = await stream.finish()
        assert time.monotonic() - began > SHUTDOWN_S / 2, "the stream was not given its time"
    assert not seen.done
    assert seen.error is not None
    assert seen.error["code"] == "overloaded"
    assert "shutting down" in seen.error["message"]
    (row,) = either.outcomes(payer)
    assert row["status"] == "aborted"
    assert row["charged"] == price(prompt_tokens=row["prompt_tokens"], completion_tokens=seen.tokens)
    assert seen.tokens >= 100


async def test_a_whole_answer_in_flight_is_finished_and_billed(either: FareboxServer) -> None:
    payer = either.payer()
    answer = asyncio.ensure_future(ask(either.port, payer, chat("tokens=100 tps=100"), key="k"))
    await admitted(either, payer)
    async with stopped(either, within_s=SHUTDOWN_S + PROMPTLY_S):
        seen = await answer
    assert seen.whole
    (row,) = either.outcomes(payer)
    assert_billed(seen, row)
    await asyncio.to_thread(either.start)
    again = await ask(either.port, payer, chat("tokens=100 tps=100"), key="k")
    assert again.replayed
    assert again.body == seen.body


async def test_a_whole_answer_that_cannot_be_finished_is_refused_and_free(server: FareboxServer) -> None:
    payer = server.payer()
    answer = asyncio.ensure_future(ask(server.port, payer, chat("tokens=20000 tps=100")))
    await admitted(server, payer)
    async with stopped(server, within_s=SHUTDOWN_S + PROMPTLY_S):
        seen = await answer
    assert seen.status == 503
    (row,) = server.outcomes(payer)
    assert (row["status"], row["charged"]) == ("aborted", 0)


async def test_an_abandoned_whole_answer_is_finished_and_billed(server: FareboxServer) -> None:
    payer = server.payer()
    exchange = await Exchange.send(server.port, payer, chat("tokens=100 tps=100"))
    await admitted(server, payer)
    await exchange.leave()
    async with stopped(server, within_s=SHUTDOWN_S + PROMPTLY_S):
        pass
    (row,) = server.outcomes(payer)
    assert (row["status"], row["completion_tokens"]) == ("completed", 100)


async def test_new_requests_are_refused(server: FareboxServer) -> None:
    payer = server.payer()
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as kept:
        path, body = "/v1/chat/completions", chat("tokens=1")
        assert (await kept.post(path, json=body, headers=payer.headers)).status_code == 200
        stream = await begun(server, payer, "tokens=100 tps=80")
        async with stopped(server, within_s=SHUTDOWN_S + PROMPTLY_S):
            await refusing(server)
            answer = await kept.post(path, json=body, headers=payer.headers)
            assert answer.status_code == 503
            assert answer.json()["error"]["code"] == "overloaded"
            assert (await kept.get("/readyz")).status_code == 503
            assert (await stream.finish()).whole
    assert len(server.outcomes(payer)) == 2


async def test_idle_connections_do_not_keep_it(server: FareboxServer) -> None:
    payer = server.payer()
    async with httpx.AsyncClient(base_url=server.url, timeout=30) as kept:
        answer = await kept.post("/v1/chat/completions", json=chat("tokens=1"), headers=payer.headers)
        assert answer.status_code == 200
        _, silent = await asyncio.open_connection("127.0.0.1", server.port)
        async with stopped(server, within_s=SHUTDOWN_S):
            pass
        silent.close()


async def test_a_client_that_does_not_read_does_not_keep_it(server: FareboxServer) -> None:
    payer = server.payer("100.00")
    body = chat("tokens=400000", stream=True, max_tokens=400_000)
    exchange = await Exchange.send(server.port, payer, body, buffer_bytes=4096)
    await admitted(server, payer)
    async with stopped(server, within_s=SHUTDOWN_S + PROMPTLY_S):
        pass
    await exchange.leave()
    (row,) = server.outcomes(payer)
    assert row["status"] == "aborted"
    assert 0 < row["completion_tokens"] < 400_000


async def test_ctrl_c_twice_leaves_at_once_and_the_next_start_bills(sqlite_url: str, tmp_path: Path) -> None:
    server = FareboxServer(tmp_path, database_url=sqlite_url, server={"shutdown_timeout_s": 60.0}).start()
    payer = server.payer()
    stream = await begun(server, payer, "tokens=4000 tps=100")
    began = time.monotonic()
    send(server, signal.SIGINT)
    await refusing(server)
    send(server, signal.SIGINT)
    seen = await stream.finish()
    assert server.process is not None
    await asyncio.to_thread(server.process.wait, 60)
    assert time.monotonic() - began < PROMPTLY_S
    assert not seen.whole
    await asyncio.to_thread(server.start)
    await asyncio.to_thread(server.wait_settled, payer, requests=1)
    (row,) = server.outcomes(payer)
    assert row["charged"] >= seen.tokens
    server.assert_green()
    server.close()
