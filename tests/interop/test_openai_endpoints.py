"""The unmodified OpenAI SDK at every path that it has a method for: what it parses, what is billed, what it raises.

Chat by itself is in `test_openai_sdk`. Charges are compared with the prices of the settings, from the database.
"""

import asyncio
import io
import json
import math
import wave
from base64 import b64decode
from decimal import Decimal
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types import Completion

from app.rails.key_store import KeyLimits
from tests.api.audio_files import wav
from tests.interop.every_endpoint import (
    BACKEND,
    CHARACTER,
    EMBEDDED,
    IMAGE,
    INPUT,
    OUTPUT,
    SECOND,
    UNSEARCHED,
    WEB_SEARCH,
    billed,
)
from tests.serving import FareboxServer, Payer

PNG = b"\x89PNG\r\n\x1a\n"
PROMPT = "[[sandbox tokens=12]]Say this is a test"
PROMPT_TOKENS = 10  # 39 bytes
SEARCHING = "Search the web for tides. [[sandbox tokens=40]]"
SPOKEN = "Mind the gap."


def told(usage: Any) -> int:
    """What an answer says that it cost, in USD 1e-9: beside what the SDK knows."""
    return round(Decimal(str(usage.model_extra["cost"])) * 10**9)


def size_of(png: bytes) -> str:
    """A picture's size, from its header."""
    assert png.startswith(PNG)
    return f"{int.from_bytes(png[16:20], 'big')}x{int.from_bytes(png[20:24], 'big')}"


def sounds_for_s(content: bytes) -> float:
    """How long a WAV is."""
    with wave.open(io.BytesIO(content)) as read:
        return float(read.getnframes() / read.getframerate())


class TestCompletions:
    def test_whole_answer(self, client: OpenAI, endpoints: FareboxServer, customer: Payer) -> None:
        raw = client.completions.with_raw_response.create(model="sandbox/echo", prompt=PROMPT, max_tokens=50)
        answer = raw.parse()
        assert (answer.object, answer.model) == ("text_completion", "sandbox/echo")
        (choice,) = answer.choices
        assert (choice.index, choice.finish_reason, len(choice.text)) == (0, "stop", 48)
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (PROMPT_TOKENS, 12)
        row = billed(endpoints, customer, raw.headers)
        assert (row["prompt_tokens"], row["completion_tokens"]) == (PROMPT_TOKENS, 12)
        assert row["charged"] == told(answer.usage) == PROMPT_TOKENS * INPUT + 12 * OUTPUT
        assert answer.model_extra == {"backend": {"engine_type": "sandbox", "machine_name": "sandbox"}}

    def test_stream_says_and_costs_the_same(self, client: OpenAI, endpoints: FareboxServer, customer: Payer) -> None:
        raw = client.completions.with_raw_response.create(
            model="sandbox/echo", prompt=PROMPT, stream=True, stream_options={"include_usage": True}
        )
        chunks = list(raw.parse())
        assert all(isinstance(chunk, Completion) for chunk in chunks)
        row = billed(endpoints, customer, raw.headers)
        usage = chunks[-1].usage
        assert usage is not None
        assert row["charged"] == told(usage) == PROMPT_TOKENS * INPUT + 12 * OUTPUT
        text = "".join(choice.text for chunk in chunks for choice in chunk.choices)
        assert text == client.completions.create(model="sandbox/echo", prompt=PROMPT).choices[0].text
        ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices if choice.finish_reason]
        assert ends == ["stop"]

    @pytest.mark.parametrize("streams", [False, True])
    def test_choices_of_several_prompts(
        self, client: OpenAI, endpoints: FareboxServer, customer: Payer, streams: bool
    ) -> None:
        asked: dict[str, Any] = {"model": "sandbox/echo", "prompt": [PROMPT, "And this"], "n": 2, "max_tokens": 30}
        texts: dict[int, str] = {}
        if streams:
            for chunk in client.completions.create(**asked, stream=True):
                for choice in chunk.choices:
                    texts[choice.index] = texts.get(choice.index, "") + choice.text
        else:
            texts = {choice.index: choice.text for choice in client.completions.create(**asked).choices}
        assert sorted(texts) == [0, 1, 2, 3]
        assert [len(text) for text in texts.values()] == [48] * 4
        assert len(set(texts.values())) == 4
        endpoints.wait_settled(customer, requests=1)
        (row,) = endpoints.outcomes(customer)
        assert row["charged"] == (PROMPT_TOKENS + 2) * INPUT + 48 * OUTPUT

    def test_stop_ends_the_text_before_it(self, client: OpenAI, endpoints: FareboxServer, customer: Payer) -> None:
        whole = client.completions.create(model="sandbox/echo", prompt=PROMPT).choices[0].text
        stop = whole.split()[3]
        stopped = client.completions.create(model="sandbox/echo", prompt=PROMPT, stop=[stop, "never said"])
        (choice,) = stopped.choices
        assert whole.startswith(choice.text)
        assert stop not in choice.text
        assert choice.finish_reason == "stop"
        assert stopped.usage is not None
        assert endpoints.outcomes(customer)[1]["completion_tokens"] == stopped.usage.completion_tokens < 12

    def test_token_ids_as_a_prompt_are_refused(self, client: OpenAI) -> None:
        with pytest.raises(openai.BadRequestError, match="token ids") as caught:
            client.completions.create(model="sandbox/echo", prompt=[1, 2, 3])
        assert (caught.value.param, caught.value.code) == ("prompt", "invalid_parameter")


