"""Cases 43, 44 and 46: what may cross the edge, in either direction, to the byte.

Nothing here is worth money, and nothing here is charged, except what a provider did say.
"""

import json
import re

import pytest

from app.settings import ModelSettings, Prices, ProviderSettings
from tests.api.raw import JSON, Connection, ask, assert_nothing_charged, chat, head, post
from tests.cases.chat import charge, eventually, owed, stream, whole
from tests.cases.edge import UPSTREAM_KEY, Edge, edge
from tests.dialects import answers
from tests.dialects.server import ODD_HEADERS
from tests.serving import ADMIN_TOKEN, SECRET

__all__ = ["edge"]

PROMPT = "the prompt says halibut-4711"
OURS = {
    "backend",
    "cache-control",
    "content-length",
    "content-type",
    "date",
    "id",
    "retry-after",
    "transfer-encoding",
    "x-accel-buffering",
    "x-farebox-cost",
    "x-farebox-provider",
    "x-request-id",
    "x-should-retry",
}
UPSTREAM_SECRETS = (UPSTREAM_KEY, answers.SECRET_KEY, answers.SECRET_ACCOUNT, answers.SECRET_URL, "10.1.2.3")
TENANT = {
    "Connection": "keep-alive, X-Smuggled",
    "X-Smuggled": "tenant-marker",
    "Keep-Alive": "timeout=tenant-marker",
    "Proxy-Authorization": "Basic tenant-marker",
    "Proxy-Connection": "keep-alive",
    "TE": "trailers",
    "Trailer": "X-Tenant-Marker",
    "Cookie": "session=tenant-marker",
    "Forwarded": "for=tenant-marker",
    "X-Forwarded-For": "tenant-marker",
    "X-Forwarded-Host": "tenant-marker",
    "X-Real-IP": "tenant-marker",
    "Via": "1.1 tenant-marker",
    "OpenAI-Organization": "org-tenant-marker",
    "OpenAI-Project": "proj-tenant-marker",
    "api-key": "tenant-marker",
    "anthropic-version": "tenant-marker",
    "HTTP-Referer": "https://tenant-marker.example",
    "X-Title": "tenant-marker",
    "User-Agent": "tenant-marker",
    "Accept": "application/tenant-marker",
    "Accept-Language": "tenant-marker",
    "X-Stainless-OS": "tenant-marker",
    "Idempotency-Key": "tenant-marker",
}
SENT_UPSTREAM = {"host", "content-type", "content-length", "accept", "accept-encoding", "user-agent", "authorization"}


# 43: headers and paths.


@pytest.mark.parametrize(
    "line",
    [
        b"Idempotency-Key: a\rSet-Cookie: stolen=1\r\n",
        b"Idempotency-Key: a\nSet-Cookie: stolen=1\r\n",
        b"Idempotency-Key: a\0b\r\n",
        b"X-Odd: a\r\n folded: over a line\r\n",
        b"Idempotency\rKey: a\r\n",
        b"X Odd: space in a name\r\n",
        b"no colon at all\r\n",
    ],
)
def test_line_breaks_in_a_header_end_the_request(line: bytes, edge: Edge) -> None:
    payer = edge.server.payer()
    answer = ask(edge.server, post(payer, chat("ok"), lines=line))
    assert answer.status == 400
    assert answer.error["code"] == "invalid_http"
    assert answer.header("set-cookie") is None
    assert answer.header("connection") == "close"
    assert_nothing_charged(edge.server, payer)


@pytest.mark.parametrize(
    "key",
    ["ключ".encode(), b"caf\xe9", b"\xff\xfe", b"tab\there", b"", b"k" * 256],
    ids=["utf8", "latin1", "ff", "tab", "empty", "long"],
)
def test_idempotency_key_that_is_not_plain_ascii_is_refused(key: bytes, edge: Edge) -> None:
    payer = edge.server.payer()
    answer = ask(edge.server, post(payer, chat("ok"), lines=b"Idempotency-Key: " + key + b"\r\n"))
    assert (answer.status, answer.error["param"]) == (400, "Idempotency-Key")
    assert_nothing_charged(edge.server, payer)


