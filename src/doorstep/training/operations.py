"""What a model's operations do, one function each: engine and registry in, answer out. Order is the lane's business."""

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from typing import Any, ParamSpec, TypeVar

import msgspec

from doorstep import ids
from doorstep.engine.api import AdamParams, Engine, LoraSpec, ModelInfo
from doorstep.errors import DoorstepError, EngineError, UsageError
from doorstep.training import codec, external, sampling, steps, tenants, wire
from doorstep.training.capacity import Capacity
from doorstep.training.customloss import CustomLosses
from doorstep.training.paths import Kind, TinkerPath, checked_name, parse, split_run_id
from doorstep.training.promises import PROTO, Answer
from doorstep.training.provenance import Provenance
from doorstep.training.registry import Registry, SavedCheckpoint, TrainingRun, expiry
from doorstep.training.samplers import Samplers
from doorstep.training.steps import StepLog
from doorstep.training.tenants import Quotas

P = ParamSpec("P")
R = TypeVar("R")

SECONDS = "engine_seconds"
_LARGE = 64 << 10  # bytes of a request whose conversion takes longer than going to a thread and back


class Tools(msgspec.Struct, frozen=True, kw_only=True):
    """What operations work with."""

    engine: Engine
    info: ModelInfo
    registry: Registry
    samplers: Samplers
    quotas: Quotas
    steps: StepLog
    provenance: Provenance
    losses: CustomLosses
    capacity: Capacity


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """Whose operation it is, and when it came: for the step log, and for who has to wait."""

    tenant: str
    run_id: str
    request_id: str
    came: float = msgspec.field(default_factory=time.perf_counter)


def answer(**fields: Any) -> Answer:
    """Return a JSON answer. A metric may be NaN, which the SDK reads as such, and which msgspec would make null."""
    return Answer(json.dumps(fields).encode())


async def create(tools: Tools, run: TrainingRun) -> Answer:
    """Make a fresh adapter."""
    await tools.engine.create_adapter(run.run_id, run.spec)
    await asyncio.to_thread(tools.registry.put_run, run)
    return answer(type="create_model", model_id=run.run_id)


async def create_from(tools: Tools, run: TrainingRun, optimizer: bool) -> Answer:
    """Make an adapter from the checkpoint that is ``run.parent``; its shape comes from there."""
    assert run.parent
    spec = await _load(tools, run.run_id, run.owner, run.parent, optimizer)
    await asyncio.to_thread(tools.registry.put_run, msgspec.structs.replace(run, spec=spec))
    return answer(type="load_weights", path=run.parent, model_id=run.run_id)


async def load(tools: Tools, turn: Turn, body: bytes) -> Answer:
    """Replace a model's weights by a checkpoint's."""
    request = wire.read(body, wire.LoadWeights)
    check_load(request)
    spec = await _load(tools, turn.run_id, turn.tenant, request.path, request.optimizer)
    run = msgspec.structs.replace(tools.registry.run(turn.run_id, turn.tenant), spec=spec, parent=request.path)
    await asyncio.to_thread(tools.registry.put_run, run)
    return answer(type="load_weights", path=request.path, model_id=turn.run_id)


async def forward_backward(tools: Tools, turn: Turn, message: Any, size: int, forward_only: bool) -> Answer:
    """Add to the gradients, or only evaluate. ``size`` is the message's in bytes."""
    async with tools.capacity.enter(turn.request_id, size):
        session_id, _ = split_run_id(turn.run_id)
        losses = partial(tools.losses.get, session_id)
        batch = await _convert(size, codec.training_batch, message, tools.info, losses)
        rows = batch.rows
        if batch.loss.name == "stable_reinforce":
            rows = tools.provenance.completed(session_id, rows, batch.spans)
        tokens = sum(len(row.tokens) for row in rows)
        tools.quotas.admit_tokens(turn.tenant, tokens)
        began = time.perf_counter()
        result = await tools.engine.forward_backward(turn.run_id, rows, batch.loss, forward_only=forward_only)
        seconds = time.perf_counter() - began
        tools.quotas.book(turn.tenant, tenants.SCORED if forward_only else tenants.TRAINED, tokens, seconds)
        tools.steps.note(
            turn.run_id,
            steps.FORWARD if forward_only else steps.FORWARD_BACKWARD,
            seconds=seconds,
            queued_s=began - turn.came,
            rows=len(rows),
            tokens=tokens,
            metrics=result.metrics,
        )
        metrics = result.metrics | {f"{SECONDS}:sum": seconds}
        return Answer(await _convert(size, codec.forward_backward_output, result, metrics, batch.trailing), PROTO)


