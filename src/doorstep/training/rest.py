"""What is listed, kept, shared and seen over REST. Each handler checks whose a thing is, then does one thing.

What is another tenant's answers as what is not there. Files go out by signed addresses, which need no key: whoever
has the address may fetch, until it expires or the server starts anew.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from doorstep import ids
from doorstep.errors import NotFound, UsageError
from doorstep.training import listing, search, signed, steps, wire
from doorstep.training.paths import Kind, TinkerPath, checkpoint_path, parse, run_id_of
from doorstep.training.registry import SavedCheckpoint, Session, TrainingRun, expiry

if TYPE_CHECKING:
    from doorstep.training.service import Service

Handler = Callable[["Service", Request, str], Awaitable[Response]]

MOST_LISTED = 1000
URL_S = 3600.0
MOST_TRACED = 16 << 20  # bytes of each log, the newest

_DIGITS = 15  # of a number in an address
_CHECKPOINT = "/training_runs/{run_id}/checkpoints/{kind}/{name}"


def json_answer(value: Any, status: int = 200) -> Response:
    """Return a JSON answer."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


# The model


async def _capabilities(service: "Service", _request: Request, _tenant: str) -> Response:
    shared = {"max_context_length": service.info.max_context, "trainable": True, "sampleable": True}
    return json_answer({"supported_models": [{"model_name": name, **shared} for name in service.names]})


# Training runs


async def _training_runs(service: "Service", request: Request, tenant: str) -> Response:
    registry = service.registry
    runs = registry.runs(tenant)
    if project := request.query_params.get("project_id"):
        runs = [run for run in runs if listing.project_of_run(registry, run) == project]
    found = [*runs, *registry.damaged_runs(tenant)]
    shown, cursor = listing.page(found, *_page(request, 20))
    listed = [
        listing.training_run(registry, run, tenant)
        if isinstance(run, TrainingRun)
        else listing.damaged_run(run, tenant)
        for run in shown
    ]
    return json_answer({"training_runs": listed, "cursor": cursor})


async def _training_run(service: "Service", request: Request, tenant: str) -> Response:
    run_id, registry = request.path_params["run_id"], service.registry
    accessible = request.query_params.get("access_scope") == "accessible"
    run = registry.readable_run(run_id, tenant) if accessible else registry.run(run_id, tenant)
    return json_answer(listing.training_run(registry, run, tenant))


async def _steps(service: "Service", request: Request, tenant: str) -> Response:
    run = service.registry.run(request.path_params["run_id"], tenant)
    after = _number(request, "after", 0)
    done = await asyncio.to_thread(steps.operations, service.registry.steps_file(run.run_id))
    return json_answer({"run_id": run.run_id, "steps": [step for step in steps.steps(done) if step.step > after]})


# Checkpoints


async def _run_checkpoints(service: "Service", request: Request, tenant: str) -> Response:
    run_id, registry = request.path_params["run_id"], service.registry
    registry.readable_run(run_id, tenant)
    found = [listing.checkpoint(saved) for saved in registry.checkpoints(run_id, tenant)]
    damaged = [listing.damaged_checkpoint(one) for one in registry.damaged_checkpoints(run_id, tenant)]
    return json_answer({"checkpoints": found + damaged})


async def _checkpoints(service: "Service", request: Request, tenant: str) -> Response:
    shown, cursor = listing.page(service.registry.all_checkpoints(tenant), *_page(request, 100))
    return json_answer({"checkpoints": [listing.checkpoint(saved) for saved in shown], "cursor": cursor})


async def _weights_info(service: "Service", request: Request, tenant: str) -> Response:
    path = parse(wire.read(await request.body(), wire.PathRef).tinker_path)
    saved = service.registry.checkpoint(path, tenant)
    return json_answer(listing.weights_info(service.registry.run(path.run_id, None), saved))


async def _delete_checkpoint(service: "Service", request: Request, tenant: str) -> Response:
    path = _path(request)
    if not await asyncio.to_thread(service.registry.remove_damaged, path, tenant):
        service.registry.own_checkpoint(path, tenant)
        await service.samplers.delete(path)
    return Response(status_code=204)


async def _publish(service: "Service", request: Request, tenant: str) -> Response:
    return await _change(service, request, tenant, public=True)


async def _unpublish(service: "Service", request: Request, tenant: str) -> Response:
    return await _change(service, request, tenant, public=False)


async def _set_ttl(service: "Service", request: Request, tenant: str) -> Response:
    ttl = wire.read(await request.body(), TimeToLive).ttl_seconds
    return await _change(service, request, tenant, expires_us=expiry(ttl))


