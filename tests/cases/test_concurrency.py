"""Cases 32, 34 to 36, 38, 39 and 42: many at once, in one process and in several, some of which die."""

import asyncio
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import psycopg
import pytest
from psycopg import sql

from app.clock import MS_PER_MINUTE
from app.rails.key_store import KeyLimits
from tests.conftest import PostgresServer
from tests.faults.conditions import admitted, eventually, settled
from tests.faults.load import PROVIDERS, Load
from tests.faults.proof import Proof, assert_books
from tests.faults.wire import TOKEN_BYTES, Exchange, Seen, ask, assert_billed, chat, price
from tests.serving import ADMIN_TOKEN, LEASE_TTL_S, QUICK, FareboxServer, Payer, sandbox

ADMIN = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
FIRST_WINDOW_TOKENS = 64  # 256 bytes, as configured by default
SECOND_WINDOW_TOKENS = 256

# Makes the sandbox raise what no adapter should, and lose its ids, where a prompt says so.
ODD_PROVIDER = """
from contextlib import asynccontextmanager
from app.upstream import sandbox

complete, stream, head = (getattr(sandbox.SandboxProvider, name) for name in ("complete", "stream", "_head"))

def told(call, word):
    return word in call.body["messages"][0]["content"]

async def odd_complete(self, call):
    if told(call, "panic"):
        raise RuntimeError("a bug in an adapter")
    return await complete(self, call)

@asynccontextmanager
async def odd_stream(self, call):
    async with stream(self, call) as events:
        async def odd_events():
            async for batch in events:
                yield batch
                if told(call, "panic"):
                    raise RuntimeError("a bug in an adapter")
        if told(call, "panic at once"):
            raise RuntimeError("a bug in an adapter")
        yield odd_events()

def odd_head(self, call, reply, kind):
    return {**head(self, call, reply, kind), **({"id": None} if told(call, "no id") else {})}

sandbox.SandboxProvider.complete = odd_complete
sandbox.SandboxProvider.stream = odd_stream
sandbox.SandboxProvider._head = odd_head
"""


Replicas = tuple[FareboxServer, FareboxServer]


@contextmanager
def two_replicas(folder: Path, url: str) -> Iterator[Replicas]:
    """Two server processes on one PostgreSQL."""
    with FareboxServer(folder, database_url=url) as one, FareboxServer(folder, database_url=url) as other:
        yield one, other


@pytest.fixture(scope="module")
def replicas(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Two replicas that tests share: each makes payers of its own, and kills nobody."""
    url = postgres.create()
    with two_replicas(tmp_path_factory.mktemp("replicas"), url) as both:
        yield both
    postgres.drop(url)


@pytest.fixture(scope="module")
def alone(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FareboxServer]:
    """One process on SQLite, shared in the same way."""
    folder = tmp_path_factory.mktemp("alone")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'farebox.db')}"
    with FareboxServer(folder, database_url=url) as server:
        yield server


@pytest.fixture
def servers(request: pytest.FixtureRequest) -> list[FareboxServer]:
    """One process on SQLite, or two on PostgreSQL."""
    if request.param == "sqlite":
        return [request.getfixturevalue("alone")]
    return list(request.getfixturevalue("replicas"))


@pytest.fixture(scope="module")
def odd(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FareboxServer]:
    """A shared process with two providers that can be told to misbehave as no script can say."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "sitecustomize.py").write_text(ODD_PROVIDER)
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'farebox.db')}"
    providers = [sandbox("first"), sandbox("second")]
    with FareboxServer(folder, database_url=url, providers=providers, environ={"PYTHONPATH": path}) as running:
        yield running


async def ceiling(server: FareboxServer, body: dict[str, Any]) -> str:
    """What a request must be able to hold: the refusal of a payer with nothing says it."""
    refused = await ask(server.port, server.payer("0"), body)
    assert refused.status == 402
    assert refused.error is not None
    required: str = refused.error["required"]
    return required


async def at_once(servers: list[FareboxServer], payer: Payer, body: dict[str, Any], *, count: int) -> list[Seen]:
    """The same request, so many times, spread over the servers."""
    return await asyncio.gather(*(ask(servers[n % len(servers)].port, payer, body) for n in range(count)))


