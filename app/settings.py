"""Frozen settings: a TOML file, overlaid by ``FAREBOX_<SECTION>_<NAME>`` variables, checked once.

Secrets are never settings: a setting names the environment variable that holds one.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from app.money import PicoUsd, parse_price_per_million, parse_usd

CONFIG_BYTES_MAX = 4 * 1024 * 1024
DEFAULT_CONFIG = Path("farebox.toml")
ENVIRONMENT_PREFIX = "FAREBOX_"
# What serialises a body for a provider gives up at 254 levels.
DEPTH_MAX = 200

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]
Address = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{40}$")]


class SettingsError(Exception):
    """The configuration cannot be used; the message names every setting that is wrong."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ServerSettings(_Section):
    """The HTTP edge and its bounds."""

    host: str = Field("127.0.0.1", description="address to listen on")
    port: Annotated[int, Field(ge=0, le=65535)] = Field(8402, description="port to listen on; 0 picks a free one")
    admin_token_env: str = Field(
        "FAREBOX_ADMIN_TOKEN", description="variable with the admin token; the admin API is off while it is unset"
    )
    secret_env: str = Field(
        "FAREBOX_SECRET",
        description="variable with the secret that keys are hashed with; kept in a file beside SQLite when unset",
    )
    public_url: str | None = Field(None, description="base URL that clients see, for printed examples")
    allowed_hosts: tuple[str, ...] = Field((), description="Host headers that are answered; empty answers all")
    trusted_proxies: tuple[str, ...] = Field((), description="addresses whose X-Forwarded-For is believed")
    body_bytes_max: Positive = Field(20 * 1024 * 1024, description="largest request body")
    body_timeout_s: Seconds = Field(30, description="time for a whole request body to arrive")
    body_depth_max: Annotated[int, Field(gt=0, le=DEPTH_MAX)] = Field(64, description="deepest nesting of a JSON body")
    head_bytes_max: Positive = Field(65_536, description="largest request head")
    head_timeout_s: Seconds = Field(5, description="time for a request head to arrive")
    keep_alive_s: Seconds = Field(75, description="idle time of a kept connection")
    client_write_timeout_s: Seconds = Field(30, description="a client that does not read is dropped after this")
    silence_comment_s: Seconds = Field(10, description="silence on a stream before a keep-alive comment")
    abandoned_timeout_s: Seconds = Field(
        60, description="time for a non-streaming call to finish after its client left"
    )
    shutdown_timeout_s: Seconds = Field(30, description="time for streams to finish after SIGTERM")
    in_flight_max: Positive = Field(4096, description="paid requests at once in one process")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")


class DatabaseSettings(_Section):
    """Where the books are."""

    url: str = Field("sqlite:///farebox.db", description="sqlite:///path or postgresql://...")
    pool_size: Positive = Field(5, description="connections for reads (PostgreSQL)")

    @field_validator("url")
    @classmethod
    def _known(cls, url: str) -> str:
        if not url.startswith(("sqlite:///", "postgresql://")):
            raise ValueError("use sqlite:///path or postgresql://user@host/name")
        return url


class LedgerSettings(_Section):
    """Group commit, leases and windows."""

    batch_max: Positive = Field(64, description="operations in one commit")
    queue_max: Positive = Field(8192, description="operations that may wait for a commit")
    commit_timeout_s: Seconds = Field(30, description="an operation that waits longer is refused")
    heartbeat_s: Seconds = Field(5, description="how often a process says that it lives")
    lease_ttl_s: Seconds = Field(30, description="silence after which a process is taken for dead")
    sweep_interval_s: Seconds = Field(10, description="how often orphaned holds are looked for")
    window_tokens_min: Positive = Field(256, description="output tokens of a stream's first window")
    window_growth: Positive = Field(4, description="each next window is this many times the one before")
    window_cost_max: str = Field(
        "0.25", description="USD; the dearest single window, so the most a crash can cost a payer"
    )
    idempotency_ttl_s: Annotated[int, Field(ge=60, le=7 * 86_400)] = Field(
        86_400, description="how long an idempotency key is kept"
    )
    idempotency_bytes_max: Positive = Field(1024 * 1024, description="largest answer kept for a replay")

    @field_validator("window_cost_max")
    @classmethod
    def _amount(cls, text: str) -> str:
        if parse_usd(text) <= 0:
            raise ValueError("must be more than 0 USD")
        return text

    @model_validator(mode="after")
    def _lease(self) -> Self:
        if self.lease_ttl_s < 2 * self.heartbeat_s:
            raise ValueError("lease_ttl_s must be at least twice heartbeat_s")
        return self


