"""How many rows a matrix product may have so that each row has the same bits whatever is beside it.

On the kernels that we know, four rows or more always give a row the same bits; fewer may take other kernels. That is
tried out once on this machine, with this model's shapes and number of threads; where it does not hold, and on a GPU,
all products have 32 rows exactly.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from doorstep.engine.native.decoder import Shape, Weights
from doorstep.engine.native.linear import batch, product


class Rows(NamedTuple):
    """Rows of a product: ``least`` to ``most``, powers of two."""

    least: int
    most: int

    def padded(self, rows: int) -> int:
        """Return how many to make of some rows: one product's, or a multiple of the largest."""
        if rows > self.most:
            return -(-rows // self.most) * self.most
        return max(self.least, 1 << (rows - 1).bit_length())


ANY = Rows(4, 256)
FIXED = Rows(32, 32)


def rows_of(shape: Shape, weights: Weights) -> Rows:
    """Return the numbers of rows at which this machine's kernels agree."""
    if weights.embed.device.type != "cpu":
        return FIXED
    layer, draw = weights.layers[0], torch.Generator().manual_seed(1)
    agree = all(_rows_agree(matrix, draw) for matrix in (layer.qkv, layer.o, layer.gate_up, layer.down, weights.head))
    # What is beside them, and attention: batches of small products.
    small = [(shape.width, 8), (8, shape.width), (shape.head_size, 64), (64, shape.head_size)]
    return ANY if agree and all(_batches_agree(inputs, outputs, draw) for inputs, outputs in small) else FIXED


def _rows_agree(matrix: Tensor, draw: torch.Generator) -> bool:
    rows = torch.randn(ANY.most, matrix.shape[1], generator=draw).to(matrix)
    whole = product(rows, matrix)
    counts = (4, 8, 12, 16, 28, 32, 44, 64, 100, 128)
    return all(torch.equal(product(rows[4 : 4 + count], matrix), whole[4 : 4 + count]) for count in counts)


def _batches_agree(inputs: int, outputs: int, draw: torch.Generator) -> bool:
    matrices = torch.randn(6, inputs, outputs, generator=draw)
    rows = torch.randn(6, 64, inputs, generator=draw)
    whole = batch(rows, matrices)
    parts = [(slice(first, 6), slice(4, 4 + count)) for first in (0, 3, 5) for count in (4, 8, 16, 32)]
    return all(torch.equal(batch(rows[at], matrices[at[0]]), whole[at]) for at in parts)
