"""A loop that outlives its failures, and ends when it is told to."""

import asyncio

from app import metrics
from app.workers import Worker

AT_ONCE_S = 0.0
NEVER_S = 3600.0


def failures(name: str) -> float:
    """How often the worker was counted as failed."""
    count: float = metrics.alerts.labels(f"worker_{name}")._value.get()
    return count


async def test_it_runs_again_and_again() -> None:
    times = asyncio.Semaphore(0)

    async def work() -> None:
        times.release()

    worker = Worker("counting", work, every_s=AT_ONCE_S)
    worker.start()
    async with asyncio.timeout(10):
        for _ in range(5):
            await times.acquire()
    await worker.stop()
    assert failures("counting") == 0


async def test_the_first_run_comes_after_the_first_interval() -> None:
    ran = asyncio.Event()

    async def work() -> None:
        ran.set()

    worker = Worker("later", work, every_s=NEVER_S)
    worker.start()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not ran.is_set()
    await worker.stop()


async def test_a_failure_is_counted_and_does_not_end_it() -> None:
    times = asyncio.Semaphore(0)

    async def work() -> None:
        times.release()
        raise RuntimeError("the database is away")

    worker = Worker("failing", work, every_s=AT_ONCE_S)
    worker.start()
    async with asyncio.timeout(10):
        for _ in range(3):
            await times.acquire()
    await worker.stop()
    assert failures("failing") >= 2


async def test_stopping_ends_work_that_hangs_and_waits_for_it() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.set()

    worker = Worker("hanging", work, every_s=AT_ONCE_S)
    worker.start()
    await began.wait()
    async with asyncio.timeout(10):
        await worker.stop()
    assert ended.is_set()
    assert failures("hanging") == 0


async def test_runs_never_overlap() -> None:
    running = most = 0
    times = asyncio.Semaphore(0)

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        times.release()

    worker = Worker("alone", work, every_s=AT_ONCE_S)
    worker.start()
    async with asyncio.timeout(10):
        for _ in range(5):
            await times.acquire()
    await worker.stop()
    assert most == 1


async def test_one_that_was_never_started_can_be_stopped() -> None:
    async def work() -> None:
        raise AssertionError("it was not started")

    await Worker("idle", work, every_s=AT_ONCE_S).stop()
