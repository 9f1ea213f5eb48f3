"""Strangers' text made fit for a conversation: plain, visible, bounded, and unable to pass for ours. Pure.

What a page says is never believed; here it only loses the means to hide or to forge: markup, invisible
and direction-changing characters, the delimiters of `app.search.wording`, and the control words of chat
templates, which some servers would read as the turn of another speaker.
"""

import re
import unicodedata
from collections.abc import Iterable
from html import unescape
from typing import Any

from yarl import URL

from app.search.backend import SearchResult
from app.search.options import SearchOptions

TITLE_BYTES_MAX = 200
URL_BYTES_MAX = 500
# Looked at of one text: markup is longer than what it says, but nobody's page keeps the process busy.
RAW_FACTOR = 8
RAW_CHARACTERS_MAX = 32_768
RESULTS_LOOKED_AT_MAX = 100
# An entity inside an entity: after so many layers, what is left of them is taken out.
LAYERS_MAX = 3
_HIDDEN_ELEMENT = re.compile(r"(?is)<(script|style|template|noscript)\b[^<>]*>.*?(?:</\1\s*>|\Z)")
_TAG = re.compile(r"(?s)<!--.*?(?:-->|\Z)|</?[A-Za-z!?][^<>]*>|</?(?:[A-Za-z!?][^<>]*)?\Z")
_ENTITY = re.compile(r"&#?\w+;?")
# Brackets that look like ours, three or more: ours have three.
_OPENING = re.compile("[<\u02c2\u2039\u00ab\u226a\u27e8\u27ea\u2329\u3008\u300a\ufe64\uff1c]{3,}")
_CLOSING = re.compile("[>\u02c3\u203a\u00bb\u226b\u27e9\u27eb\u232a\u3009\u300b\ufe65\uff1e]{3,}")
# "<|im_start|>", the same with full-width bars, and "[INST]".
_TURN = re.compile("<(?=[|\uff5c])|(?<=[|\uff5c])>")
_INSTRUCTION = re.compile(r"(?i)\[(/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS))\]")
_DATE = re.compile(r"(\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01]))(?!\d)")
_WHITE = re.compile(r"\s+")
# Encoded in every address that is one.
_UNFIT = re.compile(r"[\s<>]")
# Letters and marks that show nothing.
_INVISIBLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2800\u3164\ufe00-\ufe0f\uffa0\ufffc\U000e0000-\U000e0fff]"
)
_DROPPED = frozenset({"Cf", "Cs", "Co", "Cn"})
_SPACED = frozenset({"Cc", "Zl", "Zp"})


def sanitised(raw: Iterable[tuple[Any, Any, Any, Any]], options: SearchOptions) -> list[SearchResult]:
    """Results from what a backend gave: title, URL, text and date of each, whatever their types.

    A page without a usable URL is left out, and so is a second one with the same.
    """
    kept: dict[str, SearchResult] = {}
    for position, (title, url, text, published) in enumerate(raw):
        if position >= RESULTS_LOOKED_AT_MAX or len(kept) >= options.results:
            break
        address = plain_url(url)
        if address is None or same_page(address) in kept:
            continue
        body = plain_text(text, bytes_max=options.result_bytes_max)
        heading = plain_text(title, bytes_max=TITLE_BYTES_MAX) or (URL(address).host or "")[:TITLE_BYTES_MAX]
        kept[same_page(address)] = SearchResult(heading, address, body, plain_date(published))
    return list(kept.values())


def plain_text(text: Any, *, bytes_max: int) -> str:
    """One line of visible text, at most so many bytes of UTF-8, cut between characters."""
    if not isinstance(text, str):
        return ""
    text = _without_markup(text[: min(bytes_max * RAW_FACTOR, RAW_CHARACTERS_MAX)])
    text = _WHITE.sub(" ", text).strip()
    return cut(text, bytes_max=bytes_max).rstrip()


def plain_url(url: Any) -> str | None:
    """A web address in ASCII without its fragment, or None: anything that is no such address, or holds a login."""
    if not isinstance(url, str) or len(url) > URL_BYTES_MAX or not url.strip().isprintable():
        return None
    try:
        parsed = URL(url.strip()).with_fragment(None)
        usable = parsed.scheme in {"http", "https"} and bool(parsed.host) and parsed.raw_user is None
        text = str(parsed)
    except (ValueError, UnicodeError):
        return None
    if not usable or parsed.raw_password is not None or len(text) > URL_BYTES_MAX:
        return None
    return text if text.isascii() and not _UNFIT.search(text) else None


def same_page(url: str) -> str:
    """What two addresses of one page have in common."""
    return url.partition("://")[2].removeprefix("www.").rstrip("/")


def plain_date(text: Any) -> str | None:
    """The day of an ISO 8601 date or time."""
    found = _DATE.match(text) if isinstance(text, str) else None
    return found[1] if found else None


def cut(text: str, *, bytes_max: int) -> str:
    """The beginning of a text, at most so many bytes of UTF-8."""
    content = text.encode("utf-8", "replace")
    return text if len(content) <= bytes_max else content[:bytes_max].decode("utf-8", "ignore")


def visible(text: str) -> str:
    """The text without characters that nobody sees; controls and line separators become spaces."""
    if text.isascii() and text.isprintable():
        return text
    return _INVISIBLE.sub("", "".join(map(_shown, text)))


def _shown(character: str) -> str:
    kind = unicodedata.category(character)
    if kind in _SPACED:
        return " "
    return "" if kind in _DROPPED else character


def _without_markup(text: str) -> str:
    """Until nothing changes: what is taken out may leave behind what it had split."""
    for _ in range(LAYERS_MAX):
        before = text
        text = _TAG.sub(" ", _HIDDEN_ELEMENT.sub(" ", visible(unescape(text))))
        text = _INSTRUCTION.sub(r"(\1)", _TURN.sub(" ", _CLOSING.sub(">>", _OPENING.sub("<<", text))))
        if text == before:
            return text
    return re.sub("[<>&\uff5c|]", " ", _ENTITY.sub(" ", _INSTRUCTION.sub(r"(\1)", visible(text))))
