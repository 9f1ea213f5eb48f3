"""Requests over both transports against the strict edge: the same story, told blocking and awaited."""

from typing import Any, cast

import httpx
import pytest
from farebox_client import (
    AsyncPayingTransport,
    ChannelUnavailable,
    LimitReached,
    PayingTransport,
    PaymentRefused,
    Receipt,
    Signed,
    usd,
)
from openai import APIStatusError, AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from tests.client.clients import ASK, TIMEOUT, MakeClient, text_of
from tests.client.conftest import MakeEdge, MakeWallet, trust_for
from tests.client.edge import Edge
from tests.client.edge_state import Lies


@pytest.mark.parametrize("kinds", [("tempo-v2",), ("tempo-v1",)], ids=["v2", "v1"])
async def test_whole_answer_opens_a_channel_and_pays_the_shortfall(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient, kinds: tuple[str, ...]
) -> None:
    edge = make_edge(kinds=kinds)
    client = make_client(wallet_for(edge))
    response = await client.ask(edge)
    assert response.status_code == 200
    assert response.json()["choices"][0]["message"]["content"] == "Hello there"
    assert edge.seen == [("open", 100_000), ("voucher", 200)]
    assert (edge.channel.accepted, edge.channel.spent) == (200, 200)
    assert edge.unpaid == 1


@pytest.mark.parametrize("kinds", [("tempo-v2",), ("tempo-v1",)], ids=["v2", "v1"])
async def test_stream_is_paid_while_it_runs_and_shows_no_payment(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient, kinds: tuple[str, ...]
) -> None:
    edge = make_edge(kinds=kinds, chunks=[(f"{number} ", 50) for number in range(6)])
    receipts: list[Receipt] = []
    signed: list[Signed] = []
    wallet = wallet_for(edge, on_receipt=receipts.append, on_voucher=signed.append)
    response = await make_client(wallet).ask(edge, stream=True)
    assert text_of(response) == "0 1 2 3 4 5 "
    assert edge.actions("voucher") == [50, 100, 150, 200, 250, 300]
    assert [each.added for each in signed] == [1, 49, 50, 50, 50, 50, 50]
    assert receipts[-1].spent == 300
    (channel,) = wallet.store.channels()
    assert (channel.signed, channel.spent, channel.status) == (300, 300, "open")


