"""Sessions, training runs and checkpoints as the REST client lists them: records in, plain JSON values out."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from doorstep.errors import UsageError
from doorstep.training.paths import Kind, parse, split_run_id
from doorstep.training.registry import Damaged, Registry, SavedCheckpoint, Session, TrainingRun
from doorstep.training.tenants import Quotas

_TYPES = {Kind.WEIGHTS: "training", Kind.SAMPLER: "sampler", Kind.EXTERNAL: "external"}

DEFAULT_PROJECT = "default"  # of sessions that were begun without one


def page(items: Sequence[Any], limit: int, offset: int) -> tuple[Sequence[Any], dict[str, int]]:
    """Return one page of what is listed, and the cursor that says which."""
    return items[offset : offset + limit], {"offset": offset, "limit": limit, "total_count": len(items)}


# Training runs


def training_run(registry: Registry, run: TrainingRun, tenant: str | None) -> dict[str, Any]:
    """Return one run with its newest checkpoints that the tenant may read; None is the operator, who may all."""
    own = tenant in (None, run.owner)
    saved = registry.checkpoints(run.run_id, tenant)
    last = {kind: [item for item in saved if parse(item.path).kind is kind][-1:] for kind in Kind}
    return {
        "training_run_id": run.run_id,
        "base_model": run.base,
        "model_owner": run.owner,
        "is_lora": run.spec.rank > 0,
        "lora_rank": run.spec.rank or None,
        "last_request_time": time(max([run.created_us] + [item.created_us for item in saved])),
        "last_checkpoint": next(map(checkpoint, last[Kind.WEIGHTS]), None),
        "last_sampler_checkpoint": next(map(checkpoint, last[Kind.SAMPLER]), None),
        "user_metadata": _metadata(run.user_metadata) if own else None,
    }


def damaged_run(found: Damaged, tenant: str) -> dict[str, Any]:
    """Return what can be said of a run whose record cannot be read."""
    return {
        "training_run_id": found.name,
        "base_model": "unknown",
        "model_owner": tenant,
        "is_lora": True,
        "corrupted": True,
        "last_request_time": time(0),
        "user_metadata": {"error": found.why},
    }


# Checkpoints


def checkpoint(saved: SavedCheckpoint) -> dict[str, Any]:
    """Return one checkpoint."""
    path = parse(saved.path)
    return {
        "checkpoint_id": path.checkpoint_id,
        "checkpoint_type": _TYPES[path.kind],
        "time": time(saved.created_us),
        "tinker_path": saved.path,
        "size_bytes": saved.size,
        "public": saved.public,
        "user_metadata": saved.user_metadata,
        "expires_at": None if saved.expires_us is None else time(saved.expires_us),
    }


def damaged_checkpoint(found: Damaged) -> dict[str, Any]:
    """Return what can be said of a checkpoint whose record cannot be read."""
    path = parse(found.name)
    return {
        "checkpoint_id": path.checkpoint_id,
        "checkpoint_type": _TYPES[path.kind],
        "time": time(0),
        "tinker_path": found.name,
        "user_metadata": {"error": found.why},
    }


def weights_info(run: TrainingRun, saved: SavedCheckpoint) -> dict[str, Any]:
    """Return the shape of a checkpoint's adapter, and beyond the Tinker API the digest of its tensors."""
    return {
        "base_model": run.base,
        "is_lora": run.spec.rank > 0,
        "lora_rank": run.spec.rank or None,
        "train_attn": run.spec.train_attn,
        "train_mlp": run.spec.train_mlp,
        "train_unembed": run.spec.train_unembed,
        "digest": saved.digest,
    }


# Sessions


def session(registry: Registry, found: Session) -> dict[str, Any]:
    """Return one session with what was made in it."""
    return {
        "training_run_ids": [run.run_id for run in registry.runs_of(found.session_id)],
        "sampler_ids": [sampler.sampler_id for sampler in registry.samplers_of(found.session_id)],
        "user_metadata": _metadata(found.user_metadata),
        "display_name": found.display_name,
    }


def summary(registry: Registry, found: Session) -> dict[str, Any]:
    """Return one session as a search shows it."""
    saved = [item for run in registry.runs_of(found.session_id) for item in registry.checkpoints(run.run_id, None)]
    return {
        "session_id": found.session_id,
        "created_at": time(found.created_us),
        "owner": found.owner,
        "project_id": project(found),
        "status": status(found),
        "checkpoints_count": len(saved),
        "display_name": found.display_name,
        "user_metadata": _metadata(found.user_metadata),
        "checkpoint_storage_bytes": sum(item.size for item in saved),
    }


def status(found: Session) -> dict[str, Any]:
    """Return whether a session goes on, or how its client ended it."""
    if found.finished is None:
        return {"type": "active"}
    return {"type": "client_finished", "reason": {"type": found.finished}}


def project(found: Session) -> str:
    """Return the project that a session is in."""
    return found.project_id or DEFAULT_PROJECT


def project_of_run(registry: Registry, run: TrainingRun) -> str:
    """Return the project that a run is in, which is its session's."""
    try:
        return project(registry.session(split_run_id(run.run_id)[0], None))
    except UsageError:  # its record cannot be read
        return DEFAULT_PROJECT


# Usage


def usage(quotas: Quotas, registry: Registry, tenant: str) -> dict[str, Any]:
    """Return what a tenant used and may use."""
    limits = quotas.limits
    return {
        "tenant": tenant,
        "used": quotas.usage.of(tenant),
        "tokens_today": quotas.usage.tokens_today(tenant),
        "checkpoint_bytes": registry.bytes_of(tenant),
        "limits": {
            "max_models": limits.max_models or None,
            "max_tokens_per_day": limits.max_tokens_per_day or None,
            "max_checkpoint_bytes": limits.max_checkpoint_bytes or None,
        },
    }


def time(at_us: int) -> str:
    """Return a moment in ISO 8601, UTC."""
    return datetime.fromtimestamp(at_us / 1e6, UTC).isoformat()


def _metadata(given: dict[str, Any] | None) -> dict[str, str] | None:
    """Return metadata as the SDK reads it: every value a text."""
    if given is None:
        return None
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in given.items()}
