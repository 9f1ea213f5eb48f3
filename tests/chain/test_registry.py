"""From settings to what is offered."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.chain.registry import backend_for, charge_for, offer_of
from app.clock import SystemClock
from app.settings import ChannelSettings, MppSettings, SettingsError
from tests.chain.conftest import Budget
from tests.chain.test_charge import Claims

ROOT = Path(__file__).parents[2]
ACCOUNT = "0x19e7e376e7c213b7e7e7e46cc70a5dd086daff2a"
KEY = b"\x11" * 32
OTHER = "0x" + "AB" * 20


def settings(backend: str, **changes: Any) -> ChannelSettings:
    fields = {
        "backend": backend,
        "chain_id": 42431,
        "rpc_url": "http://127.0.0.1:1",
        "escrow": "0x4D50500000000000000000000000000000000000",
        "currency": "0x20C0000000000000000000000000000000000000",
    }
    return ChannelSettings.model_validate({**fields, **changes})


def test_offers_in_lowercase() -> None:
    offer = offer_of(settings("tempo-v2", recipient=OTHER, fee_payer=True), account=ACCOUNT)
    assert (offer.method, offer.protocol, offer.chain_id, offer.fee_payer) == ("tempo", "v2", 42431, True)
    assert (offer.recipient, offer.operator) == (OTHER.lower(), ACCOUNT)
    assert (offer.escrow, offer.currency) == ("0x4d505" + "0" * 35, "0x20c" + "0" * 37)
    assert (offer.domain.name, offer.domain.amount_bits) == ("TIP20 Channel Reserve", 96)
    assert (offer.domain.escrow, offer.domain.chain_id) == (offer.escrow, offer.chain_id)


@pytest.mark.parametrize(
    ("backend", "foreign", "expected"),
    [
        ("tempo-v1", False, ("tempo", "v1", "Tempo Stream Channel", 128, False, True)),
        ("tempo-v1", True, ("tempo", "v1", "Tempo Stream Channel", 128, False, False)),
        ("tempo-v2", False, ("tempo", "v2", "TIP20 Channel Reserve", 96, True, True)),
        ("evm", False, ("evm", "v1", "EVM Payment Channel", 128, True, True)),
    ],
)
def test_each_kind_can_what_it_can(backend: str, foreign: bool, expected: tuple[object, ...]) -> None:
    offer = offer_of(settings(backend, foreign_escrow=foreign), account=ACCOUNT)
    found = (
        *(offer.method, offer.protocol, offer.domain.name, offer.domain.amount_bits),
        *(offer.tops_up, offer.captures_less),
    )
    assert found == expected
    assert (offer.recipient, offer.operator) == (ACCOUNT, None)


@pytest.mark.parametrize(
    ("backend", "changes", "message"),
    [
        ("tempo-v1", {"recipient": OTHER}, "recipient"),
        ("evm", {"recipient": OTHER}, "recipient"),
        ("tempo-v2", {"foreign_escrow": True}, "foreign_escrow"),
        ("tempo-v2", {"eip3009": True}, "eip3009"),
        ("evm", {"fee_payer": True}, "fee_payer"),
    ],
)
def test_what_cannot_be_is_named(backend: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        offer_of(settings(backend, **changes), account=ACCOUNT)


@pytest.mark.parametrize("key", [b"", b"\x00" * 32, b"\xff" * 32, b"\x11" * 31])
def test_bad_key_is_refused_and_not_shown(key: bytes) -> None:
    with pytest.raises(SettingsError, match="FAREBOX_PAYEE_KEY") as caught:
        backend_for(settings("evm"), MppSettings(), payee_key=key, clock=SystemClock(), budget=Budget())
    assert key.hex() not in str(caught.value) or not key


@pytest.mark.parametrize("backend", ["tempo-v1", "tempo-v2", "evm"])
def test_account_is_the_keys(backend: str) -> None:
    made = backend_for(settings(backend), MppSettings(), payee_key=KEY, clock=SystemClock(), budget=Budget())
    assert made.account == ACCOUNT
    if backend == "evm":
        with pytest.raises(SettingsError, match="Tempo"):
            charge_for(settings(backend), MppSettings(), backend=made, claims=Claims(), clock=SystemClock())


def test_server_starts_without_the_heavy_libraries() -> None:
    """`web3` alone takes a second, and none of them is needed before a first charge."""
    heavy = ("web3", "eth_account", "pytempo", "mpp")
    code = f"import sys, app.chain.registry; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
