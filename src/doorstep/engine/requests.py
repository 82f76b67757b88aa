"""What is asked of a sampler and how far each sample has come: tokens, stops, the draw of each place. No tensors.

A draw is one uniform number, a hash of (prompt, seed, sample index, position): no state, so that a sample does not
depend on what was drawn beside it.
"""

import hashlib
import math
import secrets
import time
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from doorstep.engine.api import Finished, Image, ModelInfo, SampleParams, Token
from doorstep.errors import EngineError

if TYPE_CHECKING:
    from doorstep.engine.grammar import Matcher

Emit = Callable[[list[Token | Finished] | EngineError], None]
COLDEST = 1e-20  # of temperatures but 0; what is below is none in float32, or makes scores infinite
PAUSE_S = 0.02  # fifty times a second look like a flow
OPENAI_PENALTY = 2.0  # largest presence and frequency penalty, as OpenAI has it
_MASK = (1 << 64) - 1


class Limits(Protocol):
    """What a request must know of the model."""

    @property
    def info(self) -> ModelInfo:  # noqa: D102
        ...

    @property
    def ends(self) -> list[list[int]]:  # noqa: D102
        ...


class Request:
    """``n`` samples of one prompt. ``emit`` gets what came, or an error; set ``cancelled`` to end it.

    Compiles the grammar that ``params`` may have: EngineError when it is wrong.
    """

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
        self.cached = 0  # prompt tokens that a sampler did not have to read
        self.events: list[Token | Finished] = []
        self._sent = -math.inf
        self._open = n
        seed = secrets.randbits(63) if params.seed is None else params.seed
        matcher = _matcher(params, model)
        self.samples = [
            Sample(self, index, sample_key(prompt, seed, index), matcher and matcher.copy()) for index in range(n)
        ]

    def send(self) -> None:
        """Hand over what came: the first and the last tokens at once, those between once in a while.

        Whoever takes them wakes up each time, on the same cores.
        """
        now = time.monotonic()
        if self.events and (not self._open or now >= self._sent + PAUSE_S):
            self.emit(self.events)
            self.events, self._sent = [], now

    def end(self, finished: Finished) -> None:
        """Note that a sample is complete."""
        self.events.append(finished)
        self._open -= 1

    def fail(self, error: EngineError) -> None:
        """End the request with an error."""
        if not self.cancelled:
            self.cancelled = True
            self.emit(error)


class Sample:
    """One sample on its way; its slot in a block follows from its index."""

    def __init__(self, request: Request, index: int, key: int, matcher: "Matcher | None") -> None:
        self.request = request
        self.index = index
        self.tokens: list[int] = []
        self._key = key
        self._matcher = matcher

    def draw(self) -> float:
        """Return the uniform number for the next token."""
        return uniform(self._key, len(self.tokens))

    def allowed(self) -> bytes | None:
        """Return which tokens may come next, a bit each; None allows all. EngineError when none can."""
        return None if self._matcher is None else self._matcher.allowed()

    def accept(self, token: int, logprob: float, top: list[tuple[int, float]]) -> bool:
        """Take a token; return whether the sample goes on."""
        self.tokens.append(token)
        self.request.events.append(Token(self.index, token, logprob, top))
        reason = "length" if len(self.tokens) == self.request.limit else None
        if self._matcher and not self._matcher.accept(token):
            reason = "stop"
        if any(self.tokens[-len(stop) :] == stop for stop in self.request.stops):
            reason = "stop"
        if reason:
            self.request.end(Finished(self.index, reason, self.request.cached))
        return reason is None


def sample_key(prompt: list[int], seed: int, index: int) -> int:
    """Return the 64 bits from which all draws of one sample come."""
    data = f"{seed}:{index}:".encode() + array("q", prompt).tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def uniform(key: int, position: int) -> float:
    """Return a number in [0, 1) with 24 random bits: SplitMix64 at a position."""
    z = (key + (position + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return ((z ^ (z >> 31)) >> 40) / (1 << 24)


def check_request(prompt: list[int], params: SampleParams, n: int, info: ModelInfo) -> None:
    """Raise an EngineError that names what cannot be sampled."""
    if not 1 <= len(prompt) < info.max_context:
        raise EngineError(f"the prompt has {len(prompt)} tokens; {info.name} takes 1 to {info.max_context - 1}")
    check_tokens("the prompt", prompt, info)
    if n < 1 or params.max_tokens < 1:
        raise EngineError("n and max_tokens must be at least 1")
    check_temperature(params.temperature)
    if not 0 < params.top_p <= 1:
        raise EngineError(f"top_p is {params.top_p}; it must be above 0 and at most 1")
    if any(not stop for stop in params.stop or []):
        raise EngineError("an empty stop sequence stops nothing; leave it out")
    _check_changes(params, info)


def check_temperature(temperature: float) -> None:
    """Raise an EngineError for a temperature that scores cannot be divided by."""
    if temperature and not COLDEST <= temperature < math.inf:
        raise EngineError(f"temperature is {temperature}; it must be 0, or from {COLDEST} on and finite")


def check_tokens(what: str, tokens: list[int], info: ModelInfo) -> None:
    """Raise an EngineError when a token is not in the vocabulary."""
    if wrong := [token for token in tokens if not 0 <= token < info.vocabulary]:
        raise EngineError(f"{what} has the id {wrong[0]}, outside the vocabulary of {info.vocabulary}")


def _check_changes(params: SampleParams, info: ModelInfo) -> None:
    """Check what changes the scores before a choice."""
    if not 0 <= params.min_p <= 1:
        raise EngineError(f"min_p is {params.min_p}; it must be 0 to 1")
    for name in ("presence_penalty", "frequency_penalty"):
        if not abs(getattr(params, name)) <= OPENAI_PENALTY:
            raise EngineError(f"{name} is {getattr(params, name)}; it must be -2 to 2")
    if not 0 < params.repetition_penalty < math.inf:
        raise EngineError(f"repetition_penalty is {params.repetition_penalty}; it must be above 0; 1 changes nothing")
    check_tokens("logit_bias", list(params.logit_bias), info)
    if not all(map(math.isfinite, params.logit_bias.values())):
        raise EngineError("logit_bias has a value that is not a finite number")
    if not 0 <= params.top_logprobs <= info.vocabulary:
        raise EngineError(f"top_logprobs is {params.top_logprobs}; it must be 0 to {info.vocabulary}")


def _matcher(params: SampleParams, model: Limits) -> "Matcher | None":
    if params.grammar is None:
        return None
    from doorstep.engine.grammar import compiled  # only who uses grammars loads llguidance

    ends = tuple(end[0] for end in model.ends if len(end) == 1)
    return compiled(params.grammar, model.info.folder, model.info.vocabulary, ends)
