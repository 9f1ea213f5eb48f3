"""The parameters of speech: a text, a voice, and audio out. What is billed is known before it is sent.

So only what is known goes upstream: some servers read the text from members of other names.
"""

from collections.abc import Mapping
from typing import Any

from app.admission import PaidRequest
from app.api.incoming import Incoming
from app.api.parameters import (
    NAME_CHARACTERS_SHOWN,
    REFUSED,
    SINGLE,
    STRING,
    Check,
    capable,
    check_all,
    missing,
    named_model,
    number,
    one_of,
    refuse,
    text,
    unsupported,
)
from app.api.routing_parameters import ROUTING, first_byte_timeout_s, wishes
from app.endpoints import SPEECH
from app.pricing.quote import PromptSize
from app.units import CHARACTER

VOICE_CHARACTERS_MAX = 200
INSTRUCTIONS_CHARACTERS_MAX = 4096
FORMATS = ("mp3", "opus", "aac", "flac", "wav", "pcm")


def _voice(name: str, value: Any) -> None:
    """A name, or (a voice of the caller's own at the provider) an object with its ``id``."""
    if isinstance(value, dict):
        for member in value:
            if member != "id":
                raise unsupported(f"{name}.{member[:NAME_CHARACTERS_SHOWN]}")
        name, value = f"{name}.id", value.get("id")
    text(VOICE_CHARACTERS_MAX)(name, value)


def _instructions(name: str, value: Any) -> None:
    if not isinstance(value, str) or len(value) > INSTRUCTIONS_CHARACTERS_MAX:
        raise refuse(name, f"must be a string of up to {INSTRUCTIONS_CHARACTERS_MAX} characters")


def _stream_format(name: str, value: Any) -> None:
    if value != "audio":
        raise unsupported(name, "the answer is audio, sent as it is made; only 'audio' can be used here")


CHECKS: Mapping[str, Check] = {
    **ROUTING,
    "model": STRING,
    "input": STRING,
    "voice": _voice,
    "response_format": one_of(*FORMATS),
    "speed": number(0.25, 4),
    "instructions": _instructions,
    "stream_format": _stream_format,
    "user": STRING,
}
NOT_OFFERED = {**REFUSED, **SINGLE}
OURS = (*ROUTING, *NOT_OFFERED, "stream_format")


def parse(incoming: Incoming) -> PaidRequest:
    """A validated request. Raises `InvalidRequest` naming the parameter, and `NotFound`."""
    body = incoming.object()
    check_all(body, CHECKS, NOT_OFFERED, only_known=True)
    model = named_model(body)
    for name in ("input", "voice"):
        if name not in body:
            raise missing(name, "say what to speak" if name == "input" else "say with which voice")
    most = max(candidate.model.max_characters for candidate in capable(incoming, model, SPEECH))
    text(most)("input", body["input"])
    units = {CHARACTER: len(body["input"])}
    return PaidRequest(
        endpoint=SPEECH,
        path=incoming.path,
        model=model,
        body={name: value for name, value in body.items() if name not in OURS},
        content=incoming.content,
        stream=False,
        size=PromptSize(0, 0),
        output_limit_param="input",
        wishes=wishes(body),
        first_byte_timeout_s=first_byte_timeout_s(body),
        idempotency_key=incoming.idempotency_key,
        units=units,
        units_expected=units,
    )
