"""What a model's operations do, one function each: engine and registry in, answer out. Order is the lane's business."""

import asyncio
import json
import time
from typing import Any

import msgspec

from doorstep import ids
from doorstep.engine.api import AdamParams, Engine, LoraSpec
from doorstep.errors import UsageError
from doorstep.training import codec, wire
from doorstep.training.paths import Kind, TinkerPath, checked_name, parse, split_run_id
from doorstep.training.promises import PROTO, Answer
from doorstep.training.registry import Registry, SavedCheckpoint, TrainingRun
from doorstep.training.samplers import Samplers

SECONDS = "engine_seconds"


def answer(**fields: Any) -> Answer:
    """Return a JSON answer. A metric may be NaN, which the SDK reads as such, and which msgspec would make null."""
    return Answer(json.dumps(fields).encode())


async def create(engine: Engine, registry: Registry, run: TrainingRun) -> Answer:
    """Make a fresh adapter."""
    await engine.create_adapter(run.run_id, run.spec)
    await asyncio.to_thread(registry.put_run, run)
    return answer(type="create_model", model_id=run.run_id)


async def create_from(engine: Engine, registry: Registry, run: TrainingRun, optimizer: bool) -> Answer:
    """Make an adapter from the checkpoint that is ``run.parent``; its shape comes from there."""
    assert run.parent
    spec = await _load(engine, registry, run.run_id, run.parent, optimizer)
    await asyncio.to_thread(registry.put_run, msgspec.structs.replace(run, spec=spec))
    return answer(type="load_weights", path=run.parent, model_id=run.run_id)


async def load(engine: Engine, registry: Registry, body: bytes) -> Answer:
    """Replace a model's weights by a checkpoint's."""
    request = wire.read(body, wire.LoadWeights)
    check_load(request)
    assert request.model_id
    spec = await _load(engine, registry, request.model_id, request.path, request.optimizer)
    run = msgspec.structs.replace(registry.run(request.model_id), spec=spec, parent=request.path)
    await asyncio.to_thread(registry.put_run, run)
    return answer(type="load_weights", path=request.path, model_id=request.model_id)


async def forward_backward(engine: Engine, message: Any) -> Answer:
    """Add to the gradients, or only evaluate when the message says ``forward_only``."""
    # A full request holds a million numbers: the event loop must not wait for their conversion.
    rows, loss = await asyncio.to_thread(codec.training_batch, message)
    began = time.perf_counter()
    result = await engine.forward_backward(message.model_id, rows, loss, forward_only=message.forward_only)
    metrics = result.metrics | {f"{SECONDS}:sum": time.perf_counter() - began}
    return Answer(await asyncio.to_thread(codec.forward_backward_output, result, metrics), PROTO)


async def optim_step(engine: Engine, body: bytes) -> Answer:
    """Step on the gradients, which are then zero again."""
    request = wire.read(body, wire.OptimStep)
    if request.optimizer_params is not None:
        raise UsageError(f"optimizer {request.optimizer_params.get('type')!r} is not served here; there is: adamw")
    params = wire.convert(request.adam_params or {}, _StrictAdam)
    began = time.perf_counter()
    metrics = await engine.optim_step(request.model_id, params)
    return answer(metrics=metrics | {SECONDS: time.perf_counter() - began})


async def save_weights(engine: Engine, registry: Registry, body: bytes) -> Answer:
    """Save adapter and optimiser, so that training can go on from there."""
    request = wire.read(body, wire.SaveWeights)
    if request.path is None:
        raise UsageError("save_weights needs a name (path)")
    path = TinkerPath(request.model_id, Kind.WEIGHTS, checked_name(request.path))
    if not request.overwrite:
        _refuse_existing(registry, path, "Delete it first, or save with overwrite=True.")
    await _save(engine, registry, path, request.ttl_seconds, request.user_metadata)
    return answer(type="save_weights", path=str(path))


async def save_for_sampler(engine: Engine, registry: Registry, samplers: Samplers, body: bytes) -> Answer:
    """Save the adapter alone: under a name, or unnamed for one sampling session."""
    request = wire.read(body, wire.SaveWeightsForSampler)
    if request.kind != "snapshot":
        raise UsageError(f"sampling client kind {request.kind!r} is not served here; there is: snapshot")
    if request.path is None:
        return await _save_unnamed(engine, samplers, request)
    path = TinkerPath(request.model_id, Kind.SAMPLER, checked_name(request.path))
    _refuse_existing(registry, path, "Delete it first, or save under another name.")
    await _save(engine, registry, path, request.ttl_seconds, request.user_metadata)
    return answer(type="save_weights_for_sampler", path=str(path))


def check_load(request: wire.LoadWeights) -> None:
    """Refuse what loading cannot do here."""
    path = parse(request.path)
    if request.optimizer and path.kind is Kind.SAMPLER:
        raise UsageError(f"{path} holds no optimizer state. Load it without, or load a path of kind weights.")
    if request.weights_access_token is not None:
        raise UsageError("weights_access_token: there are no other accounts here; leave it out")
    check_optimizer(request.optimizer_config)


def check_optimizer(config: dict[str, Any] | None) -> None:
    """Refuse an optimizer that is not served."""
    if config is not None and config != {"type": "adamw"}:
        raise UsageError(f"optimizer_config {config} is not served here; there is: {{'type': 'adamw'}}")


class _StrictAdam(AdamParams, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same fields, and no others."""


async def _load(engine: Engine, registry: Registry, adapter: str, path: str, optimizer: bool) -> LoraSpec:
    folder = registry.folder(registry.checkpoint(parse(path)))
    return await engine.load(adapter, str(folder), optimizer=optimizer)


async def _save_unnamed(engine: Engine, samplers: Samplers, request: wire.SaveWeightsForSampler) -> Answer:
    if request.sampling_session_seq_id is None:
        raise UsageError("save_weights_for_sampler needs a name (path) or a sampling_session_seq_id")
    session_id, _ = split_run_id(request.model_id)
    sampler_id, folder = samplers.new_unnamed(session_id, request.sampling_session_seq_id)
    await engine.save(request.model_id, str(folder), optimizer=False)
    samplers.add_unnamed(sampler_id, folder)
    return answer(type="save_weights_for_sampler", sampling_session_id=sampler_id)


async def _save(
    engine: Engine, registry: Registry, path: TinkerPath, ttl_s: int | None, metadata: dict[str, str] | None
) -> None:
    if ttl_s is not None and ttl_s <= 0:
        raise UsageError("ttl_seconds must be positive")
    folder = await asyncio.to_thread(registry.new_folder, path)
    written = await engine.save(path.run_id, str(folder), optimizer=path.kind is Kind.WEIGHTS)
    now = ids.now_us()
    saved = SavedCheckpoint(
        path=str(path),
        folder=folder.name,
        digest=written.digest,
        size=written.size,
        created_us=now,
        expires_us=None if ttl_s is None else now + ttl_s * 1_000_000,
        user_metadata=metadata,
    )
    await asyncio.to_thread(registry.put_checkpoint, saved)


def _refuse_existing(registry: Registry, path: TinkerPath, advice: str) -> None:
    if registry.has_checkpoint(path):
        raise UsageError(f"{path} exists. {advice}")