class InferenceSettings(_Section):
    """Defaults of a paid request and bounds of an upstream call."""

    default_max_tokens: Positive = Field(4096, description="output limit where the caller sets none")
    stream_default: bool = Field(False, description="what an absent `stream` means")
    usage_in_final_chunk: bool = Field(False, description="merge usage into the last chunk and always show it")
    upstream_timeout_s: Seconds = Field(120, description="time to the first byte where timeout_ms is not sent")
    upstream_idle_timeout_s: Seconds = Field(60, description="silence of a provider in mid-answer")
    upstream_connect_timeout_s: Seconds = Field(5, description="time to connect to a provider")
    upstream_body_bytes_max: Positive = Field(32 * 1024 * 1024, description="largest non-streaming answer")
    upstream_event_bytes_max: Positive = Field(4 * 1024 * 1024, description="largest single event of a stream")
    upstream_cooldown_s: Seconds = Field(5, description="a failed provider is passed over this long")
    image_tokens_max: Positive = Field(4096, description="input tokens held for one image part")
    media_hosts: tuple[str, ...] = Field((), description="hosts whose media URLs `native` providers may fetch")


Capability = Literal["chat", "tools", "vision", "audio", "reasoning", "json"]

# A model that can do a thing must have a price for what the thing bills (checked at start-up).
PRICES_IMPLIED: Mapping[str, tuple[str, ...]] = {
    "chat": ("input", "output"),
    "tools": ("input", "output"),
    "vision": ("input",),
    "audio": ("input", "output"),
    "reasoning": ("output",),
    "json": ("output",),
}


class TokenPrices(_Section):
    """USD per million tokens, as decimal strings; a unit left out bills at its parent's price."""

    input: str | None = Field(None, description="prompt tokens")
    cached_input: str | None = Field(None, description="prompt tokens read from a cache (parent: input)")
    cache_write: str | None = Field(None, description="prompt tokens written to a cache (parent: input)")
    audio_input: str | None = Field(None, description="audio tokens of the prompt (parent: input)")
    output: str | None = Field(None, description="completion tokens")
    reasoning: str | None = Field(None, description="reasoning tokens (parent: output)")
    audio_output: str | None = Field(None, description="audio tokens of the completion (parent: output)")

    @field_validator("*")
    @classmethod
    def _exact(cls, text: str | None) -> str | None:
        if text is not None and parse_price_per_million(text) < 0:
            raise ValueError("a price is never negative")
        return text

    def in_pico_usd(self) -> dict[str, PicoUsd]:
        """The units that have a price of their own."""
        return {unit: parse_price_per_million(text) for unit, text in self if text is not None}


class ModelSettings(_Section):
    """A model as one provider serves it."""

    id: Annotated[str, Field(min_length=1, max_length=200)] = Field(..., description="what clients ask for")
    upstream_id: str | None = Field(None, description="what the provider calls it; the same when left out")
    aliases: tuple[str, ...] = Field((), description="other names that clients may use")
    capabilities: tuple[Capability, ...] = Field(("chat",), description="what it can do; each implies prices")
    context_window: Positive = Field(..., description="tokens of prompt and output together")
    max_output_tokens: Positive = Field(..., description="most output tokens of one answer")
    hidden_reasoning: bool = Field(
        False, description="bills reasoning that it does not stream: the full ceiling is held"
    )
    owned_by: str = Field("farebox", description="shown in /v1/models")
    price: TokenPrices = Field(..., description="what we charge, USD per million tokens")
    cost: TokenPrices = Field(TokenPrices(), description="what we pay, USD per million tokens")

    @field_validator("id", "upstream_id", "aliases")
    @classmethod
    def _printable(cls, value: Any) -> Any:
        for text in (value,) if isinstance(value, str) else value or ():
            if not text.isascii() or not text.isprintable():
                raise ValueError("model names are printable ASCII: they appear in headers")
        return value

    @model_validator(mode="after")
    def _priced(self) -> Self:
        for capability in self.capabilities:
            for unit in PRICES_IMPLIED[capability]:
                if getattr(self.price, unit) is None:
                    raise ValueError(
                        f"model {self.id!r} can {capability!r}, so price.{unit} must be set (0 is allowed)"
                    )
        return self


