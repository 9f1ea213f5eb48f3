"""The parameters of a plain completion: every prompt is priced, and nothing multiplies unseen."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.admission import PaidRequest
from app.api import completion_parameters
from app.api.completion_parameters import CHECKS, NOT_OFFERED, OURS
from app.endpoints import COMPLETIONS
from app.errors import InvalidRequest, NotFound
from app.settings import InferenceSettings, Settings
from tests.api.paid_models import SETTINGS, incoming

PATH = "/v1/completions"
ACCEPTED: dict[str, list[Any]] = {
    "max_tokens": [1, 4096],
    "temperature": [0, 2, 0.01],
    "top_p": [0, 1, 0.9],
    "n": [1, 16],
    "stop": ["END", ["\n"]],
    "presence_penalty": [-2, 2],
    "frequency_penalty": [-2, 2],
    "logit_bias": [{}, {"50256": -100}],
    "user": ["user-123"],
    "seed": [7],
    "suffix": ["", "the end"],
    "logprobs": [0, 5, 20],
    "something_new": [{"a": 1}],
}
WRONG: dict[str, list[Any]] = {
    "prompt": [1, {}, [], True, ["a"] * 17, ["a", 1], ["a", None], [{}]],
    "max_tokens": [0, "1", 1.5],
    "temperature": [-1, 3],
    "top_p": [2],
    "n": [0, 17, "1"],
    "stop": [1, ["a"] * 5],
    "suffix": [1, ["a"]],
    "logprobs": [True, -1, 21, 1.5],
    "best_of": [0, 17, "1", True],
    "stream": ["yes"],
    "user": [1],
    "routing_strategy": ["dearest"],
}
REFUSED_CASES: dict[str, list[Any]] = {
    "echo": [True, 1, "true"],
    "best_of": [2],
    "service_tier": ["flex"],
    "models": [["a"]],
    "n_predict": [100_000],
    "max_new_tokens": [100_000],
    "n_cmpl": [8],
    "use_beam_search": [True],
    "options": [{"num_predict": 100_000}],
    "web_search": [True],
    "web_search_options": [{}],
}


def parse(settings: Settings = SETTINGS, /, **parameters: Any) -> PaidRequest:
    body = {"model": "completes", "prompt": "Say this is a test", **parameters}
    return completion_parameters.parse(incoming(PATH, body, settings=settings))


def refused(**parameters: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(**parameters)
    assert caught.value.param is not None
    return caught.value


def pairs(table: dict[str, list[Any]]) -> list[tuple[str, Any]]:
    return [(name, value) for name, listed in table.items() for value in listed]


@pytest.mark.parametrize(("name", "value"), pairs(ACCEPTED))
def test_parameter_in_range_goes_upstream_as_it_is(name: str, value: Any) -> None:
    assert parse(**{name: value}).body[name] == value


@pytest.mark.parametrize(("name", "value"), pairs(WRONG))
def test_parameter_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    error = refused(**{name: value})
    assert error.param is not None
    assert (error.param.split("[")[0], error.code) == (name, "invalid_parameter")


@pytest.mark.parametrize(("name", "value"), pairs(REFUSED_CASES))
def test_parameter_that_costs_more_is_refused_by_name(name: str, value: Any) -> None:
    error = refused(**{name: value})
    assert (error.param, error.code) == (name, "unsupported_parameter")


@pytest.mark.parametrize("name", ["model", "prompt"])
def test_model_and_prompt_are_required(name: str) -> None:
    error = refused(**{name: None})
    assert (error.param, error.code) == (name, "missing_parameter")


def test_request_is_one_of_completions() -> None:
    request = parse(max_tokens=9, timeout_ms=500, routing_strategy="cheapest", echo=False, best_of=1, top_p=-1)
    assert (request.endpoint, request.path, request.model) == (COMPLETIONS, PATH, "completes")
    assert request.body == {"model": "completes", "prompt": "Say this is a test", "max_tokens": 9}
    assert (request.output_limit, request.output_limit_param, request.stream) == (9, "max_tokens", False)
    assert (request.first_byte_timeout_s, request.wishes.strategy) == (0.5, "cheapest")


def test_stream_and_its_options() -> None:
    streaming = Settings(inference=InferenceSettings(stream_default=True))
    assert parse(streaming).stream is True
    assert parse(stream=True, stream_options={"include_usage": True}).include_usage is True
    assert refused(stream_options={"include_usage": True}).param == "stream_options"


@pytest.mark.parametrize(
    ("prompt", "n", "choices", "size"),
    [
        ("fare", 1, 1, (4, 1, 0, 1)),
        ("é", 2, 2, (2, 1, 0, 1)),
        ("", 1, 1, (0, 1, 0, 1)),
        (["fare", "é"], 1, 2, (6, 2, 0, 2)),
        (["fare", "é"], 8, 16, (6, 2, 0, 2)),
        (["a"] * 16, 1, 16, (16, 16, 0, 16)),
    ],
)
def test_every_prompt_is_counted_and_answered_n_times(prompt: Any, n: int, choices: int, size: tuple[int, ...]) -> None:
    request = parse(prompt=prompt, n=n)
    found = request.size
    assert request.choices == choices
    assert (found.text_bytes, found.messages, found.token_ids, found.prompts) == size


def test_more_answers_than_can_be_priced_are_refused() -> None:
    assert refused(prompt=["a", "b"], n=9).param == "n"


def test_what_stands_beside_the_prompts_is_part_of_each() -> None:
    assert parse(prompt=["a", "b"], suffix="end", template="x").size.text_bytes == 2 + 2 * (3 + len('"x"'))


def test_answers_that_are_thrown_away_are_refused() -> None:
    assert "best_of" not in parse(n=3, best_of=3).body
    assert parse(n=3, best_of=1).choices == 3
    assert refused(n=2, best_of=3).param == "best_of"


@pytest.mark.parametrize(
    ("prompt", "tokens"), [([1, 2, 3], (3, 1)), ([[1], [2, 3], "abc"], (3, 3)), ([0] * 40, (40, 1))]
)
def test_token_ids_are_taken_where_the_model_says_its_tokenizer(prompt: Any, tokens: tuple[int, int]) -> None:
    size = parse(model="completes-ids", prompt=prompt).size
    assert (size.token_ids, size.prompts) == tokens
    assert refused(prompt=prompt).param in {"prompt", "prompt[0]"}


@pytest.mark.parametrize("prompt", [[1, "a"], [1, -1], [1, 2**31], [[]], [[1.5]], [[True]], [1, True], [1, [2]]])
def test_token_ids_that_are_none_are_refused(prompt: Any) -> None:
    param = refused(model="completes-ids", prompt=prompt).param
    assert str(param).startswith("prompt")


def test_model_that_cannot_complete_is_refused() -> None:
    assert refused(model="m").code == "model_not_capable"


values = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 2**31) | st.floats(-3, 3) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from([*CHECKS, *NOT_OFFERED, "other"]), values, max_size=6))
def test_any_object_is_a_request_or_a_refusal_that_names_a_parameter(body: dict[str, Any]) -> None:
    sent = {"model": "completes-ids", "prompt": "x", **body}
    try:
        request = completion_parameters.parse(incoming(PATH, sent))
    except (InvalidRequest, NotFound) as error:
        named = error.param
    else:
        named = "nothing"
        assert orjson.dumps(request.body)
        assert not set(request.body) & set(OURS)
        assert request.choices == request.body.get("n", 1) * request.size.prompts
    assert named
