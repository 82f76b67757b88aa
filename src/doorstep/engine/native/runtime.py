"""The native runtime: adapters train and sample beside the base's packed matrices."""

from collections.abc import Generator, Sequence
from pathlib import Path

import torch

from doorstep.engine import checkpoint, full
from doorstep.engine.adapter import Adapter
from doorstep.engine.api import Checkpoint, Image, LoraSpec, Loss, ScoreParams, Scores, TrainRow
from doorstep.engine.full import Full
from doorstep.engine.native import trainer
from doorstep.engine.native.base import load_base, pack
from doorstep.engine.native.prefix import Reader
from doorstep.engine.native.sampler import NativeSampler
from doorstep.engine.native.sites import NativeSites
from doorstep.engine.native.version import Version, version
from doorstep.engine.rows import check_rows
from doorstep.engine.runtime import Task
from doorstep.engine.scoring import score_hidden
from doorstep.errors import EngineError


class NativeRuntime:
    """A ``Runtime`` over a decoder of packed tensors."""

    def __init__(self, folder: Path, name: str, device: torch.device) -> None:
        self._base = load_base(folder, name, device)
        self._sites = NativeSites(self._base.shape)
        self._reader = Reader(self._base)
        self._plain = version(self._base.weights, None)
        self._device = device
        self.info = self._base.info
        self.ends = self._base.ends

    def adapter(self, spec: LoraSpec) -> Adapter | Full:
        """Make an adapter as training begins; with rank 0 a copy of the model's own parameters."""
        if spec.rank == 0:
            return Full(spec, Path(self.info.folder), self._device)
        adapter = Adapter(spec, self._sites.of(spec), self._device)
        adapter.initialise()
        return adapter

    def save(self, adapter: Adapter | Full, folder: Path, optimizer: bool) -> Checkpoint:
        """Write an adapter as PEFT reads it, a model trained in full as ``transformers`` does."""
        if isinstance(adapter, Full):
            return full.save(adapter, self.info, folder, optimizer)
        return checkpoint.save(adapter, self.info, self._sites, folder, optimizer)

    def load(self, folder: Path, optimizer: bool) -> Adapter | Full:
        """Read what was saved."""
        if full.is_full(folder):
            return full.load(self.info, folder, optimizer, self._device)
        return checkpoint.load(self.info, self._sites, folder, optimizer, self._device)

    def merged(self, adapter: Adapter | Full | None) -> Version:
        """Return what to compute with: the base with an adapter's numbers beside it, or a model trained in full."""
        if isinstance(adapter, Full):
            parameters = adapter.parameters(adapter.flat.clone(), self._base.weights.head.dtype)
            return version(pack(parameters, self._base.shape), None)
        return self._plain if adapter is None else version(self._base.weights, adapter)

    def check(self, rows: list[TrainRow], loss: Loss) -> None:
        """Raise an EngineError that names the first row and field that cannot be trained on."""
        check_rows(rows, loss, self.info)

    def train(self, tasks: Sequence[Task[Version]]) -> Generator[None, None, None]:
        """Do the tasks together; pauses after each pass of the decoder."""
        return trainer.train(self._base, tasks)

    def score(self, weights: Version, tokens: list[int], params: ScoreParams, _images: Sequence[Image]) -> Scores:
        """Return the log-probabilities of a text."""
        with torch.inference_mode():
            hidden = self._reader.read(weights, tokens).hidden[:-1]
            return score_hidden(hidden, weights.logits, tokens, params)

    def sampler(self) -> NativeSampler:
        """Return a new, empty sampler."""
        return NativeSampler(self._base, self._reader)

    def measure(self, _images: Sequence[bytes]) -> list[int]:
        """Refuse: these models take none."""
        raise EngineError(f"{self.info.name} takes no images")
