"""The losses: from the log-probabilities of targets to a sum and its gradient, one function each. ``kinds`` says what
each takes.

All are plain sums over tokens and rows, as the Tinker API has them: no mean, no other term. A caller does

    bound = bind(loss)                      # once a call; EngineError when the loss is not known or its graph is wrong
    given = bound.gather(rows)              # for the rows of one micro-batch, in the order of their positions
    value = bound(lp, given)                # lp: (P,), or (P, K) where rows have width K > 1
    metrics = means(sums of value.metrics, len(all rows of the call))

``lp`` has the positions of the rows one after another, none padded; all rows of one micro-batch have the same width.
When ``bound.kind.whole``, ``lp`` must have all positions of its rows; otherwise ``given[start:stop]`` goes with
``lp[start:stop]``, so that the head may go through the positions in parts. ``value.loss`` sums to the loss,
``value.gradient`` is that sum's with respect to ``lp``, shaped like it. ``given.counts`` is where the gradient can be
other than zero, (P,), or None: everywhere. Everything works in the precision of what it is given.

Where an advantage is zero its ratio is taken as one: a log-probability that stands for none there, however small, must
not make infinity times zero. Two losses have no such rule: dro, whose quadratic term holds at every position, and
gspo, whose ratio is that of the row.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from doorstep.engine import graph, kinds
from doorstep.engine.api import Loss, TrainRow
from doorstep.engine.kinds import Field, Kind
from doorstep.engine.program import Program

Inputs = dict[str, Tensor]
Config = Mapping[str, float]


class Given(NamedTuple):
    """What a loss needs of the rows of a micro-batch: (P,), (P, K) or one number a row; and which row a position is of.

    ``numbers`` (P,) count the rows from 0, in order.
    """

    inputs: Inputs
    numbers: Tensor
    counts: Tensor | None

    def __getitem__(self, span: slice) -> "Given":  # type: ignore[override]
        """Return some of the positions, for a loss that does not need whole rows."""
        inputs = {name: values[span] for name, values in self.inputs.items()}
        return Given(inputs, self.numbers[span], None if self.counts is None else self.counts[span])


class Value(NamedTuple):
    """A loss in parts, its gradient, and sums of what a custom loss tells besides."""

    loss: Tensor
    gradient: Tensor
    metrics: Mapping[str, float] = MappingProxyType({})


def cross_entropy(lp: Tensor, given: Inputs, _numbers: Tensor, _config: Config) -> Value:
    """−lp·w."""
    weights = given["weights"]
    return Value(-lp * weights, -weights)


def importance_sampling(lp: Tensor, given: Inputs, _numbers: Tensor, _config: Config) -> Value:
    """−r·A with r = exp(lp − q)."""
    weighted = _ratio(lp, given) * given["advantages"]
    return Value(-weighted, -weighted)


def ppo(lp: Tensor, given: Inputs, _numbers: Tensor, _config: Config) -> Value:
    """−min(r·A, clamp(r)·A); where the clamp wins, the gradient is zero."""
    return _clipped(_ratio(lp, given), given)


def cispo(lp: Tensor, given: Inputs, _numbers: Tensor, _config: Config) -> Value:
    """−clamp(r)·lp·A, the clamped ratio held constant."""
    weight = _clamp(_ratio(lp, given), given) * given["advantages"]
    return Value(-weight * lp, -weight)


def dro(lp: Tensor, given: Inputs, _numbers: Tensor, config: Config) -> Value:
    """−(lp·A − β/2·(lp − q)²), at every position."""
    beta, advantages = config["beta"], given["advantages"]
    apart = lp - given["logprobs"]
    return Value(-lp * advantages + beta / 2 * apart.square(), -advantages + beta * apart)


def gspo(lp: Tensor, given: Inputs, numbers: Tensor, _config: Config) -> Value:
    """−min(s·A, clamp(s)·A), s = exp(mean of lp − q over the row's marked positions), as GSPO-token (arXiv 2507.18071).

    Each position's ratio has the value of its row's s and the gradient of its own log-probability.
    """
    marked, lengths = given["sequence_ratio_mask"] != 0, torch.bincount(numbers)
    apart = torch.where(marked, lp - given["logprobs"], 0.0)
    total, marks = (torch.segment_reduce(each, "sum", lengths=lengths) for each in (apart, marked.to(lp.dtype)))
    return _clipped(torch.exp(total / marks)[numbers], given)


def stable_reinforce(lp: Tensor, given: Inputs, _numbers: Tensor, config: Config) -> Value:
    """−min(r, 1)·A·lp, the truncated ratio held constant, + kl_coeff·(r − 1 − log r), where ``sampled`` is not zero.

    A surrogate, for the loss is not published: REINFORCE with importance weights truncated at 1, as V-trace has them
    (IMPALA, arXiv 1802.01561), and Schulman's k3 estimate of the divergence of the policy from its sampler
    (joschu.net/blog/kl-approx.html). The ratio is that to the log-probabilities recorded at sampling.
    """
    sampled = given["sampled"] != 0
    apart = torch.where(sampled, lp - given["logprobs"], 0.0)
    ratio, coefficient = torch.exp(apart), config["kl_coeff"]
    weight = torch.where(sampled, ratio.clamp(max=1.0) * given["advantages"], 0.0)
    return Value(-weight * lp + coefficient * (ratio - 1 - apart), -weight + coefficient * (ratio - 1))


Function = Callable[[Tensor, Inputs, Tensor, Config], Value]
FUNCTIONS: dict[str, Function] = {
    each.__name__: each for each in (cross_entropy, importance_sampling, ppo, cispo, dro, gspo, stable_reinforce)
}


class Bound:
    """A loss with its settings, ready for the micro-batches of one call."""

    def __init__(self, loss: Loss) -> None:
        self.kind: Kind = kinds.kind(loss)
        self.fields: dict[str, Field] = kinds.fields(loss)
        self._config = self.kind.settings | loss.config
        self._function = FUNCTIONS.get(loss.name) or custom(loss.graph or "")

    def gather(self, rows: Sequence[TrainRow], device: torch.device | None = None) -> Given:
        """Return what the loss needs of rows of one width."""
        numbers = torch.repeat_interleave(torch.arange(len(rows)), torch.tensor([len(row.tokens) for row in rows]))
        inputs = {name: self._tensor(name, field, rows).to(device) for name, field in self.fields.items()}
        counts = None if self.kind.gate is None else inputs[self.kind.gate] != 0
        if counts is not None and counts.dim() > 1:
            counts = counts.any(dim=1)
        return Given(inputs, numbers.to(device), counts)

    def __call__(self, lp: Tensor, given: Given) -> Value:
        """Return loss and gradient at ``lp``."""
        return self._function(lp, given.inputs, given.numbers, self._config)

    @staticmethod
    def _tensor(name: str, field: Field, rows: Sequence[TrainRow]) -> Tensor:
        parts = (row.inputs.get(name) or [field.default or 0.0] * field.length(row) for row in rows)
        values = torch.tensor(list(chain.from_iterable(parts)), dtype=torch.float32)
        return values.view(-1, rows[0].width) if field.rank == 2 and rows[0].width > 1 else values


def bind(loss: Loss) -> Bound:
    """Return a loss ready to compute; EngineError says what of it is not served."""
    return Bound(loss)


def custom(text: str) -> Function:
    """Return the function of a custom loss: its graph, run on each row."""
    program = Program(graph.read(text))

    def run(lp: Tensor, given: Inputs, numbers: Tensor, _config: Config) -> Value:
        lengths = torch.bincount(numbers).tolist()
        parts = {
            each.name: given[each.name].unbind() if each.rank == 0 else given[each.name].split(lengths)
            for each in program.graph.inputs[1:]
        }
        losses, gradients = [], []
        sums: dict[str, float] = {}
        for index, row in enumerate(lp.split(lengths)):
            loss, gradient, metrics = program.run(row, {name: part[index] for name, part in parts.items()})
            losses.append(loss)
            gradients.append(gradient)
            for name, value in metrics.items():
                sums[name] = sums.get(name, 0.0) + value
        return Value(torch.stack(losses), torch.cat(gradients), sums)

    return run


def means(sums: Mapping[str, float], rows: int) -> dict[str, float]:
    """Return a call's metrics from their sums over its rows: those whose name ends in ``:mean`` are divided."""
    return {name: value / rows if name.endswith(":mean") else value for name, value in sums.items()}


def _ratio(lp: Tensor, given: Inputs) -> Tensor:
    return torch.exp(torch.where(given["advantages"] != 0, lp - given["logprobs"], 0.0))


def _clamp(ratio: Tensor, given: Inputs) -> Tensor:
    return torch.clamp(ratio, given["clip_low_threshold"], given["clip_high_threshold"])


def _clipped(ratio: Tensor, given: Inputs) -> Value:
    free, clipped = ratio * given["advantages"], _clamp(ratio, given) * given["advantages"]
    return Value(-torch.minimum(free, clipped), -torch.where(free <= clipped, free, 0.0))
