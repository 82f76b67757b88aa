from collections.abc import Iterator
from pathlib import Path

import openai
import pytest
from gateway_parts import TellingEngine, serving, settings_for

from doorstep.config import ProviderSettings


@pytest.fixture
def engine(tmp_path: Path) -> TellingEngine:
    return TellingEngine(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def address(data: Path, engine: TellingEngine) -> Iterator[str]:
    settings = settings_for(data, providers={"fake": ProviderSettings(base_url="fake:")})
    with serving(settings, engine) as url:
        yield url


@pytest.fixture
def client(address: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{address}/runs/run_1/v1", api_key="any", max_retries=0) as made:
        yield made
