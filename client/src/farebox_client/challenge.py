"""What a `402` offers: its ``Payment`` challenges, read into offers to open or use a channel. Pure.

Source: `draft-httpauth-payment-00` (the header), `draft-tempo-session-00` and `draft-evm-session-00`,
"Request Schema" and "Session Snapshot".
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mpp
from mpp._parsing import ParseError

from farebox_client.amounts import wire_amount
from farebox_client.channel import Kind, Parts
from farebox_client.hexadecimal import ZERO_ADDRESS, address, bytes32, did

# `draft-tempo-session-00`, "Method Details": what an absent chain id means.
TEMPO_CHAIN_ID = 4217
CHALLENGES_MAX = 16
# A scheme name begins a challenge: at the start of the field, or behind a comma.
_SCHEME = re.compile(r"(?:^|,)\s*([A-Za-z][\w-]*)\s+(?=[A-Za-z][\w-]*\s*=)")
_QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The server's view of a channel of protocol v2. Amounts in base units."""

    channel_id: str
    accepted: int
    required: int
    spent: int
    deposit: int


@dataclass(frozen=True, slots=True)
class Offer:
    """One way to pay. Amounts in base units, hexadecimal in lowercase; ``amount`` is due in advance."""

    challenge: mpp.Challenge = field(repr=False)
    kind: Kind
    chain_id: int
    escrow: str
    token: str
    payee: str
    operator: str
    amount: int
    suggested_deposit: int
    min_voucher_delta: int
    fee_payer: bool
    credential_types: tuple[str, ...]
    channel_id: str | None
    snapshot: Snapshot | None

    @property
    def description(self) -> str:
        """The price list, for people; a server that is ours writes it so that `Limits` can read it."""
        return self.challenge.description or str(self.challenge.request.get("description") or "")

    @property
    def header(self) -> str:
        """The challenge as it can be kept, and read again by `read_offer`."""
        return self.challenge.to_www_authenticate(self.challenge.realm)

    def serves(self, parts: Parts) -> bool:
        """Whether a channel can answer this offer."""
        mine = (self.kind, self.chain_id, self.escrow, self.token, self.payee)
        same = mine == (parts.kind, parts.chain_id, parts.escrow, parts.token, parts.payee)
        return same and (self.kind != "tempo-v2" or self.operator == parts.operator)

    def authorization(self, payload: Mapping[str, Any], *, payer: str) -> str:
        """An ``Authorization`` header that answers this challenge with ``payload``."""
        credential = mpp.Credential(
            challenge=self.challenge.to_echo(), payload=dict(payload), source=did(payer, chain_id=self.chain_id)
        )
        return credential.to_authorization()


def read_offers(fields: Sequence[str]) -> list[Offer]:
    """The session offers of all ``WWW-Authenticate`` fields, in order.

    Other schemes and intents are passed over, and so are challenges that make no sense: another may.
    """
    offers = []
    for text in _challenges(fields):
        try:
            offers.append(read_offer(text))
        except (ParseError, ValueError):
            continue
        if len(offers) == CHALLENGES_MAX:
            break
    return offers


def read_offer(text: str) -> Offer:
    """One challenge as an offer. Raises `ParseError` or `ValueError`."""
    challenge = mpp.Challenge.from_www_authenticate(text)
    if challenge.intent != "session" or challenge.method not in {"tempo", "evm"}:
        raise ValueError("not a session of a method that is spoken here")
    request, details = challenge.request, challenge.request.get("methodDetails")
    if not isinstance(details, Mapping):
        raise ValueError("methodDetails must be an object")
    kind = _kind(challenge.method, details)
    amount = wire_amount(request.get("amount"))
    types = details.get("credentialTypes") or ["hash"]
    return Offer(
        challenge=challenge,
        kind=kind,
        chain_id=_chain_id(kind, details),
        escrow=address(details.get("escrowContract")),
        token=address(request.get("currency")),
        payee=address(request.get("recipient")),
        operator=address(details.get("operator", ZERO_ADDRESS)),
        amount=amount,
        suggested_deposit=_optional_amount(request.get("suggestedDeposit")),
        min_voucher_delta=_optional_amount(details.get("minVoucherDelta")),
        fee_payer=details.get("feePayer") is True,
        credential_types=tuple(str(each) for each in types) if isinstance(types, list) else (),
        channel_id=bytes32(details["channelId"]) if details.get("channelId") else None,
        snapshot=_snapshot(details.get("sessionSnapshot")) if kind == "tempo-v2" else None,
    )


def _kind(method: str, details: Mapping[str, Any]) -> Kind:
    if method == "evm":
        return "evm"
    match details.get("sessionProtocol", "v1"):
        case "v1":
            return "tempo-v1"
        case "v2":
            return "tempo-v2"
        case _:
            raise ValueError("a session protocol that is not spoken here")


def _chain_id(kind: Kind, details: Mapping[str, Any]) -> int:
    chain_id = details.get("chainId", TEMPO_CHAIN_ID if kind == "tempo-v1" else None)
    if not isinstance(chain_id, int) or isinstance(chain_id, bool) or chain_id <= 0:
        raise ValueError("chainId must be a positive number")
    return chain_id


def _optional_amount(value: object) -> int:
    return 0 if value is None else wire_amount(value)


def _snapshot(value: object) -> Snapshot | None:
    if not isinstance(value, Mapping):
        return None
    return Snapshot(
        channel_id=bytes32(value.get("channelId")),
        accepted=wire_amount(value.get("acceptedCumulative")),
        required=wire_amount(value.get("requiredCumulative")),
        spent=wire_amount(value.get("spent")),
        deposit=wire_amount(value.get("deposit")),
    )


def _challenges(fields: Sequence[str]) -> Iterator[str]:
    """Each ``Payment`` challenge alone: RFC 9110 lets a proxy join several into one field."""
    for text in fields:
        # Scheme names are looked for outside of quoted strings only.
        bare = _QUOTED.sub(lambda found: '"' + "_" * (len(found[0]) - 2) + '"', text)
        starts = list(_SCHEME.finditer(bare))
        ends = [*(start.start() for start in starts[1:]), len(text)]
        for this, end in zip(starts, ends, strict=False):
            if this[1].lower() == "payment":
                yield text[this.start(1) : end].strip().rstrip(",")
