"""What a server cannot make the client do: lies, absurd demands, limits and trust, over both transports."""

import pytest
from farebox_client import (
    LimitReached,
    Limits,
    NotTrusted,
    PaymentError,
    ServerMisbehaved,
    usd,
)

from tests.client.clients import MakeClient
from tests.client.conftest import MakeEdge, MakeWallet, trust_for
from tests.client.edge import Edge
from tests.client.edge_state import Lies

LIES: list[tuple[Lies, str]] = [
    (Lies(receipt_accepted=10**9), "no more than"),
    (Lies(receipt_spent=10**9), "more than the"),
    (Lies(receipt_channel="0x" + "77" * 32), "speaks of channel 0x77"),
    (Lies(need_channel="0x" + "77" * 32), "speaks of channel 0x77"),
    (Lies(need_accepted=10**9), "no more than"),
    (Lies(need_times=40), "again and again"),
]


@pytest.mark.parametrize(("lies", "message"), LIES, ids=[message for _, message in LIES])
async def test_lie_in_a_stream_ends_it_and_nothing_more_is_signed(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient, lies: Lies, message: str
) -> None:
    edge = make_edge(lies=lies)
    client = make_client(wallet := wallet_for(edge))
    with pytest.raises(ServerMisbehaved, match=message):
        await client.ask(edge, stream=True)
    assert wallet.store.channels()[0].signed <= 200


@pytest.mark.parametrize("required", [60_000, 2_000_000, 10**30])
async def test_absurd_demand_stops_at_the_limits(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient, required: int
) -> None:
    edge = make_edge(lies=Lies(need_required=required))
    client = make_client(wallet := wallet_for(edge))
    with pytest.raises(LimitReached, match=r"raise Limits\.per_"):
        await client.ask(edge, stream=True)
    assert wallet.store.channels()[0].signed == 1
    assert edge.actions("topUp") == []


async def test_snapshot_above_what_was_signed_is_refused(
    edge: Edge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    client = make_client(wallet := wallet_for(edge))
    await client.ask(edge)
    edge.lies.snapshot_adds = 1
    with pytest.raises(ServerMisbehaved, match="another copy"):
        await client.ask(edge)
    assert wallet.store.channels()[0].signed == 200


async def test_price_that_changes_within_a_request_is_refused(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    edge = make_edge(
        lies=Lies(prices_later="sandbox/echo: 9.00 USD for input and 9.00 USD for output per million tokens")
    )
    client = make_client(wallet := wallet_for(edge))
    with pytest.raises(ServerMisbehaved, match="changed its prices"):
        await client.ask(edge)
    assert wallet.store.channels()[0].signed == 1


async def test_payee_that_changes_within_a_request_is_refused(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    edge = make_edge(lies=Lies(payee_later="0x" + "66" * 20))
    with pytest.raises(NotTrusted, match="0x6666"):
        await make_client(wallet_for(edge)).ask(edge)
    assert len(edge.chain) == 1


async def test_top_up_that_is_not_on_chain_is_not_believed(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    edge = make_edge(suggested_deposit=150, lies=Lies(takes_no_top_up=True))
    with pytest.raises(ServerMisbehaved, match="the chain does not show it"):
        await make_client(wallet_for(edge)).ask(edge)
    assert edge.channel.accepted == 1


# Limits and trust.


async def test_request_stops_at_its_limit(edge: Edge, wallet_for: MakeWallet, make_client: MakeClient) -> None:
    client = make_client(wallet := wallet_for(edge, limits=Limits(per_request=150)))
    with pytest.raises(LimitReached, match=r"this request would come to 0\.0002 USD"):
        await client.ask(edge, stream=True)
    assert wallet.store.channels()[0].signed == 100
    # Each request has the limit for itself.
    edge.chunks = [("x", 100)]
    assert (await client.ask(edge)).status_code == 200


async def test_day_stops_at_its_limit(edge: Edge, wallet_for: MakeWallet, make_client: MakeClient) -> None:
    client = make_client(wallet := wallet_for(edge, limits=Limits(per_day=500)))
    await client.ask(edge)
    await client.ask(edge)
    with pytest.raises(LimitReached, match="per_day"):
        await client.ask(edge)
    assert wallet.store.today(payer=wallet.address) <= 500


async def test_deposit_stops_at_its_limit(make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient) -> None:
    edge = make_edge(chunks=[("a", 100), ("b", 100)])
    client = make_client(wallet_for(edge, limits=Limits(per_channel=150)))
    with pytest.raises(LimitReached, match=r"the channel's deposit would come to 0\.0002 USD"):
        await client.ask(edge, stream=True)
    assert edge.seen == [("open", 150), ("voucher", 100)]


async def test_price_above_the_limit_is_refused_before_anything_is_signed(
    edge: Edge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    client = make_client(wallet := wallet_for(edge, limits=Limits(prices={"output": "3.99"})))
    with pytest.raises(LimitReached, match=r"price for output is 4\.00 USD"):
        await client.ask(edge)
    assert wallet.store.channels() == []
    fine = make_client(wallet_for(edge, limits=Limits(prices={"output": "4.00", "input": "1"})))
    assert (await fine.ask(edge)).status_code == 200


async def test_fee_above_the_limit_is_refused(edge: Edge, wallet_for: MakeWallet, make_client: MakeClient) -> None:
    with pytest.raises(LimitReached, match="the fee"):
        await make_client(wallet_for(edge, limits=Limits(per_fee=usd("0.01")))).ask(edge)
    assert edge.chain == {}


async def test_empty_wallet_is_told_so(make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient) -> None:
    edge = make_edge(balance=100)
    with pytest.raises(PaymentError, match="holds 100 base units"):
        await make_client(wallet_for(edge)).ask(edge)


async def test_untrusted_offers_are_passed_over_for_a_trusted_one(
    edge: Edge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    edge.kinds = ("tempo-v1", "tempo-v2")
    # The contract that is offered first is not trusted here; Tempo's own reserve is.
    wallet = wallet_for(edge, trust=trust_for(edge, escrows={}))
    assert (await make_client(wallet).ask(edge)).status_code == 200
    assert edge.channel.kind == "tempo-v2"


async def test_payee_is_pinned_on_first_use_if_asked_for(
    edge: Edge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    trust = trust_for(edge, payees={}, trust_on_first_use=True)
    client = make_client(wallet_for(edge, trust=trust))
    assert (await client.ask(edge)).status_code == 200
    edge.lies.payee_later = "0x" + "66" * 20
    with pytest.raises(NotTrusted, match="was its payee on first use"):
        await client.ask(edge)
