"""Two gateways: the fake provider answers at the back, and the front speaks to the back in each dialect of chat.

So every SDK talks to models of its own dialect, whose bytes pass, and of the others, whose words are translated.
"""

from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest
from gateway_parts import TellingEngine, serving, settings_for

from doorstep.config import ModelSettings, ProviderSettings, TrafficSettings

# How the front reaches the model that answers, by what the model's service speaks.
WAYS = {
    "itself": "fake/",
    "chat": "chat/fake/",
    "responses": "gpt/fake/",
    "anthropic": "claude/fake/",
}
TOLD = "hello world"  # what the local model says
AT_ONCE = TrafficSettings(retries=0, backoff_s=0.01)


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("compat")
    engine = TellingEngine(folder / "model", TOLD)
    fake = {"fake": ProviderSettings(base_url="fake:")}
    with serving(settings_for(folder / "back", model=None, providers=fake, traffic=AT_ONCE)) as back:
        providers = fake | {
            "chat": ProviderSettings(base_url=f"{back}/v1", speaks=["openai.chat"]),
            "gpt": ProviderSettings(base_url=f"{back}/v1", kind="openai", speaks=["openai.responses"]),
            "claude": ProviderSettings(base_url=f"{back}/v1", kind="anthropic"),
            "openai": ProviderSettings(base_url=f"{back}/v1", kind="openai"),
            "unsteady": ProviderSettings(base_url="fake:"),
        }
        models = {"patient": ModelSettings(targets=["fake/flaky"], retries=2)}
        settings = settings_for(folder / "front", providers=providers, models=models, traffic=AT_ONCE)
        with serving(settings, engine) as front:
            yield front


@pytest.fixture(scope="session")
def gpt(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/v1", api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture(scope="session")
def claude(address: str) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=address, api_key="any", max_retries=0) as made:
        yield made


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """The beginning of a model's name; the script of the fake provider comes after it."""
    found: Any = WAYS[request.param]
    return str(found)
