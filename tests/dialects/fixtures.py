"""The fixture ``dialects``; a test module or conftest imports it from here."""

from collections.abc import Iterator

import pytest

from tests.dialects.server import DialectServer


@pytest.fixture
def dialects() -> Iterator[DialectServer]:
    """A fresh dialect server, in its own thread, so that tests and child processes can call it."""
    with DialectServer() as server:
        yield server
