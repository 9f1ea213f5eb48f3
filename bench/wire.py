"""What the upstream, the servers under test and the clients agree on: models, bodies, and the clock in a token.

The paced upstream writes the time at which it emitted a token into the token's own text, because text is the only
part of a chunk that every proxy must deliver unchanged. CLOCK_MONOTONIC is one clock for all processes of a machine,
so the reader subtracts without any synchronisation.
"""

import re
import time

import orjson

MODEL = "bench"
PACED_MODEL = "bench-paced"
PATH = "/v1/chat/completions"

PROMPT_TOKENS = 8
STREAM_TOKENS = 100
PACE_INTERVAL_S = 0.05  # 20 tokens/s

# Nine digits of microseconds repeat every 1000 s; a token is never that late.
_STAMP_PERIOD_US = 1_000_000_000
STAMP = re.compile(rb"@(\d{9})")
STAMP_BYTES = 10


def stamp() -> bytes:
    """The present as the ten bytes of text that a paced token consists of."""
    return b"@%09d" % (time.monotonic_ns() // 1000 % _STAMP_PERIOD_US)


def age_us(digits: bytes, *, now_ns: int) -> int:
    """Microseconds between the emission that `digits` names and `now_ns` (time.monotonic_ns)."""
    return (now_ns // 1000 - int(digits)) % _STAMP_PERIOD_US


def request_body(*, model: str, stream: bool) -> bytes:
    """The one request all servers get; max_tokens leaves room, so that no proxy has a reason to cut a paced stream."""
    return orjson.dumps(
        {
            "model": model,
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 4000 if model == PACED_MODEL else 200,
            "stream": stream,
        }
    )