@pytest.mark.parametrize("name", [b"Authorization: Bearer ", b"x-api-key: "])
@pytest.mark.parametrize("key", ["ключ".encode(), b"sk-fb-caf\xe9", b"k" * 300, b"sk-fb-unknown"])
def test_api_key_that_is_not_plain_ascii_is_unknown(name: bytes, key: bytes, edge: Edge) -> None:
    answer = ask(edge.server, head(headers={**JSON, "Content-Length": "2"}, lines=name + key + b"\r\n") + b"{}")
    assert (answer.status, answer.error["code"]) == (401, "invalid_api_key")
    assert key not in answer.body
    edge.server.assert_green()


@pytest.mark.parametrize(
    "name", ["ok\r\nSet-Cookie: stolen=1", "模型", "ok\0", "😀", "ok\u2028", "ok\x85", "x" * 10_000]
)
def test_model_name_cannot_become_a_header(name: str, edge: Edge) -> None:
    payer = edge.server.payer()
    for path in (False, True):
        answer = ask(edge.server, post(payer, chat(name, stream=path)))
        assert (answer.status, answer.error["code"]) == (404, "model_not_found")
        assert {header for header, _ in answer.headers} <= OURS
        assert len(answer.body) < 2_000
    assert_nothing_charged(edge.server, payer)


@pytest.mark.parametrize("name", ["a\r\nb", "café", "a b", "", "-a", "a" * 64, "a\n"])
def test_provider_and_model_names_that_are_no_header_are_no_setting(name: str) -> None:
    with pytest.raises(ValueError, match="name"):
        ProviderSettings(name=name, adapter="sandbox")
    price = Prices(input="1", output="1")
    if name not in {"a b", "-a", "a" * 64}:
        with pytest.raises(ValueError, match=r"id|printable"):
            ModelSettings(id=name, context_window=1, max_output_tokens=1, price=price)


@pytest.mark.parametrize(
    "path",
    [
        "//v1/chat/completions",
        "//evil.example",
        "//evil.example/v1/chat/completions",
        "/v1//chat/completions",
        "/v1/../v1/chat/completions",
        "/%2F%2Fevil.example",
        "/v1/chat/completions%0d%0aSet-Cookie:%20stolen=1",
        "/v1/chat",
        "/V1/chat/completions",
        "/",
    ],
)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_strange_path_is_a_404_and_never_a_redirect(method: str, path: str, edge: Edge) -> None:
    payer = edge.server.payer()
    content = chat("ok")
    headers = {**JSON, **payer.headers, "Content-Length": str(len(content))}
    answer = ask(edge.server, head(method, path, headers) + content, method)
    assert (answer.status, answer.error["code"]) == (404, "unknown_path")
    assert "/v1/chat/completions" in answer.error["message"]
    assert answer.header("location") is None
    assert answer.header("set-cookie") is None
    assert_nothing_charged(edge.server, payer)


def test_trailing_slash_is_served_without_a_redirect(edge: Edge) -> None:
    payer = edge.server.payer()
    answer = ask(edge.server, post(payer, b"{}", path="/v1/chat/completions/"))
    assert (answer.status, answer.error["param"]) == (400, "model")
    assert_nothing_charged(edge.server, payer)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", ["Authorization", "x-api-key"])
def test_tenant_headers_never_reach_an_upstream(name: str, streamed: bool, edge: Edge) -> None:
    payer = edge.server.payer()
    edge.dialects.clear()
    content = chat("status:500", stream=streamed)
    credential = {name: payer.key if name == "x-api-key" else f"bEARER  {payer.key}"}
    headers = {**JSON, **TENANT, **credential, "Content-Length": str(len(content))}
    assert ask(edge.server, head(headers=headers) + content).status == 502
    seen = edge.dialects.last.headers
    assert set(seen) <= SENT_UPSTREAM
    assert seen["authorization"] == f"Bearer {UPSTREAM_KEY}"
    assert "marker" not in str(seen).lower()
    assert payer.key not in str(seen)
    assert_nothing_charged(edge.server, payer)


