"""Whatever a client sends as a payload, decoding gives a funding or a refusal, and never anything else."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.chain.backend import ChannelBackend, TransactionRefused
from app.chain.registry import backend_for
from app.clock import SystemClock
from app.settings import ChannelSettings, MppSettings
from tests.chain.conftest import Budget
from tests.chain.wallet import Wallet

ESCROW, TOKEN = "0x" + "e5" * 20, "0x20c" + "0" * 37


def backend(kind: str) -> ChannelBackend:
    settings = ChannelSettings.model_validate(
        {
            "backend": kind,
            "chain_id": 1337,
            "rpc_url": "http://127.0.0.1:1",
            "escrow": ESCROW,
            "currency": TOKEN,
            "fee_payer": True,
            "eip3009": kind == "evm",
        }
    )
    return backend_for(settings, MppSettings(), payee_key=b"\x11" * 32, clock=SystemClock(), budget=Budget())


BACKENDS = {kind: backend(kind) for kind in ("tempo-v1", "tempo-v2", "evm")}
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=80) | st.just("0x" + "11" * 32)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
NAMES = (
    *("type", "channelId", "transaction", "descriptor", "authorizedSigner"),
    *("hash", "salt", "authorization", "signature"),
)
TYPES = st.sampled_from(["transaction", "hash", "authorization", "permit2"])


@pytest.mark.parametrize("kind", BACKENDS)
@given(payload=st.dictionaries(st.sampled_from(NAMES), VALUES), credential_type=TYPES, source=st.none() | st.text())
def test_any_payload_is_refused(kind: str, payload: dict[str, Any], credential_type: str, source: str | None) -> None:
    with pytest.raises(TransactionRefused):
        BACKENDS[kind].decode_open({**payload, "type": credential_type, "hash": None}, source=source)


# Without an end, so that time does not refuse what a mutation should.
OPENINGS = {
    "tempo-v1": Wallet(BACKENDS["tempo-v1"].offer).open_v1(5, valid_before=None),
    "tempo-v2": Wallet(BACKENDS["tempo-v2"].offer).open_v2(5, valid_before=None),
}


@pytest.mark.parametrize("kind", OPENINGS)
@given(data=st.data())
def test_no_mutation_opens_another_channel(kind: str, data: st.DataObject) -> None:
    opening = OPENINGS[kind]
    raw = bytes.fromhex(opening.payload["transaction"][2:])
    at, removed = data.draw(st.integers(0, len(raw) - 1)), data.draw(st.integers(0, 3))
    mutated = raw[:at] + data.draw(st.binary(max_size=3)) + raw[at + removed :]
    try:
        found = BACKENDS[kind].decode_open({**opening.payload, "transaction": "0x" + mutated.hex()})
    except TransactionRefused:
        return
    assert found == BACKENDS[kind].decode_open(opening.payload)


@pytest.mark.parametrize("kind", OPENINGS)
@given(name=st.sampled_from(NAMES), value=VALUES)
def test_no_changed_member_opens_another_channel(kind: str, name: str, value: Any) -> None:
    opening = OPENINGS[kind]
    try:
        found = BACKENDS[kind].decode_open({**opening.payload, name: value})
    except TransactionRefused:
        return
    assert found == BACKENDS[kind].decode_open(opening.payload)
