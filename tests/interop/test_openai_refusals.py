"""The unmodified OpenAI SDK at every path: what it raises where a request is refused, and what a repeated one gets."""

from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.api.audio_files import wav
from tests.interop.every_endpoint import UNSEARCHED, UPLOAD_BYTES_MAX, billed
from tests.serving import FareboxServer, Payer


def chat(client: OpenAI, **parameters: Any) -> Any:
    asked: dict[str, Any] = {"model": "sandbox/echo", "messages": [{"role": "user", "content": "Hi"}]}
    return client.chat.completions.create(**{**asked, **parameters})


def transcribe(client: OpenAI, content: bytes, **parameters: Any) -> Any:
    return client.audio.transcriptions.create(
        **{"model": "sandbox/transcribe", "file": ("speech.wav", content), **parameters}
    )


def embed(client: OpenAI, **parameters: Any) -> Any:
    return client.embeddings.create(**{"model": "sandbox/embed", "input": "tides", **parameters})


def paint(client: OpenAI, **parameters: Any) -> Any:
    return client.images.generate(**{"model": "sandbox/paint", "prompt": "A sunset", **parameters})


def speak(client: OpenAI, **parameters: Any) -> Any:
    return client.audio.speech.create(**{"model": "sandbox/speak", "input": "Hi", "voice": "alloy", **parameters})


# What is asked, the SDK's exception, and the status, our code and the parameter that it has.
WRONG: dict[str, tuple[Callable[[OpenAI], Any], type[openai.APIStatusError], str]] = {
    "size without a price": (
        lambda c: paint(c, size="512x512"),
        openai.BadRequestError,
        "400 invalid_parameter size",
    ),
    "quality without a price": (
        lambda c: paint(c, quality="hd"),
        openai.BadRequestError,
        "400 unsupported_parameter quality",
    ),
    "search without a price": (
        lambda c: chat(c, model=UNSEARCHED, extra_body={"web_search": True}),
        openai.BadRequestError,
        "400 unsupported_parameter web_search",
    ),
    "too many images": (lambda c: paint(c, n=11), openai.BadRequestError, "400 invalid_parameter n"),
    "too large a file": (
        lambda c: transcribe(c, bytes(UPLOAD_BYTES_MAX)),
        openai.APIStatusError,
        "413 payload_too_large None",
    ),
    "no audio": (lambda c: transcribe(c, b"x" * 99), openai.BadRequestError, "400 invalid_parameter file"),
    "transcription as a stream": (
        lambda c: transcribe(c, wav(1), stream=True),
        openai.BadRequestError,
        "400 unsupported_parameter stream",
    ),
    "too long to speak": (
        lambda c: speak(c, input="x" * 4097),
        openai.BadRequestError,
        "400 invalid_parameter input",
    ),
    "speech as events": (
        lambda c: speak(c, stream_format="sse"),
        openai.BadRequestError,
        "400 unsupported_parameter stream_format",
    ),
    "nothing to embed": (lambda c: embed(c, input=""), openai.BadRequestError, "400 invalid_parameter input"),
    "number to embed": (lambda c: embed(c, input=5), openai.BadRequestError, "400 invalid_parameter input"),
    "dimensions as a word": (
        lambda c: embed(c, dimensions="many"),
        openai.BadRequestError,
        "400 invalid_parameter dimensions",
    ),
    "model of another kind": (
        lambda c: embed(c, model="sandbox/paint"),
        openai.BadRequestError,
        "400 model_not_capable model",
    ),
    "chat with a painter": (
        lambda c: chat(c, model="sandbox/paint"),
        openai.BadRequestError,
        "400 model_not_capable model",
    ),
    "unknown model": (lambda c: speak(c, model="nobody"), openai.NotFoundError, "404 model_not_found model"),
    "text for JSON": (
        lambda c: embed(c, extra_headers={"Content-Type": "text/plain"}),
        openai.APIStatusError,
        "415 unsupported_media_type Content-Type",
    ),
    "unprocessable upstream": (
        lambda c: embed(c, input="[[sandbox fail=status:422]]"),
        openai.UnprocessableEntityError,
        "422 upstream_rejected None",
    ),
    "refused upstream": (
        lambda c: speak(c, response_format="mp3"),
        openai.BadRequestError,
        "400 upstream_rejected None",
    ),
    "all providers failed": (
        lambda c: paint(c, prompt="[[sandbox fail=status:503]]"),
        openai.InternalServerError,
        "502 all_providers_failed None",
    ),
}


