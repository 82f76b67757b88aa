"""The service behind a door for tests: in this process by its addresses, or on a port for the real SDK."""

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from scripted_engine import ScriptedEngine
from starlette.applications import Starlette
from starlette.routing import Mount

from doorstep.config import TrainingSettings
from doorstep.training.app import routes
from doorstep.training.service import Service

KEY = "tml-test"
PATIENCE_S = 60  # what takes longer hangs, however busy the machine is


def application(service: Service) -> Starlette:
    return Starlette(routes=[Mount("/api/v1", routes=routes(service))])


class Door:
    """The service by its addresses, without a network. ``post`` and ``get`` return JSON and check the status."""

    def __init__(self, service: Service, engine: ScriptedEngine, http: httpx.AsyncClient) -> None:
        self.service, self.engine, self.http = service, engine, http

    async def post(self, path: str, status: int = 200, /, **fields: Any) -> Any:
        answer = await self.http.post(path, json=fields)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else None

    async def send(self, body: bytes) -> Any:
        answer = await self.http.post("/forward_backward", content=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["request_id"]

    async def fetch(self, request_id: str) -> httpx.Response:
        return await self.http.post("/retrieve_future", json={"request_id": request_id})

    async def session(self) -> str:
        return (await self.post("/create_session", sdk_version="0.38.0", tags=[]))["session_id"]

    async def model(self, session: str | None = None, number: int = 0, **fields: Any) -> str:
        session = session or await self.session()
        made = await self.post("/create_model", session_id=session, model_seq_id=number, base_model="tiny", **fields)
        return (await self.fetch(made["request_id"])).json()["model_id"]


@contextmanager
def serving(
    data: Path,
    make_engine: Callable[[], Any],
    make_app: Callable[[Service], Any] = application,
    settings: TrainingSettings | None = None,
) -> Iterator[str]:
    """Serve on a free port of 127.0.0.1 in a thread of its own; give the address."""
    server = uvicorn.Server(uvicorn.Config("", port=0, log_level="warning", timeout_graceful_shutdown=1))
    started = threading.Event()

    async def main() -> None:
        service = await Service.start(make_engine(), data, settings=settings or TrainingSettings())
        server.config.app = make_app(service)
        server.config.load()
        server.lifespan = server.config.lifespan_class(server.config)
        await server.startup()
        started.set()
        await server.main_loop()
        await service.close()
        await server.shutdown()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    assert started.wait(PATIENCE_S)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def connected(url: str) -> Iterator[Any]:
    """Give a real SDK client, closed at the end."""
    import tinker

    client = tinker.ServiceClient(base_url=url, api_key=KEY)
    try:
        yield client
    finally:
        client.close("success").result(PATIENCE_S)
        gc.collect()  # the SDK leaves a connection open, which complains here, where the tests expect it
