"""What a person sees when the proxy starts: where it is, and how to make the first paid request.

With the built-in sandbox and no key yet, a first customer and key with credit are made, and the key is
shown once: only its hash is kept.
"""

import asyncio
import sys
from dataclasses import dataclass, field

from app import __version__, log
from app.api.services import Services
from app.ledger.ids import new_id
from app.ledger.operation import Post
from app.ledger.transfer import GRANT
from app.money import format_usd, parse_usd
from app.rails import funds
from app.rails.key_store import KeyLimits

FIRST_CREDIT_USD = "5.00"

_log = log.get("banner")


@dataclass(frozen=True, slots=True)
class Wallet:
    """A wallet with play money on a local chain: everybody may have its key."""

    rpc_url: str
    payee: str
    key: str = field(repr=False)


async def announce(services: Services | None, *, port: int, human: bool, wallet: Wallet | None = None) -> None:
    """Log that the process serves and, for a person, print how to use it."""
    if services is None:
        return
    server = services.settings.server
    host = "127.0.0.1" if server.host in {"0.0.0.0", "::"} else server.host  # noqa: S104 - shown, not bound
    url = server.public_url or f"http://{f'[{host}]' if ':' in host else host}:{port}"
    models = list(services.proxy.catalog.models)
    _log.info("serving", url=url, models=len(models), version=__version__)
    key = await _first_key(services)
    if human or key is not None:
        sys.stdout.write(banner(url=url, models=models, key=key, wallet=wallet))
        sys.stdout.flush()


async def _first_key(services: Services) -> str | None:
    """A first key, on an empty embedded database with the sandbox: so that a new user can try at once."""
    sandboxed = all(provider.adapter == "sandbox" for provider in services.settings.providers)
    embedded = services.settings.database.url.startswith("sqlite")
    if not (sandboxed and embedded):
        return None
    if await asyncio.to_thread(services.keys.list):
        return None
    customer = await asyncio.to_thread(services.customers.create, "first customer")
    now = services.clock.now_ms()
    amount = parse_usd(FIRST_CREDIT_USD)
    grant = funds.credit(
        credit_id=new_id("grant", now), customer_id=customer.id, amount=amount, kind=GRANT, note="first credit", at=now
    )
    await services.journal.submit(Post(grant))
    _, secret = await asyncio.to_thread(services.keys.create, customer.id, "first key", KeyLimits())
    return secret


def banner(*, url: str, models: list[str], key: str | None, wallet: Wallet | None = None) -> str:
    """The text: where, what, and snippets that work as they stand."""
    model = models[0] if models else "MODEL"
    shown = key or "YOUR_KEY"
    credit = format_usd(parse_usd(FIRST_CREDIT_USD))
    if key is not None:
        about = f"  First API key, with {credit} USD of credit (shown once, only its hash is kept):\n\n      {key}\n"
    else:
        about = "  API keys exist already and cannot be shown again. A new one:\n\n      "
        about += f".venv/bin/farebox keys create --credit {credit}\n"
    return f"""
  Farebox {__version__} sells tokens on {url}
  {len(models)} model{"" if len(models) == 1 else "s"}: {", ".join(models[:5])}{", ..." if len(models) > 5 else ""}

{about}
  Try it with curl (add "stream": true and -N for a stream):

      curl {url}/v1/chat/completions \\
        -H "Authorization: Bearer {shown}" -H "Content-Type: application/json" \\
        -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'

  or with the OpenAI SDK (pip install openai):

      from openai import OpenAI
      client = OpenAI(base_url="{url}/v1", api_key="{shown}")
      answer = client.chat.completions.create(
          model="{model}", messages=[{{"role": "user", "content": "Hello"}}])
      print(answer.choices[0].message.content, answer.usage)

{_wallet_text(url, wallet)}  Stop with Ctrl-C. The books: .venv/bin/farebox ledger check

"""


def _wallet_text(url: str, wallet: Wallet | None) -> str:
    """How to pay without an account, where a local chain was started."""
    if wallet is None:
        return ""
    return f"""  or without an account, from a wallet with play money on the local chain at {wallet.rpc_url}:

      FAREBOX_WALLET_KEY={wallet.key} \\
        .venv/bin/farebox-client chat "Hello" --base-url {url}/v1 \\
        --rpc-url {wallet.rpc_url} --payee {wallet.payee}

"""