class ProviderSettings(_Section):
    """An upstream: where it is, how it speaks and what it serves."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")] = Field(..., description="unique name")
    kind: Literal["native", "quota", "external"] = Field("native", description="native | quota | external")
    adapter: Literal["openai", "sandbox"] = Field("openai", description="openai | sandbox")
    base_url: str | None = Field(None, description="for example http://127.0.0.1:11434/v1")
    api_key_env: str | None = Field(None, description="variable with the provider's key")
    connections_max: Positive = Field(1024, description="connections to this provider")
    tokens_per_second: Annotated[float, Field(gt=0)] = Field(200.0, description="sandbox: pace of a stream")
    first_token_ms: Annotated[int, Field(ge=0)] = Field(20, description="sandbox: time to the first token")
    models: tuple[ModelSettings, ...] = Field((), description="what it serves")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.adapter == "openai" and not (self.base_url or "").startswith(("http://", "https://")):
            raise ValueError(f"provider {self.name!r} needs base_url with http:// or https://")
        names = [name for model in self.models for name in (model.id, *model.aliases)]
        if len(set(names)) != len(names):
            raise ValueError(f"provider {self.name!r} names a model twice")
        return self


SANDBOX = ProviderSettings(
    name="sandbox",
    adapter="sandbox",
    models=(
        ModelSettings(
            id="sandbox/echo",
            aliases=("sandbox",),
            capabilities=("chat", "tools", "reasoning"),
            context_window=32_768,
            max_output_tokens=8_192,
            price=TokenPrices(input="0.10", cached_input="0.02", output="0.40"),
            cost=TokenPrices(input="0.05", cached_input="0.01", output="0.20"),
        ),
    ),
)


class ChannelSettings(_Section):
    """One kind of channel that is offered: a backend, a chain, an escrow and a token."""

    backend: Literal["tempo-v2", "tempo-v1", "evm"] = Field(..., description="tempo-v2 | tempo-v1 | evm")
    chain_id: Positive = Field(..., description="the chain's id; checked against the node at start")
    rpc_url: Annotated[str, Field(pattern=r"^https?://")] = Field(..., description="JSON-RPC of a node of that chain")
    escrow: Address = Field(..., description="the channel escrow; for tempo-v2 the reserve precompile")
    currency: Address = Field(..., description="the USD token; it must have six decimals")
    payee_key_env: str = Field("FAREBOX_PAYEE_KEY", description="variable with the key that signs settlements")
    recipient: Address | None = Field(None, description="payee address where it is not the key's own (tempo-v2)")
    fee_payer: bool = Field(False, description="pay the fees of clients' open and topUp")
    foreign_escrow: bool = Field(
        False, description="tempo-v1: somebody else's escrow, whose close pays the whole voucher; streams only"
    )
    confirmations: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="blocks until a transaction counts")
    eip3009: bool = Field(False, description="evm: also take opens and top-ups by EIP-3009 authorization")


class MppSettings(_Section):
    """Payment from wallets: challenges, vouchers, and what is done on chain."""

    realm: Annotated[str, Field(min_length=1, max_length=200)] = Field(
        "farebox", description="named in challenges; the public host name"
    )
    secret_env: str = Field(
        "FAREBOX_MPP_SECRET",
        description="variable with the challenge secret; generated and kept beside the database when unset",
    )
    previous_secret_env: str = Field(
        "FAREBOX_MPP_SECRET_PREVIOUS", description="variable with the secret before: its challenges stay valid"
    )
    suggested_deposit: str = Field("1.00", description="deposit that challenges suggest, USD")
    deposit_max: str = Field("10000.00", description="largest deposit of a channel that is served, USD")
    challenge_ttl_s: Annotated[int, Field(ge=30, le=86_400)] = Field(300, description="time to answer a challenge")
    voucher_timeout_s: Seconds = Field(60, description="a paused stream waits this long for a voucher")
    vouchers_per_second: Positive = Field(10, description="voucher updates a second, per channel")
    min_voucher_delta: str = Field("0.00", description="least increase between vouchers, USD")
    v1_exposure_max: str = Field("0.01", description="window on an escrow whose close pays whole vouchers, USD")
    exposure_max: str = Field("5.00", description="unsettled spending of a channel at which it is settled, USD")
    settle_after_s: Annotated[int, Field(ge=60)] = Field(86_400, description="unsettled spending older is settled")
    settle_min: str = Field("0.01", description="least unsettled spending that age alone settles, USD")
    sponsored_fees_per_day: str = Field("5.00", description="budget of fees paid for clients, per channel kind, USD")
    chain_lag_max_s: Seconds = Field(300, description="service on channels stops when the watcher is this far behind")
    watch_every_s: Seconds = Field(2, description="how often the chain is looked at")
    log_range_max: Positive = Field(1000, description="blocks asked for at once")
    rpc_timeout_s: Seconds = Field(10, description="time for one answer of a node")
    confirm_timeout_s: Seconds = Field(30, description="time for a client's transaction to be mined")
    channels: tuple[ChannelSettings, ...] = Field((), description="what is offered, in this order; none: no wallets")

    @field_validator(
        "suggested_deposit",
        "deposit_max",
        "min_voucher_delta",
        "v1_exposure_max",
        "exposure_max",
        "settle_min",
        "sponsored_fees_per_day",
    )
    @classmethod
    def _amount(cls, text: str) -> str:
        if parse_usd(text) < 0:
            raise ValueError("an amount is not negative")
        return text


class Settings(_Section):
    """All of it. The defaults run the proxy on SQLite with the built-in sandbox provider."""

    server: ServerSettings = ServerSettings()
    database: DatabaseSettings = DatabaseSettings()
    ledger: LedgerSettings = LedgerSettings()
    inference: InferenceSettings = InferenceSettings()
    mpp: MppSettings = MppSettings()
    providers: tuple[ProviderSettings, ...] = (SANDBOX,)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [provider.name for provider in self.providers]
        if len(set(names)) != len(names):
            raise ValueError("two providers have the same name")
        # A voucher is ahead of what is spent by a window, and only what is spent is settled.
        if parse_usd(self.mpp.exposure_max) < 2 * parse_usd(self.ledger.window_cost_max):
            raise ValueError("mpp.exposure_max must be at least twice ledger.window_cost_max")
        owners: dict[str, str] = {}
        for provider in self.providers:
            for model in provider.models:
                for name in (model.id, *model.aliases):
                    if owners.setdefault(name, model.id) != model.id:
                        raise ValueError(f"{name!r} names two different models")
        return self


def load(path: Path | None = None, *, environ: Mapping[str, str] | None = None) -> Settings:
    """Read settings from ``path``, else ``FAREBOX_CONFIG``, else ``farebox.toml`` if there is one.

    A relative SQLite path is taken from the folder of the file that names it. Raises `SettingsError`.
    """
    environ = os.environ if environ is None else environ
    named = path or (Path(environ["FAREBOX_CONFIG"]) if environ.get("FAREBOX_CONFIG") else None)
    source = named or (DEFAULT_CONFIG if DEFAULT_CONFIG.exists() else None)
    raw = _read(source) if source else {}
    _overlay(raw, environ)
    try:
        settings = Settings.model_validate(raw)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, item['loc'])) or 'settings'}: {item['msg']}" for item in error.errors()]
        raise SettingsError(f"{source or 'environment'}: " + "; ".join(lines)) from error
    return _anchored(settings, source.parent if source else Path("."))


def _read(source: Path) -> dict[str, Any]:
    try:
        content = source.read_bytes()
        if len(content) > CONFIG_BYTES_MAX:
            raise SettingsError(f"{source}: larger than {CONFIG_BYTES_MAX} bytes")
        return tomllib.loads(content.decode())
    except OSError as error:
        raise SettingsError(f"{source}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{source}: {error}") from error


def _overlay(raw: dict[str, Any], environ: Mapping[str, str]) -> None:
    """``FAREBOX_SERVER_PORT=9000`` is ``[server] port = 9000``; lists are separated by commas."""
    for section, field in Settings.model_fields.items():
        model = field.annotation
        if not (isinstance(model, type) and issubclass(model, _Section)):
            continue
        for name, setting in model.model_fields.items():
            text = environ.get(f"{ENVIRONMENT_PREFIX}{section}_{name}".upper())
            if text is None:
                continue
            plural = str(setting.annotation).startswith("tuple")
            value: Any = [part.strip() for part in text.split(",") if part.strip()] if plural else text
            table = raw.setdefault(section, {})
            # What is no table is refused by name when the whole is checked.
            if isinstance(table, dict):
                table[name] = value


def _anchored(settings: Settings, folder: Path) -> Settings:
    prefix, relative = "sqlite:///", settings.database.url.removeprefix("sqlite:///")
    if not settings.database.url.startswith(prefix) or Path(relative).is_absolute() or folder == Path("."):
        return settings
    url = prefix + str((folder / relative).resolve())
    return settings.model_copy(update={"database": settings.database.model_copy(update={"url": url})})
