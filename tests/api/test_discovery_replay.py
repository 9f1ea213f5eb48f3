"""Every operation of ``/openapi.json``, its example sent to a real process, its answer held against its schema."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest

from app.api.discovery_paid import ALIASES, LIMIT, RECEIPT, SOLD
from app.errors import FareboxError, InvariantViolated
from app.upstream.sse import EventSplitter
from tests.api.audio_files import wav
from tests.api.documents import operations, response_of
from tests.serving import FareboxServer, Payer, model, sandbox

# Of streams the cost stands in their usage; the others are of some payers and limits.
HEADERS_OF_SOME = ("x-farebox-cost", LIMIT, RECEIPT)

FORM = "multipart/form-data"
JSON = "application/json"
EVENTS = "text/event-stream"
STREAMED = ["/v1/chat/completions", "/v1/completions", "/ai/chat", "/ai/generate"]
MODELS = [
    model("qwen3-32b", capabilities=["chat", "tools", "completions"]),
    model("embeddinggemma-300m", capabilities=["embeddings"], price={"input": "0.02"}),
    model("bge-reranker-v2-m3", capabilities=["rerank"], price={"per_search_unit": "0.002"}),
    model("whisper-large-v3", capabilities=["transcription"], price={"per_second": "0.0001"}),
    model("kokoro-82m", capabilities=["speech"], price={"per_character": "0.000015"}),
    model("sdxl", capabilities=["images"], price={"per_image": {"256x256": "0.01", "1024x1024": "0.04"}}),
]


@pytest.fixture(scope="module")
def everything(sqlite_template: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FareboxServer]:
    """A process that serves every endpoint."""
    folder = tmp_path_factory.mktemp("everything")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'farebox.db')}"
    with FareboxServer(folder, database_url=url, providers=[sandbox(models=MODELS)]) as server:
        yield server


@pytest.fixture(scope="module")
def document(everything: FareboxServer) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{everything.url}/openapi.json", timeout=30).raise_for_status().json()
    return found


@pytest.fixture(scope="module")
def payer(everything: FareboxServer) -> Payer:
    return everything.payer("50.00")


def validate(document: dict[str, Any], schema: dict[str, Any], value: Any) -> None:
    jsonschema_rs.validate({**schema, "components": document["components"]}, value)


def post(server: FareboxServer, payer: Payer, path: str, content: dict[str, Any], **changes: Any) -> httpx.Response:
    """Send an operation's example as it stands."""
    ((kind, media),) = content.items()
    sent = {**media["example"], **changes}
    url, headers = server.url + path, payer.headers
    if kind == FORM:
        name = sent.pop("file")
        return httpx.post(url, data=sent, files={"file": (name, wav(1.5), "audio/wav")}, headers=headers, timeout=30)
    return httpx.post(url, json=sent, headers=headers, timeout=30)


@pytest.mark.parametrize("path", [*(sold.path for sold in SOLD), *ALIASES])
def test_example_of_a_paid_operation_is_answered_as_described(
    path: str, everything: FareboxServer, document: dict[str, Any], payer: Payer
) -> None:
    operation = document["paths"][ALIASES.get(path, path)]["post"]
    answer = post(everything, payer, path, operation["requestBody"]["content"])
    assert answer.status_code == 200, answer.text
    described = operation["responses"]["200"]
    assert set(described["headers"]) - set(answer.headers) <= set(HEADERS_OF_SOME)
    kind = answer.headers["content-type"].split(";")[0]
    if kind == JSON:
        validate(document, described["content"][JSON]["schema"], answer.json())
        assert float(answer.headers["x-farebox-cost"]) > 0
    else:
        assert "audio/*" in described["content"]
        assert kind.startswith("audio/")
        assert answer.content


@pytest.mark.parametrize("path", STREAMED)
def test_example_streams_as_described(
    path: str, everything: FareboxServer, document: dict[str, Any], payer: Payer
) -> None:
    operation = document["paths"][path]["post"]
    answer = post(everything, payer, path, operation["requestBody"]["content"], stream=True)
    assert (answer.status_code, answer.headers["content-type"].split(";")[0]) == (200, EVENTS)
    example = events(operation["responses"]["200"]["content"][EVENTS]["example"].encode())
    endings = []
    for told in (events(answer.content), example):
        assert told[-1] == b"[DONE]"
        chunks = [json.loads(each) for each in told[:-1]]
        choices = chunks if path.startswith("/ai/") else [chunk["choices"][0] for chunk in chunks]
        said = [choice.get("delta", choice) for choice in choices]
        assert "".join(each.get("content") or each.get("text") or "" for each in said)
        endings.append(choices[-1]["finish_reason"])
        # The members by which a client takes its text from an event are those of the example.
        assert all(set(choice) <= {"delta", "finish_reason", "index", "text", "logprobs"} for choice in choices)
    assert set(endings) <= {"stop", "length"}


def events(content: bytes) -> list[bytes]:
    return EventSplitter(event_bytes_max=2**20).feed(content)


@pytest.mark.parametrize("wanted", ["text", "srt", "vtt", "verbose_json"])
def test_transcription_comes_in_every_described_form(
    wanted: str, everything: FareboxServer, document: dict[str, Any], payer: Payer
) -> None:
    path = "/v1/audio/transcriptions"
    operation = document["paths"][path]["post"]
    answer = post(everything, payer, path, operation["requestBody"]["content"], response_format=wanted)
    assert answer.status_code == 200
    assert answer.headers["content-type"].split(";")[0] in operation["responses"]["200"]["content"]


