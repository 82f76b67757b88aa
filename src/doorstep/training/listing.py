"""Training runs and checkpoints as the REST client lists them: records in, plain JSON values out."""

from datetime import UTC, datetime
from typing import Any

from doorstep.training.paths import Kind, parse
from doorstep.training.registry import Registry, SavedCheckpoint, TrainingRun

_TYPES = {Kind.WEIGHTS: "training", Kind.SAMPLER: "sampler"}


def training_runs(registry: Registry, limit: int, offset: int) -> dict[str, Any]:
    """Return one page of runs, the newest first."""
    runs = registry.runs()
    page = [training_run(registry, run) for run in runs[offset : offset + limit]]
    return {"training_runs": page, "cursor": {"offset": offset, "limit": limit, "total_count": len(runs)}}


def training_run(registry: Registry, run: TrainingRun) -> dict[str, Any]:
    """Return one run with its newest checkpoints."""
    saved = registry.checkpoints(run.run_id)
    last = {kind: [item for item in saved if parse(item.path).kind is kind][-1:] for kind in Kind}
    return {
        "training_run_id": run.run_id,
        "base_model": run.base,
        "model_owner": run.owner,
        "is_lora": True,
        "lora_rank": run.spec.rank,
        "last_request_time": _time(max([run.created_us] + [item.created_us for item in saved])),
        "last_checkpoint": next(map(checkpoint, last[Kind.WEIGHTS]), None),
        "last_sampler_checkpoint": next(map(checkpoint, last[Kind.SAMPLER]), None),
        "user_metadata": run.user_metadata,
    }


def checkpoints(registry: Registry, run_id: str) -> dict[str, Any]:
    """Return all checkpoints of a run, oldest first."""
    registry.run(run_id)
    return {"checkpoints": [checkpoint(saved) for saved in registry.checkpoints(run_id)]}


def checkpoint(saved: SavedCheckpoint) -> dict[str, Any]:
    """Return one checkpoint."""
    path = parse(saved.path)
    return {
        "checkpoint_id": path.checkpoint_id,
        "checkpoint_type": _TYPES[path.kind],
        "time": _time(saved.created_us),
        "tinker_path": saved.path,
        "size_bytes": saved.size,
        "user_metadata": saved.user_metadata,
        "expires_at": None if saved.expires_us is None else _time(saved.expires_us),
    }


def weights_info(registry: Registry, path: str) -> dict[str, Any]:
    """Return the shape of a checkpoint's adapter, and beyond the Tinker API the digest of its tensors."""
    parsed = parse(path)
    saved = registry.checkpoint(parsed)
    run = registry.run(parsed.run_id)
    return {
        "base_model": run.base,
        "is_lora": True,
        "lora_rank": run.spec.rank,
        "train_attn": run.spec.train_attn,
        "train_mlp": run.spec.train_mlp,
        "train_unembed": run.spec.train_unembed,
        "digest": saved.digest,
    }


def _time(at_us: int) -> str:
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat()
