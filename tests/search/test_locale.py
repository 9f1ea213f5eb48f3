"""Languages and countries as requests say them, and as each backend wants them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.search.locale import (
    BRAVE_COUNTRIES,
    BRAVE_LANGUAGES,
    brave_country,
    brave_language,
    preferred,
    searxng_language,
)


@pytest.mark.parametrize(
    ("header", "first"),
    [
        ("de", ("de", None)),
        ("de-at,en", ("de", "AT")),
        ("en;q=0.5, fr-CA;q=0.9", ("fr", "CA")),
        ("*, DE;q=0.2", ("de", None)),
        ("zh-Hant-TW", ("zh", "TW")),
        ("zh-Hant", ("zh", "HANT")),
        ("en;q=0", None),
        ("!!, 12", None),
        ("", None),
        (None, None),
    ],
)
def test_first_choice_of_an_accept_language(header: str | None, first: tuple[str, str | None] | None) -> None:
    assert preferred(header) == first


@pytest.mark.parametrize(
    ("header", "country", "sent"),
    [
        ("de", None, "de"),
        ("de-CH", None, "de-CH"),
        ("de-CH", "AT", "de-AT"),
        ("en", "DE", "en-DE"),
        (None, "DE", "de-DE"),
        (None, "AQ", None),
        (None, None, None),
        ("zh-Hant", None, "zh"),
    ],
)
def test_searxng_takes_a_language_with_a_region(header: str | None, country: str | None, sent: str | None) -> None:
    assert searxng_language(header, country) == sent


@pytest.mark.parametrize(
    ("header", "country", "sent"),
    [
        *(
            ("ja", None, "jp"),
            ("no", None, "nb"),
            ("pt", "PT", "pt-pt"),
            ("pt", None, "pt-br"),
            ("pt-PT", "BR", "pt-pt"),
        ),
        *(("en-GB", None, "en-gb"), ("en", "GB", "en-gb"), ("en-US", "GB", "en"), ("zh", "HK", "zh-hant")),
        *(("zh-CN", None, "zh-hans"), ("zh-Hant", None, "zh-hant"), ("tlh", None, None), (None, "DE", None)),
    ],
)
def test_brave_has_names_of_its_own(header: str | None, country: str | None, sent: str | None) -> None:
    assert brave_language(header, country) == sent


def test_brave_is_asked_for_every_country_where_it_does_not_know_one() -> None:
    assert [brave_country(country) for country in ("DE", "AQ", None)] == ["DE", "ALL", "ALL"]


@given(st.text(max_size=60), st.one_of(st.none(), st.text(max_size=3)))
def test_nothing_that_a_backend_would_refuse_is_sent(header: str, country: str | None) -> None:
    import re

    sent = searxng_language(header, country)
    assert sent is None or re.fullmatch(r"[a-z]{2,3}(-[A-Z]{2})?", sent)
    assert brave_language(header, country) in {None, *BRAVE_LANGUAGES}
    assert brave_country(country) in {"ALL", *BRAVE_COUNTRIES}
