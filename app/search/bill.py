"""What a request with searches used: the sum of its rounds, in OpenAI's shape. Pure.

A round counts by its own last report. Where a finished round has none there is no honest sum: then only
the searches are reported, and the tokens are estimated by whoever bills.
"""

from typing import Any

from app.metering import TOKENS_MAX, usage_from
from app.pricing.price_book import Usage

WEB_SEARCHES = "web_searches"


class Bill:
    """The rounds so far. ``searches`` counts those that were answered: a failed one is not billed."""

    def __init__(self) -> None:
        self._finished: list[Usage] = []
        self._current: Usage | None = None
        self._unreported = False
        self.searches = 0

    @property
    def reported(self) -> bool:
        """Whether the current round has reported its usage."""
        return self._current is not None

    def report(self, usage: Any) -> None:
        """A report of the current round; the last one counts."""
        read, _ = usage_from(usage, prompt_max=TOKENS_MAX, output_max=TOKENS_MAX)
        self._current = read or self._current

    def end_round(self, *, text_bytes: int) -> int:
        """End the current round; gives its output tokens, at most one a byte where it did not say."""
        usage, self._current = self._current, None
        if usage is None:
            self._unreported = True
            return text_bytes
        self._finished.append(usage)
        return usage.completion_tokens

    @property
    def context_tokens(self) -> int | None:
        """How long the conversation is after the last finished round; None if that did not say."""
        return None if self._unreported or not self._finished else self._finished[-1].total_tokens

    def total(self) -> dict[str, Any]:
        """The usage so far."""
        rounds = [*self._finished, *([self._current] if self._current else ())]
        if self._unreported or not rounds:
            return {WEB_SEARCHES: self.searches}
        prompt, completion = (
            sum(getattr(each, name) for each in rounds) for name in ("prompt_tokens", "completion_tokens")
        )
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {
                "cached_tokens": sum(each.cached_tokens for each in rounds),
                "cache_write_tokens": sum(each.cache_write_tokens for each in rounds),
                "audio_tokens": sum(each.audio_input_tokens for each in rounds),
            },
            "completion_tokens_details": {
                "reasoning_tokens": sum(each.reasoning_tokens for each in rounds),
                "audio_tokens": sum(each.audio_output_tokens for each in rounds),
            },
            WEB_SEARCHES: self.searches,
        }
