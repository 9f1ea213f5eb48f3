"""How whole answers of the other endpoints look: embeddings, reranks, images and transcriptions.

A shape runs where an answer is charged for, so it never fails: what a provider got wrong is left out, or left as it
is. What an answer cost stands in its ``usage``, or (Cohere's shape has none) in its ``meta``.
"""

import base64
import binascii
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from app.money import format_usd
from app.shapes import JSON, Shape, Told
from app.units import SEARCH_UNIT, SECOND

TEXT = "text/plain; charset=utf-8"
VTT = "text/vtt; charset=utf-8"
BYTES_PER_FLOAT = 4
# Numbers of vectors that are written out in a moment: some milliseconds.
NUMBERS_INLINE_MAX = 50_000
# What a row costs beside its numbers, and how much base64 a number is.
NUMBERS_PER_ROW = 16
CHARACTERS_PER_NUMBER = 5
MS_PER_SECOND = 1000
SUBTITLE_SECONDS_MAX = 100 * 3600
IMAGE_MEMBERS = ("b64_json", "url", "revised_prompt")
VERBOSE_MEMBERS = ("task", "language", "duration", "text", "segments", "words")


def _cost(told: Told) -> orjson.Fragment:
    return orjson.Fragment(format_usd(told.cost).encode())


def _units(told: Told, unit: str) -> int:
    return dict(told.usage.units).get(unit, 0)


