"""A node that answers badly, or not at all."""

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.chain import rpc
from app.chain.backend import ChainUnavailable
from app.chain.rpc import ATTEMPTS, RESPONSE_BYTES_MAX, NodeRefused, Rpc
from tests.chain.faulty_node import Drop, FaultyNode, Raw, Refusal, Result, Silence, on, times

METHOD = "eth_chainId"


async def asked(answer: object, *, count: int = ATTEMPTS, timeout_s: float = 5, retry: bool = True) -> object:
    async with FaultyNode() as node:
        node.rules = [times(count, on(METHOD, answer)), on(METHOD, Result("0x1"))]
        client = Rpc(node.url, chain_id=1, timeout_s=timeout_s)
        try:
            return await client.call(METHOD, retry=retry)
        finally:
            await client.aclose()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(Drop(), id="drops"),
        pytest.param(Raw(b"", status=500), id="500"),
        pytest.param(Raw(b"<html>rate limited</html>", status=429), id="429"),
        pytest.param(Raw(b"", status=307, headers={"Location": "/elsewhere"}), id="redirect"),
        pytest.param(Raw(b"hello"), id="no JSON"),
        pytest.param(Raw(b"[" * 100_000), id="deep"),
        pytest.param(Raw(b"[]"), id="a list"),
        pytest.param(Raw(b'{"jsonrpc":"2.0","id":1}'), id="no result"),
        pytest.param(Raw(b'{"jsonrpc":"2.0","id":77,"result":"0x2"}'), id="another's answer"),
        pytest.param(Raw(b'{"jsonrpc":"2.0","result":"0x2"}'), id="nobody's answer"),
        pytest.param(Raw(b'{"jsonrpc":"2.0","id":[],"result":"0x2"}'), id="no id"),
        pytest.param(Raw(b'{"jsonrpc":"2.0","id":1,"result":"0x2"' + b" " * RESPONSE_BYTES_MAX + b"}"), id="too large"),
    ],
)
async def test_bad_answer_is_asked_for_again(answer: object) -> None:
    assert await asked(answer, count=ATTEMPTS - 1) == "0x1"
    with pytest.raises(ChainUnavailable):
        await asked(answer, count=1, retry=False)


async def test_attempts_are_bounded() -> None:
    async with FaultyNode() as node:
        node.rules = [on(METHOD, Drop())]
        client = Rpc(node.url, chain_id=1, timeout_s=5)
        with pytest.raises(ChainUnavailable):
            await client.call(METHOD)
        await client.aclose()
        assert node.asked == [METHOD] * ATTEMPTS


async def test_silence_ends_at_the_timeout() -> None:
    with pytest.raises(ChainUnavailable, match=r"within 0\.2 s"):
        await asked(Silence(), timeout_s=0.2, retry=False)


async def test_compressed_answer_is_not_unpacked() -> None:
    body = gzip.compress(b'{"jsonrpc":"2.0","id":1,"result":"0x2"}')
    with pytest.raises(ChainUnavailable):
        await asked(Raw(body, headers={"Content-Encoding": "gzip"}), retry=False)


async def test_error_is_not_asked_for_again() -> None:
    with pytest.raises(NodeRefused) as caught:
        await asked(Refusal(-32000, "no\nway"), count=1)
    assert (caught.value.code, caught.value.reason, caught.value.reverted) == (-32000, "no way", False)


@pytest.mark.parametrize("error", [b'"words"', b"[1]", b'{"message":"no such key"}', b'{"code":"x","message":7}'])
async def test_gateways_error_is_none_of_the_nodes(error: bytes) -> None:
    with pytest.raises(ChainUnavailable) as caught:
        await asked(Raw(b'{"error":' + error + b"}", status=401), retry=False)
    assert not isinstance(caught.value, NodeRefused)


async def test_strange_error_is_an_error() -> None:
    with pytest.raises(NodeRefused) as caught:
        await asked(Raw(b'{"error":{"code":3,"message":7,"data":"zz"}}', status=400), retry=False)
    assert (caught.value.reason, caught.value.data, caught.value.reverted) == ("no reason given", None, True)


async def test_unreachable_node_is_named_without_its_address() -> None:
    client = Rpc("http://user:secret@127.0.0.1:1/v2/key", chain_id=1, timeout_s=1)
    with pytest.raises(ChainUnavailable) as caught:
        await client.call(METHOD, retry=False)
    await client.aclose()
    shown = f"{caught.value} {caught.value.__cause__}"
    assert "secret" not in shown
    assert "key" not in shown


@given(st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers()))
def test_nonsense_is_no_value(value: object) -> None:
    for parse in (rpc.quantity, rpc.data, rpc.record):
        try:
            parse(value)
        except ChainUnavailable:
            continue
        assert isinstance(value, str)
        assert value.startswith("0x")


@pytest.mark.parametrize("text", ["0x", "0x-1", "0x+1", "0x 1", "0x1_0", "0x" + "f" * 17, "1"])
def test_quantity_is_strict(text: str) -> None:
    with pytest.raises(ChainUnavailable):
        rpc.quantity(text)