@pytest.mark.parametrize("streamed", [False, True])
def test_cookies_and_odd_headers_of_a_provider_never_reach_the_client(streamed: bool, edge: Edge) -> None:
    payer = edge.server.payer()
    answer = ask(edge.server, post(payer, chat("cookie", stream=streamed)))
    assert answer.status == 200
    assert {name for name, _ in answer.headers} <= OURS
    assert not {value for _, value in ODD_HEADERS} & {value for _, value in answer.headers}
    assert charge(edge.server, payer) == owed(prompt=11, output=5)
    edge.server.assert_green()


# 44: secrets.


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", ["status:400", "status:401", "status:402", "status:403", "status:429", "status:500"])
def test_provider_that_echoes_its_secrets_is_not_repeated(name: str, streamed: bool, edge: Edge) -> None:
    payer = edge.server.payer()
    edge.dialects.clear()
    answer = ask(edge.server, post(payer, chat(name, PROMPT, stream=streamed)))
    assert answer.status == (400 if name == "status:400" else 502)
    assert edge.dialects.last.headers["authorization"] == f"Bearer {UPSTREAM_KEY}"
    said = answer.body.decode() + str(answer.headers)
    assert not [secret for secret in (*UPSTREAM_SECRETS, str(edge.dialects.port)) if secret in said]
    assert_nothing_charged(edge.server, payer)


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("name", ["away", "notjson"])
def test_provider_that_cannot_be_understood_is_not_described(name: str, streamed: bool, edge: Edge) -> None:
    payer = edge.server.payer()
    answer = ask(edge.server, post(payer, chat(name, PROMPT, stream=streamed)))
    assert (answer.status, answer.error["code"]) == (502, "all_providers_failed")
    said = answer.body.decode() + str(answer.headers)
    assert not [secret for secret in (*UPSTREAM_SECRETS, "127.0.0.1", "doctype") if secret in said]
    assert_nothing_charged(edge.server, payer)


@pytest.mark.parametrize("parameter", ["api_key", "api_base", "base_url", "extra_headers", "extra_body"])
def test_credentials_and_addresses_in_a_body_are_not_passed_on(parameter: str, edge: Edge) -> None:
    payer = edge.server.payer()
    edge.dialects.clear()
    answer = ask(edge.server, post(payer, chat("ok", **{parameter: payer.key})))
    assert (answer.status, answer.error["param"]) == (400, parameter)
    assert payer.key not in answer.body.decode()
    assert not edge.dialects.requests
    assert_nothing_charged(edge.server, payer)


def test_client_credentials_never_reach_an_upstream(edge: Edge) -> None:
    payer = edge.server.payer()
    edge.dialects.clear()
    assert whole(edge.server, payer, "status:500", headers={"x-api-key": payer.key}).status_code == 502
    assert stream(edge.server, payer, "status:500", headers={"Idempotency-Key": "mine"}).status == 502
    assert len(edge.dialects.requests) == 2
    for seen in edge.dialects.requests:
        assert payer.key not in str(seen.headers) + seen.path + seen.content.decode()
    assert_nothing_charged(edge.server, payer)


def test_no_secret_and_no_prompt_is_ever_logged(edge: Edge) -> None:
    payer = edge.server.payer()
    unknown = payer.key[:-4] + "aaaa"
    for name in ("ok", "status:400", "status:401", "status:500", "away", "notjson", "nothing"):
        for streamed in (False, True):
            ask(edge.server, post(payer, chat(name, PROMPT, stream=streamed, user=PROMPT)))
    ask(edge.server, post(payer, PROMPT.encode()))
    ask(edge.server, post(payer, chat("ok", PROMPT, temperature=PROMPT)))
    ask(edge.server, head(path=f"/v1/models?key={payer.key}&prompt={PROMPT.replace(' ', '+')}", method="GET"), "GET")
    ask(edge.server, head(headers={**JSON, "Authorization": f"Bearer {unknown}", "Content-Length": "2"}) + b"{}")
    ask(edge.server, head(lines=f"Authorization: Bearer {payer.key}\rX: {PROMPT}\r\n".encode()))
    ask(edge.server, head("GET", "/metrics", {"Authorization": f"Bearer {ADMIN_TOKEN}"}), "GET")
    log = edge.server.log
    # The last thing that was logged is there: so is everything before it.
    eventually(lambda: "Invalid HTTP request received" in log.read_text())
    said = log.read_text()
    assert "attempt_failed" in said
    assert "provider_refused_us" in said
    secrets = (*UPSTREAM_SECRETS, payer.key, unknown, ADMIN_TOKEN, SECRET, PROMPT, "halibut-4711")
    assert not [secret for secret in secrets if secret in said]
    edge.server.assert_green()


