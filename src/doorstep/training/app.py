"""The HTTP side of the Tinker wire protocol: addresses, status codes and long polls. Decides nothing else.

An operation's own failure travels as status 200 with ``error`` and ``category`` (see ``promises``); status codes
speak of the request. The SDK retries 408, 409, 429 and 5xx by itself and gives up at once on the rest. What is listed
and kept over REST is in ``rest``.
"""

import asyncio
import ipaddress
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from doorstep.errors import EngineError, EngineUnavailable, LimitReached, NotFound, StoreError, UsageError
from doorstep.training import codec, rest, wire
from doorstep.training.promises import JSON
from doorstep.training.service import Service

log = logging.getLogger(__name__)

POLL_S = 20.0  # the SDK reads for 45 s
MAX_BODY = 64 << 20  # the SDK cuts its batches into calls of 5 MB
INLINE_BYTES = 1 << 20  # a larger answer is announced first, to a client that keeps account of what it fetches

CLIENT = {  # how clients are to go about it, as SDK 0.38 takes it; older ones know less
    # Served, and not asked for: one poll for all samples of a client costs each another trip, 2 ms of 5, and saved
    # nothing in 64 at once, nor in 1000.
    "sample_use_retrieve_futures": False,
    "sample_join_sampling_session": True,
    "custom_loss_server_side": True,
}

Handler = Callable[[Service, Request, str], Awaitable[Response]]


def routes(service: Service) -> list[Route]:
    """Return the routes to mount at ``/api/v1``."""
    handlers = _HANDLERS | rest.HANDLERS
    return [
        *rest.open_routes(service),
        *(Route(path, _endpoint(service, handler), methods=[method]) for (method, path), handler in handlers.items()),
        Route("/{path:path}", _endpoint(service, _unknown), methods=["GET", "POST", "PUT", "DELETE"]),
    ]


