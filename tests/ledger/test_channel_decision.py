"""The five rules of channels, each with who would gain if it did not hold."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from app.database import connect
from app.errors import InvariantViolated
from app.ledger import transfer as transfers
from app.ledger.account import ADJUSTMENTS, TREASURY, channel_account, escrow_account
from app.ledger.books import Books
from app.ledger.decision import decide
from app.ledger.journal_store import JournalStore
from app.ledger.operation import Admitted, Captured, Changed, Extended, Operation, Refused, Result
from app.money import BaseUnits
from app.settings import DatabaseSettings
from app.tables import challenge_claims, receipts, settlements, vouchers
from tests.clocks import FakeClock
from tests.ledger.channel_operations import (
    CHANNEL,
    DEPOSIT,
    add_channel,
    channel_admit,
    channel_books,
    channel_capture,
    channel_extend,
    freeze,
    observe,
    plan,
    signature,
    voucher,
)
from tests.ledger.conftest import running
from tests.ledger.faults import WRITES, Crash, CrashingStore
from tests.ledger.operations import deliver, sweep
from tests.ledger.proof import prove, rows

OTHER = "0x" + "c2" * 32


def moved(books: Books) -> list[tuple[str, str, str, int]]:
    """Transfers as (kind, debit, credit, amount), without their ids."""
    return [(move.kind, move.debit_account, move.credit_account, move.amount) for move in books.new_transfers]


def refused(result: Result) -> str:
    assert isinstance(result, Refused)
    return result.reason


# Vouchers.


def test_voucher_credits_what_it_adds_and_is_kept_with_its_signature() -> None:
    books = channel_books(accepted=100)
    result = decide(books, voucher(250))
    assert isinstance(result, Changed)
    assert (result.first, result.channel.accepted) == (True, 250_000)
    assert moved(books) == [(transfers.VOUCHER, escrow_account(CHANNEL), channel_account(CHANNEL), 150_000)]
    assert [row[:3] for row in books.new_vouchers] == [(CHANNEL, 250, signature(250))]
    assert books.accounts[channel_account(CHANNEL)].available == 250_000


def test_equal_voucher_succeeds_and_changes_nothing() -> None:
    books = channel_books(accepted=100)
    result = decide(books, voucher(100))
    assert isinstance(result, Changed)
    assert not result.first
    assert not books.new_transfers
    assert not books.new_vouchers


@pytest.mark.parametrize(
    ("amount", "min_delta", "reason"),
    [
        (99, 0, "below-accepted"),
        (DEPOSIT + 1, 0, "amount-exceeds-deposit"),
        (109, 10, "delta-too-small"),
    ],
)
def test_voucher_that_is_refused_changes_nothing(amount: int, min_delta: int, reason: str) -> None:
    books = channel_books(accepted=100)
    result = decide(books, voucher(amount, min_delta=min_delta))
    assert refused(result) == reason
    assert books.channels[CHANNEL].accepted == 100_000
    assert not books.new_transfers


def test_least_increase_is_waived_at_the_end_of_the_deposit() -> None:
    books = channel_books(accepted=DEPOSIT - 1)
    assert isinstance(decide(books, voucher(DEPOSIT, min_delta=10)), Changed)


@pytest.mark.parametrize("changes", [{"status": "closing"}, {"status": "closed"}, {"close_requested_at": 7}])
def test_stopped_channel_takes_no_voucher(changes: dict[str, Any]) -> None:
    assert refused(decide(channel_books(accepted=100, **changes), voucher(200))) == "channel-finalized"


@pytest.mark.parametrize("operation", [voucher(1), freeze(), observe(), plan("settle", 1), channel_admit(amount=1)])
def test_unknown_channel_is_refused(operation: Operation) -> None:
    books = channel_books()
    del books.channels[CHANNEL]
    assert refused(decide(books, operation)).replace("_", "-") == "channel-not-found"


# Rule 1.


def test_hold_is_granted_from_what_is_accepted_and_neither_spent_nor_held() -> None:
    books = channel_books(accepted=100, spent=40_000, held=30_000)
    assert refused(decide(books, channel_admit(amount=30_001))) == "insufficient_balance"
    result = decide(books, channel_admit(amount=30_000))
    assert isinstance(result, Admitted)
    assert result.channel is not None
    assert (result.granted, result.channel.held) == (30_000, 60_000)


def test_presented_voucher_must_cover_what_is_spent_and_the_ceiling() -> None:
    books = channel_books(accepted=100, spent=40_000)
    assert refused(decide(books, channel_admit(amount=20_001, presented=60))) == "insufficient_balance"
    assert isinstance(decide(books, channel_admit(amount=20_000, presented=60)), Admitted)


def test_presented_voucher_above_the_highest_counts_as_the_highest() -> None:
    """It was not accepted, so it is worth no more than what was."""
    books = channel_books(accepted=100)
    assert refused(decide(books, channel_admit(amount=100_001, presented=500))) == "insufficient_balance"


def test_settled_voucher_of_a_stranger_buys_nothing() -> None:
    """The chain has published it; the payer's later vouchers have left funds that are free."""
    books = channel_books(accepted=1000, spent=400_000, settled=BaseUnits(400), published=BaseUnits(400))
    assert (
        refused(decide(books, channel_admit(amount=1, presented=400, challenge_id="fresh"))) == "insufficient_balance"
    )
    assert not books.new_challenges


