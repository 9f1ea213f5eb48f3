"""What the sandbox speaks and hears: tones in a real WAV, and the transcript of a file that it cannot hear.

Speech is 16-bit mono PCM at 24 kHz: each character sounds for 50 ms at normal speed, a note of a pentatonic
scale, and spaces are silent. A transcript is exact in what is billed: its duration is read from a WAV's header
(RIFF, Microsoft's "Multimedia Programming Interface and Data Specifications 1.0"), and estimated from the size
of anything else. Pure.
"""

import math
import struct
import sys
import zlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from app.upstream.provider import Call
from app.upstream.sandbox_request import Asked, content_digest, upload_of, word
from app.upstream.sandbox_script import refused
from app.upstream.sandbox_text import TOKEN_BYTES, prose

SAMPLES_PER_SECOND = 24_000
SAMPLE_BYTES = 2
CHARACTER_S = 0.05
CHARACTERS_PER_BLOCK = 4
CHARACTERS_MAX = 100_000
SPEED_MIN, SPEED_MAX = 0.25, 4.0
AMPLITUDE = 2_000
FADE_SAMPLES = 120
# Whole periods in 50 ms, so that notes end where they began.
NOTES_HZ = (220, 240, 280, 320, 360, 440, 480, 560)
WAV_CHUNKS_MAX = 64
# What a file that is no WAV is taken for: 128 kbit/s.
ESTIMATED_BYTES_PER_SECOND = 16_000
TOKENS_PER_SECOND_HEARD = 4
TOKENS_HEARD_MIN, TOKENS_HEARD_MAX = 16, 4_096
WORDS_PER_SEGMENT = 12
_RAW_FORMATS = frozenset({0x0001, 0x0003, 0xFFFE})
_VOCABULARY = 50_000


