"""OpenAI's SDK over farebox-client's transports, in front of a real server and a real chain.

At the end of each story the client closes its channel, and what the chain paid is what the receipts said,
what the books say and what the client had signed at most.
"""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import openai
import pytest
from eth_account import Account
from farebox_client import (
    AsyncPayingTransport,
    ChannelUnavailable,
    LimitReached,
    Limits,
    PayingTransport,
    Receipt,
    Signed,
    Trust,
    Wallet,
    usd,
)
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionMessageParam

from app.ledger.account import channel_account
from app.money import base_units_down
from tests.devnet_fixtures import EvmChain, TempoChain
from tests.serving import FareboxServer
from tests.sessions import MODEL, paid_server

FUNDS = usd("20.00")
NATIVE_WEI = hex(10**18)
MESSAGES: list[ChatCompletionMessageParam] = [{"role": "user", "content": "[[sandbox tokens=60]]Hello"}]
# Small windows, so that a stream of sixty tokens pauses for several vouchers.
LEDGER = {"window_tokens_min": 16, "window_growth": 1}
TIMEOUT_S = 60


@dataclass
class Till:
    """A server with a payee of its own, so that the payee's balance is what its channels paid."""

    chain: Any
    server: FareboxServer
    payee: str

    def paid(self) -> int:
        """What the payee has by now; fees that it paid itself are on another chain's token or in the receipts."""
        found: int = self.chain.balance(self.payee)
        return found


