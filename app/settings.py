"""Frozen settings: a TOML file, overlaid by ``FAREBOX_<SECTION>_<NAME>`` variables, checked once.

Secrets are never settings: a setting names the environment variable that holds one.
"""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from app.money import parse_usd
from app.nesting import DEPTH_MAX
from app.provider_settings import (
    NO_LIMIT,
    PRICES_IMPLIED,
    SANDBOX,
    Capability,
    ModelSettings,
    Positive,
    Prices,
    ProviderSettings,
    Section,
)

__all__ = [
    "NO_LIMIT",
    "PRICES_IMPLIED",
    "SANDBOX",
    "Capability",
    "InferenceSettings",
    "ModelSettings",
    "Prices",
    "ProviderSettings",
    "SearchSettings",
    "Settings",
    "SettingsError",
    "load",
]

CONFIG_BYTES_MAX = 4 * 1024 * 1024
DEFAULT_CONFIG = Path("farebox.toml")
ENVIRONMENT_PREFIX = "FAREBOX_"

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Address = Annotated[str, Field(pattern=r"^0x[0-9a-fA-F]{40}$")]


class SettingsError(Exception):
    """The configuration cannot be used; the message names every setting that is wrong."""


class ServerSettings(Section):
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


class DatabaseSettings(Section):
    """Where the books are."""

    url: str = Field("sqlite:///farebox.db", description="sqlite:///path or postgresql://...")
    pool_size: Positive = Field(5, description="connections for reads (PostgreSQL)")

    @field_validator("url")
    @classmethod
    def _known(cls, url: str) -> str:
        if not url.startswith(("sqlite:///", "postgresql://")):
            raise ValueError("use sqlite:///path or postgresql://user@host/name")
        return url


class LedgerSettings(Section):
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


class InferenceSettings(Section):
    """Defaults of a paid request and bounds of an upstream call."""

    default_max_tokens: Positive = Field(4096, description="output limit where the caller sets none")
    stream_default: bool = Field(False, description="what an absent `stream` means")
    usage_in_final_chunk: bool = Field(False, description="merge usage into the last chunk and always show it")
    upstream_timeout_s: Seconds = Field(120, description="time to the first byte where timeout_ms is not sent")
    upstream_idle_timeout_s: Seconds = Field(60, description="silence of a provider in mid-answer")
    upstream_connect_timeout_s: Seconds = Field(5, description="time to connect to a provider")
    upstream_body_bytes_max: Positive = Field(32 * 1024 * 1024, description="largest non-streaming answer")
    upstream_event_bytes_max: Positive = Field(4 * 1024 * 1024, description="largest single event of a stream")
    breaker_requests_min: Positive = Field(
        5, description="attempts of a minute from which on a provider's breaker opens, if over half of them failed"
    )
    rest_s_max: Annotated[float, Field(ge=0, le=86_400)] = Field(
        600,
        description="longest that a provider is left alone for asking so or refusing our account; 0: never",
    )
    default_embedding_model: str | None = Field(
        None, description="model of embeddings that name none; the first that can when left out"
    )
    upload_bytes_max: Positive = Field(25 * 1024 * 1024, description="largest multipart body (audio)")
    attempts_max: Annotated[int, Field(ge=1, le=16)] = Field(4, description="providers tried for one request")
    image_tokens_max: Positive = Field(4096, description="input tokens held for one image part")
    media_hosts: tuple[str, ...] = Field((), description="hosts whose media URLs `native` providers may fetch")


class ChannelSettings(Section):
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


class MppSettings(Section):
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


class SearchSettings(Section):
    """Web search: a tool that models may call, run by the proxy."""

    backend: Literal["off", "searxng", "brave", "sandbox"] = Field(
        "off", description="off | searxng | brave | sandbox (made-up results)"
    )
    url: str | None = Field(None, description="base URL of the SearXNG instance, or another address of Brave's API")
    api_key_env: str | None = Field(None, description="variable with the backend's key (Brave)")
    rounds_max: Annotated[int, Field(ge=1, le=10)] = Field(3, description="rounds of searches in one request")
    searches_max: Annotated[int, Field(ge=1, le=32)] = Field(4, description="searches in one request")
    timeout_s: Seconds = Field(10, description="time for one search")
    results_low: Annotated[int, Field(ge=1, le=20)] = Field(3, description="results where search_context_size is low")
    results_medium: Annotated[int, Field(ge=1, le=20)] = Field(5, description="results where it is medium or not said")
    results_high: Annotated[int, Field(ge=1, le=20)] = Field(10, description="results where it is high")
    result_bytes_max: Annotated[int, Field(ge=100, le=20_000)] = Field(1200, description="text of one result")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.backend == "searxng" and not (self.url or "").startswith(("http://", "https://")):
            raise ValueError("search.url must be the http:// or https:// address of the SearXNG instance")
        if self.backend == "brave" and not self.api_key_env:
            raise ValueError("search.api_key_env must name the variable with Brave's key")
        return self


class Settings(Section):
    """All of it. The defaults run the proxy on SQLite with the built-in sandbox provider."""

    server: ServerSettings = ServerSettings()
    database: DatabaseSettings = DatabaseSettings()
    ledger: LedgerSettings = LedgerSettings()
    inference: InferenceSettings = InferenceSettings()
    mpp: MppSettings = MppSettings()
    search: SearchSettings = SearchSettings()
    providers: tuple[ProviderSettings, ...] = (SANDBOX,)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [provider.name for provider in self.providers]
        if len(set(names)) != len(names):
            raise ValueError("two providers have the same name")
        # A voucher is ahead of what is spent by a window, and only what is spent is settled.
        if parse_usd(self.mpp.exposure_max) < 2 * parse_usd(self.ledger.window_cost_max):
            raise ValueError("mpp.exposure_max must be at least twice ledger.window_cost_max")
        for provider in self.providers:
            for model in provider.models:
                if model.web_search and self.search.backend == "off":
                    raise ValueError(f"model {model.id!r} searches the web, so search.backend must be set")
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
        if not (isinstance(model, type) and issubclass(model, Section)):
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
