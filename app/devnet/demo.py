"""``python -m app.devnet.demo``, which `make demo` runs: the whole life of a payment channel, told step by step.

A local chain, a real server process and a wallet with play money, all on this machine; nothing is left behind.
The wallet's side is the `farebox-client` distribution under the official shape of an HTTP request.
"""

import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from app.devnet import Devnet, DevnetThread
from app.devnet.accounts import OPERATOR, USER

START_TIMEOUT_S = 60
STOP_TIMEOUT_S = 40
POLL_S = 0.1
DEPOSIT_USD = "0.01"
QUESTION = "Tell me about payment channels. [[sandbox tokens=2500]]"

CONFIG = """\
[server]
port = {port}
[database]
url = "sqlite:///demo.db"
[ledger]
window_tokens_min = 64
window_cost_max = "0.002"
[mpp]
realm = "demo.farebox.example"
suggested_deposit = "{deposit}"
[[mpp.channels]]
backend = "tempo-v2"
chain_id = {chain_id}
rpc_url = "{rpc_url}"
escrow = "{escrow}"
currency = "{token}"
[[providers]]
name = "sandbox"
adapter = "sandbox"
tokens_per_second = 1500.0
[[providers.models]]
id = "sandbox/echo"
capabilities = ["chat"]
context_window = 131072
max_output_tokens = 16384
price = {{ input = "1.00", output = "4.00" }}
cost = {{ input = "0.50", output = "2.00" }}
"""


