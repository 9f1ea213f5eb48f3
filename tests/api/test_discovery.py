"""``/openapi.json`` and ``/llms.txt``: true to what is served and to what is asked for."""

import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, get_args
from urllib.parse import urljoin

import httpx
import jsonschema_rs
import pytest
from starlette.routing import Route

from app.api import account, discovery_document
from app.api.application import Application
from app.api.channels import private, public, receipt_row
from app.api.discovery_document import BYTES_MAX
from app.api.discovery_paid import ALIASES, SOLD
from app.channels.store import ChannelStore, ReceiptRecord
from app.database import connect
from app.money import BaseUnits
from app.mpp.descriptor import ZERO_HASH, Descriptor
from app.pricing.price_book import PriceVersion
from app.reconcile.usage_store import ROWS_PER_PAGE, ROWS_PER_PAGE_MAX, GroupBy
from app.routing.candidates import Candidate, Catalog
from app.settings import (
    ChannelSettings,
    DatabaseSettings,
    MppSettings,
    Prices,
    ProviderSettings,
    ServerSettings,
    Settings,
)
from app.upstream.sandbox import SandboxProvider
from tests.api.documents import findings, operations, resolved, response_of, template, walk
from tests.api.edge import edge
from tests.api.paid_models import CATALOG
from tests.clocks import FakeClock
from tests.serving import FareboxServer, model, sandbox

CHAT = "/v1/chat/completions"
TOKEN = "0x20C0000000000000000000000000000000000000"
ESCROW = "0x4D50500000000000000000000000000000000000"
PAID = {sold.path for sold in SOLD}
PUBLIC_URL = "https://farebox.example/"


def channel(backend: str = "tempo-v2", **changes: Any) -> ChannelSettings:
    entry = {"backend": backend, "chain_id": 42431, "rpc_url": "http://127.0.0.1:1", "escrow": ESCROW, **changes}
    return ChannelSettings.model_validate({"currency": TOKEN, **entry})


CHANNELS = (channel(), channel("tempo-v1", chain_id=4217), channel("evm", chain_id=8453, currency=ESCROW))


def candidates(*providers: dict[str, Any]) -> list[Candidate]:
    """What such providers serve, priced as the start prices it."""
    found = []
    for entry in providers:
        settings = ProviderSettings.model_validate(entry)
        for served in settings.models:
            prices = served.price.in_pico_usd()
            version = PriceVersion(f"pv-{settings.name}-{served.id}", settings.name, served.id, 1, prices, {})
            found.append(Candidate(SandboxProvider(settings), served, version))
    return found


@asynccontextmanager
async def app_with(
    sqlite_url: str, clock: FakeClock, *, served: Sequence[Candidate] = (), **settings: Any
) -> AsyncIterator[tuple[httpx.AsyncClient, Application]]:
    """The real application with these settings and models."""
    engine = connect(DatabaseSettings(url=sqlite_url))
    async with edge(engine, clock) as client:
        application: Application = client._transport.app  # type: ignore[attr-defined]
        found = application.rest.state.services
        found.proxy.catalog = Catalog(served)
        application.rest.state.services = replace(found, settings=Settings(**settings))
        yield client, application
    engine.dispose()


@pytest.fixture
async def wallets(sqlite_url: str, clock: FakeClock) -> AsyncIterator[tuple[httpx.AsyncClient, Application]]:
    """An application that offers three kinds of channels and one model."""
    served = candidates(sandbox())
    async with app_with(sqlite_url, clock, served=served, mpp=MppSettings(channels=CHANNELS)) as found:
        yield found


async def document_of(client: httpx.AsyncClient) -> dict[str, Any]:
    document: dict[str, Any] = (await client.get("/openapi.json")).raise_for_status().json()
    return document


@pytest.fixture(scope="module")
def document(farebox: FareboxServer) -> dict[str, Any]:
    """The document of a real process, which offers no channels."""
    found: dict[str, Any] = httpx.get(f"{farebox.url}/openapi.json", timeout=30).raise_for_status().json()
    return found


