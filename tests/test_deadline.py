"""The bound on a wait: it ends the wait it was made for, and no other cancellation becomes a timeout."""

import asyncio

import pytest

from app.deadline import Deadline

NEVER_S = 3600.0


async def test_a_wait_within_its_time_is_left_alone() -> None:
    with Deadline(NEVER_S):
        await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_wait_past_its_time_is_a_timeout() -> None:
    with pytest.raises(TimeoutError), Deadline(0.001):
        await asyncio.Event().wait()
    task = asyncio.current_task()
    assert task is not None
    # The task can wait again: nothing of the cancellation is left on it.
    assert task.cancelling() == 0
    await asyncio.sleep(0)


@pytest.mark.parametrize("seconds", [0.0, -1.0])
async def test_no_time_at_all_is_a_timeout(seconds: float) -> None:
    with pytest.raises(TimeoutError), Deadline(seconds):
        await asyncio.Event().wait()


async def test_a_cancellation_from_outside_stays_one() -> None:
    waiting = asyncio.Event()

    async def work() -> None:
        with Deadline(NEVER_S):
            waiting.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_a_cancellation_from_outside_wins_over_a_timeout_at_the_same_moment() -> None:
    waiting = asyncio.Event()
    deadlines: list[Deadline] = []

    async def work() -> None:
        with Deadline(NEVER_S) as deadline:
            deadlines.append(deadline)
            waiting.set()
            await asyncio.Event().wait()

    task = asyncio.ensure_future(work())
    await waiting.wait()
    task.cancel()
    deadlines[0]._expire()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_another_error_passes() -> None:
    with pytest.raises(ValueError, match="mine"), Deadline(NEVER_S):
        raise ValueError("mine")


async def test_the_inner_of_two_ends_alone() -> None:
    with Deadline(NEVER_S):
        with pytest.raises(TimeoutError), Deadline(0.001):
            await asyncio.Event().wait()
        await asyncio.sleep(0)


async def test_the_outer_of_two_ends_both() -> None:
    with pytest.raises(TimeoutError), Deadline(0.001), Deadline(NEVER_S):
        await asyncio.Event().wait()


async def test_nothing_is_cancelled_after_the_wait() -> None:
    with Deadline(0.001):
        pass
    # Twice as long as the deadline had: its timer must be gone.
    await asyncio.wait((asyncio.ensure_future(asyncio.sleep(0.002)),))


async def test_it_can_be_shortened_and_never_lengthened() -> None:
    async def work() -> None:
        with Deadline(NEVER_S) as deadline:
            deadline.shorten(0.001)
            deadline.shorten(NEVER_S)
            await asyncio.Event().wait()

    with pytest.raises(TimeoutError):
        await work()


async def test_shortening_one_that_is_over_does_nothing() -> None:
    with Deadline(NEVER_S) as deadline:
        pass
    deadline.shorten(0)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