class TestEmbeddings:
    @pytest.mark.parametrize(
        ("given", "tokens", "vectors"),
        [
            ("The food was delicious.", 6, 1),
            (["one two", "three"], 4, 2),
            ([1, 2, 3, 4, 5], 5, 1),
            ([[1, 2], [3]], 3, 2),
        ],
    )
    def test_inputs_and_their_tokens(
        self, client: OpenAI, endpoints: FareboxServer, customer: Payer, given: Any, tokens: int, vectors: int
    ) -> None:
        raw = client.embeddings.with_raw_response.create(model="sandbox/embed", input=given)
        answer = raw.parse()
        assert (answer.object, answer.model) == ("list", "sandbox/embed")
        assert [each.index for each in answer.data] == list(range(vectors))
        for each in answer.data:
            assert each.object == "embedding"
            assert len(each.embedding) == 1536
            assert math.isclose(sum(number * number for number in each.embedding), 1, abs_tol=1e-5)
        assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)
        row = billed(endpoints, customer, raw.headers)
        assert (row["prompt_tokens"], row["completion_tokens"]) == (tokens, 0)
        assert row["charged"] == told(answer.usage) == tokens * EMBEDDED

    def test_base64_that_the_sdk_asks_for_and_numbers_are_the_same_vector(self, client: OpenAI) -> None:
        asked: dict[str, Any] = {"model": "sandbox/embed", "input": "tides", "dimensions": 64}
        raw = client.embeddings.with_raw_response.create(**asked)
        # Without a format of the caller's the SDK asks for base64, and decodes it.
        assert isinstance(json.loads(raw.content)["data"][0]["embedding"], str)
        packed = raw.parse().data[0].embedding
        plain = client.embeddings.create(**asked, encoding_format="float").data[0].embedding
        assert len(packed) == len(plain) == 64
        assert packed == pytest.approx(plain, abs=1e-6)
        stays: Any = client.embeddings.create(**asked, encoding_format="base64").data[0].embedding
        assert len(b64decode(stays)) == 64 * 4

    def test_alike_texts_are_near_each_other(self, client: OpenAI) -> None:
        answer = client.embeddings.create(
            model="sandbox/embed", input=["the ferry leaves the harbour", "a ferry in the harbour", "boiled potatoes"]
        )
        first, near, far = (each.embedding for each in answer.data)
        likeness = [sum(x * y for x, y in zip(first, other, strict=True)) for other in (near, far)]
        assert likeness[0] > 0.5 > likeness[1]


