"""Settings of providers: where each is, how it speaks, which models it serves, and what these cost."""

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from app.money import PicoUsd, parse_price, parse_price_per_million
from app.units import IMAGE_UNIT

Positive = Annotated[int, Field(gt=0)]
# What clients are told in a header.
Shown = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:/ -]{0,62}$")]
_SIZE = re.compile(r"[1-9]\d{1,4}x[1-9]\d{1,4}")


class Section(BaseModel):
    """A frozen table of settings that knows all its names."""

    model_config = ConfigDict(frozen=True, extra="forbid")


Capability = Literal[
    "chat",
    "completions",
    "embeddings",
    "rerank",
    "transcription",
    "speech",
    "images",
    "tools",
    "vision",
    "audio",
    "reasoning",
    "json",
]

# A model that can do a thing must have a price for what the thing bills (checked at start-up).
PRICES_IMPLIED: Mapping[str, tuple[str, ...]] = {
    "chat": ("input", "output"),
    "completions": ("input", "output"),
    "embeddings": ("input",),
    "rerank": ("per_search_unit",),
    "transcription": ("per_second",),
    "speech": ("per_character",),
    "images": ("per_image",),
    "tools": ("input", "output"),
    "vision": ("input",),
    "audio": ("input", "output"),
    "reasoning": ("output",),
    "json": ("output",),
}
# What has no limit of its own is bounded by this.
NO_LIMIT = 2**31 - 1


class Prices(Section):
    """Decimal strings: USD per million tokens, and USD per unit of everything else (``per_...``).

    A kind of token left out bills at its parent's price. Any other unit left out is not sold.
    """

    input: str | None = Field(None, description="prompt tokens")
    cached_input: str | None = Field(None, description="prompt tokens read from a cache (parent: input)")
    cache_write: str | None = Field(None, description="prompt tokens written to a cache (parent: input)")
    audio_input: str | None = Field(None, description="audio tokens of the prompt (parent: input)")
    output: str | None = Field(None, description="completion tokens")
    reasoning: str | None = Field(None, description="reasoning tokens (parent: output)")
    audio_output: str | None = Field(None, description="audio tokens of the completion (parent: output)")
    per_image: dict[str, str] | None = Field(None, description='USD per image, by size: {"1024x1024" = "0.04"}')
    per_second: str | None = Field(None, description="USD per second of audio that is transcribed")
    per_character: str | None = Field(None, description="USD per character that is spoken")
    per_search_unit: str | None = Field(None, description="USD per search unit of a rerank (100 documents)")
    per_web_search: str | None = Field(None, description="USD per web search that the model makes")

    @field_validator("*")
    @classmethod
    def _exact(cls, text: Any, info: ValidationInfo) -> Any:
        flat = (info.field_name or "").startswith("per_")
        for each in text.values() if isinstance(text, dict) else (text,):
            if each is not None and (parse_price(each) if flat else parse_price_per_million(each)) < 0:
                raise ValueError("a price is never negative")
        return text

    @field_validator("per_image")
    @classmethod
    def _sizes(cls, sizes: dict[str, str] | None) -> dict[str, str] | None:
        if sizes is not None and (
            not sizes or not all(re.fullmatch(r"[1-9]\d{1,4}x[1-9]\d{1,4}", size) for size in sizes)
        ):
            raise ValueError("name each size as WIDTHxHEIGHT, such as 1024x1024")
        return sizes

    def in_pico_usd(self) -> dict[str, PicoUsd]:
        """The units that have a price of their own: kinds of tokens, ``image:SIZE``, ``second`` and so on."""
        prices: dict[str, PicoUsd] = {}
        for name, value in self:
            if isinstance(value, dict):
                prices |= {f"{IMAGE_UNIT}{size}": parse_price(text) for size, text in value.items()}
            elif value is not None and name.startswith("per_"):
                prices[name.removeprefix("per_")] = parse_price(value)
            elif value is not None:
                prices[name] = parse_price_per_million(value)
        return prices


