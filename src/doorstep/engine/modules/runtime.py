"""The runtime for whatever ``transformers`` has: its modules, one task after another."""

from collections.abc import Generator, Sequence
from functools import partial
from pathlib import Path

import torch

from doorstep.engine import checkpoint
from doorstep.engine.adapter import Adapter, Trained
from doorstep.engine.api import Checkpoint, Image, LoraSpec, Loss, ScoreParams, Scores, TrainRow
from doorstep.engine.full import is_full
from doorstep.engine.modules import whole
from doorstep.engine.modules.base import Base
from doorstep.engine.modules.changes import Changes
from doorstep.engine.modules.sampler import ModulesSampler
from doorstep.engine.modules.trainer import forward_backward
from doorstep.engine.modules.whole import Whole
from doorstep.engine.rows import check_rows
from doorstep.engine.runtime import Task
from doorstep.engine.scoring import score_hidden
from doorstep.errors import EngineError


class ModulesRuntime:
    """A ``Runtime`` over one module; ``nf4`` keeps its linear layers in four bits."""

    def __init__(self, folder: Path, name: str, device: torch.device, nf4: bool = False) -> None:
        self._base = Base(folder, name, device, nf4)
        self.info = self._base.info
        self.ends = self._base.ends

    def adapter(self, spec: LoraSpec) -> Trained:
        """Make an adapter as training begins; with rank 0 a copy of the model's own parameters."""
        if spec.rank == 0:
            return whole.fresh(spec, self._base)
        adapter = Adapter(spec, self._base.sites.of(spec), self._base.device)
        adapter.initialise()
        return adapter

    def save(self, adapter: Trained, folder: Path, optimizer: bool) -> Checkpoint:
        """Write an adapter as PEFT reads it, a model trained in full as ``transformers`` does."""
        if isinstance(adapter, Whole):
            return whole.save(adapter, self._base, folder, optimizer)
        assert isinstance(adapter, Adapter)
        return checkpoint.save(adapter, self.info, self._base.sites, folder, optimizer)

    def load(self, folder: Path, optimizer: bool) -> Trained:
        """Read an adapter, or a model trained in full."""
        if is_full(folder):
            return whole.load(self._base, folder, optimizer)
        return checkpoint.load(self.info, self._base.sites, folder, optimizer, self._base.device)

    def merged(self, adapter: Adapter | Whole | None) -> Changes:
        """Return what an adapter is now, in effect on the base."""
        return self._base.changes(adapter)

    def check(self, rows: list[TrainRow], loss: Loss) -> None:
        """Raise an EngineError that names the first row and field that cannot be trained on."""
        check_rows(rows, loss, self.info)

    def train(self, tasks: Sequence[Task[Changes]]) -> Generator[None, None, None]:
        """Do the tasks one after another; pauses between micro-batches."""
        for task in tasks:
            try:
                task.done = yield from forward_backward(self._base, task)
            except EngineError as error:
                task.done = error
            except Exception as error:  # of this task; the others go on
                task.done = EngineError(f"training failed: {type(error).__name__}: {error}", "server")

    def score(self, weights: Changes, tokens: list[int], params: ScoreParams, images: Sequence[Image]) -> Scores:
        """Return the log-probabilities of a text."""
        base = self._base
        with torch.no_grad():
            placed = base.place(tokens, images)
            hidden = base.hidden(weights, placed.tokens, **placed.inputs)[0, :-1]
            return score_hidden(hidden, partial(base.logits, weights), tokens, params)

    def sampler(self) -> ModulesSampler:
        """Return a new, empty sampler."""
        return ModulesSampler(self._base)

    def measure(self, images: Sequence[bytes]) -> list[int]:
        """Return how many tokens each image takes."""
        return self._base.reader().measure(images)