async def _change(service: "Service", request: Request, tenant: str, **changes: Any) -> Response:
    await asyncio.to_thread(partial(service.registry.change_checkpoint, _path(request), tenant, **changes))
    return Response(status_code=204)


async def _copy_weights(service: "Service", request: Request, tenant: str) -> Response:
    message = wire.read(await request.body(), CopyWeights)
    if message.weights_access_token or request.headers.get("x-tinker-weights-access-token"):
        raise UsageError("weights_access_token: there are no other accounts here; publish the checkpoint instead")
    path = parse(message.source_path)
    source, expires_us = service.registry.checkpoint(path, tenant), expiry(message.ttl_seconds)
    service.quotas.admit_checkpoint(tenant)
    copied = await asyncio.to_thread(_copy, service, source, message, tenant, expires_us)
    return json_answer({"tinker_path": copied.path})


def _copy(
    service: "Service", source: SavedCheckpoint, message: "CopyWeights", tenant: str, expires_us: int | None
) -> SavedCheckpoint:
    """Make a run that holds the copy and is never trained, then the copy."""
    registry, path = service.registry, parse(source.path)
    registry.files(source)  # before there is a run for them
    run_id, original = _slot(service, message, tenant), registry.run(path.run_id, None)
    run = TrainingRun(
        run_id=run_id,
        owner=tenant,
        base=original.base,
        base_digest=original.base_digest,
        spec=original.spec,
        created_us=ids.now_us(),
        parent=source.path,
    )
    registry.put_run(run)
    return registry.copy_checkpoint(source, TinkerPath(run_id, path.kind, path.name), expires_us)


def _slot(service: "Service", message: "CopyWeights", tenant: str) -> str:
    """Return the id of the new run: in the session that was named, or in one of its own in the project."""
    if message.session_id is not None and message.model_seq_id is not None:
        service.registry.session(message.session_id, tenant)
        run_id = run_id_of(message.session_id, message.model_seq_id)
        if any(run.run_id == run_id for run in service.registry.runs_of(message.session_id)):
            raise UsageError(f"there is a training run {run_id} already; give another model_seq_id")
        return run_id
    if message.destination_project_id is None:
        raise UsageError("copy_weights needs destination_project_id, or session_id and model_seq_id")
    session = Session(
        session_id=ids.new_id("session"),
        owner=tenant,
        created_us=ids.now_us(),
        sdk_version="",
        tags=["copy_weights"],
        project_id=message.destination_project_id,
        finished="success",
    )
    service.registry.put_session(session)
    return run_id_of(session.session_id, 0)


# External weights


async def _external_weights_urls(service: "Service", request: Request, tenant: str) -> Response:
    path = _path(request)
    if path.kind is not Kind.EXTERNAL:
        raise UsageError(f"{path} is not of kind {Kind.EXTERNAL}. Make one with save_weights_external.")
    saved = service.registry.own_checkpoint(path, tenant)
    folder, expires = service.registry.files(saved), time.time() + URL_S
    names = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    urls = {name: signed.address(request, f"/files/{path.run_id}/{path.name}/{name}", expires) for name in names}
    return json_answer({"urls": urls, "expires": listing.time(int(expires * 1e6))})


async def _file(service: "Service", request: Request) -> Response:
    path = checkpoint_path(request.path_params["run_id"], Kind.EXTERNAL, request.path_params["name"])
    folder = service.registry.folder(service.registry.checkpoint(path, None)).resolve()
    file = (folder / request.path_params["file"]).resolve()
    if not file.is_relative_to(folder) or not file.is_file():
        raise NotFound(f"{path} has no file {request.path_params['file']}")
    return FileResponse(file, media_type="application/octet-stream")


# Sessions


async def _sessions(service: "Service", request: Request, tenant: str) -> Response:
    shown, _ = listing.page(service.registry.sessions(tenant), *_page(request, 20))
    return json_answer({"sessions": [session.session_id for session in shown]})


async def _session(service: "Service", request: Request, tenant: str) -> Response:
    found = service.registry.session(request.path_params["session_id"], tenant)
    return json_answer(listing.session(service.registry, found))


async def _search_sessions(service: "Service", request: Request, tenant: str) -> Response:
    query = wire.read(await request.body(), search.Sessions)
    found = [session for session in service.registry.sessions(tenant) if query.takes(session, tenant)]
    shown = found[: query.limit]
    last = shown[-1] if len(found) > len(shown) else None
    cursor = last and {"last_created_at": listing.time(last.created_us), "last_session_id": last.session_id}
    summaries = [listing.summary(service.registry, session) for session in shown]
    return json_answer({"sessions": summaries, "next_cursor": cursor})