class ModelSettings(Section):
    """A model as one provider serves it."""

    id: Annotated[str, Field(min_length=1, max_length=200)] = Field(..., description="what clients ask for")
    upstream_id: str | None = Field(None, description="what the provider calls it; the same when left out")
    aliases: tuple[str, ...] = Field((), description="other names that clients may use")
    capabilities: tuple[Capability, ...] = Field(("chat",), description="what it can do; each implies prices")
    context_window: Positive | None = Field(None, description="tokens of prompt and output together")
    max_output_tokens: Positive | None = Field(None, description="most output tokens of one answer")
    max_seconds: Positive = Field(4 * 3600, description="longest audio that is transcribed, in seconds")
    max_characters: Positive = Field(4096, description="longest text that is spoken, in characters")
    tokenizer: str | None = Field(None, description="its tokenizer's name; with it, prompts of token ids are taken")
    web_search: bool = Field(False, description="search the web unless a request says no (needs price.per_web_search)")
    created: Annotated[int, Field(ge=0)] = Field(0, description="shown in /v1/models, in Unix seconds")
    hidden_reasoning: bool = Field(
        False, description="bills reasoning that it does not stream: the full ceiling is held"
    )
    owned_by: str = Field("farebox", description="shown in /v1/models")
    price: Prices = Field(..., description="what we charge")
    cost: Prices = Field(Prices(), description="what we pay")

    @field_validator("id", "upstream_id", "aliases")
    @classmethod
    def _printable(cls, value: Any) -> Any:
        for text in (value,) if isinstance(value, str) else value or ():
            if not text.isascii() or not text.isprintable():
                raise ValueError("model names are printable ASCII: they appear in headers")
        return value

    @property
    def context(self) -> int:
        """The context window, or a bound that no prompt reaches."""
        return self.context_window or NO_LIMIT

    @property
    def output_max(self) -> int:
        """The output limit, or a bound that no answer reaches."""
        return self.max_output_tokens or NO_LIMIT

    @property
    def searches(self) -> bool:
        """Whether it may be asked to search the web: the model must call tools, and a search must have a price."""
        return "tools" in self.capabilities and self.price.per_web_search is not None

    @model_validator(mode="after")
    def _limited(self) -> Self:
        generates = {"chat", "completions"} & set(self.capabilities)
        if generates and (self.context_window is None or self.max_output_tokens is None):
            raise ValueError(f"model {self.id!r} needs context_window and max_output_tokens")
        if self.web_search and not self.searches:
            raise ValueError(f"model {self.id!r} searches the web, so it needs 'tools' and price.per_web_search")
        return self

    @model_validator(mode="after")
    def _priced(self) -> Self:
        for capability in self.capabilities:
            for unit in PRICES_IMPLIED[capability]:
                if getattr(self.price, unit) is None:
                    raise ValueError(
                        f"model {self.id!r} can {capability!r}, so price.{unit} must be set (0 is allowed)"
                    )
        return self


class ProviderSettings(Section):
    """An upstream: where it is, how it speaks and what it serves."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")] = Field(..., description="unique name")
    kind: Literal["native", "quota", "external"] = Field("native", description="native | quota | external")
    adapter: Literal["openai", "anthropic", "cohere", "sandbox"] = Field(
        "openai", description="openai | anthropic | cohere | sandbox"
    )
    base_url: str | None = Field(None, description="for example http://127.0.0.1:11434/v1")
    api_key_env: str | None = Field(None, description="variable with the provider's key")
    connections_max: Positive = Field(1024, description="connections to this provider")
    rails: tuple[Literal["api_key", "wallet"], ...] = Field(
        ("api_key", "wallet"), description="payers that it serves: api_key, wallet"
    )
    engine_type: Shown | None = Field(None, description="what clients are told of its engine; the adapter's name")
    machine_name: Shown | None = Field(None, description="what clients are told of its machine; the provider's name")
    tokens_per_second: Annotated[float, Field(gt=0)] = Field(200.0, description="sandbox: pace of a stream")
    first_token_ms: Annotated[int, Field(ge=0)] = Field(20, description="sandbox: time to the first token")
    models: tuple[ModelSettings, ...] = Field((), description="what it serves")

    @model_validator(mode="after")
    def _reachable(self) -> Self:
        if self.adapter != "sandbox" and not (self.base_url or "").startswith(("http://", "https://")):
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
            capabilities=("chat", "completions", "tools", "reasoning"),
            context_window=32_768,
            max_output_tokens=8_192,
            price=Prices(input="0.10", cached_input="0.02", output="0.40", per_web_search="0.01"),
            cost=Prices(input="0.05", cached_input="0.01", output="0.20", per_web_search="0.005"),
        ),
        ModelSettings(
            id="sandbox/embed",
            capabilities=("embeddings",),
            context_window=8_192,
            # Any ids will do: it looks none of them up.
            tokenizer="any",
            price=Prices(input="0.02"),
            cost=Prices(input="0.01"),
        ),
        ModelSettings(
            id="sandbox/rerank",
            capabilities=("rerank",),
            price=Prices(per_search_unit="0.002"),
            cost=Prices(per_search_unit="0.001"),
        ),
        ModelSettings(
            id="sandbox/transcribe",
            capabilities=("transcription",),
            price=Prices(per_second="0.0001"),
            cost=Prices(per_second="0.00005"),
        ),
        ModelSettings(
            id="sandbox/speak",
            capabilities=("speech",),
            price=Prices(per_character="0.00001"),
            cost=Prices(per_character="0.000005"),
        ),
        ModelSettings(
            id="sandbox/paint",
            capabilities=("images",),
            price=Prices(per_image={"1024x1024": "0.04", "1792x1024": "0.08", "1024x1792": "0.08"}),
            cost=Prices(per_image={"1024x1024": "0.02", "1792x1024": "0.04", "1024x1792": "0.04"}),
        ),
    ),
)
