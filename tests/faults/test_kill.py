"""The real server under load, killed at random moments: the books and the clients agree afterwards.

`make test` runs one seed on each database; ``make soak`` runs long, with a seed that it prints.
"""

import asyncio
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.load import PROVIDERS, Load
from tests.faults.proof import Proof
from tests.serving import FareboxServer

SEED = 20_260_801
KILLS = 5
# A busy machine gets through less between two kills, and may need more of them to see everything.
MORE_KILLS_MAX = 10
KILL_AFTER_S = (0.1, 0.9)


def unseen(proof: Proof) -> list[str]:
    """What the load has not shown so far, and the test is about."""
    swept = [row for row in proof.rows.values() if row["status"] == "swept"]
    broken = [record for record in proof.load.records if record.seen.status == 200 and not record.seen.whole]
    seen = {
        **{status: status in proof.statuses() for status in ("completed", "swept", "aborted", "failed", "exhausted")},
        "a kill in the middle of a stream": any(row["charged"] for row in swept),
        "a kill in the middle of a whole answer": any(not row["stream"] for row in swept),
        "a client that was cut off": any(not record.seen.left and record.seen.error is None for record in broken),
    }
    return [what for what, was_seen in seen.items() if not was_seen]


async def kill_and_prove(
    server: FareboxServer, *, seed: int, kills: int, wanted: Callable[[Proof], object] = lambda _: None
) -> Proof:
    """Load, SIGKILL, restart, again and again; then everything is resolved and proven.

    As long as something is ``wanted``, there are more kills.
    """
    load = Load.on(server, seed)
    moments = random.Random(seed)
    for kill in range(1, kills + MORE_KILLS_MAX + 1):
        stop = asyncio.Event()
        clients = asyncio.ensure_future(load.until(stop))
        # The moment is the point of the test, so it is a time and not a condition.
        await asyncio.wait((clients,), timeout=moments.uniform(*KILL_AFTER_S))
        stop.set()
        server.kill()
        await clients
        await asyncio.to_thread(server.start)
        if kill >= kills:
            await asyncio.to_thread(server.wait_settled)
            if not wanted(Proof.of(load)):
                break
    proof = Proof.of(load)
    proof.check()
    repeated = await load.again()
    await asyncio.to_thread(server.wait_settled)
    proof = Proof.of(load)
    proof.check()
    proof.check_repeated(repeated)
    return proof


async def test_kills_at_random_moments_lose_and_double_nothing(database_url: str, tmp_path: Path) -> None:
    with FareboxServer(tmp_path, database_url=database_url, providers=PROVIDERS) as server:
        proof = await kill_and_prove(server, seed=SEED, kills=KILLS, wanted=unseen)
        assert server.terminate() == 0
    assert not unseen(proof)


@pytest.mark.soak
async def test_soak(sqlite_url: str, postgres_url: str, tmp_path: Path) -> None:
    """As above for ``SOAK_MINUTES``, on both databases in turn, which grow old meanwhile."""
    minutes = float(os.environ.get("SOAK_MINUTES", "10"))
    seed = int(os.environ.get("SOAK_SEED", "0")) or random.SystemRandom().randrange(1, 2**32)
    began = time.monotonic()
    rounds = 0
    while time.monotonic() - began < 60 * minutes:
        for url in (sqlite_url, postgres_url):
            round_seed = seed + rounds
            print(
                f"soak: {time.monotonic() - began:.0f} s, round {rounds}, SOAK_SEED={round_seed}, {url.split(':')[0]}"
            )
            with FareboxServer(tmp_path, database_url=url, providers=PROVIDERS) as server:
                proof = await kill_and_prove(server, seed=round_seed, kills=2 * KILLS)
                assert server.terminate() == 0
            print(f"soak: {len(proof.rows)} requests, {len(proof.load.records)} answers, proven")
            rounds += 1
