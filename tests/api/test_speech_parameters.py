"""The parameters of speech: what is billed is the text, to the character."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission import PaidRequest
from app.api import speech_parameters
from app.endpoints import SPEECH
from app.errors import InvalidRequest
from tests.api.paid_models import incoming

PATH = "/v1/audio/speech"


def parse(**parameters: Any) -> PaidRequest:
    body = {"model": "speaks", "input": "Good morning", "voice": "alloy", **parameters}
    return speech_parameters.parse(incoming(PATH, body))


def refused(**parameters: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**parameters)
    assert caught.value.param is not None
    return caught.value


def test_request_is_one_of_speech() -> None:
    request = parse(response_format="wav", speed=1.5, instructions="Slowly.", stream_format="audio", timeout_ms=9)
    assert (request.endpoint, request.path, request.stream) == (SPEECH, PATH, False)
    voiced = {"model": "speaks", "input": "Good morning", "voice": "alloy"}
    assert request.body == {**voiced, "response_format": "wav", "speed": 1.5, "instructions": "Slowly."}


@given(st.text(st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_characters_are_billed_exactly(text: str) -> None:
    request = parse(input=text)
    assert request.units == request.units_expected == {"character": len(text)}


@pytest.mark.parametrize("text", ["", "x" * 21, 1, None, ["a"]])
def test_text_is_within_the_models_bound(text: Any) -> None:
    assert refused(input=text).param == "input"


@pytest.mark.parametrize("name", ["model", "input", "voice"])
def test_what_is_required_is_named(name: str) -> None:
    error = refused(**{name: None})
    assert (error.param, error.code) == (name, "missing_parameter")


@pytest.mark.parametrize("voice", ["alloy", {"id": "voice_1"}])
def test_voice_is_a_name_or_an_id(voice: Any) -> None:
    assert parse(voice=voice).body["voice"] == voice


@pytest.mark.parametrize(
    ("name", "value", "param"),
    [
        ("voice", "", "voice"),
        ("voice", "x" * 201, "voice"),
        ("voice", {}, "voice.id"),
        ("voice", {"id": 1}, "voice.id"),
        ("voice", {"id": "a", "b": 1}, "voice.b"),
        ("response_format", "ogg", "response_format"),
        ("speed", 0.2, "speed"),
        ("speed", 4.1, "speed"),
        ("speed", "1", "speed"),
        ("instructions", "x" * 4097, "instructions"),
        ("instructions", 1, "instructions"),
        ("stream_format", "sse", "stream_format"),
        ("stream", True, "stream"),
        ("n", 2, "n"),
        ("service_tier", "priority", "service_tier"),
        ("model", "m", "model"),
        ("text", "x" * 100_000, "text"),
        ("inputs", "x" * 100_000, "inputs"),
        ("ref_audio", "http://10.0.0.1/a.wav", "ref_audio"),
        ("max_new_tokens", 100_000, "max_new_tokens"),
        ("x" * 500, 1, "x" * 100),
    ],
)
def test_parameter_that_is_wrong_is_named(name: str, value: Any, param: str) -> None:
    assert refused(**{name: value}).param == param
