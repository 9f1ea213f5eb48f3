"""The parameters of a transcription: a form whose seconds are bounded before anybody has heard them."""

from typing import Any

import pytest

from app.admission import PaidRequest
from app.api import transcription_parameters
from app.api.incoming import Incoming
from app.api.shapes import TranscriptionShape
from app.endpoints import TRANSCRIPTIONS
from app.errors import InvalidRequest, PayloadTooLarge
from app.settings import InferenceSettings, Settings
from tests.api.audio_files import flac, mp3, mp4, ogg, wav, webm
from tests.api.forms import CONTENT_TYPE, Part, form, part
from tests.api.paid_models import CATALOG, SETTINGS

PATH = "/v1/audio/transcriptions"
WAV = wav(2.5)


def parse(
    *parts: Part,
    audio: bytes = WAV,
    filename: str = "speech.wav",
    kind: str | None = None,
    settings: Settings = SETTINGS,
) -> PaidRequest:
    """A form with these parts beside the file; a model is named where they name none."""
    named = any('name="model"' in head for head, _ in parts)
    model = () if named else (part("model", "transcribes"),)
    content = form(*model, *parts, part("file", audio, filename=filename, kind=kind))
    return transcription_parameters.parse(Incoming(PATH, content, CONTENT_TYPE, settings, CATALOG))


def refused(*parts: Part, **changes: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(*parts, **changes)
    assert caught.value.param is not None
    return caught.value


def test_request_is_one_of_transcriptions() -> None:
    request = parse(
        part("language", "en"),
        part("prompt", "Farebox"),
        part("temperature", "0.5"),
        part("response_format", "json"),
        part("stream", "false"),
        part("timeout_ms", "500"),
        filename="C:/Private/Secret plans.WAV",
    )
    assert (request.endpoint, request.path, request.stream) == (TRANSCRIPTIONS, PATH, False)
    said = {"language": "en", "prompt": "Farebox", "temperature": 0.5, "response_format": "json"}
    assert request.body == {"model": "transcribes", **said}
    assert request.first_byte_timeout_s == 0.5
    assert request.upload is not None
    # The client's own name for it is nobody's business.
    assert (request.upload.filename, request.upload.content_type) == ("audio.wav", "audio/wav")
    assert request.upload.content == WAV


@pytest.mark.parametrize(
    ("wanted", "asked"),
    [
        (None, "json"),
        ("json", "json"),
        ("text", "verbose_json"),
        ("srt", "verbose_json"),
        ("vtt", "verbose_json"),
        ("verbose_json", "verbose_json"),
    ],
)
def test_what_tells_the_duration_is_asked_for(wanted: str | None, asked: str) -> None:
    request = parse(*([part("response_format", wanted)] if wanted else []))
    assert request.body["response_format"] == asked
    assert request.shape == TranscriptionShape(format=wanted or "json")


@pytest.mark.parametrize(
    ("audio", "filename", "most", "expected"),
    [
        (WAV, "a.wav", 3, 3),
        (wav(600), "a.wav", 600, 600),
        (mp3(100), "a.mp3", 3, 3),
        (mp3(100), "a.mpga", 3, 3),
        (flac(16_000 * 30), "a.flac", 30, 30),
        (ogg(48_000 * 30), "a.opus", 30, 30),
        (mp4(30_000), "a.m4a", 30, 30),
        (webm(30), "a.webm", 30, 30),
        # Half a megabyte that says nothing, or a second: as much as it may hold, within what the model takes.
        (webm(None, more=bytes(400_000)), "a.webm", 534, 101),
        (webm(None, more=bytes(900_000)), "a.webm", 600, 226),
        # A second is said of what is seven at the least.
        (ogg(48_000, more=bytes(400_000)), "a.ogg", 534, 7),
        (webm(None, more=bytes(9_000_000)), "a.webm", 600, 600),
    ],
)
def test_seconds_are_bounded_by_the_bytes_and_the_model(audio: bytes, filename: str, most: int, expected: int) -> None:
    request = parse(audio=audio, filename=filename)
    assert request.units == {"second": most}
    assert request.units_expected == {"second": expected}


def test_audio_that_is_too_long_for_the_model_is_refused() -> None:
    for audio, filename in ((wav(601, rate=8000), "a.wav"), (flac(16_000 * 601), "a.flac")):
        error = refused(audio=audio, filename=filename)
        assert error.param == "file"
        assert "601" in error.message


def test_form_that_is_too_large_is_refused() -> None:
    small = Settings(inference=InferenceSettings(upload_bytes_max=len(WAV)))
    error = refused(settings=small)
    assert isinstance(error, PayloadTooLarge)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"filename": "a.txt"}, "end in"),
        ({"filename": "wav"}, "end in"),
        ({"filename": "a.wav/"}, None),
        ({"filename": "a.wav.exe"}, "end in"),
        ({"audio": b"<html>", "filename": "a.wav"}, "no audio"),
        ({"audio": WAV, "filename": "a.mp3"}, "holds wav"),
        ({"kind": "text/html"}, "Content-Type"),
        ({"audio": b""}, "empty"),
    ],
)
def test_file_that_is_no_audio_is_refused(changes: dict[str, Any], word: str | None) -> None:
    if word is None:
        assert parse(**changes).upload is not None
        return
    error = refused(**changes)
    assert error.param == "file"
    assert word in error.message