def _estimated(told: Told) -> dict[str, bool]:
    return {"estimated": True} if told.usage.estimated else {}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class EmbeddingsShape(Shape):
    """OpenAI's list of embeddings, in the order of the inputs and the encoding that was asked for."""

    encoding: Literal["float", "base64"] = "float"

    def is_large(self, body: Mapping[str, Any]) -> bool:
        """Whether `prepared` would hold the event loop for long."""
        data = body.get("data")
        if not isinstance(data, list):
            return False
        numbers = len(data) * NUMBERS_PER_ROW
        return numbers > NUMBERS_INLINE_MAX or numbers + sum(map(_numbers_of, data)) > NUMBERS_INLINE_MAX

    def prepared(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body with its vectors in the encoding that was asked for, written out."""
        rows = []
        for position, row in enumerate(_objects(body.get("data"))):
            index = row.get("index")
            rows.append(
                {
                    "object": "embedding",
                    "index": index if type(index) is int else position,
                    "embedding": self._encoded(row.get("embedding")),
                }
            )
        rows.sort(key=lambda row: row["index"])
        return {**body, "data": orjson.Fragment(orjson.dumps(rows))}

    def whole(self, body: dict[str, Any], told: Told) -> tuple[str, bytes]:
        """The media type and the bytes of a whole answer."""
        if not isinstance(body.get("data"), orjson.Fragment):
            body = self.prepared(body)
        tokens = told.usage.prompt_tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "cost": _cost(told), **_estimated(told)}
        said = {"object": "list", "model": told.model, "usage": usage, "backend": told.backend}
        return JSON, orjson.dumps(body | said)

    def _encoded(self, vector: Any) -> Any:
        """The vector as it was asked for: numbers, or base64 of little-endian float32, as OpenAI's SDK reads it."""
        if self.encoding == "float":
            return floats(vector) if isinstance(vector, str) else vector
        return packed(vector) if isinstance(vector, list) else vector


def _numbers_of(row: Any) -> int:
    """How many numbers a row has, about."""
    vector = row.get("embedding") if isinstance(row, dict) else None
    if isinstance(vector, str):
        return len(vector) // CHARACTERS_PER_NUMBER
    return len(vector) if isinstance(vector, list) else 0


def floats(text: str) -> Any:
    """The numbers in base64 of little-endian float32; what is no such thing stays."""
    try:
        content = base64.b64decode(text, validate=True)
        return list(struct.unpack(f"<{len(content) // BYTES_PER_FLOAT}f", content))
    except (binascii.Error, ValueError, struct.error):
        return text


def packed(numbers: Sequence[Any]) -> Any:
    """Base64 of the numbers as little-endian float32; what are no such numbers stays."""
    try:
        return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()
    except (struct.error, OverflowError, TypeError):
        return numbers


@dataclass(frozen=True, slots=True)
class RerankShape(Shape):
    """Cohere's shape, of either version of its API. ``documents``: as they were sent, where they are wanted back."""

    version: str = "2"
    documents: tuple[Any, ...] = ()

    def whole(self, body: dict[str, Any], told: Told) -> tuple[str, bytes]:
        """The media type and the bytes of a whole answer."""
        given = body.get("id")
        answer = {
            "id": given if isinstance(given, str) and given else told.request_id,
            "results": [self._result(each) for each in _objects(body.get("results")) if _ranked(each)],
            "meta": {
                "api_version": {"version": self.version},
                "billed_units": {"search_units": _units(told, SEARCH_UNIT)},
                "cost": _cost(told),
                **_estimated(told),
            },
            "backend": told.backend,
        }
        return JSON, orjson.dumps(answer)

    def _result(self, result: Mapping[str, Any]) -> dict[str, Any]:
        index = result["index"]
        shown: dict[str, Any] = {"index": index, "relevance_score": result["relevance_score"]}
        if index < len(self.documents):
            document = self.documents[index]
            shown["document"] = document if isinstance(document, dict) else {"text": document}
        return shown


def _ranked(result: Mapping[str, Any]) -> bool:
    index = result.get("index")
    return type(index) is int and index >= 0 and _number(result.get("relevance_score"))


class ImagesShape(Shape):
    """OpenAI's list of images."""

    def whole(self, body: dict[str, Any], told: Told) -> tuple[str, bytes]:
        """The media type and the bytes of a whole answer."""
        created = body.get("created")
        answer = {
            "created": created if type(created) is int else 0,
            "data": [
                {name: image[name] for name in IMAGE_MEMBERS if isinstance(image.get(name), str)}
                for image in _objects(body.get("data"))
            ],
            "usage": {"cost": _cost(told), **_estimated(told)},
            "backend": told.backend,
        }
        return JSON, orjson.dumps(answer)


IMAGES_SHAPE = ImagesShape()


@dataclass(frozen=True, slots=True)
class TranscriptionShape(Shape):
    """Whisper's answers: an object, a longer one, plain text, or subtitles made of the segments."""

    format: str = "json"

    def whole(self, body: dict[str, Any], told: Told) -> tuple[str, bytes]:
        """The media type and the bytes of a whole answer."""
        words = body.get("text")
        text = words if isinstance(words, str) else ""
        seconds = _units(told, SECOND)
        if self.format == "text":
            return TEXT, _utf8(f"{text.strip()}\n")
        if self.format == "srt":
            return TEXT, _utf8(srt(_cues(body, text, seconds=seconds)))
        if self.format == "vtt":
            return VTT, _utf8(vtt(_cues(body, text, seconds=seconds)))
        said: dict[str, Any] = {"text": text}
        if self.format == "verbose_json":
            said = {"task": "transcribe", "duration": seconds}
            said |= {name: body[name] for name in VERBOSE_MEMBERS if body.get(name) is not None} | {"text": text}
        usage = {"type": "duration", "seconds": seconds, "cost": _cost(told), **_estimated(told)}
        return JSON, orjson.dumps(said | {"usage": usage, "backend": told.backend})


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class _Cue:
    start_ms: int
    end_ms: int
    text: str


def _cues(body: Mapping[str, Any], text: str, *, seconds: int) -> list[_Cue]:
    """What is shown from when to when; where there are no segments, all of it all the time."""
    cues = []
    for segment in _objects(body.get("segments")):
        words = segment.get("text")
        if isinstance(words, str) and _number(segment.get("start")) and _number(segment.get("end")):
            start_ms = _ms(segment["start"])
            cues.append(_Cue(start_ms, max(start_ms, _ms(segment["end"])), _cue_text(words)))
    if not cues and text.strip():
        duration = body.get("duration")
        end_ms = _ms(duration if duration is not None and _number(duration) else seconds)
        cues.append(_Cue(0, end_ms, _cue_text(text)))
    return cues


def _ms(seconds: float) -> int:
    return round(min(max(seconds, 0), SUBTITLE_SECONDS_MAX) * MS_PER_SECOND)


def _cue_text(text: str) -> str:
    """One line that cannot be read as the end of its cue or the times of another."""
    return " ".join(text.split()).replace("-->", "->")


def _clock(ms: int, *, point: str) -> str:
    seconds, ms = divmod(ms, MS_PER_SECOND)
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{seconds:02}{point}{ms:03}"


def srt(cues: Sequence[_Cue]) -> str:
    """SubRip: numbered cues, milliseconds after a comma."""
    return "".join(
        f"{number}\n{_clock(cue.start_ms, point=',')} --> {_clock(cue.end_ms, point=',')}\n{cue.text}\n\n"
        for number, cue in enumerate(cues, 1)
    )


def vtt(cues: Sequence[_Cue]) -> str:
    """WebVTT: a heading, and cues with milliseconds after a point."""
    return "WEBVTT\n\n" + "".join(
        f"{_clock(cue.start_ms, point='.')} --> {_clock(cue.end_ms, point='.')}\n{cue.text}\n\n" for cue in cues
    )
