"""What is sold: each paid endpoint, the capability that a model needs for it, and how its answer comes. Pure."""

from dataclasses import dataclass
from typing import Literal

AnswerKind = Literal["json", "bytes"]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One paid endpoint.

    ``name`` stands in rows and metrics. ``input_tokens`` and ``output_tokens`` say whether it bills tokens;
    what else it bills stands in each request's ``units``. ``answer``: a JSON object (or events, where the
    request streams), or bytes of audio.
    """

    name: str
    capability: str
    input_tokens: bool = False
    output_tokens: bool = False
    answer: AnswerKind = "json"


CHAT = Endpoint("chat.completions", "chat", input_tokens=True, output_tokens=True)
COMPLETIONS = Endpoint("completions", "completions", input_tokens=True, output_tokens=True)
EMBEDDINGS = Endpoint("embeddings", "embeddings", input_tokens=True)
RERANK = Endpoint("rerank", "rerank")
TRANSCRIPTIONS = Endpoint("audio.transcriptions", "transcription")
SPEECH = Endpoint("audio.speech", "speech", answer="bytes")
IMAGES = Endpoint("images.generations", "images")
ENDPOINTS = (CHAT, COMPLETIONS, EMBEDDINGS, RERANK, TRANSCRIPTIONS, SPEECH, IMAGES)
