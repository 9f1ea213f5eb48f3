"""How deep JSON is nested, found without parsing it: parsers and serialisers have limits of their own. Pure."""

import re
from itertools import accumulate

# What serialises JSON gives up at 254 levels.
DEPTH_MAX = 200
# A string, also one that nobody closed: what the pattern cannot match would be tried again from each quote.
_STRING = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)
# Brackets as the signed bytes 1 and -1.
_STEPS = bytes.maketrans(b"[{]}", b"\x01\x01\xff\xff")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def is_deep(content: bytes, *, depth_max: int = DEPTH_MAX) -> bool:
    """Whether JSON is nested deeper than so many levels; strings apart, so it is right for any valid JSON."""
    if content.count(b"[") + content.count(b"{") <= depth_max:
        return False
    steps = _STRING.sub(b"", content).translate(_STEPS, _NO_BRACKETS)
    return max(accumulate(memoryview(steps).cast("b")), default=0) > depth_max
