"""What the worker asks of a way to compute: the seam between scheduling (``local``) and tensors.

Two implement it: ``native`` for decoders that it knows, ``modules`` for whatever ``transformers`` has. Everything here
is called on the worker's thread. ``W`` is what a runtime computes with, an adapter merged into the base, or beside it;
the worker only carries it about, and makes it anew when the adapter has changed. What is trained is a ``Trained`` of
the runtime's own making: an adapter, or with rank 0 the model's own parameters.
"""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from doorstep.engine.adapter import Trained
from doorstep.engine.api import Checkpoint, Image, LoraSpec, Loss, ModelInfo, ScoreParams, Scores, TrainResult, TrainRow
from doorstep.engine.requests import Request
from doorstep.errors import EngineError

W = TypeVar("W")
W_contra = TypeVar("W_contra", contravariant=True)


class Task(Generic[W]):
    """One forward-backward of one adapter. ``done`` has its result or error when ``train`` has come to its end."""

    def __init__(
        self, adapter: Any, merged: Callable[[], W], rows: list[TrainRow], loss: Loss, forward_only: bool
    ) -> None:
        self.adapter = adapter
        self._merged = merged
        self.rows = rows
        self.loss = loss
        self.forward_only = forward_only
        self.done: TrainResult | EngineError | None = None

    @property
    def weights(self) -> W:
        """What to compute with, for a runtime that does not train beside the base; made when first asked for."""
        return self._merged()


class Sampler(Protocol[W_contra]):
    """Everything that is being sampled, of all adapters."""

    @property
    def rows(self) -> int:
        """How many samples are alive."""
        ...

    def requests(self) -> list[Request]:
        """Return the requests with samples alive."""
        ...

    def add(self, weights: W_contra, request: Request) -> None:
        """Read a request's prompt and choose its first tokens."""
        ...

    def step(self) -> None:
        """Give every sample its next token; let the finished and the cancelled go."""
        ...


class Runtime(Protocol[W]):
    """A base model and how to train and sample adapters on it."""

    info: ModelInfo
    ends: list[list[int]]  # its end-of-text tokens

    def adapter(self, spec: LoraSpec) -> Trained:
        """Make an adapter as training begins: it changes nothing yet."""
        ...

    def save(self, adapter: Any, folder: Path, optimizer: bool) -> Checkpoint:
        """Write an adapter, atomically, in the format that others read."""
        ...

    def load(self, folder: Path, optimizer: bool) -> Trained:
        """Read an adapter; EngineError says why a folder does not fit the base."""
        ...

    def merged(self, adapter: Any | None) -> W:
        """Return what to compute with; None is the base itself."""
        ...

    def check(self, rows: list[TrainRow], loss: Loss) -> None:
        """Raise an EngineError that names the first row and field that cannot be trained on. Called on any thread."""
        ...

    def train(self, tasks: Sequence[Task[W]]) -> Generator[None, None, None]:
        """Do the tasks, at most one of an adapter, together where that is quicker; pauses between micro-batches.

        What a task gives does not depend on the others. Its gradients arrive together at the end.
        """
        ...

    def score(self, weights: W, tokens: list[int], params: ScoreParams, images: Sequence[Image]) -> Scores:
        """Return the log-probabilities of a text."""
        ...

    def sampler(self) -> Sampler[W]:
        """Return a new, empty sampler."""
        ...

    def measure(self, images: Sequence[bytes]) -> list[int]:
        """Return how many tokens each image takes. Called on any thread."""
        ...