class TestImages:
    @pytest.mark.parametrize(
        ("number", "asked", "made"),
        [(1, None, "1024x1024"), (2, "1792x1024", "1792x1024"), (3, "1024*1792", "1024x1792")],
    )
    def test_each_size_has_its_price(
        self, client: OpenAI, endpoints: FareboxServer, customer: Payer, number: int, asked: Any, made: str
    ) -> None:
        size = {"size": asked} if asked else {}
        raw = client.images.with_raw_response.generate(model="sandbox/paint", prompt="A sunset", n=number, **size)
        answer = raw.parse()
        assert answer.created > 1_700_000_000
        assert len(answer.data or ()) == number
        for image in answer.data or ():
            assert size_of(b64decode(image.b64_json or "")) == made
            assert image.url is None
            assert "A sunset" in (image.revised_prompt or "")
        row = billed(endpoints, customer, raw.headers)
        assert json.loads(row["units"]) == {f"image:{made}": number}
        assert row["charged"] == number * IMAGE[made]

    def test_url_in_place_of_the_bytes(self, client: OpenAI) -> None:
        answer = client.images.generate(model="sandbox/paint", prompt="A sunset", response_format="url")
        assert answer.data is not None
        (image,) = answer.data
        assert image.b64_json is None
        assert image.url is not None
        head, _, content = image.url.partition(",")
        assert (head, size_of(b64decode(content))) == ("data:image/png;base64", "1024x1024")

    def test_fewer_images_than_asked_for_are_billed_as_what_they_are(
        self, client: OpenAI, endpoints: FareboxServer, customer: Payer
    ) -> None:
        answer = client.images.generate(model="sandbox/paint", prompt="[[sandbox lie=1]]A sunset", n=4)
        assert len(answer.data or ()) == 1
        assert endpoints.outcomes(customer)[0]["charged"] == IMAGE["1024x1024"]


class TestTranscriptions:
    @pytest.mark.parametrize(("lasts_s", "seconds"), [(0.5, 1), (2.0, 2), (3.2, 4)])
    def test_billed_by_the_second_begun(
        self, client: OpenAI, endpoints: FareboxServer, customer: Payer, lasts_s: float, seconds: int
    ) -> None:
        file = ("speech.wav", wav(lasts_s))
        raw = client.audio.transcriptions.with_raw_response.create(model="sandbox/transcribe", file=file)
        answer = raw.parse()
        assert answer.text.startswith("This is what was heard:")
        assert answer.usage is not None
        assert answer.usage.type == "duration"
        assert answer.usage.seconds == seconds
        row = billed(endpoints, customer, raw.headers)
        assert json.loads(row["units"]) == {"second": seconds}
        assert row["charged"] == told(answer.usage) == seconds * SECOND

    @pytest.mark.parametrize("layout", ["text", "srt", "vtt", "verbose_json"])
    def test_formats(self, client: OpenAI, endpoints: FareboxServer, customer: Payer, layout: Any) -> None:
        asked: dict[str, Any] = {"model": "sandbox/transcribe", "language": "en", "response_format": layout}
        said: dict[str, Any] = {"file": ("speech.wav", wav(2.0)), "prompt": "[[sandbox say=Mind_the_gap.]]"}
        if layout == "verbose_json":
            asked["timestamp_granularities"] = ["word", "segment"]
        raw = client.audio.transcriptions.with_raw_response.create(**asked, **said)
        answer = raw.parse()
        if layout == "text":
            assert answer == "Mind the gap.\n"
        elif layout == "srt":
            assert answer == "1\n00:00:00,000 --> 00:00:02,000\nMind the gap.\n\n"
        elif layout == "vtt":
            assert answer == "WEBVTT\n\n00:00:00.000 --> 00:00:02.000\nMind the gap.\n\n"
        else:
            assert (answer.task, answer.language, answer.duration) == ("transcribe", "en", 2.0)
            assert [(each.start, each.end, each.text) for each in answer.segments] == [(0.0, 2.0, " Mind the gap.")]
            assert [each.word for each in answer.words] == ["Mind", "the", "gap."]
        row = billed(endpoints, customer, raw.headers)
        assert row["charged"] == 2 * SECOND