def statuses(answers: list[Seen]) -> dict[int | None, int]:
    found = [seen.status for seen in answers]
    return {status: found.count(status) for status in set(found)}


both = pytest.mark.parametrize("servers", ["sqlite", "two replicas"], indirect=True)


@both
@pytest.mark.parametrize("stream", [False, True])
async def test_a_hundred_requests_on_a_balance_for_one_pass_one(servers: list[FareboxServer], stream: bool) -> None:
    """Case 32."""
    body = chat("tokens=50 tps=500", stream=stream, max_tokens=50)
    payer = servers[0].payer(await ceiling(servers[0], body))
    answers = await at_once(servers, payer, body, count=100)
    assert statuses(answers) == {200: 1, 402: 99}
    (row,) = await settled(servers[0], payer, requests=1)
    assert_billed(next(seen for seen in answers if seen.status == 200), row)
    assert_books(servers[0])


@both
async def test_streams_that_share_a_balance_never_overdraw_it(servers: list[FareboxServer]) -> None:
    """Case 34: each of them is longer than all the money there is."""
    payer = servers[0].payer("0.02")
    answers = await at_once(servers, payer, chat("tokens=4000 tps=20000", stream=True), count=20)
    rows = await settled(servers[0], payer, requests=sum(seen.status == 200 for seen in answers))
    balance = servers[0].balance(payer)
    assert sum(row["charged"] for row in rows) == balance["debits_posted"] <= balance["credits_posted"]
    assert not any(row["loss"] for row in rows)
    assert "exhausted" in {row["status"] for row in rows}
    assert_books(servers[0])


async def test_a_keys_spend_limit_holds_across_replicas(replicas: Replicas) -> None:
    """Case 42."""
    body = chat("tokens=50 tps=500", max_tokens=50)
    limit = round(float(await ceiling(replicas[0], body)) * 10**9)
    payer = replicas[0].payer("5.00", limits=KeyLimits(spend_limit=limit))  # type: ignore[arg-type]
    answers = await at_once(list(replicas), payer, body, count=40)
    assert statuses(answers) == {200: 1, 402: 39}
    assert {seen.error["code"] for seen in answers if seen.error} == {"spend_limit"}
    assert_books(replicas[0])


async def test_a_keys_requests_per_minute_hold_across_replicas(replicas: Replicas) -> None:
    """Case 42. A burst that a new minute divides says nothing, and is made again."""
    for _ in range(3):
        payer = replicas[0].payer(limits=KeyLimits(requests_per_minute=10))
        minute = time.time_ns() // 10**6 // MS_PER_MINUTE
        answers = await at_once(list(replicas), payer, chat("tokens=1"), count=40)
        if time.time_ns() // 10**6 // MS_PER_MINUTE == minute:
            break
    assert statuses(answers) == {200: 10, 429: 30}
    assert_books(replicas[0])


async def test_a_revoked_key_stops_at_once_in_the_other_replica(
    replicas: Replicas,
) -> None:
    """Case 42: for new requests at once, for a stream that runs at its next window."""
    one, other = replicas
    payer = one.payer()
    stream = await Exchange.send(other.port, payer, chat("tokens=4000 tps=100", stream=True))
    await stream.first()
    async with httpx.AsyncClient(base_url=one.url, headers=ADMIN) as admin:
        assert (await admin.post(f"/admin/api/keys/{payer.key_id}/revoke")).status_code == 200
    assert (await ask(other.port, payer, chat("tokens=1"))).status == 401
    seen = await stream.finish()
    assert seen.error is not None
    assert seen.error["code"] == "api_key_revoked"
    # The window that was held, and one that may have been asked for ahead of the revocation.
    assert 0 < seen.tokens <= FIRST_WINDOW_TOKENS + SECOND_WINDOW_TOKENS
    (row,) = await settled(one, payer, requests=1)
    assert row["completion_tokens"] == seen.tokens
    assert row["charged"] == price(prompt_tokens=row["prompt_tokens"], completion_tokens=seen.tokens)
    assert_books(one)