@pytest.mark.parametrize(("ask", "kind", "says"), WRONG.values(), ids=list(WRONG))
def test_error_is_the_sdks_exception_and_costs_nothing(
    client: OpenAI,
    endpoints: FareboxServer,
    customer: Payer,
    ask: Callable[[OpenAI], Any],
    kind: type[openai.APIStatusError],
    says: str,
) -> None:
    with pytest.raises(kind) as caught:
        ask(client)
    found = caught.value
    assert f"{found.status_code} {found.code} {found.param}" == says
    assert isinstance(found.body, dict)
    assert found.body["message"] in str(found)
    assert sum(row["charged"] for row in endpoints.outcomes(customer)) == 0


@pytest.mark.parametrize(
    "ask",
    [
        lambda c: c.images.edit(model="sandbox/paint", image=b"x", prompt="A sunset"),
        lambda c: c.responses.create(model="sandbox/echo", input="Hi"),
        lambda c: c.moderations.create(input="Hi"),
    ],
    ids=["images.edit", "responses", "moderations"],
)
def test_method_without_a_path_here_names_those_that_there_are(
    client: OpenAI, endpoints: FareboxServer, customer: Payer, ask: Callable[[OpenAI], Any]
) -> None:
    with pytest.raises(openai.NotFoundError, match="/v1/chat/completions") as caught:
        ask(client)
    assert caught.value.type == "not_found_error"
    assert endpoints.outcomes(customer) == []


@pytest.mark.parametrize("ask", [embed, paint, speak])
def test_payer_who_cannot_pay_is_told_what_it_takes(endpoints: FareboxServer, ask: Callable[[OpenAI], Any]) -> None:
    payer = endpoints.payer("0")
    with (
        OpenAI(base_url=f"{endpoints.url}/v1", api_key=payer.key, max_retries=0) as client,
        pytest.raises(openai.APIStatusError) as caught,
    ):
        ask(client)
    assert (caught.value.status_code, caught.value.code) == (402, "insufficient_balance")
    assert endpoints.outcomes(payer) == []


@pytest.mark.parametrize(
    "ask",
    [
        lambda c, **more: c.embeddings.with_raw_response.create(model="sandbox/embed", input="tides", **more),
        lambda c, **more: c.images.with_raw_response.generate(model="sandbox/paint", prompt="A sunset", **more),
        lambda c, **more: c.audio.speech.with_raw_response.create(
            model="sandbox/speak", input="Mind the gap.", voice="alloy", **more
        ),
        lambda c, **more: c.audio.transcriptions.with_raw_response.create(
            # The SDK draws a boundary for each form, and another body is another request.
            model="sandbox/transcribe",
            file=("speech.wav", wav(1)),
            **{**more, "extra_headers": {**more["extra_headers"], "Content-Type": "multipart/form-data; boundary=b0"}},
        ),
    ],
    ids=["embeddings", "images", "speech", "transcriptions"],
)
def test_same_idempotency_key_gives_the_same_bytes_and_is_charged_once(
    client: OpenAI, endpoints: FareboxServer, customer: Payer, ask: Callable[..., Any]
) -> None:
    first, again = (ask(client, extra_headers={"Idempotency-Key": "once"}) for _ in range(2))
    assert first.content == again.content != b""
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    for name in ("id", "backend", "x-farebox-cost", "content-type"):
        assert first.headers[name] == again.headers[name]
    billed(endpoints, customer, again.headers)
    with pytest.raises(openai.ConflictError) as caught:
        embed(client, input="another", extra_headers={"Idempotency-Key": "once"})
    assert caught.value.code == "idempotency_body_differs"


async def test_async_client_raises_what_the_blocking_one_does(async_client: AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        await async_client.images.generate(model="sandbox/paint", prompt="A sunset", size="512x512")
    assert (caught.value.code, caught.value.param) == ("invalid_parameter", "size")
