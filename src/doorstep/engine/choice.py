"""Choosing the next token of each row from its scores: what a request asks for, then a seeded draw.

Scores go through the penalties, the bias and the grammar; then temperature, min-p, top-k and top-p; then a draw inverts
the cumulative distribution at one uniform number (see ``requests``). Every operation is row by row, so that a row's
choice has the same bits whatever is chosen beside it; a request that asks for less pays for less.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from doorstep.engine.api import SampleParams
from doorstep.engine.requests import Sample
from doorstep.errors import EngineError


class Wish(NamedTuple):
    """What the choice of one row depends on beside its scores."""

    params: SampleParams
    draw: float
    prompt: Sequence[int] = ()
    sampled: Sequence[int] = ()
    allowed: bytes | None = None  # a bit for each id, lowest first; None allows all


class Chosen(NamedTuple):
    """Ids, their log-probabilities over the whole vocabulary, and as much of the likeliest ones."""

    ids: list[int]
    logprobs: list[float]
    top: list[list[tuple[int, float]]]


def advance(samples: Sequence[Sample], logits: Tensor) -> list[Sample]:
    """Give each sample its next token from its row of ``logits``; return those that go on."""
    wishes, able = [], []
    for row, sample in enumerate(samples):
        try:
            allowed = sample.allowed()
        except EngineError as error:
            sample.request.fail(error)
        else:
            able.append(row)
            wishes.append(Wish(sample.request.params, sample.draw(), sample.request.prompt, sample.tokens, allowed))
    if not able:
        return []
    chosen = choose(logits if len(able) == len(samples) else logits[able], wishes)
    going = []
    for row, token, logprob, top in zip(able, *chosen, strict=True):
        sample = samples[row]
        if math.isnan(logprob):
            sample.request.fail(EngineError("the model's scores are not finite; its adapter has diverged"))
        elif sample.accept(token, logprob, top):
            going.append(sample)
    return going


def choose(logits: Tensor, wishes: Sequence[Wish]) -> Chosen:
    """Choose one token for each row of ``logits`` (rows, V)."""
    logits, device, params = logits.float(), logits.device, [wish.params for wish in wishes]
    asked = _asked(logits, wishes)
    heat = torch.tensor([each.temperature or 1.0 for each in params], device=device)
    probabilities = torch.softmax(asked / heat[:, None], dim=-1)
    if filtered := [row for row, each in enumerate(params) if each.temperature and each.min_p > 0]:
        probabilities[filtered] = _at_least(probabilities[filtered], [params[row].min_p for row in filtered])
    if filtered := [row for row, each in enumerate(params) if each.temperature and (each.top_k > 0 or each.top_p < 1)]:
        probabilities[filtered] = _likeliest(probabilities[filtered], [params[row] for row in filtered])
    ids = invert(probabilities, torch.tensor([[wish.draw] for wish in wishes], device=device)).flatten()
    if greedy := [row for row, each in enumerate(params) if not each.temperature]:
        ids[greedy] = asked[greedy].argmax(dim=-1)
    log_p = torch.log_softmax(logits / _told_at(params, heat), dim=-1)
    logprobs = log_p.gather(1, ids[:, None]).flatten()
    return Chosen(ids.tolist(), logprobs.tolist(), _top(log_p, [each.top_logprobs for each in params]))


def top(log_p: Tensor, count: int) -> list[list[tuple[int, float]]]:
    """Return the ``count`` likeliest ids of each row, best first."""
    values, ids = log_p.topk(count, dim=-1)
    return [list(zip(*row, strict=True)) for row in zip(ids.tolist(), values.tolist(), strict=True)]


def invert(probabilities: Tensor, draws: Tensor) -> Tensor:
    """Return the ids, (rows, n), at which the cumulative distributions pass the draws, (rows, n)."""
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:].contiguous()
    # Rounding may put the aim on the total; the second bound keeps to tokens that have a probability. Of what is not
    # a number nothing can be chosen: the last id then, for there must be one, and no row may stop the others.
    last = torch.searchsorted(cumulative, total).clamp(max=cumulative.shape[-1] - 1)
    return torch.minimum(torch.searchsorted(cumulative, draws * total, right=True), last)


def _told_at(params: Sequence[SampleParams], heat: Tensor) -> Tensor:
    """Return the temperature, (rows, 1), at which each row's log-probabilities are told."""
    tempered = torch.tensor([each.tempered for each in params], device=heat.device)
    return torch.where(tempered, heat, 1.0)[:, None]


def _asked(logits: Tensor, wishes: Sequence[Wish]) -> Tensor:
    """Return the scores with what each request wants changed in them."""
    if not (rows := [row for row, wish in enumerate(wishes) if _changes(wish)]):
        return logits
    asked = logits.clone()
    for row in rows:
        _change(asked[row], wishes[row])
    return asked


def _changes(wish: Wish) -> bool:
    each = wish.params
    penalties = each.presence_penalty or each.frequency_penalty or each.repetition_penalty != 1
    return bool(penalties or each.logit_bias or wish.allowed is not None)


def _change(scores: Tensor, wish: Wish) -> None:
    params = wish.params
    if params.repetition_penalty != 1:
        seen = _ids([*wish.prompt, *wish.sampled], scores).unique()
        theirs = scores[seen]
        scores[seen] = torch.where(theirs > 0, theirs / params.repetition_penalty, theirs * params.repetition_penalty)
    if wish.sampled and (params.presence_penalty or params.frequency_penalty):
        ids, counts = _ids(wish.sampled, scores).unique(return_counts=True)
        scores[ids] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        scores[_ids(list(params.logit_bias), scores)] += torch.tensor([*params.logit_bias.values()]).to(scores)
    if wish.allowed is not None:
        packed = torch.frombuffer(bytearray(wish.allowed), dtype=torch.uint8)
        bits = (packed[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
        scores.masked_fill_(bits.flatten()[: len(scores)].to(scores.device) == 0, -torch.inf)


def _ids(ids: Sequence[int], scores: Tensor) -> Tensor:
    return torch.tensor(ids, device=scores.device)


def _at_least(probabilities: Tensor, parts: list[float]) -> Tensor:
    """Zero what has less than a part of the likeliest one's probability."""
    floor = torch.tensor(parts, device=probabilities.device)[:, None] * probabilities.amax(dim=-1, keepdim=True)
    return torch.where(probabilities >= floor, probabilities, 0.0)


def _likeliest(probabilities: Tensor, params: list[SampleParams]) -> Tensor:
    """Zero all but the ``top_k`` likeliest, then all but the fewest of those that hold ``top_p`` of the whole."""
    vocabulary, device = probabilities.shape[1], probabilities.device
    ordered, places = probabilities.sort(dim=-1, descending=True, stable=True)
    top_k = torch.tensor([each.top_k if each.top_k > 0 else vocabulary for each in params], device=device)
    top_p = torch.tensor([each.top_p for each in params], device=device)
    ordered = torch.where(torch.arange(vocabulary, device=device) < top_k[:, None], ordered, 0.0)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = torch.where(before < top_p[:, None] * ordered.sum(dim=-1, keepdim=True), ordered, 0.0)
    return torch.zeros_like(probabilities).scatter_(1, places, ordered)


def _top(log_p: Tensor, counts: list[int]) -> list[list[tuple[int, float]]]:
    found: list[list[tuple[int, float]]] = [[] for _ in counts]
    for count in set(counts) - {0}:
        rows = [row for row, each in enumerate(counts) if each == count]
        for row, told in zip(rows, top(log_p[rows], count), strict=True):
            found[row] = told
    return found
