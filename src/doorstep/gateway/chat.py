"""A chat call in no dialect: what is asked of a model, and the events of its answer."""

from typing import Any

import msgspec


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What our own models are asked. ``max_tokens`` None: as many as the context has room for."""

    messages: list[dict[str, Any]]
    max_tokens: int | None = None
    temperature: float = 1.0
    top_p: float = 1.0
    stop: list[str] = []
    seed: int | None = None
    n: int = 1
    logprobs: bool = False


class SampledText(msgspec.Struct, frozen=True):
    """A sampled token as text and bytes, for answers that show log-probabilities."""

    text: str
    bytes: bytes
    logprob: float


class Delta(msgspec.Struct, frozen=True):
    """More of answer ``index``; ``tokens`` only where log-probabilities were asked for."""

    index: int
    text: str
    tokens: list[SampledText] = []


class End(msgspec.Struct, frozen=True):
    """Answer ``index`` is complete: ``stop`` or ``length``."""

    index: int
    reason: str


class Usage(msgspec.Struct, frozen=True):
    """How many tokens a call took; the last event."""

    input_tokens: int
    output_tokens: int


Event = Delta | End | Usage


class Sampled(msgspec.Struct):
    """The exact ids of one answer, its end token included, with one log-probability each."""

    ids: list[int] = []
    logprobs: list[float] = []


class Trace(msgspec.Struct, kw_only=True):
    """The exact tokens of a call that our engine answers, filled in while it does."""

    prompt: list[int]
    samples: list[Sampled]
    policy: str  # tinker:// path of the adapter, or the digest of the base
    tokenizer_digest: str
