"""Many adapters beside one base: to products with the shared matrices each adds low-rank products of its own.

The tokens of all adapters lie one after another, (N, D), a stretch for each. Products go stretch by stretch, those of
equally long stretches and equally shaped adapters as one batched product, so that an adapter's numbers have the same
bits alone and among others. Stretches are multiples of ``STEP`` tokens: with two threads the kernels' bits for other
numbers of rows depend on where in memory they lie. No matrix is merged: with few tokens that costs more than it saves.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from doorstep.engine.adapter import Adapter, Factors, Place, Site
from doorstep.engine.native import fused
from doorstep.engine.native.decoder import Attend, Layer, Rope, Shape, Weights
from doorstep.engine.native.linear import add_batch, batch, product
from doorstep.engine.native.sites import FIELDS, HEAD

STEP = 16
FEW_RANKS = 64  # of a matrix: up to so many, one product with zeros between its sites is quicker than one a site


class Member(NamedTuple):
    """An adapter and how long its stretch is."""

    adapter: Adapter
    tokens: int

    @property
    def shape(self) -> tuple[int, ...]:
        """What members have in common that are computed together."""
        spec = self.adapter.spec
        return self.tokens, spec.rank, spec.train_attn, spec.train_mlp, spec.train_unembed


class Block(NamedTuple):
    """Some rows of a matrix, the ranks that change them, and their B (count, rows, ranks) with its gradient."""

    rows: slice
    ranks: slice
    b: Tensor
    by_b: Tensor


class Low(NamedTuple):
    """What some adapters of one shape have beside a matrix: A of all its sites, (count, ranks, inputs), and B."""

    scaling: Tensor  # (count, 1, 1)
    a: Tensor
    by_a: Tensor
    blocks: list[Block]


class Stretches(NamedTuple):
    """Equally long stretches, ``members`` of them from ``start`` to ``stop``; no ``low`` where they have nothing."""

    start: int
    stop: int
    members: int
    low: Low | None

    def of(self, x: Tensor) -> Tensor:
        """Return these tokens of (N, D) as (members, tokens, D)."""
        return x[self.start : self.stop].view(self.members, -1, x.shape[-1])


class Beside(NamedTuple):
    """A matrix of the base, (outputs, inputs), and what is beside it. ``anchor`` tells autograd whether to go there."""

    matrix: Tensor
    anchor: Tensor
    stretches: list[Stretches]


class Stack:
    """The members of one pass. Members of one shape must follow each other."""

    def __init__(self, weights: Weights, members: Sequence[Member]) -> None:
        self._weights = weights
        self._groups: list[_Group] = []
        start = 0
        for _, group in groupby(members, key=lambda member: member.shape):
            self._groups.append(_Group(list(group), start, weights.head.dtype))
            start = self._groups[-1].stop

    def hidden(self, shape: Shape, rope: Rope, tokens: Tensor, attend: Attend) -> Tensor:
        """Return the decoder's hidden states (N, D)."""
        layers = [self._layer(number, layer) for number, layer in enumerate(self._weights.layers)]
        x = F.embedding(tokens, self._weights.embed)
        return fused.through(shape, layers, self._weights.norm, rope, x, attend, linear)

    def heads(self) -> list["Head"]:
        """Return the members' heads."""
        return [head for group in self._groups for head in group.heads(self._weights.head)]

    def gradients(self) -> list[Tensor]:
        """Return what backward passes have added up, a vector for each member."""
        return [gradient for group in self._groups for gradient in group.gradients()]

    def _layer(self, number: int, layer: Layer) -> Layer[Beside]:
        matrices = {field: self._beside(getattr(layer, field), (number, field)) for field in FIELDS}
        return Layer(
            norm=layer.norm, qkv_bias=layer.qkv_bias, qk_norm=layer.qk_norm, mlp_norm=layer.mlp_norm, **matrices
        )

    def _beside(self, matrix: Tensor, place: Place) -> Beside:
        stretches = [group.at(place) for group in self._groups]
        changed = any(each.low for each in stretches)
        return Beside(matrix, matrix.new_zeros((), requires_grad=changed), stretches)


class _Group:
    """Members of one shape, from the token ``start`` on."""

    def __init__(self, members: list[Member], start: int, dtype: torch.dtype) -> None:
        self.start, self.stop = start, start + sum(member.tokens for member in members)
        self._adapter = members[0].adapter  # the sites are those of all
        self._flat = torch.stack([member.adapter.flat for member in members])
        self._scaling = self._flat.new_tensor([member.adapter.scaling for member in members])[:, None, None]
        self._sites: dict[Place, list[tuple[Site, Factors]]] = {}
        for site, factors in zip(self._adapter.sites, self._adapter.views(self._flat.to(dtype)), strict=True):
            self._sites.setdefault(site.place, []).append((site, factors))
        self._lows: dict[Place, Low] = {}

    def at(self, place: Place) -> Stretches:
        """Return the stretches with what the members have beside the matrix at a place."""
        if place in self._sites:
            self._lows[place] = _low(self._scaling, self._sites[place])
        return Stretches(self.start, self.stop, len(self._flat), self._lows.get(place))

    def heads(self, matrix: Tensor) -> list["Head"]:
        low = self.at(HEAD).low
        return [Head(matrix, low and _member(low, index)) for index in range(len(self._flat))]

    def gradients(self) -> Tensor:
        """Return the members' gradients, (count, size)."""
        found = torch.empty_like(self._flat)
        used: dict[Place, int] = {}
        for site, (a, b) in zip(self._adapter.sites, self._adapter.views(found), strict=True):
            low, first = self._lows[site.place], used.get(site.place, 0)
            ranks = slice(first, first + self._adapter.spec.rank)
            used[site.place] = ranks.stop
            a.copy_(low.by_a[:, ranks])
            block = next(each for each in low.blocks if each.ranks.start <= first < each.ranks.stop)
            columns = slice(first - block.ranks.start, ranks.stop - block.ranks.start)
            b.copy_(block.by_b[:, site.start - block.rows.start : site.stop - block.rows.start, columns])
        return found


