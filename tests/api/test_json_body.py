"""Strict JSON: what is parsed is what was sent, and what is not plain JSON is refused and never a crash."""

import json
import math
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from app.api.json_body import INTEGER_MAX, parse_object
from app.errors import InvalidRequest

DEPTH_MAX = 8
PIECES = (
    *("{", "}", "[", "]", ":", ",", '"', "\\", "\\\\", '\\"', "\\u", "\\ud800", "\\udc00", "d83d", "null", "true"),
    *("NaN", "Infinity", "-Infinity", "1e999", "-", "9" * 30, "0.1", "1E5", " ", "\n", "\0", "\ufeff", "é", "😀", "a"),
)
numbers = st.integers(-INTEGER_MAX, INTEGER_MAX) | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(codec="utf-8"), max_size=20)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=20,
)


def depth(value: Any) -> int:
    """Levels of nesting, counted on the value."""
    match value:
        case dict():
            return 1 + max(map(depth, value.values()), default=0)
        case list():
            return 1 + max(map(depth, value), default=0)
    return 0


@given(
    st.binary(max_size=200) | st.lists(st.sampled_from(PIECES), max_size=40).map(lambda parts: "".join(parts).encode())
)
@example(rb'{"\ud800": 1, "\ud800": 2}')
@example(b'{"a": ' + b"9" * 5_000 + b"}")
@example(b"[" * 5_000)
@example(b'{"a": "' + b'\\"' * 5_000)
def test_any_bytes_are_an_object_or_an_invalid_request(content: bytes) -> None:
    try:
        body = parse_object(content, depth_max=DEPTH_MAX)
    except InvalidRequest as error:
        said = [error.message, error.param]
    else:
        assert type(body) is dict
        assert depth(body) <= DEPTH_MAX
        # What was understood can be sent on, and is what anybody else understands.
        assert orjson.loads(orjson.dumps(body)) == body
        assert json.loads(content) == body
        return
    # The error can be said: it holds nothing that UTF-8 cannot.
    assert orjson.dumps(said)


@given(st.dictionaries(texts, values, max_size=5), st.booleans())
def test_object_is_read_as_it_was_written(body: dict[str, Any], escaped: bool) -> None:
    content = json.dumps(body, ensure_ascii=escaped).encode()
    if depth(body) <= DEPTH_MAX:
        assert parse_object(content, depth_max=DEPTH_MAX) == body
    else:
        with pytest.raises(InvalidRequest, match="nested deeper than 8"):
            parse_object(content, depth_max=DEPTH_MAX)


@pytest.mark.parametrize("opening", ['{"a":', "["])
def test_depth_is_bounded_exactly(opening: str) -> None:
    closing = "}" if opening.startswith("{") else "]"
    content = '{"a":' + opening * (DEPTH_MAX - 1) + "1" + closing * (DEPTH_MAX - 1) + "}"
    assert depth(parse_object(content.encode(), depth_max=DEPTH_MAX)) == DEPTH_MAX
    with pytest.raises(InvalidRequest, match="nested deeper"):
        parse_object(content.encode(), depth_max=DEPTH_MAX - 1)


@pytest.mark.parametrize("text", ["[" * 99, "{" * 99, '\\"' * 99 + "[" * 99, "\\\\", "]" * 99])
def test_brackets_in_a_string_are_no_depth(text: str) -> None:
    content = f'{{"a": [[[["{text}"]]]], "{text}": "{text}"}}'.encode()
    assert parse_object(content, depth_max=DEPTH_MAX) == json.loads(content)


@pytest.mark.parametrize(
    "number", ["9223372036854775807", "-9223372036854775807", "0", "-0", "1e308", "-1.5E-300", "0.1"]
)
def test_number_in_range_is_kept(number: str) -> None:
    value = parse_object(f'{{"a": {number}}}'.encode(), depth_max=1)["a"]
    assert value == json.loads(number)
    assert math.isfinite(value)


@pytest.mark.parametrize(
    "number", ["9223372036854775808", "-99999999999999999999", "1e309", "-1e309", "1" * 5000, "0." + "1" * 99]
)
def test_number_out_of_range_is_refused(number: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_object(f'{{"a": {number}}}'.encode(), depth_max=1)
    assert caught.value.code == "number_too_large"


@pytest.mark.parametrize(
    "content", [b'{"a":1,"a":1}', rb'{"a":1,"\u0061":2}', b'{"b":{"a":1,"c":2,"a":3}}', b'{"":1,"":2}']
)
def test_name_that_stands_twice_is_named(content: bytes) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_object(content, depth_max=2)
    assert (caught.value.code, caught.value.param) == ("duplicate_key", "" if b'""' in content else "a")


def test_long_name_that_stands_twice_is_cut() -> None:
    name = b'"' + b"x" * 10_000 + b'"'
    with pytest.raises(InvalidRequest) as caught:
        parse_object(b"{" + name + b":1," + name + b":2}", depth_max=2)
    assert len(caught.value.message) < 200
    assert caught.value.param == "x" * 100


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"\n", "empty"),
        (b"\xff", "not UTF-8 .byte 0."),
        (b'{"a": "\xed\xa0\x80"}', "not UTF-8 .byte 7."),
        (b"\xef\xbb\xbf{}", "line 1, column 1"),
        (b'{"a": 1,}', "line 1, column"),
        (b"{\n'a': 1}", "line 2, column 1"),
        (b'{"a": NaN}', "NaN is not JSON"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b"[]", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (rb'{"a": "\udc00"}', "not JSON"),
    ],
)
def test_what_is_wrong_is_said(content: bytes, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as caught:
        parse_object(content, depth_max=DEPTH_MAX)
    assert (caught.value.code, caught.value.param) == ("invalid_json", None)
