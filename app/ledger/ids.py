"""Ids of rows: a prefix, then 26 characters that sort by time and cannot be guessed. Pure.

The layout is ULID's: 48 bits of milliseconds, then 80 random bits, in Crockford's base 32 (which
leaves out i, l, o and u), lower case. Ids made within one millisecond are in no order.
"""

import os
from functools import lru_cache

from app.clock import EpochMs

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
TIME_CHARACTERS = 10
RANDOM_BYTES = 10
ID_CHARACTERS = 26
_PAIR_BITS = 10
_PAIRS = tuple(high + low for high in ALPHABET for low in ALPHABET)
_PAIR_MASK = (1 << _PAIR_BITS) - 1
_RANDOM_SHIFTS = tuple(range(8 * RANDOM_BYTES - _PAIR_BITS, -1, -_PAIR_BITS))
_TIME_SHIFTS = tuple(range(5 * TIME_CHARACTERS - _PAIR_BITS, -1, -_PAIR_BITS))


def new_id(prefix: str, now_ms: EpochMs) -> str:
    """``prefix``, an underscore and 26 characters: ``key_01jd4v0k9m...``."""
    noise = int.from_bytes(os.urandom(RANDOM_BYTES), "big")
    pairs = _PAIRS
    return f"{prefix}_{_time(now_ms)}{''.join([pairs[noise >> shift & _PAIR_MASK] for shift in _RANDOM_SHIFTS])}"


@lru_cache(maxsize=8)
def _time(now_ms: EpochMs) -> str:
    return "".join(_PAIRS[now_ms >> shift & _PAIR_MASK] for shift in _TIME_SHIFTS)