def _low(scaling: Tensor, sites: list[tuple[Site, Factors]]) -> Low:
    a = torch.cat([factors.a for _, factors in sites], dim=1)
    blocks, first = [], 0
    for site, (_, b) in sites:
        ranks = slice(first, first + b.shape[2])
        blocks.append(Block(slice(site.start, site.stop), ranks, b, torch.zeros_like(b)))
        first = ranks.stop
    if len(blocks) > 1 and first <= FEW_RANKS:
        blocks = [_joined(blocks)]
    return Low(scaling, a, torch.zeros_like(a), blocks)


def _joined(blocks: list[Block]) -> Block:
    """Return one block for several, with zeros where rows and ranks have nothing to do with each other."""
    rows, ranks = slice(blocks[0].rows.start, blocks[-1].rows.stop), slice(0, blocks[-1].ranks.stop)
    b = blocks[0].b.new_zeros(len(blocks[0].b), rows.stop - rows.start, ranks.stop)
    for block in blocks:
        b[:, block.rows.start - rows.start : block.rows.stop - rows.start, block.ranks] = block.b
    return Block(rows, ranks, b, torch.zeros_like(b))


def linear(x: Tensor, beside: Beside) -> Tensor:
    """Return the products (N, outputs) of x (N, inputs)."""
    product: Tensor = _Linear.apply(x, beside.anchor, beside)  # type: ignore[no-untyped-call]
    return product


class Head:
    """The head of one member: the base's matrix, and what its adapter has beside it."""

    def __init__(self, matrix: Tensor, low: Low | None) -> None:
        self.vocabulary = len(matrix)
        self._matrix = matrix
        self._low = low

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the scores (P, V) of hidden states (P, D)."""
        scores = product(hidden, self._matrix)
        if self._low:
            scores.addmm_(torch.mm(hidden, self._low.a.T).mul_(self._low.scaling), self._low.blocks[0].b.T)
        return scores

    def backward(self, change: Tensor, hidden: Tensor) -> Tensor:
        """Return the gradient at hidden states from that at their scores; add that of the adapter."""
        by_hidden = product(change, self._matrix.T)
        if self._low:
            scaling, a, by_a, (block,) = self._low
            by_low = torch.mm(change, block.b).mul_(scaling)
            by_a.add_(torch.mm(by_low.T, hidden))
            block.by_b.add_(torch.mm(change.T, torch.mm(hidden, a.T).mul_(scaling)))
            by_hidden.addmm_(by_low, a)
        return by_hidden


def _member(low: Low, index: int) -> Low:
    """Return one member's part, without the first dimension."""
    blocks = [Block(block.rows, block.ranks, block.b[index], block.by_b[index]) for block in low.blocks]
    return Low(low.scaling[index, 0, 0], low.a[index], low.by_a[index], blocks)


class _Linear(torch.autograd.Function):
    """y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ, its gradient by x, and A's and B's put where they belong."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _anchor: Tensor, beside: Beside) -> Tensor:
        matrix, _, stretches = beside
        out = product(x, matrix)
        narrow = [None if each.low is None else _add(each.low, each.of(x), each.of(out)) for each in stretches]
        ctx.beside, ctx.narrow = beside, narrow
        ctx.save_for_backward(x)
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, None, None]:
        (x,), (change,) = ctx.saved_tensors, gradients
        matrix, _, stretches = ctx.beside
        change = change.contiguous()
        by_x = product(change, matrix.T) if ctx.needs_input_grad[0] else None
        for each, narrow in zip(stretches, ctx.narrow, strict=True):
            if each.low is not None:
                by_inputs = None if by_x is None else each.of(by_x)
                _add_back(each.low, narrow, each.of(x), each.of(change), by_inputs)
        return by_x, None, None


def _add(low: Low, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Add to the outputs what goes through A and B; return what is between the two, x·Aᵀ, scaled."""
    narrow = batch(inputs, low.a.mT).mul_(low.scaling)
    for block in low.blocks:
        add_batch(outputs[..., block.rows], narrow[..., block.ranks], block.b.mT)
    return narrow


def _add_back(low: Low, narrow: Tensor, inputs: Tensor, change: Tensor, by_inputs: Tensor | None) -> None:
    """Set the gradients of A and B, and add to that of the inputs what goes through them."""
    parts = [batch(change[..., block.rows], block.b) for block in low.blocks]
    by_narrow = (parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)).mul_(low.scaling)
    batch(by_narrow.mT, inputs, out=low.by_a)
    for block in low.blocks:
        batch(change[..., block.rows].mT, narrow[..., block.ranks], out=block.by_b)
    if by_inputs is not None:
        add_batch(by_inputs, by_narrow, low.a)