def test_published_voucher_buys_nothing_even_where_more_was_settled_than_spent() -> None:
    """As after a backup was restored: the books know less than the chain has published."""
    books = channel_books(accepted=1000, spent=100_000, settled=BaseUnits(400), published=BaseUnits(400))
    assert refused(decide(books, channel_admit(amount=1, presented=400))) == "insufficient_balance"
    assert isinstance(decide(books, channel_admit(amount=1, presented=401)), Admitted)


def test_challenge_buys_content_once() -> None:
    books = channel_books(accepted=100)
    assert isinstance(decide(books, channel_admit("r1", amount=10, challenge_id="once")), Admitted)
    assert refused(decide(books, channel_admit("r2", amount=10, challenge_id="once"))) == "challenge_used"
    assert [row[:2] for row in books.new_challenges] == [("once", "r1")]


def test_refused_request_leaves_its_challenge() -> None:
    books = channel_books(accepted=1)
    assert refused(decide(books, channel_admit("r1", amount=10_000, challenge_id="once"))) == "insufficient_balance"
    assert isinstance(decide(books, channel_admit("r2", amount=10, challenge_id="once")), Admitted)


def test_request_of_nothing_does_not_pass_a_stop() -> None:
    """A free model on a stopped channel, or with a used challenge, is content all the same."""
    books = channel_books(accepted=100, status="closing")
    assert refused(decide(books, channel_admit(amount=0))) == "channel_closing"
    books = channel_books(accepted=100)
    books.challenges_claimed.add("once")
    assert refused(decide(books, channel_admit(amount=0, challenge_id="once"))) == "challenge_used"


# Rule 5.


def test_what_is_held_counts_as_exposed_and_clamps_the_next_hold() -> None:
    books = channel_books(accepted=1000, spent=100_000)
    first = decide(books, channel_admit(amount=300_000, exposure_max=500_000))
    assert isinstance(first, Admitted)
    assert first.granted == 300_000
    more = decide(books, channel_extend(sequence=1, amount=300_000, exposure_max=500_000))
    assert isinstance(more, Extended)
    assert more.granted == 100_000
    assert refused(decide(books, channel_extend(sequence=2, amount=1, exposure_max=500_000))) == "exposure"


def test_exposure_stops_holds_until_it_is_settled() -> None:
    books = channel_books(accepted=1000, spent=500_000)
    stopped = decide(books, channel_admit(amount=1, exposure_max=500_000))
    assert refused(stopped) == "exposure"
    assert refused(decide(books, channel_extend(sequence=1, amount=1, exposure_max=500_000))) == "hold_lost"
    decide(books, observe(settled=400))
    assert isinstance(decide(books, channel_admit(amount=1, exposure_max=500_000)), Admitted)
    assert isinstance(decide(books, channel_extend(sequence=1, amount=1, exposure_max=500_000)), Extended)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "closing"}, "channel_closing"),
        ({"close_requested_at": 7}, "channel_closing"),
        ({"status": "closed"}, "channel_finalized"),
    ],
)
def test_stopped_channel_extends_no_stream(changes: dict[str, object], reason: str) -> None:
    books = channel_books(accepted=100)
    assert isinstance(decide(books, channel_admit(amount=10)), Admitted)
    for name, value in changes.items():
        setattr(books.channels[CHANNEL], name, value)
    assert refused(decide(books, channel_extend(sequence=1, amount=1))) == reason