def _endpoint(service: Service, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        tenant = service.authenticate(request.headers)
        if tenant is None:
            return _json({"detail": "no valid key: set TINKER_API_KEY to a key that begins with tml-"}, 401)
        try:
            return await handler(service, _Bounded(request.scope, request.receive), tenant)
        except ClientDisconnect:
            return Response(status_code=400)  # nobody hears it
        except NotFound as error:
            return _json({"detail": str(error)}, 404)
        except LimitReached as error:
            return _json({"detail": str(error), "code": error.code}, error.status, _retry_after(error.retry_after_s))
        except UsageError as error:
            return _json({"detail": str(error)}, 422)
        except EngineUnavailable as error:
            return _json({"detail": str(error)}, 503, _retry_after(error.retry_after_s))
        except (EngineError, StoreError) as error:
            log.exception("%s %s failed", request.method, request.url.path)
            return _json({"detail": str(error)}, 500)

    return endpoint


def _retry_after(seconds: float | None) -> dict[str, str]:
    return {} if seconds is None else {"Retry-After": f"{seconds:.0f}"}


class _Bounded(Request):
    """A request whose body must not be larger than ``MAX_BODY``."""

    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            chunks, size = [], 0
            async for chunk in self.stream():  # to its end: a client that is still sending hears no answer
                size += len(chunk)
                if size <= MAX_BODY:
                    chunks.append(chunk)
            if size > MAX_BODY:
                raise LimitReached(
                    f"the body has {size} bytes, and {MAX_BODY} are taken; send fewer datums in a call",
                    413,
                    "body_too_large",
                )
            self._body = b"".join(chunks)
        return self._body


# Connecting


async def _client_config(_service: Service, request: Request, _tenant: str) -> Response:
    # Compressed bodies are ten times smaller, and take longer to make.
    return _json(CLIENT | {"proto_compress_fwdbwd": not _is_near(request)})


async def _dynamic_config(_service: Service, _request: Request, _tenant: str) -> Response:
    return _json({"sample_cancel_enabled": True})


async def _healthz(service: Service, _request: Request, _tenant: str) -> Response:
    await service.check()
    return _json({"status": "ok"})


async def _create_session(service: Service, request: Request, tenant: str) -> Response:
    session_id = await service.create_session(await _read(request, wire.CreateSession), tenant)
    return _json({"type": "create_session", "session_id": session_id, "info_message": service.surrogate})


async def _heartbeat(service: Service, request: Request, tenant: str) -> Response:
    alive = service.heartbeat((await _read(request, wire.SessionRef)).session_id, tenant)
    return _json({"type": "session_heartbeat"}, 200 if alive else 410)


async def _finish_session(service: Service, request: Request, tenant: str) -> Response:
    message = await _read(request, wire.FinishSession)
    await service.finish_session(request.path_params["session_id"], message.reason.type, tenant)
    return Response(status_code=204)


async def _telemetry(_service: Service, request: Request, _tenant: str) -> Response:
    await request.body()
    return _json({"status": "accepted"})


async def _create_custom_loss(service: Service, request: Request, tenant: str) -> Response:
    return _promise(service.create_custom_loss(await _read(request, wire.CreateCustomLoss), tenant))


# Training


async def _create_model(service: Service, request: Request, tenant: str) -> Response:
    return _promise(service.create_model(await _read(request, wire.CreateModel), tenant))


async def _get_info(service: Service, request: Request, tenant: str) -> Response:
    run = service.model((await _read(request, wire.ModelRef)).model_id, tenant)
    shown = service.shown(run.base)  # both SDK clients make their tokenizer of it
    return _json(
        {
            "type": "get_info",
            "model_id": run.run_id,
            "model_name": run.base,
            "model_data": {"model_name": shown, "tokenizer_id": shown},
            "is_lora": run.spec.rank > 0,
            "lora_rank": run.spec.rank or None,
            "optimizer_config": {"type": "adamw"},
        }
    )


async def _forward_backward(service: Service, request: Request, tenant: str) -> Response:
    message, size = await _batch(request)
    return _promise(service.forward_backward(message, size, tenant))


async def _forward(service: Service, request: Request, tenant: str) -> Response:
    message, size = await _batch(request)
    return _promise(service.forward_backward(message, size, tenant, forward_only=True))


async def _optim_step(service: Service, request: Request, tenant: str) -> Response:
    return _promise(service.optim_step(await request.body(), tenant))


async def _save_weights(service: Service, request: Request, tenant: str) -> Response:
    return _promise(service.save_weights(await request.body(), tenant))


async def _load_weights(service: Service, request: Request, tenant: str) -> Response:
    message = await _read(request, wire.LoadWeights)
    if message.model_id is None:
        return _promise(service.create_from(message, tenant))
    return _promise(service.load_weights(await request.body(), tenant))


async def _save_weights_for_sampler(service: Service, request: Request, tenant: str) -> Response:
    return _promise(service.save_weights_for_sampler(await request.body(), tenant))


async def _save_weights_external(service: Service, request: Request, tenant: str) -> Response:
    return _promise(service.save_weights_external(await request.body(), tenant))


# Sampling


async def _create_sampling_session(service: Service, request: Request, tenant: str) -> Response:
    sampler_id = await service.create_sampling_session(await _read(request, wire.CreateSamplingSession), tenant)
    return _json({"type": "create_sampling_session", "sampling_session_id": sampler_id})


async def _join_sampling_session(service: Service, request: Request, tenant: str) -> Response:
    sampler_id = (await _read(request, wire.JoinSamplingSession)).sampling_session_id
    counter = service.join_sampling_session(sampler_id, tenant)
    return _json({"type": "join_sampling_session", "client_counter": counter})


async def _sampler(service: Service, request: Request, tenant: str) -> Response:
    sampler = service.samplers.get(request.path_params["sampler_id"], tenant)
    base = service.shown(sampler.base)
    return _json({"sampler_id": sampler.sampler_id, "base_model": base, "model_path": sampler.path})


async def _asample(service: Service, request: Request, tenant: str) -> Response:
    body = await request.body()
    request_id, sequence_ids = await service.sample(wire.read(body, wire.Sample), len(body), tenant)
    return _json({"request_id": request_id, "sample_sequence_ids": sequence_ids})


# Promises


async def _retrieve_future(service: Service, request: Request, tenant: str) -> Response:
    wanted = await _read(request, wire.FutureRef)
    try:
        answer = await service.promises.wait(wanted.request_id, tenant, POLL_S)
    except NotFound as error:
        return _json({"detail": str(error)}, 410)
    if answer is None:  # as 408 the SDK asks again quietly, as 200 it warns each time
        return _json(_not_yet(service, wanted.request_id), 408)
    if wanted.allow_metadata_only and len(answer.body) > INLINE_BYTES:
        return _json({"status": "complete_metadata", "response_payload_size": len(answer.body)})
    service.promises.fetched(wanted.request_id)
    return Response(answer.body, media_type=answer.media_type)


def _not_yet(service: Service, request_id: str) -> dict[str, Any]:
    why = service.why_waiting(request_id)
    state = {"queue_state": "active"} if why is None else {"queue_state": "paused_capacity", "queue_state_reason": why}
    return {"type": "try_again", "request_id": request_id} | state


async def _retrieve_futures(service: Service, request: Request, tenant: str) -> Response:
    wanted = await _read(request, wire.FuturesRef)
    target = (wanted.target.sampling_session_id, wanted.target.cloned_sampler_id)
    service.registry.session(target[0].partition(":")[0], tenant)  # unnamed samplers are not known after a restart
    service.promises.release(wanted.retrieved_request_ids, tenant)
    timeout = POLL_S if wanted.timeout is None else min(wanted.timeout, POLL_S)
    completions, cursor = await service.promises.completed(target, tenant, wanted.prev_cursor, timeout)
    return _json({"completions": completions, "cursor": cursor})


async def _cancel_future(service: Service, request: Request, tenant: str) -> Response:
    service.promises.cancel((await _read(request, wire.FutureRef)).request_id, tenant)
    return Response(status_code=204)


async def _no_tokens(_service: Service, _request: Request, _tenant: str) -> Response:
    return _json({"detail": "keys are not exchanged for tokens here; send the key itself as X-API-Key"}, 404)


async def _unknown(_service: Service, request: Request, _tenant: str) -> Response:
    return _json(
        {"detail": f"{request.method} {request.url.path} is not part of what this training service serves"}, 404
    )


_HANDLERS: dict[tuple[str, str], Handler] = {
    ("POST", "/client/config"): _client_config,
    ("POST", "/client/dynamic_config"): _dynamic_config,
    ("POST", "/auth/token"): _no_tokens,
    ("GET", "/healthz"): _healthz,
    ("POST", "/create_session"): _create_session,
    ("POST", "/session_heartbeat"): _heartbeat,
    ("POST", "/sessions/{session_id}/finish"): _finish_session,
    ("POST", "/telemetry"): _telemetry,
    ("POST", "/create_custom_loss"): _create_custom_loss,
    ("POST", "/create_model"): _create_model,
    ("POST", "/get_info"): _get_info,
    ("POST", "/forward_backward"): _forward_backward,
    ("POST", "/forward"): _forward,
    ("POST", "/optim_step"): _optim_step,
    ("POST", "/save_weights"): _save_weights,
    ("POST", "/load_weights"): _load_weights,
    ("POST", "/save_weights_for_sampler"): _save_weights_for_sampler,
    ("POST", "/save_weights_external"): _save_weights_external,
    ("POST", "/create_sampling_session"): _create_sampling_session,
    ("POST", "/join_sampling_session"): _join_sampling_session,
    ("GET", "/samplers/{sampler_id}"): _sampler,
    ("POST", "/asample"): _asample,
    ("POST", "/retrieve_future"): _retrieve_future,
    ("POST", "/retrieve_futures"): _retrieve_futures,
    ("POST", "/cancel_future"): _cancel_future,
}


async def _read(request: Request, kind: type[wire.T]) -> wire.T:
    return wire.read(await request.body(), kind)


async def _batch(request: Request) -> tuple[Any, int]:
    """Return a request's ForwardBackwardRequest, and its bytes."""
    body, encoding = await request.body(), request.headers.get("content-encoding", "")
    if not encoding and len(body) < INLINE_BYTES:
        message = codec.parse_forward_backward(body, encoding)
    else:
        message = await asyncio.to_thread(codec.parse_forward_backward, body, encoding)
    return message, message.ByteSize()


def _is_near(request: Request) -> bool:
    """Tell whether the client is on this machine."""
    host = request.client.host if request.client else ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return True  # in this process


def _promise(request_id: str) -> Response:
    return _json({"request_id": request_id})


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(value), status, headers, media_type=JSON)
