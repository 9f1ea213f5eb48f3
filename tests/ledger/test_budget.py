import pytest

from app.clock import MS_PER_MINUTE, EpochMs
from app.ledger.budget import UNLIMITED, BudgetRefusal
from app.money import NanoUsd
from tests.clocks import START_MS
from tests.ledger.operations import budget, condition

# The first moment of the next month (UTC) after `START_MS`.
NOVEMBER_MS = EpochMs(1_761_955_200_000)


def test_a_key_without_limits_is_usable_and_free() -> None:
    key = budget()
    assert key.usable(condition(), now=START_MS) is None
    assert key.within_rates(condition(tokens=10**9), now=START_MS) is None
    assert key.free == UNLIMITED


def test_a_revoked_key_is_refused() -> None:
    assert budget(revoked_at_ms=START_MS).usable(condition(), now=START_MS) == BudgetRefusal("revoked")


def test_a_rotated_secret_refuses_the_one_before() -> None:
    key = budget(hash="hash-of-another-secret")
    assert key.usable(condition(), now=START_MS) == BudgetRefusal("revoked")


@pytest.mark.parametrize(("late_ms", "refusal"), [(-1, None), (0, BudgetRefusal("expired"))])
def test_a_key_expires_at_its_moment(late_ms: int, refusal: BudgetRefusal | None) -> None:
    key = budget(expires_at_ms=START_MS)
    assert key.usable(condition(), now=EpochMs(START_MS + late_ms)) == refusal


@pytest.mark.parametrize(
    ("models", "refusal"),
    [
        ('["m"]', None),
        ('["m-large", "n"]', BudgetRefusal("model_not_allowed")),
        ("[]", BudgetRefusal("model_not_allowed")),
    ],
)
def test_only_listed_models_are_allowed(models: str, refusal: BudgetRefusal | None) -> None:
    assert budget(models=models).usable(condition(model="m"), now=START_MS) == refusal


def test_a_minute_holds_so_many_requests_and_says_how_long_to_wait() -> None:
    key = budget(requests_per_minute=2)
    for _ in range(2):
        assert key.within_rates(condition(), now=START_MS) is None
        key.count(10)
    # Forty seconds of the minute are left; a part of a second is a second.
    refusal = key.within_rates(condition(), now=EpochMs(START_MS + 1))
    assert refusal == BudgetRefusal("requests_per_minute", 40, 2)


def test_a_minute_holds_so_many_tokens() -> None:
    key = budget(tokens_per_minute=100)
    key.count(90)
    assert key.within_rates(condition(tokens=10), now=START_MS) is None
    assert key.within_rates(condition(tokens=11), now=START_MS) == BudgetRefusal("tokens_per_minute", 40, 100)


def test_a_new_minute_starts_without_requests_or_tokens() -> None:
    key = budget(requests_per_minute=1, tokens_per_minute=10)
    key.count(10)
    next_minute = EpochMs(START_MS - START_MS % MS_PER_MINUTE + MS_PER_MINUTE)
    key.roll(EpochMs(next_minute - 1))
    assert (key.minute_requests, key.minute_tokens) == (1, 10)
    key.roll(next_minute)
    assert (key.minute_requests, key.minute_tokens) == (0, 0)
    assert key.within_rates(condition(), now=next_minute) is None


def test_a_new_month_starts_with_nothing_spent_and_keeps_the_total() -> None:
    key = budget(spent=NanoUsd(70), spent_month=NanoUsd(50), spend_limit_month=NanoUsd(50))
    key.roll(EpochMs(NOVEMBER_MS - 1))
    assert (key.spent_month, key.free) == (50, 0)
    key.roll(NOVEMBER_MS)
    assert (key.spent, key.spent_month, key.free) == (70, 0, 50)


@pytest.mark.parametrize(
    ("limit", "limit_month", "free"),
    [(100, None, 100 - 30 - 5), (None, 60, 60 - 20 - 5), (100, 60, 35), (50, 60, 15)],
)
def test_what_is_free_is_the_tighter_limit_less_spent_and_held(
    limit: int | None, limit_month: int | None, free: int
) -> None:
    key = budget(
        spend_limit=limit, spend_limit_month=limit_month, spent=NanoUsd(30), spent_month=NanoUsd(20), held=NanoUsd(5)
    )
    assert key.free == free


def test_what_was_held_becomes_what_was_charged() -> None:
    key = budget(spend_limit=NanoUsd(100), spend_limit_month=NanoUsd(90))
    key.hold(NanoUsd(60))
    key.count(50)
    key.resolve(NanoUsd(60), charged=NanoUsd(25), tokens_over=-20)
    assert (key.held, key.spent, key.spent_month, key.minute_tokens, key.free) == (0, 25, 25, 30, 65)


def test_a_correction_never_makes_tokens_negative() -> None:
    key = budget()
    key.resolve(NanoUsd(0), charged=NanoUsd(0), tokens_over=-20)
    assert key.minute_tokens == 0


def test_a_clock_that_is_behind_resets_nothing() -> None:
    key = budget(spent_month=NanoUsd(7), minute_requests=3)
    key.roll(NOVEMBER_MS)
    key.spent_month, key.minute_requests = NanoUsd(9), 4
    key.roll(EpochMs(NOVEMBER_MS - MS_PER_MINUTE))
    assert (key.spent_month, key.minute_requests) == (9, 4)
