"""A multipart form with one file: strict, and bounded in parts, headers and fields.

The whole body is in memory by then, within its own bound. What goes upstream is written anew from what is found
here, so no provider can read a form differently from the way it was priced.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from multipart import (  # type: ignore[import-untyped]
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
    parse_options_header,
)

from app.api.parameters import NAME_CHARACTERS_SHOWN, missing, refuse
from app.errors import InvalidRequest, PayloadTooLarge, UnsupportedMediaType

MEDIA_TYPE = "multipart/form-data"
PARTS_MAX = 32
HEADERS_MAX = 8
HEADER_BYTES_MAX = 1024
CONTENT_TYPE_CHARACTERS_MAX = 512
FIELD_BYTES_MAX = 64 * 1024
FILENAME_CHARACTERS_MAX = 255
# RFC 2046, section 5.1.1: 1 to 70 of these characters, the last no space.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{0,69}[0-9A-Za-z'()+_,./:=?-]")
_ENCODING = "Content-Transfer-Encoding"


@dataclass(frozen=True, slots=True)
class File:
    """The file as the client named it; its type is a claim, too."""

    filename: str
    content_type: str
    content: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Form:
    """The fields by name, each with all its values in order, and the file."""

    fields: Mapping[str, Sequence[str]]
    file: File


def parse_form(content: bytes, content_type: str, *, file_field: str) -> Form:
    """The form in ``content``, with exactly one file, in ``file_field``.

    Raises `UnsupportedMediaType`, `PayloadTooLarge`, and `InvalidRequest` saying what is wrong.
    """
    boundary = _boundary(content_type)
    delimiter = b"--" + boundary.encode()
    # What stands before the first part or behind the last one is for no reader, or for another one.
    _, closing, epilogue = content.partition(b"\r\n" + delimiter + b"--")
    if not content.startswith(delimiter) or not closing or epilogue not in {b"", b"\r\n"}:
        raise _malformed("it does not begin and end with its boundary")
    fields: dict[str, list[str]] = {}
    file: File | None = None
    for segment, body in _parts(content, boundary):
        name = segment.name or ""
        shown = name[:NAME_CHARACTERS_SHOWN]
        if not name or not name.isprintable():
            raise _malformed("a part has no name that can be read")
        if segment.filename is None and name != file_field:
            fields.setdefault(name, []).append(_field(shown, body))
        elif name != file_field:
            raise refuse(shown, f"is no file; the file goes into {file_field!r}")
        elif file is not None:
            raise refuse(file_field, "exactly one file")
        elif segment.filename is None:
            raise refuse(file_field, "must be a file, with a filename")
        elif not body:
            raise refuse(file_field, "is empty")
        else:
            file = _file(segment, body)
    if file is None:
        raise missing(file_field, "send the file in this part of the form")
    return Form(fields, file)


def _boundary(content_type: str) -> str:
    kind, options = parse_options_header(content_type[:CONTENT_TYPE_CHARACTERS_MAX])
    if kind != MEDIA_TYPE:
        raise UnsupportedMediaType(f"send the body with Content-Type: {MEDIA_TYPE}", param="Content-Type")
    boundary = options.get("boundary", "")
    # Two boundaries would let two readers see two forms.
    once = content_type.lower().count("boundary=") == 1
    if len(content_type) > CONTENT_TYPE_CHARACTERS_MAX or not once or not _BOUNDARY.fullmatch(boundary):
        message = "Content-Type: must name one boundary of 1 to 70 characters"
        raise InvalidRequest(message, code="invalid_multipart", param="Content-Type")
    return str(boundary)


def _parts(content: bytes, boundary: str) -> list[tuple[MultipartSegment, bytes]]:
    parser = PushMultipartParser(
        boundary,
        content_length=len(content),
        max_header_size=HEADER_BYTES_MAX,
        max_header_count=HEADERS_MAX,
        max_segment_size=len(content),
        max_segment_count=PARTS_MAX,
        strict=True,
    )
    parts: list[tuple[MultipartSegment, bytes]] = []
    pieces: list[bytes] = []
    try:
        with parser:
            for event in parser.parse(content):
                if isinstance(event, MultipartSegment):
                    _check_headers(event)
                    parts.append((event, b""))
                    pieces = []
                elif event is not None:
                    pieces.append(bytes(event))
                else:
                    parts[-1] = (parts[-1][0], pieces[0] if len(pieces) == 1 else b"".join(pieces))
    except ParserLimitReached as error:
        bounds = f"{PARTS_MAX} parts of {HEADERS_MAX} header lines of {HEADER_BYTES_MAX} bytes"
        raise PayloadTooLarge(f"the form has more than {bounds}") from error
    except MultipartError as error:
        raise _malformed("a part is not as RFC 7578 has it") from error
    return parts


def _check_headers(segment: MultipartSegment) -> None:
    names = [name for name, _ in segment.headerlist]
    if len(set(names)) != len(names):
        raise _malformed("a part has a header twice")
    if segment.header(_ENCODING, "binary").lower() not in {"7bit", "8bit", "binary"}:
        raise _malformed(f"{_ENCODING} is not used in forms")


def _field(name: str, body: bytes) -> str:
    if len(body) > FIELD_BYTES_MAX:
        raise PayloadTooLarge(f"{name}: larger than {FIELD_BYTES_MAX} bytes", param=name)
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refuse(name, "must be UTF-8") from error


def _file(segment: MultipartSegment, body: bytes) -> File:
    filename = segment.filename or ""
    if not 0 < len(filename) <= FILENAME_CHARACTERS_MAX or not filename.isprintable():
        raise refuse(segment.name or "file", f"must have a filename of 1 to {FILENAME_CHARACTERS_MAX} characters")
    return File(filename, segment.content_type or "application/octet-stream", body)


def _malformed(reason: str) -> InvalidRequest:
    return InvalidRequest(f"the body is not a form that can be read: {reason}", code="invalid_multipart")
