"""The most that a request with searches can be billed for, so that its hold covers it. Pure.

Every round sends the whole conversation again: the request, our instruction and tool, what earlier rounds
said, and all results so far. A token is at least one byte of text, as in `app.pricing.quote`.
"""

import orjson

from app.pricing.quote import CONTEXT_BYTES_PER_TOKEN_MAX, TOKENS_PER_MESSAGE, TOOLS_PREAMBLE_TOKENS
from app.search.options import SearchOptions
from app.search.wording import (
    ARGUMENTS_BYTES_MAX,
    INSTRUCTION_BYTES_MAX,
    TOOL,
    TOOL_NAME,
    told_bytes_max,
)

# Text of an earlier round that is sent back: models say little before they search.
ECHO_BYTES_MAX = 4096
ID_BYTES_MAX = 64
# One call past the limit is answered, so that the model knows of it; then no more can be made.
REFUSED_CALLS_MAX = 1


def rounds_max(options: SearchOptions) -> int:
    """How often the model is asked at most: after the last searches it must answer."""
    return options.rounds_max + 1


def echo_bytes_max(output_limit: int) -> int:
    """The most bytes of one round's text that later rounds are sent."""
    return min(ECHO_BYTES_MAX, max(0, output_limit) * CONTEXT_BYTES_PER_TOKEN_MAX)


def prompt_tokens_max(prompt_tokens: int, *, options: SearchOptions, output_limit: int, context_window: int) -> int:
    """The most prompt tokens of all rounds together, where ``prompt_tokens`` bounds the request's own.

    Dearest is what comes first: results of the first round are sent in each later one.
    """
    asking = INSTRUCTION_BYTES_MAX + TOKENS_PER_MESSAGE + len(orjson.dumps(TOOL)) + TOOLS_PREAMBLE_TOKENS
    said = echo_bytes_max(output_limit) + TOKENS_PER_MESSAGE
    call = ARGUMENTS_BYTES_MAX + 2 * ID_BYTES_MAX + 2 * len(TOOL_NAME) + TOKENS_PER_MESSAGE
    found = (options.searches_max + REFUSED_CALLS_MAX) * (call + told_bytes_max(options))
    rounds = (
        prompt_tokens + asking + earlier * said + (found if earlier else 0) for earlier in range(rounds_max(options))
    )
    return sum(min(tokens, context_window) for tokens in rounds)
