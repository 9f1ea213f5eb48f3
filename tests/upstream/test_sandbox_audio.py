"""Speech that plays, and transcripts whose duration is exact where the file says it."""

import io
import math
import struct
import wave
from array import array
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.audio import TranscriptionVerbose

from app.endpoints import CHAT, SPEECH, TRANSCRIPTIONS
from app.upstream.provider import Upload, UpstreamError
from app.upstream.sandbox import SandboxProvider
from app.upstream.sandbox_audio import AMPLITUDE, CHARACTERS_MAX, SAMPLES_PER_SECOND, WAV_CHUNKS_MAX, duration_s
from app.upstream.sandbox_stream import BATCH_EVENTS_MAX
from tests.upstream.sandboxes import Timeline, asked, recording, refusal_of, sandbox

BLOCK_BYTES = 4 * 1200 * 2


def wav(frames: int, *, rate: int = 16_000, width: int = 2, channels: int = 1) -> bytes:
    """A file as Python's own library writes it."""
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(bytes(frames * width * channels))
    return out.getvalue()


async def spoken(provider: SandboxProvider, text: str = "Hello there", **body: Any) -> tuple[str, list[bytes]]:
    async with provider.download(asked(SPEECH, input=text, voice="alloy", **body)) as download:
        return download.content_type, [block async for block in download.blocks]


async def cut_off(provider: SandboxProvider, text: str) -> tuple[bytes, UpstreamError]:
    """What came before a failure in mid-stream, and the failure."""
    heard = b""
    try:
        async with provider.download(asked(SPEECH, input=text)) as download:
            async for block in download.blocks:
                heard += block
    except UpstreamError as error:
        return heard, error
    raise AssertionError("the speech did not fail")


async def heard(upload: Upload | None = None, **body: Any) -> dict[str, Any]:
    return await sandbox().complete(asked(TRANSCRIPTIONS, upload=upload or recording(), **body))


