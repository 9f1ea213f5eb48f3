"""What is no token is billed like tokens are: held before it is asked for, and paid as its provider reports it."""

import asyncio
import shutil
import struct
import threading
from collections.abc import Iterator, Mapping
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from tests.cases.chat import TIMEOUT_S, attempts, charge, usd
from tests.dialects.server import DialectServer
from tests.serving import FareboxServer, Payer, model, sandbox, upstream

SMALL, LARGE = "256x256", "1024x1024"
RATE = 8000
# Speech of ten seconds, in blocks of four characters: no test waits for the end of it.
SLOWLY = " of the ferry to the harbour" * 7 + "[[sandbox tps=5]]"
# What each unit costs in USD, and what we pay for it; the second provider's cannot be taken for the first's.
PRICES: Mapping[str, Any] = {
    "per_image": {SMALL: "0.01", LARGE: "0.04"},
    "per_second": "0.0001",
    "per_character": "0.000015",
    "per_search_unit": "0.002",
    "per_web_search": "0.03",
    "input": "1.00",
    "output": "4.00",
}
COSTS: Mapping[str, Any] = {
    "per_image": {SMALL: "0.006", LARGE: "0.03"},
    "per_second": "0.00007",
    "per_character": "0.000007",
    "per_search_unit": "0.0013",
    "per_web_search": "0.011",
    "input": "0.50",
}
SECOND_PRICES: Mapping[str, Any] = {**PRICES, "per_image": {SMALL: "0.017"}, "per_character": "0.000019"}
# Transcriptions are asked for by a form, which cannot say at which provider: there is one.
SECOND_SERVES = ("paints", "speaks", "ranks", "embeds")
ABLE: Mapping[str, list[str]] = {
    "paints": ["images"],
    "hears": ["transcription"],
    "speaks": ["speech"],
    "ranks": ["rerank"],
    "embeds": ["embeddings"],
    "searches": ["chat", "tools"],
}
IMAGES, SPEECH, RERANK, EMBEDDINGS, TRANSCRIPTIONS, CHAT = (
    "/v1/images/generations",
    "/v1/audio/speech",
    "/v2/rerank",
    "/v1/embeddings",
    "/v1/audio/transcriptions",
    "/v1/chat/completions",
)
IN_ORDER = {"provider": {"order": ["first", "second"]}}


def nano(price: str, count: int = 1) -> int:
    """Nano-USD for so many units of a price in USD."""
    return int((Decimal(price) * count * 10**9).to_integral_value(ROUND_CEILING))


def _models(prices: Mapping[str, Any], *names: str) -> list[dict[str, Any]]:
    sold = {"price": dict(prices), "cost": dict(COSTS), "context_window": 4096}
    return [model(name, capabilities=ABLE[name], **sold) for name in names or ABLE]


@pytest.fixture(scope="module")
def units(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FareboxServer]:
    """A real server process that sells every unit, at ``first`` and ``second``; and what lacks a price."""
    folder = tmp_path_factory.mktemp("units")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'farebox.db')}"
    unsold = model("unsold", capabilities=["chat", "tools"])
    with FareboxServer(
        folder,
        database_url=url,
        providers=[
            sandbox("first", models=[*_models(PRICES), unsold]),
            sandbox("second", models=_models(SECOND_PRICES, *SECOND_SERVES)),
        ],
        search={"backend": "sandbox"},
    ) as server:
        yield server


def wav(seconds: float) -> bytes:
    """A file of silence that lasts so long."""
    data = bytes(int(seconds * RATE))
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, RATE, RATE, 1, 8, b"data", len(data)
    )
    return head + data