@dataclass(frozen=True, slots=True)
class Speech:
    """What is going to be said. ``blocks`` are of up to 4 characters each, the first with the header."""

    text: str
    content_type: str
    samples_per_character: int

    @property
    def block_count(self) -> int:
        return -(-len(self.text) // CHARACTERS_PER_BLOCK)

    def header(self) -> bytes:
        """What comes before the samples."""
        if self.content_type != "audio/wav":
            return b""
        return wav_header(len(self.text) * self.samples_per_character * SAMPLE_BYTES)

    def blocks(self) -> Iterator[bytes]:
        """The samples."""
        for start in range(0, len(self.text), CHARACTERS_PER_BLOCK):
            sounds = (_note(character) for character in self.text[start : start + CHARACTERS_PER_BLOCK])
            yield b"".join(_sound(note, self.samples_per_character) for note in sounds)


def speech(call: Call, asked: Asked) -> Speech:
    """What a request has said. Raises `UpstreamError`."""
    body = call.body
    layout = body.get("response_format") or "wav"
    if layout not in ("wav", "pcm"):
        raise refused("'response_format': the sandbox speaks wav and pcm")
    speed = body.get("speed", 1.0)
    if isinstance(speed, bool) or not isinstance(speed, int | float) or not SPEED_MIN <= speed <= SPEED_MAX:
        raise refused(f"'speed' must be between {SPEED_MIN:g} and {SPEED_MAX:g}")
    if len(word(body, "input")) > CHARACTERS_MAX:
        raise refused(f"'input' must have at most {CHARACTERS_MAX} characters")
    return Speech(asked.text, f"audio/{layout}", round(CHARACTER_S * SAMPLES_PER_SECOND / speed))


def wav_header(data_bytes: int) -> bytes:
    """The header of a WAV of so many bytes of samples."""
    rate = SAMPLES_PER_SECOND * SAMPLE_BYTES
    form = struct.pack("<HHIIHH", 1, 1, SAMPLES_PER_SECOND, rate, SAMPLE_BYTES, 8 * SAMPLE_BYTES)
    size = 4 + 8 + len(form) + 8 + data_bytes
    named = struct.pack("<4sI4s4sI", b"RIFF", size, b"WAVE", b"fmt ", len(form))
    return named + form + struct.pack("<4sI", b"data", data_bytes)


def transcription(call: Call, asked: Asked) -> dict[str, Any]:
    """OpenAI's verbose transcript. Raises `UpstreamError`."""
    body, script, content = call.body, asked.script, upload_of(call)
    seconds = duration_s(content.content)
    tokens = script.tokens
    if tokens is None:
        tokens = max(TOKENS_HEARD_MIN, math.ceil(seconds * TOKENS_PER_SECOND_HEARD))
    text = prose("This is what was heard:", tokens=min(tokens, TOKENS_HEARD_MAX), seed=content_digest(content))
    if script.say is not None:
        text = script.say.replace("_", " ")
    spoken = _timed(text.split(), seconds)
    language = body.get("language")
    answer: dict[str, Any] = {
        "task": "transcribe",
        "language": language if isinstance(language, str) and language else "english",
        "duration": seconds,
        "text": text,
        "segments": _segments(spoken, body.get("temperature")),
    }
    if "word" in _granularities(body):
        answer["words"] = [{"word": each, "start": start, "end": end} for each, start, end in spoken]
    if script.usage == "none":
        del answer["duration"]
    else:
        reported = math.ceil(seconds) if script.lie is None else script.lie
        answer["usage"] = {"type": "duration", "seconds": 0 if script.usage == "zero" else reported}
    return answer


def duration_s(content: bytes) -> float:
    """How long a file sounds: exact for a WAV that says how many bytes a second takes, else from its size."""
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        at, rate = 12, 0
        for _ in range(WAV_CHUNKS_MAX):
            if at + 8 > len(content):
                break
            name, size = content[at : at + 4], int.from_bytes(content[at + 4 : at + 8], "little")
            at += 8
            if name == b"fmt " and at + 16 <= len(content):
                rate = _bytes_per_second(content[at : at + 16])
            if name == b"data" and rate:
                # A stream's header was written before its end was known, and any header may lie.
                return min(size, len(content) - at) / rate
            at += size + size % 2
    return len(content) / ESTIMATED_BYTES_PER_SECOND


def _bytes_per_second(form: bytes) -> int:
    kind, _, samples, rate, block, _ = struct.unpack("<HHIIHH", form)
    return int(samples * block if kind in _RAW_FORMATS else rate)


def _granularities(body: Any) -> tuple[Any, ...]:
    """As a form names them, with brackets, or as JSON does."""
    given = body.get("timestamp_granularities", body.get("timestamp_granularities[]"))
    return (given,) if isinstance(given, str) else tuple(given) if isinstance(given, list | tuple) else ()


def _timed(words: list[str], seconds: float) -> list[tuple[str, float, float]]:
    """Each word with its start and end: all of them take the same time."""
    each_s = seconds / max(1, len(words))
    return [(each, round(at * each_s, 3), round((at + 1) * each_s, 3)) for at, each in enumerate(words)]


def _segments(spoken: list[tuple[str, float, float]], temperature: Any) -> list[dict[str, Any]]:
    segments = []
    for number, first in enumerate(range(0, len(spoken), WORDS_PER_SEGMENT)):
        part = spoken[first : first + WORDS_PER_SEGMENT]
        text = " " + " ".join(each for each, _, _ in part)
        raw = text.encode("utf-8", "surrogatepass")
        pieces = (raw[at : at + TOKEN_BYTES] for at in range(0, len(raw), TOKEN_BYTES))
        segments.append(
            {
                "id": number,
                "seek": int(part[0][1] * 100),
                "start": part[0][1],
                "end": part[-1][2],
                "text": text,
                "tokens": [zlib.crc32(piece) % _VOCABULARY for piece in pieces],
                "temperature": float(temperature) if isinstance(temperature, int | float) else 0.0,
                "avg_logprob": -0.25,
                "compression_ratio": round(len(raw) / len(zlib.compress(raw)), 3),
                "no_speech_prob": 0.01,
            }
        )
    return segments


def _note(character: str) -> int | None:
    return None if character.isspace() else NOTES_HZ[ord(character) % len(NOTES_HZ)]


@lru_cache(maxsize=64)
def _sound(note_hz: int | None, samples: int) -> bytes:
    if note_hz is None:
        return bytes(samples * SAMPLE_BYTES)
    turn = 2 * math.pi * note_hz / SAMPLES_PER_SECOND
    wave = (
        AMPLITUDE * math.sin(turn * at) * min(1.0, at / FADE_SAMPLES, (samples - 1 - at) / FADE_SAMPLES)
        for at in range(samples)
    )
    sound = array("h", map(round, wave))
    if sys.byteorder == "big":
        sound.byteswap()
    return sound.tobytes()
