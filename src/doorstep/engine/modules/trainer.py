"""Training on a ``transformers`` module: the rows of one task, padded right, through body and head.

Micro-batches follow from the rows alone, so that the same call gives the same bits. The head goes through the positions
in parts, twice: for the log-probabilities, and again with a gradient where the loss has one.
"""

from collections.abc import Generator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from doorstep.engine.api import TrainResult, TrainRow
from doorstep.engine.losses import Bound, bind, means
from doorstep.engine.modules.base import Base
from doorstep.engine.modules.changes import Changes
from doorstep.engine.runtime import Task
from doorstep.errors import EngineError

MICRO_BATCH = 2048  # tokens with padding
HEAD_ELEMENTS = 1 << 22  # logits held at once


def forward_backward(base: Base, task: Task[Changes]) -> Generator[None, None, TrainResult]:
    """Return what a loss is over rows, and add its gradients at the end; pauses after each micro-batch."""
    bound = bind(task.loss)
    changes = task.weights if task.forward_only else task.weights.trained()
    logprobs: list[list[float]] = [[] for _ in task.rows]
    sums = {"loss:sum": 0.0}
    for batch in batches(task.rows):
        rows = [task.rows[index] for index in batch]
        try:
            lp, metrics = _step(base, changes, rows, bound, task.forward_only)
        except EngineError as error:
            where = f"row {batch[0]}: " if rows[0].images else ""
            raise EngineError(f"{where}{error}", error.category) from error
        for index, part in zip(batch, lp.split([len(row.tokens) for row in rows]), strict=True):
            logprobs[index] = part.flatten().tolist()
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + value
        yield
    if not task.forward_only:
        changes.add_gradients(task.adapter)
    return TrainResult(logprobs=logprobs, metrics=means(sums, len(task.rows)))


def batches(rows: Sequence[TrainRow]) -> list[list[int]]:
    """Return the numbers of rows that go together: of one width and about one length; a row with images goes alone."""

    def kind(index: int) -> tuple[int, bool]:
        return rows[index].width, bool(rows[index].images)

    found: list[list[int]] = []
    for (_, images), same in groupby(sorted(range(len(rows)), key=lambda i: (*kind(i), len(rows[i].tokens))), kind):
        batch: list[int] = []
        for index in same:
            if batch and (images or len(rows[index].tokens) * (len(batch) + 1) > MICRO_BATCH):
                found.append(batch)
                batch = []
            batch.append(index)
        found.append(batch)
    return found


def _step(
    base: Base, changes: Changes, rows: list[TrainRow], bound: Bound, forward_only: bool
) -> tuple[Tensor, dict[str, float]]:
    """Run one micro-batch; gradients add up in ``changes``. Return log-probabilities, and what adds up to metrics."""
    with torch.set_grad_enabled(not forward_only):
        states = _states(base, changes, rows)
    hidden = states.detach()
    targets = torch.tensor([target for row in rows for target in row.targets], device=base.device)
    targets = targets.view(len(hidden), -1)
    with torch.no_grad():
        pairs = zip(_split(hidden, base), _split(targets, base), strict=True)
        lp = torch.cat([_logprobs(base, changes, part, wanted) for part, wanted in pairs]).squeeze(1)
        value = bound(lp, bound.gather(rows, base.device))
    if not forward_only:
        gradient = value.gradient.view(targets.shape)
        used = (gradient != 0).any(dim=1).nonzero().flatten()
        change = torch.zeros_like(hidden)
        for places in _split(used, base):
            part = hidden[places].requires_grad_()
            _logprobs(base, changes, part, targets[places]).backward(gradient[places])
            assert part.grad is not None
            change[places] = part.grad
        if states.requires_grad:
            states.backward(change)
    return lp, {"loss:sum": float(value.loss.sum(dtype=torch.float64)), **value.metrics}


def _states(base: Base, changes: Changes, rows: list[TrainRow]) -> Tensor:
    """Return the hidden states of rows, one after another without padding."""
    if rows[0].images:
        placed = base.place(rows[0].tokens, rows[0].images)
        return base.hidden(changes, placed.tokens, **placed.inputs)[0]
    longest = max(len(row.tokens) for row in rows)
    tokens = torch.tensor([row.tokens + [0] * (longest - len(row.tokens)) for row in rows], device=base.device)
    lengths = torch.tensor([len(row.tokens) for row in rows], device=base.device)
    return base.hidden(changes, tokens)[torch.arange(longest, device=base.device) < lengths[:, None]]


def _logprobs(base: Base, changes: Changes, hidden: Tensor, targets: Tensor) -> Tensor:
    return torch.log_softmax(base.logits(changes, hidden), dim=-1).gather(1, targets)


def _split(positions: Tensor, base: Base) -> tuple[Tensor, ...]:
    return torch.split(positions, max(1, HEAD_ELEMENTS // base.info.vocabulary))
