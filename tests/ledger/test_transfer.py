import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.clock import EpochMs
from app.ledger.transfer import CAPTURE, HOLD, PENDING, POST, RELEASE, VOID, Hold, Transfer, pending, resolve, total
from app.money import NanoUsd
from app.tables import holds as holds_table
from app.tables import transfers as transfers_table

NOW = EpochMs(2000)


def hold(sequence: int, amount: int) -> Hold:
    return Hold(f"r:h{sequence}", "customer:c", "k", "r", "revenue", NanoUsd(amount), "o", EpochMs(1000 + sequence))


def test_rows_are_in_the_order_of_their_tables_columns() -> None:
    assert Transfer._fields == tuple(column.name for column in transfers_table.columns)
    assert Hold._fields == tuple(column.name for column in holds_table.columns)


def test_a_hold_is_a_pending_transfer_to_whom_it_will_pay() -> None:
    assert pending(hold(0, 70)) == Transfer(
        "r:h0", HOLD, PENDING, "customer:c", "revenue", NanoUsd(70), None, "r", None, EpochMs(1000)
    )


def test_a_capture_takes_from_the_oldest_holds_first_and_voids_the_rest() -> None:
    done = resolve([hold(0, 50), hold(1, 30), hold(2, 20)], amount=NanoUsd(60), at=NOW)
    assert [(t.id, t.kind, t.phase, t.amount, t.pending_id, t.created_at_ms) for t in done] == [
        ("r:h0:r", CAPTURE, POST, 50, "r:h0", NOW),
        ("r:h1:r", CAPTURE, POST, 10, "r:h1", NOW),
        ("r:h2:r", RELEASE, VOID, 0, "r:h2", NOW),
    ]


def test_a_capture_of_nothing_voids_every_hold() -> None:
    done = resolve([hold(0, 50), hold(1, 0)], amount=NanoUsd(0), at=NOW)
    assert [(t.kind, t.phase, t.amount) for t in done] == [(RELEASE, VOID, 0)] * 2


def test_a_capture_beyond_its_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="exceeds"):
        resolve([hold(0, 50), hold(1, 30)], amount=NanoUsd(81), at=NOW)


@given(st.lists(st.integers(0, 100), max_size=6), st.data())
def test_every_hold_is_resolved_once_and_the_parts_add_up(amounts: list[int], data: st.DataObject) -> None:
    holds = [hold(sequence, amount) for sequence, amount in enumerate(amounts)]
    amount = NanoUsd(data.draw(st.integers(0, total(holds))))
    done = resolve(holds, amount=amount, at=NOW)
    assert [t.pending_id for t in done] == [h.id for h in holds]
    assert sum(t.amount for t in done) == amount
    assert all(t.amount <= h.amount for t, h in zip(done, holds, strict=True))
    assert all(
        (t.debit_account, t.credit_account, t.request_id) == (h.account_id, h.credit_account, h.request_id)
        for t, h in zip(done, holds, strict=True)
    )
