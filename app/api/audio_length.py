"""How long audio is, at most and probably, before anybody has decoded it. Pure.

A file's header may lie, so it is believed only where it claims more than its bytes do. Where bytes say exactly how
long they are (PCM, MPEG layers), they are counted; else the most comes from the lowest bit rate at which speech of
that kind is in use, and the least that can be expected from the highest at which there is any audio of that kind.
"""

import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass

BITS_PER_BYTE = 8
# What is expected of a compressed file that does not say: speech as browsers record it.
BITS_PER_SECOND_EXPECTED = 32_000
# The lowest rates in use for speech: Opus and AAC in calls, HE-AAC in podcasts, FLAC at 8 kHz mono, G.723.1 in WAVE.
# Coders of silence go lower, and then say how long it is.
BITS_PER_SECOND_MIN = {
    "ogg": 6_000,
    "webm": 6_000,
    "mp4": 6_000,
    "aac": 8_000,
    "flac": 16_000,
    "wav": 5_300,
    "mpeg": 8_000,
}
# Coders of speech alone (Speex, AMR, and those of CDMA's telephones) go lower still, and are named in the file.
SPEECH_CODERS: Mapping[str, Mapping[bytes, int]] = {
    "ogg": {b"Speex   ": 2_000},
    "mp4": {b"samr": 4_750, b"sevc": 800, b"sqcp": 800, b"ssmv": 800},
    "webm": {b"A_MS/ACM": 2_000, b"A_QUICKTIME": 800},
}
# The highest rates that audio of a kind has: Opus and Vorbis, AAC in stereo, CD quality, layer I. What is longer at
# that rate than it says is no audio of so few seconds, but something else beside it (such as pictures), or a lie.
BITS_PER_SECOND_MAX = {
    "ogg": 512_000,
    "webm": 512_000,
    "mp4": 576_000,
    "aac": 576_000,
    "flac": 1_536_000,
    "wav": 1_536_000,
    "mpeg": 448_000,
}
# The lowest that MPEG layer III can say (ISO 13818-3).
MPEG_BITS_PER_SECOND_MIN = 8_000
MPEG_FRAMES_MAX = 200_000
CHUNKS_MAX = 64
BOXES_MAX = 4096
SECONDS_MAX = 2**31 - 1
# Metadata stand at the beginning, before the first cluster of audio: a Duration somewhere later is noise.
EBML_HEAD_BYTES = 65_536
EBML_CLUSTER = b"\x1f\x43\xb6\x75"
OGG_PAGE_BYTES_MAX = 65_536 + 512
OPUS_RATE = 48_000
WAV_PCM = (1, 3, 6, 7)
WAV_EXTENSIBLE = 0xFFFE

