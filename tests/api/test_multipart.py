"""Forms from the network: what is read is what was sent, and everything else is refused within its bounds."""

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.multipart import (
    FIELD_BYTES_MAX,
    HEADER_BYTES_MAX,
    HEADERS_MAX,
    PARTS_MAX,
    File,
    Form,
    parse_form,
)
from app.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType
from tests.api.forms import BOUNDARY, CONTENT_TYPE, Part, form, part

AUDIO = part("file", b"RIFF", filename="a.wav", kind="audio/wav")
MEBIBYTE = 1024 * 1024


def parse(content: bytes, content_type: str = CONTENT_TYPE) -> Form:
    return parse_form(content, content_type, file_field="file")


def refused(content: bytes, content_type: str = CONTENT_TYPE) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(content, content_type)
    return caught.value


def test_fields_and_the_file_are_read() -> None:
    found = parse(
        form(part("model", "whisper-1"), AUDIO, part("prompt", "Zürich\r\n-- fare"), part("l[]", "a"), part("l[]", "b"))
    )
    assert found.fields == {"model": ["whisper-1"], "prompt": ["Zürich\r\n-- fare"], "l[]": ["a", "b"]}
    assert found.file == File("a.wav", "audio/wav", b"RIFF")


def test_file_may_come_without_a_type_and_with_any_bytes() -> None:
    content = bytes(range(256)) * 300 + b"\r\n--" + BOUNDARY[:-1].encode() + b"\r\n\r\n"
    found = parse(form(part("file", content, filename="Aufnahme (1) é.mp3")))
    assert (found.file.filename, found.file.content_type) == ("Aufnahme (1) é.mp3", "application/octet-stream")
    assert found.file.content == content


@pytest.mark.parametrize("boundary", ["x", "x" * 70, "----WebKitFormBoundary7MA4YWxkTrZu0gW", "a'()+_,-./:=?z"])
def test_boundaries_of_the_standard_are_read(boundary: str) -> None:
    content = form(AUDIO, boundary=boundary)
    assert parse(content, f'multipart/form-data; charset=utf-8; boundary="{boundary}"').file.content == b"RIFF"


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        'multipart/form-data; boundary=""',
        "multipart/form-data; boundary=" + "x" * 71,
        'multipart/form-data; boundary="a b "',
        'multipart/form-data; boundary="a\nb"',
        "multipart/form-data; boundary=é",
        f"multipart/form-data; boundary={BOUNDARY}; boundary={BOUNDARY}",
        f"multipart/form-data; boundary={BOUNDARY}; BOUNDARY=other",
        f"multipart/form-data; boundary={BOUNDARY}; x=" + "y" * 600,
    ],
)
def test_boundary_that_is_none_or_two_is_refused(content_type: str) -> None:
    error = refused(form(AUDIO), content_type)
    assert (error.param, error.code) == ("Content-Type", "invalid_multipart")


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "multipart/mixed; boundary=x", "text/plain", "multipart/form-data-x"]
)
def test_other_types_are_not_read(content_type: str) -> None:
    assert isinstance(refused(form(AUDIO), content_type), UnsupportedMediaType)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"--" + BOUNDARY.encode() + b"--",
        b"--" + BOUNDARY.encode() + b"--\r\n",
        form(AUDIO)[:-4],
        form(AUDIO)[:-20],
        form(AUDIO)[2:],
        b"preamble\r\n" + form(AUDIO),
        b"\r\n" + form(AUDIO),
        form(AUDIO) + b"epilogue",
        form(AUDIO) + form(AUDIO),
        form(AUDIO).replace(b"\r\n", b"\n"),
        form(("X-None: 1", b"a"), AUDIO),
        form(("Content-Disposition: attachment; name=a", b"a"), AUDIO),
        form(("Content-Disposition: form-data", b"a"), AUDIO),
        form(part("", b"a"), AUDIO),
        form(part("a%0Ab", b"a"), AUDIO),
        form(("no colon at all", b"a"), AUDIO),
        form(('Content-Disposition: form-data; name="a"\r\n folded: x', b"a"), AUDIO),
        form(('Content-Disposition: form-data; name="a"\r\nContent-Disposition: form-data; name="b"', b"a"), AUDIO),
        form(('Content-Disposition: form-data; name="a"\r\nContent-Transfer-Encoding: base64', b"YQ=="), AUDIO),
        form(('Content-Disposition: form-data; name="a"\r\nContent-Length: 99', b"a"), AUDIO),
    ],
)
def test_form_that_is_not_as_the_standard_has_it_is_refused(content: bytes) -> None:
    assert refused(content).status == 400


