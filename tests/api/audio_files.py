"""Small audio files, written by their formats' rules, that say or have any length."""

import io
import struct
import wave

MP3_FRAME_SECONDS = 1152 / 44_100


def wav(seconds: float, *, rate: int = 16_000, channels: int = 1, width: int = 2) -> bytes:
    """Silence as PCM."""
    target = io.BytesIO()
    with wave.open(target, "wb") as writer:
        writer.setnchannels(channels)
        writer.setsampwidth(width)
        writer.setframerate(rate)
        writer.writeframes(bytes(round(seconds * rate) * channels * width))
    return target.getvalue()


def riff(*chunks: tuple[bytes, bytes], size: int | None = None) -> bytes:
    """A WAVE file of these chunks; ``size`` is what the last one claims."""
    parts = [name + struct.pack("<I", len(body)) + body + b"\0" * (len(body) & 1) for name, body in chunks]
    if size is not None:
        name, body = chunks[-1]
        parts[-1] = name + struct.pack("<I", size) + body
    inside = b"WAVE" + b"".join(parts)
    return b"RIFF" + struct.pack("<I", len(inside)) + inside


def pcm_format(*, tag: int = 1, channels: int = 1, rate: int = 8000, bits: int = 16, said: int | None = None) -> bytes:
    """A ``fmt`` chunk; ``said`` is the byte rate that it claims."""
    block = channels * bits // 8
    return struct.pack("<HHIIHH", tag, channels, rate, said if said is not None else rate * block, block, bits)


def mp3(frames: int, *, id3_bytes: int = 0, padded: bool = False) -> bytes:
    """Frames of MPEG 1 layer III at 128 kbit/s and 44.1 kHz, behind an ID3v2 tag."""
    frame = b"\xff\xfb\x92\x00" + bytes(418 - 4) if padded else b"\xff\xfb\x90\x00" + bytes(417 - 4)
    tag = b"ID3\x04\0\0" + bytes(id3_bytes >> shift & 0x7F for shift in (21, 14, 7, 0)) + bytes(id3_bytes)
    return (tag if id3_bytes else b"") + frame * frames


def flac(samples: int, *, rate: int = 16_000, more: bytes = b"") -> bytes:
    """A head of FLAC that says its length, and what comes behind it."""
    packed = rate << 44 | 0 << 41 | 15 << 36 | samples
    block = struct.pack(">HH", 4096, 4096) + bytes(6) + packed.to_bytes(8, "big") + bytes(16)
    return b"fLaC\x80" + len(block).to_bytes(3, "big") + block + more


def ogg(samples: int, *, more: bytes = b"") -> bytes:
    """A first page with an Opus head, and a last one with a position."""

    def page(position: int, content: bytes) -> bytes:
        return b"OggS\0\0" + struct.pack("<qIII", position, 1, 0, 0) + bytes([1, len(content)]) + content

    head = b"OpusHead\x01\x01" + struct.pack("<HIhB", 312, 48_000, 0, 0)
    return page(0, head) + more + page(samples, b"\xf8\xff\xfe")


def mp4(duration: int, *, units: int = 1000, long: bool = False, more: bytes = b"") -> bytes:
    """Boxes with a movie's head."""

    def box(name: bytes, inside: bytes) -> bytes:
        return struct.pack(">I", 8 + len(inside)) + name + inside

    times = struct.pack(">QQIQ", 0, 0, units, duration) if long else struct.pack(">IIII", 0, 0, units, duration)
    head = bytes([1 if long else 0, 0, 0, 0]) + times + bytes(80)
    return (
        box(b"ftyp", b"M4A \0\0\0\0") + box(b"free", b"x" * 9) + box(b"moov", box(b"mvhd", head)) + box(b"mdat", more)
    )


def webm(seconds: float | None, *, scale: int = 1_000_000, more: bytes = b"") -> bytes:
    """A head of WebM, as one who records live leaves it (no length) or as one who finished writes it."""
    info = b"\x2a\xd7\xb1\x83" + scale.to_bytes(3, "big")
    if seconds is not None:
        info += b"\x44\x89\x88" + struct.pack(">d", seconds * 1e9 / scale)
    segment = b"\x18S\x80g\x01" + b"\xff" * 7 + b"\x15I\xa9f" + bytes([0x80 | len(info)]) + info
    return b"\x1aE\xdf\xa3\x84webm" + segment + b"\x1f\x43\xb6\x75" + more
