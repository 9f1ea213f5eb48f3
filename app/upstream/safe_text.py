"""A provider's words as a client may read them: no secret, no address, nothing of the operator's account. Pure."""

import re

MESSAGE_CHARACTERS_MAX = 400
NO_REASON = "the provider gave no reason"
NOT_SHOWN = "the provider refused the request"
_REMOVED = "[removed]"

_HEX = "[0-9A-Fa-f]{1,4}"
# Longest first: a URL holds hosts, an e-mail address a domain.
_ADDRESS = re.compile(
    r"\b[a-z][a-z0-9+.-]{1,20}://\S+"
    r"|[\w.+%-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){0,8}"
    r"|(?<![\d.])\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?(?!\.?\d)"
    # IPv6, whole or with its "::", perhaps in brackets, with a zone, or with IPv4 at its end.
    rf"|(?<![\w:])(?:(?:{_HEX}:){{7}}{_HEX}|(?:{_HEX}(?::{_HEX}){{0,6}})?::(?:{_HEX}(?::{_HEX}){{0,6}})?)"
    r"(?:\.\d{1,3}){0,3}(?:%\w+)?(?:\]:\d+)?(?![\w:])"
    r"|\blocalhost(?::\d+)?\b"
    r"|\b(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,8}"
    r"(?:com|org|net|io|ai|dev|app|cloud|internal|local|lan|corp|home|svc|example|test|invalid|eu|de|cn|uk)(?::\d+)?\b"
    r"|(?<!\w)/(?:home|root|usr|opt|var|tmp|mnt|data|srv|app|workspace|models?|etc)/\S*",
    re.IGNORECASE,
)
_SECRET = re.compile(
    r"(?i)\b(?:bearer|basic)\s+\S+"
    r"|\b(?:sk|pk|rk|key|org|proj|acct|req|gsk|xai|hf|ghp|nvapi|wrkspc)[-_][A-Za-z0-9*_.-]{6,}"
    r"|\b(?:acc|team|user|usr|ws|ten|sub)[-_](?=[A-Za-z_.-]*\d)[A-Za-z0-9*_.-]{4,}"
    r"|\b(?:AIza|AKIA|ASIA)[A-Za-z0-9_-]{8,}"
    r"|[A-Za-z0-9+/_-]{32,}={0,2}"
    r"|\b[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}\b"
)
# A name that stands behind what it names, in quotes or plainly no word: project "acme prod", organization acme-1.
_NAMED = re.compile(
    r"(?i)\b(organi[sz]ation|project|workspace|deployment|tenant|subscription|account|team|region|cluster|namespace|"
    r"bucket|node|pod|host(?:name)?|server)((?:\s+(?:id|name|number))?(?:\s*[:=#]\s*|\s+))"
    r"([\"'`][^\"'`]{1,100}[\"'`]|(?=\w*\d|\w+[._-]\w)\w(?:[\w.-]*\w)?)"
)
_MONEY = re.compile(r"[-+]?[$\u20ac\u00a3]\s?-?\d[\d.,]*|[-+]?\d[\d.,]*\s?(?:USD|EUR|GBP|CNY|credits?)\b")
# Where one of these words stands, the rest of the message is about the account too.
_ACCOUNT = re.compile(
    r"(?i)\b(?:billing|quotas?|credit balance|insufficient (?:funds|balance|credits?)|api[ _-]?keys?|"
    r"(?:your|this|the|operator'?s?) (?:account|plan|subscription|organi[sz]ation|tier|balance)|payment method|"
    r"out of credits?|more credits|invoices?|unpaid|deactivated|suspended|spend(?:ing)? limit|rate limit reached)\b"
)


def safe_message(text: object) -> str:
    """A provider's words without URLs, addresses, names of the operator's, and anything that looks like a secret.

    Bounded, one line. Words on the operator's account are not shown at all.
    """
    if not isinstance(text, str):
        return NO_REASON
    plain = "".join(character if character.isprintable() else " " for character in text[: 4 * MESSAGE_CHARACTERS_MAX])
    if _ACCOUNT.search(plain):
        return NOT_SHOWN
    for pattern in (_ADDRESS, _SECRET, _MONEY):
        plain = pattern.sub(_REMOVED, plain)
    return _NAMED.sub(rf"\1\2{_REMOVED}", plain).strip()[:MESSAGE_CHARACTERS_MAX]
