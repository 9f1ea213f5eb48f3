"""What an answer of bytes that broke off is billed: who broke it off decides."""

from dataclasses import replace
from typing import Any, cast

import pytest

from app.admission import PaidRequest
from app.endpoints import SPEECH
from app.pricing.quote import PromptSize, TokenRatio
from app.reckoning import NOTHING
from app.serving import SLOW_READER_S, Serving
from app.upstream.provider import TOO_LARGE, UpstreamError
from tests.test_reckoning import PLAN, candidate

BROKEN = UpstreamError("interrupted", "the provider's answer was cut off", fail_over=False)
PAST_OUR_BOUND = UpstreamError(TOO_LARGE, "the provider's answer is too large", fail_over=False)


class Delivered:
    content_sent = True

    def __init__(self, waited_s: float) -> None:
        self.waited_s = waited_s


def spoken(*, waited_s: float = 0.0) -> Serving:
    request = PaidRequest(SPEECH, "/v1/audio/speech", "m", {}, b"", False, PromptSize(0, 0), units={"character": 9})
    nothing: Any = None
    return Serving(
        upstreams=nothing,
        request_id="r",
        payer="customer:a",
        request=request,
        candidates=[],
        plan=replace(PLAN, limit=0),
        delivery=cast("Any", Delivered(waited_s)),
        ratio=TokenRatio(),
        client=nothing,
        begin=nothing,
        started_s=0.0,
        served=candidate(),
    )


@pytest.mark.parametrize(
    ("failed", "waited_s", "ours", "billed"),
    [
        (BROKEN, 0.0, False, False),
        (BROKEN, SLOW_READER_S, False, True),
        (PAST_OUR_BOUND, 0.0, False, True),
        (None, 0.0, True, False),
        (None, 0.0, False, True),
    ],
    ids=["provider", "slow client", "our bound", "our failure", "client left"],
)
def test_bytes_that_broke_off_are_free_unless_it_was_the_clients_doing(
    failed: UpstreamError | None, waited_s: float, ours: bool, billed: bool
) -> None:
    usage = spoken(waited_s=waited_s).used(failed=failed, ours=ours)
    assert usage.units == ((("character", 9),) if billed else ())


def test_nothing_is_billed_where_no_provider_answered() -> None:
    serving = spoken()
    serving.served = None
    assert serving.used() == NOTHING