async def test_a_rotated_secret_stops_at_once_in_the_other_replica(
    replicas: Replicas,
) -> None:
    """Case 42."""
    one, other = replicas
    payer = one.payer()
    assert (await ask(other.port, payer, chat("tokens=1"))).status == 200
    async with httpx.AsyncClient(base_url=one.url, headers=ADMIN) as admin:
        rotated = (await admin.post(f"/admin/api/keys/{payer.key_id}/rotate")).json()
    assert (await ask(other.port, payer, chat("tokens=1"))).status == 401
    assert (await ask(other.port, replace(payer, key=rotated["key"]), chat("tokens=1"))).status == 200
    assert len(one.outcomes(payer)) == 2


@pytest.mark.parametrize(
    ("words", "stream"),
    [("panic", False), ("panic at once", True), ("panic in mid-stream", True)],
    ids=["whole", "before the first event", "in mid-stream"],
)
async def test_a_panic_leaks_no_hold(odd: FareboxServer, words: str, stream: bool) -> None:
    """Case 35."""
    payer = odd.payer()
    body = chat("tokens=100 tps=200", stream=stream)
    body["messages"][0]["content"] += words
    seen = await ask(odd.port, payer, body)
    (row,) = await settled(odd, payer, requests=1)
    assert not seen.whole
    assert row["status"] == "failed"
    assert row["completion_tokens"] == seen.tokens
    if stream and words != "panic at once":
        assert seen.error is not None
        assert seen.error["code"] == "internal_error"
        assert 0 < row["charged"] == price(prompt_tokens=row["prompt_tokens"], completion_tokens=seen.tokens)
    else:
        assert seen.status == 500
        assert row["charged"] == 0
    assert (await ask(odd.port, payer, chat("tokens=1"))).status == 200
    assert_books(odd)


@pytest.mark.parametrize("silence", ["first_ms=20000", "silent_ms=20000 after=50"], ids=["before", "in mid-stream"])
async def test_a_client_that_leaves_leaks_no_hold(alone: FareboxServer, silence: str) -> None:
    """Case 35: whether it leaves before anything came or in mid-stream."""
    payer = alone.payer()
    exchange = await Exchange.send(alone.port, payer, chat(f"tokens=100 {silence}", stream=True))
    if "after" in silence:
        async for seen in exchange.reads():
            if seen.tokens >= 50:
                break
    else:
        await admitted(alone, payer)
    await exchange.leave()
    (row,) = await settled(alone, payer, requests=1)
    assert row["status"] == "aborted"
    assert row["completion_tokens"] == exchange.seen.tokens
    assert alone.balance(payer)["debits_pending"] == 0
    alone.assert_green()


async def test_a_kill_leaks_no_hold(database_url: str, tmp_path: Path) -> None:
    """Case 35: the next start resolves what a killed process held."""
    with FareboxServer(tmp_path, database_url=database_url) as server:
        payer = server.payer()
        whole = await Exchange.send(server.port, payer, chat("tokens=4000 tps=100"))
        stream = await Exchange.send(server.port, payer, chat("tokens=4000 tps=100", stream=True))
        await stream.first()
        await admitted(server, payer, requests=2)
        server.kill()
        seen = await stream.finish()
        assert not (await whole.finish()).body
        assert len(server.rows("SELECT id FROM holds")) >= 2
        await asyncio.to_thread(server.start)
        rows = await settled(server, payer, requests=2)
        assert {row["status"] for row in rows} == {"swept"}
        billed = {bool(row["stream"]): row["charged"] for row in rows}
        assert billed[False] == 0
        window = price(prompt_tokens=0, completion_tokens=FIRST_WINDOW_TOKENS + SECOND_WINDOW_TOKENS)
        assert 0 < billed[True] <= price(prompt_tokens=20, completion_tokens=seen.tokens) + window
        assert_books(server)


async def test_a_stream_longer_than_leases_and_sweeps_is_not_swept(alone: FareboxServer, replicas: Replicas) -> None:
    """Case 36: while its process lives, neither its own sweeper nor another replica's ends it."""
    seconds = 2.5 * LEASE_TTL_S
    assert seconds > 5 * QUICK["sweep_interval_s"]
    owners = (alone, replicas[0])
    payers = [server.payer() for server in owners]
    body = chat(f"tokens={int(100 * seconds)} tps=100", stream=True)
    began = time.monotonic()
    answers = await asyncio.gather(
        *(ask(server.port, payer, body) for server, payer in zip(owners, payers, strict=True))
    )
    assert time.monotonic() - began > 2 * LEASE_TTL_S
    for server, payer, seen in zip(owners, payers, answers, strict=True):
        assert seen.whole
        (row,) = server.outcomes(payer)
        assert_billed(seen, row)
        assert_books(server)


