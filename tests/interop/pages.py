"""The reference pages' examples as data, the models that they name, and how an answer is compared with a page's.

An answer must have every member of the page's, of the same type; ids, numbers and texts may differ, and there may be
more. What else is compared, an example says under ``compare``, by paths such as ``choices[].message.role``:

``same``      the value itself
``includes``  a list that has at least the page's entries
``by``        a list whose entries are found by this member, not by their place
``begins``    a text that begins so
``closed``    an object with no other members than the page's
``optional``  members that need not be there
``numbers``   numbers of any kind, where the page shows an integer
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.serving import model

FOLDER = Path(__file__).parent.parent / "examples"
DONE = "[DONE]"
PAYERS = ("api_key", "wallet")
DEAR = {"input": "1.00", "output": "4.00"}
CHEAP = {"input": "0.25", "output": "0.40"}


@dataclass(frozen=True)
class Example:
    """One example of one page, for one payer."""

    page: str
    server: str
    payer: str
    data: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What the test is called."""
        return f"{self.page}: {self.data['name']} ({self.payer})"

    @property
    def request(self) -> Mapping[str, Any]:
        """``method``, ``path``, ``headers`` and ``body`` as the page has them, and what is ``added`` to the body."""
        found: Mapping[str, Any] = self.data["request"]
        return found

    @property
    def response(self) -> Mapping[str, Any]:
        """The page's answer."""
        found: Mapping[str, Any] = self.data["response"]
        return found

    def differences(self, ours: Any, page: Any) -> list[str]:
        """How our answer differs from the page's."""
        return list(_differences(page, ours, rules=self.data.get("compare", {}), at=""))


def examples() -> list[Example]:
    """All of them, each for every payer that it is for."""
    found = []
    for file in sorted(FOLDER.glob("*.json")):
        page = json.loads(file.read_text())
        for data in page["examples"]:
            free = data["request"]["method"] == "GET"
            payers = data.get("payers", PAYERS[:1] if free else PAYERS)
            found += [Example(file.stem, page["server"], payer, data) for payer in payers]
    return found


def _differences(page: Any, ours: Any, *, rules: Mapping[str, Any], at: str) -> Iterator[str]:
    if at in rules.get("same", ()):
        if page != ours:
            yield f"{at} is {ours!r} and not {page!r}"
    elif isinstance(page, dict):
        yield from _members(page, ours, rules=rules, at=at)
    elif isinstance(page, list):
        yield from _entries(page, ours, rules=rules, at=at)
    elif at in rules.get("begins", {}):
        if not isinstance(ours, str) or not ours.startswith(rules["begins"][at]):
            yield f"{at} is {ours!r} and does not begin with {rules['begins'][at]!r}"
    elif at in rules.get("numbers", ()) or type(page) is float:
        if type(ours) not in (int, float):
            yield f"{at} is {ours!r}, no number"
    elif type(ours) is not type(page):
        yield f"{at} is {ours!r}, of another type than {page!r}"


def _members(page: Mapping[str, Any], ours: Any, *, rules: Mapping[str, Any], at: str) -> Iterator[str]:
    if not isinstance(ours, dict):
        yield f"{at} is {ours!r}, no object"
        return
    # An empty object of a page is one that says nothing.
    if (not page or at in rules.get("closed", ())) and set(ours) - set(page):
        yield f"{at} has {sorted(set(ours) - set(page))} too"
    for name, value in page.items():
        where = f"{at}.{name}" if at else name
        if name in ours:
            yield from _differences(value, ours[name], rules=rules, at=where)
        elif where not in rules.get("optional", ()):
            yield f"{where} is missing"


def _entries(page: Sequence[Any], ours: Any, *, rules: Mapping[str, Any], at: str) -> Iterator[str]:
    if not isinstance(ours, list) or (page and not ours):
        yield f"{at} is {ours!r}, no list with entries"
    elif at in rules.get("includes", ()):
        yield from (f"{at} is without {each!r}" for each in page if each not in ours)
    elif name := rules.get("by", {}).get(at):
        found = {each[name]: each for each in ours}
        for each in page:
            if each[name] in found:
                yield from _differences(each, found[each[name]], rules=rules, at=f"{at}[]")
            else:
                yield f"{at} has no {each[name]!r}"
    elif page:
        for place, each in enumerate(ours):
            yield from _differences(page[min(place, len(page) - 1)], each, rules=rules, at=f"{at}[]")


