import re

from app.clock import EpochMs
from app.ledger.ids import ALPHABET, ID_CHARACTERS, new_id
from tests.clocks import START_MS


def test_an_id_is_its_prefix_and_26_lower_case_crockford_characters() -> None:
    made = new_id("key", START_MS)
    assert re.fullmatch(rf"key_[{ALPHABET}]{{{ID_CHARACTERS}}}", made)


def test_the_time_part_is_that_of_the_ulid_specification() -> None:
    # The example of the ULID specification, 01ARZ3NDEKTSV4RRFFQ69G5FAV, was made at this moment.
    assert new_id("x", EpochMs(1_469_922_850_259)).startswith("x_01arz3ndek")


def test_ids_sort_by_the_time_they_were_made() -> None:
    moments = [EpochMs(ms) for ms in (0, 1, 31, 32, 1023, 1024, START_MS, START_MS + 1, 2**48 - 1)]
    made = [new_id("req", at) for at in moments]
    assert sorted(made) == made


def test_ids_of_one_millisecond_differ() -> None:
    assert len({new_id("req", START_MS) for _ in range(2000)}) == 2000
