"""What a call to the sandbox says, at whatever endpoint: its script, its words, and what makes it the same call.

Between the provider (`app.upstream.sandbox`), which paces and fails, and the modules that make answers.
Pure. What is no request at all is refused as a provider would: with 400.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from app.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, RERANK, SPEECH, TRANSCRIPTIONS
from app.upstream.provider import Call, Upload
from app.upstream.sandbox_script import Script, parse, refused
from app.upstream.sandbox_text import message_text

_DIGEST_BYTES = 12
INPUTS_MAX = 2048


@dataclass(frozen=True, slots=True)
class Asked:
    """A call as the sandbox understands it.

    ``text`` is what the directive stood in, without it. ``round``: 1, and one more for each time that tools
    were called since the user spoke.
    """

    script: Script
    text: str
    digest: str
    round: int


def understood(call: Call) -> Asked:
    """Read a call. Raises `UpstreamError`, the caller's fault."""
    body, rounds = call.body, 1
    match call.endpoint:
        case CHAT.name:
            text, identity = last_user_text(body), [body["messages"], body.get("seed")]
            rounds += sum(bool(message.get("tool_calls")) for message in since_user(body))
        case EMBEDDINGS.name:
            text, identity = _first_directive(inputs_of(body)), [call.endpoint, body.get("input")]
        case RERANK.name:
            text, identity = word(body, "query"), [call.endpoint, body.get("query"), body.get("documents")]
        case TRANSCRIPTIONS.name:
            upload = upload_of(call)
            prompt = body.get("prompt")
            text = prompt if isinstance(prompt, str) and "[[sandbox" in prompt else upload.filename
            identity = [call.endpoint, prompt, content_digest(upload)]
        case COMPLETIONS.name:
            text, identity = _first_directive(prompts_of(body)), [call.endpoint, body.get("prompt"), body.get("seed")]
        case SPEECH.name:
            text, identity = word(body, "input"), [call.endpoint, body.get("input"), body.get("voice")]
        case _:
            text, identity = word(body, "prompt"), [call.endpoint, body.get("prompt"), body.get("seed")]
    script, text = parse(text)
    return Asked(script, text, _digest([call.upstream_model, *identity]), rounds)


def word(body: Mapping[str, Any], name: str) -> str:
    """A field that must be a string. Raises `UpstreamError`."""
    value = body.get(name)
    if not isinstance(value, str):
        raise refused(f"{name!r} must be a string")
    return value


def count(body: Mapping[str, Any], name: str, *, default: int, most: int) -> int:
    """A field that is an integer from 1, or left out. Raises `UpstreamError`."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise refused(f"{name!r} must be between 1 and {most}")
    return value


def inputs_of(body: Mapping[str, Any]) -> list[str | list[int]]:
    """The texts and lists of token ids that are to become vectors. Raises `UpstreamError`."""
    given = body.get("input")
    if isinstance(given, str) or (isinstance(given, list) and given and isinstance(given[0], int)):
        given = [given]
    if not isinstance(given, list) or not 1 <= len(given) <= INPUTS_MAX:
        raise refused(f"'input' must be a text, or a list of 1 to {INPUTS_MAX} of them")
    if not all(isinstance(each, str) or _is_token_ids(each) for each in given):
        raise refused("'input' must hold texts or lists of token ids")
    return given


def prompts_of(body: Mapping[str, Any]) -> list[str]:
    """The texts that a completion goes on from. Raises `UpstreamError`."""
    given = body.get("prompt")
    prompts = [given] if isinstance(given, str) else given
    if not isinstance(prompts, list) or not prompts or not all(isinstance(each, str) for each in prompts):
        raise refused("'prompt' must be a text or a list of them: the sandbox knows no token ids")
    return prompts


def upload_of(call: Call) -> Upload:
    """The file of a transcription. Raises `UpstreamError`."""
    if call.upload is None or not call.upload.content:
        raise refused("'file' must be a file that is not empty")
    return call.upload


def content_digest(upload: Upload) -> str:
    """Names a file's content."""
    return blake2b(upload.content, digest_size=_DIGEST_BYTES).hexdigest()


def last_user_text(body: Mapping[str, Any]) -> str:
    """The text of the last user message, where a chat's script is."""
    users = (message for message in reversed(body["messages"]) if message.get("role") == "user")
    return message_text(next(users, {}))


def since_user(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The messages after the last of the user, in their order."""
    later: list[Mapping[str, Any]] = []
    for message in reversed(body["messages"]):
        if message.get("role") == "user":
            break
        later.append(message)
    return later[::-1]


def _is_token_ids(given: Any) -> bool:
    return (
        isinstance(given, list)
        and bool(given)
        and all(isinstance(each, int) and not isinstance(each, bool) and each >= 0 for each in given)
    )


def _first_directive(inputs: Sequence[str | list[int]]) -> str:
    return next((text for text in inputs if isinstance(text, str) and "[[sandbox" in text), "")


def _digest(identity: list[Any]) -> str:
    return blake2b(json.dumps(identity, default=str).encode(), digest_size=_DIGEST_BYTES).hexdigest()
