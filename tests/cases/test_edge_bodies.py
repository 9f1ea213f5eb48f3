"""Case 45: requests that are too large, too slow, malformed or sent to the wrong place; each costs nothing."""

import gzip
import json

import pytest

from tests.api.raw import JSON, PATH, Connection, ask, assert_nothing_charged, chat, head, post
from tests.cases.edge import BODY_BYTES_MAX, HEAD_BYTES_MAX, PATIENCE_S, Edge, edge
from tests.dialects import answers

__all__ = ["edge"]

DRIPS_MAX = 200
ABSURD = {
    "empty": (b"", "invalid_json", None),
    "space": (b" \r\n\t", "invalid_json", None),
    "not an object": (b'["model"]', "invalid_json", None),
    "a string": (b'"model"', "invalid_json", None),
    "cut": (b'{"model": "ok"', "invalid_json", None),
    "two": (b"{}{}", "invalid_json", None),
    "bom": (b"\xef\xbb\xbf" + chat("ok"), "invalid_json", None),
    "utf-16": (chat("ok").decode().encode("utf-16"), "invalid_json", None),
    "utf-8": (chat("ok").replace(b"fare", b"f\xffre"), "invalid_json", None),
    "raw surrogate": (chat("ok").replace(b"fare", b"\xed\xa0\x80"), "invalid_json", None),
    "overlong": (chat("ok").replace(b"fare", b"\xc0\xaf"), "invalid_json", None),
    "escaped surrogate": (chat("ok").replace(b"fare", rb"\ud800"), "invalid_json", None),
    "surrogate name": (rb'{"\ud800": 1, "\ud800": 2}', "invalid_json", None),
    "comment": (b'{"model": "ok" /* why */}', "invalid_json", None),
    "control": (b'{"model": "o\nk"}', "invalid_json", None),
    "deep lists": (b'{"model": "ok", "a": ' + b"[" * 30_000 + b"]" * 30_000 + b"}", "invalid_json", None),
    "deep objects": (b'{"a":' * 9_000 + b"1" + b"}" * 9_000, "invalid_json", None),
    "never closed": (b"[" * 60_000, "invalid_json", None),
    "one too deep": (b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}", "invalid_json", None),
    "nan": (b'{"model": "ok", "temperature": NaN}', "invalid_json", None),
    "infinity": (b'{"model": "ok", "temperature": Infinity}', "invalid_json", None),
    "-infinity": (b'{"model": "ok", "temperature": -Infinity}', "invalid_json", None),
    "1e999": (b'{"model": "ok", "temperature": 1e999}', "number_too_large", None),
    "-1e999": (b'{"model": "ok", "temperature": -1e999}', "number_too_large", None),
    "many digits": (b'{"model": "ok", "seed": ' + b"9" * 50_000 + b"}", "number_too_large", None),
    "2**64": (b'{"model": "ok", "seed": 18446744073709551616}', "number_too_large", None),
    "long float": (b'{"model": "ok", "temperature": 0.' + b"1" * 50_000 + b"}", "number_too_large", None),
    "twice": (chat("ok")[:-1] + b', "model": "big"}', "duplicate_key", "model"),
    "twice, escaped": (chat("ok")[:-1] + rb', "mod\u0065l": "big"}', "duplicate_key", "model"),
    "twice inside": (chat("ok").replace(b'"role"', b'"role": "system", "role"'), "duplicate_key", "role"),
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_body_is_refused_and_says_why(name: str, edge: Edge) -> None:
    content, code, param = ABSURD[name]
    payer = edge.server.payer()
    edge.dialects.clear()
    answer = ask(edge.server, post(payer, content))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, code, param)
    assert answer.header("x-request-id")
    assert len(answer.body) < 1_000
    assert not edge.dialects.requests
    assert_nothing_charged(edge.server, payer)


def test_many_names_and_one_of_them_twice_is_found_at_once(edge: Edge) -> None:
    payer = edge.server.payer()
    names = b", ".join(b'"%d": 1' % number for number in range(5_000))
    answer = ask(edge.server, post(payer, b"{" + names + b', "4999": 2}'))
    assert (answer.status, answer.error["code"], answer.error["param"]) == (400, "duplicate_key", "4999")
    assert_nothing_charged(edge.server, payer)


