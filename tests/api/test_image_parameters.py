"""The parameters of images: each size has its price, and no other size is sold."""

from typing import Any

import pytest

from app.admission import PaidRequest
from app.api import image_parameters
from app.api.shapes import IMAGES_SHAPE
from app.endpoints import IMAGES
from app.errors import InvalidRequest
from tests.api.paid_models import incoming

PATH = "/v1/images/generations"


def parse(**parameters: Any) -> PaidRequest:
    return image_parameters.parse(incoming(PATH, {"model": "paints", "prompt": "A sunset", **parameters}))


def refused(**parameters: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**parameters)
    assert caught.value.param is not None
    return caught.value


def test_request_is_one_of_images() -> None:
    known = {"user": "u", "style": "vivid", "moderation": "low", "seed": 7, "negative_prompt": "rain"}
    request = parse(background="transparent", quality="standard", **known)
    assert (request.endpoint, request.path, request.shape) == (IMAGES, PATH, IMAGES_SHAPE)
    asked = {"model": "paints", "prompt": "A sunset", **known}
    defaults = {"n": 1, "size": "1024x1024", "response_format": "b64_json", "background": "transparent"}
    assert request.body == {**asked, **defaults}


@pytest.mark.parametrize(
    ("parameters", "units"),
    [
        ({}, {"image:1024x1024": 1}),
        ({"n": 10}, {"image:1024x1024": 10}),
        ({"size": "1792x1024", "n": 2}, {"image:1792x1024": 2}),
        ({"size": "1792*1024"}, {"image:1792x1024": 1}),
        ({"size": "256X256"}, {"image:256x256": 1}),
        ({"size": "auto"}, {"image:1024x1024": 1}),
        ({"size": None}, {"image:1024x1024": 1}),
        ({"model": "paints-small"}, {"image:512x512": 1}),
    ],
)
def test_images_are_billed_by_their_size(parameters: dict[str, Any], units: dict[str, int]) -> None:
    request = parse(**parameters)
    assert request.units == request.units_expected == units
    assert request.body["size"] == next(iter(units)).removeprefix("image:")


@pytest.mark.parametrize("size", ["512x512", "1024", "", "1024x1024x1", "image", "\uff11024x1024"])
def test_size_without_a_price_is_refused_with_those_that_have_one(size: str) -> None:
    error = refused(size=size)
    assert error.param == "size"
    assert "256x256, 1024x1024, 1792x1024" in error.message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt", ""),
        ("prompt", "x" * 32_001),
        ("prompt", ["a"]),
        ("prompt", None),
        ("n", 0),
        ("n", 11),
        ("n", 1.0),
        ("size", 1024),
        ("response_format", "png"),
        ("style", "dull"),
        ("output_compression", 101),
        ("output_format", "gif"),
        ("moderation", "none"),
        ("quality", "hd"),
        ("quality", "high"),
        ("background", True),
        ("background", False),
        ("negative_prompt", ["rain"]),
        ("seed", "7"),
        ("width", 2048),
        ("height", 2048),
        ("steps", 500),
        ("num_inference_steps", 500),
        ("image_size", "2048x2048"),
        ("resolution", "4k"),
        ("aspect_ratio", "21:9"),
        ("num_images", 10),
        ("batch_size", 10),
        ("upscale", True),
        ("enable_search", True),
        ("anything", ""),
        ("partial_images", 2),
        ("stream", True),
        ("user", 1),
        ("model", "m"),
        ("model", None),
    ],
)
def test_parameter_that_is_wrong_or_dearer_is_named(name: str, value: Any) -> None:
    assert refused(**{name: value}).param == name


def test_nothing_is_sent_that_was_not_said() -> None:
    assert parse(width=None, background=None, seed=None).body == parse().body


def test_name_that_is_not_known_is_shown_in_part() -> None:
    assert refused(**{"w" * 5000: 1}).param == "w" * 100
