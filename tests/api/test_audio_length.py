"""How long audio is: exact where bytes say it, and never below what bytes allow where a header lies."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.api.audio_length import (
    BITS_PER_SECOND_MAX,
    BITS_PER_SECOND_MIN,
    SECONDS_MAX,
    AudioLength,
    NotAudio,
    kind_of,
    measure,
)
from tests.api.audio_files import MP3_FRAME_SECONDS, flac, mp3, mp4, ogg, pcm_format, riff, wav, webm

MEBIBYTE = 1024 * 1024


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (wav(1), "wav"),
        (mp3(1), "mp3"),
        (mp3(1, id3_bytes=300), "mp3"),
        (flac(1), "flac"),
        (b"ID3\x04\0\0\0\0\0\x05xxxxx" + flac(1), "flac"),
        (ogg(1), "ogg"),
        (mp4(1), "mp4"),
        (webm(1), "webm"),
        (b"\xff\xf1\x50\x80", "aac"),
        (b"\xff\xfd\x90\x00", "mpeg"),
        (b"\x00\x00\x01\xba\x00", "mpeg"),
        (b"", None),
        (b"\xff", None),
        (b"RIFF\0\0\0\0AVI ", None),
        (b"<html>", None),
        (b"\x89PNG\r\n\x1a\n", None),
    ],
)
def test_kind_is_told_by_the_first_bytes(content: bytes, kind: str | None) -> None:
    assert kind_of(content) == kind


@pytest.mark.parametrize(
    ("content", "seconds"),
    [
        (wav(1), 1),
        (wav(2.5), 3),
        (wav(60, rate=44_100, channels=2), 60),
        (wav(3, width=1), 3),
        (wav(3, width=3), 3),
        (wav(0), 1),
    ],
)
def test_pcm_is_counted_exactly(content: bytes, seconds: int) -> None:
    assert measure(content) == AudioLength("wav", seconds, seconds, known=True)


@pytest.mark.parametrize("size", [0, 1, 16, 0xFFFFFFFF])
def test_pcm_that_says_less_than_it_has_is_counted_to_its_end(size: int) -> None:
    content = riff((b"fmt ", pcm_format()), (b"data", bytes(10 * 16_000)), size=size)
    assert measure(content) == AudioLength("wav", 10, 10, known=True)


def test_pcm_is_reckoned_by_its_samples_whatever_its_byte_rate_says() -> None:
    content = riff((b"fmt ", pcm_format(said=2**31)), (b"data", bytes(10 * 16_000)))
    assert measure(content).seconds_max == 10


@pytest.mark.parametrize(
    "content",
    [
        riff((b"fmt ", pcm_format()), (b"fmt ", pcm_format(rate=96_000)), (b"data", bytes(99))),
        riff((b"fmt ", pcm_format()[:10]), (b"data", bytes(99))),
        riff((b"fmt ", pcm_format(channels=0)), (b"data", bytes(99))),
        riff((b"fmt ", pcm_format(rate=0)), (b"data", bytes(99))),
        riff((b"fmt ", pcm_format(bits=12)), (b"data", bytes(99))),
        riff((b"fmt ", pcm_format()[:12] + b"\x40\0\x10\0"), (b"data", bytes(99))),
        riff((b"fmt ", pcm_format())),
        riff(*[(b"LIST", b"")] * 100, (b"fmt ", pcm_format()), (b"data", bytes(99))),
        flac(1)[:20],
        b"nothing of the kind",
        b"",
    ],
)
def test_what_contradicts_itself_is_no_audio(content: bytes) -> None:
    with pytest.raises(NotAudio):
        measure(content)


def test_compressed_audio_in_a_wav_is_not_taken_for_pcm() -> None:
    content = riff((b"fmt ", pcm_format(tag=0x55, rate=48_000)), (b"data", bytes(8000)))
    assert measure(content).seconds_max >= 8


@pytest.mark.parametrize("frames", [1, 100, 3000])
@pytest.mark.parametrize("id3_bytes", [0, 1, 300])
@pytest.mark.parametrize("padded", [False, True])
def test_mpeg_frames_are_counted_one_by_one(frames: int, id3_bytes: int, padded: bool) -> None:
    found = measure(mp3(frames, id3_bytes=id3_bytes, padded=padded))
    assert found.known
    assert frames * MP3_FRAME_SECONDS <= found.seconds_max <= frames * MP3_FRAME_SECONDS + 1


def test_noise_in_mpeg_counts_at_the_lowest_rate_there_is() -> None:
    assert measure(mp3(10) + bytes(100_000) + mp3(10)).seconds_max >= 100
    # A tag that claims to be all of the file hides nothing.
    assert measure(b"ID3\x04\0\0\x7f\x7f\x7f\x7f" + mp3(1) * 100).seconds_max >= 41


@pytest.mark.parametrize("head", [b"ID3\x04\0\0\x80\x80\xff\x80", b"ID3\xff\0\0\0\0\x7f\0", b"ID3\x04\xff\0\0\0\x7f\0"])
def test_tag_that_is_none_to_decoders_hides_no_audio(head: bytes) -> None:
    """Each says that 16 KB of it follow, and decoders play them: its bytes are not those of a tag."""
    hidden = mp3(1000)
    assert measure(head + hidden).seconds_max >= 1000 * MP3_FRAME_SECONDS


@pytest.mark.parametrize(
    ("content", "seconds"),
    [
        (flac(16_000 * 90), 90),
        (ogg(48_000 * 90), 90),
        (mp4(90_000), 90),
        (mp4(90_000, long=True), 90),
        (webm(90), 90),
        (webm(90, scale=500_000), 90),
    ],
)
def test_length_that_a_file_says_is_believed_where_it_is_the_longer(content: bytes, seconds: int) -> None:
    assert measure(content) == AudioLength(kind_of(content) or "", seconds, seconds, known=True)


@pytest.mark.parametrize(
    "content",
    [
        flac(1, more=bytes(MEBIBYTE)),
        ogg(1, more=bytes(MEBIBYTE)),
        mp4(1, more=bytes(MEBIBYTE)),
        webm(0.001, more=bytes(MEBIBYTE)),
    ],
)
def test_length_that_a_file_says_does_not_hide_what_it_has(content: bytes) -> None:
    found = measure(content)
    assert not found.known
    assert found.seconds_expected >= MEBIBYTE * 8 // BITS_PER_SECOND_MAX[found.kind] > 1
    assert found.seconds_max >= MEBIBYTE * 8 // BITS_PER_SECOND_MIN[found.kind]


def speex(more: bytes) -> bytes:
    return b"OggS\0\x02" + bytes(20) + b"\x01\x50Speex   1.2" + bytes(70) + more


def boxed(name: bytes, inside: bytes) -> bytes:
    return (8 + len(inside)).to_bytes(4, "big") + name + inside


def amr(coder: bytes, more: bytes) -> bytes:
    return boxed(b"ftyp", b"3gp4") + boxed(b"mdat", more) + boxed(b"moov", boxed(b"trak", coder + bytes(28)))


@pytest.mark.parametrize(
    ("content", "bits_per_second"),
    [
        (speex(bytes(200_000)), 2_150),
        # A second stream behind the first is played, too.
        (ogg(48_000, more=speex(bytes(200_000))), 2_150),
        (amr(b"samr", bytes(200_000)), 4_750),
        (amr(b"sevc", bytes(200_000)), 800),
        (webm(1, more=b"A_MS/ACM" + bytes(200_000)), 2_000),
        (riff((b"fmt ", pcm_format(tag=0x42)), (b"data", bytes(200_000))), 5_300),
    ],
)
def test_speech_coders_may_go_lower_than_music(content: bytes, bits_per_second: int) -> None:
    assert measure(content).seconds_max >= 200_000 * 8 // bits_per_second


def test_usual_files_are_bounded_by_usual_rates() -> None:
    for content in (ogg(9, more=bytes(200_000)), mp4(9, more=b"samr" + bytes(200_000)), webm(9, more=bytes(200_000))):
        assert measure(content).seconds_max <= 200_400 * 8 // 6_000


@pytest.mark.parametrize(
    "content",
    [
        flac(0, more=bytes(40_000)),
        ogg(-1, more=bytes(40_000)),
        mp4(0, more=bytes(40_000)),
        mp4(2**32 - 1, more=bytes(40_000)),
        mp4(1, units=0, more=bytes(40_000)),
        webm(None, more=bytes(40_000)),
        # What looks like a length among the audio.
        webm(None, more=b"\x44\x89\x88\x41" + bytes(40_000)),
        webm(float("nan"), more=bytes(40_000)),
        webm(float("inf"), more=bytes(40_000)),
        b"\xff\xf1\x50\x80" + bytes(40_000),
    ],
)
def test_length_that_is_not_said_is_guessed(content: bytes) -> None:
    found = measure(content)
    assert not found.known
    assert 10 <= found.seconds_expected <= 11
    assert found.seconds_max >= 20


HEADS = [
    wav(0.01),
    mp3(2),
    mp3(1, id3_bytes=9),
    flac(9),
    ogg(9),
    mp4(9),
    mp4(9, long=True),
    webm(9),
    b"\xff\xf1\x50\x80",
]


@given(st.sampled_from(HEADS), st.binary(max_size=300), st.integers(0, 200), st.integers(0, 255))
def test_any_bytes_have_a_length_or_are_no_audio(head: bytes, tail: bytes, at: int, byte: int) -> None:
    content = bytearray(head + tail)
    content[at % len(content)] = byte
    try:
        found = measure(bytes(content))
    except NotAudio:
        return
    assert 1 <= found.seconds_max <= SECONDS_MAX
    assert 1 <= found.seconds_expected <= SECONDS_MAX


@pytest.mark.parametrize("unit", [b"\xff", b"\xff\xfb\x10\x00", b"\xff\xf3\x14\x00" + bytes(20), b"\0\0\0\x08free"])
def test_hostile_files_are_measured_in_little_time(unit: bytes) -> None:
    head = mp3(1) if unit[0] == 0xFF else b"\0\0\0\x08ftyp"
    content = head + unit * (25 * MEBIBYTE // len(unit))
    begun = time.process_time()
    measure(content)
    assert time.process_time() - begun < 2
