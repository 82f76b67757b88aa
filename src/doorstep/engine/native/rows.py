"""Rows as tensors: the tokens of a micro-batch one after another, without padding, and attention within each row.

Only attention needs rectangles. Rows of about one length are laid side by side for it, padded at the right to a
multiple of 32, so that a row's numbers do not depend on what is beside it.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from doorstep.engine.api import TrainRow
from doorstep.engine.native.beside import STEP
from doorstep.engine.native.packing import Packed

PADDING = 32  # kernels of attention go by so many queries


class Block(NamedTuple):
    """A packed row among tokens. ``parts`` is 0 where tokens are shared, else one number a row; None: one row alone."""

    start: int
    length: int
    parts: list[int] | None


class MicroBatch(NamedTuple):
    """Some rows of a call, ``rows`` by index; ``pick`` finds the token of each row's each position, in that order."""

    rows: list[int]
    tokens: list[int]
    positions: list[int]
    pick: list[int]
    blocks: list[Block]


def micro_batch(rows: Sequence[TrainRow], groups: Sequence[Packed]) -> MicroBatch:
    """Lay out groups of rows, with tokens that nobody looks at in the end, up to a multiple of ``STEP``."""
    batch = MicroBatch([index for group in groups for index in group.rows], [], [], [], [])
    for group in groups:
        _append(batch, rows, group)
    if spare := -len(batch.tokens) % STEP:
        batch.tokens.extend([0] * spare)
        batch.positions.extend([0] * spare)
        start, length, parts = batch.blocks.pop()
        batch.blocks.append(Block(start, length + spare, parts and parts + [-1] * spare))
    return batch


def _append(batch: MicroBatch, rows: Sequence[TrainRow], group: Packed) -> None:
    start = len(batch.tokens)
    shared = range(start, start + group.prefix)
    batch.tokens.extend(rows[group.rows[0]].tokens[: group.prefix])
    batch.positions.extend(range(group.prefix))
    parts = [0] * group.prefix
    for number, index in enumerate(group.rows, 1):
        own = rows[index].tokens[group.prefix :]
        batch.pick.extend(shared)
        batch.pick.extend(range(len(batch.tokens), len(batch.tokens) + len(own)))
        batch.tokens.extend(own)
        batch.positions.extend(range(group.prefix, group.prefix + len(own)))
        parts += [number] * len(own)
    batch.blocks.append(Block(start, group.length, parts if len(group.rows) > 1 else None))


class Attention:
    """Causal attention within each of some blocks, which together are all tokens of a pass."""

    def __init__(self, blocks: Sequence[Block], device: torch.device) -> None:
        sizes: dict[tuple[int, bool], list[Block]] = {}
        for block in blocks:
            sizes.setdefault((-(-block.length // PADDING) * PADDING, block.parts is None), []).append(block)
        self._rectangles = [
            (len(group), size, None if plain else _sees(group, size).to(device))
            for (size, plain), group in sizes.items()
        ]
        places, real = (torch.cat(parts) for parts in zip(*map(_places, sizes.values(), sizes), strict=True))
        self._taken = places.to(device)
        self._back: Tensor | None = None  # where each token is among the taken; None: they are the tokens as they are
        if len(sizes) > 1 or not real.all():
            back = torch.empty(int(real.sum()), dtype=torch.long)
            back[places[real]] = torch.arange(len(places))[real]
            self._back = back.to(device)

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Return what queries (N, H, E) mix of values (N, K, E), (N, H·E)."""
        if self._back is None:
            return self._mixed(q, k, v)
        parts = [_take(part, self._taken, self._back) for part in (q, k, v)]
        return _give_back(self._mixed(*parts), self._back)

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sizes = [rows * size for rows, size, _ in self._rectangles]
        found = []
        for (rows, _, mask), *parts in zip(self._rectangles, *(each.split(sizes) for each in (q, k, v)), strict=True):
            queries, keys, values = (part.unflatten(0, (rows, -1)).transpose(1, 2) for part in parts)
            grouped = q.shape[1] != k.shape[1]
            mixed = F.scaled_dot_product_attention(
                queries, keys, values, mask, is_causal=mask is None, enable_gqa=grouped
            )
            found.append(mixed.transpose(1, 2).flatten(2).flatten(0, 1))
        return found[0] if len(found) == 1 else torch.cat(found)


def _take(x: Tensor, taken: Tensor, back: Tensor) -> Tensor:
    found: Tensor = _Take.apply(x, taken, back)  # type: ignore[no-untyped-call]
    return found


def _give_back(x: Tensor, back: Tensor) -> Tensor:
    found: Tensor = _GiveBack.apply(x, back)  # type: ignore[no-untyped-call]
    return found


class _Take(torch.autograd.Function):
    """Rows of a tensor, all of them and some again; those taken again get no gradient, for nobody looks at them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, taken: Tensor, back: Tensor) -> Tensor:
        ctx.back = back
        return x.index_select(0, taken)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0].index_select(0, ctx.back), None, None


class _GiveBack(torch.autograd.Function):
    """The first of each row that ``_Take`` took."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, back: Tensor) -> Tensor:
        ctx.back, ctx.length = back, len(x)
        return x.index_select(0, back)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient.new_zeros(ctx.length, gradient.shape[1]).index_copy_(0, ctx.back, gradient), None


def _places(blocks: Sequence[Block], key: tuple[int, bool]) -> tuple[Tensor, Tensor]:
    """Return the tokens of a rectangle, and which are real: a block's last one fills what is left of its row."""
    starts, lengths = (torch.tensor(values)[:, None] for values in zip(*(block[:2] for block in blocks), strict=True))
    across = torch.arange(key[0])
    return (starts + torch.minimum(across, lengths - 1)).flatten(), (across < lengths).flatten()


def _sees(blocks: Sequence[Block], size: int) -> Tensor:
    """Return what each place sees, (blocks, 1, size, size): what is before it, in what is shared or its own row."""
    parts = torch.tensor([(block.parts or []) + [-1] * (size - block.length) for block in blocks])
    earlier = torch.ones(size, size, dtype=torch.bool).tril()
    return ((parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None]))[:, None] & earlier
