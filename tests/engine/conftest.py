from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import tiny_models
import torch

from doorstep.engine.local import LocalEngine
from doorstep.engine.native.runtime import NativeRuntime

torch.set_num_threads(1)


@pytest.fixture(scope="session", params=["qwen3", "llama"])
def model(request):
    return getattr(tiny_models, request.param)()


@pytest.fixture(scope="session")
def folder(model, tmp_path_factory) -> Path:
    return tiny_models.write(model, tmp_path_factory.mktemp("model"))


@pytest.fixture
async def engine(folder) -> AsyncIterator[LocalEngine]:
    engine = await LocalEngine.start(folder, "random")
    yield engine
    await engine.close()


@pytest.fixture(scope="session")
def runtime(folder) -> NativeRuntime:
    return NativeRuntime(folder, "random", torch.device("cpu"))
