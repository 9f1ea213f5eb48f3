"""The parameters of images: how many and how large, each size at its own price.

Only what is known goes upstream: servers have many words for a size, a count or an effort, and any of them could
undo what was priced.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from app.admission import PaidRequest
from app.api.incoming import Incoming
from app.api.parameters import (
    REFUSED,
    SINGLE,
    STRING,
    Check,
    capable,
    check_all,
    integer,
    missing,
    named_model,
    one_of,
    refuse,
    text,
)
from app.api.routing_parameters import ROUTING, first_byte_timeout_s, wishes
from app.api.shapes import IMAGES_SHAPE
from app.endpoints import IMAGES
from app.pricing.quote import PromptSize
from app.routing.candidates import Candidate
from app.units import IMAGE_UNIT

IMAGES_MAX = 10
PROMPT_CHARACTERS_MAX = 32_000
SIZE_DEFAULT = "1024x1024"
SIZE_AUTO = "auto"

CHECKS: Mapping[str, Check] = {
    **ROUTING,
    "model": STRING,
    "prompt": text(PROMPT_CHARACTERS_MAX),
    "n": integer(1, IMAGES_MAX),
    "size": STRING,
    "response_format": one_of("url", "b64_json"),
    "style": one_of("vivid", "natural"),
    "output_format": one_of("png", "jpeg", "webp"),
    "output_compression": integer(0, 100),
    "background": one_of("auto", "opaque", "transparent"),
    "moderation": one_of("auto", "low"),
    "negative_prompt": text(PROMPT_CHARACTERS_MAX),
    "seed": integer(-(2**63), 2**63 - 1),
    "user": STRING,
}
NOT_OFFERED: Mapping[str, tuple[Any, ...]] = {
    # In the background runs a job elsewhere in the API; here it is what an image stands on.
    **{name: harmless for name, harmless in REFUSED.items() if name != "background"},
    **{name: harmless for name, harmless in SINGLE.items() if name != "n"},
    # Other qualities are other prices, and images on the way to the last one are images too.
    "quality": (None, "auto", "standard"),
    "partial_images": (None, 0),
}
OURS = (*ROUTING, *NOT_OFFERED)


def parse(incoming: Incoming) -> PaidRequest:
    """A validated request. Raises `InvalidRequest` naming the parameter, and `NotFound`."""
    body = incoming.object()
    check_all(body, CHECKS, NOT_OFFERED, only_known=True)
    model = named_model(body)
    if "prompt" not in body:
        raise missing("prompt", "say what the image shows")
    size = _size(body.get("size"), capable(incoming, model, IMAGES))
    count = body.get("n", 1)
    upstream = {name: value for name, value in body.items() if name not in OURS}
    said = {"n": count, "size": size, "response_format": body.get("response_format", "b64_json")}
    units = {f"{IMAGE_UNIT}{size}": count}
    return PaidRequest(
        endpoint=IMAGES,
        path=incoming.path,
        model=model,
        body={**upstream, **said},
        content=incoming.content,
        stream=False,
        size=PromptSize(0, 0),
        output_limit_param="n",
        wishes=wishes(body),
        first_byte_timeout_s=first_byte_timeout_s(body),
        idempotency_key=incoming.idempotency_key,
        units=units,
        units_expected=units,
        shape=IMAGES_SHAPE,
    )


def _size(asked: str | None, candidates: Sequence[Candidate]) -> str:
    """The size as prices name it; what is written with a star is the same one."""
    sold = list(dict.fromkeys(size for candidate in candidates for size in candidate.model.price.per_image or ()))
    if asked is None or asked == SIZE_AUTO:
        return SIZE_DEFAULT if SIZE_DEFAULT in sold else sold[0]
    size = asked.replace("*", "x").lower()
    if size not in sold:
        raise refuse("size", f"{candidates[0].model.id!r} makes images of {', '.join(sold)}")
    return size