@dataclass
class Story:
    """One wallet at one till, and all that it was told."""

    till: Till
    wallet: Wallet
    receipts: list[Receipt] = field(default_factory=list)
    vouchers: list[Signed] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"{self.till.server.url}/v1"

    def finish(self, receipt: Receipt) -> None:
        """The channel was closed: chain, receipts, books and signatures agree."""
        server, chain = self.till.server, self.till.chain
        server.wait_settled()
        (row,) = server.rows("SELECT * FROM channels WHERE payer = :payer", payer=self.wallet.address)
        assert row["id"] == receipt.channel_id
        assert row["status"] == "closed"
        assert receipt.tx_hash is not None
        assert receipt.spent == self.receipts[-1].spent == row["settled"] == base_units_down(row["spent"])
        (charged,) = server.rows(
            "SELECT sum(o.charged) AS n FROM outcomes o JOIN requests r ON r.id = o.request_id "
            "WHERE r.account_id = :id",
            id=channel_account(row["id"]),
        )
        assert charged["n"] == row["spent"]
        assert receipt.spent <= sum(voucher.added for voucher in self.vouchers)
        fundings = server.rows("SELECT tx_hash FROM fundings WHERE channel_id = :id", id=row["id"])
        fees = sum(self.fee(each["tx_hash"]) for each in fundings)
        assert chain.balance(self.wallet.address) == FUNDS - receipt.spent - fees
        server.assert_green()

    def fee(self, tx_hash: str) -> int:
        """What a transaction cost its sender, in base units; elsewhere than on Tempo that is not the token."""
        if not hasattr(self.till.chain.chain, "escrow_v2"):
            return 0
        mined = self.till.chain.rpc("eth_getTransactionReceipt", tx_hash)
        cost = int(mined["gasUsed"], 16) * int(mined["effectiveGasPrice"], 16)
        return -(-cost // 10**12)


MakeStory = Callable[..., Story]


def _till(chain: Any, folder: Path, backends: tuple[str, ...], **mpp: Any) -> tuple[FareboxServer, str]:
    account = Account.create()
    chain.fund(account.address, FUNDS)
    if backends == ("evm",):
        chain.rpc("anvil_setBalance", account.address, NATIVE_WEI)
    server = paid_server(
        folder,
        chain,
        database_url=f"sqlite:///{folder}/books.db",
        backends=backends,
        mpp={"vouchers_per_second": 1000, "suggested_deposit": "0.001", **mpp},
        environ={"FAREBOX_PAYEE_KEY": account.key.hex()},
        ledger=LEDGER,
    )
    return server, account.address


@pytest.fixture(scope="module")
def tempo(devnet: TempoChain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Till]:
    """A server that is paid on Tempo by both protocols."""
    server, payee = _till(devnet, tmp_path_factory.mktemp("tempo"), ("tempo-v2", "tempo-v1"))
    with server:
        yield Till(devnet, server, payee)


@pytest.fixture(scope="module")
def tempo_v1(devnet: TempoChain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Till]:
    """A server that is paid on Tempo by the older protocol alone."""
    server, payee = _till(devnet, tmp_path_factory.mktemp("tempo-v1"), ("tempo-v1",))
    with server:
        yield Till(devnet, server, payee)


@pytest.fixture(scope="module")
def evm(evm_chain: EvmChain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Till]:
    """A server that is paid on another EVM chain."""
    server, payee = _till(evm_chain, tmp_path_factory.mktemp("evm"), ("evm",))
    with server:
        yield Till(evm_chain, server, payee)


@pytest.fixture
def make_story(tmp_path: Path) -> Iterator[MakeStory]:
    """Makes wallets with money that trust a till."""
    made: list[Wallet] = []

    def make(till: Till, *, limits: Limits | None = None, **trusted: Any) -> Story:
        account, chain = Account.create(), till.chain
        chain.fund(account.address, FUNDS)
        if not hasattr(chain.chain, "escrow_v2"):
            chain.rpc("anvil_setBalance", account.address, NATIVE_WEI)
        named: dict[str, Any] = {
            "rpc_urls": {chain.chain_id: chain.rpc_url},
            "tokens": {chain.chain_id: [chain.token]},
            "escrows": {chain.chain_id: [chain.escrow_v1]},
            "payees": {till.server.url: [till.payee]},
            **trusted,
        }
        receipts: list[Receipt] = []
        vouchers: list[Signed] = []
        wallet = Wallet.from_key(
            account.key.hex(),
            trust=Trust(**named),
            limits=limits or Limits(),
            store=tmp_path / f"{account.address}.db",
            on_receipt=receipts.append,
            on_voucher=vouchers.append,
        )
        made.append(wallet)
        return Story(till, wallet, receipts, vouchers)

    yield make
    for wallet in made:
        wallet.store.close()


def sdk(story: Story, transport: PayingTransport) -> OpenAI:
    """The SDK as its users make it."""
    http = httpx.Client(transport=transport)
    # The SDK's types name its own fork of httpx; it takes both.
    return OpenAI(api_key="wallet", base_url=story.base_url, http_client=cast(Any, http), timeout=TIMEOUT_S)


def async_sdk(story: Story, transport: AsyncPayingTransport) -> AsyncOpenAI:
    """The SDK as its users make it, awaited."""
    http = httpx.AsyncClient(transport=transport)
    return AsyncOpenAI(api_key="wallet", base_url=story.base_url, http_client=cast(Any, http), timeout=TIMEOUT_S)


def ask(client: OpenAI) -> str:
    """A whole answer."""
    answer = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=100)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 60
    return answer.choices[0].message.content or ""


def stream(client: OpenAI) -> str:
    """A streamed answer."""
    chunks = client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=100, stream=True)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


@pytest.mark.parametrize("name", ["tempo", "tempo_v1", "evm"])
def test_sdk_pays_per_token_and_the_chain_pays_what_the_receipts_say(
    request: pytest.FixtureRequest, make_story: MakeStory, name: str
) -> None:
    story = make_story(till := request.getfixturevalue(name))
    before = till.paid()
    transport = PayingTransport(story.wallet)
    with sdk(story, transport) as client:
        answers = [ask(client), stream(client), ask(client), stream(client), stream(client)]
        assert len(set(answers)) == 1
        assert len(story.vouchers) > len(answers)
        receipt = transport.close_channel()
    story.finish(receipt)
    gained = till.paid() - before
    assert gained == receipt.spent - story.fee(str(receipt.tx_hash))


async def test_async_sdk_pays_for_streams_at_once_from_one_channel(tempo: Till, make_story: MakeStory) -> None:
    story = make_story(tempo)
    transport = AsyncPayingTransport(story.wallet)

    async def one(client: AsyncOpenAI) -> str:
        chunks = await client.chat.completions.create(model=MODEL, messages=MESSAGES, max_tokens=100, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in chunks if chunk.choices])

    async with async_sdk(story, transport) as client:
        answers = await asyncio.gather(*(one(client) for _ in range(6)))
        assert len(set(answers)) == 1
        receipt = await transport.close_channel()
    story.finish(receipt)


