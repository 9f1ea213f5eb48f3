"""The parameters of a transcription: a form with an audio file, billed by the second of audio.

Nobody knows how long the audio is before it is decoded, so what may be billed is bounded by its bytes
(`app.api.audio_length`), and what is billed is what the provider reports within that. Only fields that are known go
upstream: a server may take other audio than the file's from a field, such as what is at a URL.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from app.admission import PaidRequest
from app.api.audio_length import AudioLength, NotAudio, measure
from app.api.incoming import Incoming
from app.api.multipart import Form, parse_form
from app.api.parameters import (
    NAME_CHARACTERS_SHOWN,
    REFUSED,
    SINGLE,
    Check,
    capable,
    check_all,
    named_model,
    number,
    one_of,
    refuse,
    text,
    unsupported,
)
from app.api.routing_parameters import ROUTING, first_byte_timeout_s, wishes
from app.api.shapes import TranscriptionShape
from app.endpoints import TRANSCRIPTIONS
from app.errors import PayloadTooLarge
from app.pricing.quote import PromptSize
from app.routing.candidates import Candidate
from app.units import SECOND
from app.upstream.provider import Upload

FILE = "file"
FORMATS = ("json", "text", "srt", "verbose_json", "vtt")
# The duration, and the segments that subtitles are made of, come with this one alone.
VERBOSE = "verbose_json"
GRANULARITIES = ("segment", "word")
GRANULARITY = "timestamp_granularities[]"
LISTS = (GRANULARITY, "include[]")
PROMPT_CHARACTERS_MAX = 32_000
_LANGUAGE = re.compile(r"[A-Za-z]{2,20}(?:-[A-Za-z0-9]{2,8}){0,2}")
# By extension: the kind of file it stands for, and its media type. A provider may go by either.
EXTENSIONS: Mapping[str, tuple[str, str]] = {
    "aac": ("aac", "audio/aac"),
    "flac": ("flac", "audio/flac"),
    "m4a": ("mp4", "audio/mp4"),
    "mp3": ("mp3", "audio/mpeg"),
    "mp4": ("mp4", "audio/mp4"),
    "mpeg": ("mpeg", "audio/mpeg"),
    "mpga": ("mp3", "audio/mpeg"),
    "oga": ("ogg", "audio/ogg"),
    "ogg": ("ogg", "audio/ogg"),
    "opus": ("ogg", "audio/ogg"),
    "wav": ("wav", "audio/wav"),
    "webm": ("webm", "audio/webm"),
}


def _language(name: str, value: Any) -> None:
    if not isinstance(value, str) or not _LANGUAGE.fullmatch(value):
        raise refuse(name, "must be a language's code (ISO 639), such as en")


def _granularities(name: str, value: Any) -> None:
    for each in value:
        one_of(*GRANULARITIES)(name, each)
    if len(set(value)) != len(value):
        raise refuse(name, "names one twice")


def _include(name: str, _value: Any) -> None:
    raise unsupported(name)


def _stream(name: str, value: Any) -> None:
    if value is not False:
        raise unsupported(name, "transcriptions come whole here; leave it out")


CHECKS: Mapping[str, Check] = {
    **ROUTING,
    "model": text(200),
    "language": _language,
    "prompt": text(PROMPT_CHARACTERS_MAX),
    "response_format": one_of(*FORMATS),
    "temperature": number(0, 1),
    GRANULARITY: _granularities,
    "include[]": _include,
    "stream": _stream,
}
NOT_OFFERED: Mapping[str, tuple[Any, ...]] = {
    **REFUSED,
    **{name: harmless for name, harmless in SINGLE.items() if name != "stream"},
    # Other models, at other prices.
    "chunking_strategy": (None, "", "auto"),
    "known_speaker_names[]": (None,),
    "known_speaker_references[]": (None,),
}
OURS = (*ROUTING, *NOT_OFFERED, "include[]", "stream")
_NUMBERS = ("temperature", "timeout_ms", "max_input_price_per_million", "max_output_price_per_million", "n")
_SWITCHES: Mapping[str, bool] = {"true": True, "false": False, "1": True, "0": False}
_BOOLEANS = ("stream", "allow_external", "store", "web_search")


def parse(incoming: Incoming) -> PaidRequest:
    """A validated request. Raises `InvalidRequest` naming the parameter, and `NotFound`."""
    bytes_max = incoming.settings.inference.upload_bytes_max
    if len(incoming.content) > bytes_max:
        raise PayloadTooLarge(f"the form is larger than {bytes_max} bytes", param=FILE)
    form = parse_form(incoming.content, incoming.content_type, file_field=FILE)
    body = _body(form)
    check_all(body, CHECKS, NOT_OFFERED, only_known=True)
    model = named_model(body)
    wanted = body.get("response_format", "json")
    if GRANULARITY in body and wanted != VERBOSE:
        raise refuse(GRANULARITY, f"only with response_format {VERBOSE}")
    upload, length = _upload(form)
    most, expected = _seconds(length, capable(incoming, model, TRANSCRIPTIONS))
    upstream = {name: value for name, value in body.items() if name not in OURS}
    return PaidRequest(
        endpoint=TRANSCRIPTIONS,
        path=incoming.path,
        model=model,
        body={**upstream, "response_format": "json" if wanted == "json" else VERBOSE},
        content=incoming.content,
        stream=False,
        size=PromptSize(0, 0),
        output_limit_param=FILE,
        wishes=wishes(body),
        first_byte_timeout_s=first_byte_timeout_s(body),
        idempotency_key=incoming.idempotency_key,
        units={SECOND: most},
        units_expected={SECOND: expected},
        upload=upload,
        shape=TranscriptionShape(format=wanted),
    )


def _body(form: Form) -> dict[str, Any]:
    """The fields as JSON would have them: numbers, switches and lists; an empty field is one that was left out."""
    body: dict[str, Any] = {}
    for given, values in form.fields.items():
        name = f"{given}[]" if f"{given}[]" in LISTS else given
        if name in LISTS:
            body[name] = [*body.get(name, ()), *values]
        elif len(values) > 1:
            raise refuse(name[:NAME_CHARACTERS_SHOWN], "stands twice in the form")
        elif values[0]:
            body[name] = _value(name, values[0])
    return body


def _value(name: str, written: str) -> Any:
    if name in _BOOLEANS:
        return _SWITCHES.get(written.lower(), written)
    if name in _NUMBERS:
        return _plain_number(written)
    return written


def _plain_number(written: str) -> Any:
    """A number as JSON has it; anything else stays a string, which its check refuses by name."""
    if re.fullmatch(r"-?\d{1,18}", written, re.ASCII):
        return int(written)
    return float(written) if re.fullmatch(r"-?\d{1,9}\.\d{1,18}", written, re.ASCII) else written


def _upload(form: Form) -> tuple[Upload, AudioLength]:
    """The file under a name that says nothing but its kind, which its bytes must bear out."""
    extension = PurePath(form.file.filename).suffix.removeprefix(".").lower()
    if extension not in EXTENSIONS:
        raise refuse(FILE, f"its name must end in one of {', '.join(EXTENSIONS)}")
    if not form.file.content_type.startswith(("audio/", "video/", "application/octet-stream")):
        raise refuse(FILE, "its Content-Type must be one of audio/*, video/* or application/octet-stream")
    kind, media_type = EXTENSIONS[extension]
    try:
        length = measure(form.file.content)
    except NotAudio as error:
        raise refuse(FILE, f"is no audio that can be read: {error}") from error
    if length.kind != kind and {length.kind, kind} != {"mp3", "mpeg"}:
        raise refuse(FILE, f"is called .{extension} and holds {length.kind}; name it by what it holds")
    return Upload(f"audio.{extension}", media_type, form.file.content), length


def _seconds(length: AudioLength, candidates: Sequence[Candidate]) -> tuple[int, int]:
    """The most seconds that may be billed, and how many are expected; never above what the model takes."""
    longest = max(candidate.model.max_seconds for candidate in candidates)
    if length.known and length.seconds_expected > longest:
        raise refuse(FILE, f"is {length.seconds_expected} seconds long; the model takes {longest}")
    most = min(length.seconds_max, longest)
    return most, min(length.seconds_expected, most)