# Size.


def test_body_declared_too_large_is_refused_before_it_is_sent(edge: Edge) -> None:
    payer = edge.server.payer()
    for length in (str(BODY_BYTES_MAX + 1), "9" * 18):
        with Connection(edge.server) as connection:
            connection.send(head(headers={**JSON, **payer.headers, "Content-Length": length}))
            answer = connection.answer()
        assert (answer.status, answer.error["code"]) == (413, "payload_too_large")
        assert str(BODY_BYTES_MAX) in answer.error["message"]
    assert_nothing_charged(edge.server, payer)


def test_chunked_body_is_refused_where_it_becomes_too_large(edge: Edge) -> None:
    payer = edge.server.payer()
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    with Connection(edge.server) as connection:
        connection.send(head(headers={**JSON, **payer.headers, "Transfer-Encoding": "chunked"}))
        connection.send(chunk * (BODY_BYTES_MAX // 0x1000 + 1))
        answer = connection.answer()
    assert (answer.status, answer.error["code"]) == (413, "payload_too_large")
    assert_nothing_charged(edge.server, payer)


def test_body_at_the_limit_is_read(edge: Edge) -> None:
    payer = edge.server.payer()
    content = b"{}" + b" " * (BODY_BYTES_MAX - 2)
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(content), content)
    for request in (
        post(payer, content),
        head(headers={**JSON, **payer.headers, "Transfer-Encoding": "chunked"}) + chunked,
    ):
        answer = ask(edge.server, request)
        assert (answer.status, answer.error["param"]) == (400, "model")
    assert_nothing_charged(edge.server, payer)


def test_head_past_its_limit_is_refused_also_on_a_kept_connection(edge: Edge) -> None:
    payer = edge.server.payer()
    large = f"X-Large: {'x' * HEAD_BYTES_MAX}\r\n".encode()
    with Connection(edge.server) as connection:
        for request in (post(payer, b"{}"), head("GET", "/healthz")):
            connection.send(request)
            assert connection.answer().status in {200, 400}
        connection.send(head("GET", "/healthz", lines=large))
        answer = connection.answer("GET")
        assert (answer.status, answer.error["code"]) == (400, "invalid_http")
        assert connection.rest() == b""
    answer = ask(edge.server, head("GET", "/healthz", lines=large), "GET")
    assert (answer.status, answer.error["message"]) == (400, "Request head too large")
    assert_nothing_charged(edge.server, payer)


def test_body_in_the_segment_of_its_head_does_not_count_as_head(edge: Edge) -> None:
    payer = edge.server.payer()
    request = post(payer, b"{}" + b" " * (3 * HEAD_BYTES_MAX))
    end = request.index(b"\r\n\r\n")
    for split in (0, end + 1, end + 2, end + 3, end + 4):
        with Connection(edge.server) as connection:
            connection.send(request[:split])
            connection.send(request[split:])
            assert connection.answer().error["param"] == "model"
    assert_nothing_charged(edge.server, payer)


# Time.


def test_dripping_body_is_given_up_on(edge: Edge) -> None:
    payer = edge.server.payer()
    with Connection(edge.server) as connection:
        connection.send(head(headers={**JSON, **payer.headers, "Content-Length": "60000"}))
        assert connection.drip(b" ", every_s=PATIENCE_S / 10, times=DRIPS_MAX)
        answer = connection.answer()
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        # What still comes is thrown away, but not for ever.
        connection.drip(b" ", every_s=PATIENCE_S / 10, times=DRIPS_MAX)
        assert connection.rest() == b""
    assert_nothing_charged(edge.server, payer)


def test_body_that_never_comes_is_given_up_on(edge: Edge) -> None:
    payer = edge.server.payer()
    with Connection(edge.server) as connection:
        connection.send(head(headers={**JSON, **payer.headers, "Content-Length": "10"}))
        assert connection.answer().status == 408
        assert connection.rest() == b""
    assert_nothing_charged(edge.server, payer)


@pytest.mark.parametrize("drip", [b"", b"x", b"X-Drip: 1\r\n"], ids=["silent", "name", "lines"])
def test_dripping_head_is_cut_off(drip: bytes, edge: Edge) -> None:
    for began in (b"", b"P", f"POST {PATH} HTTP/1.1\r\n".encode()):
        with Connection(edge.server) as connection:
            connection.send(began)
            connection.drip(drip, every_s=PATIENCE_S / 10, times=DRIPS_MAX)
            assert b"200" not in connection.rest()
    edge.server.assert_green()


def test_refused_request_whose_body_never_ends_does_not_keep_the_connection(edge: Edge) -> None:
    request = head(headers={**JSON, "Authorization": "Bearer sk-fb-unknown", "Content-Length": "60000"})
    for more in (b"", b"x", b"x" * 59_999):
        with Connection(edge.server) as connection:
            connection.send(request)
            assert connection.answer().status == 401
            connection.send(more)
            assert connection.rest() == b""
    edge.server.assert_green()


def test_connection_is_kept_where_the_body_of_a_refused_request_ends(edge: Edge) -> None:
    payer = edge.server.payer()
    with Connection(edge.server) as connection:
        connection.send(head(headers={**JSON, "Authorization": "Bearer sk-fb-unknown", "Content-Length": "2"}))
        assert connection.answer().status == 401
        connection.send(b"{}")
        connection.send(post(payer, b"{}"))
        assert connection.answer().status == 400
    assert_nothing_charged(edge.server, payer)


def test_client_that_leaves_in_mid_body_costs_nothing(edge: Edge) -> None:
    payer = edge.server.payer()
    edge.dialects.clear()
    content = chat("ok")
    for sent in (0, 1, len(content) - 1):
        with Connection(edge.server) as connection:
            connection.send(post(payer, content)[: -len(content)] + content[:sent])
    assert not edge.dialects.requests
    assert_nothing_charged(edge.server, payer)


# Framing.


def test_pipelined_requests_end_the_connection(edge: Edge) -> None:
    payer = edge.server.payer()
    edge.dialects.clear()
    with Connection(edge.server) as connection:
        connection.send(post(payer, chat("ok")) * 3)
        assert connection.rest() == b""
    assert not edge.dialects.requests
    assert_nothing_charged(edge.server, payer)


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 99999999999999999999999999\r\n",
        b"Transfer-Encoding: identity, chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
    ],
)
def test_ambiguous_length_is_refused_and_the_connection_ends(lines: bytes, edge: Edge) -> None:
    """What one server takes for a body, another takes for the next request: so nobody's guess is served."""
    payer = edge.server.payer()
    edge.dialects.clear()
    hidden = b"0\r\n\r\n" + post(payer, chat("ok"))
    with Connection(edge.server) as connection:
        connection.send(head(headers={**JSON, **payer.headers}, lines=lines) + hidden)
        seen = connection.rest()
    assert seen.count(b"HTTP/1.1 ") == 1
    assert seen.startswith(b"HTTP/1.1 400 ")
    assert not edge.dialects.requests
    assert_nothing_charged(edge.server, payer)


