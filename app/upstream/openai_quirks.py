"""Parameters that some OpenAI-compatible servers refuse, learned from their refusals and remembered per model.

A refusal is a 400 or 422 that names the parameter, so nothing was done yet and asking again is right. What it
taught is remembered only once the request was taken without that parameter: words of a caller may be echoed in
a refusal, and must not change what is sent for others.
"""

import re
from collections import OrderedDict
from collections.abc import Collection, Mapping

from app import log
from app.endpoints import CHAT, COMPLETIONS, EMBEDDINGS, IMAGES, RERANK, TRANSCRIPTIONS
from app.upstream.provider import Call
from app.upstream.refusal import Refusal

MODELS_MAX = 1024
# By endpoint, in the order in which they are looked for.
QUIRKS: Mapping[str, tuple[str, ...]] = {
    CHAT.name: ("max_tokens", "max_completion_tokens", "stream_options"),
    COMPLETIONS.name: ("stream_options",),
    # What clients want is converted at the edge.
    EMBEDDINGS.name: ("encoding_format",),
    # text-embeddings-inference calls them `texts`.
    RERANK.name: ("documents",),
    # `verbose_json`, which tells the duration; others answer `json` alone.
    TRANSCRIPTIONS.name: ("response_format",),
    # gpt-image-1 gives base64 and takes no word for it.
    IMAGES.name: ("response_format",),
}
ATTEMPTS_MAX = 1 + max(map(len, QUIRKS.values()))
# One of two is always sent: a server that refuses one must take the other.
OTHER_LIMIT: Mapping[str, str] = {
    "max_tokens": "max_completion_tokens",
    "max_completion_tokens": "max_tokens",
}
# What says that a parameter is not taken at all. A limit's value is the caller's: "max_tokens must be at most 8192"
# teaches nothing, and a server that then takes the other name may be one that knows it not, and has no limit.
_NOT_TAKEN = re.compile(
    r"(?i)unsupported|not supported|does(?: not|n't) support|unknown|unrecogni[sz]ed|unexpected|not permitted"
    r"|not allowed|instead"
)
# A parameter's name in the words of a server that wants another.
_WANTED: Mapping[str, str] = {"documents": "texts"}

_log = log.get("upstream")


class Quirks:
    """What one provider refuses, by endpoint and model; of too many models the one longest unused is forgotten."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._refused: OrderedDict[tuple[str, str], frozenset[str]] = OrderedDict()

    def refused(self, call: Call) -> frozenset[str]:
        """The parameters that this call is sent without."""
        key = call.endpoint, call.upstream_model
        if key in self._refused:
            self._refused.move_to_end(key)
        return self._refused.get(key, frozenset())

    def remember(self, call: Call, refused: frozenset[str]) -> None:
        """The call was taken without these parameters."""
        key = call.endpoint, call.upstream_model
        known = self._refused.get(key, frozenset())
        for parameter in sorted(refused - known):
            _log.warning("provider_quirk_learned", provider=self._provider, parameter=parameter)
        # Calls at the same time may each have learned something.
        self._refused[key] = known | refused
        if len(self._refused) > MODELS_MAX:
            self._refused.popitem(last=False)


def refused_parameter(call: Call, refusal: Refusal, *, sent: Collection[str], refused: Collection[str]) -> str | None:
    """The parameter that a refusal is about, if the call may be sent again without it."""
    if not refusal.of_parameter:
        return None
    for parameter in QUIRKS.get(call.endpoint, ()):
        if parameter not in sent or parameter in refused or OTHER_LIMIT.get(parameter) in refused:
            continue
        if parameter in OTHER_LIMIT and refusal.text and not _NOT_TAKEN.search(refusal.text):
            continue
        word = _WANTED.get(parameter, parameter)
        if refusal.named in {word, f"{word}[]"} or (refusal.named is None and _names(refusal.text, word)):
            return parameter
    return None


def _names(text: str, word: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9_]){word}(?![A-Za-z0-9_])", text) is not None
