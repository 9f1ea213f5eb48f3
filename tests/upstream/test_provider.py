"""What every adapter is: the protocol that the rest of the program relies on."""

import pytest

from app.endpoints import ENDPOINTS
from app.settings import InferenceSettings, ProviderSettings
from app.upstream.anthropic import AnthropicProvider
from app.upstream.cohere import CohereProvider
from app.upstream.openai import OpenAIProvider
from app.upstream.provider import Provider, UpstreamError
from app.upstream.sandbox import SandboxProvider

SETTINGS = ProviderSettings(name="upstream", base_url="http://127.0.0.1:9/v1", kind="quota", engine_type="engine")
INFERENCE = InferenceSettings()


async def test_every_adapter_is_a_provider_and_says_what_it_speaks() -> None:
    # That this type-checks is half of the test.
    adapters: list[Provider] = [
        OpenAIProvider(SETTINGS, INFERENCE),
        AnthropicProvider(SETTINGS, INFERENCE),
        CohereProvider(SETTINGS, INFERENCE),
        SandboxProvider(SETTINGS),
    ]
    names = {endpoint.name for endpoint in ENDPOINTS}
    for adapter in adapters:
        assert (adapter.name, adapter.kind) == ("upstream", "quota")
        assert (adapter.engine_type, adapter.machine_name) == ("engine", "upstream")
        assert adapter.endpoints
        assert adapter.endpoints <= names
        await adapter.close()


@pytest.mark.parametrize("callers_fault", [False, True])
def test_failure_says_what_the_attempts_row_and_the_client_are_told(callers_fault: bool) -> None:
    error = UpstreamError("rejected", "words", status=400, fail_over=False, callers_fault=callers_fault)
    assert (error.result, error.message, str(error)) == ("rejected", "words", "words")
    assert (error.status, error.fail_over, error.callers_fault, error.retry_after_s) == (
        400,
        False,
        callers_fault,
        None,
    )