async def test_a_replica_sweeps_what_another_left_when_it_was_killed(
    postgres_url: str,
    tmp_path: Path,
) -> None:
    """Case 35: without a restart of the one that died."""
    with two_replicas(tmp_path, postgres_url) as (one, other):
        payer = one.payer()
        stream = await Exchange.send(one.port, payer, chat("tokens=4000 tps=200", stream=True), key="k")
        running = await Exchange.send(other.port, payer, chat("tokens=1000 tps=250", stream=True))
        await stream.first()
        await running.first()
        one.kill()
        seen = await stream.finish()
        (row,) = [row for row in await settled(other, payer, requests=2) if row["status"] == "swept"]
        window = price(prompt_tokens=0, completion_tokens=FIRST_WINDOW_TOKENS + SECOND_WINDOW_TOKENS)
        assert 0 < row["charged"] <= price(prompt_tokens=20, completion_tokens=seen.tokens) + window
        # What lives is left alone, and the claim of what died is resolved with it.
        assert (await running.finish()).whole
        again = await ask(other.port, payer, chat("tokens=4000 tps=200", stream=True), key="k")
        assert again.status == 409
        assert again.error is not None
        assert again.error["code"] == "idempotency_answer_not_kept"
        assert len(other.outcomes(payer)) == 2
        assert_books(other)


async def test_what_a_client_received_is_in_the_database_whatever_happens_next(
    database_url: str, tmp_path: Path
) -> None:
    """Case 39: the process is killed the moment that an answer is complete."""
    with FareboxServer(tmp_path, database_url=database_url) as server:
        payer = server.payer()
        for round_ in range(3):
            bodies = [chat(f"tokens={10 + n} first_ms={n}", stream=n % 2 == 0) for n in range(20)]
            running = [asyncio.ensure_future(ask(server.port, payer, body)) for body in bodies]
            await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            server.kill()
            whole = [seen for seen in await asyncio.gather(*running) if seen.whole]
            assert whole, f"nothing was answered before kill {round_}"
            rows = {row["request_id"]: row for row in server.outcomes(payer)}
            for seen in whole:
                assert_billed(seen, rows[seen.request_id])
            await asyncio.to_thread(server.start)
        await asyncio.to_thread(server.wait_settled)
        assert_books(server)


@pytest.mark.parametrize("words", ["", "no id"], ids=["the same id", "a null id"])
async def test_a_providers_ids_are_not_ours(odd: FareboxServer, words: str) -> None:
    """Case 38: two providers answer twice each with one id, or with none."""
    payer = odd.payer()
    answers = []
    for stream in (False, True):
        for name in ("first", "second"):
            body = chat("tokens=10", stream=stream, provider={"only": [name]})
            body["messages"][0]["content"] += words
            answers.append(await ask(odd.port, payer, body))
    assert all(seen.whole for seen in answers)
    given = b'"id":null' if words else b'"id":"chatcmpl-sandbox-'
    assert all(given in seen.body for seen in answers)
    rows = {row["request_id"]: row for row in await settled(odd, payer, requests=4)}
    assert len(rows) == len({seen.request_id for seen in answers}) == 4
    assert [rows[seen.request_id]["provider"] for seen in answers] == ["first", "second"] * 2
    for seen in answers:
        assert_billed(seen, rows[seen.request_id])
    assert_books(odd)