# Captures.


def test_capture_counts_as_spent_and_writes_its_receipt() -> None:
    books = channel_books(accepted=100)
    decide(books, channel_admit(amount=50_000, challenge_id="ch"))
    result = decide(books, channel_capture(price=20_500, challenge_id="ch", tokens_used=7))
    assert isinstance(result, Captured)
    assert result.channel is not None
    assert (result.charged, result.channel.spent, result.channel.held) == (20_500, 20_500, 0)
    # What receipts say is rounded down.
    assert [row[:6] for row in books.new_receipts] == [("r1", CHANNEL, "ch", 100, 20, 7)]


def test_overrun_comes_from_free_funds_only_and_counts_as_spent() -> None:
    books = channel_books(accepted=100)
    decide(books, channel_admit("r1", amount=60_000))
    decide(books, channel_admit("r2", amount=30_000))
    result = decide(books, channel_capture("r1", price=90_000))
    assert isinstance(result, Captured)
    assert (result.charged, result.loss) == (70_000, 20_000)
    assert books.channels[CHANNEL].spent == 70_000


def test_receipt_for_a_customer_is_impossible() -> None:
    books = channel_books(accepted=100)
    decide(books, channel_admit(amount=10))
    operation = channel_capture(price=1, challenge_id="ch")
    books.channels.clear()
    result = decide(books, operation)
    assert isinstance(result, Captured)
    assert not books.new_receipts


# Closing.


def test_frozen_channel_keeps_the_closing_voucher_and_stops() -> None:
    books = channel_books(accepted=100, spent=60_000)
    result = decide(books, freeze(80))
    assert isinstance(result, Changed)
    row = books.channels[CHANNEL]
    assert (result.first, row.status, row.close_amount, row.close_signature) == (True, "closing", 80, signature(80))
    again = decide(books, freeze())
    assert isinstance(again, Changed)
    assert (again.first, row.close_amount) == (False, 80)


@pytest.mark.parametrize(("amount", "reason"), [(59, "insufficient-balance"), (DEPOSIT + 1, "amount-exceeds-deposit")])
def test_closing_voucher_covers_what_was_spent_and_no_more_than_the_deposit(amount: int, reason: str) -> None:
    books = channel_books(accepted=100, spent=60_999)
    assert refused(decide(books, freeze(amount))) == reason
    assert books.channels[CHANNEL].status == "open"
    assert isinstance(decide(books, freeze(60)), Changed)


def test_closing_voucher_covers_what_is_settled() -> None:
    books = channel_books(accepted=100, spent=60_000, settled=BaseUnits(90))
    assert refused(decide(books, freeze(89))) == "insufficient-balance"


def test_close_is_planned_only_for_a_frozen_channel_without_holds() -> None:
    books = channel_books(accepted=100)
    decide(books, channel_admit(amount=50_000))
    assert refused(decide(books, plan("close", 100))) == "channel_busy"
    decide(books, freeze())
    assert refused(decide(books, plan("close", 100))) == "channel_busy"
    decide(books, channel_capture(price=30_500))
    result = decide(books, plan("close", 100))
    assert isinstance(result, Changed)
    # What was spent, not the highest voucher, and rounded down.
    assert (result.capture, result.channel.published) == (30, 100)
    assert [row[:8] for row in books.new_settlements] == [
        ("set_1", CHANNEL, "close", 100, 30, signature(100), "1:0xabc", "intent")
    ]


def test_close_needs_a_voucher_that_covers_what_was_spent() -> None:
    books = channel_books(accepted=100, spent=60_000, status="closing")
    assert refused(decide(books, plan("close", 59))) == "voucher_short"
    assert not books.new_settlements


def test_close_at_the_settled_amount_captures_nothing_more() -> None:
    books = channel_books(accepted=100, spent=60_000, settled=BaseUnits(60), published=BaseUnits(60), status="closing")
    result = decide(books, plan("close", 60))
    assert isinstance(result, Changed)
    assert result.capture == 60


