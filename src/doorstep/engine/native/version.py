"""One version of an adapter as sampling and scoring compute with it: low-rank products beside the base's matrices.

Nothing is merged. A version takes about as much memory as the adapter and is made in less than a millisecond for the
shipped base, and rows of many adapters share the products with the base's matrices, which is most of the work.
"""

from collections.abc import Iterator
from itertools import groupby
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from doorstep.engine.adapter import Adapter, Factors, Place, Site
from doorstep.engine.native.decoder import Layer, Weights
from doorstep.engine.native.linear import product
from doorstep.engine.native.sites import FIELDS, HEAD

STEP = 4  # ranks beside one matrix; with fewer the kernels' bits depend on how many products go together


class Low(NamedTuple):
    """What is beside a matrix: A (inputs, ranks) and B (ranks, outputs), scaled; of all the matrix's sites together."""

    a: Tensor
    b: Tensor


class Sum(NamedTuple):
    """A matrix of the base, (outputs, inputs), and what an adapter has beside it."""

    matrix: Tensor
    low: Low | None


class Version(msgspec.Struct, frozen=True, eq=False, weakref=True):
    """All weights of a decoder with one version of an adapter; never changed, equal to itself alone."""

    embed: Tensor
    layers: list[Layer[Sum]]
    norm: Tensor
    head: Sum

    def sums(self) -> Iterator[Sum]:
        """Go through the matrices in their order, the head last."""
        for layer in self.layers:
            yield from (layer.qkv, layer.o, layer.gate_up, layer.down)
        yield self.head

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores (N, V) of hidden states (N, D)."""
        return linear(hidden, self.head)


def version(weights: Weights, adapter: Adapter | None) -> Version:
    """Return what an adapter is now; later changes of it do not show."""
    lows: dict[Place, Low] = {}
    if adapter is not None:
        views = adapter.views(adapter.flat.to(weights.norm.dtype))
        pairs = zip(adapter.sites, views, strict=True)
        for place, parts in groupby(pairs, key=lambda pair: pair[0].place):
            matrix = weights.head if place == HEAD else getattr(weights.layers[place[0]], place[1])
            lows[place] = _low(matrix, list(parts), adapter.scaling)
    layers: list[Layer[Sum]] = [
        _replaced(layer, {field: Sum(getattr(layer, field), lows.get((number, field))) for field in FIELDS})
        for number, layer in enumerate(weights.layers)
    ]
    return Version(weights.embed, layers, weights.norm, Sum(weights.head, lows.get(HEAD)))


def linear(x: Tensor, weight: Sum) -> Tensor:
    """Return the products (N, outputs) of x (N, inputs)."""
    out = product(x, weight.matrix)
    if weight.low is not None:
        out.addmm_(torch.mm(x, weight.low.a), weight.low.b)
    return out


def _replaced(layer: Layer, sums: dict[str, Sum]) -> Layer[Sum]:
    return Layer(**(layer._asdict() | sums))


def _low(matrix: Tensor, parts: list[tuple[Site, Factors]], scaling: float) -> Low:
    outputs, inputs = matrix.shape
    ranks = sum(len(factors.a) for _, factors in parts)
    ranks += -ranks % STEP
    low = Low(matrix.new_zeros(inputs, ranks), matrix.new_zeros(ranks, outputs))
    start = 0
    for site, factors in parts:
        stop = start + len(factors.a)
        low.a[:, start:stop] = factors.a.T
        torch.mul(factors.b.T, scaling, out=low.b[start:stop, site.start : site.stop])
        start = stop
    return low
