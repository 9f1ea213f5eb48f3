"""``POST /ai/generate``: text from one prompt, by a model's chat, or by its completions where it has no chat."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from app.admission import PaidRequest
from app.api import chat_parameters, completion_parameters
from app.api.incoming import Incoming
from app.api.parameters import refuse, unsupported
from app.api.simple import (
    DeltaShape,
    Read,
    answer_id,
    ending,
    first_choice,
    json_answer,
    member,
    refuse_choices,
    streams_when_asked,
    usage_of,
)
from app.endpoints import CHAT, COMPLETIONS
from app.routing.candidates import Catalog
from app.shapes import Told

PROMPT = "prompt"
# What an answer of text alone has no place for.
NOT_TEXT = ("messages", "tools", "tool_choice", "functions", "function_call", "modalities", "audio")
# What may stand beside the text: what the model thought, in both dialects' names, and its sources.
BESIDE = ("reasoning_content", "reasoning", "annotations")


def parse(incoming: Incoming) -> PaidRequest:
    """A validated request. Raises `InvalidRequest` naming the parameter, and `NotFound`."""
    body = incoming.object()
    refuse_choices(body)
    for name in NOT_TEXT:
        if body.get(name) is not None:
            raise unsupported(name, "this is text from one prompt; use /ai/chat")
    prompt = body.get(PROMPT)
    if not isinstance(prompt, str):
        raise refuse(PROMPT, "must be a string")
    streams_when_asked(body)
    if _completes_alone(incoming.catalog, body.get("model")):
        request = completion_parameters.parse(Read.of(incoming, body))
    else:
        others = {name: value for name, value in body.items() if name != PROMPT}
        body = {**others, "messages": [{"role": "user", "content": prompt}]}
        request = chat_parameters.parse_body(body, incoming)
    return replace(request, shape=GENERATE)


def _completes_alone(catalog: Catalog, model: Any) -> bool:
    """Whether the model completes text and does not chat. Raises `NotFound`."""
    if not isinstance(model, str) or not model:
        # The parser says what is missing.
        return False
    abilities = {each for candidate in catalog.find(model) for each in candidate.model.capabilities}
    return COMPLETIONS.capability in abilities and CHAT.capability not in abilities


class SimpleGenerate(DeltaShape):
    """``{"id": "gen_...", "text", "usage"}``; an event is ``{"delta": {"text"}}``."""

    def whole(self, body: dict[str, Any], told: Told) -> tuple[str, bytes]:
        """The media type and the bytes of a whole answer."""
        choice = first_choice(body)
        said = {
            "id": answer_id("gen", told.request_id),
            "text": "",
            "usage": usage_of(told),
            "model": told.model,
            "finish_reason": None,
        }
        return json_answer(said | _text(choice, member(choice, "message")) | ending(choice), told)

    def delta(self, choice: Mapping[str, Any]) -> dict[str, Any]:
        """The text that one chunk adds, and what stands beside it."""
        return _text(choice, member(choice, "delta"))


def _text(choice: Mapping[str, Any], message: Mapping[str, Any]) -> dict[str, Any]:
    """A chat's text is its content, or the refusal in its place; a completion's stands in the choice itself."""
    texts = (message.get("content"), message.get("refusal"), choice.get("text"))
    said = {"text": next((text for text in texts if isinstance(text, str) and text), None)}
    said |= {name: message.get(name) for name in BESIDE}
    return {name: value for name, value in said.items() if value}


GENERATE = SimpleGenerate()
