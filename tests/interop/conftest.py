"""What interop tests share: one server of every endpoint for all SDKs that pay by key."""

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from openai import AsyncOpenAI, OpenAI

from tests.interop.every_endpoint import every_endpoint
from tests.serving import FareboxServer, Payer


@pytest.fixture(scope="session")
def endpoints(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FareboxServer]:
    """A server of every endpoint; each test has payers of its own."""
    folder = tmp_path_factory.mktemp("endpoints")
    with every_endpoint(folder, f"sqlite:///{shutil.copy(sqlite_template, folder / 'farebox.db')}") as server:
        yield server


@pytest.fixture
def customer(endpoints: FareboxServer) -> Iterator[Payer]:
    """A payer whose requests are over, and the books proven, at the end."""
    payer = endpoints.payer()
    yield payer
    endpoints.wait_settled(payer)
    endpoints.assert_green()


@pytest.fixture
def client(endpoints: FareboxServer, customer: Payer) -> Iterator[OpenAI]:
    """OpenAI's SDK."""
    with OpenAI(base_url=f"{endpoints.url}/v1", api_key=customer.key, max_retries=0) as client:
        yield client


@pytest.fixture
async def async_client(endpoints: FareboxServer, customer: Payer) -> AsyncIterator[AsyncOpenAI]:
    """OpenAI's SDK, awaited."""
    async with AsyncOpenAI(base_url=f"{endpoints.url}/v1", api_key=customer.key, max_retries=0) as client:
        yield client
