"""Official SDKs pay from a wallet at every endpoint, through farebox-client's transports, on a real chain.

What the channel's close pays on chain is what all answers cost, what the receipts say and what the books have.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import cohere
import httpx
import openai
import pytest
from eth_account import Account
from farebox_client import AsyncPayingTransport, Limits, PayingTransport, Trust, Wallet, usd
from openai import AsyncOpenAI, OpenAI

from app.ledger.account import channel_account
from tests.api.audio_files import wav
from tests.api.forms import CONTENT_TYPE, form, part
from tests.cases.test_charges import balance, charge_challenge, transfer
from tests.devnet_fixtures import TempoChain
from tests.interop.every_endpoint import (
    CHARACTER,
    EMBEDDED,
    IMAGE,
    SEARCH_UNIT,
    SECOND,
    WEB_SEARCH,
    quick_sandbox,
    sections,
)
from tests.interop.test_farebox_client import FUNDS, TIMEOUT_S, Story, Till
from tests.sessions import PayingWallet, events_of, paid_server, receipt_of

SPOKEN = "Mind the gap."
SEARCHING = "Search the web for tides. [[sandbox tokens=40]]"
QUERY: dict[str, Any] = {"model": "sandbox/rerank", "query": "tides", "documents": ["tides rise", "boiled potatoes"]}
NANO_PER_BASE_UNIT = 1000


@pytest.fixture(scope="module")
def till(devnet: TempoChain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Till]:
    """A server of every endpoint with a payee of its own; at the end its books are proven."""
    folder, account = tmp_path_factory.mktemp("wallets"), Account.create()
    devnet.fund(account.address, FUNDS)
    server = paid_server(
        folder,
        devnet,
        database_url=f"sqlite:///{folder / 'books.db'}",
        backends=("tempo-v2",),
        mpp={"vouchers_per_second": 1000},
        environ={"FAREBOX_PAYEE_KEY": account.key.hex()},
        providers=[quick_sandbox()],
        # Small windows, so that streams wait for vouchers.
        ledger={"window_tokens_min": 16, "window_growth": 1},
        **sections(),
    )
    with server:
        yield Till(devnet, server, account.address)
        server.wait_settled()
        server.assert_green()


@pytest.fixture
def story(till: Till, tmp_path: Path) -> Iterator[Story]:
    """A wallet with money that trusts the till."""
    account, chain = Account.create(), till.chain
    chain.fund(account.address, FUNDS)
    told = Story(till, cast(Wallet, None))
    told.wallet = Wallet.from_key(
        account.key.hex(),
        trust=Trust(
            rpc_urls={chain.chain_id: chain.rpc_url},
            tokens={chain.chain_id: [chain.token]},
            payees={till.server.url: [till.payee]},
        ),
        limits=Limits(per_request=usd("0.50")),
        store=tmp_path / "channels.db",
        on_receipt=told.receipts.append,
        on_voucher=told.vouchers.append,
    )
    yield told
    told.wallet.store.close()


@pytest.fixture
def payer(till: Till) -> Iterator[PayingWallet]:
    """A wallet that sends what a test wants."""
    made = PayingWallet.on(till.server, till.chain, payee=till.payee)
    with made.http:
        yield made


def rows(story: Story) -> list[dict[str, Any]]:
    """The outcomes on the wallet's only channel, oldest first."""
    server = story.till.server
    server.wait_settled()
    (channel,) = server.rows("SELECT id FROM channels WHERE payer = :payer", payer=story.wallet.address)
    return server.rows(
        "SELECT o.*, r.model, r.endpoint FROM outcomes o JOIN requests r ON r.id = o.request_id "
        "WHERE r.account_id = :id ORDER BY r.created_at_ms, r.id",
        id=channel_account(channel["id"]),
    )


class Paid:
    """Each answer of one story in turn: what its headers say is what its outcome has and what the receipt adds."""

    def __init__(self, story: Story) -> None:
        self.story = story
        self.costs: list[int] = []

    def next(self, headers: Any, *, cost: int | None = None) -> None:
        """One more answer, which cost so many USD 1e-9 where that is known beforehand."""
        row = rows(self.story)[-1]
        assert (row["status"], row["request_id"]) == ("completed", headers["x-request-id"])
        assert cost in (None, row["charged"])
        if "x-farebox-cost" in headers:
            assert Decimal(headers["x-farebox-cost"]) * 10**9 == row["charged"]
        self.costs.append(row["charged"])
        assert len(rows(self.story)) == len(self.costs)

    def receipts_agree(self) -> None:
        """The last receipt has all that was spent; base units are rounded down."""
        assert self.story.receipts[-1].spent == sum(self.costs) // NANO_PER_BASE_UNIT


