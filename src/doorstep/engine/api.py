"""What the engine does, in tokens, adapters and numbers: the seam that others program against.

This module imports no torch. It knows no text, tenant or table. Positions follow the Tinker API:
position ``i`` of a row's tokens predicts ``targets[i]``; losses are plain sums over tokens and rows.
"""

from collections.abc import AsyncIterator, Sequence
from typing import Literal, Protocol

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
    vision: bool = False  # whether it takes images


class LoraSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Shape of a LoRA adapter. Scaling is ``alpha / rank``; rank 0 trains the matrices themselves, without factors."""

    rank: int = 32
    alpha: float = 32.0
    seed: int = 0
    train_attn: bool = True
    train_mlp: bool = True
    train_unembed: bool = True


class Image(msgspec.Struct, frozen=True, kw_only=True):
    """An image among tokens: the ids from ``at`` on, ``tokens`` of them, only hold its place."""

    at: int
    tokens: int  # as ``Engine.measure`` counts them
    data: bytes  # PNG, JPEG or WebP


class TrainRow(msgspec.Struct, frozen=True, kw_only=True):
    """One datum of N tokens. ``targets`` are N ids, or N times ``width`` when a position has several, row by row.

    ``inputs`` are what the loss needs by its Tinker names (``weights``, ``logprobs``, ``advantages``, ...), each as
    long as the targets or, where the loss says so, one number a position. A custom loss names its own.
    """

    tokens: list[int]
    targets: list[int]
    inputs: dict[str, list[float]] = {}
    width: int = 1
    images: list[Image] = []


class Loss(msgspec.Struct, frozen=True, kw_only=True):
    """A loss by its Tinker name and settings; ``graph`` is the program of a custom one, as JSON."""

    name: str
    config: dict[str, float] = {}
    graph: str | None = None


class TrainResult(msgspec.Struct, frozen=True, kw_only=True):
    """``logprobs[i]`` are those of row ``i``'s targets, laid out like them; metrics carry ``loss:sum``."""

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


class Grammar(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer must look like: a JSON schema, a regular expression, or a Lark grammar in llguidance's form."""

    kind: Literal["json_schema", "regex", "lark"]
    text: str


class SampleParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to sample. ``stop`` are token-id sequences; ``None`` means the base's end tokens, ``[]`` none at all.

    A result depends on (weights, prompt, these parameters, sample index) alone, never on what else is in the batch.
    Penalties as OpenAI defines them count what was sampled so far; ``repetition_penalty`` (CTRL, arXiv 1909.05858)
    also the prompt.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0
    min_p: float = 0.0  # least probability of a choice, as a part of the likeliest one's
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop: list[list[int]] | None = None
    top_logprobs: int = 0  # how many likeliest choices to tell beside each token
    tempered: bool = False  # tell log-probabilities at the temperature (where it is above 0), not at 1
    grammar: Grammar | None = None


class Token(msgspec.Struct, frozen=True):
    """One sampled token of sample ``index``. Log-probabilities are the model's own: over the whole vocabulary, before
    penalties and grammar, at temperature 1 unless ``tempered``. ``top`` are the likeliest choices, best first.
    """

    index: int
    id: int
    logprob: float
    top: list[tuple[int, float]] = []


class Finished(msgspec.Struct, frozen=True):
    """Sample ``index`` is complete: ``reason`` is ``stop`` or ``length``; ``cached`` prompt tokens were at hand."""

    index: int
    reason: str
    cached: int = 0


class ScoreParams(msgspec.Struct, frozen=True, kw_only=True):
    """What to tell of a text beside its log-probabilities, at each of its positions but the first.

    ``targets`` are ``width`` ids for each of the N - 1 positions from the second on, -1 for none. ``alternatives`` are
    independent draws at ``temperature``. With ``last`` only so many positions at the end are scored.
    """

    last: int | None = None
    top: int = 0
    targets: list[int] = []
    width: int = 0
    alternatives: int = 0
    temperature: float = 1.0
    seed: int | None = None


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """N log-probabilities, None where there is none; the rest has N - 1 entries, empty lists where not scored.

    ``targets`` are laid out as asked, NaN where none was asked for.
    """

    logprobs: list[float | None]
    top: list[list[tuple[int, float]]] = []
    targets: list[float] = []
    alternatives: list[list[tuple[int, float]]] = []


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

    async def copy_adapter(self, source: str, target: str) -> None:
        """Make ``target`` a copy of what ``source`` is now, to sample from and to save; it has no optimizer."""
        ...

    async def adapter_size(self, adapter: str) -> int:
        """Return how many bytes an adapter's numbers take in memory."""
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
        self,
        adapter: str | None,
        prompt: list[int],
        params: SampleParams,
        n: int = 1,
        images: Sequence[Image] = (),
    ) -> AsyncIterator[Token | Finished]:
        """Stream ``n`` samples of one prompt; closing the iterator cancels."""
        ...

    async def score(
        self,
        adapter: str | None,
        tokens: list[int],
        params: ScoreParams = ScoreParams(),  # noqa: B008 - frozen
        images: Sequence[Image] = (),
    ) -> Scores:
        """Return each token's log-probability given those before it, and what else ``params`` asks for."""
        ...

    async def measure(self, images: Sequence[bytes]) -> list[int]:
        """Return how many tokens each image takes."""
        ...

    async def close(self) -> None:
        """Stop; what still waits fails with ``EngineUnavailable``."""
        ...