async def test_paid_operations_are_offered_to_wallets_as_configured(
    wallets: tuple[httpx.AsyncClient, Application],
) -> None:
    document = await document_of(wallets[0])
    assert findings(document) == []
    info = document["paths"][CHAT]["post"]["x-payment-info"]
    prices = "USD per million tokens: sandbox/echo: input 1.00, output 4.00, cached_input 0.25, reasoning 6.00"
    *sessions, charge = info["offers"]
    assert (charge["intent"], charge["method"], charge["currency"]) == ("charge", "tempo", TOKEN.lower())
    assert charge["amount"] is None
    assert charge["description"].startswith("A whole answer by one transfer")
    assert sessions == [
        {"intent": "session", "amount": None, "method": method, "currency": currency.lower(), "description": said}
        for method, currency, said in (
            ("tempo", TOKEN, f"Session channel v2 on chain 42431. {prices}"),
            ("tempo", TOKEN, "Session channel v1 on chain 4217"),
            ("evm", ESCROW, "Payment channel on chain 8453"),
        )
    ]
    top_up = document["paths"]["/v1/topups"]["post"]["x-payment-info"]["offers"]
    assert [(offer["intent"], offer["method"], offer["amount"]) for offer in top_up] == [("charge", "tempo", None)]
    required = response_of(document, document["paths"][CHAT]["post"]["responses"]["402"])
    assert "WWW-Authenticate" in required["headers"]
    assert set(required["content"]) == {"application/json", "application/problem+json"}
    assert {"payment": []} in document["security"]
    # One model chats, and nothing else: what nobody can buy is not offered.
    offered = {path for path, _, operation in operations(document) if "x-payment-info" in operation}
    assert offered == {CHAT, "/ai/chat", "/ai/generate", "/v1/topups"}


async def test_every_paid_path_is_offered_in_its_own_unit(sqlite_url: str, clock: FakeClock) -> None:
    served = [candidate for found in CATALOG.models.values() for candidate in found]
    async with app_with(sqlite_url, clock, served=served, mpp=MppSettings(channels=(channel(),))) as (client, _):
        document = await document_of(client)
    assert findings(document) == []
    said = {}
    for path in PAID:
        operation = document["paths"][path]["post"]
        assert [offer["intent"] for offer in operation["x-payment-info"]["offers"]] == ["session", "charge"]
        said[path] = operation["x-payment-info"]["offers"][0]["description"].removeprefix(
            "Session channel v2 on chain 42431. "
        )
    assert said["/v1/chat/completions"] == said["/ai/chat"]
    assert said["/v1/chat/completions"].startswith(
        "USD per million tokens: m: input 1.00, output 4.00, cached_input 0.25, reasoning 6.00, 0.01 per web search; "
    )
    assert said["/v1/embeddings"].startswith("USD per million tokens: embeds: input 1.00, cached_input 0.25; ")
    assert said["/v1/rerank"] == said["/v2/rerank"] == "USD: reranks: 0.002 per search unit"
    assert said["/v1/audio/transcriptions"] == "USD: transcribes: 0.0001 per second"
    assert said["/v1/audio/speech"] == "USD: speaks: 0.000015 per character"
    assert said["/v1/images/generations"].startswith("USD: paints: 0.01 per image 256x256, 0.04 per image 1024x1024, ")
    # A prompt may also be completed by what does not chat.
    assert "completes: " in said["/ai/generate"]


async def test_providers_that_take_no_wallets_are_not_offered_to_them(sqlite_url: str, clock: FakeClock) -> None:
    served = [replace(each, rails=frozenset({"api_key"})) for each in candidates(sandbox())]
    async with app_with(sqlite_url, clock, served=served, mpp=MppSettings(channels=CHANNELS)) as (client, _):
        document = await document_of(client)
    assert "x-payment-info" not in document["paths"][CHAT]["post"]
    assert "example" in document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]