@pytest.mark.parametrize("path", [sold.path for sold in SOLD if sold.answered is not None])
def test_example_of_an_answer_is_as_described(path: str, document: dict[str, Any]) -> None:
    media = document["paths"][path]["post"]["responses"]["200"]["content"][JSON]
    validate(document, media["schema"], media["example"])


def test_example_of_a_request_is_as_described(document: dict[str, Any]) -> None:
    for path, _, operation in operations(document):
        for media in operation.get("requestBody", {}).get("content", {}).values():
            validate(document, media["schema"], media["example"])
            assert path in {sold.path for sold in SOLD}


def test_what_is_read_is_as_described(everything: FareboxServer, document: dict[str, Any], payer: Payer) -> None:
    chat = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
    asked = post(everything, payer, "/v1/chat/completions", chat)
    everything.wait_settled(payer)
    examples = {"request_id": asked.headers["x-request-id"]}
    for path, method, operation in operations(document):
        if method != "get":
            continue
        for entry in operation.get("parameters", ()):
            if entry["in"] == "path":
                examples.setdefault(entry["name"], entry["example"])
        answer = httpx.get(everything.url + path.format(**examples), headers=payer.headers, timeout=30)
        assert answer.status_code == 200, path
        ((kind, media), *_) = operation["responses"]["200"]["content"].items()
        assert answer.headers["content-type"].split(";")[0] == kind, path
        if kind == JSON:
            validate(document, media["schema"], answer.json())
            if "example" in media:
                validate(document, media["schema"], media["example"])


def test_every_described_refusal_names_its_schema(document: dict[str, Any]) -> None:
    for _, _, operation in operations(document):
        for status, response in operation["responses"].items():
            assert response_of(document, response)["content"], status


@pytest.mark.parametrize("path", ["/v1/nothing", "/ai/nothing", "/ai/"])
def test_unknown_path_is_refused_in_the_shape_of_its_surface(
    path: str, everything: FareboxServer, document: dict[str, Any], payer: Payer
) -> None:
    answer = httpx.get(everything.url + path, headers=payer.headers, timeout=30)
    assert answer.status_code == 404
    name = "SimpleError" if path.startswith("/ai/") else "Error"
    validate(document, {"$ref": f"#/components/schemas/{name}"}, answer.json())


def test_wrong_method_and_missing_content_type_below_ai(everything: FareboxServer, payer: Payer) -> None:
    answer = httpx.put(f"{everything.url}/ai/chat", headers=payer.headers, timeout=30)
    assert (answer.status_code, answer.json()["error"]["status"]) == (405, 405)
    body = b'{"model": "qwen3-32b", "messages": [{"role": "user", "content": "Hello"}]}'
    answer = httpx.post(f"{everything.url}/ai/chat", content=body, headers=payer.headers, timeout=30)
    assert answer.status_code == 200
    headers = {**payer.headers, "content-type": "text/plain"}
    answer = httpx.post(f"{everything.url}/ai/chat", content=body, headers=headers, timeout=30)
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_what_the_examples_used_is_in_the_books(everything: FareboxServer, payer: Payer) -> None:
    everything.wait_settled(payer)
    everything.assert_green()


# The page for people.

PAGE = (Path(__file__).parents[2] / "docs" / "http-api.md").read_text()
_REQUEST = re.compile(r"```http\n(GET|POST) (\S+)\n(.*?)```(?:\n```(json|text)\n(.*?)```)?", re.DOTALL)
SHOWN = _REQUEST.findall(PAGE)


@pytest.mark.parametrize("shown", SHOWN, ids=lambda shown: " ".join(shown[:2]))
def test_page_shows_what_is_answered(shown: tuple[str, ...], everything: FareboxServer, payer: Payer) -> None:
    method, path, body, kind, told = shown
    content = body.strip().encode() or None
    headers = {**payer.headers, **({"content-type": JSON} if content else {})}
    answer = httpx.request(method, everything.url + path, content=content, headers=headers, timeout=30)
    assert answer.status_code == 200, answer.text
    if kind == "json":
        assert missing(json.loads(told), answer.json()) == []
    elif kind == "text":
        named = {name for each in events(told.encode())[:-1] for name in json.loads(each)}
        found = {name for each in events(answer.content)[:-1] for name in json.loads(each)}
        assert named <= found
    else:
        assert answer.headers["content-type"].startswith("audio/")


def missing(told: Any, found: Any, where: str = "") -> list[str]:
    """Members that the page shows and that an answer has not."""
    if isinstance(told, dict):
        if not isinstance(found, dict):
            return [where]
        absent = [f"{where}.{name}" for name in told if name not in found]
        return absent + [
            each for name in told if name in found for each in missing(told[name], found[name], f"{where}.{name}")
        ]
    if isinstance(told, list) and told:
        return missing(told[0], found[0], f"{where}[]") if isinstance(found, list) and found else [where]
    return []


def test_page_names_every_path_and_every_status(document: dict[str, Any]) -> None:
    for path in (*document["paths"], *ALIASES):
        if path not in {"/openapi.json", "/llms.txt", "/v1/generations/{request_id}", "/v1/models/{id}"}:
            assert f"{path}`" in PAGE or f"{path}\n" in PAGE, path
    errors = [kind for kind in everything_below(FareboxError) if not issubclass(kind, InvariantViolated)]
    for kind in errors:
        assert re.search(rf"^\| [\d, ]*{kind.status}[\d, ]* \|.*`{kind.type}`", PAGE, re.MULTILINE), kind


def everything_below(kind: type[FareboxError]) -> Iterator[type[FareboxError]]:
    for each in kind.__subclasses__():
        yield each
        yield from everything_below(each)