def test_close_of_an_escrow_that_pays_vouchers_whole_says_so() -> None:
    books = channel_books(accepted=100, spent=60_000, status="closing")
    result = decide(books, plan("close", 70, whole=True))
    assert isinstance(result, Changed)
    assert result.capture == 70


# Rule 2.


def test_open_channel_publishes_no_voucher_above_what_is_spent() -> None:
    books = channel_books(accepted=100, spent=60_999)
    assert refused(decide(books, plan("settle", 61))) == "not_spent"
    assert books.channels[CHANNEL].published == 0
    result = decide(books, plan("settle", 60))
    assert isinstance(result, Changed)
    assert (result.capture, books.channels[CHANNEL].published) == (60, 60)


def test_publishing_more_than_is_spent_is_an_invariant() -> None:
    row = channel_books(accepted=100, spent=60_999).channels[CHANNEL]
    with pytest.raises(InvariantViolated):
        row.publish(BaseUnits(61))


def test_settled_voucher_is_not_settled_again() -> None:
    books = channel_books(accepted=100, spent=60_000, settled=BaseUnits(60))
    assert refused(decide(books, plan("settle", 60))) == "not_spent"


def test_channel_has_one_settlement_at_a_time_and_an_intent_is_planned_once() -> None:
    books = channel_books(accepted=100, spent=60_000)
    first = decide(books, plan("settle", 50, settlement_id="a"))
    assert isinstance(first, Changed)
    assert refused(decide(books, plan("settle", 60, settlement_id="b"))) == "settlement_open"
    again = decide(books, plan("settle", 50, settlement_id="a"))
    assert isinstance(again, Changed)
    assert (again.first, again.capture, len(books.new_settlements)) == (False, 50, 1)


def test_closed_channel_is_not_settled() -> None:
    assert refused(decide(channel_books(accepted=9, spent=9000, status="closed"), plan("settle", 9))) == (
        "channel-finalized"
    )


# The chain.


def test_what_the_chain_paid_out_is_ours_once() -> None:
    books = channel_books(accepted=100, spent=60_000)
    decide(books, observe(settled=40))
    decide(books, observe(settled=40, block=11))
    assert moved(books) == [(transfers.SETTLEMENT, TREASURY, escrow_account(CHANNEL), 40_000)]
    row = books.channels[CHANNEL]
    assert (row.settled, row.published, row.seen_block) == (40, 40, 11)