_MPEG_RATES = {
    # Layer III: MPEG 1, then 2 and 2.5.
    True: (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_MPEG_SAMPLE_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}


class NotAudio(Exception):
    """The bytes are no audio of a known kind, or contradict themselves."""


@dataclass(frozen=True, slots=True)
class AudioLength:
    """The kind of file, and whole seconds: what it may come to, and what it will.

    ``known``: the latter was counted, or stands in the file and may be true; else it is a guess.
    """

    kind: str
    seconds_max: int
    seconds_expected: int
    known: bool


def measure(content: bytes) -> AudioLength:
    """How long the audio is, rounded up. Raises `NotAudio`."""
    kind = kind_of(content)
    if kind is None:
        raise NotAudio("it begins like no audio that is known here")
    exact = {"wav": _wav, "mp3": _mpeg}.get(kind, _unstated)(content)
    if exact is not None:
        return AudioLength(kind, _whole(exact), _whole(exact), known=True)
    stated = {"flac": _flac, "ogg": _ogg, "mp4": _mp4, "webm": _webm}.get(kind, _unstated)(content)
    bits = len(content) * BITS_PER_BYTE
    most = max(bits / _rate_min(kind, content), stated or 0)
    if stated is None:
        return AudioLength(kind, _whole(most), _whole(bits / BITS_PER_SECOND_EXPECTED), known=False)
    least = bits / BITS_PER_SECOND_MAX[kind]
    return AudioLength(kind, _whole(most), _whole(max(stated, least)), known=least <= stated)


def _rate_min(kind: str, content: bytes) -> int:
    """The lowest bit rate that there may be in it."""
    # Four letters are soon found among audio, so those are looked for where they belong.
    start, end = (kind == "mp4" and _box(content, b"moov", 0, len(content))) or (0, len(content))
    coders = SPEECH_CODERS.get(kind, {}).items()
    return min([BITS_PER_SECOND_MIN[kind], *(rate for name, rate in coders if content.find(name, start, end) >= 0)])


def kind_of(content: bytes) -> str | None:
    """The kind of audio by its first bytes, whatever it is called."""
    head = content[:12]
    if head[:4] in {b"RIFF", b"RF64"} and head[8:12] == b"WAVE":
        return "wav"
    if head[:4] in _MAGIC:
        return _MAGIC[head[:4]]
    if head[4:8] == b"ftyp":
        return "mp4"
    if head[:3] == b"ID3":
        return "flac" if content[_id3_bytes(content) :][:4] == b"fLaC" else "mp3"
    if len(head) >= 2 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "aac"
    if len(head) >= 2 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06:
        return "mp3" if head[1] & 0x06 == 0x02 else "mpeg"
    return None


_MAGIC = {b"\x00\x00\x01\xba": "mpeg", b"fLaC": "flac", b"OggS": "ogg", b"\x1aE\xdf\xa3": "webm"}


def _whole(seconds: float) -> int:
    return max(1, -int(-min(seconds, SECONDS_MAX) // 1))


def _unstated(_content: bytes) -> float | None:
    return None


def _wav(content: bytes) -> float | None:
    """Seconds of everything behind the head of ``data``, of PCM alone, whatever size that head claims.

    Writers of streams leave the size at 0 or at its most: then decoders read to the end.
    """
    rate = 0
    offset = 12
    for _ in range(CHUNKS_MAX):
        name, size = content[offset : offset + 4], int.from_bytes(content[offset + 4 : offset + 8], "little")
        offset += 8
        if name == b"data":
            return max(0, len(content) - offset) / rate if rate else None
        if name == b"fmt ":
            if rate:
                raise NotAudio("it has two formats")
            rate = _wav_rate(content[offset : offset + size])
            if not rate:
                return None
        if len(name) < 4:
            break
        offset += size + (size & 1)
    raise NotAudio("it has no data")


def _wav_rate(chunk: bytes) -> int:
    """Bytes per second as a decoder reckons them, not as the header says; 0 where the audio is compressed."""
    if len(chunk) < 16:
        raise NotAudio("its format is cut short")
    tag, channels, samples, _said, block, bits = struct.unpack_from("<HHIIHH", chunk)
    if tag == WAV_EXTENSIBLE and len(chunk) >= 26:
        tag = int.from_bytes(chunk[24:26], "little")
    if tag not in WAV_PCM:
        return 0
    if not channels or not samples or bits % 8 or not bits or block != channels * bits // 8:
        raise NotAudio("its format contradicts itself")
    return int(samples * block)


def _id3_bytes(content: bytes) -> int:
    """Where the audio begins behind an ID3v2 tag, whose size has seven bits a byte."""
    # What decoders take for no tag must not hide audio from us: they look at these bytes, too.
    if content[:3] != b"ID3" or len(content) < 10 or 0xFF in content[3:5] or max(content[6:10]) > 0x7F:
        return 0
    size = 0
    for byte in content[6:10]:
        size = size << 7 | byte
    return size + 10


def _mpeg_frames() -> dict[int, tuple[int, float]]:
    """Bytes and seconds of a frame of layer III by the 16 bits behind the first byte of its head."""
    frames = {}
    for version, sample_rates in _MPEG_SAMPLE_RATES.items():
        samples = 1152 if version == 3 else 576
        for rate_index, kilobits in enumerate(_MPEG_RATES[version == 3], 1):
            for sample_index, sample_rate in enumerate(sample_rates):
                for protection in (0, 1):
                    for low in range(4):
                        second = 0xE0 | version << 3 | 1 << 1 | protection
                        third = rate_index << 4 | sample_index << 2 | low
                        size = samples * kilobits * 125 // sample_rate + (low >> 1)
                        frames[second << 8 | third] = (size, samples / sample_rate)
    return frames


_FRAMES = _mpeg_frames()


def _mpeg(content: bytes) -> float:
    """Seconds of all frames, read one by one; what is between them counts at the lowest rate there is."""
    offset = _id3_bytes(content)
    end = len(content)
    seconds, strange = 0.0, min(offset, end) if offset > end else 0
    for _ in range(MPEG_FRAMES_MAX):
        if offset + 4 > end:
            break
        frame = _FRAMES.get(content[offset + 1] << 8 | content[offset + 2]) if content[offset] == 0xFF else None
        if frame is not None:
            offset += frame[0]
            seconds += frame[1]
            continue
        found = content.find(b"\xff", offset + 1)
        found = end if found < 0 else found
        strange += found - offset
        offset = found
    strange += max(0, end - offset)
    return seconds + strange * BITS_PER_BYTE / MPEG_BITS_PER_SECOND_MIN


def _flac(content: bytes) -> float | None:
    """STREAMINFO: 20 bits of sample rate, and 36 of how many samples there are (0: not known)."""
    offset = _id3_bytes(content) + 4 + 4
    block = content[offset : offset + 18]
    if len(block) < 18:
        raise NotAudio("its head is cut short")
    packed = int.from_bytes(block[10:18], "big")
    rate, samples = packed >> 44, packed & (1 << 36) - 1
    return samples / rate if rate and samples else None


def _ogg(content: bytes) -> float | None:
    """The position of the last page, in samples of what its first packet says."""
    last = content.rfind(b"OggS", max(0, len(content) - OGG_PAGE_BYTES_MAX))
    position = content[last + 6 : last + 14] if last >= 0 else b""
    opus, vorbis = content.find(b"OpusHead", 0, 256), content.find(b"\x01vorbis", 0, 256)
    rate = OPUS_RATE if opus >= 0 else 0
    if vorbis >= 0:
        rate = int.from_bytes(content[vorbis + 12 : vorbis + 16], "little")
    if len(position) < 8 or not rate:
        return None
    samples = int.from_bytes(position, "little", signed=True)
    return samples / rate if samples > 0 else None


def _mp4(content: bytes) -> float | None:
    """``mvhd`` in ``moov``: how many time units a second has, and how many there are."""
    found = _box(content, b"moov", 0, len(content))
    found = _box(content, b"mvhd", *found) if found else None
    if not found:
        return None
    start, end = found
    long = content[start : start + 1] == b"\x01"
    layout, offset = (">IQ", start + 20) if long else (">II", start + 12)
    if offset + struct.calcsize(layout) > end:
        return None
    units, duration = struct.unpack_from(layout, content, offset)
    unknown = (1 << 64 if long else 1 << 32) - 1
    return duration / units if units and 0 < duration < unknown else None


def _box(content: bytes, name: bytes, start: int, end: int) -> tuple[int, int] | None:
    """Where the inside of a box is, among boxes side by side."""
    for _ in range(BOXES_MAX):
        if start + 8 > end:
            return None
        size, head = int.from_bytes(content[start : start + 4], "big"), 8
        if size == 1:
            size, head = int.from_bytes(content[start + 8 : start + 16], "big"), 16
        elif size == 0:
            size = end - start
        if size < head:
            return None
        if content[start + 4 : start + 8] == name:
            return start + head, min(start + size, end)
        start += size
    return None


_DURATION = re.compile(rb"\x44\x89(?:\x84(.{4})|\x88(.{8}))", re.DOTALL)
_TIMESTAMP_SCALE = re.compile(rb"\x2a\xd7\xb1([\x81-\x88])(.{1,8})", re.DOTALL)
NANOSECONDS = 10**9
TIMESTAMP_SCALE_DEFAULT = 10**6


def _webm(content: bytes) -> float | None:
    """``Duration`` in units of ``TimestampScale`` nanoseconds; a browser that records leaves it out."""
    head = content[:EBML_HEAD_BYTES].split(EBML_CLUSTER, 1)[0]
    duration = _DURATION.search(head)
    if duration is None:
        return None
    short, long = duration.groups()
    value = struct.unpack(">f", short)[0] if short else struct.unpack(">d", long)[0]
    scale = TIMESTAMP_SCALE_DEFAULT
    scaled = _TIMESTAMP_SCALE.search(head)
    if scaled is not None:
        scale = int.from_bytes(scaled[2][: scaled[1][0] & 0x0F], "big")
    seconds = value * scale / NANOSECONDS
    return seconds if 0 < seconds <= SECONDS_MAX else None