@pytest.mark.parametrize("chunk", [b"zz\r\n", b"-1\r\n", b"5\r\nhello!\r\n", b"ffffffffffffffffff\r\n", b"5 \n"])
def test_malformed_chunk_is_refused(chunk: bytes, edge: Edge) -> None:
    payer = edge.server.payer()
    with Connection(edge.server) as connection:
        connection.send(head(headers={**JSON, **payer.headers, "Transfer-Encoding": "chunked"}) + chunk)
        answer = connection.answer()
        assert (answer.status, answer.error["code"]) == (400, "invalid_http")
        assert connection.rest() == b""
    assert_nothing_charged(edge.server, payer)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "GZIP, identity"])
def test_encoded_body_is_not_unpacked(encoding: str, edge: Edge) -> None:
    payer = edge.server.payer()
    content = gzip.compress(chat("ok"))
    answer = ask(edge.server, post(payer, content, lines=f"Content-Encoding: {encoding}\r\n".encode()))
    assert (answer.status, answer.error["param"]) == (415, "Content-Encoding")
    assert_nothing_charged(edge.server, payer)


@pytest.mark.parametrize(
    "kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp", "json"]
)
def test_body_of_another_type_is_refused(kind: str, edge: Edge) -> None:
    payer = edge.server.payer()
    content = chat("ok")
    headers = {**payer.headers, "Content-Length": str(len(content)), **({"Content-Type": kind} if kind else {})}
    answer = ask(edge.server, head(headers=headers) + content)
    assert (answer.status, answer.error["param"]) == (415, "Content-Type")
    assert answer.error["code"] == "unsupported_media_type"
    assert_nothing_charged(edge.server, payer)


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PATCH"])
def test_wrong_method_says_the_right_one(method: str, edge: Edge) -> None:
    payer = edge.server.payer()
    for path in (PATH, PATH + "/"):
        answer = ask(edge.server, head(method, path, payer.headers), method)
        assert (answer.status, answer.header("allow")) == (405, "POST")
        if method != "HEAD":
            assert answer.error["code"] == "method_not_allowed"
    assert_nothing_charged(edge.server, payer)


