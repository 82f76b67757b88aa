"""The server: the only place that wires the parts together, as one ASGI application.

Parts start in the order store, engine, training service, recorder, gateway, and stop in reverse.
"""

import asyncio
import ipaddress
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route

from doorstep import __version__
from doorstep.config import ProviderSettings, Settings
from doorstep.engine.api import Engine, ModelInfo
from doorstep.errors import EngineError, UsageError
from doorstep.gateway import description
from doorstep.gateway.admin import Administration
from doorstep.gateway.app import routes as gateway_routes
from doorstep.gateway.cache import Cache
from doorstep.gateway.exposition import routes as metrics_routes
from doorstep.gateway.fastlane import FastLane
from doorstep.gateway.feedback import routes as feedback_routes
from doorstep.gateway.gateway import Gateway
from doorstep.gateway.keys import Keys
from doorstep.gateway.limits import Limits
from doorstep.gateway.media.artefacts import Artefacts
from doorstep.gateway.media.jobs import Videos
from doorstep.gateway.media.routes import routes as video_routes
from doorstep.gateway.media.wiring import GatewayDesk, drivers
from doorstep.gateway.models import Models
from doorstep.gateway.providers import fake
from doorstep.gateway.providers.any_llm import any_llm_provider
from doorstep.gateway.providers.base import Provider
from doorstep.gateway.providers.engine import EngineProvider
from doorstep.gateway.providers.http import http_provider
from doorstep.gateway.recorder import Recorder
from doorstep.gateway.telemetry.export import Export
from doorstep.gateway.telemetry.figures import Figures
from doorstep.gateway.telemetry.intake import routes as trace_routes
from doorstep.gateway.usage import Meter
from doorstep.http_client import Client
from doorstep.hub import model_folder
from doorstep.routing.routes import RouteTable
from doorstep.store import Store
from doorstep.training.app import routes as training_routes
from doorstep.training.metrics import families
from doorstep.training.registry import LOCAL
from doorstep.training.service import Service
from doorstep.training.steps import Operation
from doorstep.value.prices import PriceBook

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from doorstep.renderers.chat import ChatRenderer

ENGINE_LOG = "engine.log"
BACKLOG = 4096  # connections that wait to be taken
LEFT_S = 10.0  # in which a killed server's last calls come into the record, before budgets are read from it


class ServedEngine(Engine, Protocol):
    """An engine that says what CPU time it has used, and when it has lost all that it held."""

    on_loss: list[Callable[[], None]]

    async def cpu_seconds(self) -> float: ...  # noqa: D102


StartEngine = Callable[[Settings], Awaitable[ServedEngine]]


async def start_remote(settings: Settings) -> ServedEngine:
    """Start the engine as a process of its own."""
    from doorstep.engine.remote import RemoteEngine

    name = settings.serve.model or ""
    return await RemoteEngine.start(
        folder=model_folder(name),
        name=_base_name(name),
        threads=settings.serve.threads,
        log=settings.data / ENGINE_LOG,
        device=settings.serve.device,
        nf4=settings.serve.quantise == "nf4",
    )


def create_app(
    settings: Settings, url: str, start_engine: StartEngine | None = None, own_key: str | None = None
) -> Starlette:
    """Return the application; its parts start with its lifespan. ``url`` is where it will be reached.

    ``UsageError`` now, not at the start, for what cannot work. ``start_engine`` is for engines of another kind;
    ``own_key`` is accepted beside the keys that people made.
    """
    if settings.serve.model and start_engine is None:
        model_folder(settings.serve.model)
    keys = Keys(settings.data, own_key, open_to_local=_is_loopback(settings.serve.host))
    if not _is_loopback(settings.serve.host) and not keys.all():
        raise UsageError(
            f"{settings.serve.host} can be reached from other machines, so callers need a key, and there is none. "
            "Make one: doorstep keys create"
        )
    return Starlette(lifespan=lambda app: _lifespan(app, settings, url, keys, start_engine or start_remote))