@pytest.mark.parametrize(
    ("parts", "param"),
    [
        ([part("model", "m")], "file"),
        ([AUDIO, AUDIO], "file"),
        ([part("file", b"RIFF")], "file"),
        ([part("file", b"", filename="a.wav")], "file"),
        ([part("file", b"RIFF", filename="")], "file"),
        ([part("file", b"RIFF", filename="x" * 256)], "file"),
        ([part("file", b"RIFF", filename="a%0A.wav")], "file"),
        ([part("other", b"RIFF", filename="a.wav"), AUDIO], "other"),
        ([part("model", b"\xff\xfe"), AUDIO], "model"),
    ],
)
def test_exactly_one_file_and_fields_of_text(parts: list[Part], param: str) -> None:
    assert refused(form(*parts)).param == param


def test_parts_headers_and_fields_are_bounded() -> None:
    fields = [part(f"f{number}", "x") for number in range(PARTS_MAX)]
    parse(form(AUDIO, *fields[1:]))
    many = "\r\n".join([AUDIO[0], *(f"X-{number}: y" for number in range(HEADERS_MAX))])
    for content in (
        form(AUDIO, *fields),
        form((many, b"RIFF")),
        form((AUDIO[0] + "\r\nX: " + "y" * HEADER_BYTES_MAX, b"RIFF")),
        form(AUDIO, part("f", b"x" * (FIELD_BYTES_MAX + 1))),
    ):
        assert isinstance(refused(content), PayloadTooLarge)
    assert parse(form(AUDIO, part("f", b"x" * FIELD_BYTES_MAX))).fields["f"] == ["x" * FIELD_BYTES_MAX]


@pytest.mark.parametrize("unit", [b"\r\n--", b"\r", b"\r\n--" + BOUNDARY.encode()[:-1], b"-" * 9])
def test_hostile_content_is_read_in_little_time(unit: bytes) -> None:
    content = unit * (25 * MEBIBYTE // len(unit))
    begun = time.process_time()
    assert parse(form(part("file", content, filename="a.wav"))).file.content == content
    assert time.process_time() - begun < 2


names = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8).filter(
    lambda name: name != "file"
)


@given(
    st.lists(st.tuples(names, st.text(max_size=50)), max_size=8),
    st.binary(min_size=1, max_size=400),
    st.integers(0, 8),
)
def test_what_is_read_is_what_was_sent(fields: list[tuple[str, str]], content: bytes, at: int) -> None:
    parts = [part(name, value) for name, value in fields]
    parts.insert(min(at, len(parts)), part("file", content, filename="a.wav"))
    found = parse(form(*parts))
    assert found.file.content == content
    sent: dict[str, list[str]] = {}
    for name, value in fields:
        sent.setdefault(name, []).append(value)
    assert found.fields == sent


@given(st.data())
def test_damaged_form_is_read_or_refused(data: Any) -> None:
    whole = bytearray(form(part("model", "m"), AUDIO, part("prompt", "x")))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        found = parse(bytes(whole))
    except InvalidRequest as error:
        status = error.status
    else:
        status = 200 if found.file.content else 500
    assert status in {200, 400, 413, 415}