@pytest.mark.parametrize("kind", ["audio/wav", "audio/x-wav", "video/mp4", "application/octet-stream", None])
def test_claimed_type_may_be_any_of_audio(kind: str | None) -> None:
    assert parse(kind=kind).upload is not None


@pytest.mark.parametrize("name", ["timestamp_granularities[]", "timestamp_granularities"])
def test_granularities_belong_to_the_long_form(name: str) -> None:
    verbose = part("response_format", "verbose_json")
    request = parse(verbose, part(name, "word"), part(name, "segment"))
    assert request.body["timestamp_granularities[]"] == ["word", "segment"]
    assert refused(part(name, "word")).param == "timestamp_granularities[]"
    assert refused(verbose, part(name, "line")).param == "timestamp_granularities[]"
    assert refused(verbose, part(name, "word"), part(name, "word")).param == "timestamp_granularities[]"


@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        ("model", "", "model"),
        ("model", "m", "model"),
        ("language", "english please", "language"),
        ("language", "e", "language"),
        ("prompt", "x" * 32_001, "prompt"),
        ("response_format", "diarized_json", "response_format"),
        ("temperature", "1.5", "temperature"),
        ("temperature", "nan", "temperature"),
        ("temperature", "1e0", "temperature"),
        ("temperature", "٣", "temperature"),
        ("stream", "true", "stream"),
        ("stream", "maybe", "stream"),
        ("include[]", "logprobs", "include[]"),
        ("include", "logprobs", "include[]"),
        ("chunking_strategy", '{"type": "server_vad"}', "chunking_strategy"),
        ("known_speaker_names[]", "Anna", "known_speaker_names[]"),
        ("n", "2", "n"),
        ("models", "a", "models"),
        ("provider", "openai", "provider"),
        ("timeout_ms", "0", "timeout_ms"),
        ("api_base", "http://10.0.0.1", "api_base"),
        ("url", "http://10.0.0.1/two-hours.mp3", "url"),
        ("file_url", "http://10.0.0.1", "file_url"),
        ("audio_url", "http://10.0.0.1", "audio_url"),
        ("vad_filter", "true", "vad_filter"),
        ("timestamp_granularities[0]", "word", "timestamp_granularities[0]"),
        ("x" * 500, "1", "x" * 100),
    ],
)
def test_parameter_that_is_wrong_is_named(name: str, value: str, param: str) -> None:
    assert refused(part(name, value)).param == param


def test_field_stands_once() -> None:
    assert refused(part("language", "en"), part("language", "de")).param == "language"


@pytest.mark.parametrize("name", ["language", "prompt", "response_format", "temperature", "stream", "metadata"])
def test_empty_field_is_the_same_as_left_out(name: str) -> None:
    assert parse(part(name, "")).body == parse().body


def test_body_that_is_no_form_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        transcription_parameters.parse(Incoming(PATH, b"{}", "application/json", SETTINGS, CATALOG))
    assert caught.value.status == 415
