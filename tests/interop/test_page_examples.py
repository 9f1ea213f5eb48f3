"""Every example of the reference pages, sent to a real server, answers as its page does: by key and by wallet."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from decimal import Decimal
from typing import Any

import httpx
import pytest
from eth_account import Account

from app.api.paid_routes import PAID
from app.ledger.account import channel_account
from app.rails.key_store import KeyLimits
from tests.api.audio_files import wav
from tests.api.forms import CONTENT_TYPE, form, part
from tests.devnet_fixtures import TempoChain
from tests.interop.pages import DONE, INFERENCE, PROVIDERS, Example, examples, stream_differences
from tests.serving import FareboxServer
from tests.sessions import PayingWallet, events_of, paid_server, receipt_of

TIMEOUT_S = 60
# Small windows, so that a stream that a wallet pays for waits for vouchers as the page's does.
LEDGER = {"window_tokens_min": 16, "window_growth": 1}
EXAMPLES = examples()


class Till:
    """One server and the wallets whose channels pay there."""

    def __init__(self, server: FareboxServer, chain: TempoChain, payee: str) -> None:
        self.server = server
        self.chain = chain
        self.payee = payee
        self.wallets: list[PayingWallet] = []
        self.wallet = self.another_wallet()

    def another_wallet(self) -> PayingWallet:
        """A wallet with a new channel."""
        wallet = PayingWallet.on(self.server, self.chain, payee=self.payee)
        self.wallets.append(wallet)
        opened = wallet.open()
        assert opened.status_code == 200, opened.text
        return wallet

    def close(self) -> None:
        """All channels are closed, and the books proven."""
        self.server.wait_settled()
        for wallet in self.wallets:
            closed = wallet.close()
            assert closed.status_code == 200, closed.text
            wallet.http.close()
        self.server.assert_green()

    def key(self, payer: str) -> str:
        """The key of a new customer of this kind."""
        match payer:
            case "api_key":
                return self.server.payer().key
            case "hurried":
                return self.server.payer(limits=KeyLimits(requests_per_minute=1)).key
            case "poor":
                return self.server.payer("0").key
            case _:
                return ""

    def send(self, example: Example) -> httpx.Response:
        """Send an example as its page does, and pay for it."""
        content, kind = _content(example)
        path, headers = example.request["path"], {**example.request["headers"], **kind}
        if example.payer == "wallet":
            headers = {name.lower(): value for name, value in headers.items() if "{key}" not in value}
            self.wallet.path = path
            return self.wallet.complete(content, **headers)
        key = self.key(example.payer)
        headers = {name: value.replace("{key}", key) for name, value in headers.items()}
        return self.wallet.http.request(example.request["method"], path, content=content, headers=headers)


def _content(example: Example) -> tuple[bytes, dict[str, str]]:
    request = example.request
    if "form" in request:
        fields = [part(name, value) for name, value in request["form"].items()]
        file = part("file", wav(request["seconds_of_audio"]), filename="speech.wav", kind="audio/wav")
        return form(*fields, file), {"Content-Type": CONTENT_TYPE}
    if "body" not in request:
        return b"", {}
    return json.dumps(request["body"] | request.get("added", {})).encode(), {}


@pytest.fixture(scope="module")
def tills(devnet: TempoChain, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Till]]:
    """A server for each way in which pages disagree, each with a payee of its own; at the end the books are proven."""
    made: dict[str, Till] = {}
    with ExitStack() as running:
        for name, inference in INFERENCE.items():
            folder, payee = tmp_path_factory.mktemp(name), Account.create()
            devnet.fund(payee.address, 10_000_000)
            server = paid_server(
                folder,
                devnet,
                database_url=f"sqlite:///{folder / 'books.db'}",
                backends=("tempo-v2",),
                mpp={"vouchers_per_second": 1000},
                environ={"FAREBOX_PAYEE_KEY": payee.key.hex()},
                providers=PROVIDERS,
                inference=inference,
                search={"backend": "sandbox"},
                ledger=LEDGER,
            )
            made[name] = Till(running.enter_context(server), devnet, payee.address)
        yield made
        for till in made.values():
            till.close()


@pytest.fixture
def till(request: pytest.FixtureRequest, tills: dict[str, Till]) -> Till:
    """The server of the example."""
    example: Example = request.getfixturevalue("example")
    return tills[example.server]


def _streams(example: Example) -> bool:
    return "events" in example.response


WHOLE = [each for each in EXAMPLES if not _streams(each)]
STREAMS = [each for each in EXAMPLES if _streams(each)]


@pytest.mark.parametrize("example", WHOLE, ids=[each.name for each in WHOLE])
def test_answer_is_as_on_the_page(till: Till, example: Example) -> None:
    answer = till.send(example)
    if example.payer == "hurried":
        assert answer.status_code == 200
        answer = till.wallet.http.send(answer.request)
    page = example.response
    assert answer.status_code == page["status"], answer.text
    assert answer.headers["x-request-id"]
    for name, begins in page.get("headers", {}).items():
        assert answer.headers[name].startswith(begins)
    if "begins" in page:
        assert answer.content.startswith(page["begins"].encode())
    else:
        assert example.differences(answer.json(), page["body"]) == []
    if page["status"] == 200 and example.request["method"] == "POST":
        _paid(till, example, answer)


@pytest.mark.parametrize("example", STREAMS, ids=[each.name for each in STREAMS])
def test_stream_is_as_on_the_page_event_by_event(till: Till, example: Example) -> None:
    wallet = till.wallet
    if example.payer == "wallet":
        if "payment_events" in example.response:
            # A channel with nothing left over from other answers.
            wallet = till.another_wallet()
        wallet.path = example.request["path"]
        streamed = wallet.stream(_content(example)[0])
        events, headers = streamed.events, streamed.headers
    else:
        answer = till.send(example)
        events, headers = list(events_of(iter(answer.text.split("\n")))), answer.headers
    assert headers["content-type"].startswith("text/event-stream")
    for name, begins in example.response.get("headers", {}).items():
        assert headers[name].startswith(begins)
    said = [event.data if event.data == DONE else event.json for event in events if event.name == "message"]
    assert stream_differences(example, said) == []
    payments = [{"event": event.name, "data": event.json} for event in events if event.name != "message"]
    if example.payer == "wallet":
        assert payments[-1]["data"]["spent"] == str(wallet.state()["spent"])
    else:
        assert payments == []
    if "payment_events" in example.response:
        voucher, receipt = example.response["payment_events"]
        assert len(payments) > 1
        for event in payments[:-1]:
            assert example.differences(event, voucher) == []
        assert example.differences(payments[-1], receipt) == []


def _paid(till: Till, example: Example, answer: httpx.Response) -> None:
    """One outcome says what the answer's headers do; a wallet has its receipt."""
    request_id = answer.headers["x-request-id"]
    till.server.wait_settled()
    (row,) = till.server.rows(
        "SELECT o.*, r.account_id FROM outcomes o JOIN requests r ON r.id = o.request_id WHERE o.request_id = :id",
        id=request_id,
    )
    assert (row["status"], answer.headers["id"]) == ("completed", request_id)
    assert 0 < row["charged"] == Decimal(answer.headers["x-farebox-cost"]) * 10**9
    if "units" in example.data:
        assert json.loads(row["units"] or "null") == example.data["units"]
    if example.payer == "wallet":
        assert row["account_id"] == channel_account(till.wallet.channel_id)
        receipt = receipt_of(answer)
        assert {"challengeId", "method", "reference", "status"} <= set(receipt)
        assert (receipt["method"], receipt["status"]) == ("tempo", "success")
        assert receipt["reference"] == till.wallet.channel_id


