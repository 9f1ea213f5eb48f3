import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.upstream.provider import MESSAGE_CHARACTERS_MAX, safe_message
from tests.dialects import answers

KEY_CHARACTERS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=16, max_size=64)


@pytest.mark.parametrize("message", answers.STATUS_MESSAGES.values())
def test_words_of_the_operators_account_are_removed(message: str) -> None:
    said = safe_message(message)
    for secret in (answers.SECRET_KEY, answers.SECRET_ACCOUNT, answers.SECRET_URL, "platform.upstream.example"):
        assert secret not in said


@given(prefix=st.sampled_from(["sk-", "sk-proj-", "pk_", "org-", "key-", "Bearer "]), key=KEY_CHARACTERS)
def test_keys_are_removed_wherever_they_stand(prefix: str, key: str) -> None:
    said = safe_message(f"Incorrect API key provided: {prefix}{key}. Try again.")
    assert key not in said
    assert said.startswith("Incorrect API key provided: ")


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("see https://internal.example/x?key=1 for more", "internal.example"),
        ("see http://10.0.0.7:8000/v1", "10.0.0.7"),
        ("connect to 10.1.2.3:9000 failed", "10.1.2.3"),
        ("over wss://socket.example/a", "socket.example"),
        ("token " + "A1b2" * 12, "A1b2" * 12),
    ],
)
def test_addresses_and_long_tokens_are_removed(text: str, hidden: str) -> None:
    assert hidden not in safe_message(text)
    assert "[removed]" in safe_message(text)


def test_ordinary_words_stay() -> None:
    message = "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but got 3 instead."
    assert safe_message(message) == message


@given(st.text())
def test_what_is_said_is_bounded_and_one_printable_line(text: str) -> None:
    said = safe_message(text * 50)
    assert len(said) <= MESSAGE_CHARACTERS_MAX
    assert said.isprintable()


@pytest.mark.parametrize("nothing", [None, 7, {"message": "x"}, ["x"], b"x"])
def test_what_is_no_text_is_not_said(nothing: object) -> None:
    assert safe_message(nothing) == "the provider gave no reason"
