import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from scripted_engine import ScriptedEngine
from training_door import KEY, Door, application, connected, serving

from doorstep.training.service import Service

os.environ["TINKER_TELEMETRY"] = "0"


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    engine = ScriptedEngine(str(tmp_path))
    service = await Service.start(engine, tmp_path)
    transport = httpx.ASGITransport(application(service))
    headers = {"X-API-Key": KEY}
    async with httpx.AsyncClient(transport=transport, base_url="http://door/api/v1", headers=headers) as http:
        yield Door(service, engine, http)
    engine.gate.set()
    await service.close()


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with serving(tmp_path, lambda: ScriptedEngine(str(tmp_path))) as url:
        yield url


@pytest.fixture
def service(address: str) -> Iterator[Any]:
    with connected(address) as client:
        yield client