@pytest.mark.parametrize(
    "line", [b"Authorization: Bearer {}", b"x-api-key: {}", b"Idempotency-Key: a\r\nIdempotency-Key: b"]
)
def test_header_that_decides_may_not_stand_twice(line: bytes, edge: Edge) -> None:
    payer, other = edge.server.payer(), edge.server.payer()
    lines = b"".join(
        line.replace(b"{}", key.encode()) + b"\r\n" for key in ((payer.key, other.key) if b"{}" in line else ("",))
    )
    content = chat("ok")
    headers = {**JSON, "Content-Length": str(len(content)), **({} if b"{}" in line else payer.headers)}
    answer = ask(edge.server, head(headers=headers, lines=lines) + content)
    assert answer.status == 400
    assert answer.error["param"] == line.partition(b":")[0].decode().lower()
    assert payer.key not in answer.body.decode()
    assert_nothing_charged(edge.server, payer)
    assert_nothing_charged(edge.server, other)


@pytest.mark.parametrize(
    ("host", "served"),
    [
        (b"127.0.0.1", True),
        (b"127.0.0.1:8402", True),
        (b"FAREBOX.example:8402", True),
        (b"farebox.example", False),
        (b"evil.example", False),
        (b"127.0.0.1.evil.example", False),
        (b"evil.example:127.0.0.1", False),
        (b"[", False),
        (b"", False),
        (b"127.0.0.1\r\nHost: evil.example", False),
        (None, False),
    ],
)
def test_host_that_is_not_listed_is_not_served(host: bytes | None, served: bool, edge: Edge) -> None:
    payer = edge.server.payer()
    line = b"" if host is None else b"Host: " + host + b"\r\n"
    credential = f"Content-Type: application/json\r\nx-api-key: {payer.key}\r\nContent-Length: 2\r\n\r\n{{}}".encode()
    answer = ask(edge.server, f"POST {PATH} HTTP/1.1\r\n".encode() + line + credential)
    assert answer.status == 400
    assert str(answer.error["param"]).lower() == ("model" if served else "host")
    assert_nothing_charged(edge.server, payer)


def test_upgrade_is_ignored_and_the_request_served(edge: Edge) -> None:
    """Java's client offers HTTP/2 with its first request, and goes on in HTTP/1.1 on the same connection."""
    payer = edge.server.payer()
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
    with Connection(edge.server) as connection:
        for lines in (offer, b""):
            connection.send(post(payer, chat("status:400"), lines=lines))
            answer = connection.answer()
            assert answer.status == 400
            assert answers.ERROR_MESSAGE in json.loads(answer.body)["error"]["message"]
    assert_nothing_charged(edge.server, payer)
