"""``GET /v1/models`` and ``GET /ai/models``: what can be asked for, to everybody; with a key, what that key may use."""

from typing import Any
from urllib.parse import quote

import httpx
import pytest

from app.api import catalog, simple_models
from app.pricing.price_book import PriceVersion
from app.provider_settings import ProviderSettings
from app.rails.key_store import KeyLimits
from app.routing.candidates import Candidate
from app.upstream.sandbox import SandboxProvider
from tests.serving import PRICE, FareboxServer, model, sandbox

SANDBOX = "sandbox/echo"


def get(farebox: FareboxServer, path: str, **headers: str) -> httpx.Response:
    return httpx.get(farebox.url + path, headers=headers, timeout=30)


def listed(response: httpx.Response) -> dict[str, dict[str, Any]]:
    content = response.raise_for_status().json()
    assert content["object"] == "list"
    return {entry["id"]: entry for entry in content["data"]}


def test_models_are_public_and_complete(farebox: FareboxServer) -> None:
    found = listed(get(farebox, "/v1/models"))
    assert {SANDBOX, "dialect/ok", "dialect/flood:1000"} <= set(found)
    entry = found[SANDBOX]
    providers = entry.pop("providers")
    pricing = entry.pop("pricing")
    assert entry == {
        "id": SANDBOX,
        "object": "model",
        "created": 0,
        "owned_by": "farebox",
        "root": SANDBOX,
        "parent": None,
        "aliases": ["sandbox"],
        "context_window": 1_000_000,
        "max_model_len": 1_000_000,
        "max_output_tokens": 500_000,
        "capabilities": ["chat", "tools"],
        "permission": [
            {
                "id": f"modelperm-{SANDBOX}-0",
                "object": "model_permission",
                "created": 0,
                "allow_create_engine": False,
                "allow_sampling": True,
                "allow_logprobs": True,
                "allow_search_indices": False,
                "allow_view": True,
                "allow_fine_tuning": False,
                "organization": "*",
                "group": None,
                "is_blocking": False,
            }
        ],
    }
    assert pricing == {"currency": "USD", "unit": "million tokens", **PRICE}
    assert providers == [{"name": "sandbox", "kind": "native", "pricing": PRICE}]


def test_what_we_pay_is_nobodys_business(farebox: FareboxServer, shared_dialects: Any) -> None:
    said = get(farebox, "/v1/models").text
    assert '"cost"' not in said
    assert "upstream_id" not in said
    assert str(shared_dialects.port) not in said


def test_trailing_slash_and_head_are_served(farebox: FareboxServer) -> None:
    assert listed(get(farebox, "/v1/models/")) == listed(get(farebox, "/v1/models"))
    response = httpx.head(f"{farebox.url}/v1/models", timeout=30)
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize("path", [SANDBOX, quote(SANDBOX, safe=""), "sandbox%2fecho", "sandbox"])
def test_model_is_found_by_id_in_any_spelling_and_by_alias(path: str, farebox: FareboxServer) -> None:
    assert get(farebox, f"/v1/models/{path}").raise_for_status().json() == listed(get(farebox, "/v1/models"))[SANDBOX]


@pytest.mark.parametrize("path", ["nothing", "sandbox/echo/", "sandbox%252Fecho", "Sandbox/echo", "%0dX:1", "%ff"])
def test_unknown_model_is_404(path: str, farebox: FareboxServer) -> None:
    response = get(farebox, f"/v1/models/{path}")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
    assert "GET /v1/models" in error["message"]


def test_key_sees_what_it_may_use(farebox: FareboxServer) -> None:
    payer = farebox.payer(limits=KeyLimits(models=(SANDBOX,)))
    for headers in ({"Authorization": f"Bearer {payer.key}"}, {"x-api-key": payer.key}):
        assert set(listed(get(farebox, "/v1/models", **headers))) == {SANDBOX}
        assert get(farebox, "/v1/models/sandbox", **headers).status_code == 200
        response = get(farebox, "/v1/models/dialect/ok", **headers)
        assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


def test_key_without_a_list_sees_all(farebox: FareboxServer) -> None:
    assert listed(get(farebox, "/v1/models", **farebox.payer().headers)) == listed(get(farebox, "/v1/models"))


def test_wallets_placeholder_sees_all(farebox: FareboxServer) -> None:
    for headers in ({"Authorization": "Bearer wallet"}, {"x-api-key": "wallet"}):
        assert listed(get(farebox, "/v1/models", **headers)) == listed(get(farebox, "/v1/models"))


# The simple shape.


def test_simple_models_have_the_pages_members(farebox: FareboxServer) -> None:
    for path in ("/ai/models", "/ai/models/"):
        found = {entry["id"]: entry for entry in get(farebox, path).raise_for_status().json()["models"]}
        assert set(found) == set(listed(get(farebox, "/v1/models")))
        assert found[SANDBOX] == {
            "id": SANDBOX,
            "provider": "farebox",
            "capabilities": ["chat", "function_calling"],
            "context_length": 1_000_000,
        }