def test_every_paid_path_has_an_example_for_both_payers() -> None:
    """The Cohere SDK's own spellings of a rerank aside."""
    shown = {(each.request["path"], each.payer) for each in EXAMPLES if each.response["status"] == 200}
    paths = [path for path in PAID if not re.match(r"/v1/v\d/", path)]
    assert {(path, payer) for path in paths for payer in ("api_key", "wallet")} <= shown


def test_comparison_finds_what_is_missing_of_another_type_or_out_of_order() -> None:
    """Lest an example pass because nothing is compared."""
    data = {"name": "x", "response": {"events": [{"delta": {"content": "a"}}, {"delta": {}, "end": "stop"}, DONE]}}
    example = Example("page", "plain", "api_key", {**data, "compare": {"same": ["end"], "closed": ["usage"]}})
    page = {"id": "a", "usage": {"n": 1}, "list": [{"x": 1.5}], "none": None}
    assert example.differences({**page, "more": 1}, page) == []
    changes: list[dict[str, Any]] = [{"id": 1}, {"usage": {"n": "1"}}, {"usage": {"n": 1, "m": 1}}]
    changes += [{"list": []}, {"list": [{}]}, {"none": 1}]
    for change in changes:
        assert len(example.differences({**page, **change}, page)) == 1
    text, end = {"delta": {"content": "b"}}, {"delta": {}, "end": "stop"}
    assert stream_differences(example, [text, text, end, DONE]) == []
    for out in ([text, end], [end, DONE], [text, DONE], [text, end, text, DONE], [text, {**end, "end": "x"}, DONE]):
        assert len(stream_differences(example, out)) >= 1
