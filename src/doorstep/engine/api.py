"""What the engine does, in tokens, adapters and numbers: the seam that others program against.

This module imports no torch. It knows no text, tenant or table. Positions follow the Tinker API:
position ``i`` of a row's tokens predicts ``targets[i]``; losses are plain sums over tokens and rows.
"""

from collections.abc import AsyncIterator
from typing import Protocol

import msgspec


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The base model that an engine holds."""

    name: str
    folder: str  # has config.json, *.safetensors and the tokenizer's files
    digest: str  # SHA-256 over the weight files
    tokenizer_digest: str
    parameters: int
    vocabulary: int
    max_context: int  # tokens


class LoraSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Shape of a LoRA adapter. Scaling is ``alpha / rank``."""

    rank: int = 32
    alpha: float = 32.0
    seed: int = 0
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True


class TrainRow(msgspec.Struct, frozen=True, kw_only=True):
    """One datum. All per-position lists have the length of ``tokens``; absent ones are not used by the loss."""

    tokens: list[int]
    targets: list[int]
    weights: list[float] | None = None
    logprobs: list[float] | None = None
    advantages: list[float] | None = None


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """A loss by its Tinker name (``cross_entropy``, ``importance_sampling``, ``ppo``, ``cispo``) and settings."""

    name: str
    config: dict[str, float] = {}


class TrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """``logprobs[i]`` are the target log-probabilities of row ``i``; metrics carry ``loss:sum``."""

    logprobs: list[list[float]]
    metrics: dict[str, float]


class AdamParams(msgspec.Struct, frozen=True, kw_only=True):
    """AdamW exactly as torch has it. ``grad_clip_norm`` 0 is off (global norm)."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class Checkpoint(msgspec.Struct, frozen=True, kw_only=True):
    """What a save wrote: content digest of the adapter, bytes on disk."""

    digest: str
    size: int


class SampleParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to sample. ``stop`` are token-id sequences; ``None`` means the base's end tokens, ``[]`` none at all.

    A result depends on (weights, prompt, these parameters, sample index) alone, never on what else is in the batch.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    seed: int | None = None
    stop: list[list[int]] | None = None


class Token(msgspec.Struct, frozen=True):
    """One sampled token of sample ``index``; ``logprob`` is at temperature 1 over the whole vocabulary."""

    index: int
    id: int
    logprob: float


class Finished(msgspec.Struct, frozen=True):
    """Sample ``index`` is complete: ``reason`` is ``stop`` or ``length``."""

    index: int
    reason: str


class Engine(Protocol):
    """One base model and many LoRA adapters. Every method raises ``EngineError`` with a message that says what to do.

    ``adapter`` names are the caller's; ``None`` is the base itself. Operations on one adapter take effect in
    the order in which they were called.
    """

    async def info(self) -> ModelInfo:
        """Describe the base model."""
        ...

    async def create_adapter(self, adapter: str, spec: LoraSpec) -> None:
        """Make a fresh adapter: A random from the spec's seed, B zero."""
        ...

    async def drop_adapter(self, adapter: str) -> None:
        """Forget an adapter; what already samples from it goes on to its end."""
        ...

    async def forward_backward(
        self, adapter: str, rows: list[TrainRow], loss: Loss, forward_only: bool = False
    ) -> TrainResult:
        """Add a loss's gradients to those since the adapter's last step (not with ``forward_only``)."""
        ...

    async def optim_step(self, adapter: str, params: AdamParams) -> dict[str, float]:
        """Step AdamW and clear the gradients; returns ``step`` and ``grad_norm``, taken before clipping."""
        ...

    async def save(self, adapter: str, folder: str, optimizer: bool) -> Checkpoint:
        """Write the adapter in PEFT's format, atomically; with ``optimizer`` its AdamW state beside it."""
        ...

    async def load(self, adapter: str, folder: str, optimizer: bool) -> LoraSpec:
        """Make ``adapter`` from a saved folder; with ``optimizer`` training goes on bit for bit."""
        ...

    def sample(
        self, adapter: str | None, prompt: list[int], params: SampleParams, n: int = 1
    ) -> AsyncIterator[Token | Finished]:
        """Stream ``n`` samples of one prompt; closing the iterator cancels."""
        ...

    async def score(self, adapter: str | None, tokens: list[int]) -> list[float | None]:
        """Return each token's log-probability given those before it; the first is ``None``."""
        ...

    async def close(self) -> None:
        """Stop; what still waits fails with ``EngineUnavailable``."""
        ...
