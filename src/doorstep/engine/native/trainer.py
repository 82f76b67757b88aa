"""Training an adapter: forward-backward over rows of any length, and the optimiser's step.

Rows are packed (see ``packing``) and cut into right-padded micro-batches, a function of the rows alone, so that the
same call gives the same bits. The head runs apart, a few positions at a time, with its gradient written out: positions
that do not count cost no backward pass, and logits of a large vocabulary are never held together.
"""

import math
from collections.abc import Generator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from doorstep.engine.adapter import Adapter
from doorstep.engine.api import AdamParams, Loss, ModelInfo, Scores, TrainResult, TrainRow
from doorstep.engine.losses import KINDS, Inputs, Kind
from doorstep.engine.native import decoder
from doorstep.engine.native.base import Base
from doorstep.engine.native.decoder import Layout, Weights
from doorstep.engine.native.packing import Packed, batches, pack
from doorstep.errors import EngineError

MICRO_BATCH = 2048  # tokens with padding; larger ones are no faster, and hold up sampling longer
HEAD_ELEMENTS = 1 << 22  # logits held at once


class _Batch(NamedTuple):
    """Some rows as the decoder gets them. ``pick`` finds the place of each row's each position; so do the rest."""

    rows: list[int]
    tokens: Tensor  # (B, T)
    layout: Layout | None
    pick: Tensor
    targets: Tensor
    inputs: Inputs


def check_rows(rows: list[TrainRow], loss: Loss, info: ModelInfo) -> None:
    """Raise an EngineError that names the first row and field that cannot be trained on."""
    kind = KINDS.get(loss.name)
    if kind is None:
        raise EngineError(f"loss {loss.name!r} is not served here; there are {', '.join(KINDS)}")
    if unknown := set(loss.config) - kind.settings:
        raise EngineError(f"loss {loss.name} has no setting {', '.join(sorted(unknown))}")
    if not rows:
        raise EngineError("there are no rows to train on; give at least one")
    for index, row in enumerate(rows):
        if problem := _problem(row, kind, info):
            raise EngineError(f"row {index}: {problem}")


def forward_backward(
    base: Base, adapter: Adapter, weights: Weights, rows: list[TrainRow], loss: Loss, forward_only: bool
) -> Generator[None, None, TrainResult]:
    """Add the gradients of a loss over rows; pauses after each micro-batch. ``weights`` has the adapter merged in.

    The gradients arrive together at the end: a failure on the way leaves the adapter as it was.
    """
    kind = KINDS[loss.name]
    merged = _leaves(adapter, weights)
    logprobs: list[list[float]] = [[] for _ in rows]
    total = 0.0
    for batch in _batches(rows, kind):
        lp, value = _step(base, merged, batch, loss, forward_only)
        lengths = [len(rows[index].tokens) for index in batch.rows]
        for index, part in zip(batch.rows, lp.split(lengths), strict=True):
            logprobs[index] = part.tolist()
        total += value
        yield
    if not forward_only:
        adapter.add_gradients(merged)
    return TrainResult(logprobs=logprobs, metrics={"loss:sum": total})


def optim_step(adapter: Adapter, params: AdamParams) -> dict[str, float]:
    """Step AdamW with the gradients so far and clear them; on gradients that are not finite the weights stay."""
    norm = float(torch.linalg.vector_norm(adapter.gradient))
    if not math.isfinite(norm):
        adapter.gradient.zero_()
        raise EngineError("the gradients are not finite; they were cleared, the weights are as before. Lower the rate.")
    if 0 < params.grad_clip_norm < norm:
        adapter.gradient.mul_(params.grad_clip_norm / norm)
    adapter.optimizer.param_groups[0].update(
        lr=params.learning_rate,
        betas=(params.beta1, params.beta2),
        eps=params.eps,
        weight_decay=params.weight_decay,
    )
    adapter.flat.grad = adapter.gradient
    adapter.optimizer.step()
    adapter.gradient.zero_()
    return {"step": float(adapter.optimizer.state[adapter.flat]["step"]), "grad_norm": norm}


def score(base: Base, weights: Weights, tokens: list[int]) -> Scores:
    """Return the log-probability of each token given those before it; the first has none."""
    with torch.inference_mode():
        hidden = decoder.run(base.shape, weights, base.rope, torch.tensor([tokens]))[0, :-1]
        parts = zip(_split(hidden, base), _split(torch.tensor(tokens[1:]), base), strict=True)
        found = [_log_softmax(part, weights).gather(1, targets[:, None]).flatten() for part, targets in parts]
        return Scores(logprobs=[None, *torch.cat(found).tolist()] if found else [None])


def _problem(row: TrainRow, kind: Kind, info: ModelInfo) -> str | None:
    length = len(row.tokens)
    if not 1 <= length <= info.max_context:
        return f"tokens has {length} entries; {info.name} takes 1 to {info.max_context}"
    for field in ("targets", *kind.fields):
        values = _given(row, field)
        if values is None:
            return f"{field} is missing; this loss needs {', '.join(kind.fields)}"
        if len(values) != length:
            return f"{field} has {len(values)} entries, tokens has {length}; they must be equally long"
    for field in ("tokens", "targets"):
        if wrong := [token for token in getattr(row, field) if not 0 <= token < info.vocabulary]:
            return f"{field} has the id {wrong[0]}, outside the vocabulary of {info.vocabulary}"
    for field in kind.fields:
        if not all(map(math.isfinite, row.inputs[field])):
            return f"{field} has an entry that is not a finite number"
    return None


