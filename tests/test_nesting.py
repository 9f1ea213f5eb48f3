import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.nesting import DEPTH_MAX, is_deep

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=30,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


@given(value=VALUES, depth_max=st.integers(0, 8))
def test_depth_is_that_of_the_value_whatever_its_strings_hold(value: Any, depth_max: int) -> None:
    content = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert is_deep(content, depth_max=depth_max) is (depth(value) > depth_max)


@pytest.mark.parametrize(("levels", "deep"), [(DEPTH_MAX, False), (DEPTH_MAX + 1, True), (1_000_000, True)])
def test_absurd_depth_is_found_without_parsing(levels: int, deep: bool) -> None:
    assert is_deep(b"[" * levels + b"]" * levels) is deep
    assert is_deep(b'{"a":' * levels + b"1" + b"}" * levels) is deep
    assert not is_deep(json.dumps("[" * levels).encode())
