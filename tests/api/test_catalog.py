"""``GET /v1/models``: what can be asked for and what it costs, to everybody; with a key, what that key may use."""

from typing import Any
from urllib.parse import quote

import httpx
import pytest

from app.rails.key_store import KeyLimits
from tests.serving import PRICE, FareboxServer

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
        "permission": [],
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


def test_bad_key_is_401_and_not_the_public(farebox: FareboxServer) -> None:
    payer = farebox.payer()
    farebox.keys.revoke(payer.key_id)
    for path in ("/v1/models", f"/v1/models/{SANDBOX}"):
        for key in ("sk-fb-unknown", payer.key):
            response = get(farebox, path, Authorization=f"Bearer {key}")
            assert (response.status_code, response.json()["error"]["type"]) == (401, "auth_error")
