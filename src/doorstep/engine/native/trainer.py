"""Training: forward-backward of many adapters' calls in one pass of the decoder.

Each call is cut into micro-batches, a function of its rows alone; micro-batches of different calls then go through the
decoder together, as many as ``MICRO_BATCH`` tokens hold (see ``beside``). The head runs apart, for one call and a few
positions at a time, with its gradient written out: positions that do not count cost no backward pass, and logits of a
large vocabulary are never held together.
"""

from collections import deque
from collections.abc import Generator, Sequence
from itertools import accumulate
from typing import Any, Protocol

import torch
from torch import Tensor

from doorstep.engine.adapter import Adapter
from doorstep.engine.api import TrainResult
from doorstep.engine.full import Full
from doorstep.engine.losses import bind, means
from doorstep.engine.native.base import Base
from doorstep.engine.native.beside import Member, Stack
from doorstep.engine.native.decoder import Rope
from doorstep.engine.native.packing import batches, pack
from doorstep.engine.native.rows import Attention, MicroBatch, micro_batch
from doorstep.engine.native.whole import Whole
from doorstep.engine.runtime import Task
from doorstep.errors import EngineError

MICRO_BATCH = 2048  # tokens; more are no faster, and hold up sampling longer
HEAD_ELEMENTS = 1 << 24  # logits held at once


class Head(Protocol):
    """The last matrix, for one call."""

    vocabulary: int

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores (P, V) of hidden states (P, D)."""
        ...

    def backward(self, change: Tensor, hidden: Tensor) -> Tensor:
        """Return the gradient at hidden states from that at their scores; add that of the weights."""
        ...


class Run:
    """A task on its way. Its gradients arrive together at the end: a failure leaves the adapter as it was."""

    def __init__(self, task: Task[Any]) -> None:
        self.task = task
        self.waiting = deque(_cut(task))
        self._loss = bind(task.loss)
        self._logprobs: list[list[float]] = [[] for _ in task.rows]
        self._sums: dict[str, float] = {}
        self._gradient: Tensor | None = None

    def take_loss(self, batch: MicroBatch, hidden: Tensor, head: Head) -> Tensor:
        """Take the loss of hidden states (P, D); return the gradient at them, zero with ``forward_only``."""
        rows = [self.task.rows[index] for index in batch.rows]
        targets = torch.tensor([target for row in rows for target in row.targets], device=hidden.device)
        scores = _Scores(hidden, head, targets.view(-1, rows[0].width))
        lp = scores.logprobs()
        given = self._loss.gather(rows, hidden.device)
        value = self._loss(lp if rows[0].width > 1 else lp[:, 0], given)
        self._note("loss:sum", float(value.loss.sum(dtype=torch.float64)))
        for name, amount in value.metrics.items():
            self._note(name, amount)
        parts = lp.flatten().split([len(row.targets) for row in rows])
        for index, part in zip(batch.rows, parts, strict=True):
            self._logprobs[index] = part.tolist()
        if self.task.forward_only:
            return torch.zeros_like(hidden)
        return scores.backward(value.gradient.view(lp.shape), given.counts)

    def add(self, gradient: Tensor) -> None:
        """Add the gradient of a micro-batch."""
        self._gradient = gradient if self._gradient is None else self._gradient.add_(gradient)

    def finish(self) -> None:
        """Hand over the result, and the gradients to the adapter."""
        if self._gradient is not None:
            self.task.adapter.gradient.add_(self._gradient)
        self.task.done = TrainResult(logprobs=self._logprobs, metrics=means(self._sums, len(self.task.rows)))

    def fail(self, error: Exception) -> None:
        """Give up."""
        self.waiting.clear()
        self.task.done = (
            error if isinstance(error, EngineError) else EngineError(f"the engine failed: {error!r}", "server")
        )

    def _note(self, name: str, amount: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + amount


class _Scores:
    """Log-probabilities of targets (P, K) at hidden states (P, D), some positions at a time."""

    def __init__(self, hidden: Tensor, head: Head, targets: Tensor) -> None:
        self._hidden = hidden
        self._head = head
        self._targets = targets
        self._step = max(1, HEAD_ELEMENTS // head.vocabulary)
        self._one_step = len(hidden) <= self._step
        self._last: Tensor | None = None  # log-probabilities of all tokens at the last step

    def logprobs(self) -> Tensor:
        """Return the targets' log-probabilities, (P, K)."""
        found = []
        for start in range(0, len(self._hidden), self._step):
            span = slice(start, start + self._step)
            self._last = _log_softmax(self._hidden[span], self._head)
            found.append(self._last.gather(1, self._targets[span]))
        return torch.cat(found)

    def backward(self, gradient: Tensor, counts: Tensor | None) -> Tensor:
        """Return the gradient at the hidden states from that at the log-probabilities."""
        found = torch.zeros_like(self._hidden)
        used = torch.arange(len(found), device=found.device) if counts is None else counts.nonzero().flatten()
        for part in used.split(self._step):
            hidden, targets, by_lp = (each.index_select(0, part) for each in (self._hidden, self._targets, gradient))
            kept = self._last if self._one_step else None
            change = _log_softmax(hidden, self._head) if kept is None else kept.index_select(0, part)
            change.exp_().mul_(-by_lp.sum(dim=1, keepdim=True)).scatter_add_(1, targets, by_lp)
            found.index_copy_(0, part, self._head.backward(change.to(hidden.dtype), hidden))
        return found