async def test_a_client_that_does_not_read_is_dropped_and_billed_for_what_it_was_given(
    sqlite_url: str, tmp_path: Path
) -> None:
    """Its connection too: closing it in order would wait for the client, for ever."""
    with FareboxServer(tmp_path, database_url=sqlite_url, server={"client_write_timeout_s": 1.0}) as server:
        payer = server.payer("100.00")
        tokens = 400_000
        body = chat(f"tokens={tokens}", stream=True, max_tokens=tokens)
        exchange = await Exchange.send(server.port, payer, body, buffer_bytes=4096)
        (row,) = await settled(server, payer, requests=1)
        assert row["status"] == "aborted"
        assert row["charged"] == row["price"]
        assert 0 < row["completion_tokens"] < tokens
        assert server.process is not None
        process = psutil.Process(server.process.pid)
        port = exchange.writer.get_extra_info("sockname")[1]
        await eventually(
            lambda: not any(found.raddr and found.raddr.port == port for found in process.net_connections("tcp")),
            what="the end of its connection",
        )
        seen = await exchange.finish()
        assert not seen.done
        assert seen.tokens <= row["completion_tokens"]
        assert_books(server)


async def test_a_database_that_goes_away_loses_and_doubles_nothing(postgres_url: str, tmp_path: Path) -> None:
    """Case 39: every connection to it is broken, again and again, under load."""
    with FareboxServer(tmp_path, database_url=postgres_url, providers=PROVIDERS) as server:
        load = Load.on(server, seed=39)
        stop = asyncio.Event()
        clients = asyncio.ensure_future(load.until(stop))
        for breaks in range(6):
            answers = len(load.records) + 15
            await eventually(partial(_has_answers, load, answers), what=f"load before break {breaks}")
            await asyncio.to_thread(_break_connections, postgres_url)
        stop.set()
        await clients
        await asyncio.to_thread(server.wait_settled)
        assert server.process is not None
        assert server.process.poll() is None
        proof = Proof.of(load)
        proof.check()
        assert not {"swept"} & proof.statuses(), "a stream was swept although its process lived"
        assert {"completed", "aborted", "failed"} <= proof.statuses()
        assert "commit_retried" in server.log.read_text()


async def test_a_database_that_was_away_longer_than_a_lease_costs_no_stream(
    postgres: PostgresServer, postgres_url: str, tmp_path: Path
) -> None:
    """Case 36: nobody could say that it lives, so nobody is taken for dead: the other sweeps at every chance."""
    slow, eager = {"heartbeat_s": 1.0}, {"heartbeat_s": 0.2, "sweep_interval_s": 0.02}
    with (
        FareboxServer(tmp_path, database_url=postgres_url, ledger=slow) as one,
        FareboxServer(tmp_path, database_url=postgres_url, ledger=eager) as other,
    ):
        payer = one.payer()
        stream = await Exchange.send(one.port, payer, chat("tokens=900 tps=120", stream=True))
        await stream.first()
        with _away(postgres, postgres_url):
            # A lease must pass, which is what this is about; the stream is read meanwhile.
            finishing = asyncio.ensure_future(stream.finish())
            await asyncio.wait((finishing,), timeout=LEASE_TTL_S + 1.5)
        seen = await finishing
        assert seen.whole, seen.error
        (row,) = await settled(other, payer, requests=1)
        assert_billed(seen, row)
        assert_books(other)


async def test_a_second_server_on_one_sqlite_file_is_refused(sqlite_url: str, tmp_path: Path) -> None:
    with FareboxServer(tmp_path, database_url=sqlite_url) as first:
        payer = first.payer()
        with closing(FareboxServer(tmp_path, database_url=sqlite_url)) as second:
            with pytest.raises(AssertionError, match="another farebox serves from this SQLite file; use PostgreSQL"):
                await asyncio.to_thread(second.start)
            assert second.process is not None
            assert second.process.returncode == 2
            assert "Traceback" not in second.log.read_text()
        assert (await ask(first.port, payer, chat("tokens=1"))).status == 200


@contextmanager
def _away(postgres: PostgresServer, url: str) -> Iterator[None]:
    """Meanwhile nobody can use the database."""
    database_name = url.removeprefix("postgresql://postgres@/").partition("?")[0]
    name = sql.Identifier(database_name)
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(name))
        try:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", (database_name,)
            )
            yield
        finally:
            connection.execute(sql.SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(name))


def _has_answers(load: Load, least: int) -> bool:
    return len(load.records) >= least


def _break_connections(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )


assert FIRST_WINDOW_TOKENS * TOKEN_BYTES == 256