def test_simple_models_of_a_key_are_what_it_may_use(farebox: FareboxServer) -> None:
    payer = farebox.payer(limits=KeyLimits(models=(SANDBOX,)))
    shown = get(farebox, "/ai/models", **payer.headers).raise_for_status().json()["models"]
    assert [entry["id"] for entry in shown] == [SANDBOX]


def test_bad_key_of_simple_models_is_told_so_in_the_simple_shape(farebox: FareboxServer) -> None:
    response = get(farebox, "/ai/models", Authorization="Bearer sk-fb-unknown")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["status"]) == (401, "invalid_api_key", 401)
    assert set(error) == {"code", "message", "retry_after", "status"}


# What one model comes to.


def offers(*entries: dict[str, Any], rails: tuple[str, ...] = ("api_key", "wallet")) -> list[Candidate]:
    """A model as so many providers serve it; only the first serves `rails` alone."""
    found = []
    for number, entry in enumerate(entries):
        serves = {"rails": list(rails)} if number == 0 else {}
        settings = ProviderSettings.model_validate(sandbox(f"p{number}", models=[model("m", **entry)], **serves))
        (served,) = settings.models
        version = PriceVersion(f"pv-{number}", settings.name, "m", 1, served.price.in_pico_usd(), {})
        found.append(Candidate(SandboxProvider(settings), served, version, frozenset(settings.rails)))
    return found


def test_every_unit_has_its_price() -> None:
    price = {
        **PRICE,
        "per_image": {"1024x1024": "0.04", "1792x1024": "0.08"},
        "per_second": "0.0001",
        "per_character": "0.000015",
        "per_search_unit": "0.002",
        "per_web_search": "0.01",
    }
    found = catalog.shown(offers({"price": price}))
    assert found["pricing"] == {"currency": "USD", "unit": "million tokens", **price}
    assert found["providers"] == [{"name": "p0", "kind": "native", "pricing": price}]


def test_limits_that_nobody_knows_are_left_out() -> None:
    paints = {"capabilities": ["images"], "price": {"per_image": {"1024x1024": "0.04"}}}
    candidates = offers({**paints, "context_window": None, "max_output_tokens": None, "created": 1_749_110_897})
    found = catalog.shown(candidates)
    assert not {"context_window", "max_model_len", "max_output_tokens"} & set(found)
    assert (found["created"], found["permission"][0]["created"]) == (1_749_110_897, 1_749_110_897)
    assert simple_models.shown(candidates) == {"id": "m", "provider": "farebox", "capabilities": ["images"]}


def test_model_can_do_what_one_of_its_providers_can_and_costs_at_most_what_the_dearest_asks() -> None:
    cheap = {"context_window": 1000, "aliases": ["a"], "price": {"input": "1.00", "output": "2.00"}}
    long = {
        "context_window": 2000,
        "max_output_tokens": 400,
        "capabilities": ["chat", "vision"],
        "aliases": ["b", "a"],
        "price": {"input": "0.50", "output": "3.00", "reasoning": "4.00"},
    }
    candidates = offers(cheap, long)
    found = catalog.shown(candidates)
    assert (found["context_window"], found["max_output_tokens"]) == (2000, 500_000)
    assert (found["capabilities"], found["aliases"]) == (["chat", "tools", "vision"], ["a", "b"])
    # A kind of token without a price of its own costs what its parent does.
    assert found["pricing"] == {
        "currency": "USD",
        "unit": "million tokens",
        "input": "1.00",
        "output": "3.00",
        "reasoning": "4.00",
    }
    assert [each["pricing"]["input"] for each in found["providers"]] == ["1.00", "0.50"]
    assert simple_models.shown(candidates)["capabilities"] == ["chat", "function_calling", "vision"]


def test_key_is_shown_the_providers_that_take_keys() -> None:
    candidates = offers({}, {}, rails=("wallet",))
    assert [each.provider.name for each in catalog.usable_of(candidates, KeyLimits())] == ["p1"]
    assert list(catalog.usable_of(candidates, None)) == candidates
    assert not catalog.usable_of(candidates[:1], KeyLimits())
    assert not catalog.usable_of(candidates, KeyLimits(models=("other",)))


def test_bad_key_is_401_and_not_the_public(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    farebox.keys.revoke(payer.key_id)
    for path in ("/v1/models", f"/v1/models/{SANDBOX}"):
        for key in ("sk-fb-unknown", payer.key):
            response = get(farebox, path, Authorization=f"Bearer {key}")
            assert (response.status_code, response.json()["error"]["type"]) == (401, "auth_error")
