import pytest

from app.routing.health import Health
from tests.clocks import FakeClock


@pytest.fixture
def health(clock: FakeClock) -> Health:
    return Health(clock, cooldown_s=5)


def test_provider_is_well_until_it_fails(health: Health) -> None:
    assert health.is_well("p", "m")
    health.failed("p", "m")
    assert not health.is_well("p", "m")


def test_failure_is_of_one_model_at_one_provider(health: Health) -> None:
    health.failed("p", "m")
    assert health.is_well("p", "other")
    assert health.is_well("q", "m")


def test_provider_is_well_again_after_its_cooldown(health: Health, clock: FakeClock) -> None:
    health.failed("p", "m")
    clock.advance(4999)
    assert not health.is_well("p", "m")
    clock.advance(1)
    assert health.is_well("p", "m")


def test_success_ends_the_cooldown(health: Health) -> None:
    health.failed("p", "m")
    health.worked("p", "m")
    assert health.is_well("p", "m")


def test_provider_that_says_when_to_come_back_is_left_alone_until_then(health: Health, clock: FakeClock) -> None:
    health.failed("p", "m", retry_after_s=30)
    clock.advance(29_999)
    assert not health.is_well("p", "m")
    clock.advance(1)
    assert health.is_well("p", "m")


def test_short_wait_that_a_provider_asks_for_is_not_shorter_than_the_cooldown(health: Health, clock: FakeClock) -> None:
    health.failed("p", "m", retry_after_s=1)
    clock.advance(4999)
    assert not health.is_well("p", "m")