def uvicorn_config(app: Starlette, **options: Any) -> uvicorn.Config:
    """Return how uvicorn is to serve the application: model calls by the fast lane, on uvloop."""
    return uvicorn.Config(
        app, http=FastLane, ws="none", loop="uvloop", lifespan="on", backlog=BACKLOG, log_level="warning", **options
    )


@asynccontextmanager
async def _lifespan(
    app: Starlette, settings: Settings, url: str, keys: Keys, start_engine: StartEngine
) -> AsyncIterator[dict[str, Any]]:
    async with AsyncExitStack() as stack:
        store = await asyncio.to_thread(Store.open, settings.record)
        stack.push_async_callback(asyncio.to_thread, store.close)
        local = await _local(settings, keys, start_engine, stack) if settings.serve.model else None
        client = Client()
        stack.push_async_callback(client.close)
        if settings.telemetry.otlp:
            export = await asyncio.to_thread(Export, settings, store)
            stack.push_async_callback(asyncio.to_thread, export.close)  # after the recorder, which completes the record
            if local:
                _export_training(settings.telemetry.otlp, local.service, stack)
        gateway = await _gateway(settings, keys, store, local, client, stack)
        videos = Videos(store, Artefacts(settings.data), drivers(settings.providers, client), GatewayDesk(gateway))
        meter = await asyncio.to_thread(Meter, store)
        await videos.start()
        stack.push_async_callback(videos.close)
        app.router.routes += [
            *([Mount("/api/v1", routes=training_routes(local.service))] if local else []),
            *Administration(keys, settings.data, store).routes(),
            *description.routes(),
            *_own_routes(settings, url, local, gateway),
            *metrics_routes(gateway, meter, partial(families, local.service) if local else tuple),
            *video_routes(videos, keys.who),
            *feedback_routes(store, gateway.recorder, keys.who),
            *trace_routes(store, keys),
            *gateway_routes(gateway),
        ]
        yield {"gateway": gateway}


async def _gateway(
    settings: Settings, keys: Keys, store: Store, local: "Local | None", client: Client, stack: AsyncExitStack
) -> Gateway:
    recorder = await asyncio.to_thread(Recorder, settings.record, settings.data, settings.prices)
    stack.push_async_callback(asyncio.to_thread, recorder.close)
    models = Models(
        local.provider if local else None,
        local.names if local else (),
        _hosted(settings, client),
        RouteTable(store),
        settings.models,
        settings.traffic,
    )
    stack.push_async_callback(models.close)
    if not await asyncio.to_thread(recorder.await_left, LEFT_S):
        log.warning("budgets do not count yet what was left to record by a server that was killed")
    limits = Limits(settings.limits, settings.workflows)
    await asyncio.to_thread(limits.restore, store, {key.key_id: key.workflow for key in keys.all()})
    stack.callback(asyncio.create_task(limits.follow(store)).cancel)
    return Gateway(
        models=models,
        recorder=recorder,
        keys=keys,
        limits=limits,
        cache=Cache(settings.cache),
        rates=PriceBook(settings.prices).rates,
    )


class Local:
    """The local model and what works on it."""

    def __init__(self, settings: Settings, engine: ServedEngine, info: ModelInfo, service: Service) -> None:
        self.engine = engine
        self.info = info
        self.service = service
        self.names = (info.name, settings.serve.model or info.name)  # commands use the name in the settings
        renderer = _renderer(Path(info.folder))
        self.provider: Provider = EngineProvider(engine, info, renderer, self.adapter_for, self.cpu_seconds)

    async def adapter_for(self, path: str, key_id: str | None) -> str:
        """Have the engine hold a checkpoint that a key may see; None: the operator chose it, for whoever calls."""
        return await self.service.adapter_for(path, None if key_id is None else key_id or LOCAL)

    async def cpu_seconds(self) -> float:
        """Return the CPU time that this process and the engine have used."""
        return time.process_time() + await self.engine.cpu_seconds()