async def optim_step(tools: Tools, turn: Turn, body: bytes) -> Answer:
    """Step on the gradients, which are then zero again."""
    request = wire.read(body, wire.OptimStep)
    if request.optimizer_params is not None:
        raise UsageError(f"optimizer {request.optimizer_params.get('type')!r} is not served here; there is: adamw")
    params = wire.convert(request.adam_params or {}, _StrictAdam)
    began = time.perf_counter()
    metrics = await tools.engine.optim_step(turn.run_id, params)
    seconds = time.perf_counter() - began
    seen = metrics | {"learning_rate": params.learning_rate}
    tools.steps.note(turn.run_id, steps.OPTIM_STEP, seconds=seconds, queued_s=began - turn.came, metrics=seen)
    return answer(metrics=metrics | {SECONDS: seconds})


async def save_weights(tools: Tools, turn: Turn, body: bytes) -> Answer:
    """Save adapter and optimiser, so that training can go on from there."""
    request = wire.read(body, wire.SaveWeights)
    if request.path is None:
        raise UsageError("save_weights needs a name (path)")
    path = TinkerPath(turn.run_id, Kind.WEIGHTS, checked_name(request.path))
    if not request.overwrite:
        _refuse_existing(tools.registry, path, "Delete it first, or save with overwrite=True.")
    await _save(tools, turn, path, request.ttl_seconds, request.user_metadata)
    return answer(type="save_weights", path=str(path))


async def save_for_sampler(tools: Tools, turn: Turn, body: bytes) -> Answer:
    """Save the adapter alone: under a name, or unnamed for one sampling session."""
    request = wire.read(body, wire.SaveWeightsForSampler)
    if request.path is None:
        return await _save_unnamed(tools, turn, request)
    if request.kind != "snapshot":
        raise UsageError(f"a save of kind {request.kind!r} has no name; leave path out")
    path = TinkerPath(turn.run_id, Kind.SAMPLER, checked_name(request.path))
    _refuse_existing(tools.registry, path, "Delete it first, or save under another name.")
    await _save(tools, turn, path, request.ttl_seconds, request.user_metadata)
    return answer(type="save_weights_for_sampler", path=str(path))


async def save_external(tools: Tools, turn: Turn, body: bytes) -> Answer:
    """Save the adapter as files to be taken away."""
    request = wire.read(body, wire.SaveWeightsExternal)
    path = TinkerPath(turn.run_id, Kind.EXTERNAL, checked_name(request.path))
    _refuse_existing(tools.registry, path, "Delete it first, or save under another name.")
    saved = await _save(tools, turn, path, request.ttl_seconds, None, request.age_encryption_recipients or [])
    return answer(type="save_weights_external", path=str(path), size_bytes=saved.size)


async def create_custom_loss(tools: Tools, request: wire.CreateCustomLoss) -> Answer:
    """Keep a loss of the client's own."""
    loss_id = await asyncio.to_thread(tools.losses.put, request)
    return answer(type="create_custom_loss", loss_id=loss_id)


async def sample(
    tools: Tools, turn: Turn, request: wire.Sample, plan: sampling.Plan, text: sampling.Detokenize | None
) -> Answer:
    """Sample from the sampling session that is the turn's run, and score the prompt if that was asked for."""
    async with tools.samplers.weights(turn.run_id, turn.tenant) as adapter:
        began = time.perf_counter()
        result = await sampling.run(tools.engine, adapter, plan, text)
    seconds = time.perf_counter() - began
    if request.record_stability_info:
        session_id, prompt = turn.run_id.partition(":")[0], plan.prompt
        for index, sequence in enumerate(result.sequences):
            sequence_id = f"{turn.request_id}:{index}"
            tools.provenance.record(session_id, sequence_id, prompt, sequence.tokens, sequence.logprobs)
    tokens = sum(len(sequence.tokens) for sequence in result.sequences)
    tools.quotas.book(turn.tenant, tenants.SAMPLED, tokens, seconds)
    tools.quotas.book(turn.tenant, tenants.SCORED, len(plan.prompt), 0.0)
    tools.steps.note(turn.run_id, steps.SAMPLE, seconds=seconds, queued_s=began - turn.came, rows=plan.n, tokens=tokens)
    return Answer(codec.sample_response(result, request.target_prompt_logprobs), PROTO)


