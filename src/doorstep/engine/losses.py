"""The losses by their Tinker names: from target log-probabilities to a sum and its gradient, one function each.

All are plain sums over tokens: no mean, no KL term. ``lp`` is the model's log-probability of each target, ``row``
values are per position; the gradient is that of the sum with respect to ``lp``.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Config = dict[str, float]


class Inputs(NamedTuple):
    """Per-position inputs of a loss; those that it does not use are empty."""

    weights: Tensor
    logprobs: Tensor
    advantages: Tensor


class Value(NamedTuple):
    """Loss and gradient of each position."""

    loss: Tensor
    gradient: Tensor


def cross_entropy(lp: Tensor, given: Inputs, _: Config) -> Value:
    """−lp·w."""
    return Value(-lp * given.weights, -given.weights)


def importance_sampling(lp: Tensor, given: Inputs, _: Config) -> Value:
    """−r·A with r = exp(lp − q)."""
    weighted = torch.exp(lp - given.logprobs) * given.advantages
    return Value(-weighted, -weighted)


def ppo(lp: Tensor, given: Inputs, config: Config) -> Value:
    """−min(r·A, clamp(r)·A); where the clamp wins, the gradient is zero."""
    ratio = torch.exp(lp - given.logprobs)
    free, clipped = ratio * given.advantages, _clamp(ratio, config, 0.8, 1.2) * given.advantages
    return Value(-torch.minimum(free, clipped), -torch.where(free <= clipped, free, 0.0))


def cispo(lp: Tensor, given: Inputs, config: Config) -> Value:
    """−clamp(r)·lp·A, the clamped ratio held constant."""
    weight = _clamp(torch.exp(lp - given.logprobs), config, 0.0, 4.0) * given.advantages
    return Value(-weight * lp, -weight)


def _clamp(ratio: Tensor, config: Config, low: float, high: float) -> Tensor:
    return ratio.clamp(config.get("clip_low_threshold", low), config.get("clip_high_threshold", high))


LossFunction = Callable[[Tensor, Inputs, Config], Value]
CLIPS = frozenset({"clip_low_threshold", "clip_high_threshold"})


class Kind(NamedTuple):
    """A loss: its function, the row fields it needs, the settings it knows."""

    function: LossFunction
    fields: tuple[str, ...]
    settings: frozenset[str] = frozenset()

    @property
    def gate(self) -> str:
        """The field that is zero where a position does not count."""
        return self.fields[-1]


KINDS: dict[str, Kind] = {
    "cross_entropy": Kind(cross_entropy, ("weights",)),
    "importance_sampling": Kind(importance_sampling, ("logprobs", "advantages")),
    "ppo": Kind(ppo, ("logprobs", "advantages"), CLIPS),
    "cispo": Kind(cispo, ("logprobs", "advantages"), CLIPS),
}
