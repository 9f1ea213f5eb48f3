"""The parameters of a plain completion (``/v1/completions``): one prompt or several, each priced."""

from collections.abc import Mapping
from typing import Any

from app.admission import PaidRequest
from app.api.incoming import Incoming
from app.api.parameters import (
    CHOICES_MAX,
    GENERATION,
    REFUSED,
    SINGLE,
    STRING,
    Check,
    capable,
    check_all,
    integer,
    missing,
    named_model,
    refuse,
    token_ids,
    unknown_bytes,
    unsupported,
)
from app.api.routing_parameters import ROUTING, first_byte_timeout_s, wishes
from app.endpoints import COMPLETIONS
from app.pricing.quote import PromptSize

PROMPTS_MAX = 16
LOGPROBS_MAX = 20


def _prompt(name: str, value: Any) -> None:
    if isinstance(value, str):
        return
    if not isinstance(value, list) or not value:
        raise refuse(name, f"must be a string, or a list of 1 to {PROMPTS_MAX} strings")


def _best_of(name: str, value: Any) -> None:
    integer(1, CHOICES_MAX)(name, value)


def _echo(name: str, value: Any) -> None:
    # The prompt would come back as output that no provider counts as such.
    if value is not False:
        raise unsupported(name, "the prompt is not given back here; leave it out")


CHECKS: Mapping[str, Check] = {
    **GENERATION,
    **ROUTING,
    "prompt": _prompt,
    "suffix": STRING,
    "logprobs": integer(0, LOGPROBS_MAX),
    "best_of": _best_of,
    "echo": _echo,
}
NOT_OFFERED: Mapping[str, tuple[Any, ...]] = {
    **{name: harmless for name, harmless in REFUSED.items() if name != "best_of"},
    "web_search": SINGLE["web_search"],
    "web_search_options": SINGLE["web_search_options"],
}
OURS = (*ROUTING, *NOT_OFFERED, "best_of", "echo")


def parse(incoming: Incoming) -> PaidRequest:
    """A validated request. Raises `InvalidRequest` naming the parameter, and `NotFound`."""
    body = incoming.object()
    check_all(body, CHECKS, NOT_OFFERED)
    model = named_model(body)
    if "prompt" not in body:
        raise missing("prompt", "say what to complete: a string")
    choices = body.get("n", 1)
    if body.get("best_of", choices) not in {1, choices}:
        raise unsupported("best_of", "answers that are thrown away would cost; make it n, or leave it out")
    stream = body.get("stream", incoming.settings.inference.stream_default)
    options = body.get("stream_options") or {}
    if options and not stream:
        raise refuse("stream_options", "only allowed when stream is true")
    size = _size(body, incoming, model)
    if choices * size.prompts > CHOICES_MAX:
        raise refuse("n", f"n times the number of prompts must be at most {CHOICES_MAX}")
    limit_param = "max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"
    upstream = {name: value for name, value in body.items() if name not in OURS}
    if upstream.get("top_p") == -1:
        del upstream["top_p"]
    return PaidRequest(
        endpoint=COMPLETIONS,
        path=incoming.path,
        model=model,
        body=upstream,
        content=incoming.content,
        stream=stream,
        size=size,
        choices=choices * size.prompts,
        output_limit=body.get(limit_param),
        output_limit_param=limit_param,
        include_usage=bool(options.get("include_usage")),
        wishes=wishes(body),
        first_byte_timeout_s=first_byte_timeout_s(body),
        idempotency_key=incoming.idempotency_key,
    )


def _size(body: Mapping[str, Any], incoming: Incoming, model: str) -> PromptSize:
    """What every prompt comes to; what stands beside the prompts is part of each of them."""
    candidates = capable(incoming, model, COMPLETIONS)
    prompt = body["prompt"]
    # A list of numbers is one prompt, as its tokens.
    prompts = [prompt] if isinstance(prompt, str) or type(prompt[0]) is int else prompt
    if len(prompts) > PROMPTS_MAX:
        raise refuse("prompt", f"must be at most {PROMPTS_MAX} prompts")
    text = ids = 0
    for index, each in enumerate(prompts):
        where = "prompt" if each is prompt else f"prompt[{index}]"
        if isinstance(each, str):
            text += len(each.encode())
        elif isinstance(each, list):
            ids += token_ids(where, each, candidates)
        else:
            raise refuse(where, "must be a string")
    beside = len(body.get("suffix", "").encode()) + unknown_bytes(body, CHECKS, NOT_OFFERED)
    return PromptSize(text + len(prompts) * beside, len(prompts), token_ids=ids, prompts=len(prompts))
