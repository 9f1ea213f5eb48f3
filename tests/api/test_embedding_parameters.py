"""The parameters of embeddings: texts and tokens, counted before they are sent."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission import PaidRequest
from app.api import embedding_parameters
from app.api.embedding_parameters import CHECKS, NOT_OFFERED
from app.api.shapes import EmbeddingsShape
from app.endpoints import EMBEDDINGS
from app.errors import InvalidRequest, NotFound
from app.settings import InferenceSettings, Settings
from tests.api.paid_models import SETTINGS, catalog, incoming
from tests.serving import model

PATH = "/v1/embeddings"


def parse(settings: Settings = SETTINGS, /, **parameters: Any) -> PaidRequest:
    body = {"model": "embeds", "input": "The food was delicious.", **parameters}
    return embedding_parameters.parse(incoming(PATH, body, settings=settings))


def refused(**parameters: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**parameters)
    assert caught.value.param is not None
    return caught.value


@pytest.mark.parametrize(
    ("given_input", "size"),
    [
        ("fare", (4, 1, 0, 1)),
        ("é", (2, 1, 0, 1)),
        (["fare", "é"], (6, 2, 0, 2)),
        (["a"] * 2048, (2048, 2048, 0, 2048)),
    ],
)
def test_input_is_measured_in_bytes(given_input: Any, size: tuple[int, ...]) -> None:
    request = parse(input=given_input)
    found = request.size
    assert (found.text_bytes, found.messages, found.token_ids, found.prompts) == size
    assert request.body["input"] == given_input


def test_every_text_has_the_context_window_to_itself() -> None:
    size = parse(input=["x" * 600] * 3).size
    assert size.tokens_max(image_tokens_max=1, context_window=512) == 3 * 512
    assert size.tokens_min <= 512


@pytest.mark.parametrize(
    "wrong",
    ["", [], 1, True, {}, ["a", ""], [""], ["a", 1], [None], ["a", []], [[]], ["a"] * 2049, [{"text": "a"}], [1.5]],
)
def test_input_that_is_none_is_refused(wrong: Any) -> None:
    error = refused(input=wrong)
    assert error.code == "invalid_parameter"
    assert str(error.param).startswith("input")


def test_input_is_required() -> None:
    error = refused(input=None)
    assert (error.param, error.code) == ("input", "missing_parameter")


@pytest.mark.parametrize(
    ("given_input", "tokens", "inputs"), [([1, 2, 3], 3, 1), ([[1, 2], [3]], 3, 2), ([[5], "ab"], 1, 2)]
)
def test_token_ids_are_taken_where_the_model_says_its_tokenizer(given_input: Any, tokens: int, inputs: int) -> None:
    size = parse(model="embeds-ids", input=given_input).size
    assert (size.token_ids, size.prompts) == (tokens, inputs)
    error = refused(input=given_input)
    assert error.status == 400
    assert str(error.param).startswith("input")


@pytest.mark.parametrize("wrong", [[1, "a"], [-1], [2**31], [[1.5]], [[True]], [1, [2]]])
def test_token_ids_that_are_none_are_refused(wrong: Any) -> None:
    assert str(refused(model="embeds-ids", input=wrong).param).startswith("input")


def test_token_ids_need_one_tokenizer_at_every_provider() -> None:
    one = model("e", capabilities=["embeddings"], tokenizer="a")
    served = catalog([one], providers=2)
    body = {"model": "e", "input": [1]}
    assert embedding_parameters.parse(incoming(PATH, body, served=served)).size.token_ids == 1
    first, second = served.models["e"]
    mixed = type(served)(
        [first, type(second)(second.provider, catalog([{**one, "tokenizer": "b"}]).find("e")[0].model, second.price)]
    )
    with pytest.raises(InvalidRequest):
        embedding_parameters.parse(incoming(PATH, body, served=mixed))


def test_model_may_be_left_out() -> None:
    assert parse(model=None).body["model"] == "embeds"
    assert parse(model="").model == "embeds"
    named = Settings(inference=InferenceSettings(default_embedding_model="embeds-ids"))
    request = parse(named, model=None)
    assert (request.model, request.body["model"]) == ("embeds-ids", "embeds-ids")
    served = catalog([model("chats", capabilities=["chat"])])
    with pytest.raises(InvalidRequest) as caught:
        embedding_parameters.parse(incoming(PATH, {"input": "x"}, served=served))
    assert caught.value.param == "model"


def test_model_that_cannot_embed_is_refused() -> None:
    assert refused(model="m").code == "model_not_capable"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dimensions", 0),
        ("dimensions", 65_537),
        ("dimensions", "256"),
        ("encoding_format", "int8"),
        ("encoding_format", 1),
        ("user", 1),
        ("model", 1),
    ],
)
def test_parameter_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    assert refused(**{name: value}).param == name


@pytest.mark.parametrize(
    ("name", "value"), [("n", 2), ("stream", True), ("models", ["a"]), ("service_tier", "flex"), ("n", True)]
)
def test_parameter_that_costs_more_is_refused_by_name(name: str, value: Any) -> None:
    error = refused(**{name: value})
    assert (error.param, error.code) == (name, "unsupported_parameter")


def test_request_is_one_of_embeddings() -> None:
    request = parse(dimensions=256, encoding_format="base64", user="u", n=1, stream=False, timeout_ms=100)
    assert (request.endpoint, request.path, request.stream) == (EMBEDDINGS, PATH, False)
    sent = {"model": "embeds", "input": "The food was delicious.", "dimensions": 256, "encoding_format": "base64"}
    assert request.body == {**sent, "user": "u"}
    assert request.shape == EmbeddingsShape(encoding="base64")
    assert parse().shape == EmbeddingsShape(encoding="float")


def test_what_may_be_put_before_every_text_counts_for_every_text() -> None:
    assert parse(input=["a", "b"], instruction="xyz").size.text_bytes == 2 + 2 * len('"xyz"')


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**31) | st.floats(-3, 3) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*CHECKS, *NOT_OFFERED, "other"]), values, max_size=6))
def test_any_object_is_a_request_or_a_refusal_that_names_a_parameter(body: dict[str, Any]) -> None:
    try:
        request = embedding_parameters.parse(incoming(PATH, {"model": "embeds-ids", "input": "x", **body}))
    except (InvalidRequest, NotFound) as error:
        named = error.param
    else:
        named = "nothing"
        assert orjson.dumps(request.body)
        assert request.size.text_bytes + request.size.token_ids > 0
    assert named
