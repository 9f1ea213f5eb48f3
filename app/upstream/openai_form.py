"""A transcription's multipart body, made anew for the provider. Pure.

Nothing of the client's own encoding is kept: the boundary is ours and random, and of the file's name and type only
the kind of audio, out of a list of known ones. The file's bytes are a part as they are, without a copy.
Format: https://datatracker.ietf.org/doc/html/rfc7578, names escaped as in
https://html.spec.whatwg.org/multipage/form-control-infrastructure.html#multipart-form-data.
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from app.upstream.provider import Upload

# Servers tell the kind of audio by the name's end.
AUDIO_TYPES: Mapping[str, str] = {
    "mp3": "audio/mpeg",
    "mpeg": "audio/mpeg",
    "mpga": "audio/mpeg",
    "mp4": "audio/mp4",
    "m4a": "audio/mp4",
    "aac": "audio/aac",
    "wav": "audio/wav",
    "flac": "audio/flac",
    "ogg": "audio/ogg",
    "oga": "audio/ogg",
    "opus": "audio/ogg",
    "webm": "audio/webm",
}
_ENDS: Mapping[str, str] = {
    **{kind: end for end, kind in reversed(tuple(AUDIO_TYPES.items()))},
    "audio/mp3": "mp3",
    "audio/x-mp3": "mp3",
    "audio/x-wav": "wav",
    "audio/wave": "wav",
    "audio/vnd.wave": "wav",
    "audio/x-flac": "flac",
    "audio/x-m4a": "m4a",
    "audio/m4a": "m4a",
    "audio/opus": "opus",
    "audio/x-aac": "aac",
    "video/mp4": "mp4",
    "video/mpeg": "mpeg",
    "video/webm": "webm",
    "video/ogg": "ogg",
    "application/ogg": "ogg",
}
UNKNOWN_TYPE = "application/octet-stream"
BOUNDARY_BYTES = 16


def form_parts(fields: Iterable[tuple[str, str]], upload: Upload) -> tuple[str, tuple[bytes, bytes, bytes]]:
    """The content type, and what is sent: everything before the file's bytes, they themselves, and the end."""
    boundary = "farebox-" + secrets.token_hex(BOUNDARY_BYTES)
    before = [_part(boundary, f'name="{_escaped(name)}"') + _encoded(value) for name, value in fields]
    name, kind = file_name(upload)
    before.append(_part(boundary, f'name="file"; filename="{name}"', kind))
    after = f"\r\n--{boundary}--\r\n".encode()
    return f"multipart/form-data; boundary={boundary}", (b"".join(before)[2:], upload.content, after)


def form_fields(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """A form's fields as text; a list is its field again and again."""
    for name, value in body.items():
        for each in value if isinstance(value, list | tuple) else (value,):
            if each is not None:
                yield name, str(each).lower() if isinstance(each, bool) else str(each)


def file_name(upload: Upload) -> tuple[str, str]:
    """A name and a type that say what audio it is, and nothing that the client made up."""
    _, dot, end = upload.filename.rpartition(".")
    end = end.lower()
    if not dot or end not in AUDIO_TYPES:
        end = _ENDS.get(upload.content_type.partition(";")[0].strip().lower(), "")
    return (f"audio.{end}", AUDIO_TYPES[end]) if end else ("audio", UNKNOWN_TYPE)


def _part(boundary: str, disposition: str, kind: str | None = None) -> bytes:
    lines = [f"\r\n--{boundary}", f"Content-Disposition: form-data; {disposition}"]
    if kind is not None:
        lines.append(f"Content-Type: {kind}")
    return _encoded("\r\n".join((*lines, "", "")))


def _encoded(text: str) -> bytes:
    """UTF-8; half a surrogate pair, which has none, as the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()


def _escaped(name: str) -> str:
    return name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