class TestSpeech:
    def test_whole_and_by_the_character(self, client: OpenAI, endpoints: FareboxServer, customer: Payer) -> None:
        raw = client.audio.speech.with_raw_response.create(
            model="sandbox/speak", input=SPOKEN, voice="alloy", response_format="wav"
        )
        content = raw.parse().content
        assert raw.headers["content-type"] == "audio/wav"
        assert sounds_for_s(content) == pytest.approx(0.05 * len(SPOKEN))
        row = billed(endpoints, customer, raw.headers)
        assert json.loads(row["units"]) == {"character": len(SPOKEN)}
        assert row["charged"] == len(SPOKEN) * CHARACTER

    def test_characters_are_counted_and_not_bytes(
        self, client: OpenAI, endpoints: FareboxServer, customer: Payer
    ) -> None:
        client.audio.speech.create(model="sandbox/speak", input="ñandú 🚂", voice="alloy", response_format="pcm").read()
        endpoints.wait_settled(customer, requests=1)
        assert endpoints.outcomes(customer)[0]["charged"] == 7 * CHARACTER

    def test_as_it_is_made(self, client: OpenAI, endpoints: FareboxServer, customer: Payer) -> None:
        asked: dict[str, Any] = {"model": "sandbox/speak", "voice": "alloy", "response_format": "wav"}
        with client.audio.speech.with_streaming_response.create(input=SPOKEN, **asked) as answer:
            # Known before the first byte: it is of the question alone.
            assert Decimal(answer.headers["x-farebox-cost"]) * 10**9 == len(SPOKEN) * CHARACTER
            content = b"".join(answer.iter_bytes(1000))
        row = billed(endpoints, customer, answer.headers)
        assert row["charged"] == len(SPOKEN) * CHARACTER
        assert content == client.audio.speech.create(input=SPOKEN, **asked).read()


class TestWebSearch:
    def test_annotations_of_a_whole_answer(self, client: OpenAI, endpoints: FareboxServer, customer: Payer) -> None:
        raw = client.chat.completions.with_raw_response.create(
            model="sandbox/echo",
            messages=[{"role": "user", "content": SEARCHING}],
            max_tokens=200,
            extra_body={"web_search": True, "web_search_options": {"search_context_size": "low"}},
        )
        answer = raw.parse()
        message = answer.choices[0].message
        cited = (message.annotations or [])[0]
        assert cited.type == "url_citation"
        place = slice(cited.url_citation.start_index, cited.url_citation.end_index)
        assert (message.content or "")[place] == "[1]"
        assert cited.url_citation.url.startswith("https://sandbox.example/")
        assert cited.url_citation.title.startswith("Page 1 about")
        row = billed(endpoints, customer, raw.headers)
        assert json.loads(row["units"]) == {"web_search": 1}
        tokens = row["prompt_tokens"] * INPUT + row["completion_tokens"] * OUTPUT
        assert answer.usage is not None
        assert row["charged"] == told(answer.usage) == tokens + WEB_SEARCH
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (
            row["prompt_tokens"],
            row["completion_tokens"],
        )

    def test_stream_gives_text_and_annotations(self, client: OpenAI, endpoints: FareboxServer, customer: Payer) -> None:
        chunks = list(
            client.chat.completions.create(
                model="sandbox/echo",
                messages=[{"role": "user", "content": SEARCHING}],
                max_tokens=200,
                stream=True,
                stream_options={"include_usage": True},
                # The SDK's own parameter asks too.
                web_search_options={"search_context_size": "high"},
            )
        )
        deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
        assert "[1]" in "".join(delta.content or "" for delta in deltas)
        more: list[dict[str, Any]] = [delta.model_extra or {} for delta in deltas]
        found = [each["annotations"] for each in more if "annotations" in each]
        assert found[0][0]["url_citation"]["url"].startswith("https://sandbox.example/")
        assert not any(delta.tool_calls for delta in deltas)
        endpoints.wait_settled(customer, requests=1)
        (row,) = endpoints.outcomes(customer)
        assert json.loads(row["units"]) == {"web_search": 1}
        usage = chunks[-1].usage
        assert usage is not None
        tokens = row["prompt_tokens"] * INPUT + row["completion_tokens"] * OUTPUT
        assert row["charged"] == told(usage) == tokens + WEB_SEARCH

    def test_nothing_is_searched_unless_it_was_asked_for(
        self, client: OpenAI, endpoints: FareboxServer, customer: Payer
    ) -> None:
        answer = client.chat.completions.create(
            model="sandbox/echo", messages=[{"role": "user", "content": SEARCHING}], max_tokens=200
        )
        assert answer.choices[0].message.annotations is None
        assert endpoints.outcomes(customer)[0]["units"] is None

    def test_question_that_needs_no_search_pays_for_none(
        self, client: OpenAI, endpoints: FareboxServer, customer: Payer
    ) -> None:
        answer = client.chat.completions.create(
            model="sandbox/echo",
            messages=[{"role": "user", "content": "[[sandbox tokens=12]]Good morning"}],
            extra_body={"web_search": True},
        )
        assert answer.choices[0].message.annotations is None
        (row,) = endpoints.outcomes(customer)
        assert (row["units"], row["charged"] % WEB_SEARCH) == (None, row["charged"])


