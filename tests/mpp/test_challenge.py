"""Challenges against the public conformance vectors, and what is ours and what is not."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mpp import Challenge, ChallengeEcho, Credential
from mpp._parsing import ParseError

from app.clock import EpochMs
from app.mpp.challenge import REQUEST_CHARACTERS_MAX, SECRET_CHARACTERS_MIN, Challenges, Opaque, decoded, expiry_of

VECTORS = Path(__file__).parent.parent / "vectors"
SECRET, OLD = "a-secret-of-at-least-thirty-two-bytes", "the-secret-before-of-thirty-two-bytes"
REALM = "api.example.com"
# In any order: requests are canonical JSON.
REQUEST = {"currency": "0x20c0", "amount": "1", "methodDetails": {"chainId": 1, "escrowContract": "0xé"}}
AT = EpochMs(1_760_000_000_000)


def scenarios(name: str) -> list[Any]:
    found = json.loads((VECTORS / f"{name}.json").read_text())["scenarios"]
    assert found
    return [pytest.param(scenario, id=scenario["name"]) for scenario in found]


def encoded(value: Any) -> str:
    """Canonical JSON in base64url, for values of strings alone."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def echo_of(scenario: dict[str, Any]) -> ChallengeEcho:
    """The echo of a vector's challenge, with the id that the vector says."""
    fields = scenario["input"]
    opaque = fields.get("opaque")
    return ChallengeEcho(
        id=scenario["expected"],
        realm=fields["realm"],
        method=fields["method"],
        intent=fields["intent"],
        request=encoded(fields["request"]),
        expires=fields.get("expires"),
        digest=fields.get("digest"),
        opaque=opaque if isinstance(opaque, str) or opaque is None else encoded(opaque),
    )


@pytest.mark.parametrize("scenario", scenarios("challenge-id"))
def test_published_challenge_ids_are_recognised(scenario: dict[str, Any]) -> None:
    fields = scenario["input"]
    if "expected" not in scenario:
        # Secrets that are weak are refused where they are configured.
        assert len(fields["secretKey"]) < SECRET_CHARACTERS_MIN
        return
    challenges = Challenges(realm=fields["realm"], secret=fields["secretKey"])
    echo = echo_of(scenario)
    header = fields.get("header")
    if header not in {None, "Authorization"}:
        # An eighth slot, for a header that we never offer.
        assert not challenges.is_ours(replace(echo, header=header))
        assert not challenges.is_ours(echo)
        return
    assert challenges.is_ours(echo)
    assert not Challenges(realm=fields["realm"], secret="x" * 40).is_ours(echo)
    assert not Challenges(realm="other", secret=fields["secretKey"]).is_ours(echo)


@pytest.mark.parametrize("scenario", scenarios("www-authenticate"))
def test_published_headers_are_read_as_published(scenario: dict[str, Any]) -> None:
    if not scenario["parse_ok"]:
        with pytest.raises((ParseError, ValueError)):
            Challenge.from_www_authenticate(scenario["wire"])
        return
    challenge = Challenge.from_www_authenticate(scenario["wire"])
    for name, value in scenario.get("object", {}).items():
        assert getattr(challenge, name) == value


@pytest.mark.parametrize("scenario", scenarios("authorization"))
def test_published_credentials_are_read_as_published(scenario: dict[str, Any]) -> None:
    from app.errors import PaymentMalformed
    from app.rails.credential import is_payment, parse

    headers = {b"authorization": scenario["wire"].encode()}
    if not scenario["parse_ok"]:
        assert is_payment(headers) == scenario["wire"].startswith("Payment ")
        with pytest.raises(PaymentMalformed):
            parse(headers)
        return
    credential = parse(headers)
    assert isinstance(credential, Credential)
    assert credential.challenge.id == "ch_header"


def issue(challenges: Challenges, **changes: Any) -> tuple[Challenge, ChallengeEcho]:
    fields: dict[str, Any] = {
        "method": "tempo",
        "intent": "session",
        "request": REQUEST,
        "expires_at": AT,
        "digest": "sha-256=:abc=:",
        "description": 'costs "little"',
        "opaque": {"nonce": "n", "route": "/v1"},
    }
    issued = challenges.issue(**{**fields, **changes})
    challenge = Challenge.from_www_authenticate(issued.header)
    assert (issued.id, issued.method, issued.intent) == (challenge.id, challenge.method, challenge.intent)
    return challenge, challenge.to_echo()


