"""Cases 4, 8, 9, 14 and 20b: what a challenge buys, what it does not, and who is asked for one."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from mpp import BodyDigest, Challenge

from tests.cases import channel
from tests.cases.channel import SMALL, SPOKEN, bought, funded, opened, problem_of, raw_credential, row
from tests.devnet_fixtures import TempoChain
from tests.serving import PRICE, FareboxServer, model, sandbox
from tests.sessions import MODEL, PATH, challenges_of, chat, paid_server, receipt_of

CREDIT = 100_000
DEAR = chat("how much is it?", max_tokens=10_000)
SECRET = "a-challenge-secret-of-thirty-two-bytes-and-more"
REALM = "test.farebox.example"
JSON = {"content-type": "application/json"}

EMPTY: tuple[Any, ...] = ([], {})
both = pytest.mark.parametrize("backend", ["tempo-v2", "tempo-v1"])


@pytest.fixture(scope="module")
def client(till: FareboxServer) -> Iterator[httpx.Client]:
    """A client without a wallet."""
    with httpx.Client(base_url=till.url, timeout=30) as http:
        yield http


def reissued(challenge: Challenge, **changes: Any) -> Challenge:
    """The challenge with changes, bound anew with the server's secret: what only the server could make."""
    fields = {
        "secret_key": SECRET,
        "realm": REALM,
        "method": challenge.method,
        "intent": challenge.intent,
        "request": challenge.request,
        "expires": challenge.expires,
        "digest": challenge.digest,
        "meta": challenge.opaque,
    }
    return Challenge.create(**{**fields, **changes})


def protocols(response: httpx.Response) -> list[str]:
    """The protocols of the sessions that are offered, in order; before everything else that is."""
    found = challenges_of(response)
    sessions = [challenge for challenge in found if challenge.intent == "session"]
    assert sessions == found[: len(sessions)]
    return [challenge.request["methodDetails"]["sessionProtocol"] for challenge in sessions]


