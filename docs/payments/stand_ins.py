"""Readable names for what differs from run to run, the same name wherever the same value is shown.

Amounts, addresses, statuses and field names are never touched: they are the server's own.
"""

import base64
import json
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

NOW = "2027-01-15T12:00:00Z"
EXPIRY = "2027-01-15T12:05:00Z"
NOW_S = 1_800_014_400
_TIMES = {"timestamp": NOW, "createdAt": NOW, "at": NOW, "expires": EXPIRY, "created": NOW_S}
_CHANNEL_KEYS = frozenset({"channelId", "reference"})
_WHOLE = {
    "transaction": "<signed transaction>",
    "salt": "<salt>",
    "expiringNonceHash": "<expiring nonce hash>",
    "nonce": "<nonce>",
    "request": "<base64url, decoded below>",
    "opaque": "<base64url, decoded below>",
}
# What is fixed and may be shown as it is: no more than an address, or zero bytes.
_UNNAMED = re.compile(r"0x(?!0{64}\b)[0-9a-f]{64,}")


class Unnamed(Exception):
    """A value that differs from run to run is about to be shown."""


def decoded(text: str) -> Any:
    """The JSON in a base64url text without padding."""
    return json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))


class StandIns:
    """The names given so far."""

    def __init__(self) -> None:
        self._names: dict[str, str] = {}
        self._counts: Counter[str] = Counter()

    def name(self, value: str, stand_in: str) -> None:
        """Show ``value`` as ``<stand_in>`` from here on."""
        self._names[value] = f"<{stand_in}>"

    def numbered(self, kind: str, value: str) -> str:
        """The name of a value that is one of many: by the order in which they are first shown."""
        if value not in self._names:
            self._counts[kind] += 1
            self.name(value, f"{kind} {self._counts[kind]}")
        return self._names[value]

    def text(self, text: str) -> str:
        """A text with every named value replaced. Raises `Unnamed` where one was forgotten."""
        for value, stand_in in self._names.items():
            text = text.replace(value, stand_in)
        found = _UNNAMED.search(text)
        if found is not None:
            raise Unnamed(f"{found[0]} has no name in: {text[:400]}")
        return text

    def json(self, value: Any, *, indent: int | None = 2) -> str:
        """A JSON value as it is shown; without ``indent`` on one line, as the server writes it."""
        separators = None if indent else (",", ":")
        return self.text(json.dumps(self.shown(value), indent=indent, separators=separators, ensure_ascii=False))

    def shown(self, value: Any) -> Any:
        """A JSON value with stand-ins."""
        if isinstance(value, list):
            return [self.shown(item) for item in value]
        if isinstance(value, Mapping):
            return {key: self._field(key, item, value) for key, item in value.items()}
        return value

    def _field(self, key: str, value: Any, holder: Mapping[str, Any]) -> Any:
        if value is None or isinstance(value, dict | list):
            return self.shown(value)
        if key in _TIMES:
            return _TIMES[key]
        if key == "reference" and "channelId" not in holder:
            return self.numbered("transaction hash", value)
        if key in _CHANNEL_KEYS:
            return self._names[value]
        if key in _WHOLE:
            return _WHOLE[key]
        match key:
            case "signature" | "voucherSignature":
                return self._signature(key, holder)
            case "txHash" | "hash":
                return self.numbered("transaction hash", value)
            case "challengeId":
                return self.numbered("challenge", value)
            case "requestId":
                return self.numbered("request", value)
            case "id" if "realm" in holder:
                return self.numbered("challenge", value)
            case "closeRequestedAt":
                return str(NOW_S)
            case "validBefore":
                return str(NOW_S + 300)
        return value

    @staticmethod
    def _signature(key: str, holder: Mapping[str, Any]) -> str:
        if key == "signature" and "voucherSignature" in holder:
            return "<signature of the authorization>"
        if "cumulativeAmount" not in holder:
            return "<signed transaction>"
        return f"<signature of {holder['cumulativeAmount']}>"