def _renderer(folder: Path) -> "ChatRenderer":
    """Return the renderer of a local model; a gateway alone is spared its template engine, which takes 6 MB."""
    from doorstep.renderers.chat import ChatRenderer

    return ChatRenderer(folder)


async def _local(settings: Settings, keys: Keys, start_engine: StartEngine, stack: AsyncExitStack) -> Local:
    engine = await start_engine(settings)
    stack.push_async_callback(engine.close)
    service = await Service.start(engine, settings.data, _authenticate(keys), settings.training)
    stack.push_async_callback(service.close)
    engine.on_loss.append(service.forget)
    return Local(settings, engine, await engine.info(), service)


def _export_training(collector: str, service: Service, stack: AsyncExitStack) -> None:
    """Send what the training service counts and does, each session as a trace, until the end."""
    figures = Figures(collector, partial(families, service))

    def heard(of: str, operation: Operation) -> None:
        begin_us = operation.at_us - int(operation.seconds * 1e6)
        attributes = {"doorstep.training.of": of, "doorstep.queued_s": operation.queued_s, **operation.metrics}
        figures.add(of.partition(":")[0], operation.kind, begin_us, operation.at_us, attributes)

    service.steps.listeners.append(heard)
    stack.push_async_callback(asyncio.to_thread, figures.send)
    stack.callback(asyncio.create_task(figures.run()).cancel)


def _authenticate(keys: Keys) -> Callable[[Mapping[str, str]], str | None]:
    """Return how a training client is known: each key is a tenant, and so is the machine's own user."""

    def tenant(headers: Mapping[str, str]) -> str | None:
        caller = keys.caller(headers)
        return (caller.key_id or LOCAL) if caller else None

    return tenant


def _hosted(settings: Settings, client: Client) -> dict[str, Provider]:
    return {name: _provider(name, provider, client) for name, provider in settings.providers.items()}


def _provider(name: str, settings: ProviderSettings, client: Client) -> Provider:
    if settings.base_url.startswith(fake.SCHEME):
        return fake.FakeProvider(name)
    if settings.kind == "any-llm":
        return any_llm_provider(name, settings)
    return http_provider(name, settings, client)


# Addresses of the server itself


def _own_routes(settings: Settings, url: str, local: Local | None, gateway: Gateway) -> list[Route]:
    async def healthz(_request: Request) -> Response:
        return await _healthz(settings, local, gateway)

    async def home(_request: Request) -> Response:
        return _json({"doorstep": __version__, "addresses": _addresses(url, local)})

    return [Route("/healthz", healthz), Route("/", home)]


async def _healthz(settings: Settings, local: Local | None, gateway: Gateway) -> Response:
    recorder = gateway.recorder
    health: dict[str, Any] = {
        "status": "ok",
        "data": str(settings.data.resolve()),
        "model": _model(local.info) if local else None,
        "recorder": {
            "dropped": recorder.dropped,
            "refused": recorder.refused,
            "unpriced": recorder.unpriced,
            "backlog_bytes": recorder.backlog,
            "store_away_s": recorder.away_s,
        },
    }
    try:
        health["cpu_seconds"] = await local.cpu_seconds() if local else time.process_time()
    except EngineError as error:
        return _json(health | {"status": f"the engine is not there: {error}"}, 503)
    return _json(health)


def _model(info: ModelInfo) -> dict[str, Any]:
    return {"name": info.name, "folder": info.folder, "digest": info.digest, "max_context": info.max_context}


def _addresses(url: str, local: Local | None) -> dict[str, str]:
    found = {
        "openai": f"{url}/v1",
        "anthropic": url,
        "openai, calls of one run": f"{url}/runs/RUN_ID/v1",
        "health": f"{url}/healthz",
        "metrics": f"{url}/metrics",
        "description": f"{url}/openapi.json",
    }
    return found | ({"tinker": f"{url} (api under /api/v1)"} if local else {})


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _base_name(name: str) -> str:
    """Return what the base is called: ``tiny``, or the last part of its folder."""
    return name if name == "tiny" else Path(name).expanduser().resolve().name


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
