"""What the channel cases share: servers that are paid by wallets, and what each refusal must look like."""

import asyncio
import base64
import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
from mpp import Credential

from app.errors import PROBLEMS
from app.ledger.account import channel_account
from tests.chain.faulty_node import FaultyNode
from tests.devnet_fixtures import TempoChain
from tests.serving import FareboxServer
from tests.sessions import DEPOSIT, PATH, Event, PayingWallet, challenges_of, chat, paid_server

# A request whose first hold is far above the one base unit that a first challenge asks for.
SMALL = chat("how much is it?", max_tokens=100)
SPOKEN = chat("how much is it?", stream=True, max_tokens=100)
# Tests send vouchers faster than people's clients do.
PER_SECOND = 1000
JSON = {"content-type": "application/json"}
ADDRESSES = ("payer", "payee", "operator", "token", "authorizedSigner")
DESCRIPTOR = (*((name, 20) for name in ADDRESSES), ("salt", 32), ("expiringNonceHash", 32))
START_S_MAX = 30
# The wallets of the running test, whose connections end with it.
WALLETS: list[PayingWallet] = []


@contextmanager
def shop(folder: Path, template: Path, chain: TempoChain, **changes: Any) -> Iterator[FareboxServer]:
    """A server on SQLite that is paid on ``chain``."""
    url = f"sqlite:///{shutil.copy(template, folder / 'farebox.db')}"
    mpp = {"vouchers_per_second": PER_SECOND, **changes.pop("mpp", {})}
    with paid_server(folder, chain, database_url=url, mpp=mpp, **changes) as server:
        wait_seen(server)
        yield server


def copied(server: FareboxServer, folder: Path) -> str:
    """The URL of a copy of a running server's SQLite database."""
    path = folder / "copy.db"
    with (
        closing(sqlite3.connect(server.database_url.removeprefix("sqlite:///"))) as source,
        closing(sqlite3.connect(path)) as target,
    ):
        source.backup(target)
    return f"sqlite:///{path}"


def wait_seen(server: FareboxServer) -> None:
    """Wait until the server has seen its chains: before that it is ready, and serves no wallets."""
    payload = {
        "action": "voucher",
        "channelId": "0x" + "00" * 32,
        "cumulativeAmount": "1",
        "signature": "0x" + "11" * 64 + "1b",
    }
    with httpx.Client(base_url=server.url, timeout=START_S_MAX) as http:

        def seen() -> bool:
            asked = http.post(PATH, content=SMALL, headers=JSON)
            statuses = set()
            for challenge in challenges_of(asked):
                if challenge.intent == "session":
                    descriptor = {name: "0x" + "00" * size for name, size in DESCRIPTOR}
                    wanted = Credential(challenge.to_echo(), {**payload, "descriptor": descriptor})
                    headers = {**JSON, "authorization": wanted.to_authorization()}
                    statuses.add(http.post(PATH, content=SMALL, headers=headers).status_code)
            # Gone: the chain is seen, and this channel is not on it.
            return statuses == {410}

        eventually(seen, within_s=START_S_MAX)


def restart(server: FareboxServer) -> None:
    """Start a server again that was killed."""
    server.start()
    wait_seen(server)


def funded(server: FareboxServer, chain: TempoChain, backend: str = "tempo-v2", **changes: Any) -> PayingWallet:
    """A wallet with money and no channel yet."""
    wallet = PayingWallet.on(server, chain, backend, **changes)
    WALLETS.append(wallet)
    return wallet


def moved(wallet: PayingWallet, server: FareboxServer) -> PayingWallet:
    """The same wallet at another server that knows its channel."""
    http = httpx.Client(base_url=server.url, timeout=START_S_MAX)
    WALLETS.append(PayingWallet(server, wallet.wallet, http, wallet.opening, wallet.cumulative))
    return WALLETS[-1]


def close_wallets() -> None:
    """End what the test's wallets have open."""
    while WALLETS:
        WALLETS.pop().http.close()


def opened(
    server: FareboxServer, chain: TempoChain, *, credit: int = 0, backend: str = "tempo-v2", deposit: int = DEPOSIT
) -> PayingWallet:
    """A wallet whose channel is open and has so much accepted."""
    wallet = funded(server, chain, backend)
    answer = wallet.open(deposit, amount=max(1, credit))
    assert answer.status_code == 200, answer.text
    return wallet


def row(wallet: PayingWallet) -> dict[str, Any]:
    """The channel as the database has it."""
    (found,) = wallet.server.rows("SELECT * FROM channels WHERE id = :id", id=wallet.channel_id)
    return found


def standing(wallet: PayingWallet) -> dict[str, Any]:
    """The channel but for what a look at the chain changes, which may come at any moment."""
    return {name: value for name, value in row(wallet).items() if name not in {"version", "seen_block"}}


