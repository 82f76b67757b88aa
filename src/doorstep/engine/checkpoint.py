"""Adapters on disk, in PEFT's format: ``adapter_config.json``, ``adapter_model.safetensors``; AdamW's state beside.

A folder appears whole or not at all. The digest is over what the adapter computes: spec and tensors in a fixed order.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from doorstep.engine.adapter import Adapter
from doorstep.engine.api import Checkpoint, LoraSpec
from doorstep.engine.native.base import Base
from doorstep.errors import EngineError

CONFIG, TENSORS, OPTIMIZER = "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
HEAD = ("lm_head",)


def save(adapter: Adapter, base: Base, folder: Path, optimizer: bool) -> Checkpoint:
    """Write the adapter to a folder that does not exist yet, or replace one."""
    config = _config(adapter.spec, base)
    tensors = {name: tensor.clone() for name, tensor in _tensors(adapter).items()}  # each in memory of its own
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        (temporary / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config)))
        save_file(tensors, temporary / TENSORS, metadata={"format": "pt"})
        if optimizer:
            save_file(_optimizer_state(adapter), temporary / OPTIMIZER)
        size = sum(file.stat().st_size for file in temporary.iterdir())
        _publish(temporary, folder)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise EngineError(f"the adapter could not be written to {folder}: {error}", "server") from error
    return Checkpoint(digest=_digest(config, adapter), size=size)


def load(base: Base, folder: Path, optimizer: bool) -> Adapter:
    """Read an adapter; EngineError says why a folder does not fit the base."""
    try:
        spec = _spec(msgspec.json.decode((folder / CONFIG).read_bytes()))
        tensors = load_file(folder / TENSORS)
        state = load_file(folder / OPTIMIZER) if optimizer else {}
    except (OSError, msgspec.DecodeError, SafetensorError, KeyError, TypeError) as error:
        raise EngineError(f"{folder} holds no adapter that can be read: {error}") from error
    adapter = Adapter(spec, base.shape)
    wanted = _tensors(adapter)
    if {name: tensor.shape for name, tensor in wanted.items()} != {name: part.shape for name, part in tensors.items()}:
        raise EngineError(
            f"the adapter in {folder} was made for another base: its matrices do not fit {base.info.name}"
        )
    for name, tensor in wanted.items():
        tensor.copy_(tensors[name])
    if state and state["step"] > 0:
        adapter.optimizer.state[adapter.flat] = state
    return adapter


def _config(spec: LoraSpec, base: Base) -> dict[str, Any]:
    chosen = ATTENTION * spec.train_attn + MLP * spec.train_mlp + HEAD * spec.train_unembed
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.info.name,
        "revision": base.info.digest,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(chosen),
        "inference_mode": True,
    }


def _spec(config: dict[str, Any]) -> LoraSpec:
    targets = set(config["target_modules"])
    groups = [group for group in (ATTENTION, MLP, HEAD) if set(group) <= targets]
    if targets != {name for group in groups for name in group}:
        raise EngineError(f"the adapter changes {', '.join(sorted(targets))}; whole groups of matrices are served here")
    return LoraSpec(
        rank=config["r"],
        alpha=float(config["lora_alpha"]),
        train_attn=ATTENTION in groups,
        train_mlp=MLP in groups,
        train_unembed=HEAD in groups,
    )


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {}
    for site, factors in zip(adapter.sites, adapter.factors, strict=True):
        named[f"base_model.model.{site.name}.lora_A.weight"] = factors.a
        named[f"base_model.model.{site.name}.lora_B.weight"] = factors.b
    return named


def _optimizer_state(adapter: Adapter) -> dict[str, Tensor]:
    state: dict[str, Tensor] = adapter.optimizer.state.get(adapter.flat) or {"step": torch.tensor(0.0)}
    return state


def _digest(config: dict[str, Any], adapter: Adapter) -> str:
    return hashlib.sha256(msgspec.json.encode(config, order="sorted") + adapter.flat.numpy().tobytes()).hexdigest()


def _publish(temporary: Path, folder: Path) -> None:
    """Make a written folder durable and give it its name."""
    for file in temporary.iterdir():
        _sync(file)
    _sync(temporary)
    if folder.exists():
        shutil.rmtree(folder)
    temporary.rename(folder)
    _sync(folder.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