def test_without_channels_nothing_is_offered_to_wallets(document: dict[str, Any], farebox: FareboxServer) -> None:
    assert findings(document) == []
    assert not [path for path, _, operation in operations(document) if "x-payment-info" in operation]
    assert set(document["components"]["securitySchemes"]) == {"bearer", "api_key"}
    assert "/v1/topups" not in document["paths"]
    assert "/v1/channels/{channelId}" not in document["paths"]
    text = httpx.get(f"{farebox.url}/llms.txt", timeout=30).text
    for said in (str(document), text):
        assert not re.search(r"wallet|WWW-Authenticate|PaymentProblem", said)


async def test_charges_are_offered_where_the_token_can_be_charged(sqlite_url: str, clock: FakeClock) -> None:
    mpp = MppSettings(channels=(channel("evm"),))
    async with app_with(sqlite_url, clock, served=candidates(sandbox()), mpp=mpp) as (client, _):
        document = await document_of(client)
        text = (await client.get("/llms.txt")).text
    assert "/v1/topups" not in document["paths"]
    assert "/v1/channels/{channelId}" in document["paths"]
    offers = document["paths"][CHAT]["post"]["x-payment-info"]["offers"]
    assert [(offer["intent"], offer["method"]) for offer in offers] == [("session", "evm")]
    assert "charge`" not in text
    assert "topups" not in text


async def test_example_streams_where_wallets_pay(sqlite_url: str, clock: FakeClock) -> None:
    foreign = channel("tempo-v1", foreign_escrow=True)
    examples, texts = [], []
    for channels in ((foreign,), (foreign, channel())):
        mpp = MppSettings(channels=channels)
        async with app_with(sqlite_url, clock, served=candidates(sandbox()), mpp=mpp) as (client, _):
            document = await document_of(client)
            texts.append((await client.get("/llms.txt")).text)
        examples.append(document["paths"][CHAT]["post"]["requestBody"]["content"]["application/json"]["example"])
        offer = document["paths"][CHAT]["post"]["x-payment-info"]["offers"][0]
        assert offer["description"].startswith("Session channel v1 on chain 42431, streams only. ")
    assert [example.get("stream") for example in examples] == [True, True]
    assert all(text.count("streams only") == 1 for text in texts)


async def test_no_example_is_given_where_nothing_chats(sqlite_url: str, clock: FakeClock) -> None:
    silent = sandbox(models=[model("ears", capabilities=["audio"])])
    for served in ([], candidates(silent)):
        async with app_with(sqlite_url, clock, served=served) as (client, _):
            document = await document_of(client)
        for path in PAID:
            (content,) = document["paths"][path]["post"]["requestBody"]["content"].values()
            assert "example" not in content, path


# True to what is served.


async def test_every_route_is_described_and_nothing_else(wallets: tuple[httpx.AsyncClient, Application]) -> None:
    client, application = wallets
    served = {
        (template(route.path), method.lower())
        for route in application.rest.routes
        if isinstance(route, Route)
        for method in route.methods or ()
        if method != "HEAD" and not route.path.startswith("/admin/") and not route.path.startswith("/console")
    }
    served |= {(path, "post") for path in application._paid}
    # Operators' metrics, and paths that only differ by a slash or by an SDK's version.
    served = {(path, method) for path, method in served if not path.endswith("/") and path not in ALIASES}
    served -= {("/metrics", "get")}
    document = await document_of(client)
    for alias, path in ALIASES.items():
        assert alias in document["paths"][path]["post"]["description"]
        assert alias in application._paid
    described = {(template(path), method) for path, method, _ in operations(document)}
    assert served <= described
    of_wallets = {("/v1/topups", "post"), ("/v1/channels/{}", "get")}
    assert described - of_wallets <= served


async def test_parameters_of_paths_are_declared_and_references_lead_somewhere(
    wallets: tuple[httpx.AsyncClient, Application],
) -> None:
    document = await document_of(wallets[0])
    assert document["openapi"] == "3.1.0"
    for path, method, operation in operations(document):
        declared = [entry for entry in operation.get("parameters", ()) if "$ref" not in entry]
        named = {entry["name"] for entry in declared if entry["in"] == "path"}
        assert named == set(re.findall(r"\{(\w+)\}", path)), (path, method)
        assert operation["summary"]
        for response in operation["responses"].values():
            assert response_of(document, response)["description"]
        schemes = {name for entry in operation.get("security", document["security"]) for name in entry}
        assert schemes <= set(document["components"]["securitySchemes"])
        assert set(operation["tags"]) <= {tag["name"] for tag in document["tags"]}
    for each in walk(document):
        if "$ref" in each:
            _, _, kind, name = each["$ref"].split("/")
            assert name in document["components"][kind]
    used = {each["$ref"].rsplit("/", 1)[1] for each in walk(document) if "$ref" in each}
    for kind in ("schemas", "responses", "parameters"):
        assert set(document["components"][kind]) <= used
    for name in document["components"]["schemas"]:
        assert jsonschema_rs.validator_for(resolved(document, name)) is not None


