import pytest

from app.errors import InvariantViolated
from app.ledger.account import Account, can_refuse, customer_account
from app.money import NanoUsd


def account(*, credits: int = 100, held: int = 0, spent: int = 0, limit: int = 0) -> Account:
    return Account(
        "customer:c",
        debits_pending=NanoUsd(held),
        debits_posted=NanoUsd(spent),
        credits_posted=NanoUsd(credits),
        credit_limit=NanoUsd(limit),
    )


def test_available_is_credits_less_debits_and_holds_plus_the_credit_limit() -> None:
    assert account(credits=100, held=30, spent=20, limit=7).available == 57


def test_all_that_is_available_can_be_held() -> None:
    payer = account(credits=100, limit=5)
    payer.hold(NanoUsd(105))
    assert (payer.debits_pending, payer.available) == (105, 0)


@pytest.mark.parametrize("amount", [101, -1])
def test_a_hold_beyond_what_is_available_is_a_bug(amount: int) -> None:
    payer = account(credits=100)
    with pytest.raises(InvariantViolated):
        payer.hold(NanoUsd(amount))
    assert payer.debits_pending == 0


def test_a_capture_posts_its_part_and_releases_the_rest() -> None:
    payer = account(credits=100, held=60)
    payer.resolve(NanoUsd(40), captured=NanoUsd(15))
    assert (payer.debits_pending, payer.debits_posted, payer.available) == (20, 15, 65)


@pytest.mark.parametrize(("held", "captured"), [(40, 41), (61, 10), (40, -1)])
def test_a_capture_beyond_its_hold_is_a_bug(held: int, captured: int) -> None:
    payer = account(credits=100, held=60)
    with pytest.raises(InvariantViolated):
        payer.resolve(NanoUsd(held), captured=NanoUsd(captured))
    assert (payer.debits_pending, payer.debits_posted) == (60, 0)


def test_a_debit_is_posted_at_once() -> None:
    payer = account(credits=100, held=60)
    payer.debit(NanoUsd(40))
    assert (payer.debits_posted, payer.available) == (40, 0)


@pytest.mark.parametrize("amount", [41, -1])
def test_a_debit_beyond_what_is_available_is_a_bug(amount: int) -> None:
    payer = account(credits=100, held=60)
    with pytest.raises(InvariantViolated):
        payer.debit(NanoUsd(amount))
    assert payer.debits_posted == 0


def test_a_credit_becomes_available() -> None:
    payer = account(credits=0)
    payer.credit(NanoUsd(9))
    assert payer.available == 9


def test_a_negative_credit_is_a_bug() -> None:
    payer = account()
    with pytest.raises(InvariantViolated):
        payer.credit(NanoUsd(-1))
    assert payer.credits_posted == 100


def test_a_lowered_credit_limit_leaves_less_than_nothing_available() -> None:
    payer = account(credits=0, held=50, limit=20)
    assert payer.available == -30
    with pytest.raises(InvariantViolated):
        payer.hold(NanoUsd(1))


@pytest.mark.parametrize(
    ("account_id", "refuses"),
    [(customer_account("c"), True), ("channel:0xabc", True), ("revenue", False), ("provider:p", False)],
)
def test_only_payers_can_refuse(account_id: str, refuses: bool) -> None:
    assert can_refuse(account_id) is refuses