def post(
    server: FareboxServer, payer: Payer, path: str, asked: Mapping[str, Any], *, key: str | None = None
) -> httpx.Response:
    """A request to the first provider, unless it says otherwise; a transcription's ``seconds`` are of its file."""
    headers = {**payer.headers, **({"Idempotency-Key": key} if key else {})}
    if path != TRANSCRIPTIONS:
        return httpx.post(server.url + path, json={**IN_ORDER, **asked}, headers=headers, timeout=TIMEOUT_S)
    form = {name: value for name, value in asked.items() if name != "seconds"}
    return httpx.post(
        server.url + path,
        data=form,
        files={"file": ("talk.wav", wav(asked["seconds"]), "audio/wav")},
        headers=headers,
        timeout=TIMEOUT_S,
    )


def images(script: str = "", *, n: int = 1, size: str = SMALL) -> dict[str, Any]:
    return {"model": "paints", "prompt": f"a harbour {script}", "n": n, "size": size}


def speech(script: str = "") -> dict[str, Any]:
    return {"model": "speaks", "input": f"All aboard{script}", "voice": "alto"}


def rerank(script: str = "", *, documents: int = 101) -> dict[str, Any]:
    return {"model": "ranks", "query": f"fares {script}", "documents": ["a fare"] * documents}


def embeddings(script: str = "") -> dict[str, Any]:
    return {"model": "embeds", "input": f"a ferry leaves {script}"}


def transcription(script: str = "", *, seconds: float = 2.5) -> dict[str, Any]:
    return {"model": "hears", "prompt": script or "no script", "seconds": seconds}


def characters(asked: Mapping[str, Any]) -> int:
    return len(asked["input"])


