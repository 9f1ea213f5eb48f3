"""Server and chain connection, killed at every step of a channel's life: ledger, channels and chain agree afterwards.

Each run opens a channel, streams with pauses, tops up, settles and closes, and loses the server (or the chain's
answers) at one step of it. Whatever was lost, the client asks again, and in the end the payee has on chain exactly
what the ledger says was spent, the payer has the rest, and nothing is left under way.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from eth_account import Account

from tests.devnet_fixtures import TempoChain
from tests.faults.gate import Gate, Trap
from tests.serving import FareboxServer
from tests.sessions import DEPOSIT, FUNDS, PayingWallet, chat, paid_server

SEND, RECEIPT, CALL, NONCE = (
    "eth_sendRawTransaction",
    "eth_getTransactionReceipt",
    "eth_call",
    "eth_getTransactionCount",
)
# Longer than the first window, so that it pauses.
LONG = chat("tell me [[sandbox tokens=900]]", stream=True, max_tokens=1000)
TRIES_MAX = 40
PAUSE_S = 0.25
PAYEE_FUNDS = 10_000_000
# Settled at once, so that a settlement is under way in every run.
MPP = {
    "exposure_max": "0.003",
    "settle_min": "0.0001",
    "confirm_timeout_s": 5,
    "rpc_timeout_s": 2,
    "vouchers_per_second": 1000,
    "voucher_timeout_s": 5,
}

STEPS = ("open", "topUp", "settle", "close")
KILLS = [
    ("open", SEND, False),
    ("open", SEND, True),
    ("open", RECEIPT, True),
    ("open", CALL, False),
    ("topUp", SEND, False),
    ("topUp", SEND, True),
    ("settle", NONCE, False),
    ("settle", SEND, False),
    ("settle", SEND, True),
    ("settle", RECEIPT, True),
    ("close", NONCE, True),
    ("close", SEND, False),
    ("close", SEND, True),
    ("close", RECEIPT, False),
]


class Run:
    """One channel's life, through whatever happens to it."""

    def __init__(self, server: FareboxServer, gate: Gate, chain: TempoChain, *, payee: str) -> None:
        self.server = server
        self.gate = gate
        self.chain = chain
        self.wallet = PayingWallet.on(server, chain, payee=payee)
        self.payee_before = chain.balance(self.wallet.wallet.offer.recipient)
        self.down = threading.Event()
        self.deposited = 0

    def kill(self) -> None:
        """SIGKILL; the run notices and starts it again."""
        self.server.kill()
        self.down.set()

    def persist(self, what: Callable[[], httpx.Response], *, good: tuple[int, ...] = (200,)) -> httpx.Response:
        """Ask again until it is answered well; start the server where it was killed."""
        pause = threading.Event()
        last: Any = None
        for _ in range(TRIES_MAX):
            try:
                answer = what()
                if answer.status_code in good:
                    return answer
                last = (answer.status_code, answer.text[:300])
            except httpx.TransportError as error:
                last = repr(error)
            self.revive()
            pause.wait(PAUSE_S)
        raise AssertionError(f"never answered well: {last}\n{self.server.log.read_text()[-3000:]}")

    def revive(self) -> None:
        """Start the server again if it was killed."""
        process = self.server.process
        if process is not None and process.poll() is not None:
            self.server.start()
            self.down.clear()

    def open(self) -> None:
        challenge = self.wallet.challenge(b"")
        payload = self.wallet.open_payload(DEPOSIT)
        self.deposited = DEPOSIT

        def again() -> httpx.Response:
            fresh = self.wallet.challenge(b"")
            return self.wallet.send(b"", fresh, payload)

        try:
            first = self.wallet.send(b"", challenge, payload)
        except httpx.TransportError:
            first = None
        if first is None or first.status_code != 200:
            self.persist(again)

    def stream(self) -> None:
        """A stream, and another if it was cut off."""
        pause = threading.Event()
        for _ in range(TRIES_MAX):
            with suppress(httpx.TransportError, AssertionError):
                found = self.wallet.stream(LONG)
                if found.error is None and found.events[-1].data == "[DONE]":
                    return
            self.revive()
            self.catch_up()
            pause.wait(PAUSE_S)
        raise AssertionError(f"no stream ended well\n{self.server.log.read_text()[-3000:]}")

    def catch_up(self) -> None:
        """What clients do after a failure: sign from what the server says was accepted."""
        (row,) = self.server.rows("SELECT accepted FROM channels WHERE id = :id", id=self.wallet.channel_id)
        self.wallet.cumulative = max(1, row["accepted"] // 1000)

    def top_up(self) -> None:
        opening = self.wallet.opening
        assert opening is not None
        payload = self.wallet.wallet.top_up_v2(opening, DEPOSIT)
        self.persist(lambda: self.wallet.send(b"", self.wallet.challenge(b""), payload))
        self.deposited += DEPOSIT

    def settled(self) -> None:
        """Wait until something was settled while the channel is open, and the server knows by which transaction.

        The chain's event may be seen before the transaction's receipt is asked for.
        """
        pause = threading.Event()
        for _ in range(TRIES_MAX):
            self.revive()
            (row,) = self.server.rows("SELECT settled, spent FROM channels WHERE id = :id", id=self.wallet.channel_id)
            if row["settled"] and not self.under_way():
                return
            pause.wait(PAUSE_S)
        raise AssertionError(f"nothing was settled: {row}\n{self.server.log.read_text()[-3000:]}")

    def under_way(self) -> list[dict[str, Any]]:
        """Settlements that are not over."""
        return self.server.rows("SELECT id FROM settlements WHERE state IN ('intent', 'signed')")

    def close(self) -> None:
        self.catch_up()
        self.persist(self.wallet.close)

    def prove(self) -> None:
        """Ledger, channel and chain say the same."""
        pause = threading.Event()
        for _ in range(TRIES_MAX):
            under_way = self.under_way()
            fundings = self.server.rows("SELECT tx_hash FROM fundings WHERE state = 'sent'")
            if not under_way and not fundings:
                break
            pause.wait(PAUSE_S)
        assert not under_way
        assert not fundings
        (row,) = self.server.rows("SELECT * FROM channels WHERE id = :id", id=self.wallet.channel_id)
        spent = row["spent"] // 1000
        assert row["status"] == "closed"
        assert row["settled"] == spent > 0
        assert row["published"] >= spent
        fees = self.server.rows("SELECT COALESCE(SUM(fee), 0) AS fee FROM settlements")[0]["fee"]
        offer = self.wallet.wallet.offer
        assert self.chain.balance(offer.recipient) - self.payee_before == spent - fees
        # The payer's own transactions cost fees too: what is missing beyond them would be more than they can be.
        left = self.chain.balance(self.wallet.wallet.address)
        assert FUNDS - spent - 100_000 < left <= FUNDS - spent
        self.server.wait_settled()
        self.server.assert_green()


@pytest.fixture
def gate(devnet: TempoChain) -> Iterator[Gate]:
    with Gate(devnet.rpc_url) as made:
        yield made


@pytest.fixture
def run(devnet: TempoChain, gate: Gate, sqlite_url: str, tmp_path: Path) -> Iterator[Run]:
    # A payee of its own, so that what others are paid is not in its balance.
    payee = Account.create()
    devnet.fund(payee.address, PAYEE_FUNDS)
    server = paid_server(
        tmp_path,
        devnet,
        database_url=sqlite_url,
        backends=("tempo-v2",),
        mpp=MPP,
        # Vouchers follow what is spent closely, so that there is always one to settle.
        ledger={"window_tokens_min": 64, "window_cost_max": "0.0008"},
        channel={"rpc_url": gate.url},
        environ={"FAREBOX_PAYEE_KEY": payee.key.to_0x_hex()},
    )
    with server:
        made = Run(server, gate, devnet, payee=payee.address)
        with made.wallet.http:
            yield made


@pytest.mark.parametrize(("step", "method", "after"), KILLS)
def test_a_server_killed_at_any_step_loses_nobodys_money(run: Run, step: str, method: str, after: bool) -> None:
    trap = Trap(method, run.kill, after=after)
    live(run, step, trap)
    assert trap.sprung.is_set(), f"{method} was never asked in {step}"


@pytest.mark.parametrize("step", STEPS)
def test_a_chain_that_goes_silent_at_any_step_is_waited_for(run: Run, step: str) -> None:
    trap = Trap(SEND, lambda: close_for_a_while(run.gate), after=True)
    live(run, step, trap)
    assert trap.sprung.is_set()


def close_for_a_while(gate: Gate) -> None:
    """The connection is gone for a second."""
    gate.closed = True
    threading.Timer(1.0, lambda: setattr(gate, "closed", False)).start()


def live(run: Run, step: str, trap: Trap) -> None:
    """A channel's whole life, with a trap at one step."""
    for name, act in (
        ("open", run.open),
        ("stream", run.stream),
        ("settle", run.settled),
        ("topUp", run.top_up),
        ("more", run.stream),
        ("close", run.close),
    ):
        if name == step or (step == "settle" and name == "stream"):
            run.gate.trap = trap
        act()
        if name == step:
            run.gate.trap = None
    run.prove()


def test_a_server_killed_in_a_pause_and_in_a_voucher_goes_on_with_the_same_channel(run: Run) -> None:
    run.open()
    challenge = run.wallet.challenge(LONG)
    run.wallet.cumulative += 1
    payload = run.wallet.voucher_payload(run.wallet.cumulative)
    with suppress(httpx.TransportError), run.wallet.streaming(LONG, challenge, payload) as (_, events):
        for event in events:
            if event.name == "payment-need-voucher":
                # The voucher is on its way when the server dies: accepted or not, it may be sent again.
                amount = int(event.json["requiredCumulative"])
                voucher = threading.Thread(target=quietly, args=(partial(run.wallet.update, amount, challenge),))
                voucher.start()
                run.kill()
                voucher.join()
                break
    run.revive()
    run.persist(lambda: run.wallet.update(run.wallet.cumulative))
    run.stream()
    run.close()
    run.prove()
    assert len(run.server.rows("SELECT id FROM channels")) == 1


def quietly(what: Callable[[], object]) -> None:
    """Run it; the server may be dead by then."""
    with suppress(httpx.TransportError, AssertionError):
        what()
