"""Adapters on disk, in PEFT's format: ``adapter_config.json``, ``adapter_model.safetensors``; AdamW's state beside.

A folder appears whole or not at all, with the hashes of its files in ``SHA256SUMS``, as ``sha256sum`` reads it; what
was changed since is not loaded. The digest is over what the adapter computes: spec and tensors in a fixed order.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, product
from pathlib import Path
from typing import Annotated, Any, Protocol

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from doorstep.engine.adapter import MAX_RANK, Adapter, Site, Trained
from doorstep.engine.api import Checkpoint, LoraSpec, ModelInfo
from doorstep.errors import EngineError

CONFIG, TENSORS, OPTIMIZER = "adapter_config.json", "adapter_model.safetensors", "optimizer.safetensors"
SUMS = "SHA256SUMS"


class Sites(Protocol):
    """Which matrices of a base an adapter can change."""

    def of(self, spec: LoraSpec) -> list[Site]:
        """Return the sites that a spec trains, in a fixed order."""
        ...

    def targets(self, spec: LoraSpec) -> dict[str, list[str]]:
        """Return what PEFT's configuration calls them: ``target_modules``, and where there are experts
        ``target_parameters``.
        """
        ...


def save(adapter: Adapter, info: ModelInfo, sites: Sites, folder: Path, optimizer: bool) -> Checkpoint:
    """Write the adapter to a folder that does not exist yet, or replace one."""
    config = _config(adapter.spec, info, sites)
    with appearing(folder) as temporary:
        (temporary / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config)))
        tensors = {name: own(tensor.flatten(1)) for name, tensor in _tensors(adapter).items()}
        save_file(tensors, temporary / TENSORS, metadata={"format": "pt"})
        if optimizer:
            save_file(optimizer_state(adapter), temporary / OPTIMIZER)
    return Checkpoint(digest=digest(config, adapter), size=size_of(folder))


def load(info: ModelInfo, sites: Sites, folder: Path, optimizer: bool, device: torch.device | str = "cpu") -> Adapter:
    """Read an adapter; EngineError says why a folder does not fit the base."""
    check_sums(folder, optimizer)
    try:
        spec = _spec(msgspec.json.decode((folder / CONFIG).read_bytes(), type=_Config), sites)
        tensors = load_file(folder / TENSORS)
        state = load_file(folder / OPTIMIZER, device=str(device)) if optimizer else {}
    except (OSError, msgspec.DecodeError, SafetensorError) as error:
        raise EngineError(f"{folder} holds no adapter that can be read: {error}") from error
    adapter = Adapter(spec, sites.of(spec), device)
    wanted = _tensors(adapter)
    shapes = {name: tensor.flatten(1).shape for name, tensor in wanted.items()}
    if shapes != {name: part.shape for name, part in tensors.items()}:
        raise EngineError(f"the adapter in {folder} was made for another base: its matrices do not fit {info.name}")
    for name, tensor in wanted.items():
        tensor.copy_(tensors[name].view(tensor.shape))
    restore(adapter, state)
    return adapter


def _config(spec: LoraSpec, info: ModelInfo, sites: Sites) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": info.name,
        "revision": info.digest,
        "r": spec.rank,
        "lora_alpha": spec.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        **{key: names for key, names in sites.targets(spec).items() if names},
        "inference_mode": True,
    }


class _Config(msgspec.Struct, frozen=True):
    """What we read of PEFT's configuration."""

    r: Annotated[int, msgspec.Meta(ge=1, le=MAX_RANK)]
    lora_alpha: Annotated[float, msgspec.Meta(gt=0)]
    target_modules: list[str] | None = None
    target_parameters: list[str] | None = None


def _spec(config: _Config, sites: Sites) -> LoraSpec:
    given = {*(config.target_modules or ()), *(config.target_parameters or ())}
    for attention, mlp, unembed in product((True, False), repeat=3):
        spec = LoraSpec(
            rank=config.r,
            alpha=config.lora_alpha,
            train_attn=attention,
            train_mlp=mlp,
            train_unembed=unembed,
        )
        if given == set(chain(*sites.targets(spec).values())):
            return spec
    raise EngineError(f"the adapter changes {', '.join(sorted(given))}; whole groups of matrices are served here")


def _tensors(adapter: Adapter) -> dict[str, Tensor]:
    """Return views of the factors as PEFT lays them out: with experts (E·rank, inputs) and (outputs, rank, E)."""
    named: dict[str, Tensor] = {}
    for site, (a, b) in zip(adapter.sites, adapter.factors, strict=True):
        named[f"base_model.model.{site.name}.lora_A.weight"] = a.flatten(0, -2)
        named[f"base_model.model.{site.name}.lora_B.weight"] = b.permute(1, 2, 0) if site.experts else b
    return named


def own(tensor: Tensor) -> Tensor:
    """Return a tensor's numbers in memory of their own on the CPU, as a file wants them."""
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def optimizer_state(adapter: Trained) -> dict[str, Tensor]:
    """Return AdamW's state, only ``step`` 0 before the first step."""
    state: dict[str, Tensor] = adapter.optimizer.state.get(adapter.flat) or {"step": torch.tensor(0.0)}
    return {name: own(tensor) for name, tensor in state.items()}


def restore(adapter: Trained, state: dict[str, Tensor]) -> None:
    """Go on from a saved ``optimizer_state``; an empty one leaves the optimiser fresh."""
    if state and state["step"] > 0:
        # All of it, for a fused AdamW keeps the number of its steps beside the moments.
        adapter.optimizer.state[adapter.flat] = {name: tensor.to(adapter.flat.device) for name, tensor in state.items()}


def digest(config: Any, adapter: Trained) -> str:
    """Return the SHA-256 of what is trained: its settings and its numbers."""
    numbers = adapter.flat.cpu().numpy().tobytes()
    return hashlib.sha256(msgspec.json.encode(config, order="sorted") + numbers).hexdigest()


def size_of(folder: Path) -> int:
    """Return the bytes of a folder's files."""
    return sum(file.stat().st_size for file in folder.iterdir())


def check_sums(folder: Path, optimizer: bool) -> None:
    """Raise an EngineError when files are not as they were saved; a folder of another's making may have no hashes."""
    sums = folder / SUMS
    for line in sums.read_text("utf-8", "replace").splitlines() if sums.is_file() else []:
        wanted, _, name = line.partition("  ")
        if name == OPTIMIZER and not optimizer:
            continue
        if not (folder / name).is_file() or _hash(folder / name) != wanted:
            raise EngineError(
                f"{name} in {folder} is damaged: it is not as it was saved. Restore it from a copy, or load another "
                f"checkpoint. (Who has changed it on purpose removes {SUMS}.)"
            )


def _write_sums(folder: Path) -> None:
    lines = [f"{_hash(file)}  {file.name}\n" for file in sorted(folder.iterdir())]
    (folder / SUMS).write_text("".join(lines))


def _hash(file: Path) -> str:
    with file.open("rb") as data:
        return hashlib.file_digest(data, "sha256").hexdigest()


@contextmanager
def appearing(folder: Path) -> Iterator[Path]:
    """Give a temporary folder to write to, and put it in the place of ``folder`` when all went well."""
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        yield temporary
        _write_sums(temporary)
        _publish(temporary, folder)
    except (OSError, SafetensorError) as error:  # safetensors tells of a full disk in its own error
        raise EngineError(f"nothing could be written to {folder}: {error}", "server") from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


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