def test_older_word_tells_only_what_was_paid_out() -> None:
    """A voucher's transaction is mined in an older block than the deposit that was seen since."""
    books = channel_books(accepted=100, spent=60_000, seen_block=20)
    result = decide(books, observe(deposit=DEPOSIT // 2, close_requested_at=7, settled=40, block=19))
    assert isinstance(result, Changed)
    row = books.channels[CHANNEL]
    assert (result.first, row.deposit, row.close_requested_at, row.settled, row.seen_block) == (
        True,
        DEPOSIT,
        0,
        40,
        20,
    )
    stale = decide(books, observe(deposit=DEPOSIT // 2, settled=30, block=19))
    assert isinstance(stale, Changed)
    assert (stale.first, row.settled) == (False, 40)


def test_zero_deposit_in_the_middle_of_a_settlement_is_no_word() -> None:
    books = channel_books(accepted=100, spent=60_000, settled=BaseUnits(10))
    result = decide(books, observe(deposit=0, settled=0, block=30))
    assert isinstance(result, Changed)
    row = books.channels[CHANNEL]
    assert (result.first, row.deposit, row.status, row.seen_block) == (False, DEPOSIT, "open", 10)


def test_close_request_stops_and_its_cancellation_starts_again() -> None:
    books = channel_books(accepted=100)
    decide(books, observe(close_requested_at=7, block=11))
    assert refused(decide(books, channel_admit(amount=1))) == "channel_closing"
    decide(books, observe(close_requested_at=0, block=12))
    assert isinstance(decide(books, channel_admit(amount=1)), Admitted)


def test_top_up_is_taken_and_a_deposit_is_bounded() -> None:
    books = channel_books()
    decide(books, observe(deposit=2**90, block=11))
    assert books.channels[CHANNEL].deposit == 2**53


@pytest.mark.parametrize(
    ("spent", "settled", "left"),
    [
        (60_999, 60, (transfers.DUST, ADJUSTMENTS, escrow_account(CHANNEL), 999)),
        (60_000, 10, (transfers.UNCOLLECTED, ADJUSTMENTS, escrow_account(CHANNEL), 50_000)),
        (60_000, 70, (transfers.OVERPAID, escrow_account(CHANNEL), ADJUSTMENTS, 10_000)),
        (60_000, 60, None),
    ],
)
def test_closed_channel_is_wound_up(spent: int, settled: int, left: tuple[str, str, str, int] | None) -> None:
    books = channel_books(accepted=100, spent=spent)
    result = decide(books, observe(settled=settled, finalized=True))
    assert isinstance(result, Changed)
    assert result.channel.status == "closed"
    unspent = (transfers.UNSPENT, channel_account(CHANNEL), escrow_account(CHANNEL), 100_000 - spent)
    assert moved(books)[1:] == [unspent] + ([left] if left else [])
    assert books.accounts[channel_account(CHANNEL)].available == 0
    again = decide(books, observe(settled=99, finalized=True, block=99))
    assert isinstance(again, Changed)
    assert not again.first
    assert len(books.new_transfers) == (3 if left else 2)


def test_end_that_the_chain_forgot_keeps_its_last_word() -> None:
    books = channel_books(accepted=100, spent=60_000, settled=BaseUnits(60))
    decide(books, observe(deposit=0, settled=None, finalized=True))
    assert (books.channels[CHANNEL].settled, books.channels[CHANNEL].status) == (60, "closed")


def test_channel_that_ended_with_holds_is_wound_up_by_its_last_capture() -> None:
    books = channel_books(accepted=100)
    decide(books, channel_admit("r1", amount=40_000))
    decide(books, channel_admit("r2", amount=40_000))
    decide(books, observe(finalized=True))
    assert not books.new_transfers[2:]
    decide(books, channel_capture("r1", price=10_000))
    assert transfers.UNSPENT not in {move.kind for move in books.new_transfers}
    decide(books, channel_capture("r2", price=0))
    assert [move[0] for move in moved(books)][-2:] == [transfers.UNSPENT, transfers.UNCOLLECTED]
    assert books.accounts[channel_account(CHANNEL)].available == 0


# In the database.


@pytest.fixture
def journal(engine: Engine) -> Iterator[CrashingStore]:
    store = CrashingStore(engine, FakeClock())
    yield store
    store.close()


def test_channel_of_another_life_starts_at_what_it_paid_out(engine: Engine, journal: CrashingStore) -> None:
    add_channel(engine, settled=300)
    assert refused(journal.apply([voucher(299)])[0]) == "below-accepted"
    assert refused(journal.apply([channel_admit(amount=1)])[0]) == "insufficient_balance"
    result = journal.apply([voucher(301)])[0]
    assert isinstance(result, Changed)
    assert (result.channel.accepted, result.channel.spent) == (301_000, 300_000)
    assert isinstance(journal.apply([channel_admit(amount=1000)])[0], Admitted)
    prove(engine)


@pytest.mark.parametrize("before", range(WRITES + 5))
def test_voucher_and_its_hold_survive_a_crash_whole_or_not_at_all(
    engine: Engine, journal: CrashingStore, before: int
) -> None:
    """``before`` the last write: COMMIT; after it, nobody was told."""
    add_channel(engine)
    batch: list[Operation] = [voucher(100), channel_admit(amount=50_000, challenge_id="ch")]
    with pytest.raises(Crash):
        journal.crash(batch, before=before, again=False)
    journal.close()
    kept = (len(rows(engine, vouchers)), len(rows(engine, challenge_claims)))
    assert kept in {(0, 0), (1, 1)}
    prove(engine)
    first, second = journal.apply(batch, again=True)
    assert isinstance(first, Changed)
    assert isinstance(second, Admitted)
    assert second.granted == 50_000
    assert (len(rows(engine, vouchers)), len(rows(engine, challenge_claims))) == (1, 1)
    prove(engine)


def test_swept_request_counts_as_spent_and_lets_the_close_go_on(engine: Engine, journal: CrashingStore) -> None:
    account = channel_account(CHANNEL)
    add_channel(engine)
    journal.apply([voucher(100), channel_admit(amount=50_000, challenge_id="ch")])
    journal.apply([deliver(window=20_000, account_id=account), freeze()])
    assert refused(journal.apply([plan("close", 100)])[0]) == "channel_busy"
    swept = journal.apply([sweep(silent_since=None, account_id=account)])[0]
    assert isinstance(swept, Captured)
    assert swept.charged == 20_000
    closed = journal.apply([plan("close", 100)])[0]
    assert isinstance(closed, Changed)
    assert closed.capture == 20
    assert not rows(engine, receipts)
    prove(engine)


def in_two_replicas(url: str, one: list[Operation], other: list[Operation]) -> list[Result]:
    """Both at once, each by a store and a connection of its own."""
    start, results, failures = threading.Barrier(2), {}, []

    def replica(name: int, operations: list[Operation]) -> None:
        engine = connect(DatabaseSettings(url=url))
        store = JournalStore(engine, FakeClock())
        try:
            start.wait()
            results[name] = [store.apply([operation])[0] for operation in operations]
        except Exception as error:
            failures.append(error)
        finally:
            store.close()
            engine.dispose()

    threads = [threading.Thread(target=replica, args=(name, work)) for name, work in enumerate((one, other))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    return results[0] + results[1]


def test_no_replica_holds_once_another_froze_and_what_was_held_is_captured(postgres_url: str) -> None:
    engine = connect(DatabaseSettings(url=postgres_url))
    store = JournalStore(engine, FakeClock())
    add_channel(engine)
    store.apply([voucher(1000)])
    holds = [channel_admit(f"r{number}", amount=1000, challenge_id=f"ch{number}") for number in range(40)]
    closing: list[Operation] = [freeze(), plan("close", 1000)]
    *results, frozen, planned = in_two_replicas(postgres_url, [*holds], closing)
    admitted = [holds[number] for number, result in enumerate(results) if isinstance(result, Admitted)]
    assert all(isinstance(result, Admitted) or refused(result) == "channel_closing" for result in results)
    assert isinstance(frozen, Changed)
    # Holds are from before the freeze alone: none, and the close went ahead; or some, and it must wait for them.
    assert isinstance(planned, Changed) == (not admitted)
    store.apply([channel_capture(hold.request_id, price=1000) for hold in admitted])
    if admitted:
        assert isinstance(store.apply([plan("close", 1000)])[0], Changed)
    [settlement] = rows(engine, settlements)
    assert settlement.capture == len(admitted)
    prove(engine)
    store.close()
    engine.dispose()


def test_two_replicas_admit_no_more_than_is_accepted(postgres_url: str) -> None:
    engine = connect(DatabaseSettings(url=postgres_url))
    store = JournalStore(engine, FakeClock())
    add_channel(engine)
    store.apply([voucher(10)])
    mine: list[Operation] = [channel_admit(f"a{number}", amount=1000) for number in range(10)]
    others: list[Operation] = [channel_admit(f"b{number}", amount=1000) for number in range(10)]
    results = in_two_replicas(postgres_url, mine, others)
    assert sum(isinstance(result, Admitted) for result in results) == 10
    prove(engine)
    store.close()
    engine.dispose()


async def test_two_channels_in_two_replicas_buy_once_by_one_challenge(postgres_url: str) -> None:
    """Neither waits for the other's lock: what stops the second is the challenge's own row."""
    engine = connect(DatabaseSettings(url=postgres_url))
    for channel_id in (CHANNEL, OTHER):
        add_channel(engine, channel_id)
    clock = FakeClock()
    async with running(JournalStore(engine, clock)) as one, running(JournalStore(engine, clock)) as other:
        await asyncio.gather(one.submit(voucher(100)), other.submit(voucher(100, channel_id=OTHER)))
        for number in range(30):
            results = await asyncio.gather(
                one.submit(channel_admit(f"a{number}", amount=1, challenge_id=f"ch{number}")),
                other.submit(channel_admit(f"b{number}", amount=1, challenge_id=f"ch{number}", channel_id=OTHER)),
            )
            [lost] = [result for result in results if not isinstance(result, Admitted)]
            assert refused(lost) == "challenge_used"
    prove(engine)
    engine.dispose()