def test_sdks_pay_at_every_endpoint_from_one_channel(story: Story) -> None:
    before = story.till.paid()
    transport, paid = PayingTransport(story.wallet), Paid(story)
    with httpx.Client(transport=transport, timeout=TIMEOUT_S) as http:
        client = OpenAI(api_key="wallet", base_url=story.base_url, http_client=cast(Any, http), max_retries=0)
        _text(client, paid)
        _media(client, paid)
        _reranks(story, http, paid)
        _simple_stream(story, http, paid)
        receipt = transport.close_channel()
    assert len(transport.channels()) == 1
    story.finish(receipt)
    assert receipt.spent == sum(paid.costs) // NANO_PER_BASE_UNIT
    assert story.till.paid() - before == receipt.spent - story.fee(str(receipt.tx_hash))


def _text(client: OpenAI, paid: Paid) -> None:
    embeddings = client.embeddings.with_raw_response.create(model="sandbox/embed", input=["one", "two"])
    assert len(embeddings.parse().data) == 2
    paid.next(embeddings.headers, cost=2 * EMBEDDED)
    completion = client.completions.with_raw_response.create(
        model="sandbox/echo", prompt="[[sandbox tokens=60]]On", stream=True
    )
    text = "".join(choice.text for chunk in completion.parse() for choice in chunk.choices)
    assert len(text) == 240
    paid.next(completion.headers)
    paid.receipts_agree()
    chat = client.chat.completions.with_raw_response.create(
        model="sandbox/echo",
        messages=[{"role": "user", "content": SEARCHING}],
        max_tokens=200,
        extra_body={"web_search": True},
    )
    assert chat.parse().choices[0].message.annotations
    paid.next(chat.headers)
    assert paid.costs[-1] > WEB_SEARCH
    paid.receipts_agree()


def _media(client: OpenAI, paid: Paid) -> None:
    images = client.images.with_raw_response.generate(model="sandbox/paint", prompt="A sunset", n=2)
    assert len(images.parse().data or ()) == 2
    paid.next(images.headers, cost=2 * IMAGE["1024x1024"])
    paid.receipts_agree()
    heard = client.audio.transcriptions.with_raw_response.create(
        model="sandbox/transcribe", file=("speech.wav", wav(2.5))
    )
    assert heard.parse().text
    paid.next(heard.headers, cost=3 * SECOND)
    paid.receipts_agree()
    asked: dict[str, Any] = {"model": "sandbox/speak", "voice": "alloy", "response_format": "wav"}
    speech = client.audio.speech.with_raw_response.create(input=SPOKEN, **asked)
    content = speech.parse().content
    assert content.startswith(b"RIFF")
    assert speech.headers["payment-receipt"]
    paid.next(speech.headers, cost=len(SPOKEN) * CHARACTER)
    with client.audio.speech.with_streaming_response.create(input=SPOKEN, **asked) as answer:
        assert b"".join(answer.iter_bytes()) == content
    paid.next(answer.headers, cost=len(SPOKEN) * CHARACTER)


def _reranks(story: Story, http: httpx.Client, paid: Paid) -> None:
    at: dict[str, Any] = {"api_key": "wallet", "base_url": story.till.server.url, "httpx_client": http}
    for kind in (cohere.Client, cohere.ClientV2):
        ranked = kind(**at).with_raw_response.rerank(**QUERY)
        assert [each.index for each in ranked.data.results] == [0, 1]
        paid.next(ranked.headers, cost=SEARCH_UNIT)
        paid.receipts_agree()


def _simple_stream(story: Story, http: httpx.Client, paid: Paid) -> None:
    asked = {"model": "sandbox", "messages": [{"role": "user", "content": "[[sandbox tokens=60]]Hi"}], "stream": True}
    vouchers = len(story.vouchers)
    with http.stream("POST", f"{story.till.server.url}/ai/chat", json=asked) as answer:
        events = list(events_of(answer.iter_lines()))
    # Payment events are answered on the way, and not shown.
    assert {event.name for event in events} == {"message"}
    assert len(story.vouchers) > vouchers
    text = "".join(event.json["delta"].get("content", "") for event in events[:-1])
    assert (len(text), events[-1].data) == (240, "[DONE]")
    paid.next(answer.headers)
    paid.receipts_agree()


async def test_endpoints_at_once_share_one_channel(story: Story) -> None:
    transport = AsyncPayingTransport(story.wallet)

    async def streamed(client: AsyncOpenAI) -> str:
        chunks = await client.completions.create(model="sandbox/echo", prompt="[[sandbox tokens=60]]On", stream=True)
        return "".join([choice.text async for chunk in chunks for choice in chunk.choices])

    async with httpx.AsyncClient(transport=transport, timeout=TIMEOUT_S) as http:
        at: dict[str, Any] = {"api_key": "wallet", "base_url": story.base_url}
        client = AsyncOpenAI(**at, http_client=cast(Any, http), max_retries=0)
        ranking = cohere.AsyncClientV2(**at, httpx_client=http)
        text, ranked, vectors, images, heard, spoken = await asyncio.gather(
            streamed(client),
            ranking.rerank(**QUERY),
            client.embeddings.create(model="sandbox/embed", input="one"),
            client.images.generate(model="sandbox/paint", prompt="A sunset"),
            client.audio.transcriptions.create(model="sandbox/transcribe", file=("speech.wav", wav(1))),
            client.audio.speech.create(model="sandbox/speak", input=SPOKEN, voice="alloy", response_format="pcm"),
        )
        assert len(text) == 240
        assert ranked.meta is not None
        assert all((ranked.results, vectors.data, images.data, heard.text, spoken.content))
        receipt = await transport.close_channel()
    costs = {row["model"]: row["charged"] for row in rows(story)}
    del costs["sandbox/echo"]
    assert costs == {
        "sandbox/rerank": SEARCH_UNIT,
        "sandbox/embed": EMBEDDED,
        "sandbox/paint": IMAGE["1024x1024"],
        "sandbox/transcribe": SECOND,
        "sandbox/speak": len(SPOKEN) * CHARACTER,
    }
    # Receipts of answers at once arrive in any order.
    story.receipts.sort(key=lambda each: each.spent)
    story.finish(receipt)


