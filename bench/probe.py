"""Single requests from the harness itself: until the first answer, and to see that an answer is the right one.

wrk counts any 200, also a stream that carries an error, so each server's answers are read completely before they are
counted, and wrk's bytes are then compared with these.
"""

import http.client
import time
from dataclasses import dataclass

import orjson

from bench.contestants import Contestant
from bench.processes import BenchFailed, Process
from bench.wire import MODEL, PATH, STREAM_TOKENS, request_body

REQUEST_TIMEOUT_S = 20.0
POLL_S = 0.005
TEXT_BYTES = 4 * STREAM_TOKENS


@dataclass(frozen=True, kw_only=True)
class AnswerSizes:
    """Body bytes of one right answer; nothing shorter may be counted."""

    plain: int
    stream: int


def await_first_answer(contestant: Contestant, process: Process) -> float:
    """Seconds from the process's creation to its first complete 200 to a (paid) completion."""
    deadline_s = process.started_s + contestant.start_timeout_s
    body = request_body(model=MODEL, stream=False)
    last = "nothing listens"
    while time.monotonic() < deadline_s:
        if process.exit_code is not None:
            raise BenchFailed(f"{contestant.name} exited with {process.exit_code}:\n{process.log_tail()}")
        try:
            status, content = _post(contestant, body)
        except (OSError, http.client.HTTPException) as error:
            last = repr(error)
        else:
            if status == 200:
                return time.monotonic() - process.started_s
            last = f"{status} {content[:500].decode(errors='replace')}"
        time.sleep(POLL_S)
    raise BenchFailed(
        f"{contestant.name} did not answer within {contestant.start_timeout_s} s (last: {last}):\n{process.log_tail()}"
    )


def check_answers(contestant: Contestant) -> AnswerSizes:
    """Reads one answer of each kind; raises BenchFailed unless text, usage and ending are all there."""
    status, plain = _post(contestant, request_body(model=MODEL, stream=False))
    if status != 200:
        raise BenchFailed(f"{contestant.name} answered {status}: {plain[:500]!r}")
    completion = orjson.loads(plain)
    text = completion["choices"][0]["message"]["content"]
    if len(text) != TEXT_BYTES or completion["usage"]["completion_tokens"] != STREAM_TOKENS:
        raise BenchFailed(f"{contestant.name} changed the completion: {plain[:500]!r}")

    status, stream = _post(contestant, request_body(model=MODEL, stream=True))
    events = [line[6:] for line in stream.split(b"\n") if line.startswith(b"data: ")]
    if status != 200 or not events or events[-1].strip() != b"[DONE]":
        raise BenchFailed(f"{contestant.name} did not finish a stream ({status}): {stream[-500:]!r}")
    text = "".join(
        choice["delta"].get("content") or "" for event in events[:-1] for choice in orjson.loads(event)["choices"]
    )
    if len(text) != TEXT_BYTES:
        raise BenchFailed(f"{contestant.name} delivered {len(text)} of {TEXT_BYTES} bytes of a stream")
    return AnswerSizes(plain=len(plain), stream=len(stream))


def get_json(contestant: Contestant, path: str) -> dict[str, object]:
    """A GET with the contestant's credentials."""
    connection = http.client.HTTPConnection("127.0.0.1", contestant.port, timeout=REQUEST_TIMEOUT_S)
    try:
        connection.request("GET", path, headers=dict(contestant.headers))
        answer: dict[str, object] = orjson.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()


def _post(contestant: Contestant, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", contestant.port, timeout=REQUEST_TIMEOUT_S)
    try:
        connection.request("POST", PATH, body, {"Content-Type": "application/json", **contestant.headers})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()
