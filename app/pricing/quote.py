"""What a request may use before it is known: upper bounds for holds, learned ratios for estimates. Pure.

A token is at least one byte of text, so bytes bound tokens from above: holds count one token a byte.
Where a price must be shown or a provider reports no usage, the ratio learned from that model's own
reports is used instead.
"""

from dataclasses import dataclass

TOKENS_PER_MESSAGE = 16
# What a server's own template says about tools before it lists them: Anthropic's bills hundreds of tokens.
TOOLS_PREAMBLE_TOKENS = 640
AUDIO_BYTES_PER_TOKEN_MIN = 32
BYTES_PER_TOKEN_DEFAULT = 4.0
BYTES_PER_TOKEN_MIN = 1.0
BYTES_PER_TOKEN_MAX = 16.0
ANSWER_TOKENS_DEFAULT = 400.0
LEARNING_RATE = 0.05
# Below this many tokens a report says little about the ratio.
LEARN_TOKENS_MIN = 16
# No tokenizer in use makes tokens of more bytes than this on average over a long text.
CONTEXT_BYTES_PER_TOKEN_MAX = 16


@dataclass(frozen=True, slots=True)
class PromptSize:
    """The parts of a prompt that become tokens.

    ``prompts`` are separate ones in one request (a batch), each with the context window to itself.
    """

    text_bytes: int
    messages: int = 1
    images: int = 0
    audio_bytes: int = 0
    token_ids: int = 0
    prompts: int = 1
    tools: bool = False

    def tokens_max(self, *, image_tokens_max: int, context_window: int) -> int:
        """No provider can count more tokens than this."""
        tokens = self.text_bytes + self.messages * TOKENS_PER_MESSAGE + self.images * image_tokens_max + self.token_ids
        tokens += TOOLS_PREAMBLE_TOKENS if self.tools else 0
        return min(tokens + self.audio_bytes // AUDIO_BYTES_PER_TOKEN_MIN, context_window * self.prompts)

    @property
    def tokens_min(self) -> int:
        """No provider can count fewer tokens of text than this for the longest of the prompts."""
        return (self.text_bytes // CONTEXT_BYTES_PER_TOKEN_MAX + self.token_ids) // self.prompts

    @property
    def text_alone(self) -> bool:
        """Whether a report of its tokens says something about the ratio of bytes to tokens."""
        return not (self.images or self.audio_bytes or self.token_ids)


@dataclass(slots=True)
class TokenRatio:
    """Bytes of text per token of one model, learned from what its providers report."""

    prompt: float = BYTES_PER_TOKEN_DEFAULT
    output: float = BYTES_PER_TOKEN_DEFAULT
    # Tokens of one answer: what a request is expected to come to, where providers are compared.
    answer: float = ANSWER_TOKENS_DEFAULT

    def prompt_tokens(self, size: PromptSize, *, tokens_max: int) -> int:
        """The expected prompt tokens; media are taken at their bound."""
        media = size.audio_bytes // AUDIO_BYTES_PER_TOKEN_MIN + size.token_ids
        return max(1, min(tokens_max, -int(-size.text_bytes // self.prompt) + media))

    def output_tokens(self, text_bytes: int) -> int:
        """The expected tokens of so many bytes of output, rounded up."""
        return -int(-text_bytes // self.output)

    def learn_prompt(self, *, text_bytes: int, tokens: int) -> None:
        """Learn from a reported prompt of text alone."""
        self.prompt = _moved(self.prompt, text_bytes, tokens)

    def learn_output(self, *, text_bytes: int, tokens: int) -> None:
        """Learn from a reported completion whose tokens were all streamed as text."""
        self.output = _moved(self.output, text_bytes, tokens)

    def learn_answer(self, *, tokens: int) -> None:
        """Learn from how long an answer became."""
        self.answer += LEARNING_RATE * (tokens - self.answer)

    def answer_tokens(self, *, limit: int) -> int:
        """The expected tokens of one answer within its limit."""
        return min(limit, max(1, int(self.answer)))


def _moved(ratio: float, text_bytes: int, tokens: int) -> float:
    if tokens < LEARN_TOKENS_MIN or text_bytes <= 0:
        return ratio
    seen = min(max(text_bytes / tokens, BYTES_PER_TOKEN_MIN), BYTES_PER_TOKEN_MAX)
    return ratio + LEARNING_RATE * (seen - ratio)


def output_bound(*, requested: int | None, default: int, model_max: int) -> int:
    """The output limit of one choice: the caller's, else the default, never above the model's."""
    return min(requested if requested is not None else default, model_max)