def test_answers_are_as_described(document: dict[str, Any], farebox: FareboxServer) -> None:
    payer = farebox.payer()
    request = {"model": "sandbox", "messages": [{"role": "user", "content": "Hello"}]}
    for stream in (False, True):
        asked = httpx.post(f"{farebox.url}{CHAT}", json={**request, "stream": stream}, headers=payer.headers)
        assert asked.status_code == 200
    farebox.wait_settled(payer, requests=2)
    for path, name in (
        ("/v1/models", "Models"),
        ("/v1/models/sandbox%2Fecho", "Model"),
        ("/ai/models", "SimpleModels"),
        ("/v1/key", "Key"),
        ("/v1/credits", "Balance"),
        ("/v1/balance", "Balance"),
        ("/v1/usage", "Usage"),
        (f"/v1/generations/{asked.headers['x-request-id']}", "Generation"),
    ):
        answer = httpx.get(farebox.url + path, headers=payer.headers, timeout=30).raise_for_status()
        jsonschema_rs.validate(resolved(document, name), answer.json())
    # The group's name is a member of its own.
    loose = {"$ref": "#/components/schemas/Usage", "components": document["components"]}
    for group in get_args(GroupBy):
        answer = httpx.get(f"{farebox.url}/v1/usage?group_by={group}", headers=payer.headers, timeout=30)
        jsonschema_rs.validate(loose, answer.raise_for_status().json())
    for answer in (httpx.get(f"{farebox.url}/healthz"), httpx.get(f"{farebox.url}/readyz")):
        assert isinstance(answer.json()["status"], str)


async def test_channels_are_as_described(sqlite_url: str, clock: FakeClock) -> None:
    served, mpp = candidates(sandbox()), MppSettings(channels=CHANNELS)
    async with app_with(sqlite_url, clock, served=served, mpp=mpp) as (client, application):
        document = await document_of(client)
        record = ChannelStore(application.rest.state.services.engine, clock).create(
            f"0x{'ab' * 32}",
            backend="tempo-v2",
            chain_id=42431,
            escrow=ESCROW.lower(),
            descriptor=Descriptor(payer=ESCROW.lower(), payee=ESCROW.lower(), token=TOKEN.lower(), salt=ZERO_HASH),
            deposit=BaseUnits(1_000_000),
            settled=BaseUnits(0),
            block=1,
        )
    receipt = ReceiptRecord("req_1", record.id, "challenge", BaseUnits(5), BaseUnits(3), 1, clock.now_ms())
    shown = public(record)
    schema = resolved(document, "Channel")
    jsonschema_rs.validate(schema, shown)
    proven = {**shown, **private(record), "receipts": [receipt_row(receipt)]}
    jsonschema_rs.validate(schema, proven)
    assert set(document["components"]["schemas"]["Channel"]["properties"]) == set(proven)


async def test_top_ups_are_as_described(wallets: tuple[httpx.AsyncClient, Application]) -> None:
    client, application = wallets
    document = await document_of(client)
    operation = document["paths"]["/v1/topups"]["post"]
    request = operation["requestBody"]["content"]["application/json"]
    jsonschema_rs.validate(request["schema"], request["example"])
    customer = application.rest.state.services.customers.create("Ada")
    credited = {"object": "topup", "amount": "5.00", "payer": ESCROW, **customer.balance()}
    jsonschema_rs.validate(resolved(document, "TopUp"), credited)