async def test_next_requests_use_the_channel_and_sign_only_what_they_need(
    edge: Edge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    client = make_client(wallet_for(edge))
    for _ in range(5):
        assert (await client.ask(edge)).status_code == 200
        assert text_of(await client.ask(edge, stream=True)) == "Hello there"
    assert len(edge.actions("open")) == 1
    assert edge.channel.spent == 10 * 200
    # Asked unpaid each time, for one base unit: what is signed never runs ahead of what is spent.
    assert edge.unpaid == 10
    assert edge.channel.accepted == edge.channel.spent
    assert edge.sessions[0] is None
    assert set(edge.sessions[1:]) == set(edge.chain)


async def test_channel_survives_a_restart(edge: Edge, wallet_for: MakeWallet, make_client: MakeClient) -> None:
    await make_client(wallet_for(edge)).ask(edge)
    again = wallet_for(edge)
    await make_client(again).ask(edge)
    assert len(edge.chain) == 1
    assert edge.channel.spent == 400


@pytest.mark.parametrize("kinds", [("tempo-v2",), ("tempo-v1",)], ids=["v2", "v1"])
async def test_stream_tops_up_when_the_deposit_is_short(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient, kinds: tuple[str, ...]
) -> None:
    edge = make_edge(kinds=kinds, suggested_deposit=120, chunks=[(f"{number} ", 100) for number in range(4)])
    response = await make_client(wallet_for(edge)).ask(edge, stream=True)
    assert text_of(response) == "0 1 2 3 "
    assert edge.actions("topUp") == [120, 120, 120]
    assert edge.channel.deposit == 480
    assert edge.channel.spent == 400


async def test_whole_answer_tops_up_when_the_deposit_is_short(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    edge = make_edge(suggested_deposit=150)
    assert (await make_client(wallet_for(edge)).ask(edge)).status_code == 200
    assert edge.seen == [("open", 150), ("topUp", 150), ("voucher", 200)]


@pytest.mark.parametrize("kinds", [("tempo-v2",), ("tempo-v1",)], ids=["v2", "v1"])
async def test_deposit_that_is_short_without_an_amount_is_topped_up_once(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient, kinds: tuple[str, ...]
) -> None:
    edge = make_edge(kinds=kinds, suggested_deposit=500, lies=Lies(left_min=600))
    client = make_client(wallet_for(edge))
    assert (await client.ask(edge)).status_code == 200
    assert edge.actions("topUp") == [500]
    edge.lies.left_min = 10**9
    with pytest.raises(PaymentRefused, match="the deposit is used up"):
        await client.ask(edge)
    assert edge.actions("topUp") == [500, 500]
    assert edge.channel.accepted < 210


async def test_sponsored_transactions_leave_the_fee_to_the_server(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    edge = make_edge(suggested_deposit=150, fee_payer=True, balance=400)
    assert (await make_client(wallet_for(edge)).ask(edge)).status_code == 200
    assert edge.seen == [("open", 150), ("topUp", 150), ("voucher", 200)]


async def test_least_increase_between_vouchers_is_kept(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    edge = make_edge(min_delta=500, chunks=[("a", 200), ("b", 200), ("c", 200)])
    assert text_of(await make_client(wallet_for(edge)).ask(edge, stream=True)) == "abc"
    assert edge.actions("voucher") == [501, 1001]


async def test_failure_without_receipt_is_recovered_on_the_same_channel(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    edge = make_edge(lies=Lies(fail_after_voucher=True))
    client = make_client(wallet_for(edge))
    assert (await client.ask(edge)).status_code == 500
    assert (await client.ask(edge)).status_code == 200
    assert len(edge.chain) == 1
    assert edge.channel.spent == 200


async def test_stream_that_breaks_is_recovered_from_the_next_snapshot(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    edge = make_edge(lies=Lies(cut_stream=True), chunks=[("a", 70), ("b", 70)])
    client = make_client(wallet := wallet_for(edge))
    with pytest.raises(httpx.RemoteProtocolError):
        await client.ask(edge, stream=True)
    assert text_of(await client.ask(edge, stream=True)) == "ab"
    assert edge.channel.spent == 210
    assert wallet.store.channels()[0].signed == 211 or wallet.store.channels()[0].signed == 210


async def test_open_that_the_server_forgot_is_shown_to_it_again(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    edge = make_edge(lies=Lies(forget_opens=1))
    client = make_client(wallet_for(edge))
    assert (await client.ask(edge)).status_code == 503
    assert (await client.ask(edge)).status_code == 200
    # The same transaction, and no second deposit.
    assert len(edge.chain) == 1
    assert len(edge.actions("open")) == 2


async def test_channel_that_was_closed_elsewhere_is_replaced(
    edge: Edge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    client = make_client(wallet := wallet_for(edge))
    await client.ask(edge)
    edge.channel.closed = True
    assert (await client.ask(edge)).status_code == 200
    assert [channel.status for channel in wallet.store.channels()] == ["open", "closed"]


async def test_channel_that_the_server_denies_is_not_replaced_while_the_chain_holds_its_deposit(
    edge: Edge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    client = make_client(wallet_for(edge))
    await client.ask(edge)
    edge.books.clear()
    with pytest.raises(ChannelUnavailable, match="still holds its deposit"):
        await client.ask(edge)
    assert len(edge.chain) == 1


async def test_duplicated_events_are_answered_with_the_same_voucher(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    edge = make_edge(lies=Lies(need_times=3))
    assert text_of(await make_client(wallet_for(edge)).ask(edge, stream=True)) == "Hello there"
    assert sorted(set(edge.actions("voucher"))) == [100, 200]
    assert edge.channel.accepted == 200


async def test_voucher_is_sent_again_after_a_refusal_that_passes(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    edge = make_edge(lies=Lies(voucher_status=503, voucher_status_times=2, expired_management=1))
    assert text_of(await make_client(wallet_for(edge)).ask(edge, stream=True)) == "Hello there"
    assert edge.actions("voucher") == [100, 200]


class LosesAnswers(httpx.HTTPTransport):
    """Lets the server act and loses its answer, for requests without a body, so many times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if "authorization" in request.headers and not request.content and self.times:
            self.times -= 1
            response.close()
            raise httpx.ReadError("the answer was lost")
        return response


class ReadsAhead(httpx.HTTPTransport):
    """Gives bodies that it has read, as caches and mocks do."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if request.headers.get("accept") == "whole":
            return httpx.Response(response.status_code, headers=response.headers, content=response.read())
        return response


def test_transport_underneath_may_have_read_the_body(edge: Edge, wallet_for: MakeWallet) -> None:
    # One voucher covers the stream, which the transport underneath reads to its end.
    edge.chunks = [("Hello", 1)]
    with httpx.Client(transport=PayingTransport(wallet_for(edge), transport=ReadsAhead())) as http:
        for changes, said in (({}, "Hello"), ({"stream": True}, "Hello")):
            response = http.post(
                f"{edge.url}/chat/completions", json={**ASK, **changes}, headers={"accept": "whole"}, timeout=TIMEOUT
            )
            assert response.status_code == 200
            assert said in response.text
            assert "payment-receipt" not in response.text
    assert edge.channel.spent == 2


def test_voucher_is_sent_again_after_a_lost_answer(edge: Edge, wallet_for: MakeWallet) -> None:
    with httpx.Client(transport=PayingTransport(wallet_for(edge), transport=LosesAnswers(2))) as http:
        response = http.post(f"{edge.url}/chat/completions", json={**ASK, "stream": True}, timeout=TIMEOUT)
    assert text_of(response) == "Hello there"
    assert edge.actions("voucher") == [100, 100, 100, 200]
    assert edge.channel.accepted == 200


def test_voucher_that_never_arrives_ends_the_stream_with_the_reason(edge: Edge, wallet_for: MakeWallet) -> None:
    with (
        httpx.Client(transport=PayingTransport(wallet_for(edge), transport=LosesAnswers(99))) as http,
        pytest.raises(httpx.ReadError, match="lost"),
    ):
        http.post(f"{edge.url}/chat/completions", json={**ASK, "stream": True}, timeout=TIMEOUT)
    assert edge.channel.accepted == 100


# What is not for sale, and what is beside requests.


async def test_402_without_a_challenge_is_passed_on(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    edge = make_edge(kinds=())
    response = await make_client(wallet_for(edge)).ask(edge)
    assert response.status_code == 402
    assert response.json()["detail"] == "pay with a channel"


@pytest.mark.parametrize("kinds", [("tempo-v2",), ("tempo-v1",)], ids=["v2", "v1"])
async def test_close_pays_what_was_spent_and_returns_the_transaction(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient, kinds: tuple[str, ...]
) -> None:
    edge = make_edge(kinds=kinds)
    client = make_client(wallet := wallet_for(edge))
    await client.ask(edge, stream=True)
    receipt = await client.manage("close_channel")
    assert receipt.tx_hash == "0x" + "ab" * 32
    assert (receipt.spent, edge.channel.settled) == (200, 200)
    (channel,) = await client.manage("channels")
    assert (channel.status, channel.close_tx) == ("closed", receipt.tx_hash)
    with pytest.raises(ChannelUnavailable, match="has no channel"):
        await client.manage("close_channel")
    assert wallet.store.current(payer=wallet.address, origin=channel.origin) == []


async def test_close_of_v1_signs_more_only_when_the_server_spent_more(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    edge = make_edge(kinds=("tempo-v1",))
    client = make_client(wallet_for(edge))
    edge.lies.cut_stream = True
    with pytest.raises(httpx.RemoteProtocolError):
        await client.ask(edge, stream=True)
    receipt = await client.manage("close_channel")
    # The receipts said nothing of the stream that broke: the first voucher of the close was too low.
    assert edge.actions("close") == [0, 100]
    assert receipt.spent == 100


async def test_top_up_adds_exactly_what_is_asked_for(
    edge: Edge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    client = make_client(wallet_for(edge))
    await client.ask(edge)
    channel = await client.manage("top_up", usd("0.02"))
    assert (channel.deposit, edge.channel.deposit) == (120_000, 120_000)
    with pytest.raises(LimitReached, match="per_channel"):
        await client.manage("top_up", usd("1.00"))


@pytest.mark.parametrize("kinds", [("tempo-v2",), ("tempo-v1",)], ids=["v2", "v1"])
async def test_payer_leaves_without_the_server(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient, kinds: tuple[str, ...]
) -> None:
    edge = make_edge(kinds=kinds)
    wallet = wallet_for(edge)
    client = make_client(wallet)
    await client.ask(edge)
    object.__setattr__(wallet, "clock", lambda: edge.now)
    with pytest.raises(ChannelUnavailable, match="ask for a close"):
        await client.manage("withdraw")
    await client.manage("request_close")
    with pytest.raises(ChannelUnavailable, match="in 900 seconds"):
        await client.manage("withdraw")
    with pytest.raises(ChannelUnavailable, match="a close of channel"):
        await client.ask(edge)
    balance = await client.manage("balance")
    assert (balance.deposit, balance.remaining) == (100_000, 99_800)
    edge.now += 900
    assert await client.manage("withdraw") == "0x" + "cd" * 32
    assert edge.channel.closed


async def test_several_channels_must_be_named(
    make_edge: MakeEdge, wallet_for: MakeWallet, make_client: MakeClient
) -> None:
    first, second = make_edge(kinds=("tempo-v2",)), make_edge(kinds=("tempo-v1",))
    trust = trust_for(first)
    wallet = wallet_for(first, trust=trust)
    await make_client(wallet).ask(first)
    await make_client(wallet_for(second)).ask(second)
    with pytest.raises(ChannelUnavailable, match="name one of several"):
        await make_client(wallet).manage("close_channel")
    named = next(iter(first.chain))
    assert (await make_client(wallet).manage("close_channel", named[:12])).channel_id == named


# As SDKs are used. This one's types name its own fork of httpx; it takes both.

MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


def test_openai_sdk_pays_from_a_wallet(edge: Edge, wallet_for: MakeWallet) -> None:
    transport = PayingTransport(wallet_for(edge))
    with OpenAI(
        api_key="wallet", base_url=edge.url, http_client=cast(Any, httpx.Client(transport=transport))
    ) as client:
        answer = client.chat.completions.create(model="m", messages=MESSAGES)
        assert answer.choices[0].message.content == "Hello there"
        stream = client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == "Hello there"
    assert edge.channel.spent == 400


async def test_async_openai_sdk_pays_from_a_wallet(edge: Edge, wallet_for: MakeWallet) -> None:
    transport = AsyncPayingTransport(wallet_for(edge))
    http = httpx.AsyncClient(transport=transport)
    async with AsyncOpenAI(api_key="wallet", base_url=edge.url, http_client=cast(Any, http)) as client:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
    assert "".join(pieces) == "Hello there"


def test_openai_sdk_shows_why_a_wallet_does_not_pay(edge: Edge, wallet_for: MakeWallet) -> None:
    transport = PayingTransport(wallet_for(edge, trust=trust_for(edge, payees={})))
    with (
        OpenAI(api_key="wallet", base_url=edge.url, http_client=cast(Any, httpx.Client(transport=transport))) as client,
        pytest.raises(APIStatusError, match="add Trust\\(payees=") as caught,
    ):
        client.chat.completions.create(model="m", messages=MESSAGES)
    assert (caught.value.status_code, caught.value.code) == (402, "not_trusted")
    assert edge.unpaid == 1