def in_s(seconds: float) -> str:
    """A moment as challenges write it."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).strftime("%Y-%m-%dT%H:%M:%SZ")


# Who is asked.


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wallet"},
        {"authorization": "Bearer Wallet"},
        {"authorization": "Bearer"},
        {"authorization": ""},
        {"x-api-key": "wallet"},
        {"x-api-key": ""},
    ],
    ids=repr,
)
def test_client_without_a_key_is_asked_to_pay(headers: dict[str, str], client: httpx.Client) -> None:
    for body in (SMALL, SPOKEN):
        asked = client.post(PATH, content=body, headers={**JSON, **headers})
        problem = problem_of(asked, 402, "payment-required")
        assert problem["error"]["type"] == "payment_required"
        assert asked.headers["x-should-retry"] == "false"
        assert protocols(asked) == ["v2", "v1"]
        for challenge in challenges_of(asked)[:2]:
            assert (challenge.method, challenge.intent, challenge.realm) == ("tempo", "session", REALM)
            assert challenge.request["amount"] == "1"
            assert challenge.request["unitType"] == "request"
            assert challenge.digest is not None
            assert BodyDigest.verify(challenge.digest, body)
            assert challenge.description is not None
            assert "1.00 USD for input" in challenge.description
            assert challenge.request["recipient"] == challenge.request["recipient"].lower()
            assert Challenge.verify(challenge, SECRET, REALM)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer sk-fb-unknown"},
        {"authorization": "Bearer wallets"},
        {"x-api-key": "sk-fb-unknown"},
        {"authorization": "Basic d2FsbGV0"},
    ],
    ids=repr,
)
def test_unknown_key_is_a_key_and_not_a_wallet(headers: dict[str, str], client: httpx.Client) -> None:
    refused = client.post(PATH, content=SMALL, headers={**JSON, **headers})
    assert refused.status_code == 401
    assert "Payment" not in refused.headers.get("www-authenticate", "")


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_request_without_a_body_is_asked_to_pay_and_buys_no_content(method: str, client: httpx.Client) -> None:
    asked = client.request(method, PATH)
    assert asked.status_code == 402
    assert [challenge.digest for challenge in challenges_of(asked)] == [None, None]
    assert (asked.content == b"") == (method == "HEAD")


@pytest.mark.parametrize(
    ("accepts", "expected"),
    [
        ("tempo/session", ["v2", "v1"]),
        ("*/*", ["v2", "v1"]),
        ("evm/session", ["v2", "v1"]),
        ("stripe/charge, tempo/session;q=0.1", ["v2", "v1"]),
        ("tempo/*;q=0, */*", ["v2", "v1"]),
        ("no sense at all", ["v2", "v1"]),
        ("tempo/session;q=2", ["v2", "v1"]),
        (",".join(["x/y"] * 1000), ["v2", "v1"]),
    ],
)
def test_what_a_client_accepts_never_leaves_it_without_a_challenge(
    accepts: str, expected: list[str], client: httpx.Client
) -> None:
    asked = client.post(PATH, content=SMALL, headers={**JSON, "accept-payment": accepts})
    assert protocols(asked) == expected


@pytest.mark.parametrize(
    ("accepts", "expected"),
    [
        ("tempo/session", ["session", "session"]),
        ("tempo/charge", ["charge"]),
        ("tempo/charge, tempo/session;q=0.5", ["charge", "session", "session"]),
        ("tempo/session;q=0.7, tempo/charge;q=0.2", ["session", "session", "charge"]),
        ("*/*, tempo/charge;q=0", ["session", "session"]),
    ],
)
def test_client_is_offered_what_it_accepts_in_the_order_that_it_prefers(
    accepts: str, expected: list[str], client: httpx.Client
) -> None:
    asked = client.post(PATH, content=SMALL, headers={**JSON, "accept-payment": accepts})
    assert [challenge.intent for challenge in challenges_of(asked)] == expected


# 9 and 20b: what it is bound to.


def test_challenge_for_a_cheap_body_buys_no_dear_one(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, credit=CREDIT)
    for challenge in (wallet.challenge(SMALL), wallet.challenge(SMALL + b" "), wallet.challenge(SPOKEN)):
        refused = wallet.send(DEAR, challenge, wallet.voucher_payload(CREDIT))
        problem_of(refused, 402, "session/challenge-not-found")
        # What comes with the refusal is good for this body.
        assert wallet.pick(refused).digest == BodyDigest.compute(DEAR)
    assert bought(wallet) == 0
    till.assert_green()


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
def test_challenge_without_a_body_buys_no_content(method: str, till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, credit=CREDIT)
    bare = wallet.pick(wallet.unpaid(b"", method=method))
    for body in (SMALL, SPOKEN):
        problem_of(wallet.send(body, bare, wallet.voucher_payload(CREDIT)), 402, "session/challenge-not-found")
    assert bought(wallet) == 0
    till.assert_green()


@both
def test_one_challenge_buys_content_once(backend: str, till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, credit=CREDIT, backend=backend)
    challenge = wallet.challenge(SMALL)
    assert wallet.send(SMALL, challenge, wallet.voucher_payload(CREDIT)).status_code == 200
    for amount in (CREDIT, CREDIT + 50_000):
        again = wallet.send(SMALL, challenge, wallet.voucher_payload(amount))
        problem_of(again, 402, "session/challenge-not-found")
    assert bought(wallet) == 1
    # It still manages the channel.
    assert wallet.update(CREDIT + 50_001, challenge).status_code == 200
    till.assert_green()


def test_one_challenge_buys_one_of_two_channels(till: FareboxServer, devnet: TempoChain) -> None:
    one, other = (opened(till, devnet, credit=CREDIT) for _ in range(2))
    challenge = one.challenge(SMALL)
    assert one.send(SMALL, challenge, one.voucher_payload(CREDIT)).status_code == 200
    refused = other.send(SMALL, challenge, other.voucher_payload(CREDIT))
    problem_of(refused, 402, "session/challenge-not-found")
    assert bought(other) == 0
    till.assert_green()


@pytest.mark.parametrize(
    ("member", "change"),
    [
        ("id", lambda value: value[:-2] + ("AA" if value[-2:] != "AA" else "BB")),
        ("realm", lambda value: "other.example"),
        ("intent", lambda value: "charge"),
        ("method", lambda value: "evm"),
        ("expires", lambda value: in_s(86_000)),
        ("expires", lambda value: None),
        ("digest", lambda value: None),
        ("digest", lambda value: BodyDigest.compute(SMALL)),
        ("request", lambda value: "e30"),
        ("request", lambda value: "x" * 20_000),
        ("request", lambda value: 5),
        ("opaque", lambda value: None),
        ("opaque", lambda value: {"route": "/elsewhere"}),
        ("opaque", lambda value: "e30"),
        ("header", lambda value: "Payment-Authorization"),
        ("realm", lambda value: REALM + "|tempo"),
        ("id", lambda value: "é" * 43),
        ("id", lambda value: ["id"]),
    ],
)
def test_changed_challenge_is_not_ours(
    member: str, change: Callable[[Any], Any], till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = opened(till, devnet, credit=CREDIT)
    document = channel.document_of(wallet.credential(wallet.challenge(DEAR), wallet.voucher_payload(CREDIT)))
    text = raw_credential(channel.changed(document, f"challenge.{member}", change))
    refused = wallet.http.post(PATH, content=DEAR, headers={**JSON, "authorization": text})
    assert refused.status_code in {400, 402}, refused.text
    assert bought(wallet) == 0
    till.assert_green()


@both
def test_challenge_for_another_route_price_or_offer_pays_for_nothing(
    backend: str, till: FareboxServer, devnet: TempoChain
) -> None:
    """Such challenges are authentic: this server made them, for something else or before its settings changed."""
    wallet = opened(till, devnet, credit=CREDIT, backend=backend)
    good = wallet.challenge(SMALL)
    assert good.opaque is not None
    details = good.request["methodDetails"]
    others = [
        reissued(good, meta={**good.opaque, "route": "/v1/embeddings"}),
        reissued(good, request={**good.request, "recipient": "0x" + "22" * 20}),
        reissued(good, request={**good.request, "currency": "0x" + "22" * 20}),
        reissued(good, request={**good.request, "methodDetails": {**details, "escrowContract": "0x" + "22" * 20}}),
        reissued(good, request={**good.request, "methodDetails": {**details, "chainId": 1}}),
        reissued(good, request={**good.request, "methodDetails": {**details, "operator": "0x" + "22" * 20}}),
        reissued(good, request={"amount": "1"}),
        reissued(good, intent="subscription"),
        reissued(good, method="evm"),
    ]
    for challenge in others:
        refused = wallet.send(SMALL, challenge, wallet.voucher_payload(CREDIT))
        problem_of(refused, 402, "session/challenge-not-found")
    assert bought(wallet) == 0
    assert wallet.send(SMALL, reissued(good), wallet.voucher_payload(CREDIT)).status_code == 200
    till.assert_green()


def test_price_of_the_challenge_is_the_price_that_is_charged(
    till: FareboxServer, tmp_path: Path, devnet: TempoChain
) -> None:
    """The operator makes output dearer between challenge and request: what was quoted holds until it expires."""
    wallet = opened(till, devnet, credit=CREDIT)
    assert wallet.complete(SMALL).status_code == 200
    old, url = wallet.challenge(SMALL), channel.copied(till, tmp_path)
    dear = sandbox(models=[model(MODEL, price={**PRICE, "output": "400.00"})])
    with paid_server(tmp_path, devnet, database_url=url, providers=[dear], mpp={"vouchers_per_second": 100}) as server:
        channel.wait_seen(server)
        moved = channel.moved(wallet, server)
        kept = moved.send(SMALL, old, moved.voucher_payload(CREDIT + 2))
        assert kept.status_code == 200, kept.text
        moved.cumulative = CREDIT + 2
        new = moved.complete(SMALL)
        assert new.status_code == 200, new.text
        before, at_old, at_new = [outcome["charged"] for outcome in channel.outcomes(moved)]
        assert before == at_old < at_new
        server.assert_green()


def test_channel_of_a_kind_that_is_not_offered_any_more_is_gone_and_another_may_be_opened(
    till: FareboxServer, tmp_path: Path, devnet: TempoChain
) -> None:
    wallet = opened(till, devnet, credit=CREDIT)
    url = channel.copied(till, tmp_path)
    with paid_server(tmp_path, devnet, database_url=url, backends=["tempo-v1"]) as later:
        channel.wait_seen(later)
        moved = channel.moved(wallet, later)
        asked = moved.unpaid(SMALL, **{"payment-session": moved.channel_id})
        problem_of(asked, 402, "payment-required")
        assert protocols(asked) == ["v1"]
        gone = moved.send(SMALL, challenges_of(asked)[0], moved.voucher_payload(CREDIT))
        problem_of(gone, 410, "session/channel-not-found")
        assert protocols(gone) == ["v1"]
        assert bought(moved) == 0
        later.assert_green()


# 14: expiry.


def test_content_needs_a_challenge_that_has_not_expired(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, credit=CREDIT)
    good = wallet.challenge(SMALL)
    for expires in (in_s(-1), "1970-01-01T00:00:00Z", None, "", "soon", "2999-01-01", "2999-01-01T00:00:00+02:00"):
        refused = wallet.send(SMALL, reissued(good, expires=expires), wallet.voucher_payload(CREDIT))
        problem = problem_of(refused, 402, "session/challenge-not-found")
        assert "expired" in problem["detail"]
    assert bought(wallet) == 0
    till.assert_green()


def test_expiry_is_waived_for_management_of_v1_alone(till: FareboxServer, devnet: TempoChain) -> None:
    old, new = (opened(till, devnet, backend=backend) for backend in ("tempo-v1", "tempo-v2"))
    for number, wallet in enumerate((old, new)):
        expired = reissued(wallet.challenge(SMALL), expires=in_s(-3600))
        answer = wallet.send(b"", expired, wallet.voucher_payload(2))
        if wallet is old:
            assert answer.status_code == 200, answer.text
        else:
            problem_of(answer, 402, "session/challenge-not-found")
        assert row(wallet)["accepted"] == (2000, 1000)[number]
        # Waived, and not forgotten: without a good one there is nothing to waive.
        malformed = wallet.send(b"", reissued(expired, expires="soon"), wallet.voucher_payload(3))
        problem_of(malformed, 402, "session/challenge-not-found")
        content = wallet.send(SMALL, expired, wallet.voucher_payload(CREDIT))
        problem_of(content, 402, "session/challenge-not-found")
    till.assert_green()


def test_challenges_of_the_secret_before_are_good_and_of_any_other_are_not(
    sqlite_template: Path, tmp_path: Path, devnet: TempoChain
) -> None:
    new, other = "the-secret-that-is-new-since-today-0000", "a-secret-that-nobody-ever-configured-000"
    environ = {"FAREBOX_MPP_SECRET": new, "FAREBOX_MPP_SECRET_PREVIOUS": SECRET}
    with channel.shop(tmp_path, sqlite_template, devnet, environ=environ) as server:
        wallet = opened(server, devnet, credit=CREDIT)
        good = wallet.challenge(SMALL)
        assert Challenge.verify(good, new, REALM)
        assert wallet.send(SMALL, reissued(good), wallet.voucher_payload(CREDIT)).status_code == 200
        refused = wallet.send(SMALL, reissued(good, secret_key=other), wallet.voucher_payload(CREDIT))
        problem_of(refused, 402, "session/challenge-not-found")
        assert bought(wallet) == 1
        server.assert_green()


# 4: no body, no length.


def test_body_without_a_length_is_content_and_is_paid_for(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, credit=CREDIT)

    def chunks(*parts: bytes) -> Iterator[bytes]:
        yield from parts

    def send(challenge: Challenge, amount: int, *parts: bytes) -> httpx.Response:
        authorization = wallet.credential(challenge, wallet.voucher_payload(amount))
        return wallet.http.post(PATH, content=chunks(*parts), headers={**JSON, "authorization": authorization})

    served = send(wallet.challenge(SMALL), CREDIT, SMALL[:10], SMALL[10:])
    assert served.status_code == 200, served.text
    assert served.json()["choices"][0]["message"]["content"]
    assert bought(wallet) == 1
    assert channel.charged(wallet) == row(wallet)["spent"] > 0
    # The challenge of nothing does not pay for it either way.
    problem_of(send(wallet.challenge(b""), CREDIT, SMALL), 402, "session/challenge-not-found")
    # And no content at all is management, however it is sent.
    managed = send(wallet.challenge(b""), CREDIT + 1, b"")
    assert (managed.status_code, managed.content) == (200, b"")
    assert bought(wallet) == 1
    till.assert_green()


@pytest.mark.parametrize("body", [b" ", b"\n", b"{}", b"null", b"[]", b"\xff"])
def test_body_of_nothing_is_no_management_and_not_free(body: bytes, till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, credit=CREDIT)
    refused = wallet.send(body, wallet.challenge(b""), wallet.voucher_payload(CREDIT + 1))
    assert refused.status_code == 400
    assert "payment-receipt" not in refused.headers
    assert row(wallet)["accepted"] == CREDIT * 1000
    till.assert_green()


# 8: management.


@both
@pytest.mark.parametrize("method", ["POST", "GET", "HEAD", "PUT", "DELETE"])
def test_management_costs_nothing_and_reaches_no_provider(
    method: str, backend: str, till: FareboxServer, devnet: TempoChain
) -> None:
    wallet = funded(till, devnet, backend)
    first = wallet.send(b"", wallet.challenge(b""), wallet.open_payload(amount=5), method=method)
    assert first.status_code == 200, first.text
    second = wallet.send(b"", wallet.challenge(b""), wallet.voucher_payload(10), method=method)
    assert second.status_code == 200, second.text
    for answer in (first, second):
        assert answer.content == b""
        receipt = receipt_of(answer)
        assert receipt["units"] == 0
        assert receipt["spent"] == "0"
        assert receipt["channelId"] == wallet.channel_id
    assert second.headers["payment-receipt"]
    assert (bought(wallet), row(wallet)["spent"], row(wallet)["accepted"]) == (0, 0, 10_000)
    till.assert_green()


def test_body_of_a_top_up_is_never_served(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, credit=CREDIT)
    assert wallet.opening is not None
    answer = wallet.send(SMALL, wallet.challenge(SMALL), wallet.wallet.top_up_v2(wallet.opening, 1000))
    assert (answer.status_code, answer.content) == (200, b"")
    assert bought(wallet) == 0
    till.assert_green()


def test_content_is_posted(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, credit=CREDIT)
    for method in ("PUT", "DELETE", "GET"):
        refused = wallet.send(SMALL, wallet.challenge(SMALL), wallet.voucher_payload(CREDIT), method=method)
        assert refused.status_code == 405
    assert bought(wallet) == 0
    till.assert_green()


# Forms.


@pytest.mark.parametrize(
    ("member", "value"),
    [
        *(
            ("cumulativeAmount", value)
            for value in ("1" * 60, "-5", "5.0", "1e3", "0x10", " 5", "\u0665", "", 5, 5.0, None)
        ),
        *(("action", value) for value in ("", "charge", "Voucher", None, 7, *EMPTY)),
        *(("channelId", value) for value in ("0x12", "zz", None, 5, "0x" + "zz" * 32, ["0x" + "11" * 32])),
        *(("descriptor", value) for value in ("0x", *EMPTY, 5, {"payer": "0x"})),
    ],
)
def test_payload_of_no_good_form_is_malformed(member: str, value: Any, till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet)
    payload = {**wallet.voucher_payload(CREDIT), member: value}
    if value is None:
        del payload[member]
    for body in (b"", SMALL):
        problem_of(wallet.send(body, wallet.challenge(body), payload), 400, "malformed-credential")
    assert row(wallet)["accepted"] == 1000
    till.assert_green()


def test_amount_beyond_every_deposit_is_refused(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet)
    payload = {**wallet.voucher_payload(CREDIT), "cumulativeAmount": "9" * 39}
    for body in (b"", SMALL):
        problem_of(wallet.send(body, wallet.challenge(body), payload), 402, "session/invalid-signature")
    till.assert_green()


def test_credential_that_cannot_be_read_is_malformed(client: httpx.Client) -> None:
    for text in (
        "Payment",
        "Payment !!!",
        "Payment e30",
        "Payment W10",
        raw_credential({"challenge": 5, "payload": {}}),
        raw_credential({"challenge": {"id": "x"}, "payload": {}}),
        raw_credential({"payload": {}}),
        raw_credential(b"[" * 20_000),
        raw_credential(b'{"challenge": {"id": "\\ud800"}, "payload": {}}'),
    ):
        for body in (b"", SMALL):
            refused = client.post(PATH, content=body, headers={**JSON, "authorization": text})
            problem_of(refused, 400, "malformed-credential")


@pytest.mark.parametrize("payload", [5, "text", [], None, True])
def test_payload_that_is_no_object_is_malformed(payload: Any, client: httpx.Client) -> None:
    for body in (b"", SMALL):
        challenge = challenges_of(client.post(PATH, content=body, headers=JSON if body else {}))[0]
        echo = {
            "id": challenge.id,
            "realm": challenge.realm,
            "method": "tempo",
            "intent": "session",
            "request": challenge.request_b64,
        }
        text = raw_credential({"challenge": echo, "payload": payload})
        problem_of(
            client.post(PATH, content=body, headers={**JSON, "authorization": text}), 400, "malformed-credential"
        )


def test_two_credentials_in_one_request_are_refused(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, credit=CREDIT)
    one, two = (wallet.credential(wallet.challenge(SMALL), wallet.voucher_payload(CREDIT)) for _ in range(2))
    for lines in (
        [("authorization", f"{one}, {two}")],
        [("authorization", one), ("authorization", two)],
        [("authorization", one), ("x-api-key", "sk-fb-unknown")],
        [("authorization", one), ("authorization", "Bearer wallet")],
    ):
        refused = wallet.http.post(PATH, content=SMALL, headers=[*JSON.items(), *lines])
        assert refused.status_code == 400, refused.text
    assert bought(wallet) == 0
    till.assert_green()


def test_name_that_stands_twice_in_a_credential_is_refused(till: FareboxServer, devnet: TempoChain) -> None:
    """Whoever checked the first could be shown the second."""
    wallet = opened(till, devnet, credit=CREDIT)
    document = channel.document_of(wallet.credential(wallet.challenge(b""), wallet.voucher_payload(CREDIT + 1)))
    text = json.dumps(document)
    amount = f'"cumulativeAmount": "{CREDIT + 1}"'
    assert amount in text
    for twice in (
        text.replace(amount, f'"cumulativeAmount": "1", {amount}'),
        text.replace('"payload":', '"payload": {}, "payload":'),
        text.replace('"challenge":', '"challenge": {}, "challenge":'),
    ):
        refused = wallet.http.post(PATH, headers={"authorization": raw_credential(twice.encode())})
        problem_of(refused, 400, "malformed-credential")
    assert row(wallet)["accepted"] == CREDIT * 1000
    till.assert_green()


def test_huge_credential_is_refused(till: FareboxServer, devnet: TempoChain) -> None:
    wallet = opened(till, devnet, credit=CREDIT)
    document = channel.document_of(wallet.credential(wallet.challenge(b""), wallet.voucher_payload(CREDIT + 1)))
    for size, statuses in ((30_000, {200}), (48_000, {400, 431}), (100_000, {400, 431})):
        text = raw_credential({**document, "padding": "x" * size})
        with httpx.Client(base_url=till.url, timeout=10) as http:
            assert http.post(PATH, headers={"authorization": text}).status_code in statuses
    till.assert_green()