def tokens(asked: Mapping[str, Any]) -> int:
    """The sandbox's tokens of a text."""
    return -(-len(asked["input"].encode()) // 4)


IMAGE, SECOND, CHARACTER, UNIT = (
    PRICES[name] for name in ("per_image", "per_second", "per_character", "per_search_unit")
)
TOKEN = str(Decimal(PRICES["input"]) / 10**6)
SAID = speech()
EMBEDDED = embeddings()

# Each unit: a path, what is asked, the price and the cost of one, and how many are used.
REPORTED: Mapping[str, tuple[str, dict[str, Any], str, str, int]] = {
    f"image:{SMALL}": (IMAGES, images(n=3), IMAGE[SMALL], COSTS["per_image"][SMALL], 3),
    f"image:{LARGE}": (IMAGES, images(n=2, size=LARGE), IMAGE[LARGE], COSTS["per_image"][LARGE], 2),
    "second": (TRANSCRIPTIONS, transcription(), SECOND, COSTS["per_second"], 3),
    "character": (SPEECH, SAID, CHARACTER, COSTS["per_character"], characters(SAID)),
    "search_unit": (RERANK, rerank(), UNIT, COSTS["per_search_unit"], 2),
    "input": (EMBEDDINGS, EMBEDDED, TOKEN, "0.0000005", tokens(EMBEDDED)),
}


def outcome(server: FareboxServer, payer: Payer) -> dict[str, Any]:
    """The outcome of the payer's only request."""
    server.wait_settled(payer, requests=1)
    (row,) = server.outcomes(payer)
    return row


def counted(row: Mapping[str, Any]) -> dict[str, int] | None:
    return orjson.loads(row["units"]) if row["units"] else None


@pytest.mark.parametrize("unit", REPORTED)
def test_each_unit_is_billed_as_its_provider_reports_it(units: FareboxServer, unit: str) -> None:
    path, asked, price, cost, count = REPORTED[unit]
    payer = units.payer()
    response = post(units, payer, path, asked)
    assert response.status_code == 200, response.text
    assert charge(units, payer) == nano(price, count)
    row = outcome(units, payer)
    assert (row["status"], row["provider"], bool(row["estimated"])) == ("completed", "first", False)
    assert row["cost"] == nano(cost, count)
    assert counted(row) == ({unit: count} if unit != "input" else None)
    # As an exact decimal, without an exponent.
    assert response.headers["x-farebox-cost"] == usd(nano(price, count))
    assert attempts(units, payer) == [("first", "ok")]
    units.assert_green()


def test_each_web_search_is_billed_beside_the_tokens(units: FareboxServer) -> None:
    payer = units.payer()
    asked = {"model": "searches", "messages": [{"role": "user", "content": "[[sandbox search=2 tokens=10]] tides"}]}
    answer = post(units, payer, CHAT, {**asked, "web_search": True, "max_tokens": 200}).json()
    usage = answer["usage"]
    spent = nano(TOKEN, usage["prompt_tokens"]) + nano("0.000004", usage["completion_tokens"])
    assert charge(units, payer) == spent + nano(PRICES["per_web_search"], 2)
    assert counted(outcome(units, payer)) == {"web_search": 2}
    units.assert_green()


# What is reported beyond what was asked for: how many may be billed.
LIES = {
    "image": (IMAGES, images("[[sandbox lie=9]]", n=2), IMAGE[SMALL], 2),
    "search unit": (RERANK, rerank("[[sandbox lie=900]]"), UNIT, 2),
    "fewer images": (IMAGES, images("[[sandbox lie=1]]", n=3), IMAGE[SMALL], 1),
    "no search unit": (RERANK, rerank("[[sandbox usage=zero]]"), UNIT, 0),
}


@pytest.mark.parametrize("lie", LIES)
def test_report_is_billed_up_to_what_was_held(units: FareboxServer, lie: str) -> None:
    path, asked, price, count = LIES[lie]
    payer = units.payer()
    assert post(units, payer, path, asked).status_code == 200
    assert charge(units, payer) == nano(price, count)
    units.assert_green()


def test_seconds_beyond_what_the_file_can_hold_are_cut_to_what_was_held(units: FareboxServer) -> None:
    payer = units.payer()
    assert post(units, payer, TRANSCRIPTIONS, transcription("[[sandbox lie=90000]]")).status_code == 200
    ceiling = units.rows("SELECT ceiling FROM requests WHERE key_id = :id", id=payer.key_id)[0]["ceiling"]
    assert nano(SECOND, 3) <= charge(units, payer) <= ceiling < nano(SECOND, 90_000)
    units.assert_green()


def test_tokens_beyond_the_context_window_are_cut(units: FareboxServer) -> None:
    payer = units.payer()
    assert post(units, payer, EMBEDDINGS, embeddings("[[sandbox lie=900000]]")).status_code == 200
    assert charge(units, payer) == nano(TOKEN, 4096)
    units.assert_green()


UNREPORTED = {
    "second": (TRANSCRIPTIONS, transcription("[[sandbox usage=none]]"), SECOND, 3),
    "search unit": (RERANK, rerank("[[sandbox usage=none]]"), UNIT, 2),
}


@pytest.mark.parametrize("unit", UNREPORTED)
def test_missing_report_bills_what_was_expected_and_says_so(units: FareboxServer, unit: str) -> None:
    path, asked, price, count = UNREPORTED[unit]
    payer = units.payer()
    answer = post(units, payer, path, asked)
    assert answer.status_code == 200, answer.text
    assert charge(units, payer) == nano(price, count)
    assert outcome(units, payer)["estimated"]
    assert b'"estimated":true' in answer.content
    units.assert_green()


def test_missing_report_of_embeddings_bills_the_texts_by_the_ratio(units: FareboxServer) -> None:
    payer, asked = units.payer(), embeddings("[[sandbox usage=none]]")
    assert post(units, payer, EMBEDDINGS, asked).json()["usage"]["estimated"]
    assert 0 < charge(units, payer) <= nano(TOKEN, len(asked["input"]))
    assert outcome(units, payer)["estimated"]
    units.assert_green()


UNSOLD: Mapping[str, tuple[str, dict[str, Any], str, str]] = {
    "size": (IMAGES, images(size="512x512"), "size", f"makes images of {SMALL}, {LARGE}"),
    "web search": (
        CHAT,
        {"model": "unsold", "messages": [{"role": "user", "content": "tides"}], "web_search": True},
        "web_search",
        "web_search",
    ),
}


@pytest.mark.parametrize("unit", UNSOLD)
def test_unit_without_a_price_is_refused_before_anything_is_held(units: FareboxServer, unit: str) -> None:
    path, asked, param, named = UNSOLD[unit]
    payer = units.payer()
    refused = post(units, payer, path, asked)
    assert refused.status_code == 400, refused.text
    error = refused.json()["error"]
    assert error["param"] == param
    assert named in error["message"]
    assert units.rows("SELECT id FROM requests WHERE key_id = :id", id=payer.key_id) == []
    assert units.balance(payer)["debits_pending"] == units.balance(payer)["debits_posted"] == 0


@pytest.mark.parametrize("path_asked", [(IMAGES, images), (SPEECH, speech), (RERANK, rerank), (EMBEDDINGS, embeddings)])
def test_provider_that_fails_is_paid_nothing_and_the_next_at_its_own_price(
    units: FareboxServer, path_asked: tuple[str, Any]
) -> None:
    path, asked = path_asked
    nobody, other = units.payer(), units.payer()
    failed = post(units, nobody, path, asked("[[sandbox fail=status:500]]"))
    assert failed.status_code == 502, failed.text
    assert charge(units, nobody) == 0
    assert attempts(units, nobody) == [("first", "server_error"), ("second", "server_error")]
    assert post(units, other, path, asked("[[sandbox fail=connect at=first]]")).status_code == 200
    assert attempts(units, other) == [("first", "connect"), ("second", "ok")]
    expected = {
        IMAGES: nano(SECOND_PRICES["per_image"][SMALL]),
        SPEECH: nano(SECOND_PRICES["per_character"], len(asked("[[sandbox fail=connect at=first]]").get("input", ""))),
    }
    assert charge(units, other) == expected.get(path, charge(units, other)) > 0
    assert outcome(units, other)["provider"] == "second"
    units.assert_green()


def test_silent_provider_is_not_followed_by_another_and_costs_nothing(units: FareboxServer) -> None:
    payer = units.payer()
    assert post(units, payer, IMAGES, images("[[sandbox fail=timeout]]")).status_code == 502
    assert attempts(units, payer) == [("first", "timeout")]
    assert charge(units, payer) == 0
    units.assert_green()


class TestSpeechThatEndsEarly:
    def test_client_that_leaves_in_mid_speech_pays_for_all_of_it_once(self, units: FareboxServer) -> None:
        payer, asked = units.payer(), speech(SLOWLY)
        with (
            httpx.Client(timeout=TIMEOUT_S) as client,
            client.stream("POST", units.url + SPEECH, json={**IN_ORDER, **asked}, headers=payer.headers) as response,
        ):
            assert response.headers["content-type"] == "audio/wav"
            assert response.headers["x-farebox-cost"] == usd(nano(CHARACTER, characters(asked)))
            assert next(response.iter_bytes()).startswith(b"RIFF")
        assert charge(units, payer) == nano(CHARACTER, characters(asked))
        assert outcome(units, payer)["status"] == "aborted"
        assert attempts(units, payer) == [("first", "abandoned")]
        units.assert_green()

    def test_provider_that_breaks_off_is_paid_nothing_and_the_bytes_look_incomplete(self, units: FareboxServer) -> None:
        payer, got = units.payer(), list[bytes]()
        asked = speech(" and away with you[[sandbox fail=cut after=3 tps=20]]")
        with (
            httpx.Client(timeout=TIMEOUT_S) as client,
            client.stream("POST", units.url + SPEECH, json={**IN_ORDER, **asked}, headers=payer.headers) as response,
            pytest.raises(httpx.RemoteProtocolError),
        ):
            # What came is looked at, though there is no end to it.
            got.extend(response.iter_bytes())
        assert got[0].startswith(b"RIFF")
        assert charge(units, payer) == 0
        assert outcome(units, payer)["status"] == "failed"
        assert attempts(units, payer) == [("first", "interrupted")]
        units.assert_green()

    def test_speech_is_replayed_with_its_key_and_charged_once(self, units: FareboxServer) -> None:
        payer, asked = units.payer(), speech()
        first, again = (post(units, payer, SPEECH, asked, key="once") for _ in range(2))
        assert again.headers["idempotent-replayed"] == "true"
        assert again.content == first.content
        assert charge(units, payer) == nano(CHARACTER, characters(asked))
        units.assert_green()

    def test_server_killed_in_mid_speech_bills_it_at_most_once(self, database_url: str, tmp_path: Path) -> None:
        with FareboxServer(
            tmp_path, database_url=database_url, providers=[sandbox("first", models=_models(PRICES))]
        ) as server:
            payer, asked = server.payer(), speech(SLOWLY)
            with (
                httpx.Client(timeout=TIMEOUT_S) as client,
                client.stream(
                    "POST", server.url + SPEECH, json={**IN_ORDER, **asked}, headers=payer.headers
                ) as response,
            ):
                blocks = response.iter_bytes()
                assert next(blocks).startswith(b"RIFF")
                server.kill()
                with pytest.raises(httpx.TransportError):
                    list(blocks)
            server.start()
            server.wait_settled(payer, requests=1)
            assert charge(server, payer) == nano(CHARACTER, characters(asked))
            assert outcome(server, payer)["status"] == "swept"
            server.assert_green()
            # An honest client that never got an answer asks again: it is another request.
            assert post(server, payer, SPEECH, speech()).status_code == 200
            server.wait_settled(payer, requests=2)
            assert server.balance(payer)["debits_posted"] == nano(CHARACTER, characters(asked) + characters(SAID))
            server.assert_green()


class TestHold:
    def test_balance_just_below_the_ceiling_is_refused_with_both_amounts(self, units: FareboxServer) -> None:
        # The dearest of the providers that may serve it is held.
        ceiling = nano(SECOND_PRICES["per_image"][SMALL], 3)
        poor, rich = units.payer(usd(ceiling - 1)), units.payer(usd(ceiling))
        refused = post(units, poor, IMAGES, images(n=3))
        assert refused.status_code == 402, refused.text
        error = refused.json()["error"]
        assert usd(ceiling - 1) in error["message"]
        assert usd(ceiling) in error["message"]
        assert attempts(units, poor) == []
        assert post(units, rich, IMAGES, images(n=3)).status_code == 200
        assert charge(units, rich) == nano(IMAGE[SMALL], 3)
        units.assert_green()

    def test_hold_is_durable_before_the_provider_is_asked(
        self, sqlite_url: str, tmp_path: Path, shared_dialects: DialectServer
    ) -> None:
        painter = model("slow_head", capabilities=["images"], price={"per_image": IMAGE})
        with FareboxServer(
            tmp_path, database_url=sqlite_url, providers=[upstream("slow", shared_dialects.base_url, [painter])]
        ) as server:
            payer = server.payer()
            shared_dialects.clear()
            body = {**images(n=2), "model": "slow_head", "provider": {}}
            asking = threading.Thread(target=lambda: post(server, payer, IMAGES, body))
            asking.start()
            assert shared_dialects.wait_for_requests(1)
            assert server.balance(payer)["debits_pending"] == nano(IMAGE[SMALL], 2)
            shared_dialects.last.release()
            asking.join(TIMEOUT_S)
            server.wait_settled(payer, requests=1)
            server.assert_green()

    async def test_a_hundred_images_at_once_on_a_balance_for_one_pass_one(self, units: FareboxServer) -> None:
        price = nano(IMAGE[SMALL])
        payer = units.payer(usd(price))
        asked = {**images("[[sandbox first_ms=2000]]"), "provider": {"only": ["first"]}}
        async with httpx.AsyncClient(timeout=TIMEOUT_S, limits=httpx.Limits(max_connections=100)) as client:
            answers = await asyncio.gather(
                *(client.post(units.url + IMAGES, json=asked, headers=payer.headers) for _ in range(100))
            )
        assert sorted(answer.status_code for answer in answers) == [200] + [402] * 99
        await asyncio.to_thread(units.wait_settled, payer, requests=1)
        assert units.balance(payer)["debits_posted"] == price
        units.assert_green()
