"""What official SDKs send is read, and what is answered is what they read: real clients, our parsers and shapes."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cohere
import openai
import pytest

from app.admission import PaidRequest
from app.api import (
    completion_parameters,
    embedding_parameters,
    image_parameters,
    rerank_parameters,
    speech_parameters,
    transcription_parameters,
)
from app.api.incoming import Incoming, Parse
from app.api.problems import problem
from app.errors import FareboxError
from app.money import NanoUsd
from app.pricing.price_book import Usage
from app.shapes import Told
from tests.api.audio_files import wav
from tests.api.paid_models import CATALOG, SETTINGS

PARSERS: dict[str, Parse] = {
    "/v1/completions": completion_parameters.parse,
    "/v1/embeddings": embedding_parameters.parse,
    **dict.fromkeys(["/v1/rerank", "/v2/rerank", "/v1/v1/rerank", "/v1/v2/rerank"], rerank_parameters.parse),
    "/v1/audio/speech": speech_parameters.parse,
    "/v1/audio/transcriptions": transcription_parameters.parse,
    "/v1/images/generations": image_parameters.parse,
}
# What providers answer, in the shapes that adapters give.
ANSWERS: dict[str, dict[str, Any]] = {
    "completions": {"id": "cmpl-1", "object": "text_completion", "created": 1, "choices": [{"index": 0, "text": "Hi"}]},
    "embeddings": {"data": [{"index": 1, "embedding": [0.25, 0.5]}, {"index": 0, "embedding": [1.0, -1.0]}]},
    "rerank": {"results": [{"index": 1, "relevance_score": 0.75}], "meta": {"billed_units": {"search_units": 1}}},
    "images.generations": {"created": 5, "data": [{"b64_json": "AAAA", "revised_prompt": "A sunset"}]},
    "audio.transcriptions": {
        "text": "Good morning.",
        "language": "english",
        "duration": 1.5,
        "segments": [{"id": 0, "start": 0.0, "end": 1.5, "text": " Good morning."}],
    },
}


class Surface:
    """An edge that only parses and answers, and keeps what it parsed."""

    def __init__(self) -> None:
        self.requests: list[PaidRequest] = []
        surface = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = self.rfile.read(int(self.headers["Content-Length"]))
                status, kind, answer = surface.answer(self.path, content, self.headers["Content-Type"])
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_args: Any) -> None:
                """Nothing: the test says what went wrong."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, path: str, content: bytes, content_type: str) -> tuple[int, str, bytes]:
        try:
            request = PARSERS[path](Incoming(path, content, content_type, SETTINGS, CATALOG))
        except FareboxError as error:
            status, _, body = problem(error, request_id="req_1")
            return status, "application/json", body
        self.requests.append(request)
        if request.endpoint.answer == "bytes":
            return 200, "audio/mpeg", b"ID3sound"
        usage = Usage(7, 0, units=tuple(request.units_expected.items()))
        told = Told("req_1", request.model, usage, NanoUsd(1_000_000), {"engine_type": "sandbox", "machine_name": "m"})
        return 200, *request.shape.whole(dict(ANSWERS[request.endpoint.name]), told)

    @property
    def request(self) -> PaidRequest:
        """The last one."""
        return self.requests[-1]