def test_challenge_survives_its_way_to_the_client_and_back() -> None:
    challenges = Challenges(realm=REALM, secret=SECRET)
    challenge, echo = issue(challenges)
    assert challenge.request == REQUEST
    assert challenge.description == 'costs "little"'
    assert challenges.is_ours(echo)
    assert decoded(echo.request) == REQUEST
    assert Opaque.parse(echo.opaque) == Opaque("n", "/v1")
    assert expiry_of(echo) == AT
    assert Challenge.verify(challenge, SECRET, REALM)


@pytest.mark.parametrize(
    "changes",
    [
        {"id": ""},
        {"id": "A" * 43},
        {"id": "é"},
        {"realm": "other"},
        {"method": "evm"},
        {"intent": "charge"},
        {"request": "e30"},
        {"expires": None},
        {"expires": "2999-01-01T00:00:00Z"},
        {"digest": None},
        {"digest": "sha-256=:abd=:"},
        {"opaque": None},
        {"opaque": "e30"},
        {"header": "Payment-Authorization"},
        # One slot's end as the next one's beginning.
        {"intent": "session|e30"},
        {"method": "tempo|session"},
    ],
    ids=repr,
)
def test_changed_challenge_is_not_ours(changes: dict[str, Any]) -> None:
    challenges = Challenges(realm=REALM, secret=SECRET)
    _, echo = issue(challenges)
    assert not challenges.is_ours(replace(echo, **changes))


def test_slots_that_are_shifted_are_not_the_same_challenge() -> None:
    """Expires and digest are joined by a bar: what moves across it must not verify."""
    challenges = Challenges(realm=REALM, secret=SECRET)
    _, echo = issue(challenges, opaque=None)
    moved = replace(echo, expires=f"{echo.expires}|{echo.digest}", digest=None)
    assert not challenges.is_ours(moved)


def test_description_is_no_part_of_what_is_bound() -> None:
    challenges = Challenges(realm=REALM, secret=SECRET)
    _, echo = issue(challenges)
    assert challenges.is_ours(replace(echo, description="free"))


def test_secret_before_verifies_and_never_issues() -> None:
    before, now = Challenges(realm=REALM, secret=OLD), Challenges(realm=REALM, secret=SECRET, previous=OLD)
    _, old = issue(before)
    challenge, new = issue(now)
    assert now.is_ours(old)
    assert now.is_ours(new)
    assert not before.is_ours(new)
    assert Challenge.verify(challenge, SECRET, REALM)
    assert not Challenges(realm=REALM, secret=SECRET).is_ours(old)


def test_secrets_are_not_shown() -> None:
    assert "secret" not in repr(Challenges(realm=REALM, secret=SECRET, previous=OLD))


@pytest.mark.parametrize(
    "expires",
    [None, "", "soon", "2026-01-01", "2026-01-01T00:00:00", "2026-01-01T00:00:00+01:00", "2026-13-01T00:00:00Z"],
)
def test_malformed_expiry_is_none(expires: str | None) -> None:
    _, echo = issue(Challenges(realm=REALM, secret=SECRET))
    assert expiry_of(replace(echo, expires=expires)) is None


@pytest.mark.parametrize("text", [None, "", "!", "W10", "NQ", "é", "A" * (REQUEST_CHARACTERS_MAX + 1)])
def test_parameter_that_is_no_object_is_refused(text: str | None) -> None:
    with pytest.raises(ValueError, match=r"parameter|ASCII"):
        decoded(text)


def test_opaque_carries_strings_alone() -> None:
    opaque = Opaque("n", "/v1/chat/completions", ("a", "b"))
    wire = opaque.to_wire()
    assert all(isinstance(value, str) for value in wire.values())
    assert Opaque.parse(encoded(wire)) == opaque
    assert Opaque.parse(encoded(Opaque("n", "/v1").to_wire())).price_ids == ()
