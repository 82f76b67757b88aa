"""The JSON messages of the Tinker wire protocol (SDK 0.26.2 to 0.38) that we take, and how they are read.

A field that is not named here is an error, so that nothing a client asks for is silently left out. The two
messages that travel as protobuf are in ``codec``.
"""

from typing import Any, TypeVar

import msgspec

from doorstep.errors import UsageError

T = TypeVar("T", bound=msgspec.Struct)


class Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request's body; ``type`` repeats the address and is not needed."""

    type: str | None = None


class Loose(msgspec.Struct, frozen=True, kw_only=True):
    """A request's body of which only some fields matter."""


class CreateSession(Loose, frozen=True, kw_only=True):
    """Begin a session."""

    sdk_version: str
    tags: list[str] = []
    user_metadata: dict[str, Any] | None = None
    project_id: str | None = None
    display_name: str | None = None


class SessionRef(Loose, frozen=True, kw_only=True):
    """A message about a session."""

    session_id: str


class FinishReason(Loose, frozen=True, kw_only=True):
    """``success``, ``errored`` or ``interrupted``."""

    type: str


class FinishSession(Loose, frozen=True, kw_only=True):
    """The client is done."""

    reason: FinishReason


class LoraConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Shape of the adapter to train; rank 0 trains the matrices themselves."""

    rank: int = 32
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class CreateModel(Message, frozen=True, kw_only=True):
    """Make a new adapter; its id is ``SESSION:train:MODEL_SEQ_ID``."""

    session_id: str
    model_seq_id: int
    base_model: str
    lora_config: LoraConfig = LoraConfig()
    optimizer_config: dict[str, Any] | None = None
    user_metadata: dict[str, Any] | None = None


class ModelRef(Message, frozen=True, kw_only=True):
    """A message about a model."""

    model_id: str


class Turn(Loose, frozen=True, kw_only=True):
    """What puts an operation in its place: the model and the sequence id, which starts at 1."""

    model_id: str
    seq_id: int


class OptimStep(Message, frozen=True, kw_only=True):
    """One optimiser step on the gradients so far."""

    model_id: str
    seq_id: int
    adam_params: dict[str, float] | None = None
    optimizer_params: dict[str, Any] | None = None


class SaveWeights(Message, frozen=True, kw_only=True):
    """Save adapter and optimiser under a name."""

    model_id: str
    seq_id: int
    path: str | None = None
    ttl_seconds: int | None = None
    overwrite: bool = False
    user_metadata: dict[str, str] | None = None


class SaveWeightsForSampler(Message, frozen=True, kw_only=True):
    """Save the adapter for sampling: under a name, or for one sampling session only."""

    model_id: str
    seq_id: int
    path: str | None = None
    sampling_session_seq_id: int | None = None
    kind: str = "snapshot"
    ttl_seconds: int | None = None
    user_metadata: dict[str, str] | None = None


class SaveWeightsExternal(Message, frozen=True, kw_only=True):
    """Save the adapter as files to be taken away, encrypted to ``age_encryption_recipients`` if there are any."""

    model_id: str
    seq_id: int
    path: str
    ttl_seconds: int | None = None
    age_encryption_recipients: list[str] | None = None


class LoadWeights(Message, frozen=True, kw_only=True):
    """Load a checkpoint into a model (``model_id``, ``seq_id``) or as a new one (``session_id``, ``model_seq_id``)."""

    path: str
    optimizer: bool
    model_id: str | None = None
    seq_id: int | None = None
    session_id: str | None = None
    model_seq_id: int | None = None
    base_model: str | None = None
    user_metadata: dict[str, Any] | None = None
    optimizer_config: dict[str, Any] | None = None
    weights_access_token: str | None = None


class CreateSamplingSession(Message, frozen=True, kw_only=True):
    """Begin to sample from a checkpoint, or from the base."""

    session_id: str
    sampling_session_seq_id: int
    base_model: str | None = None
    model_path: str | None = None


class JoinSamplingSession(Message, frozen=True, kw_only=True):
    """Get a number for a copy of a sampling client."""

    sampling_session_id: str


class CustomLossInput(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One input of a custom loss: a number (rank 0), one per position (1) or several per position (2)."""

    name: str
    rank: int


class CreateCustomLoss(Message, frozen=True, kw_only=True):
    """Keep a loss that the client traced with torch.fx; ``engine.graph`` says what may be in ``graph``."""

    session_id: str
    custom_loss_seq_id: int
    name: str
    inputs: list[CustomLossInput]
    graph: dict[str, Any]


class Chunk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A piece of a prompt: ``encoded_text``, or an ``image`` for a model that sees."""

    type: str
    tokens: list[int] = []
    data: bytes = b""  # base64 in JSON
    format: str | None = None
    expected_tokens: int | None = None


class Tensor(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Numbers with a shape: row by row, or in compressed sparse rows."""

    data: list[int]
    dtype: str = "int64"
    shape: list[int] | None = None
    sparse_crow_indices: list[int] | None = None
    sparse_col_indices: list[int] | None = None


class Prompt(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The pieces in order."""

    chunks: list[Chunk]


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to sample. ``stop``: None is the model's end tokens, ``[]`` none at all."""

    max_tokens: int | None = None
    seed: int | None = None
    stop: str | list[str | int] | None = None
    temperature: float = 1.0
    top_k: int = -1
    top_p: float = 1.0


class Sample(Message, frozen=True, kw_only=True):
    """Sample, and score the prompt."""

    sampling_session_id: str
    seq_id: int
    prompt: Prompt
    sampling_params: SamplingParams
    num_samples: int = 1
    prompt_logprobs: bool | None = None
    prompt_logprobs_last_n: int | None = None
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    target_prompt_logprobs: Tensor | None = None
    prompt_alt_tokens_k: int = 0
    record_stability_info: bool | None = None


class FutureRef(Loose, frozen=True, kw_only=True):
    """A message about a promise. With ``allow_metadata_only`` a large answer may be announced before it is sent."""

    request_id: str
    allow_metadata_only: bool = False


class FuturesTarget(Message, frozen=True, kw_only=True):
    """Whose samples: those of one copy (0 is the first) of a sampling client."""

    sampling_session_id: str
    cloned_sampler_id: int = 0


class FuturesRef(Loose, frozen=True, kw_only=True):
    """Which samples are ready after ``prev_cursor``? ``retrieved_request_ids`` may be forgotten."""

    target: FuturesTarget
    prev_cursor: int = 0
    timeout: float | None = None
    retrieved_request_ids: list[str] = []


class PathRef(Loose, frozen=True, kw_only=True):
    """A message about a checkpoint."""

    tinker_path: str


def read(body: bytes, kind: type[T]) -> T:
    """Read a body; UsageError says which field is wrong."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{kind.__name__}: {error}") from None


def convert(value: object, kind: type[T]) -> T:
    """Read a value that was read once already; UsageError says which field is wrong."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{kind.__name__}: {error}") from None
