"""The line of streams that wait for one channel's vouchers."""

from app.money import NanoUsd
from app.rails.pauses import Pauses

A, B = "0xa", "0xb"


def test_first_come_is_first_served() -> None:
    pauses = Pauses()
    one, two = pauses.join(A, wanted=NanoUsd(5)), pauses.join(A, wanted=NanoUsd(7))
    assert pauses.is_first(A, one)
    assert not pauses.is_first(A, two)
    pauses.wake(A)
    assert one.woken.is_set()
    assert not two.woken.is_set()


def test_waiter_asks_for_all_before_it_and_none_behind() -> None:
    pauses = Pauses()
    line = [pauses.join(A, wanted=NanoUsd(amount)) for amount in (5, 7, 11)]
    pauses.join(B, wanted=NanoUsd(100))
    assert [pauses.wanted(A, waiter) for waiter in line] == [5, 12, 23]
    pauses.leave(A, line[0])
    assert [pauses.wanted(A, waiter) for waiter in line[1:]] == [7, 18]


def test_who_leaves_hands_on_to_the_next() -> None:
    pauses = Pauses()
    line = [pauses.join(A, wanted=NanoUsd(1)) for _ in range(3)]
    pauses.leave(A, line[0])
    assert [waiter.woken.is_set() for waiter in line] == [False, True, False]
    assert pauses.is_first(A, line[1])


def test_who_leaves_from_the_middle_or_twice_disturbs_nobody() -> None:
    pauses = Pauses()
    line = [pauses.join(A, wanted=NanoUsd(1)) for _ in range(3)]
    pauses.leave(A, line[1])
    pauses.leave(A, line[1])
    pauses.leave(B, line[1])
    assert pauses.is_first(A, line[0])
    assert len(pauses) == 2


def test_channels_do_not_wake_each_other() -> None:
    pauses = Pauses()
    one, other = pauses.join(A, wanted=NanoUsd(1)), pauses.join(B, wanted=NanoUsd(1))
    pauses.wake(A)
    pauses.wake("0xunknown")
    pauses.wake_all("0xunknown")
    assert (one.woken.is_set(), other.woken.is_set()) == (True, False)


def test_channel_that_stopped_wakes_everybody() -> None:
    pauses = Pauses()
    line = [pauses.join(A, wanted=NanoUsd(1)) for _ in range(3)]
    pauses.wake_all(A)
    assert all(waiter.woken.is_set() for waiter in line)


def test_nothing_is_kept_of_a_line_that_is_empty() -> None:
    pauses = Pauses()
    waiter = pauses.join(A, wanted=NanoUsd(1))
    assert len(pauses) == 1
    pauses.leave(A, waiter)
    assert len(pauses) == 0
    assert not pauses.is_first(A, waiter)
    assert pauses.wanted(A, waiter) == 0


def test_what_was_asked_for_is_known_and_nothing_else() -> None:
    pauses = Pauses()
    pauses.ask("0xa", 500)
    pauses.ask("0xa", 700)
    assert pauses.was_asked("0xa", 500)
    assert not pauses.was_asked("0xa", 501)
    assert not pauses.was_asked("0xb", 500)
    for amount in range(1000, 1032):
        pauses.ask("0xa", amount)
    assert not pauses.was_asked("0xa", 500)
    assert pauses.was_asked("0xa", 1031)
