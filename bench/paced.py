"""The paced client: N concurrent streams at 20 tokens/s each, `python -m bench.paced --port P --streams N ...`.

Measures what a proxy adds to each token: arrival here minus the emission time inside the token. Streams start at random
moments of the ramp, since phases in lockstep would measure the burst and not the proxy; the seed is fixed, so every
server gets the same moments. Prints one JSON object.
"""

import argparse
import asyncio
import collections
import gc
import random
import sys
import time
from array import array
from typing import cast

import httptools
import orjson
import uvloop

from bench.wire import PACE_INTERVAL_S, PACED_MODEL, PATH, STAMP, STAMP_BYTES, age_us, request_body

GRACE_S = 20.0  # beyond the pace, for a server that has fallen behind
SEED = 20


class Stream(asyncio.Protocol):
    """One request on its own connection; `outcome` is "" when all of it arrived."""

    def __init__(self, *, request: bytes, tokens: int, added_us: "array[int]") -> None:
        self._request = request
        self._tokens = tokens
        self._added_us = added_us
        self._parser = httptools.HttpResponseParser(self)
        self._rest = b""
        self._received_ns = 0
        self._done = False
        self.seen = 0
        self.outcome: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports share asyncio's methods but not its classes.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self._received_ns = time.monotonic_ns()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._finish(f"bad HTTP: {error}")

    def on_body(self, body: bytes) -> None:
        """httptools: a piece of the answer without its HTTP framing."""
        text = self._rest + body
        end = 0
        for found in STAMP.finditer(text):
            self._added_us.append(age_us(found[1], now_ns=self._received_ns))
            self.seen += 1
            end = found.end()
        self._done = self._done or b"data: [DONE]" in text
        # What may be the beginning of a stamp or of the ending, and holds no complete stamp.
        self._rest = text[max(end, len(text) - 2 * STAMP_BYTES) :]

    def on_message_complete(self) -> None:
        """httptools: the answer has ended, rightly or not."""
        status = self._parser.get_status_code()
        if status != 200:
            self._finish(f"status {status}")
        elif self.seen != self._tokens:
            self._finish("tokens missing")
        elif not self._done:
            self._finish("no [DONE]")
        else:
            self._finish("")

    def connection_lost(self, exc: Exception | None) -> None:
        self._finish("connection lost")

    def expire(self) -> None:
        """Out of time."""
        self._finish("timed out")

    def _finish(self, outcome: str) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)
            self._transport.close()


async def drive(*, host: str, port: int, request: bytes, streams: int, tokens: int, ramp_s: float) -> dict[str, object]:
    """Runs all streams to their end; bounded by ramp, pace and GRACE_S."""
    loop = asyncio.get_running_loop()
    added_us = array("l")
    limit_s = tokens * PACE_INTERVAL_S + GRACE_S

    async def one(delay_s: float) -> tuple[str, int]:
        await asyncio.sleep(delay_s)
        try:
            _, stream = await asyncio.wait_for(
                loop.create_connection(
                    lambda: Stream(request=request, tokens=tokens, added_us=added_us), host=host, port=port
                ),
                GRACE_S,
            )
        except (OSError, TimeoutError) as error:
            return f"connect: {type(error).__name__}", 0
        timer = loop.call_later(limit_s, stream.expire)
        outcome = await stream.outcome
        timer.cancel()
        return outcome, stream.seen

    moments = random.Random(SEED)
    gc.freeze()
    gc.disable()  # a collection here would count as latency there
    ended = await asyncio.gather(*(one(moments.uniform(0, ramp_s)) for _ in range(streams)))
    failures = collections.Counter(outcome for outcome, _ in ended if outcome)
    ordered = sorted(added_us)

    def percentile_ms(share: float) -> float | None:
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000 if ordered else None

    return {
        "streams": streams,
        "tokens_expected": streams * tokens,
        "tokens_received": sum(seen for _, seen in ended),
        "failed": sum(failures.values()),
        "failures": dict(failures),
        "p50_ms": percentile_ms(0.50),
        "p99_ms": percentile_ms(0.99),
        "max_ms": percentile_ms(1.0),
    }


def main() -> None:
    """Headers come as `Name: value` arguments of `--header`."""
    parser = argparse.ArgumentParser(prog="python -m bench.paced")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--streams", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--ramp-s", type=float, required=True)
    parser.add_argument("--header", action="append", default=[])
    arguments = parser.parse_args()
    body = request_body(model=PACED_MODEL, stream=True)
    lines = [
        f"POST {PATH} HTTP/1.1",
        f"Host: 127.0.0.1:{arguments.port}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *arguments.header,
    ]
    result = uvloop.run(
        drive(
            host="127.0.0.1",
            port=arguments.port,
            request="\r\n".join([*lines, "", ""]).encode() + body,
            streams=arguments.streams,
            tokens=arguments.tokens,
            ramp_s=arguments.ramp_s,
        )
    )
    sys.stdout.buffer.write(orjson.dumps(result) + b"\n")


if __name__ == "__main__":
    main()
