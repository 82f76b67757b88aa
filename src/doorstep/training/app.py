"""The HTTP side of the Tinker wire protocol: addresses, status codes and long polls. Decides nothing else.

An operation's own failure travels as status 200 with ``error`` and ``category`` (see ``promises``); status codes
speak of the request. The SDK retries 408, 409, 429 and 5xx by itself and gives up at once on the rest.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from doorstep.errors import EngineError, EngineUnavailable, NotFound, StoreError, UsageError
from doorstep.training import listing, wire
from doorstep.training.paths import parse
from doorstep.training.promises import JSON
from doorstep.training.service import Service

log = logging.getLogger(__name__)

POLL_S = 20.0  # the SDK reads for 45 s

Handler = Callable[[Service, Request, str], Awaitable[Response]]


def routes(service: Service) -> list[Route]:
    """Return the routes to mount at ``/api/v1``."""
    return [
        Route(path, _endpoint(service, handler), methods=[method]) for (method, path), handler in _HANDLERS.items()
    ] + [Route("/{path:path}", _endpoint(service, _unknown), methods=["GET", "POST", "PUT", "DELETE"])]


def _endpoint(service: Service, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        tenant = service.authenticate(request.headers)
        if tenant is None:
            return _json({"detail": "no valid key: set TINKER_API_KEY to a key that begins with tml-"}, 401)
        try:
            return await handler(service, request, tenant)
        except NotFound as error:
            return _json({"detail": str(error)}, 404)
        except UsageError as error:
            return _json({"detail": str(error)}, 422)
        except EngineUnavailable as error:
            return _json({"detail": str(error)}, 503)
        except (EngineError, StoreError) as error:
            log.exception("%s %s failed", request.method, request.url.path)
            return _json({"detail": str(error)}, 500)

    return endpoint


# Connecting


async def _client_config(_service: Service, _request: Request, _tenant: str) -> Response:
    return _json({})  # the SDK's defaults fit


async def _dynamic_config(_service: Service, _request: Request, _tenant: str) -> Response:
    return _json({"sample_cancel_enabled": True})


async def _healthz(_service: Service, _request: Request, _tenant: str) -> Response:
    return _json({"status": "ok"})


async def _capabilities(service: Service, _request: Request, _tenant: str) -> Response:
    info = service.info
    model = {"model_name": info.name, "max_context_length": info.max_context, "trainable": True, "sampleable": True}
    return _json({"supported_models": [model]})


async def _create_session(service: Service, request: Request, tenant: str) -> Response:
    session_id = await service.create_session(await _read(request, wire.CreateSession), tenant)
    return _json({"type": "create_session", "session_id": session_id})


async def _heartbeat(service: Service, request: Request, _tenant: str) -> Response:
    alive = service.heartbeat((await _read(request, wire.SessionRef)).session_id)
    return _json({"type": "session_heartbeat"}, 200 if alive else 410)


async def _finish_session(service: Service, request: Request, _tenant: str) -> Response:
    message = await _read(request, wire.FinishSession)
    await service.finish_session(request.path_params["session_id"], message.reason.type)
    return Response(status_code=204)


async def _telemetry(_service: Service, request: Request, _tenant: str) -> Response:
    await request.body()
    return _json({"status": "accepted"})


# Training


async def _create_model(service: Service, request: Request, tenant: str) -> Response:
    return _promise(service.create_model(await _read(request, wire.CreateModel), tenant))


async def _get_info(service: Service, request: Request, _tenant: str) -> Response:
    run = service.model((await _read(request, wire.ModelRef)).model_id)
    # Both SDK clients make their tokenizer from these two, so they are the folder and not the name.
    data = {"model_name": service.base_path, "tokenizer_id": service.base_path}
    return _json(
        {
            "type": "get_info",
            "model_id": run.run_id,
            "model_name": run.base,
            "model_data": data,
            "is_lora": True,
            "lora_rank": run.spec.rank,
        }
    )


async def _forward_backward(service: Service, request: Request, _tenant: str) -> Response:
    if encoding := request.headers.get("content-encoding"):
        raise UsageError(f"content-encoding {encoding} is not served here; send the body as it is")
    return _promise(service.forward_backward(await request.body()))


async def _optim_step(service: Service, request: Request, _tenant: str) -> Response:
    return _promise(service.optim_step(await request.body()))


async def _save_weights(service: Service, request: Request, _tenant: str) -> Response:
    return _promise(service.save_weights(await request.body()))


async def _load_weights(service: Service, request: Request, tenant: str) -> Response:
    message = await _read(request, wire.LoadWeights)
    if message.model_id is None:
        return _promise(service.create_from(message, tenant))
    return _promise(service.load_weights(await request.body()))


async def _save_weights_for_sampler(service: Service, request: Request, _tenant: str) -> Response:
    return _promise(service.save_weights_for_sampler(await request.body()))


# Sampling


async def _create_sampling_session(service: Service, request: Request, _tenant: str) -> Response:
    sampler_id = await service.create_sampling_session(await _read(request, wire.CreateSamplingSession))
    return _json({"type": "create_sampling_session", "sampling_session_id": sampler_id})


async def _sampler(service: Service, request: Request, _tenant: str) -> Response:
    sampler = service.samplers.get(request.path_params["sampler_id"])
    return _json({"sampler_id": sampler.sampler_id, "base_model": service.base_path, "model_path": sampler.path})


async def _asample(service: Service, request: Request, _tenant: str) -> Response:
    request_id, sequence_ids = service.sample(await _read(request, wire.Sample))
    return _json({"request_id": request_id, "sample_sequence_ids": sequence_ids})


# Promises


async def _retrieve_future(service: Service, request: Request, _tenant: str) -> Response:
    request_id = (await _read(request, wire.FutureRef)).request_id
    try:
        answer = await service.promises.wait(request_id, POLL_S)
    except NotFound as error:
        return _json({"detail": str(error)}, 410)
    if answer is None:  # as 408 the SDK asks again quietly, as 200 it warns each time
        return _json({"type": "try_again", "request_id": request_id, "queue_state": "active"}, 408)
    return Response(answer.body, media_type=answer.media_type)


async def _cancel_future(service: Service, request: Request, _tenant: str) -> Response:
    service.promises.cancel((await _read(request, wire.FutureRef)).request_id)
    return Response(status_code=204)


# What is on disk


async def _training_runs(service: Service, request: Request, _tenant: str) -> Response:
    limit, offset = _number(request, "limit", 20), _number(request, "offset", 0)
    return _json(listing.training_runs(service.registry, limit, offset))


async def _training_run(service: Service, request: Request, _tenant: str) -> Response:
    return _json(listing.training_run(service.registry, service.registry.run(request.path_params["run_id"])))


async def _checkpoints(service: Service, request: Request, _tenant: str) -> Response:
    return _json(listing.checkpoints(service.registry, request.path_params["run_id"]))


async def _delete_checkpoint(service: Service, request: Request, _tenant: str) -> Response:
    await service.samplers.delete(parse("tinker://{run_id}/{kind}/{name}".format(**request.path_params)))
    return Response(status_code=204)


async def _weights_info(service: Service, request: Request, _tenant: str) -> Response:
    return _json(listing.weights_info(service.registry, (await _read(request, wire.PathRef)).tinker_path))


async def _unknown(_service: Service, request: Request, _tenant: str) -> Response:
    return _json(
        {"detail": f"{request.method} {request.url.path} is not part of what this training service serves"}, 404
    )


_HANDLERS: dict[tuple[str, str], Handler] = {
    ("POST", "/client/config"): _client_config,
    ("POST", "/client/dynamic_config"): _dynamic_config,
    ("GET", "/healthz"): _healthz,
    ("GET", "/get_server_capabilities"): _capabilities,
    ("POST", "/create_session"): _create_session,
    ("POST", "/session_heartbeat"): _heartbeat,
    ("POST", "/sessions/{session_id}/finish"): _finish_session,
    ("POST", "/telemetry"): _telemetry,
    ("POST", "/create_model"): _create_model,
    ("POST", "/get_info"): _get_info,
    ("POST", "/forward_backward"): _forward_backward,
    ("POST", "/optim_step"): _optim_step,
    ("POST", "/save_weights"): _save_weights,
    ("POST", "/load_weights"): _load_weights,
    ("POST", "/save_weights_for_sampler"): _save_weights_for_sampler,
    ("POST", "/create_sampling_session"): _create_sampling_session,
    ("GET", "/samplers/{sampler_id}"): _sampler,
    ("POST", "/asample"): _asample,
    ("POST", "/retrieve_future"): _retrieve_future,
    ("POST", "/cancel_future"): _cancel_future,
    ("GET", "/training_runs"): _training_runs,
    ("GET", "/training_runs/{run_id}"): _training_run,
    ("GET", "/training_runs/{run_id}/checkpoints"): _checkpoints,
    ("DELETE", "/training_runs/{run_id}/checkpoints/{kind}/{name}"): _delete_checkpoint,
    ("POST", "/weights_info"): _weights_info,
}


async def _read(request: Request, kind: type[wire.T]) -> wire.T:
    return wire.read(await request.body(), kind)


def _promise(request_id: str) -> Response:
    return _json({"request_id": request_id})


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isdecimal():
        raise UsageError(f"{name}={text}: give a whole number, 0 or more")
    return int(text)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type=JSON)