def test_stream_tops_up_on_the_way(tempo: Till, make_story: MakeStory) -> None:
    story = make_story(tempo)
    transport = PayingTransport(story.wallet)
    with sdk(story, transport) as client:
        for _ in range(6):
            stream(client)
        (channel,) = transport.channels()
        # A thousand base units were suggested, and six answers cost more.
        assert channel.spent > 1000
        assert channel.deposit >= 2000
        story.finish(transport.close_channel())
    kinds = tempo.server.rows("SELECT kind FROM fundings WHERE channel_id = :id", id=channel.channel_id)
    assert sorted({row["kind"] for row in kinds}) == ["open", "topUp"]


def test_payer_adds_to_a_deposit_and_reads_its_balance(tempo: Till, make_story: MakeStory) -> None:
    story = make_story(tempo)
    transport = PayingTransport(story.wallet)
    with sdk(story, transport) as client:
        ask(client)
        assert transport.top_up(usd("0.50")).deposit == usd("0.501")
        balance = transport.balance()
        assert balance.remaining == usd("0.501") - story.receipts[-1].spent
        story.finish(transport.close_channel())


def test_limit_of_a_request_ends_its_stream_and_what_came_is_billed(tempo: Till, make_story: MakeStory) -> None:
    story = make_story(tempo, limits=Limits(per_request=150))
    transport = PayingTransport(story.wallet)
    with sdk(story, transport) as client:
        with pytest.raises(LimitReached, match="per_request"):
            stream(client)
        tempo.server.wait_settled()
        receipt = transport.close_channel()
    assert 0 < receipt.spent <= 150
    story.receipts.append(receipt)
    story.finish(receipt)


def test_untrusted_payee_is_shown_by_the_sdk_and_nothing_is_opened(tempo: Till, make_story: MakeStory) -> None:
    story = make_story(tempo, payees={})
    with (
        sdk(story, PayingTransport(story.wallet)) as client,
        pytest.raises(openai.APIStatusError, match=tempo.payee.lower()) as caught,
    ):
        ask(client)
    assert (caught.value.status_code, caught.value.code) == (402, "not_trusted")
    assert story.wallet.store.channels() == []


def test_price_above_the_limit_is_refused(tempo: Till, make_story: MakeStory) -> None:
    story = make_story(tempo, limits=Limits(prices={"output": "3.99"}))
    with (
        sdk(story, PayingTransport(story.wallet)) as client,
        pytest.raises(openai.APIStatusError, match=r"price for output is 4(\.00)? USD"),
    ):
        ask(client)
    fine = make_story(tempo, limits=Limits(prices={"output": "4.00", "input": "1.00"}))
    transport = PayingTransport(fine.wallet)
    with sdk(fine, transport) as client:
        ask(client)
        fine.finish(transport.close_channel())


def test_restarted_client_goes_on_with_its_channel(tempo: Till, make_story: MakeStory) -> None:
    story = make_story(tempo)
    with sdk(story, PayingTransport(story.wallet)) as client:
        ask(client)
    story.wallet.store.close()
    transport = PayingTransport(story.wallet)
    with sdk(story, transport) as client:
        stream(client)
        story.finish(transport.close_channel())


def test_channel_that_another_process_closed_is_replaced(tempo: Till, make_story: MakeStory) -> None:
    story = make_story(tempo)
    first, second = PayingTransport(story.wallet), PayingTransport(story.wallet)
    with sdk(story, first) as client, sdk(story, second) as other:
        ask(client)
        closed = second.close_channel()
        # As if the file of this process had not heard of it.
        story.wallet.store.set_status(closed.channel_id, "open")
        ask(client)
        ask(other)
        opened = next(channel for channel in first.channels() if channel.status == "open")
        assert opened.channel_id != closed.channel_id
        first.close_channel(opened.channel_id)
        with pytest.raises(ChannelUnavailable, match="has no channel"):
            first.close_channel()
    tempo.server.wait_settled()
    tempo.server.assert_green()