def test_every_logged_line_is_one_json_event(edge: Edge) -> None:
    ask(edge.server, head(lines=b"not a header\r\n"))
    eventually(lambda: "Invalid HTTP request received" in edge.server.log.read_text())
    # The one exception: the first key of a new database is shown to a person, once.
    logged = re.sub(r"\n  Farebox .*?ledger check\n\n", "", edge.server.log.read_text(), count=1, flags=re.DOTALL)
    events = [json.loads(line) for line in logged.splitlines()]
    assert events
    assert all({"event", "level", "at", "part"} <= set(event) for event in events)
    edge.server.assert_green()


# 46: streams.


@pytest.mark.parametrize("name", ["crlf", "cr", "bytewise", "big"])
def test_however_a_stream_is_framed_it_leaves_in_one_form(name: str, edge: Edge) -> None:
    payer = edge.server.payer()
    found = stream(edge.server, payer, name, max_tokens=100_000)
    lines = found.raw.split(b"\n")
    assert {line[:6] for line in lines} == {b"", b"data: "}
    assert b"\r" not in found.raw
    assert answers.FORGED_DATA.encode() not in found.raw
    assert found.text == answers.TEXTS.get(name, answers.TEXT)
    assert found.done
    expected = answers.USAGES[name]
    assert expected is not None
    assert charge(edge.server, payer) == owed(prompt=expected.prompt, output=expected.completion)
    edge.server.assert_green()


def test_stream_that_stops_in_mid_line_ends_as_an_error(edge: Edge) -> None:
    payer = edge.server.payer()
    found = stream(edge.server, payer, "midline")
    assert found.text == answers.CONTENT[0]
    assert found.error is not None
    assert found.error["code"] == "upstream_interrupted"
    assert not found.done
    # What was delivered is billed: the prompt of 32 bytes, and 5 bytes of answer.
    assert charge(edge.server, payer) == owed(prompt=8, output=2)
    edge.server.assert_green()


def test_event_without_an_end_is_refused_and_free(edge: Edge) -> None:
    payer = edge.server.payer()
    edge.dialects.clear()
    answer = ask(edge.server, post(payer, chat("huge_event", stream=True)))
    assert (answer.status, answer.error["code"]) == (502, "all_providers_failed")
    assert b"xxxx" not in answer.body
    assert len(edge.dialects.requests) == 1
    assert_nothing_charged(edge.server, payer)


def test_client_that_speaks_during_its_stream_is_cut_off_and_billed_for_what_it_got(edge: Edge) -> None:
    """A second request would hide that the client left; an answer to nonsense would land amid the stream."""
    for interruption in (post(edge.server.payer(), chat("ok")), b"NONSENSE\r\n\r\n"):
        payer = edge.server.payer()
        edge.dialects.clear()
        with Connection(edge.server) as connection:
            connection.send(post(payer, chat("gated", stream=True)))
            connection.read_until(answers.CONTENT[2].encode())
            connection.send(interruption)
            assert connection.rest() == b""
            assert edge.dialects.last.wait_closed()
        edge.server.wait_settled(payer, requests=1)
        (outcome,) = edge.server.outcomes(payer)
        assert outcome["status"] == "aborted"
        # 17 bytes of prompt and 15 of answer.
        assert charge(edge.server, payer) == owed(prompt=5, output=4)
        assert len(edge.dialects.requests) == 1
        edge.server.assert_green()
