"""Our strict RLP against the library that everybody uses."""

from typing import Any

import pytest
import rlp as reference  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st

from app.chain import rlp

ITEMS: st.SearchStrategy[Any] = st.recursive(
    st.binary(max_size=70), lambda inner: st.lists(inner, max_size=5), max_leaves=20
)


@given(ITEMS)
def test_encodes_like_the_reference(item: Any) -> None:
    encoded = rlp.encode(item)
    assert encoded == reference.encode(item)
    assert rlp.decode(encoded, depth_max=50) == item


@given(st.integers(min_value=0, max_value=2**256))
def test_numbers_like_the_reference(number: int) -> None:
    encoded = rlp.encode(number)
    assert encoded == reference.encode(number)
    assert rlp.number(rlp.decode(encoded, depth_max=0), bits=264) == number


@given(st.binary(max_size=200))
def test_only_the_canonical_encoding_is_decoded(data: bytes) -> None:
    try:
        item = rlp.decode(data, depth_max=10)
    except ValueError:
        return
    assert rlp.encode(item) == data


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="nothing"),
        pytest.param("8100", id="length of a byte that needs none"),
        pytest.param("b801aa", id="short length written long"),
        pytest.param("f801aa", id="short list written long"),
        pytest.param("b800" + "01" * 56, id="length of nothing"),
        pytest.param("b90038" + "01" * 56, id="length with a leading zero"),
        pytest.param("bfffffffffffffffff", id="length past the end"),
        pytest.param("83aabb", id="cut off"),
        pytest.param("c0c0", id="bytes after the end"),
        pytest.param("c2820102", id="item past its list"),
        pytest.param("c1" * 20 + "c0", id="too deep"),
        pytest.param("f8", id="length missing"),
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        rlp.decode(bytes.fromhex(text), depth_max=5)


def test_number_has_no_leading_zero() -> None:
    with pytest.raises(ValueError, match="number"):
        rlp.number(b"\0\1", bits=64)
    with pytest.raises(ValueError, match="number"):
        rlp.number([], bits=64)