def _given(row: TrainRow, field: str) -> list[Any] | None:
    return row.targets if field == "targets" else row.inputs.get(field)


def _leaves(adapter: Adapter, weights: Weights) -> Weights:
    """Return views on merged weights that collect gradients where the adapter changes them."""
    leaves = decoder.frozen(weights)
    for site in adapter.sites:
        site.of(leaves).requires_grad_()
    return leaves


def _batches(rows: list[TrainRow], kind: Kind) -> list[_Batch]:
    groups = pack([row.tokens for row in rows])
    return [_batch(rows, batch, kind) for batch in batches(groups, MICRO_BATCH)]


def _batch(rows: list[TrainRow], groups: list[Packed], kind: Kind) -> _Batch:
    longest = max(group.length for group in groups)
    tokens = torch.zeros(len(groups), longest, dtype=torch.long)
    positions = torch.zeros(len(groups), longest, dtype=torch.long)
    part = torch.zeros(len(groups), longest, dtype=torch.long)  # 0 what is shared, then one number a row
    pick: list[int] = []
    for number, group in enumerate(groups):
        end = group.prefix
        tokens[number, :end] = torch.tensor(rows[group.rows[0]].tokens[:end])
        positions[number, :end] = torch.arange(end)
        for index in group.rows:
            own = rows[index].tokens[group.prefix :]
            places = slice(end, end + len(own))
            tokens[number, places] = torch.tensor(own, dtype=torch.long)
            positions[number, places] = torch.arange(group.prefix, group.prefix + len(own))
            part[number, places] = index + 1
            pick += [number * longest + at for at in (*range(group.prefix), *range(places.start, places.stop))]
            end = places.stop
    order = [index for group in groups for index in group.rows]

    def flat(field: str, kind: torch.dtype) -> Tensor:
        return torch.tensor([value for index in order for value in _given(rows[index], field) or ()], dtype=kind)

    empty = torch.empty(0)
    inputs = Inputs(*(flat(field, torch.float32) if field in kind.fields else empty for field in Inputs._fields))
    shared = any(len(group.rows) > 1 for group in groups)
    layout = Layout(positions, _sees(part)) if shared else None
    return _Batch(order, tokens, layout, torch.tensor(pick), flat("targets", torch.long), inputs)


def _sees(part: Tensor) -> Tensor:
    """Return what each place sees, (B, 1, T, T): what is before it, in what is shared or in its own row."""
    earlier = torch.ones(part.shape[1], part.shape[1], dtype=torch.bool).tril()
    return ((part[:, None, :] == 0) | (part[:, None, :] == part[:, :, None]))[:, None] & earlier


def _step(base: Base, merged: Weights, batch: _Batch, loss: Loss, forward_only: bool) -> tuple[Tensor, float]:
    """Run one micro-batch; gradients add up in ``merged``. Return log-probabilities and the loss."""
    with torch.set_grad_enabled(not forward_only):
        places = decoder.run(base.shape, merged, base.rope, batch.tokens, batch.layout).flatten(0, 1)
        hidden = places.index_select(0, batch.pick)
    lps, losses, backward = [], 0.0, torch.zeros_like(hidden)
    counts = getattr(batch.inputs, KINDS[loss.name].gate) != 0
    with torch.no_grad():
        start = 0
        for part in _split(hidden, base):
            span = slice(start, start + len(part))
            start += len(part)
            inputs = Inputs(*(given[span] for given in batch.inputs))
            targets = batch.targets[span]
            log_p = _log_softmax(part, merged)
            lp = log_p.gather(1, targets[:, None]).flatten()
            value = KINDS[loss.name].function(lp, inputs, loss.config)
            lps.append(lp)
            losses += float(value.loss.sum(dtype=torch.float64))
            if not forward_only:
                used = counts[span].nonzero().flatten()
                _head_backward(merged.head, part, log_p, targets, value.gradient, used, backward[span])
    if not forward_only and hidden.requires_grad:
        hidden.backward(backward)
    return torch.cat(lps), losses


def _head_backward(
    head: Tensor, hidden: Tensor, log_p: Tensor, targets: Tensor, gradient: Tensor, used: Tensor, out: Tensor
) -> None:
    """Write the gradient at the ``used`` hidden states to ``out``, and add the head's to ``head.grad``."""
    change = log_p[used].exp_().mul_(-gradient[used, None])
    change[torch.arange(len(used)), targets[used]] += gradient[used]
    out[used] = change @ head
    if head.requires_grad:
        if head.grad is None:
            head.grad = torch.zeros_like(head)
        head.grad.addmm_(change.T, hidden[used])


def _log_softmax(hidden: Tensor, weights: Weights) -> Tensor:
    return torch.log_softmax(decoder.logits(weights, hidden), dim=-1)


def _split(positions: Tensor, base: Base) -> tuple[Tensor, ...]:
    return torch.split(positions, max(1, HEAD_ELEMENTS // base.shape.vocabulary))
