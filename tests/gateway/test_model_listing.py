"""``/v1/models`` under the SDKs of both formats."""

import anthropic
import openai
import pytest
from gateway_parts import serving, settings_for

from doorstep.config import ModelSettings, ProviderSettings

NAMES = ["fast", "fake/echo", "fake/slow"]


@pytest.fixture
def listing_address(data):
    providers = {"fake": ProviderSettings(base_url="fake:")}
    models = {"fast": ModelSettings(targets=["fake/echo"], fallback=["fake/slow"])}
    with serving(settings_for(data, model=None, providers=providers, models=models)) as url:
        yield url


def test_openais_client_lists_what_the_settings_name(listing_address):
    with openai.OpenAI(base_url=f"{listing_address}/v1", api_key="any") as client:
        assert [model.id for model in client.models.list()] == NAMES
        assert client.models.retrieve("fake/anything").owned_by == "fake"
        with pytest.raises(openai.NotFoundError, match="There is: fast"):
            client.models.retrieve("nowhere/m")


def test_anthropics_client_lists_them_too(listing_address):
    with anthropic.Anthropic(base_url=listing_address, api_key="any") as client:
        assert [model.id for model in client.models.list()] == NAMES
        assert client.models.retrieve("fast").display_name == "fast"
