"""Many requests at once on one channel: one open, no amount signed twice, whoever asks."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import httpx
from farebox_client import AsyncPayingTransport, Channel, PayingTransport
from farebox_client.challenge import read_offers
from farebox_client.channels import Bill, Channels
from farebox_client.flow import Flow, Pause, run

from tests.client.clients import ASK, TIMEOUT, text_of
from tests.client.conftest import KEY, PAYER, MakeEdge, MakeWallet
from tests.client.edge import Edge
from tests.client.edge_chain import PAYEE
from tests.client.edge_state import Reserve

REQUESTS = 8
CHUNKS = [("Hello", 100), (" there", 100)]


def assert_shared(edge: Edge, requests: int) -> None:
    """One channel paid for all, and nothing was signed that was not needed."""
    assert len(edge.actions("open")) == 1
    assert edge.channel.spent == requests * 200
    assert edge.channel.spent <= edge.channel.accepted <= edge.channel.spent + requests


def test_threads_and_transports_share_one_channel(edge: Edge, wallet_for: MakeWallet) -> None:
    wallets = [wallet_for(edge) for _ in range(2)]

    def ask(number: int) -> str:
        with httpx.Client(transport=PayingTransport(wallets[number % 2], raises=True), timeout=TIMEOUT) as http:
            return text_of(http.post(f"{edge.url}/chat/completions", json={**ASK, "stream": True}))

    with ThreadPoolExecutor(REQUESTS) as pool:
        assert set(pool.map(ask, range(REQUESTS))) == {"Hello there"}
    assert_shared(edge, REQUESTS)


async def test_tasks_share_one_channel(edge: Edge, wallet_for: MakeWallet) -> None:
    answers: list[str] = []
    transport = AsyncPayingTransport(wallet_for(edge), raises=True)

    async def ask(http: httpx.AsyncClient) -> None:
        answers.append(text_of(await http.post(f"{edge.url}/chat/completions", json={**ASK, "stream": True})))

    async with httpx.AsyncClient(transport=transport, timeout=TIMEOUT) as http, anyio.create_task_group() as group:
        for _ in range(REQUESTS):
            group.start_soon(ask, http)
    assert answers == ["Hello there"] * REQUESTS
    assert_shared(edge, REQUESTS)


def test_what_another_request_signs_in_between_is_no_claim_of_the_server(edge: Edge, wallet_for: MakeWallet) -> None:
    wallet = wallet_for(edge)

    def ask(transport: httpx.BaseTransport | None = None) -> int:
        paying = PayingTransport(wallet, transport=transport, raises=True)
        with httpx.Client(transport=paying, timeout=TIMEOUT) as http:
            return http.post(f"{edge.url}/chat/completions", json=ASK).status_code

    class Overtaken(httpx.HTTPTransport):
        """Lets two other requests pass when a voucher is on its way."""

        others: list[int] | None = None

        def handle_request(self, request: httpx.Request) -> httpx.Response:
            if "authorization" in request.headers and self.others is None:
                self.others = [ask(), ask()]
            return super().handle_request(request)

    assert ask() == 200
    overtaken = Overtaken()
    # The server refuses the voucher that was overtaken, and says what it has accepted from the others.
    assert ask(overtaken) == 200
    assert overtaken.others == [200, 200]
    assert_shared(edge, 4)


async def test_request_that_is_cancelled_while_it_opens_lets_the_next_one_in(
    edge: Edge, wallet_for: MakeWallet
) -> None:
    wallet = wallet_for(edge)

    class Stuck(httpx.AsyncHTTPTransport):
        """Never sends what opens a channel."""

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            if "authorization" in request.headers:
                sent.set()
                await anyio.sleep_forever()
            return await super().handle_async_request(request)

    sent = anyio.Event()
    stuck = AsyncPayingTransport(wallet, transport=Stuck(), raises=True)
    async with httpx.AsyncClient(transport=stuck, timeout=TIMEOUT) as http, anyio.create_task_group() as group:
        group.start_soon(lambda: http.post(f"{edge.url}/chat/completions", json=ASK))
        await sent.wait()
        group.cancel_scope.cancel()
    # What it left behind is not on chain, and cannot be any more.
    now = wallet.clock()
    object.__setattr__(wallet, "clock", lambda: now + 60)
    async with httpx.AsyncClient(transport=AsyncPayingTransport(wallet, raises=True), timeout=TIMEOUT) as http:
        assert (await http.post(f"{edge.url}/chat/completions", json=ASK)).status_code == 200
    assert [channel.status for channel in wallet.store.channels()] == ["open", "failed"]


def test_open_that_may_still_be_mined_is_waited_for(edge: Edge, wallet_for: MakeWallet) -> None:
    wallet = wallet_for(edge)
    channels = Channels(wallet)
    with httpx.HTTPTransport() as node:
        challenge = httpx.post(f"{edge.url}/chat/completions", json=ASK, headers={"accept-encoding": "identity"})
        offer = read_offers(challenge.headers.get_list("www-authenticate"))[0]
        opened, payload = run(channels.open(Bill(), offer, origin="http://x:80", url=edge.url), node, node)

        def watched() -> Flow[Channel]:
            """Puts the channel on chain when the client is first asked to wait for it."""
            flow = channels.refresh(opened)
            result: object = None
            while True:
                try:
                    effect = flow.send(result)
                except StopIteration as done:
                    found: Channel = done.value
                    return found
                if isinstance(effect, Pause):
                    edge.chain[opened.channel_id] = Reserve("tempo-v2", PAYER, payload["descriptor"], opened.deposit)
                    result = None
                else:
                    result = yield effect

        assert run(watched(), node, node).status == "open"


def test_processes_share_one_channel(make_edge: MakeEdge, tmp_path: Path) -> None:
    edge = make_edge(chunks=CHUNKS)
    command = [sys.executable, "-m", "farebox_client.cli", "chat", "Hi", "--base-url", edge.url, "--payee", PAYEE]
    command += ["--rpc-url", edge.rpc_url, "--store", str(tmp_path / "channels.db")]
    environ = {"FAREBOX_WALLET_KEY": KEY, "PYTHONPATH": ":".join(sys.path)}
    children = [
        subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)
    ]
    said = [child.communicate(timeout=60) for child in children]
    assert said == [(b"Hello there\n", b"")] * 2
    assert_shared(edge, 2)
