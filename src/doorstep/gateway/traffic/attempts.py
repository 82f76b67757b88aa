"""The tries of one call: whom next, after what wait, until when.

A model's targets are tried in an order that depends on the run alone, so that all calls of a run go to one target
while it works; fallbacks follow in theirs. Within a target other keys come first, then the same again after a pause.
"""

import math
import random
import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from zlib import crc32

import msgspec

from doorstep.errors import BadInput, EngineError, ProviderError
from doorstep.gateway.dialects import wire
from doorstep.gateway.models import Plan, Target
from doorstep.gateway.providers.base import Key
from doorstep.gateway.traffic import circuit
from doorstep.gateway.traffic.circuit import Circuits
from doorstep.gateway.traffic.failures import Failure, classify, retry_after
from doorstep.gateway.traffic.keyring import KeyRing, Resting


class Try(msgspec.Struct, frozen=True):
    """Ask this target now, with this key where it has any.

    ``first_chunk_s``: a stream without its first byte by then is to be given up with status 504; another is left.
    """

    target: Target
    key: Key | None
    number: int  # of the key in its ring
    first_chunk_s: float | None


class Wait(msgspec.Struct, frozen=True):
    """Ask for the next step after this pause."""

    seconds: float


class GiveUp(msgspec.Struct, frozen=True):
    """Nobody answers."""

    error: ProviderError | EngineError | BadInput


class Traffic:
    """What was learnt about providers, for the next calls. ``wall`` is for dates that upstreams send."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.clock = clock
        self.wall = wall
        self.chance = chance
        self.circuits = Circuits()
        self._rings: dict[str, KeyRing] = {}

    def begin(self, plan: Plan, call_id: str, run_id: str | None) -> "Attempts":
        """Return the tries of one call."""
        return Attempts(self, plan, run_id or call_id)

    def ring(self, target: Target) -> KeyRing:
        """Return the keys of a target's provider."""
        provider = target.provider
        found = self._rings.get(provider.name)
        if found is None:
            found = self._rings[provider.name] = KeyRing([key.label for key in provider.keys])
        return found

    def shown(self) -> list[circuit.Shown]:
        """Return the circuits of the models that have failed lately."""
        return self.circuits.shown(self.clock())

    def resting(self) -> dict[str, list[Resting]]:
        """Return the keys that rest now, by provider."""
        now = self.clock()
        return {name: keys for name, ring in self._rings.items() if (keys := ring.resting(now))}