def stream_differences(example: Example, ours: Sequence[Any]) -> list[str]:
    """How a stream differs from the page's. Each event is like the page's at the place that was reached, which may
    come several times (texts come in more parts than a page shows), or like the next one.
    """
    page: Sequence[Any] = example.response["events"]
    place = -1
    for event in ours:
        following = example.differences(event, page[place + 1]) if place + 1 < len(page) else ["the stream goes on"]
        if event != DONE and following and place >= 0 and not example.differences(event, page[place]):
            continue
        if following:
            return [f"event {event!r} after {place + 1} of {len(page)}: {each}" for each in following]
        place += 1
    return [] if place == len(page) - 1 else [f"the stream ended after {place + 1} of {len(page)}"]


def _served(name: str, **changes: Any) -> dict[str, Any]:
    return model(name, **{"price": DEAR, "cost": {}, **changes})


def _without_limits(name: str, capability: str, **changes: Any) -> dict[str, Any]:
    """A model of another kind than chat."""
    entry = model(name, **{"capabilities": [capability], "cost": {}, **changes})
    return {key: value for key, value in entry.items() if key not in {"context_window", "max_output_tokens"}}


SEES = {"capabilities": ["chat", "vision"], "max_output_tokens": 64_000}
CALLS = {"capabilities": ["chat", "vision", "tools"], "max_output_tokens": 64_000}
SIZES = {"1024x1024": "0.02", "1792x1024": "0.035", "1024x1792": "0.035"}
MODELS = [
    _served(
        "kimi-k2.7-code:1t",
        owned_by="tempicolabs",
        context_window=262_144,
        max_output_tokens=65_536,
        price={**DEAR, "per_web_search": "0.01"},
        web_search=True,
    ),
    _without_limits("embeddinggemma:300m", "embeddings", owned_by="tempicolabs", price={"input": "0.02"})
    | {"context_window": 2048},
    _served("qwen/qwen3.5-9b", max_output_tokens=8192),
    _served("gemini-2.5-flash", owned_by="google", context_window=1_000_000, **SEES),
    _served("gemini-3-pro-preview", owned_by="google", context_window=2_000_000, **CALLS),
    _served("gpt-5", owned_by="openai", context_window=256_000, **CALLS),
    _served("claude-sonnet-4-5", owned_by="anthropic", context_window=200_000, **CALLS),
    _without_limits("text-embedding-3-small", "embeddings", price={"input": "0.02"}),
    _served(
        "gpt-oss:120b",
        owned_by="CloudTemple",
        created=1_749_110_897,
        aliases=["gpt-oss"],
        capabilities=["chat", "completions"],
        context_window=60_000,
        max_output_tokens=8192,
    ),
    _without_limits("bge-reranker", "rerank", price={"per_search_unit": "0.002"}),
    _without_limits("whisper-large-v3", "transcription", price={"per_second": "0.0001"}),
    _without_limits("tts-1", "speech", price={"per_character": "0.000015"}),
    _served(
        "meta-llama/Meta-Llama-3-70B-Instruct",
        capabilities=["chat", "completions", "tools"],
        context_window=128_000,
        max_output_tokens=8192,
    ),
    _without_limits("stabilityai/stable-diffusion-xl-base-1.0", "images", price={"per_image": SIZES}),
    _without_limits("intfloat/e5-large-v2", "embeddings", price={"input": "0.02"}),
]
_FAST = {"adapter": "sandbox", "tokens_per_second": 1e9, "first_token_ms": 0}
PROVIDERS: Sequence[Mapping[str, Any]] = (
    {"name": "ma02", "engine_type": "engo", "machine_name": "ma02", "models": MODELS, **_FAST},
    {
        "name": "elsewhere",
        "kind": "external",
        "models": [_served("qwen/qwen3.5-9b", max_output_tokens=8192, price=CHEAP)],
        **_FAST,
    },
)
# What a page's default is, where pages disagree.
INFERENCE: Mapping[str, Mapping[str, Any]] = {
    "plain": {"default_embedding_model": "intfloat/e5-large-v2"},
    "streaming": {"stream_default": True, "usage_in_final_chunk": True},
}