@pytest.mark.parametrize(("path", "name"), [(CHAT, "Error"), ("/ai/chat", "SimpleError")])
def test_refusals_are_as_described(path: str, name: str, document: dict[str, Any], farebox: FareboxServer) -> None:
    poor, rich = farebox.payer("0"), farebox.payer()
    request = {"model": "sandbox", "messages": [{"role": "user", "content": "Hello"}]}
    for payer, sent, status in (
        (poor, request, 402),
        (rich, {**request, "n": 0}, 400),
        (rich, {**request, "model": "nothing"}, 404),
        (None, request, 401),
    ):
        headers = payer.headers if payer else {}
        answer = httpx.post(f"{farebox.url}{path}", json=sent, headers=headers, timeout=30)
        assert answer.status_code == status
        responses = document["paths"][path]["post"]["responses"]
        content = response_of(document, responses.get(str(status), responses["default"]))["content"]
        assert content["application/json"]["schema"] == {"$ref": f"#/components/schemas/{name}"}
        jsonschema_rs.validate({**resolved(document, name)}, answer.json())
    answer = httpx.post(f"{farebox.url}{path}", json=request, headers=poor.headers)
    assert {"required", "available"} <= set(answer.json()["error"])


async def test_queries_are_as_described(wallets: tuple[httpx.AsyncClient, Application]) -> None:
    document = await document_of(wallets[0])
    described = {entry["name"]: entry["schema"] for entry in document["paths"]["/v1/usage"]["get"]["parameters"]}
    assert (described["limit"]["maximum"], described["limit"]["default"]) == (ROWS_PER_PAGE_MAX, ROWS_PER_PAGE)
    assert described["format"]["enum"] == list(account.FORMATS)
    assert described["group_by"]["enum"] == list(get_args(GroupBy))


# Prices, bounds and addresses.


async def test_models_and_their_prices_are_listed(sqlite_url: str, clock: FakeClock) -> None:
    cheap = sandbox("cheap", models=[model("both", aliases=["b"]), model("free", price={"input": "0", "output": "0"})])
    dear = sandbox("dear", models=[model("both", price={"input": "3.00", "output": "4.00"})])
    mpp = MppSettings(channels=(channel(),))
    async with app_with(sqlite_url, clock, served=candidates(cheap, dear), mpp=mpp) as (client, _):
        document = await document_of(client)
        text = (await client.get("/llms.txt")).text
    line = "both: input 1.00 to 3.00, output 4.00, cached_input 0.25 to 3.00, reasoning 4.00 to 6.00"
    description = document["paths"][CHAT]["post"]["x-payment-info"]["offers"][0]["description"]
    assert description.endswith(f"USD per million tokens: {line}; free: input 0.00, output 0.00")
    limits = "1000000 tokens of context; 500000 tokens of output"
    assert f"- {line} (chat, tools; {limits}; also called b)" in text.splitlines()
    assert f"- free: input 0.00, output 0.00 (chat, tools; {limits})" in text.splitlines()
    assert document["components"]["schemas"]["ChatRequest"]["properties"]["model"]["examples"] == ["both", "free"]


async def test_however_many_models_there_are_both_stay_small(sqlite_url: str, clock: FakeClock) -> None:
    price = Prices(input="0.10", cached_input="0.02", output="0.40").model_dump(exclude_none=True)
    many = sandbox(models=[model(f"vendor/{'m' * 150}{number}", price=price) for number in range(3000)])
    mpp = MppSettings(channels=CHANNELS)
    async with app_with(sqlite_url, clock, served=candidates(many), mpp=mpp) as (client, _):
        content = (await client.get("/openapi.json")).content
        document = await document_of(client)
        text = (await client.get("/llms.txt")).text
    assert len(content) < BYTES_MAX
    description = document["paths"][CHAT]["post"]["x-payment-info"]["offers"][0]["description"]
    shown, left_out = (
        description.count("vendor/"),
        re.search(r"; and (\d+) more models in GET /v1/models$", description),
    )
    assert left_out
    assert 0 < shown == 3000 - int(left_out.group(1))
    listed, more = text.count("- vendor/"), re.search(r"^- and (\d+) more in GET /v1/models$", text, re.MULTILINE)
    assert more
    assert 0 < listed == 3000 - int(more.group(1))
    assert len(text) < BYTES_MAX