async def _set_project(service: "Service", request: Request, tenant: str) -> Response:
    project = wire.read(await request.body(), ProjectRef).project_id
    session = service.registry.session(request.path_params["session_id"], tenant)
    await asyncio.to_thread(service.registry.put_session, msgspec.structs.replace(session, project_id=project))
    return Response(status_code=204)


async def _trace_export(service: "Service", request: Request, tenant: str) -> Response:
    session = service.registry.session(request.path_params["session_id"], tenant)
    url = signed.address(request, f"/traces/{session.session_id}", time.time() + URL_S)
    return json_answer({"status": "ready", "url": url})


async def _trace(service: "Service", request: Request) -> Response:
    return await asyncio.to_thread(_written_trace, service, request.path_params["session_id"])


def _written_trace(service: "Service", session_id: str) -> Response:
    tracks = {run.run_id: run.run_id for run in service.registry.runs_of(session_id)} | {session_id: "sampling"}
    done = {name: steps.operations(service.registry.steps_file(of), MOST_TRACED) for of, name in tracks.items()}
    return Response(json.dumps(steps.trace(done)), media_type="application/json")


# Usage


async def _usage(service: "Service", _request: Request, tenant: str) -> Response:
    return json_answer(listing.usage(service.quotas, service.registry, tenant))


async def _no_administration(_service: "Service", _request: Request, _tenant: str) -> Response:
    detail = "There is no billing and no audit log in this training service. What you used: GET /api/v1/usage."
    return json_answer({"detail": detail}, 404)  # the SDK would ask again for minutes after 501


HANDLERS: dict[tuple[str, str], Handler] = {
    ("GET", "/get_server_capabilities"): _capabilities,
    ("GET", "/training_runs"): _training_runs,
    ("GET", "/training_runs/{run_id}"): _training_run,
    ("GET", "/training_runs/{run_id}/steps"): _steps,
    ("GET", "/training_runs/{run_id}/checkpoints"): _run_checkpoints,
    ("GET", "/checkpoints"): _checkpoints,
    ("POST", "/weights_info"): _weights_info,
    ("DELETE", _CHECKPOINT): _delete_checkpoint,
    ("POST", f"{_CHECKPOINT}/publish"): _publish,
    ("DELETE", f"{_CHECKPOINT}/publish"): _unpublish,
    ("PUT", f"{_CHECKPOINT}/ttl"): _set_ttl,
    ("GET", f"{_CHECKPOINT}/external_weights_urls"): _external_weights_urls,
    ("POST", "/copy_weights"): _copy_weights,
    ("GET", "/sessions"): _sessions,
    ("POST", "/sessions/search"): _search_sessions,
    ("GET", "/sessions/{session_id}"): _session,
    ("PUT", "/sessions/{session_id}/project"): _set_project,
    ("GET", "/sessions/{session_id}/trace_export"): _trace_export,
    ("GET", "/usage"): _usage,
    ("GET", "/audit"): _no_administration,
    ("GET", "/billing/usage/events"): _no_administration,
    ("GET", "/billing/usage/checkpoints/current"): _no_administration,
}


# Without a key


def open_routes(service: "Service") -> list[Route]:
    """Return the routes that a signature opens, and no key."""

    def opened(handler: Callable[["Service", Request], Awaitable[Response]]) -> Callable[..., Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            if not signed.is_valid(request):
                return json_answer({"detail": "this address has expired, or was changed; ask for a new one"}, 401)
            try:
                return await handler(service, request)
            except NotFound as error:
                return json_answer({"detail": str(error)}, 404)

        return endpoint

    return [
        Route("/files/{run_id}/{name}/{file:path}", opened(_file), methods=["GET"]),
        Route("/traces/{session_id}", opened(_trace), methods=["GET"]),
    ]


# Messages


class TimeToLive(wire.Message, frozen=True, kw_only=True):
    """How long to keep a checkpoint; None: for good."""

    ttl_seconds: int | None


class ProjectRef(wire.Message, frozen=True, kw_only=True):
    """Where to put a session."""

    project_id: str


class CopyWeights(wire.Message, frozen=True, kw_only=True):
    """Copy a checkpoint into a project, or into a session under a run's number."""

    source_path: str
    session_id: str | None = None
    model_seq_id: int | None = None
    destination_project_id: str | None = None
    ttl_seconds: int | None = None
    weights_access_token: str | None = None


# What a request says


def _path(request: Request) -> TinkerPath:
    return checkpoint_path(**request.path_params)


def _page(request: Request, default: int) -> tuple[int, int]:
    return min(_number(request, "limit", default), MOST_LISTED), _number(request, "offset", 0)


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name, str(default))
    if not text.isdecimal() or len(text) > _DIGITS:
        raise UsageError(f"{name}={text}: give a whole number, 0 or more")
    return int(text)