@pytest.fixture(scope="module")
def surface() -> Iterator[Surface]:
    surface = Surface()
    thread = threading.Thread(target=surface.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield surface
    surface.server.shutdown()
    surface.server.server_close()
    thread.join()


@pytest.fixture
def client(surface: Surface) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{surface.url}/v1", api_key="k", max_retries=0) as client:
        yield client


def test_openai_completions(client: openai.OpenAI, surface: Surface) -> None:
    answer = client.completions.create(model="completes", prompt=["a", "b"], n=2, max_tokens=5, stop=["\n"], logprobs=2)
    assert answer.choices[0].text == "Hi"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 7
    assert (surface.request.choices, surface.request.output_limit) == (4, 5)


def test_openai_embeddings_are_read_from_base64(client: openai.OpenAI, surface: Surface) -> None:
    answer = client.embeddings.create(model="embeds", input=["x", "y"], dimensions=2)
    assert [row.embedding for row in answer.data] == [[1.0, -1.0], [0.25, 0.5]]
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (7, 7)
    # The SDK asks for base64 where its user asks for nothing.
    assert surface.request.body["encoding_format"] == "base64"
    answer = client.embeddings.create(model="embeds-ids", input=[[1, 2], [3]], encoding_format="float")
    assert answer.data[0].embedding == [1.0, -1.0]
    assert surface.request.size.token_ids == 3


def test_openai_images(client: openai.OpenAI, surface: Surface) -> None:
    answer = client.images.generate(model="paints", prompt="A sunset", size="1792x1024", n=2, response_format="url")
    assert answer.created == 5
    assert answer.data is not None
    assert (answer.data[0].b64_json, answer.data[0].revised_prompt) == ("AAAA", "A sunset")
    assert surface.request.units == {"image:1792x1024": 2}


def test_openai_speech(client: openai.OpenAI, surface: Surface) -> None:
    answer = client.audio.speech.create(model="speaks", input="Good morning", voice="alloy", response_format="wav")
    assert answer.read() == b"ID3sound"
    with client.audio.speech.with_streaming_response.create(model="speaks", input="Hello", voice="nova") as streamed:
        assert b"".join(streamed.iter_bytes()) == b"ID3sound"
    assert surface.request.units == {"character": 5}


def test_openai_transcriptions(client: openai.OpenAI, surface: Surface) -> None:
    file = ("speech.wav", wav(1.5))
    create = client.audio.transcriptions.create
    short = create(model="transcribes", file=file, language="en", temperature=0.2)
    assert short.text == "Good morning."
    assert surface.request.body == {
        "model": "transcribes",
        "language": "en",
        "temperature": 0.2,
        "response_format": "json",
    }
    assert surface.request.units == {"second": 2}
    assert surface.request.upload is not None
    assert surface.request.upload.content == file[1]
    verbose = create(
        model="transcribes", file=file, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert verbose.duration == 1.5
    assert verbose.segments is not None
    assert verbose.segments[0].end == 1.5
    assert create(model="transcribes", file=file, response_format="text") == "Good morning.\n"
    assert create(model="transcribes", file=file, response_format="srt").startswith("1\n00:00:00,000 --> 00:00:01,500")
    assert create(model="transcribes", file=file, response_format="vtt").startswith("WEBVTT\n\n00:00:00.000 -->")


def test_openai_is_told_which_parameter_is_wrong(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.audio.transcriptions.create(model="transcribes", file=("speech.wav", wav(1)), stream=True)
    assert caught.value.param == "stream"
    with pytest.raises(openai.BadRequestError) as caught:
        client.images.generate(model="paints", prompt="A sunset", quality="hd")
    assert caught.value.param == "quality"
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nobody", input="x")


@pytest.mark.parametrize("base", ["", "/v1"])
def test_cohere_rerank_of_the_first_version(surface: Surface, base: str) -> None:
    client = cohere.Client(api_key="k", base_url=f"{surface.url}{base}")
    answer = client.rerank(
        query="capital", documents=["a", {"text": "b"}], top_n=1, return_documents=True, max_chunks_per_doc=2
    )
    assert [(each.index, each.relevance_score) for each in answer.results] == [(1, 0.75)]
    assert answer.results[0].document is not None
    assert answer.results[0].document.text == "b"
    assert answer.meta is not None
    assert answer.meta.api_version is not None
    assert answer.meta.api_version.version == "1"
    assert answer.meta.billed_units is not None
    assert answer.meta.billed_units.search_units == 1
    assert surface.request.path == f"{base}/v1/rerank"
    assert surface.request.body == {
        "model": "reranks",
        "query": "capital",
        "documents": ["a", "b"],
        "top_n": 1,
        "max_tokens_per_doc": 1000,
    }


@pytest.mark.parametrize("base", ["", "/v1"])
def test_cohere_rerank_of_the_second_version(surface: Surface, base: str) -> None:
    client = cohere.ClientV2(api_key="k", base_url=f"{surface.url}{base}")
    answer = client.rerank(model="reranks", query="capital", documents=["a", "b"], top_n=1, max_tokens_per_doc=100)
    assert [(each.index, each.relevance_score) for each in answer.results] == [(1, 0.75)]
    assert answer.id == "req_1"
    assert answer.meta is not None
    assert answer.meta.api_version is not None
    assert answer.meta.api_version.version == "2"
    assert surface.request.path == f"{base}/v2/rerank"
    assert surface.request.body["max_tokens_per_doc"] == 100
