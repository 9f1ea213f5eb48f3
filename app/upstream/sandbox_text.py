"""The sandbox's words: deterministic prose, JSON values made from a schema, and its own token.

A sandbox token is 4 bytes of UTF-8 text, so anybody can count what an answer must cost.
"""

from collections.abc import Mapping, Sequence
from itertools import islice
from random import Random
from typing import Any

TOKEN_BYTES = 4
QUOTE_CHARACTERS_MAX = 120
SCHEMA_DEPTH_MAX = 12
SCHEMA_NODES_MAX = 1000
ITEMS_MAX = 16

# The shortest word and its space fill one token, which is what bounds how many words `prose` draws.
_WORD_LIST = (
    "account amber answer arrive balance before bridge bright button candle carbon careful carry cedar charge "
    "circle clear closing copper corner counter credit daily distant ember evening every fare fabric field final "
    "follow garden gentle glass gradual harbor hold honest hour island journey keep kettle ladder lantern ledger "
    "level line little marble margin meadow measure meter minute morning narrow north ocean open order paper "
    "passage patient pebble pocket quiet rail receipt record river road route sail season settle signal silver "
    "simple sky slow small spoken station steady stone street summer table ticket tide token tower track trade "
    "travel turn under valley voucher walk water weight whole window winter world yellow"
)
WORDS = tuple(_WORD_LIST.split())


def token_count(text: str) -> int:
    """Tokens of a text: each 4 bytes of UTF-8 begun."""
    return -(-byte_count(text) // TOKEN_BYTES)


def byte_count(text: str) -> int:
    """Bytes of a text, also of one with lone surrogates, which JSON can carry."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a message, whose content is text, parts or nothing."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, Sequence) else ()
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    return "".join(text for text in texts if isinstance(text, str))


def quoted(text: str) -> str:
    """A text as it is echoed: one line of printable ASCII that needs no escapes in JSON, bounded."""
    line = " ".join(text[: 4 * QUOTE_CHARACTERS_MAX].split())[:QUOTE_CHARACTERS_MAX]
    plain = line.encode("ascii", "replace").decode().replace('"', "'").replace("\\", "/")
    return "".join(character if character.isprintable() else "?" for character in plain)


def prose(opening: str, *, tokens: int, seed: str) -> str:
    """Exactly ``tokens`` tokens of text: the opening, words drawn by the seed, a full stop."""
    if tokens == 0:
        return ""
    size = tokens * TOKEN_BYTES
    words = _random(seed).choices(WORDS, k=tokens)
    return f"{opening} {' '.join(words)}"[: size - 1] + "."


def example_value(schema: Mapping[str, Any], *, seed: str) -> Any:
    """A value of a JSON schema (its everyday part), always the same for the same seed.

    Depth and size are bounded: past the bounds a value is null.
    """
    return _Example(schema, _random(seed)).value(schema, 0)


def _random(seed: str) -> Random:
    return Random(seed.encode("utf-8", "surrogatepass"))


class _Example:
    def __init__(self, root: Mapping[str, Any], random: Random) -> None:
        self._root = root
        self._random = random
        self._nodes_left = SCHEMA_NODES_MAX

    def value(self, schema: Any, depth: int) -> Any:
        self._nodes_left -= 1
        if not isinstance(schema, Mapping) or depth > SCHEMA_DEPTH_MAX or self._nodes_left < 0:
            return None
        if "const" in schema:
            return schema["const"]
        if isinstance(schema.get("enum"), list) and schema["enum"]:
            return self._random.choice(schema["enum"])
        if "$ref" in schema:
            return self.value(self._resolved(schema["$ref"]), depth + 1)
        for union in ("anyOf", "oneOf", "allOf"):
            if isinstance(schema.get(union), list) and schema[union]:
                return self.value(schema[union][0], depth + 1)
        return self._typed(schema, depth)

    def _typed(self, schema: Mapping[str, Any], depth: int) -> Any:
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = kind[0] if kind else "null"
        match kind:
            case "object":
                properties = schema.get("properties")
                pairs = properties.items() if isinstance(properties, Mapping) else ()
                return {name: self.value(part, depth + 1) for name, part in islice(pairs, max(self._nodes_left, 0))}
            case "array":
                least = schema.get("minItems", 1)
                count = min(max(least, 1), ITEMS_MAX) if isinstance(least, int) else 1
                return [self.value(schema.get("items", {}), depth + 1) for _ in range(count)]
            case "integer" | "number":
                return self._number(schema)
            case "boolean":
                return self._random.random() < 0.5
            case "string":
                return self._random.choice(WORDS)
        return None

    def _number(self, schema: Mapping[str, Any]) -> Any:
        least, most = schema.get("minimum"), schema.get("maximum")
        if least is not None or most is not None:
            return least if least is not None else most
        return self._random.randint(1, 99)

    def _resolved(self, reference: Any) -> Any:
        """The part of the schema that a local reference (RFC 6901 in a fragment) points at."""
        if not isinstance(reference, str) or not reference.startswith("#"):
            return None
        part: Any = self._root
        for name in reference.removeprefix("#").split("/")[1 : SCHEMA_DEPTH_MAX + 1]:
            part = part.get(name.replace("~1", "/").replace("~0", "~")) if isinstance(part, Mapping) else None
        return part
