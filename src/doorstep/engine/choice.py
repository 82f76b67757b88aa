"""Choosing the next token of each row from its scores: temperature, top-k, top-p, and a seeded draw.

A draw inverts the cumulative distribution at one uniform number, which is a hash of (prompt, seed, sample index,
position): no state, so that a sample does not depend on what was drawn beside it. Every operation is row by row.
"""

import hashlib
from array import array
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from doorstep.engine.api import SampleParams

_MASK = (1 << 64) - 1


class Chosen(NamedTuple):
    """Ids, and their log-probabilities at temperature 1 over the whole vocabulary."""

    ids: list[int]
    logprobs: list[float]


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


def choose(logits: Tensor, params: Sequence[SampleParams], draws: Sequence[float]) -> Chosen:
    """Choose one token for each row of ``logits`` (rows, V)."""
    heat = torch.tensor([each.temperature or 1.0 for each in params])
    probabilities = torch.softmax(logits / heat[:, None], dim=-1)
    if filtered := [row for row, each in enumerate(params) if each.temperature and (each.top_k > 0 or each.top_p < 1)]:
        probabilities[filtered] = _filter(probabilities[filtered], [params[row] for row in filtered])
    ids = _invert(probabilities, torch.tensor(draws))
    if greedy := [row for row, each in enumerate(params) if not each.temperature]:
        ids[greedy] = logits[greedy].argmax(dim=-1)
    logprobs = torch.log_softmax(logits, dim=-1).gather(1, ids[:, None]).flatten()
    return Chosen(ids.tolist(), logprobs.tolist())


def _filter(probabilities: Tensor, params: list[SampleParams]) -> Tensor:
    """Zero all but the ``top_k`` likeliest, then all but the fewest of those that hold ``top_p`` of the whole."""
    vocabulary = probabilities.shape[1]
    ordered, places = probabilities.sort(dim=-1, descending=True, stable=True)
    top_k = torch.tensor([each.top_k if each.top_k > 0 else vocabulary for each in params])
    top_p = torch.tensor([each.top_p for each in params])
    ordered = torch.where(torch.arange(vocabulary) < top_k[:, None], ordered, 0.0)
    before = ordered.cumsum(dim=-1) - ordered
    ordered = torch.where(before < top_p[:, None] * ordered.sum(dim=-1, keepdim=True), ordered, 0.0)
    return torch.zeros_like(probabilities).scatter_(1, places, ordered)


def _invert(probabilities: Tensor, draws: Tensor) -> Tensor:
    cumulative = probabilities.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # Rounding may put the aim on the total; the second bound keeps to tokens that have a probability.
    return torch.minimum((cumulative <= draws[:, None] * total).sum(dim=-1), (cumulative < total).sum(dim=-1))
