"""Who is paid, and who is not: every refusal says what to add."""

from dataclasses import replace
from typing import Any

import pytest
from farebox_client import NotTrusted, Trust
from farebox_client.challenge import Offer, read_offers
from farebox_client.channel import RESERVE
from farebox_client.trust import origin_of

from tests.client.test_challenge import header

ORIGIN = "https://api.example:443"
TOKEN = "0x20c0000000000000000000000000000000000000"
PAYEE = "0x742d35cc6634c0532925a3b844bc9e7595f8fe00"
OTHER = "0x" + "66" * 20


def offer(**changes: Any) -> Offer:
    """The usual offer of the reserve, changed."""
    (found,) = read_offers([header()])
    return replace(found, **changes)


def trust(**changes: Any) -> Trust:
    """Trust in the usual offer."""
    named: dict[str, Any] = {
        "rpc_urls": {4217: "http://node"},
        "tokens": {4217: [TOKEN.upper().replace("0X", "0x")]},
        "payees": {"https://API.example/v1": [PAYEE]},
    }
    return Trust(**{**named, **changes})


def no_pin(origin: str, payee: str) -> str:
    raise AssertionError("nothing is pinned unless the caller says so")


def test_what_was_named_is_paid() -> None:
    trust().check(offer(), origin=ORIGIN, pin=no_pin)
    trust(escrows={4217: [OTHER]}).check(offer(escrow=OTHER), origin=ORIGIN, pin=no_pin)
    trust(escrows={4217: [OTHER]}).check(offer(kind="tempo-v1", escrow=OTHER), origin=ORIGIN, pin=no_pin)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chain_id": 1}, r"chain 1.*add Trust\(rpc_urls=\{1: .*--rpc-url"),
        ({"escrow": OTHER}, rf"add Trust\(escrows=\{{4217: \['{OTHER}'\]\}}\).*--escrow"),
        # The reserve is Tempo's own for protocol v2: elsewhere anybody may have put a contract there.
        ({"kind": "evm"}, rf"add Trust\(escrows=\{{4217: \['{RESERVE}'\]\}}\)"),
        ({"kind": "tempo-v1"}, "escrow"),
        ({"token": OTHER}, rf"add Trust\(tokens=\{{4217: \['{OTHER}'\]\}}\).*--token"),
        ({"payee": OTHER}, rf"add Trust\(payees=\{{'{ORIGIN}': \['{OTHER}'\]\}}\).*--payee"),
    ],
)
def test_what_was_not_named_is_refused_with_what_to_add(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(NotTrusted, match=message):
        trust().check(offer(**changes), origin=ORIGIN, pin=no_pin)


@pytest.mark.parametrize("origin", ["http://api.example:80", "https://api.example:8443", "https://example:443"])
def test_payee_is_trusted_at_its_own_origin_alone(origin: str) -> None:
    with pytest.raises(NotTrusted, match="payees"):
        trust().check(offer(), origin=origin, pin=no_pin)


def test_first_use_takes_a_payee_and_nothing_else() -> None:
    first = trust(payees={}, trust_on_first_use=True)
    pins: dict[str, str] = {}
    first.check(offer(), origin=ORIGIN, pin=pins.setdefault)
    first.check(offer(), origin=ORIGIN, pin=pins.setdefault)
    with pytest.raises(NotTrusted, match=f"{PAYEE} was its payee on first use"):
        first.check(offer(payee=OTHER), origin=ORIGIN, pin=pins.setdefault)
    for changes in ({"escrow": OTHER}, {"token": OTHER}, {"chain_id": 1}):
        with pytest.raises(NotTrusted, match="Trust"):
            first.check(offer(**changes), origin="https://new.example:443", pin=no_pin)


def test_payees_that_were_named_are_not_widened_by_first_use() -> None:
    with pytest.raises(NotTrusted, match="not a payee"):
        trust(trust_on_first_use=True).check(offer(payee=OTHER), origin=ORIGIN, pin=no_pin)


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": {4217: TOKEN}},
        {"tokens": {4217: ["0x12"]}},
        {"payees": {"api.example": [PAYEE]}},
        {"rpc_urls": {4217: "node:8545"}},
    ],
)
def test_trust_that_is_written_wrong_is_refused_at_once(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"expected|not an http"):
        trust(**changes)


def test_origin_has_its_port() -> None:
    assert origin_of("https://API.Example/v1/chat?x=1") == "https://api.example:443"
    assert origin_of("http://127.0.0.1:8402/v1") == "http://127.0.0.1:8402"