class TestSpeech:
    async def test_speech_is_a_wav_whose_length_follows_the_text(self) -> None:
        kind, blocks = await spoken(sandbox())
        assert kind == "audio/wav"
        with wave.open(io.BytesIO(b"".join(blocks))) as file:
            assert (file.getnchannels(), file.getsampwidth(), file.getframerate()) == (1, 2, SAMPLES_PER_SECOND)
            assert file.getnframes() == 11 * 1200
            samples = array("h", file.readframes(file.getnframes()))
        assert len(samples) == 11 * 1200
        assert AMPLITUDE * 0.9 < max(samples) <= AMPLITUDE
        # Between the words it is silent, and notes begin and end in silence.
        assert set(samples[5 * 1200 : 6 * 1200]) == {0}
        assert all(samples[at * 1200] == 0 == samples[(at + 1) * 1200 - 1] for at in range(11))

    async def test_pcm_is_the_same_without_the_header(self) -> None:
        kind, blocks = await spoken(sandbox(), response_format="pcm")
        whole = b"".join((await spoken(sandbox(), response_format="wav"))[1])
        assert kind == "audio/pcm"
        assert whole.endswith(b"".join(blocks))
        assert len(whole) == 44 + len(b"".join(blocks))

    async def test_same_text_sounds_the_same_and_another_does_not(self) -> None:
        assert await spoken(sandbox(), "same") == await spoken(sandbox(), "same")
        assert await spoken(sandbox(), "same") != await spoken(sandbox(), "some")

    @pytest.mark.parametrize(("speed", "samples"), [(0.25, 4800), (1, 1200), (4.0, 300)])
    async def test_speed_shortens_it(self, speed: float, samples: int) -> None:
        _, blocks = await spoken(sandbox(), "ab", response_format="pcm", speed=speed)
        assert len(b"".join(blocks)) == 2 * 2 * samples

    async def test_directive_is_not_spoken(self) -> None:
        assert await spoken(sandbox(), "[[sandbox tps=1000000]]hello") == await spoken(sandbox(), "hello")

    async def test_text_that_is_a_directive_alone_is_an_empty_file(self) -> None:
        _, blocks = await spoken(sandbox(), "[[sandbox tps=5]]")
        with wave.open(io.BytesIO(b"".join(blocks))) as file:
            assert file.getnframes() == 0

    async def test_blocks_are_bounded_and_counted(self) -> None:
        provider = sandbox(tokens_per_second=1e9)
        _, blocks = await spoken(provider, "a" * 1000, response_format="pcm")
        assert max(map(len, blocks)) == BATCH_EVENTS_MAX * BLOCK_BYTES
        assert (provider.emitted_tokens, provider.active_streams) == (250, 0)

    @pytest.mark.parametrize(
        "body",
        [
            {"response_format": "mp3"},
            {"response_format": "opus"},
            {"speed": 0.1},
            {"speed": 5},
            {"speed": "fast"},
            {"input": "a" * (CHARACTERS_MAX + 1)},
            {"input": None},
        ],
    )
    async def test_what_cannot_be_spoken_is_the_callers_fault(self, body: dict[str, Any]) -> None:
        with pytest.raises(UpstreamError) as caught:
            async with sandbox().download(asked(SPEECH, **({"input": "hi"} | body))):
                pass
        assert (caught.value.status, caught.value.callers_fault) == (400, True)

    async def test_only_speech_is_downloaded(self) -> None:
        with pytest.raises(UpstreamError, match="no bytes"):
            async with sandbox().download(asked(CHAT, messages=[])):
                pass

    async def test_failure_before_the_first_byte(self) -> None:
        for kind, result in (("connect", "connect"), ("status:503", "server_error"), ("timeout", "timeout")):
            with pytest.raises(UpstreamError) as caught:
                await spoken(sandbox(), f"[[sandbox fail={kind}]]hello")
            assert caught.value.result == result

    @pytest.mark.parametrize("kind", ["cut", "error_event", "status:500", "connect"])
    async def test_failure_in_mid_stream_comes_after_exactly_so_many_blocks(self, kind: str) -> None:
        provider = sandbox()
        sound, error = await cut_off(provider, f"[[sandbox fail={kind} after=2]]" + "a" * 40)
        assert (error.result, error.fail_over) == ("interrupted", False)
        assert len(sound) == 44 + 2 * BLOCK_BYTES
        assert (provider.emitted_tokens, provider.active_streams) == (2, 0)

    async def test_failure_after_more_than_there_is_comes_before_the_last_block(self) -> None:
        sound, _ = await cut_off(sandbox(), "[[sandbox fail=cut after=99]]" + "a" * 12)
        assert len(sound) == 44 + 2 * BLOCK_BYTES

    @pytest.mark.parametrize("text", ["[[sandbox fail=cut]]hello", "[[sandbox fail=cut after=5]]"])
    async def test_cut_without_anything_to_cut_comes_before_the_first_byte(self, text: str) -> None:
        assert (await cut_off(sandbox(), text))[0] == b""

    async def test_blocks_are_due_at_the_pace_with_the_scripted_silence(self) -> None:
        timeline = Timeline()
        text = "[[sandbox tps=10 first_ms=5 silent_ms=1000 after=2]]" + "a" * 16
        async with timeline.provider.download(asked(SPEECH, input=text)) as download:
            due = [round(timeline.clock.monotonic_s() * 1000) async for _ in download.blocks]
        assert due == [5, 105, 1205, 1305]

    async def test_leaving_stops_speaking(self) -> None:
        provider = sandbox(tokens_per_second=1e9)
        async with provider.download(asked(SPEECH, input="a" * CHARACTERS_MAX)) as download:
            await anext(download.blocks)
            assert provider.active_streams == 1
        assert provider.active_streams == 0
        assert provider.emitted_tokens <= BATCH_EVENTS_MAX


class TestDuration:
    @given(
        st.integers(0, 5000),
        st.sampled_from([8000, 16_000, 44_100, 48_000]),
        st.integers(1, 4),
        st.integers(1, 2),
    )
    def test_wav_says_exactly_how_long_it_is(self, frames: int, rate: int, width: int, channels: int) -> None:
        assert duration_s(wav(frames, rate=rate, width=width, channels=channels)) == frames / rate

    def test_other_chunks_are_passed_over(self) -> None:
        plain = wav(16_000)
        listed = plain[:12] + b"LIST" + struct.pack("<I", 3) + b"abc\0" + plain[12:]
        assert duration_s(listed) == duration_s(plain) == 1

    def test_header_of_a_stream_counts_what_is_there(self) -> None:
        plain = wav(16_000)
        assert duration_s(plain[:40] + b"\xff\xff\xff\xff" + plain[44:]) == 1
        assert duration_s(plain[: 44 + 16_000]) == 0.5

    def test_compressed_wav_counts_by_the_bytes_of_a_second(self) -> None:
        form = struct.pack("<HHIIHH", 0x0055, 1, 44_100, 16_000, 1, 0)
        content = (
            b"RIFF\0\0\0\0WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", 8000) + bytes(8000)
        )
        assert duration_s(content) == 0.5

    @pytest.mark.parametrize(
        "content",
        [
            b"ID3" + bytes(31_997),
            b"RIFF\0\0\0\0WAVE" + bytes(31_988),
            b"RIFF\0\0\0\0WAVE" + b"junk\0\0\0\0" * WAV_CHUNKS_MAX + wav(16_000)[12:],
            wav(16_000)[:20] + bytes(16) + wav(15_978)[36:],
        ],
    )
    def test_anything_else_is_estimated_from_its_size(self, content: bytes) -> None:
        assert duration_s(content) == len(content) / 16_000

    @given(st.binary(max_size=200))
    def test_no_file_is_too_broken(self, content: bytes) -> None:
        assert duration_s(content) >= 0
        assert duration_s(b"RIFF\0\0\0\0WAVE" + content) >= 0
        assert math.isfinite(duration_s(b"RIFF\0\0\0\0WAVEfmt \x10\0\0\0" + content))


