"""A server of video jobs for tests, and services that make videos, each by real HTTP on a free port."""

import base64
import json
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from doorstep.gateway.capture import Capture
from doorstep.gateway.dialects.base import Head
from doorstep.gateway.keys import Caller, Keys
from doorstep.gateway.limits import Estimate, Reservation
from doorstep.gateway.media.artefacts import Artefacts
from doorstep.gateway.media.drivers import VideoDriver
from doorstep.gateway.media.fake import mp4
from doorstep.gateway.media.jobs import Videos
from doorstep.gateway.media.routes import routes
from doorstep.store import Store


class Ledger:
    """A desk that admits all and keeps what it is given in lists."""

    def __init__(self) -> None:
        self.kept: list[Capture] = []
        self.admitted: list[tuple[str, Head]] = []
        self.reserved: list[Reservation] = []

    def admit(self, caller: Caller, name: str, head: Head, size: int) -> tuple[str, str, Reservation]:
        provider, _, model = name.partition("/")
        self.admitted.append((name, head))
        self.reserved.append(Reservation(Estimate(0, 0), ()))
        return provider, model, self.reserved[-1]

    def keep(self, capture: Capture, reservation: Reservation | None) -> None:
        self.kept.append(capture)


@contextmanager
def listening(app: Starlette) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run)
    thread.start()
    pause = threading.Event()
    while not server.started:
        assert thread.is_alive()
        pause.wait(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def video_door(data: Path, drivers: Mapping[str, VideoDriver], desk: Ledger | None = None) -> Iterator[str]:
    """Serve the video jobs of a data folder."""
    with Store.open(data / "doorstep.db") as store:
        videos = Videos(store, Artefacts(data), drivers, desk or Ledger(), poll_s=0.02)

        @asynccontextmanager
        async def lifespan(_app: Starlette) -> AsyncIterator[None]:
            await videos.start()
            yield
            await videos.close()

        with listening(Starlette(routes=routes(videos, Keys(data).who), lifespan=lifespan)) as url:
            yield url


class Service:
    """What a hosted service of videos was asked, and its answers: documented bodies of OpenRouter and of Veo."""

    def __init__(self) -> None:
        self.orders: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.polls: list[Response] = []  # given before the answer that it is done
        self.refusal: Response | None = None
        self.url = ""
        self.app = Starlette(
            routes=[
                Route("/api/v1/videos", self._order_openrouter, methods=["POST"]),
                Route("/api/v1/videos/job-abc", self._poll_openrouter),
                Route("/api/v1/videos/job-abc/content", self._file),
                Route("/v1beta/models/{model}:predictLongRunning", self._order_veo, methods=["POST"]),
                Route("/v1beta/models/veo-3.1/operations/op1", self._poll_veo),
                Route("/v1beta/files/f1:download", self._elsewhere),
                Route("/elsewhere/f1", self._file),
            ]
        )

    async def _taken(self, request: Request, answer: dict[str, Any]) -> Response:
        self.orders.append(json.loads(await request.body()))
        self._note(request)
        return self.refusal or JSONResponse(answer)

    def _note(self, request: Request) -> None:
        self.keys.append(request.headers.get("authorization") or request.headers.get("x-goog-api-key"))

    async def _order_openrouter(self, request: Request) -> Response:
        answer = {"id": "job-abc", "polling_url": "/api/v1/videos/job-abc", "status": "pending"}
        return await self._taken(request, answer)

    async def _poll_openrouter(self, request: Request) -> Response:
        done = {"id": "job-abc", "status": "completed", "usage": {"cost": 0.5}, "unsigned_urls": []}
        return self.polls.pop(0) if self.polls else JSONResponse(done)

    async def _order_veo(self, request: Request) -> Response:
        return await self._taken(request, {"name": "models/veo-3.1/operations/op1"})

    async def _poll_veo(self, request: Request) -> Response:
        if self.polls:
            return self.polls.pop(0)
        uri = f"{self.url}/v1beta/files/f1:download?alt=media"
        sample = {"video": {"uri": uri, "encoding": "video/mp4"}}
        response = {"@type": "type.googleapis.com/…", "generateVideoResponse": {"generatedSamples": [sample]}}
        return JSONResponse({"name": "models/veo-3.1/operations/op1", "done": True, "response": response})

    async def _elsewhere(self, request: Request) -> Response:
        self._note(request)
        return RedirectResponse("/elsewhere/f1", 302)

    async def _file(self, request: Request) -> Response:
        self._note(request)
        return Response(mp4(8), media_type="video/mp4")


def picture() -> str:
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG").decode()