def check_load(request: wire.LoadWeights) -> None:
    """Refuse what loading cannot do here."""
    path = parse(request.path)
    if request.optimizer and path.kind is Kind.SAMPLER:
        raise UsageError(f"{path} holds no optimizer state. Load it without, or load a path of kind weights.")
    if request.weights_access_token is not None:
        raise UsageError("weights_access_token: there are no other accounts here; publish the checkpoint instead")
    check_optimizer(request.optimizer_config)


def check_optimizer(config: dict[str, Any] | None) -> None:
    """Refuse an optimizer that is not served."""
    if config is not None and config != {"type": "adamw"}:
        raise UsageError(f"optimizer_config {config} is not served here; there is: {{'type': 'adamw'}}")


class _StrictAdam(AdamParams, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same fields, and no others."""


async def _convert(size: int, convert: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Convert to or from what the engine takes; a request may hold a million numbers, which must not hold up others."""
    if size < _LARGE:
        return convert(*args, **kwargs)
    return await asyncio.to_thread(convert, *args, **kwargs)


async def _load(tools: Tools, adapter: str, tenant: str, path: str, optimizer: bool) -> LoraSpec:
    saved = tools.samplers.checkpoint(parse(path), tenant)
    while True:
        try:
            return await tools.engine.load(adapter, str(tools.registry.folder(saved)), optimizer=optimizer)
        except EngineError:
            before, saved = saved, tools.samplers.checkpoint(parse(path), tenant)
            if saved.folder == before.folder:  # else a newer save has taken its place while it was read
                raise


async def _save_unnamed(tools: Tools, turn: Turn, request: wire.SaveWeightsForSampler) -> Answer:
    number, run = request.sampling_session_seq_id, tools.registry.run(turn.run_id, turn.tenant)
    if number is None:
        raise UsageError("save_weights_for_sampler needs a name (path) or a sampling_session_seq_id")
    if request.ttl_seconds is not None:
        raise UsageError("ttl_seconds is for a save with a name (path); this one ends with its session")
    if request.kind == "snapshot":
        sampler_id = await tools.samplers.snapshot(run, number)
    elif request.kind == "inflight":
        sampler_id = await tools.samplers.publish(run, number)
    else:
        raise UsageError(f"sampling client kind {request.kind!r} is not served here; there are: snapshot, inflight")
    return answer(type="save_weights_for_sampler", sampling_session_id=sampler_id)


async def _save(
    tools: Tools,
    turn: Turn,
    path: TinkerPath,
    ttl_s: int | None,
    metadata: dict[str, str] | None,
    recipients: list[str] | None = None,
) -> SavedCheckpoint:
    expires_us = expiry(ttl_s)
    tools.quotas.admit_checkpoint(turn.tenant)
    folder = await asyncio.to_thread(tools.registry.new_folder, path)
    try:
        if recipients is None:
            written = await tools.engine.save(turn.run_id, str(folder), optimizer=path.kind is Kind.WEIGHTS)
        else:
            written = await external.write(tools.engine, turn.run_id, folder, recipients)
        saved = SavedCheckpoint(
            path=str(path),
            folder=folder.name,
            digest=written.digest,
            size=written.size,
            created_us=ids.now_us(),
            expires_us=expires_us,
            user_metadata=metadata,
        )
        await asyncio.to_thread(tools.registry.put_checkpoint, saved)
    except DoorstepError:  # on a full disk what no record names must not stay, nor what was not encrypted yet
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        raise
    return saved


def _refuse_existing(registry: Registry, path: TinkerPath, advice: str) -> None:
    if registry.has_checkpoint(path):
        raise UsageError(f"{path} exists. {advice}")
