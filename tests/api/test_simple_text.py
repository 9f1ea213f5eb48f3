"""`/ai/generate` and `/ai/embeddings`: which endpoint of a model they use, and how their answers look."""

import base64
import json
import struct
from typing import Any

import orjson
import pytest

from app.api import simple_embeddings, simple_generate
from app.api.incoming import Incoming
from app.api.simple_embeddings import SimpleEmbeddings
from app.api.simple_generate import GENERATE
from app.errors import InvalidRequest, NotFound, RateLimited
from app.money import NanoUsd
from app.pricing.price_book import Usage
from app.settings import InferenceSettings, Settings
from app.shapes import Told
from tests.api.paid_models import MODELS, catalog
from tests.api.test_simple import answer, chunk, completion
from tests.serving import model

TOLD = Told("req_01abc", "m", Usage(10, 100), NanoUsd(5))
SERVED = catalog([*MODELS, model("both", capabilities=["chat", "completions"])])
STREAMING = Settings(inference=InferenceSettings(stream_default=True))


def generate(*, settings: Settings | None = None, **body: Any) -> Incoming:
    content = orjson.dumps({"model": "m", "prompt": "Explain", **body})
    return Incoming("/ai/generate", content, "", settings or Settings(), SERVED, "a-key")


def embeddings(**body: Any) -> Incoming:
    content = orjson.dumps({"model": "embeds", **body})
    return Incoming("/ai/embeddings", content, "", Settings(), SERVED, "a-key")


# Text from a prompt.


@pytest.mark.parametrize("name", ["m", "both"])
def test_prompt_is_one_message_of_a_chat(name: str) -> None:
    asked = generate(model=name, max_tokens=200, temperature=0.5)
    request = simple_generate.parse(asked)
    assert (request.endpoint.name, request.path, request.output_limit) == ("chat.completions", "/ai/generate", 200)
    assert request.body["messages"] == [{"role": "user", "content": "Explain"}]
    assert (request.body["temperature"], "prompt" in request.body) == (0.5, False)
    assert (request.content, request.idempotency_key, request.shape) == (asked.content, "a-key", GENERATE)
    assert request.size.text_bytes == len("Explain")


def test_model_that_completes_alone_completes() -> None:
    asked = generate(model="completes")
    request = simple_generate.parse(asked)
    assert (request.endpoint.name, request.body["prompt"], request.path) == ("completions", "Explain", "/ai/generate")
    assert (request.content, request.idempotency_key, request.shape) == (asked.content, "a-key", GENERATE)


@pytest.mark.parametrize("name", ["m", "completes"])
def test_text_is_whole_unless_a_stream_is_asked_for(name: str) -> None:
    assert not simple_generate.parse(generate(settings=STREAMING, model=name)).stream
    assert simple_generate.parse(generate(model=name, stream=True)).stream


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"messages": []}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"n": 2}, "n"),
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"model": "embeds"}, "model"),
        ({"temperature": 3}, "temperature"),
        ({"model": "completes", "temperature": 3}, "temperature"),
        ({"model": "completes", "n": 2}, "n"),
    ],
)
def test_what_cannot_be_answered_with_text_is_refused(body: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        simple_generate.parse(generate(**body))
    assert refused.value.param == param


def test_model_that_nobody_serves_is_not_found() -> None:
    with pytest.raises(NotFound):
        simple_generate.parse(generate(model="nothing"))


@pytest.mark.parametrize(
    "choice",
    [
        completion(content="Quantum")["choices"][0],
        completion(content=None, refusal="Quantum")["choices"][0],
        {"index": 0, "text": "Quantum", "finish_reason": "stop"},
    ],
)
def test_text_is_at_the_top(choice: dict[str, Any]) -> None:
    found = answer(GENERATE, {"choices": [choice]}, TOLD)
    usage = found.pop("usage")
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (10, 100, 110)
    assert list(found)[:2] == ["id", "text"]
    assert found == {"id": "gen_01abc", "text": "Quantum", "model": "m", "finish_reason": "stop"}


@pytest.mark.parametrize("body", [{}, {"choices": []}, {"choices": "x"}, {"choices": [{"message": [], "text": 1}]}])
def test_answer_without_text_is_empty_text(body: dict[str, Any]) -> None:
    assert answer(GENERATE, body, TOLD)["text"] == ""


def test_sources_and_thoughts_stand_beside_the_text() -> None:
    cited = [{"type": "url_citation", "url_citation": {"url": "https://a.example"}}]
    found = answer(GENERATE, completion(content="a", annotations=cited, reasoning_content="hm", id="x"), TOLD)
    assert (found["annotations"], found["reasoning_content"], found["id"]) == (cited, "hm", "gen_01abc")


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (chunk(delta={"role": "assistant", "content": ""}), None),
        (chunk(delta={"content": "Once"}), {"delta": {"text": "Once"}}),
        (chunk(delta={"refusal": "no"}), {"delta": {"text": "no"}}),
        (chunk(text=" upon"), {"delta": {"text": " upon"}}),
        (chunk(delta={"reasoning_content": "hm"}), {"delta": {"reasoning_content": "hm"}}),
        (chunk(text="", finish_reason="length"), {"delta": {}, "finish_reason": "length"}),
        (b'{"choices":[],"usage":{"total_tokens":3}}', {"delta": {}, "usage": {"total_tokens": 3}}),
    ],
)
def test_event_adds_text(data: bytes, shown: Any) -> None:
    said = GENERATE.chunk(data)
    assert (None if said is None else json.loads(said)) == shown