async def test_public_url_is_where_links_begin(sqlite_url: str, clock: FakeClock) -> None:
    server = ServerSettings(public_url=PUBLIC_URL)
    async with app_with(sqlite_url, clock, served=candidates(sandbox()), server=server) as (client, _):
        document = await document_of(client)
        text = (await client.get("/llms.txt")).text
    assert document["servers"] == [{"url": "https://farebox.example"}]
    assert document["x-service-info"]["docs"] == {
        "apiReference": "https://farebox.example/openapi.json",
        "llms": "https://farebox.example/llms.txt",
    }
    assert findings(document) == []
    assert "- Base URL for SDKs: https://farebox.example/v1" in text.splitlines()
    assert "(https://farebox.example/openapi.json)" in text


def test_without_a_public_url_addresses_are_this_hosts(document: dict[str, Any], farebox: FareboxServer) -> None:
    assert document["servers"] == [{"url": "/"}]
    assert document["x-service-info"] == {"categories": list(discovery_document.CATEGORIES)}
    text = httpx.get(f"{farebox.url}/llms.txt", timeout=30)
    assert text.headers["content-type"] == "text/plain; charset=utf-8"
    assert text.text.startswith("# Farebox\n\n> ")
    links = re.findall(r"\]\((.*?)\)", text.text)
    assert links
    for link in links:
        assert httpx.get(urljoin(farebox.url, link), timeout=30).status_code == 200


async def test_wallets_are_told_which_channels_there_are(wallets: tuple[httpx.AsyncClient, Application]) -> None:
    text = (await wallets[0].get("/llms.txt")).text
    assert "or a wallet without any account" in text
    assert f"  Token `{TOKEN.lower()}`." in text.splitlines()
    assert "`POST /v1/topups`" in text
    assert "  - method `tempo`, session protocol v2, chain 42431, token `0x20c0" in text
    assert "  - method `tempo`, session protocol v1, chain 4217, token `0x20c0" in text
    assert f"  - method `evm`, chain 8453, token `{ESCROW.lower()}`" in text.splitlines()


# Caches.


@pytest.mark.parametrize("path", ["/openapi.json", "/llms.txt"])
def test_pages_may_be_kept_for_a_while_and_asked_for_again(path: str, farebox: FareboxServer) -> None:
    first = httpx.get(farebox.url + path, timeout=30)
    assert first.headers["cache-control"] == "public, max-age=300"
    assert first.headers["access-control-allow-origin"] == "*"
    etag = first.headers["etag"]
    for tag in (etag, f'W/{etag}, "other"', "*"):
        again = httpx.get(farebox.url + path, headers={"If-None-Match": tag}, timeout=30)
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    for tag in ('"other"', "", etag.strip('"')):
        again = httpx.get(farebox.url + path, headers={"If-None-Match": tag}, timeout=30)
        assert (again.status_code, again.content) == (200, first.content)
    head = httpx.head(farebox.url + path, timeout=30)
    assert (head.status_code, head.content, head.headers["etag"]) == (200, b"", etag)


@pytest.mark.parametrize("path", ["/openapi.json", "/llms.txt"])
async def test_pages_are_made_once(
    path: str, wallets: tuple[httpx.AsyncClient, Application], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, application = wallets
    first = await client.get(path)
    application.rest.state.services.proxy.catalog = Catalog([])
    assert (await client.get(path)).content == first.content
    # Another start has other prices, and so another name.
    application.rest.state.services = replace(application.rest.state.services)
    again = await client.get(path)
    assert again.content != first.content
    assert again.headers["etag"] != first.headers["etag"]


async def test_nobody_needs_a_key_and_a_bad_one_does_not_matter(
    wallets: tuple[httpx.AsyncClient, Application],
) -> None:
    for path in ("/openapi.json", "/llms.txt"):
        for headers in ({}, {"Authorization": "Bearer sk-fb-unknown"}):
            assert (await wallets[0].get(path, headers=headers)).status_code == 200
