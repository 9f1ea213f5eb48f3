"""``/llms.txt``: the service in a page of Markdown, for language models and for people. Form: llmstxt.org."""

from collections.abc import Iterator, Mapping, Sequence

from app.api import catalog
from app.api.discovery_paid import ALIASES, SOLD, charged_token
from app.api.discovery_prices import Models, price_lines, within
from app.settings import ChannelSettings, Settings

MODELS_CHARACTERS_MAX = 24_000
_BACKENDS: Mapping[str, str] = {
    "tempo-v2": "method `tempo`, session protocol v2",
    "tempo-v1": "method `tempo`, session protocol v1",
    "evm": "method `evm`",
}


def build(settings: Settings, models: Models) -> str:
    """The page."""
    base = (settings.server.public_url or "").rstrip("/")
    channels = settings.mpp.channels
    rails = "an API key with a prepaid balance" + (", or a wallet without any account" if channels else "")
    return "\n".join(
        [
            "# Farebox",
            "",
            f"> An inference proxy: OpenAI's API and Cohere's rerank, paid for by what is used, by {rails}.",
            "",
            f"- Base URL for SDKs: {base}/v1" + ("" if base else " on the host that this page came from"),
            "- OpenAI's and Cohere's SDKs work unchanged; below `/ai` is a simpler shape of the same.",
            "- Every answer has `x-request-id`; one that was charged says its exact cost in USD in `usage.cost`.",
            "- With an `Idempotency-Key`, a request that is sent again gets the same answer and is charged once.",
            "",
            "## Endpoints",
            "",
            *(f"- `POST {sold.path}`: {sold.summary}" for sold in SOLD),
            *(f"- `POST {alias}`: the same as `{path}`" for alias, path in ALIASES.items()),
            "- `GET /v1/models`, `GET /v1/models/{id}`, `GET /ai/models`: what can be asked for",
            "- `GET /v1/key`, `/v1/credits`, `/v1/usage`, `/v1/generations/{id}`: a key, its money, its requests",
            "",
            "## Paying",
            "",
            "- API key: send `Authorization: Bearer <key>` or `x-api-key: <key>`. The operator gives out keys and",
            "  credit. A 402 says what the request may cost, what is there, and how many tokens that buys.",
            *_wallet(channels),
            "",
            "## Models",
            "",
            "In USD, tokens by the million; a kind of token that is not listed costs what input or output costs.",
            "",
            within(_models(models), MODELS_CHARACTERS_MAX, separator="\n", more="- and {} more in GET /v1/models"),
            "",
            "## Links",
            "",
            f"- [OpenAPI document]({base}/openapi.json): operations, parameters and payment offers",
            f"- [Models]({base}/v1/models): limits, capabilities and prices as JSON",
            "",
        ]
    )


def _wallet(channels: Sequence[ChannelSettings]) -> Iterator[str]:
    if not channels:
        return
    yield "- Wallet: send the request without credentials. The 402 has `WWW-Authenticate: Payment` challenges."
    token = charged_token(channels)
    if token is not None:
        yield "- Intent `charge` (method `tempo`) pays for a whole answer by one transfer of the most that it can cost;"
        yield "  what it does not use stays on the wallet's account. `POST /v1/topups` pays into a key's balance so."
        yield f"  Token `{token}`."
    yield "- Intent `session` opens a payment channel once and pays request by request with signed vouchers, also in"
    yield "  mid-stream. Closing the channel returns the rest of the deposit. Offered:"
    for channel in channels:
        streams = "; streams only, and closing pays the last voucher in full" if channel.foreign_escrow else ""
        token = channel.currency.lower()
        yield f"  - {_BACKENDS[channel.backend]}, chain {channel.chain_id}, token `{token}`{streams}"


def _models(models: Models) -> Iterator[str]:
    for line, candidates in zip(price_lines(models), models.values(), strict=True):
        shown = catalog.shown(candidates)
        limits = [
            f"{shown[name]} tokens of {word}"
            for name, word in (("context_window", "context"), ("max_output_tokens", "output"))
            if name in shown
        ]
        also = [f"also called {', '.join(shown['aliases'])}"] if shown["aliases"] else []
        yield f"- {line} ({'; '.join([', '.join(shown['capabilities']), *limits, *also])})"