def say(text: str = "") -> None:
    """One line of the story."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def step(number: int, text: str) -> None:
    """The head of a step."""
    say(f"\n{number}. {text}")


def usd(base_units: int) -> str:
    """Base units as USD, exactly."""
    return f"{base_units // 10**6}.{base_units % 10**6:06d} USD"


class Told(httpx.BaseTransport):
    """Tells what goes to the server and what comes back; the chain's own traffic passes in silence."""

    def __init__(self) -> None:
        self._inner = httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send it on, and tell it."""
        response = self._inner.handle_request(request)
        say(f"   -> {request.method} {request.url.path}  {_credential(request)}")
        say(f"   <- {response.status_code}  {_answer(response)}")
        return response

    def close(self) -> None:
        """Close connections."""
        self._inner.close()


def _decoded(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    return found


def _credential(request: httpx.Request) -> str:
    value = request.headers.get("authorization", "")
    body = f"{len(request.content)} bytes" if request.content else "no body"
    if not value.lower().startswith("payment "):
        return f"({body}, no credential)"
    payload = _decoded(value.partition(" ")[2])["payload"]
    amount = payload.get("cumulativeAmount") or payload.get("additionalDeposit")
    return f"({body}, Authorization: Payment  {payload['action']} {amount} on {payload['channelId'][:10]}...)"


def _answer(response: httpx.Response) -> str:
    if response.status_code == 402:
        challenge = response.headers.get("www-authenticate", "")
        request = _decoded(challenge.partition('request="')[2].partition('"')[0])
        deposit = request.get("suggestedDeposit")
        return f"challenge: {request['amount']} base unit(s) now, a deposit of {deposit} suggested"
    text = response.headers.get("payment-receipt")
    if text is None:
        return ""
    receipt = _decoded(text)
    mined = f", on chain in {receipt['txHash'][:10]}..." if "txHash" in receipt else ""
    return f"receipt: accepted {receipt['acceptedCumulative']}, spent {receipt['spent']}{mined}"


@contextmanager
def server_on(chain: DevnetThread[Devnet], folder: Path) -> Iterator[str]:
    """A real server process that is paid on the chain; its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "farebox.toml"
    config.write_text(
        CONFIG.format(
            port=port,
            deposit=DEPOSIT_USD,
            chain_id=chain.chain_id,
            rpc_url=chain.rpc_url,
            escrow=chain.escrow_v2.lower(),
            token=chain.token.lower(),
        )
    )
    environ = {**os.environ, "FAREBOX_PAYEE_KEY": chain.accounts[OPERATOR].private_key}
    with (folder / "server.log").open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            [sys.executable, "-m", "app.cli", "serve", "--config", str(config)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environ,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        ends_s = time.monotonic() + START_TIMEOUT_S
        while not _ready(url):
            if process.poll() is not None or time.monotonic() > ends_s:
                raise SystemExit("the server did not start:\n" + (folder / "server.log").read_text())
            time.sleep(POLL_S)
        yield url
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz", timeout=1).status_code == 200
    except httpx.TransportError:
        return False


def play(chain: DevnetThread[Devnet], url: str, folder: Path) -> None:
    """The story."""
    from farebox_client import Limits, PayingTransport, Trust, Wallet
    from farebox_client import usd as base_units

    payee, payer = chain.accounts[OPERATOR].address, chain.accounts[USER].address
    # A token's worth of whole dollars reads better than the node's own fortune.
    before = {name: chain.balance(address) for name, address in (("payee", payee), ("payer", payer))}
    signed: list[int] = []
    wallet = Wallet.from_key(
        chain.accounts[USER].private_key,
        trust=Trust(
            rpc_urls={chain.chain_id: chain.rpc_url}, tokens={chain.chain_id: [chain.token]}, payees={url: [payee]}
        ),
        limits=Limits(per_request=base_units("0.05"), per_channel=base_units("1.00"), per_day=base_units("5.00")),
        store=folder / "channels.db",
        on_voucher=lambda voucher: signed.append(1),
    )
    transport = PayingTransport(wallet, transport=Told(), node=httpx.HTTPTransport(), raises=True)
    body = {"model": "sandbox/echo", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 3000}
    with httpx.Client(transport=transport, base_url=url, timeout=60) as client:
        step(1, "A stream, unpaid: 402. The wallet opens a channel; the stream begins in that answer, and pauses.")
        words = 0
        with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
            for line in response.iter_lines():
                words += line.startswith("data: {")
        say(f"   {words} chunks arrived for {len(signed)} vouchers; a deposit that is used up was added to")
        step(2, "A whole answer on the same channel: the second 402 asks for what is short.")
        answer = client.post("/v1/chat/completions", json={**body, "messages": [{"role": "user", "content": "Hi"}]})
        usage = answer.json()["usage"]
        say(f"   {usage['total_tokens']} tokens for {answer.headers['x-farebox-cost']} USD")
        step(3, "A top-up.")
        channel = transport.top_up(base_units("0.02"))
        say(f"   the deposit is {usd(channel.deposit)} now")
        step(4, "A close: the chain pays what was spent, and the rest back.")
        receipt = transport.close_channel()
    step(5, "Who has what.")
    paid = chain.balance(payee) - before["payee"]
    left = before["payer"] - chain.balance(payer)
    say(f"   spent by the ledger          {usd(receipt.spent)}")
    say(f"   the payee has more           {usd(paid)}  (what was spent, less the fee of the close)")
    say(f"   the payer has less           {usd(left)}  (what was spent, and the fees of open and top-ups)")


def main() -> int:
    """Run it. 0: the books are green too."""
    say("A payment channel's life, on a local chain with play money.")
    with tempfile.TemporaryDirectory(prefix="farebox-demo-") as name, DevnetThread(Devnet()) as chain:
        folder = Path(name)
        say(f"   chain {chain.chain_id} at {chain.rpc_url}")
        with server_on(chain, folder) as url:
            say(f"   Farebox at {url}")
            play(chain, url, folder)
        command = [sys.executable, "-m", "app.cli", "ledger", "check", "--config", str(folder / "farebox.toml")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own command
        say(f"   {(done.stdout or done.stderr).strip().splitlines()[-1]}")
        return done.returncode


if __name__ == "__main__":
    sys.exit(main())
