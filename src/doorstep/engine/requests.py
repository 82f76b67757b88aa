"""What is asked of a sampler and how far each sample has come: tokens, stops, the draw of each place. No tensors."""

import secrets
from collections.abc import Callable, Sequence
from typing import Protocol

from doorstep.engine.api import Finished, Image, ModelInfo, SampleParams, Token
from doorstep.engine.choice import sample_key, uniform
from doorstep.errors import EngineError

Emit = Callable[[list[Token | Finished] | EngineError], None]


class Limits(Protocol):
    """What a request must know of the model."""

    @property
    def info(self) -> ModelInfo:  # noqa: D102
        ...

    @property
    def ends(self) -> list[list[int]]:  # noqa: D102
        ...


class Request:
    """``n`` samples of one prompt. ``emit`` gets what came once a step, or an error; set ``cancelled`` to end it."""

    def __init__(
        self, prompt: list[int], params: SampleParams, n: int, images: Sequence[Image], model: Limits, emit: Emit
    ) -> None:
        self.prompt = prompt
        self.images = images
        self.params = params
        self.stops = model.ends if params.stop is None else params.stop
        self.limit = min(params.max_tokens, model.info.max_context - len(prompt))
        self.emit = emit
        self.cancelled = False
        self.events: list[Token | Finished] = []
        seed = secrets.randbits(63) if params.seed is None else params.seed
        self.samples = [Sample(self, index, sample_key(prompt, seed, index)) for index in range(n)]

    def send(self) -> None:
        """Hand over what this step brought."""
        if self.events:
            self.emit(self.events)
            self.events = []


class Sample:
    """One sample on its way; its slot in a block follows from its index."""

    def __init__(self, request: Request, index: int, key: int) -> None:
        self.request = request
        self.index = index
        self.tokens: list[int] = []
        self._key = key

    def draw(self) -> float:
        """Return the uniform number for the next token."""
        return uniform(self._key, len(self.tokens))

    def accept(self, token: int, logprob: float) -> bool:
        """Take a token; return whether the sample goes on."""
        self.tokens.append(token)
        self.request.events.append(Token(self.index, token, logprob))
        reason = "length" if len(self.tokens) == self.request.limit else None
        if any(self.tokens[-len(stop) :] == stop for stop in self.request.stops):
            reason = "stop"
        if reason:
            self.request.events.append(Finished(self.index, reason))
        return reason is None


def check_request(prompt: list[int], params: SampleParams, n: int, info: ModelInfo) -> None:
    """Raise an EngineError that names what cannot be sampled."""
    if not 1 <= len(prompt) < info.max_context:
        raise EngineError(f"the prompt has {len(prompt)} tokens; {info.name} takes 1 to {info.max_context - 1}")
    check_tokens("the prompt", prompt, info)
    if n < 1 or params.max_tokens < 1:
        raise EngineError("n and max_tokens must be at least 1")
    if not (0 <= params.temperature < float("inf") and 0 < params.top_p <= 1):
        raise EngineError("temperature must be 0 or more and finite, top_p above 0 and at most 1")
    if any(not stop for stop in params.stop or []):
        raise EngineError("an empty stop sequence stops nothing; leave it out")


def check_tokens(what: str, tokens: list[int], info: ModelInfo) -> None:
    """Raise an EngineError when a token is not in the vocabulary."""
    if wrong := [token for token in tokens if not 0 <= token < info.vocabulary]:
        raise EngineError(f"{what} has the id {wrong[0]}, outside the vocabulary of {info.vocabulary}")
