"""RLP, strictly: what is not the one canonical encoding of something is refused. Pure.

Source: Ethereum yellow paper, appendix B. A transaction's hash is over its bytes, so that two
encodings of the same fields would be two transactions.
"""

from collections.abc import Sequence
from typing import TypeAlias

Item: TypeAlias = "bytes | list[Item]"
Encodable: TypeAlias = "int | bytes | Sequence[Encodable]"

_STRING = 0x80
_LIST = 0xC0
_SHORT_MAX = 55


def encode(value: Encodable) -> bytes:
    """Bytes, natural numbers (without leading zeros) and lists of them."""
    if isinstance(value, int):
        value = value.to_bytes((value.bit_length() + 7) // 8, "big")
    if isinstance(value, bytes):
        return value if len(value) == 1 and value[0] < _STRING else _head(len(value), _STRING) + value
    body = b"".join(encode(item) for item in value)
    return _head(len(body), _LIST) + body


def decode(data: bytes, *, depth_max: int) -> Item:
    """The one item that ``data`` is. Raises `ValueError`: not canonical, bytes left over, or too deep."""
    item, end = _decode(data, 0, depth_max)
    if end != len(data):
        raise ValueError("bytes after the end")
    return item


def number(item: Item, *, bits: int) -> int:
    """A natural number below ``2**bits``. Raises `ValueError` for a list or leading zeros."""
    if not isinstance(item, bytes) or item[:1] == b"\0" or len(item) * 8 > bits:
        raise ValueError(f"expected a number of at most {bits} bits")
    return int.from_bytes(item, "big")


def _head(size: int, offset: int) -> bytes:
    if size <= _SHORT_MAX:
        return bytes((offset + size,))
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes((offset + _SHORT_MAX + len(length),)) + length


def _decode(data: bytes, start: int, depth_left: int) -> tuple[Item, int]:
    if start >= len(data):
        raise ValueError("bytes are missing")
    first = data[start]
    if first < _STRING:
        return data[start : start + 1], start + 1
    offset = _STRING if first < _LIST else _LIST
    begin, size = _sized(data, start, offset)
    end = begin + size
    if end > len(data):
        raise ValueError("bytes are missing")
    if offset == _STRING:
        if size == 1 and data[begin] < _STRING:
            raise ValueError("a byte that needs no length has one")
        return data[begin:end], end
    if depth_left == 0:
        raise ValueError("nested too deeply")
    items: list[Item] = []
    while begin < end:
        item, begin = _decode(data, begin, depth_left - 1)
        items.append(item)
    if begin != end:
        raise ValueError("an item reaches past its list")
    return items, end


def _sized(data: bytes, start: int, offset: int) -> tuple[int, int]:
    """Where the content begins, and its size in bytes."""
    size = data[start] - offset
    if size <= _SHORT_MAX:
        return start + 1, size
    begin = start + 1 + size - _SHORT_MAX
    length = data[start + 1 : begin]
    if begin > len(data) or length[0] == 0:
        raise ValueError("a length is cut off or has leading zeros")
    size = int.from_bytes(length, "big")
    if size <= _SHORT_MAX:
        raise ValueError("a short length is written long")
    return begin, size
