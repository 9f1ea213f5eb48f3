"""What an operator's Prometheus sees. Label sets are small and fixed; no label holds a client's text."""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

registry = CollectorRegistry()

requests = Counter(
    "farebox_requests", "Paid requests that ended", ["endpoint", "status", "provider"], registry=registry
)
refusals = Counter("farebox_refusals", "Requests refused before any money moved", ["code"], registry=registry)
attempts = Counter("farebox_upstream_attempts", "Attempts at providers", ["provider", "result"], registry=registry)
charged = Counter("farebox_charged_nano_usd", "Charged to payers", ["provider"], registry=registry)
cost = Counter("farebox_cost_nano_usd", "Owed to providers", ["provider"], registry=registry)
loss = Counter("farebox_loss_nano_usd", "Used beyond anyone's funds: our loss", ["provider"], registry=registry)
tokens = Counter("farebox_tokens", "Tokens billed", ["kind"], registry=registry)
alerts = Counter("farebox_alerts", "What an operator should look at", ["kind"], registry=registry)
first_token = Histogram(
    "farebox_first_token_seconds", "From request to first content", ["provider"], registry=registry, buckets=SECONDS
)
in_flight = Gauge("farebox_in_flight", "Paid requests being served", registry=registry)
commit_operations = Histogram(
    "farebox_commit_operations",
    "Operations per ledger commit",
    registry=registry,
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
)
commit_seconds = Histogram("farebox_commit_seconds", "Time of a ledger commit", registry=registry, buckets=SECONDS)
vouchers = Counter("farebox_vouchers_accepted", "Vouchers that were persisted", registry=registry)
channels_opened = Counter("farebox_channels_opened", "Channels opened by clients", ["backend"], registry=registry)
channels_recovered = Counter(
    "farebox_channels_recovered", "Channels found on chain that nobody had recorded", ["backend"], registry=registry
)
pauses = Counter("farebox_stream_pauses", "Streams that waited for a voucher", ["result"], registry=registry)
settlements = Counter("farebox_settlements", "Settlements and closes that ended", ["kind", "result"], registry=registry)
chain_lag = Gauge("farebox_chain_lag_seconds", "Since the chain was last seen whole", ["backend"], registry=registry)
breakers_opened = Counter(
    "farebox_breakers_opened", "Times that a provider was passed over", ["provider", "why"], registry=registry
)
swept = Counter("farebox_orphaned_holds_resolved", "Requests whose process died", registry=registry)


def text() -> bytes:
    """The exposition of all of them."""
    return generate_latest(registry)


# The hot path: a child of a labelled metric is looked up once.
_request = cache(requests.labels)
_attempt = cache(attempts.labels)
_money = cache(lambda provider: (charged.labels(provider), cost.labels(provider), loss.labels(provider)))
_first_token = cache(first_token.labels)
_prompt_tokens = tokens.labels("prompt")
_completion_tokens = tokens.labels("completion")


def count_request(endpoint: str, status: str, provider: str) -> None:
    """One paid request ended."""
    _request(endpoint, status, provider).inc()


def count_attempt(provider: str, result: str) -> None:
    """One attempt at a provider ended."""
    _attempt(provider, result).inc()


def count_money(provider: str, *, charged: int, cost: int, loss: int) -> None:
    """What one request charged and cost, in nano-USD."""
    children = _money(provider)
    for child, amount in zip(children, (charged, cost, loss), strict=True):
        if amount:
            child.inc(amount)


def count_tokens(*, prompt: int, completion: int) -> None:
    """What one request used."""
    _prompt_tokens.inc(prompt)
    _completion_tokens.inc(completion)


def observe_first_token(provider: str, seconds: float) -> None:
    """The time to the first content of one stream."""
    _first_token(provider).observe(seconds)