class TestTranscription:
    async def test_answer_is_verbose(self) -> None:
        body = await heard(Upload("a.wav", "audio/wav", wav(24_000)))
        TranscriptionVerbose.model_validate({**body, "duration": body["duration"]})
        assert (body["task"], body["language"], body["duration"]) == ("transcribe", "english", 1.5)
        assert body["usage"] == {"type": "duration", "seconds": 2}
        assert body["text"].startswith("This is what was heard: ")
        assert "".join(segment["text"] for segment in body["segments"]).strip() == body["text"]
        assert "words" not in body

    async def test_segments_follow_each_other_through_the_whole_file(self) -> None:
        segments = (await heard(recording(bytes(160_000))))["segments"]
        assert [segment["id"] for segment in segments] == list(range(len(segments)))
        assert len(segments) > 1
        assert (segments[0]["start"], segments[-1]["end"]) == (0, 10)
        for one, other in pairwise(segments):
            assert one["start"] < one["end"] == other["start"]
        assert set(segments[0]) == {
            *("id", "seek", "start", "end", "text", "tokens", "temperature"),
            *("avg_logprob", "compression_ratio", "no_speech_prob"),
        }

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("timestamp_granularities", ["word"]),
            ("timestamp_granularities[]", ["segment", "word"]),
            ("timestamp_granularities[]", "word"),
        ],
    )
    async def test_words_are_timed_when_asked_for(self, name: str, value: Any) -> None:
        body = await heard(**{name: value})
        assert " ".join(word["word"] for word in body["words"]) == body["text"]
        assert (body["words"][0]["start"], body["words"][-1]["end"]) == (0, 2)

    async def test_text_follows_the_content(self) -> None:
        one, again = await heard(recording(b"a" * 9000)), await heard(recording(b"a" * 9000, "other.mp3"))
        assert one == again
        assert (await heard(recording(b"b" * 9000)))["text"] != one["text"]

    @pytest.mark.parametrize(
        ("filename", "body"),
        [
            ("[[sandbox say=hello_there]].mp3", {}),
            ("[[sandbox say=hello_there]].mp3", {"prompt": "names: Oslo"}),
            ("speech.mp3", {"prompt": "[[sandbox say=hello_there]]"}),
        ],
    )
    async def test_what_is_heard_is_scriptable(self, filename: str, body: dict[str, Any]) -> None:
        assert (await heard(recording(filename=filename), **body))["text"] == "hello there"

    async def test_language_is_as_told(self) -> None:
        assert (await heard(language="nb"))["language"] == "nb"

    @pytest.mark.parametrize(
        ("directive", "usage", "duration"),
        [
            ("usage=none", None, None),
            ("usage=zero", {"type": "duration", "seconds": 0}, 2),
            ("lie=500", {"type": "duration", "seconds": 500}, 2),
        ],
    )
    async def test_usage_is_scriptable(self, directive: str, usage: Any, duration: float | None) -> None:
        body = await heard(prompt=f"[[sandbox {directive}]]")
        assert (body.get("usage"), body.get("duration")) == (usage, duration)

    async def test_length_of_the_text_is_scriptable_and_bounded(self) -> None:
        assert len((await heard(prompt="[[sandbox tokens=10]]"))["text"]) == 40
        assert len((await heard(prompt="[[sandbox tokens=1000000]]"))["text"]) == 4 * 4096
        silent = await heard(prompt="[[sandbox tokens=0]]")
        assert (silent["text"], silent["segments"]) == ("", [])

    @pytest.mark.parametrize("upload", [None, recording(b"")])
    async def test_no_file_is_the_callers_fault(self, upload: Upload | None) -> None:
        assert (await refusal_of(asked(TRANSCRIPTIONS, upload=upload))).status == 400
