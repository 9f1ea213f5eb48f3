"""Challenges as servers write them, and as proxies join them."""

from typing import Any

import mpp
import pytest
from farebox_client.challenge import read_offers
from hypothesis import given
from hypothesis import strategies as st

ESCROW = "0x4D50500000000000000000000000000000000000"


def header(*, method: str = "tempo", intent: str = "session", realm: str = "r", **changes: Any) -> str:
    """A challenge's header."""
    details = {"chainId": 4217, "escrowContract": ESCROW, "sessionProtocol": "v2", **changes.pop("details", {})}
    request = {
        "amount": "1",
        "currency": "0x20C0000000000000000000000000000000000000",
        "recipient": "0x742D35CC6634C0532925A3B844BC9E7595F8FE00",
        "methodDetails": {name: value for name, value in details.items() if value is not None},
        **changes,
    }
    challenge = mpp.Challenge.create(
        secret_key="k" * 32, realm=realm, method=method, intent=intent, request=request, description='say "Payment x="'
    )
    return challenge.to_www_authenticate(realm)


def test_offer_is_read_in_lowercase() -> None:
    (offer,) = read_offers([header(suggestedDeposit="500", details={"operator": "0x" + "AB" * 20})])
    assert (offer.kind, offer.chain_id, offer.amount, offer.suggested_deposit) == ("tempo-v2", 4217, 1, 500)
    assert offer.escrow == ESCROW.lower()
    assert offer.operator == "0x" + "ab" * 20
    assert offer.credential_types == ("hash",)


def test_kind_follows_method_and_protocol() -> None:
    fields = [
        header(),
        header(details={"sessionProtocol": "v1"}),
        # As the draft has it, no protocol is v1, and no chain is Tempo's.
        header(details={"sessionProtocol": None, "chainId": None}),
        header(method="evm", details={"sessionProtocol": None, "chainId": 196, "credentialTypes": ["authorization"]}),
    ]
    found = [(offer.kind, offer.chain_id, offer.credential_types) for offer in read_offers(fields)]
    assert found == [
        ("tempo-v2", 4217, ("hash",)),
        ("tempo-v1", 4217, ("hash",)),
        ("tempo-v1", 4217, ("hash",)),
        ("evm", 196, ("authorization",)),
    ]


@pytest.mark.parametrize("joint", [", ", ",", " ,\t"])
def test_challenges_that_a_proxy_joined_are_told_apart(joint: str) -> None:
    text = joint.join([header(), 'Bearer realm="x"', header(details={"sessionProtocol": "v1"}), "Basic realm=y"])
    assert [offer.kind for offer in read_offers([text])] == ["tempo-v2", "tempo-v1"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Payment",
        'Bearer realm="x"',
        'Payment id="x"',
        header(intent="charge"),
        header(method="lightning"),
        header(amount=1),
        header(amount="-1"),
        header(amount="1.5"),
        header(amount="9" * 60),
        header(amount=str(2**128)),
        header(currency="0x12"),
        header(recipient=None),
        header(methodDetails=[]),
        header(details={"escrowContract": "0x" + "zz" * 20}),
        header(details={"chainId": "4217"}),
        header(details={"chainId": True}),
        header(details={"chainId": None}),
        header(details={"sessionProtocol": "v3"}),
        header(details={"channelId": "0x12"}),
        header(details={"sessionSnapshot": {"channelId": "0x" + "11" * 32}}),
    ],
)
def test_challenge_without_sense_is_passed_over_for_the_next(text: str) -> None:
    assert [offer.kind for offer in read_offers([text, header()])] == ["tempo-v2"]


@given(st.lists(st.text(max_size=80), max_size=5))
def test_no_field_breaks_the_reader(fields: list[str]) -> None:
    assert read_offers([*fields, header()])[-1].kind == "tempo-v2"


def test_challenge_is_echoed_as_it_came() -> None:
    (offer,) = read_offers([header(realm="api.example")])
    credential = mpp.Credential.from_authorization(offer.authorization({"action": "voucher"}, payer="0x" + "12" * 20))
    assert credential.challenge.id == offer.challenge.id
    assert credential.challenge.request == offer.challenge.request_b64
    assert credential.source == "did:pkh:eip155:4217:0x1212121212121212121212121212121212121212"
    (again,) = read_offers([offer.header])
    assert again == offer
