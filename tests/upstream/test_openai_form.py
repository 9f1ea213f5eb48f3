"""The form that a transcription is sent in, read back by parsers that are not ours."""

import asyncio
import email.parser
import email.policy
from collections.abc import Mapping
from email.message import EmailMessage

import aiohttp
import pytest
from aiohttp import hdrs
from aiohttp.base_protocol import BaseProtocol
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from app.upstream.openai_form import AUDIO_TYPES, UNKNOWN_TYPE, file_name, form_fields, form_parts
from app.upstream.provider import Upload

ANY_TEXT = st.text(max_size=60) | st.sampled_from(
    ['"; filename="x', "a\r\nContent-Type: text/html\r\n\r\n", "--boundary--", "\x00", "../../etc/passwd", "ä.mp3"]
)
# What stands for itself in a header: names are ours, and others are escaped.
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}(\[\])?", fullmatch=True)
UPLOADS = st.builds(Upload, filename=ANY_TEXT, content_type=ANY_TEXT, content=st.binary(max_size=300))


def written(fields: list[tuple[str, str]], upload: Upload) -> tuple[str, bytes]:
    content_type, parts = form_parts(fields, upload)
    return content_type, b"".join(parts)


def by_email(content_type: str, content: bytes) -> list[EmailMessage]:
    head = f"Content-Type: {content_type}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + content)
    assert isinstance(message, EmailMessage)
    assert message.is_multipart()
    assert not message.defects
    parts = list(message.iter_parts())
    assert all(isinstance(part, EmailMessage) for part in parts)
    return [part for part in parts if isinstance(part, EmailMessage)]


async def by_aiohttp(
    content_type: str, content: bytes
) -> list[tuple[str | None, str | None, Mapping[str, str], bytes]]:
    loop = asyncio.get_running_loop()
    stream = aiohttp.StreamReader(BaseProtocol(loop), 2**16, loop=loop)
    stream.feed_data(content)
    stream.feed_eof()
    headers = CIMultiDictProxy(CIMultiDict({hdrs.CONTENT_TYPE: content_type}))
    found: list[tuple[str | None, str | None, Mapping[str, str], bytes]] = []
    async for part in aiohttp.MultipartReader(headers, stream):
        assert isinstance(part, aiohttp.BodyPartReader)
        found.append((part.name, part.filename, dict(part.headers), bytes(await part.read())))
    return found


def whole(text: str) -> str:
    """The text as UTF-8 can say it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@settings(max_examples=150)
@given(fields=st.lists(st.tuples(NAMES, ANY_TEXT), max_size=5), upload=UPLOADS)
def test_form_is_read_back_as_it_was_written(fields: list[tuple[str, str]], upload: Upload) -> None:
    found = asyncio.run(by_aiohttp(*written(fields, upload)))
    *values, (name, filename, headers, content) = found
    assert [(name, value.decode()) for name, _, _, value in values] == [(name, whole(value)) for name, value in fields]
    assert all(filename is None for _, filename, _, _ in values)
    assert (name, filename, headers["Content-Type"]) == ("file", *file_name(upload))
    assert content == upload.content


@settings(max_examples=150)
@given(name=ANY_TEXT, value=ANY_TEXT, upload=UPLOADS)
def test_no_name_value_or_file_adds_a_part_or_a_header(name: str, value: str, upload: Upload) -> None:
    field, file = by_email(*written([(name, value)], upload))
    assert {header.lower() for header in field} == {"content-disposition"}
    assert {header.lower() for header in file} == {"content-disposition", "content-type"}
    assert file.get_content_type() in {*AUDIO_TYPES.values(), UNKNOWN_TYPE}
    assert file.get_filename() == file_name(upload)[0]


@given(filename=ANY_TEXT, content_type=ANY_TEXT)
def test_file_is_named_for_its_kind_alone(filename: str, content_type: str) -> None:
    name, kind = file_name(Upload(filename, content_type, b""))
    assert name in {"audio", *(f"audio.{end}" for end in AUDIO_TYPES)}
    assert kind in {UNKNOWN_TYPE, *AUDIO_TYPES.values()}


@pytest.mark.parametrize(
    ("filename", "content_type", "expected"),
    [
        ("My secret meeting.MP3", "text/html", ("audio.mp3", "audio/mpeg")),
        ("a.tar.wav", "", ("audio.wav", "audio/wav")),
        ("blob", "audio/x-wav; rate=8000", ("audio.wav", "audio/wav")),
        ("recording", "video/webm", ("audio.webm", "audio/webm")),
        ("recording", "audio/mpeg", ("audio.mp3", "audio/mpeg")),
        ("mp3", "", ("audio", UNKNOWN_TYPE)),
        ("x.exe", "application/x-msdownload", ("audio", UNKNOWN_TYPE)),
    ],
)
def test_kind_is_told_by_the_names_end_else_by_the_type(
    filename: str, content_type: str, expected: tuple[str, str]
) -> None:
    assert file_name(Upload(filename, content_type, b"")) == expected


def test_boundary_is_never_the_same_and_the_file_is_not_copied() -> None:
    upload = Upload("a.mp3", "audio/mpeg", bytes(1000))
    one, (_, content, _) = form_parts([], upload)
    two, _ = form_parts([], upload)
    assert one != two
    assert content is upload.content


def test_fields_are_text_and_lists_their_field_again_and_again() -> None:
    body = {
        "temperature": 0.5,
        "n": 1,
        "stream": False,
        "prompt": None,
        "timestamp_granularities[]": ["word", "segment"],
    }
    assert list(form_fields(body)) == [
        ("temperature", "0.5"),
        ("n", "1"),
        ("stream", "false"),
        ("timestamp_granularities[]", "word"),
        ("timestamp_granularities[]", "segment"),
    ]