class Attempts:
    """The tries of one call. ``seed`` decides between equals: the run's id, or the call's where there is no run."""

    def __init__(self, traffic: Traffic, plan: Plan, seed: str) -> None:
        self.targets = _in_order(plan, seed)
        self._traffic = traffic
        self._policy = plan.policy
        self._seed = seed
        self._deadline = traffic.clock() + plan.policy.budget_s
        self._at = 0  # the target
        self._tries = 0
        self._repeats = 0  # of this target
        self._ready = 0.0  # not before, at this target
        self._out: set[int] = set()  # keys of this target that are no use for this call
        self._over = False
        self._last: ProviderError | EngineError | None = None
        self._skipped: ProviderError | None = None  # why the last target was not even tried
        self._unfit: BadInput | None = None  # why a target does not take such a request

    def next(self) -> Try | Wait | GiveUp:
        """Return what to do now."""
        now = self._traffic.clock()
        while not self._over and self._tries < self._policy.attempts and self._at < len(self.targets):
            step = self._step(self.targets[self._at], now)
            if step is not None:
                return step
            self._move()
        error = self._last or self._skipped or self._unfit
        assert error is not None  # a plan has a target: it was tried or it was skipped, or it does not fit
        return GiveUp(error)

    def succeeded(self, tried: Try) -> None:
        """Note that a try's answer has begun well."""
        provider, model = tried.target.provider.name, tried.target.model
        self._traffic.circuits.succeeded(provider, model, self._traffic.clock())
        self._traffic.ring(tried.target).succeeded(tried.number, model)

    def failed(self, tried: Try, error: ProviderError | EngineError, headers: Mapping[str, str] | None = None) -> None:
        """Note how a try failed; also that an answer broke off after it had begun well, when nothing follows."""
        self._last = error
        if isinstance(error, EngineError):  # our own says so at once, and the same again comes to the same
            self._move()
            return
        traffic, now = self._traffic, self._traffic.clock()
        target, body = tried.target, str(error)  # its code may be anywhere in the body; people are told its words
        said = wire.error_words(body.encode())
        model, ring = target.model, traffic.ring(target)
        told = error.retry_after_s
        asked = retry_after(headers or {}, traffic.wall()) if told is None else told
        match classify(error.status, body):
            case Failure.FINAL:
                self._over = True
            case Failure.TOO_LONG:
                self._move()
            case Failure.KEY:
                ring.refused(tried.number, model, now, said)
                self._out.add(tried.number)
            case Failure.BUSY:
                ring.busy(tried.number, model, asked, now, said)
                if self._free_in(target, now) > 0:
                    self._repeat(now)
            case Failure.PASSING:
                traffic.circuits.failed(target.provider.name, model, now, said)
                self._repeat(now + self._pause(asked))
            case Failure.SLOW:
                traffic.circuits.failed(target.provider.name, model, now, said)
                if self._is_last():
                    self._repeat(now + self._pause(asked))
                else:
                    self._move()

    def unfit(self, error: BadInput) -> None:
        """Note that the target that is tried does not take such a request, which another may."""
        self._unfit = error
        self._move()

    def _step(self, target: Target, now: float) -> Try | Wait | None:
        """Return what to do with this target, or None when it is no use now."""
        traffic = self._traffic
        found = traffic.circuits.find(target.provider.name, target.model)
        if found is not None and (seconds := found.closed_for(now)) > 0:
            self._skipped = _skipped(target, 503, f"fails at the moment ({found.why})", seconds)
            return None
        ring = traffic.ring(target)
        key = ring.soonest(target.model, self._start(target), self._out, now)
        if key is None:
            return None
        number, rest = key
        if rest > 0 and (now + rest > self._deadline or not self._is_last()):
            self._skipped = _skipped(target, *ring.why(number, target.model), rest)
            return None
        if rest > 0 or now < self._ready:
            spread = 1 + traffic.chance() / 4 if rest > 0 else 1.0  # those who wait for a key come apart
            return Wait(max(rest * spread, self._ready - now))
        if found is not None:
            found.let_through(now)
        self._tries += 1
        keys = target.provider.keys
        first_chunk_s = None if self._is_last() else self._policy.first_chunk_s
        return Try(target, keys[number] if keys else None, number, first_chunk_s)

    def _free_in(self, target: Target, now: float) -> float:
        key = self._traffic.ring(target).soonest(target.model, self._start(target), self._out, now)
        return math.inf if key is None else key[1]

    def _start(self, target: Target) -> int:
        """Return the key that this call begins with: the same for all calls of a run."""
        return crc32(self._seed.encode()) if len(target.provider.keys) > 1 else 0

    def _repeat(self, ready: float) -> None:
        self._repeats += 1
        if self._repeats > self._policy.retries or ready > self._deadline:
            self._move()
        else:
            self._ready = ready

    def _pause(self, asked: float | None) -> float:
        """Return the seconds before the same again: doubling, up to half of it by chance, never less than asked."""
        longest = min(self._policy.backoff_most_s, self._policy.backoff_s * 2.0 ** min(self._repeats, 20))
        return max(longest * (1 - self._traffic.chance() / 2), asked or 0.0)

    def _move(self) -> None:
        self._at += 1
        self._repeats, self._ready, self._out = 0, 0.0, set()

    def _is_last(self) -> bool:
        return self._at >= len(self.targets) - 1


def _in_order(plan: Plan, seed: str) -> tuple[Target, ...]:
    """Return the targets in the order of this seed, fallbacks after them.

    Each draws an exponential waiting time with its weight as the rate, from a hash: the first one is drawn with the
    chance of its weight, so is each next one of the rest, and a changed weight moves no more seeds than it must.
    """
    if len(plan.targets) == 1:
        return plan.targets + plan.fallback
    drawn = sorted(zip(plan.targets, plan.weights, strict=True), key=lambda found: _waiting(seed, *found))
    return tuple(target for target, _ in drawn) + plan.fallback


def _skipped(target: Target, status: int, why: str, seconds: float) -> ProviderError:
    said = f"{target.provider.name}/{target.model} is not asked, since it {why}; it is asked again in"
    return ProviderError(f"{said} {math.ceil(seconds)} s", status=status, retry_after_s=seconds)


def _waiting(seed: str, target: Target, weight: float) -> float:
    name = f"{seed}\n{target.provider.name}/{target.model}\n{target.adapter}"
    drawn = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
    return -math.log((drawn + 1) / (2**64 + 1)) / weight