def _log_softmax(hidden: Tensor, head: Head) -> Tensor:
    return torch.log_softmax(head.logits(hidden).float(), dim=-1)


def train(base: Base, tasks: Sequence[Task[Any]]) -> Generator[None, None, None]:
    """Do tasks, at most one of an adapter; pauses after each pass of the decoder."""
    runs = []
    for task in tasks:
        try:
            runs.append(Run(task))
        except EngineError as error:
            task.done = error
    while waiting := [run for run in runs if run.waiting]:
        chosen = _together(waiting)
        try:
            _pass(base, chosen)
        except Exception as error:
            for run, _ in chosen:
                run.fail(error)
        for run, _ in chosen:
            if run.task.done is None and not run.waiting:
                run.finish()
        yield


def _cut(task: Task[Any]) -> list[MicroBatch]:
    """Cut a call into micro-batches, each of rows of one width."""
    widths: dict[int, list[int]] = {}
    for index, row in enumerate(task.rows):
        widths.setdefault(row.width, []).append(index)
    cut = []
    for indices in widths.values():
        groups = pack([task.rows[index].tokens for index in indices])
        named = [group._replace(rows=[indices[number] for number in group.rows]) for group in groups]
        cut += [micro_batch(task.rows, batch) for batch in batches(named, MICRO_BATCH)]
    return cut


def _together(waiting: Sequence[Run]) -> list[tuple[Run, MicroBatch]]:
    """Take the next micro-batches that go through the decoder in one pass, equally shaped ones side by side."""
    first, *others = waiting
    chosen = [(first, first.waiting.popleft())]
    if isinstance(first.task.adapter, Full):
        return chosen
    room = MICRO_BATCH - len(chosen[0][1].tokens)
    for run in others:
        alike = type(run.task.adapter) is Adapter and run.task.forward_only == first.task.forward_only
        if alike and len(run.waiting[0].tokens) <= room:
            chosen.append((run, run.waiting.popleft()))
            room -= len(chosen[-1][1].tokens)
    return sorted(chosen, key=lambda each: Member(each[0].task.adapter, len(each[1].tokens)).shape)


def _pass(base: Base, chosen: Sequence[tuple[Run, MicroBatch]]) -> None:
    """Run micro-batches of different adapters through the decoder and back."""
    forward_only = chosen[0][0].task.forward_only
    device = base.weights.embed.device
    layout = _Layout([batch for _, batch in chosen], device)
    stack = _stack(base, chosen)
    at = Rope(base.rope.cos[layout.positions].unsqueeze(-2), base.rope.sin[layout.positions].unsqueeze(-2))
    with torch.set_grad_enabled(not forward_only):
        hidden = stack.hidden(base.shape, at, layout.tokens, layout.attention).index_select(0, layout.pick)
    heads: Sequence[Head] = stack.heads()
    with torch.no_grad():
        # cloned: kernels give other bits where their input does not lie on a boundary of 64 bytes
        parts = [part.clone() for part in hidden.split(layout.picked)]
        found = [
            _take_loss(run, batch, part, head) for (run, batch), part, head in zip(chosen, parts, heads, strict=True)
        ]
    if forward_only:
        return
    if hidden.requires_grad:
        hidden.backward(torch.cat(found))
    for (run, _), gradient in zip(chosen, stack.gradients(), strict=True):
        run.add(gradient)


def _stack(base: Base, chosen: Sequence[tuple[Run, MicroBatch]]) -> Stack | Whole:
    first = chosen[0][0].task.adapter
    if isinstance(first, Full):
        return Whole(base.shape, first, base.weights.head.dtype)
    return Stack(base.weights, [Member(run.task.adapter, len(batch.tokens)) for run, batch in chosen])


def _take_loss(run: Run, batch: MicroBatch, hidden: Tensor, head: Head) -> Tensor:
    """Take one call's loss; a custom one may fail on its values, which is nothing to the others of the pass."""
    try:
        return run.take_loss(batch, hidden, head)
    except EngineError as error:
        run.fail(error)
        return torch.zeros_like(hidden)


class _Layout:
    """Micro-batches one after another, as tensors."""

    def __init__(self, batches: Sequence[MicroBatch], device: torch.device) -> None:
        starts = list(accumulate((len(batch.tokens) for batch in batches), initial=0))
        placed = list(zip(batches, starts, strict=False))
        blocks = [block._replace(start=block.start + start) for batch, start in placed for block in batch.blocks]
        self.attention = Attention(blocks, device)
        self.tokens = torch.tensor([token for batch in batches for token in batch.tokens], device=device)
        self.positions = torch.tensor([position for batch in batches for position in batch.positions], device=device)
        self.pick = torch.tensor([start + at for batch, start in placed for at in batch.pick], device=device)
        self.picked = [len(batch.pick) for batch in batches]
