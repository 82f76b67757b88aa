"""Training without factors, LoRA of rank 0, on a ``transformers`` module: its own parameters in one flat vector.

A saved model is a folder that ``transformers`` loads, with what the base's folder has beside its weights; the settings
and AdamW's state lie beside. The groups of a spec choose the matrices; all three together are the whole language model.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from doorstep.engine.adapter import Trained
from doorstep.engine.api import Checkpoint, LoraSpec
from doorstep.engine.checkpoint import OPTIMIZER, appearing, digest, optimizer_state, own, restore, size_of
from doorstep.engine.full import CONFIG, SETTINGS
from doorstep.engine.modules.base import Base, load_model
from doorstep.engine.modules.sites import Sites
from doorstep.errors import EngineError


class Whole(Trained):
    """Parameters in training. ``places`` says of each whose numbers it has: tied ones have the same."""

    def __init__(self, spec: LoraSpec, places: dict[str, str], shapes: dict[str, torch.Size], flat: Tensor) -> None:
        super().__init__(spec, flat)
        self.places = places
        self._shapes = shapes

    @classmethod
    def of(cls, spec: LoraSpec, parameters: Mapping[str, Tensor]) -> "Whole":
        """Take a copy of parameters."""
        first: dict[int, str] = {}
        places = {name: first.setdefault(id(tensor), name) for name, tensor in parameters.items()}
        shapes = {name: parameters[name].shape for name in first.values()}
        return cls(spec, places, shapes, torch.cat([parameters[name].flatten().float() for name in shapes]))

    def copy(self) -> "Whole":
        """Return the same numbers in memory of their own."""
        return Whole(self.spec, self.places, self._shapes, self.flat.clone())

    def merge(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what takes the place of the base's ``tensors``."""
        return {name: tensor.to(tensors[name].dtype) for name, tensor in self.parameters().items()}

    def parameters(self) -> dict[str, Tensor]:
        """Return a copy of the parameters by name, in fp32."""
        views = self._views(self.flat.clone())
        return {name: views[place] for name, place in self.places.items()}

    def to(self, device: torch.device) -> "Whole":
        """Return the same numbers on a device."""
        return Whole(self.spec, self.places, self._shapes, self.flat.to(device))

    def add_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the gradients of what ``merge`` gave."""
        views = self._views(self.gradient)
        for name, gradient in gradients.items():
            views[self.places[name]].add_(gradient)

    def _views(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.split([shape.numel() for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}


def fresh(spec: LoraSpec, base: Base) -> Whole:
    """Return the base's own numbers, ready to be trained."""
    if base.quantised:
        raise EngineError("rank 0 trains the matrices themselves, which four bits cannot hold; give a rank")
    return _of(spec, base.model, base.sites)


def save(trained: Whole, base: Base, folder: Path, optimizer: bool) -> Checkpoint:
    """Write the model to a folder that does not exist yet, or replace one."""
    model, source = base.model, Path(base.info.folder)
    changed = base.sites.turned(trained.parameters())
    untied = base.sites.head in changed and base.sites.head == trained.places[base.sites.head]
    with appearing(folder) as temporary:
        model.save_pretrained(temporary, state_dict=model.state_dict() | {n: own(t) for n, t in changed.items()})
        if untied:
            config: dict[str, Any] = msgspec.json.decode((temporary / CONFIG).read_bytes())
            (temporary / CONFIG).write_bytes(msgspec.json.encode(config | {"tie_word_embeddings": False}))
        for file in source.iterdir():
            if file.is_file() and ".safetensors" not in file.name and not (temporary / file.name).exists():
                shutil.copy(file, temporary)
        (temporary / SETTINGS).write_bytes(msgspec.json.encode(trained.spec))
        if optimizer:
            save_file(optimizer_state(trained), temporary / OPTIMIZER)
        size = size_of(temporary)
    return Checkpoint(digest=digest(msgspec.to_builtins(trained.spec), trained), size=size)


def load(base: Base, folder: Path, optimizer: bool) -> Whole:
    """Read a model; EngineError says why a folder does not fit the base."""
    try:
        spec = msgspec.json.decode((folder / SETTINGS).read_bytes(), type=LoraSpec)
        state = load_file(folder / OPTIMIZER) if optimizer else {}
    except (OSError, msgspec.DecodeError, SafetensorError) as error:
        raise EngineError(f"{folder} holds no model that can be read: {error}") from error
    cpu = torch.device("cpu")  # where a model is in fp32, whatever the base is in
    trained = _of(spec, load_model(folder, cpu), base.sites).to(base.device)
    if trained.flat.shape != fresh(spec, base).flat.shape:
        raise EngineError(f"the model in {folder} was made from another base than {base.info.name}")
    restore(trained, state)
    return trained


def _of(spec: LoraSpec, model: Any, sites: Sites) -> Whole:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    names = [str(site.place) for site in sites.of(spec)]
    if spec.train_attn and spec.train_mlp and spec.train_unembed:
        names = [name for name in parameters if name.startswith(sites.decoder) or name == sites.head]
    return Whole.of(spec, sites.turned({name: parameters[name] for name in names}))