# Embeddings.


@pytest.mark.parametrize(("given", "several"), [("one", False), (["one"], True), (["one", "two"], True)])
def test_list_of_texts_is_answered_with_a_list(given: Any, several: bool) -> None:
    asked = embeddings(input=given)
    request = simple_embeddings.parse(asked)
    assert (request.endpoint.name, request.path, request.shape) == (
        "embeddings",
        "/ai/embeddings",
        SimpleEmbeddings(several=several),
    )
    assert (request.body["input"], request.content, request.idempotency_key) == (given, asked.content, "a-key")


def test_embeddings_may_name_no_model() -> None:
    asked = Incoming("/ai/embeddings", b'{"input": "a"}', "", Settings(), SERVED)
    assert simple_embeddings.parse(asked).model == "embeds"


@pytest.mark.parametrize("given", [None, "", [], [1, "a"], {}, [[]]])
def test_input_that_is_wrong_is_named(given: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        simple_embeddings.parse(embeddings(input=given))
    assert str(refused.value.param).startswith("input")


def vectors(*pairs: tuple[int, Any]) -> dict[str, Any]:
    data = [{"object": "embedding", "index": index, "embedding": vector} for index, vector in pairs]
    return {"object": "list", "model": "x", "data": data, "usage": {"prompt_tokens": 5, "total_tokens": 5}}


EMBEDDED = Told("req_1", "e", Usage(5, 0), NanoUsd(5))


def test_one_text_has_one_vector() -> None:
    found = answer(SimpleEmbeddings(), vectors((0, [0.5, -1.0, 0.25])), EMBEDDED)
    assert found == {"embedding": [0.5, -1.0, 0.25], "dimensions": 3, "usage": {"total_tokens": 5}}


def test_several_texts_have_their_vectors_in_their_order() -> None:
    found = answer(SimpleEmbeddings(several=True), vectors((1, [2.0]), (0, [1.0])), EMBEDDED)
    assert found == {"embeddings": [[1.0], [2.0]], "dimensions": 1, "usage": {"total_tokens": 5}}


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_many_texts_have_all_their_vectors(encoding: Any) -> None:
    """An answer with many vectors is prepared before it is charged for."""
    shape, body = SimpleEmbeddings(encoding, several=True), vectors(*((index, [1.0] * 600) for index in range(100)))
    assert shape.is_large(body)
    found = answer(shape, shape.prepared(body), EMBEDDED)
    assert (len(found["embeddings"]), found["dimensions"]) == (100, 600)
    assert found == answer(shape, body, EMBEDDED)


def test_base64_has_dimensions_too() -> None:
    packed = base64.b64encode(struct.pack("<3f", 1.0, 2.0, 3.0)).decode()
    found = answer(SimpleEmbeddings("base64"), vectors((0, [1.0, 2.0, 3.0])), EMBEDDED)
    assert (found["embedding"], found["dimensions"]) == (packed, 3)
    assert answer(SimpleEmbeddings("float"), vectors((0, packed)), EMBEDDED)["embedding"] == [1.0, 2.0, 3.0]


@pytest.mark.parametrize("body", [{}, {"data": None}, {"data": []}, {"data": ["x"]}, {"data": [{"embedding": None}]}])
def test_answer_without_vectors_never_fails(body: dict[str, Any]) -> None:
    assert answer(SimpleEmbeddings(), body, EMBEDDED)["dimensions"] == 0
    assert answer(SimpleEmbeddings("base64", several=True), body, EMBEDDED)["dimensions"] == 0


def test_errors_of_embeddings_are_simple() -> None:
    assert SimpleEmbeddings().error(RateLimited("slow", retry_after_s=2)) == {
        "code": "rate_limit_exceeded",
        "message": "slow",
        "retry_after": 2,
        "status": 429,
    }
