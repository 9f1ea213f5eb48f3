"""``farebox-client chat``: one question, its answer, and what it cost."""

import json
import sys
from collections.abc import Iterator
from typing import Annotated, Any

import httpx
import typer

from farebox_client.amounts import show
from farebox_client.cli import options
from farebox_client.errors import PaymentError
from farebox_client.limits import Limits
from farebox_client.receipt import Receipt
from farebox_client.transport import PayingTransport
from farebox_client.wallet import Signed

# A channel is opened while the first answer is waited for.
TIMEOUT = httpx.Timeout(connect=5, read=120, write=30, pool=10)
CLEAR_LINE = "\r\x1b[K"


class Progress:
    """A line about tokens and money on standard error, where that is a terminal; nothing elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self.tokens = 0
        self._spent_first: int | None = None
        self._spent = 0
        self._signed = 0
        self._shown = False
        self._on = sys.stderr.isatty() and not quiet
        # The answer and the line would overwrite each other.
        self._beside = self._on and not sys.stdout.isatty()

    def on_receipt(self, receipt: Receipt) -> None:
        """Take a receipt's word for what was spent."""
        if self._spent_first is None:
            self._spent_first = receipt.spent
        self._spent = receipt.spent

    def on_voucher(self, signed: Signed) -> None:
        """Count a voucher."""
        self._signed += signed.added
        self.update()

    @property
    def cost(self) -> int:
        """Base units that this request cost, by the receipts; before they say so, what was signed for it."""
        return self._spent - (self._spent_first or 0) if self._spent > (self._spent_first or 0) else self._signed

    def update(self) -> None:
        """Show the line as it is now."""
        if self._on and (self._beside or not self.tokens):
            self._write(f"{self.tokens} tokens, {show(self._signed)} USD signed")

    def clear(self) -> None:
        """Make room for the answer."""
        if self._shown:
            sys.stderr.write(CLEAR_LINE)
            sys.stderr.flush()
            self._shown = False

    def finish(self, usage: dict[str, Any] | None) -> None:
        """The last line, which stays."""
        self.clear()
        if self._on:
            tokens = (usage or {}).get("total_tokens", self.tokens)
            typer.secho(f"{tokens} tokens, {show(self.cost)} USD", err=True, dim=True)

    def _write(self, text: str) -> None:
        sys.stderr.write(CLEAR_LINE + text)
        sys.stderr.flush()
        self._shown = True


def chat(
    prompt: Annotated[str, typer.Argument(help="What to say; - reads it from standard input.")],
    *,
    model: Annotated[str, typer.Option(help="The model's id.")] = "sandbox/echo",
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, also on a terminal.")] = False,
    wallet_key_env: options.KeyEnv = options.KEY_ENV,
    store: options.StorePath = None,
    base_url: options.BaseUrl = options.BASE_URL,
    rpc_url: options.RpcUrls = None,
    payee: options.Payees = None,
    token: options.Tokens = None,
    escrow: options.Escrows = None,
    trust_on_first_use: options.FirstUse = False,
    max_cost: options.MaxCost = "0.10",
    max_deposit: options.MaxDeposit = "1.00",
    max_day: options.MaxDay = "5.00",
    max_fee: options.MaxFee = "0.10",
    max_input_price: options.MaxInput = None,
    max_output_price: options.MaxOutput = None,
) -> None:
    """Ask a model, and pay for the answer while it arrives."""
    progress = Progress(quiet=quiet)
    prices = {"input": max_input_price, "output": max_output_price}
    named = {name: show(options.amount(each, f"--max-{name}-price")) for name, each in prices.items() if each}
    limits = Limits(
        per_request=options.amount(max_cost, "--max-cost"),
        per_channel=options.amount(max_deposit, "--max-deposit"),
        per_day=options.amount(max_day, "--max-day"),
        per_fee=options.amount(max_fee, "--max-fee"),
        prices=named,
    )
    trust = options.make_trust(
        rpc_urls=rpc_url,
        tokens=token,
        escrows=escrow,
        payees={base_url: payee or []},
        first_use=trust_on_first_use,
    )
    wallet = options.make_wallet(
        key_env=wallet_key_env,
        store=store,
        trust=trust,
        limits=limits,
        on_receipt=progress.on_receipt,
        on_voucher=progress.on_voucher,
    )
    messages = [{"role": "user", "content": sys.stdin.read() if prompt == "-" else prompt}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if max_tokens is not None:
        body["max_tokens"] = max_tokens
    url = base_url.rstrip("/") + "/chat/completions"
    with httpx.Client(transport=PayingTransport(wallet, raises=True), timeout=TIMEOUT) as http:
        try:
            _stream(http, url, body, progress)
        finally:
            progress.clear()
    wallet.store.close()


def _stream(http: httpx.Client, url: str, body: dict[str, Any], progress: Progress) -> None:
    usage: dict[str, Any] | None = None
    with http.stream("POST", url, json=body) as response:
        if response.status_code != 200:
            raise ServerFailed(_message(response.status_code, response.read()))
        for event in _events(response):
            if "error" in event:
                sys.stdout.write("\n")
                raise ServerFailed(str(event["error"].get("message", "the answer broke off")))
            usage = event.get("usage") or usage
            for choice in event.get("choices") or ():
                text = (choice.get("delta") or {}).get("content")
                if text:
                    progress.tokens += 1
                    progress.clear()
                    sys.stdout.write(text)
                    sys.stdout.flush()
                    progress.update()
    sys.stdout.write("\n")
    sys.stdout.flush()
    progress.finish(usage)


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        data = line.removeprefix("data:").strip()
        if line.startswith("data:") and data != "[DONE]":
            yield json.loads(data)


class ServerFailed(PaymentError):
    """The server answered with something else than an answer."""

    code = "server_failed"
    exit_code = 11


def _message(status: int, content: bytes) -> str:
    try:
        said = json.loads(content)
        text = said["error"]["message"] if "error" in said else said["detail"]
    except (ValueError, KeyError, TypeError):
        text = content[:200].decode("utf-8", "replace")
    return f"the server answered {status}: {text}"