class TestModels:
    def test_list_has_each_model_once_with_what_it_costs(self, client: OpenAI) -> None:
        models = {model.id: model for model in client.models.list()}
        assert list(models) == [
            "sandbox/echo",
            "sandbox/embed",
            "sandbox/rerank",
            "sandbox/transcribe",
            "sandbox/speak",
            "sandbox/paint",
            UNSEARCHED,
        ]
        assert {model.object for model in models.values()} == {"model"}
        echo, paint = models["sandbox/echo"].model_extra, models["sandbox/paint"].model_extra
        assert echo is not None
        assert paint is not None
        assert (echo["context_window"], echo["max_output_tokens"]) == (32_768, 8_192)
        assert "images" in paint["capabilities"]
        # A limit that nobody knows is left out.
        assert "context_window" not in paint

    @pytest.mark.parametrize("name", ["sandbox/paint", UNSEARCHED, "sandbox"])
    def test_one_by_its_id_with_a_slash_or_its_alias(self, client: OpenAI, name: str) -> None:
        model = client.models.retrieve(name)
        assert model.id == (name if "/" in name else "sandbox/echo")

    def test_unknown_one(self, client: OpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            client.models.retrieve("org/nobody/else")
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")

    def test_key_sees_the_models_that_it_may_use(self, endpoints: FareboxServer) -> None:
        payer = endpoints.payer(limits=KeyLimits(models=("sandbox/embed",)))
        with OpenAI(base_url=f"{endpoints.url}/v1", api_key=payer.key, max_retries=0) as client:
            assert [model.id for model in client.models.list()] == ["sandbox/embed"]
            with pytest.raises(openai.PermissionDeniedError):
                client.images.generate(model="sandbox/paint", prompt="A sunset")


async def test_async_client_at_every_endpoint_at_once(
    async_client: AsyncOpenAI, endpoints: FareboxServer, customer: Payer
) -> None:
    async def streamed() -> str:
        chunks = await async_client.completions.create(model="sandbox/echo", prompt=PROMPT, stream=True)
        return "".join([choice.text async for chunk in chunks for choice in chunk.choices])

    async def spoken() -> bytes:
        speech = async_client.audio.speech.with_streaming_response
        asked = speech.create(model="sandbox/speak", input=SPOKEN, voice="alloy", response_format="wav")
        async with asked as answer:
            return b"".join([part async for part in answer.iter_bytes()])

    async def searched() -> Any:
        return await async_client.chat.completions.create(
            model="sandbox/echo",
            messages=[{"role": "user", "content": SEARCHING}],
            max_tokens=200,
            extra_body={"web_search": True},
        )

    text, sound, chat_answer, vectors, images, heard, completion, models = await asyncio.gather(
        streamed(),
        spoken(),
        searched(),
        async_client.embeddings.create(model="sandbox/embed", input=["one", "two"]),
        async_client.images.generate(model="sandbox/paint", prompt="A sunset"),
        async_client.audio.transcriptions.create(model="sandbox/transcribe", file=("speech.wav", wav(1))),
        async_client.completions.create(model="sandbox/echo", prompt=PROMPT),
        async_client.models.list(),
    )
    assert text == completion.choices[0].text
    assert sounds_for_s(sound) == pytest.approx(0.05 * len(SPOKEN))
    assert chat_answer.choices[0].message.annotations
    assert [len(each.embedding) for each in vectors.data] == [1536, 1536]
    assert [size_of(b64decode(each.b64_json or "")) for each in images.data or ()] == ["1024x1024"]
    assert heard.text
    assert len(models.data) == 7
    endpoints.wait_settled(customer, requests=7)
    rows = {row["model"]: row["charged"] for row in endpoints.outcomes(customer)}
    assert rows["sandbox/embed"] == 2 * EMBEDDED
    assert rows["sandbox/paint"] == IMAGE["1024x1024"]
    assert rows["sandbox/transcribe"] == SECOND
    assert rows["sandbox/speak"] == len(SPOKEN) * CHARACTER


def test_headers_name_the_request_and_where_it_was_served(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="sandbox/echo", messages=[{"role": "user", "content": "Hi"}]
    )
    assert (raw.headers["backend"], raw.headers["id"]) == (BACKEND, raw.request_id)