def held(wallet: PayingWallet) -> int:
    """What is held on the channel now."""
    statement = "SELECT coalesce(sum(amount), 0) AS n FROM holds WHERE account_id = :id"
    return int(wallet.server.rows(statement, id=channel_account(wallet.channel_id))[0]["n"])


def outcomes(wallet: PayingWallet) -> list[dict[str, Any]]:
    """How the channel's requests ended, the oldest first."""
    return wallet.server.rows(
        "SELECT o.* FROM outcomes o JOIN requests r ON r.id = o.request_id "
        "WHERE r.account_id = :id ORDER BY r.created_at_ms, r.id",
        id=channel_account(wallet.channel_id),
    )


def bought(wallet: PayingWallet) -> int:
    """How many requests the channel was ever charged or held for."""
    statement = "SELECT count(*) AS n FROM requests WHERE account_id = :id"
    return int(wallet.server.rows(statement, id=channel_account(wallet.channel_id))[0]["n"])


def charged(wallet: PayingWallet) -> int:
    """What the outcomes say was charged in all, in nano-USD: counted apart from the channel's own row."""
    return sum(int(outcome["charged"]) for outcome in outcomes(wallet))


def problem_of(response: httpx.Response, status: int, slug: str) -> dict[str, Any]:
    """The problem document of a refusal, whose form is checked: no receipt, and for a 402 a way to pay."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    assert "no-store" in response.headers["cache-control"]
    assert "payment-receipt" not in response.headers
    if status == 402:
        assert response.headers.get("www-authenticate", "").startswith("Payment "), response.headers
    problem: dict[str, Any] = response.json()
    assert problem["type"] == PROBLEMS + slug, problem
    return problem


def snapshot_of(wallet: PayingWallet, response: httpx.Response) -> dict[str, Any]:
    """The snapshot in the challenge that continues a session."""
    details = wallet.pick(response).request["methodDetails"]
    snapshot: dict[str, Any] = details["sessionSnapshot"]
    return snapshot


def until(events: Iterator[Event], name: str) -> Event:
    """Read on to the next event of this name."""
    for event in events:
        if event.name == name:
            return event
    raise AssertionError(f"the stream ended without {name}")


@contextmanager
def waiting(
    wallet: PayingWallet, body: bytes, payload: Mapping[str, Any] | None = None
) -> Iterator[tuple[Event, Iterator[Event]]]:
    """A stream that waits for its first voucher: what it asks for, and what comes then."""
    challenge = wallet.challenge(body)
    if payload is None:
        wallet.cumulative += int(challenge.request["amount"])
        payload = wallet.voucher_payload(wallet.cumulative)
    with wallet.streaming(body, challenge, payload) as (response, events):
        assert response.status_code == 200, response.read()
        yield until(events, "payment-need-voucher"), events


def raw_credential(document: Any) -> str:
    """A value of ``Authorization`` with any document, or any text, in it."""
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    return "Payment " + base64.urlsafe_b64encode(text).decode().rstrip("=")


def document_of(authorization: str) -> dict[str, Any]:
    """The document in a value of ``Authorization``."""
    text = authorization.removeprefix("Payment ")
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return found


def changed(document: Mapping[str, Any], path: str, change: Callable[[Any], Any]) -> dict[str, Any]:
    """A copy with one member changed, by its dotted path; what changes to None is left out."""
    copy: dict[str, Any] = json.loads(json.dumps(document))
    *parents, name = path.split(".")
    place = copy
    for parent in parents:
        place = place[parent]
    value = change(place.get(name))
    place.pop(name, None)
    if value is not None:
        place[name] = value
    return copy


@contextmanager
def faulty(chain: TempoChain) -> Iterator[FaultyNode]:
    """A node of ``chain`` that goes wrong by rules, in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="faulty", daemon=True)
    thread.start()

    def run(work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(START_S_MAX)

    async def begun() -> FaultyNode:
        return await FaultyNode(chain.rpc_url).__aenter__()

    try:
        node: FaultyNode = run(begun())
        try:
            yield node
        finally:
            run(node.__aexit__(None, None, None))
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def eventually(condition: Callable[[], object], *, within_s: float = 20) -> None:
    """Wait until ``condition`` holds."""
    ends_s = time.monotonic() + within_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < ends_s, "it did not come true"
        pause.wait(0.02)


def send_raw(chain: TempoChain, raw: bytes) -> None:
    """Hand a transaction to the chain behind the server's back, and see it mined."""
    call = {"jsonrpc": "2.0", "id": 1, "method": "eth_sendRawTransactionSync", "params": ["0x" + raw.hex()]}
    answer = httpx.post(chain.rpc_url, json=call, timeout=START_S_MAX).json()
    assert int(answer["result"]["status"], 16) == 1, answer


def settlements(wallet: PayingWallet) -> list[dict[str, Any]]:
    """What was sent to the chain for the channel, the oldest first."""
    statement = "SELECT * FROM settlements WHERE channel_id = :id ORDER BY created_at_ms, id"
    return wallet.server.rows(statement, id=wallet.channel_id)