@pytest.mark.parametrize(
    "ask",
    [
        lambda c: c.images.generate(model="sandbox/paint", prompt="A sunset", size="512x512"),
        lambda c: c.audio.transcriptions.create(model="sandbox/transcribe", file=("speech.wav", b"x" * 99)),
    ],
    ids=["size without a price", "no audio"],
)
def test_request_that_is_wrong_is_refused_before_a_wallet_pays(story: Story, ask: Callable[[OpenAI], Any]) -> None:
    with httpx.Client(transport=PayingTransport(story.wallet), timeout=TIMEOUT_S) as http:
        client = OpenAI(api_key="wallet", base_url=story.base_url, http_client=cast(Any, http), max_retries=0)
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client)
    assert caught.value.code == "invalid_parameter"
    assert (story.vouchers, story.wallet.store.channels()) == ([], [])


def test_a_form_is_paid_for_as_it_was_asked_and_no_other(payer: PayingWallet, till: Till) -> None:
    payer.path = "/v1/audio/transcriptions"
    kind = {"content-type": CONTENT_TYPE}
    short, long = (
        form(part("model", "sandbox/transcribe"), part("file", wav(seconds), filename="a.wav", kind="audio/wav"))
        for seconds in (1, 3)
    )
    assert payer.open().status_code == 200
    challenge = payer.challenge(short, **kind)
    # More than either file costs, so that money is no reason to refuse.
    payer.cumulative = 10 * SECOND // NANO_PER_BASE_UNIT
    payload = payer.voucher_payload(payer.cumulative)
    # Another file, or the same one under another name: the challenge is bound to the form as it was.
    for changed in (long, short.replace(b"a.wav", b"b.wav")):
        refused = payer.send(changed, challenge, payload, **kind)
        assert refused.status_code == 402
        assert refused.json()["type"].endswith("/session/challenge-not-found"), refused.text
        assert "another body" in refused.json()["detail"]
        assert "payment-receipt" not in refused.headers
    answer = payer.send(short, challenge, payload, **kind)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["seconds"] == 1
    again = payer.send(short, challenge, payload, **kind)
    assert again.status_code == 402, "a challenge buys content once"
    till.server.wait_settled()
    charged = till.server.rows(
        "SELECT o.charged FROM outcomes o JOIN requests r ON r.id = o.request_id WHERE r.account_id = :id",
        id=channel_account(payer.channel_id),
    )
    assert [row["charged"] for row in charged] == [SECOND]
    assert payer.close().status_code == 200


def test_speech_has_its_receipt_before_its_bytes(payer: PayingWallet) -> None:
    payer.path = "/v1/audio/speech"
    body = json.dumps({"model": "sandbox/speak", "input": SPOKEN, "voice": "alloy"}).encode()
    assert payer.open().status_code == 200
    answer = payer.complete(body)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "audio/wav"
    receipt = receipt_of(answer)
    assert (receipt["reference"], receipt["status"]) == (payer.channel_id, "success")
    assert int(payer.state()["spent"]) == len(SPOKEN) * CHARACTER // NANO_PER_BASE_UNIT
    assert payer.close().status_code == 200


def test_one_transfer_pays_for_one_image(payer: PayingWallet, till: Till) -> None:
    payer.path = "/v1/images/generations"
    body = json.dumps({"model": "sandbox/paint", "prompt": "A sunset"}).encode()
    challenge = charge_challenge(payer.unpaid(body))
    cost = IMAGE["1024x1024"]
    assert int(challenge.request["amount"]) * NANO_PER_BASE_UNIT == cost
    before, payload = till.paid(), transfer(payer, challenge)
    answers = [payer.send(body, challenge, payload) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 200], answers[0].text
    # The same payment again gives the same image, and no other.
    assert answers[0].content == answers[1].content
    assert receipt_of(answers[0])["status"] == "success"
    assert Decimal(answers[0].headers["x-farebox-cost"]) * 10**9 == cost
    assert till.paid() - before == cost // NANO_PER_BASE_UNIT
    till.server.wait_settled()
    assert balance(till.server, f"customer:wallet_{payer.wallet.address[2:]}") == 0
