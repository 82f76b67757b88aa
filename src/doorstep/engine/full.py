"""Training without factors, LoRA of rank 0: a model's own parameters in one flat vector, and they on disk.

A saved model is a folder that ``transformers`` loads, in fp32, with what the base's folder has beside its weights; the
settings and AdamW's state lie beside. The groups of a spec choose what is trained; all three together are the whole
model, embeddings and norms too. A head that is trained alone is no longer tied to the embeddings.
"""

import shutil
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from doorstep.engine.adapter import Trained
from doorstep.engine.api import Checkpoint, LoraSpec, ModelInfo
from doorstep.engine.checkpoint import OPTIMIZER, appearing, check_sums, digest, optimizer_state, own, restore, size_of
from doorstep.errors import EngineError

SETTINGS, WEIGHTS, CONFIG = "training.json", "model.safetensors", "config.json"
HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


class Full(Trained):
    """A model in training, from what a folder holds; the parameters that are not trained stay as they are there."""

    def __init__(self, spec: LoraSpec, folder: Path, device: torch.device | str = "cpu") -> None:
        everything = _read(folder, device)
        if spec.train_unembed and not _whole(spec):
            everything.setdefault(HEAD, everything[EMBEDDING])
        self.folder = folder
        self.padding: int | None = _config(folder).get("pad_token_id")  # its embedding is never trained
        self.shapes = {name: tensor.shape for name, tensor in everything.items() if _trains(spec, name)}
        self.frozen = {name: tensor for name, tensor in everything.items() if name not in self.shapes}
        super().__init__(spec, torch.cat([everything[name].flatten() for name in self.shapes]))

    def copy(self) -> "Full":
        """Return a model of the same numbers."""
        copied = Full(self.spec, self.folder, self.flat.device)
        copied.flat.copy_(self.flat)
        return copied

    def parameters(self, flat: Tensor, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        """Return all parameters by name, those that are trained as views of a vector laid out like ``flat``."""
        parts = flat.to(dtype).split([prod(shape) for shape in self.shapes.values()])
        trained = {name: part.view(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}
        return trained | {name: tensor.to(dtype) for name, tensor in self.frozen.items()}


def save(trained: Full, info: ModelInfo, folder: Path, optimizer: bool) -> Checkpoint:
    """Write the model to a folder that does not exist yet, or replace one."""
    config = _config(Path(info.folder))
    config |= {"dtype": "float32", "tie_word_embeddings": HEAD not in (trained.shapes | trained.frozen)}
    tensors = {name: own(tensor) for name, tensor in trained.parameters(trained.flat).items()}
    with appearing(folder) as temporary:
        for file in Path(info.folder).iterdir():
            if file.is_file() and not file.name.startswith(WEIGHTS) and file.suffix != ".safetensors":
                shutil.copy(file, temporary)
        (temporary / CONFIG).write_bytes(msgspec.json.format(msgspec.json.encode(config)))
        (temporary / SETTINGS).write_bytes(msgspec.json.encode(trained.spec))
        save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
        if optimizer:
            save_file(optimizer_state(trained), temporary / OPTIMIZER)
    return Checkpoint(digest=digest(msgspec.to_builtins(trained.spec), trained), size=size_of(folder))


def is_full(folder: Path) -> bool:
    """Tell whether ``save`` wrote a folder."""
    return (folder / SETTINGS).is_file()


def load(info: ModelInfo, folder: Path, optimizer: bool, device: torch.device | str) -> Full:
    """Read a model; EngineError says why a folder does not fit the base."""
    check_sums(folder, optimizer)
    try:
        spec = msgspec.json.decode((folder / SETTINGS).read_bytes(), type=LoraSpec)
        state: dict[str, Any] = load_file(folder / OPTIMIZER) if optimizer else {}
        fresh, trained = Full(spec, Path(info.folder), device), Full(spec, folder, device)
    except (OSError, msgspec.DecodeError, SafetensorError, KeyError) as error:
        raise EngineError(f"{folder} holds no model that can be read: {error}") from error
    if fresh.shapes != trained.shapes:
        raise EngineError(f"the model in {folder} was made from another base than {info.name}")
    restore(trained, state)
    return trained


def _read(folder: Path, device: torch.device | str) -> dict[str, Tensor]:
    found = {
        name: tensor.float()
        for file in sorted(folder.glob("*.safetensors"))
        if file.name != OPTIMIZER
        for name, tensor in load_file(file, device=str(device)).items()
    }
    if _config(folder).get("tie_word_embeddings"):
        found.pop(HEAD, None)
    return dict(sorted(found.items()))


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = msgspec.json.decode((folder / CONFIG).read_bytes())
    return config


def _trains(spec: LoraSpec, name: str) -> bool:
    groups = {".self_attn.": spec.train_attn, ".mlp.": spec.train_mlp, HEAD: spec.train_unembed}
    return _whole(spec) or any(chosen and group in name for group, chosen in groups.items())


def _whole(spec: LoraSpec) -> bool:
    return spec.train_attn and spec.train_mlp and spec.train_unembed
