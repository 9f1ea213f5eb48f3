"""Models of every ability for the parsers of the paid endpoints, and bodies as the edge gives them to a parser."""

from typing import Any

import orjson

from app.api.incoming import Incoming
from app.pricing.price_book import PriceVersion
from app.provider_settings import ProviderSettings
from app.routing.candidates import Candidate, Catalog
from app.settings import InferenceSettings, SearchSettings, Settings
from app.upstream.sandbox import SandboxProvider
from tests.serving import PRICE, model, sandbox

SETTINGS = Settings(
    inference=InferenceSettings(media_hosts=("images.example",)),
    search=SearchSettings(backend="sandbox"),
)
SEARCH_PRICE = {**PRICE, "per_web_search": "0.01"}
IMAGE_PRICES = {"256x256": "0.01", "1024x1024": "0.04", "1792x1024": "0.08"}
MODELS = [
    model("m", capabilities=["chat", "tools", "vision", "audio"], price=SEARCH_PRICE),
    model("chats", capabilities=["chat"]),
    model("searches", price=SEARCH_PRICE, web_search=True),
    model("completes", capabilities=["completions"]),
    model("completes-ids", capabilities=["completions"], tokenizer="cl100k_base"),
    model("embeds", capabilities=["embeddings"], context_window=512),
    model("embeds-ids", capabilities=["embeddings"], tokenizer="cl100k_base"),
    model("reranks", capabilities=["rerank"], price={"per_search_unit": "0.002"}),
    model("transcribes", capabilities=["transcription"], price={"per_second": "0.0001"}, max_seconds=600),
    model("speaks", capabilities=["speech"], price={"per_character": "0.000015"}, max_characters=20),
    model("paints", capabilities=["images"], price={"per_image": IMAGE_PRICES}),
    model("paints-small", capabilities=["images"], price={"per_image": {"512x512": "0.02", "256x256": "0.01"}}),
]


def catalog(models: list[dict[str, Any]] | None = None, *, providers: int = 1) -> Catalog:
    """What so many sandboxes serve."""
    candidates = []
    for number in range(providers):
        settings = ProviderSettings.model_validate(sandbox(f"sandbox{number}", models=models or MODELS))
        provider = SandboxProvider(settings)
        for each in settings.models:
            version = PriceVersion(f"pv-{each.id}", provider.name, each.id, 1, each.price.in_pico_usd(), {})
            candidates.append(Candidate(provider, each, version))
    return Catalog(candidates)


CATALOG = catalog()


def incoming(path: str, body: Any, *, settings: Settings = SETTINGS, served: Catalog = CATALOG) -> Incoming:
    """A JSON body as the edge gives it to a parser."""
    return Incoming(path, orjson.dumps(body), "application/json", settings, served)
