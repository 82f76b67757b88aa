"""One step of sampling as it is laid out: which rows there are, and what is multiplied by what.

The rows of one version follow each other, padded to a number of rows that ``products`` allows. Versions whose small
tensors (embedding, norms) are the same, as those of all adapters beside one base are, share every product with the
base's matrices; what adapters have beside them goes as one batch for versions of one form with equally many rows.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from doorstep.engine.native.base import Base
from doorstep.engine.native.cache import SLOTS, Group, Places
from doorstep.engine.native.decoder import Layer
from doorstep.engine.native.linear import add_batch, batch, product
from doorstep.engine.native.products import Rows
from doorstep.engine.native.version import Low, Sum, Version
from doorstep.engine.requests import Request, Sample


class Block(NamedTuple):
    """Samples of one request that are alive; each has as many tokens as the others."""

    version: Version
    request: Request
    live: list[Sample]

    @property
    def stored(self) -> int:
        """Generated tokens in the cache; the last one is still to be fed."""
        return len(self.live[0].tokens) - 1


class Work(NamedTuple):
    """What stands for one matrix in a step: which rows go with which matrix, and which with what is beside it."""

    pieces: list[tuple[slice, Tensor]]
    beside: list[tuple[slice, Low]]  # A and B of some versions, (versions, …), with equally many rows each


class Kin(NamedTuple):
    """Rows whose versions differ in their matrices alone."""

    rows: slice
    version: Version  # of one of them
    layers: list[Layer[Work]]
    head: Work


class Span(NamedTuple):
    """A version's rows among those of its kin."""

    version: Version
    start: int
    stop: int


Stacks = dict[tuple[Version, ...], list[Low | None]]


class Plan:
    """A step. It holds until a sample comes or goes; ``stacks`` are those of the plan before, to be used again."""

    def __init__(self, base: Base, rows: Rows, held: list[tuple[Group, list[Block]]], stacks: Stacks) -> None:
        found: dict[Version, list[tuple[int, int, Sample]]] = {}
        for number, (_, blocks) in enumerate(held):
            for index, block in enumerate(blocks):
                found.setdefault(block.version, []).extend((number, index, sample) for sample in block.live)
        self.kin: list[Kin] = []
        self.samples: list[Sample] = []
        self.groups: list[tuple[Group, Places, Tensor]] = []
        self.stacks: Stacks = {}
        device = base.weights.embed.device
        placed: list[list[tuple[int, int, int]]] = [[] for _ in held]  # block, slot and row
        order: list[int] = []
        start = 0
        for members in _kin(found):
            began, spans = start, []
            for version in sorted(members, key=lambda version: (_form(version), rows.padded(len(found[version])))):
                for row, (number, index, sample) in enumerate(found[version], start):
                    placed[number].append((index, sample.index % SLOTS, row))
                    self.samples.append(sample)
                    order.append(row)
                stop = start + rows.padded(len(found[version]))
                spans.append(Span(version, start - began, stop - began))
                start = stop
            self.kin.append(self._work(slice(began, start), spans, rows.most, stacks))
        for (group, blocks), places in zip(held, placed, strict=True):
            lengths = [(len(block.request.prompt), block.stored) for block in blocks]
            taken = torch.tensor([row for _, _, row in places], device=device)
            self.groups.append((group, group.places(lengths, [place[:2] for place in places]), taken))
        self.requests: list[Request] = list({id(each.request): each.request for each in self.samples}.values())
        self.order = torch.tensor(order, device=device)
        self.tokens = torch.zeros(start, dtype=torch.long, device=device)
        self.positions = torch.zeros_like(self.tokens)
        seen = [len(sample.request.prompt) + len(sample.tokens) - 1 for sample in self.samples]
        self.positions[self.order] = torch.tensor(seen, device=device)

    def advance(self) -> None:
        """Go on to the next token."""
        self.positions[self.order] += 1
        for group, places, _ in self.groups:
            places.advance(group.size.prompt)

    def _work(self, rows: slice, spans: list[Span], most: int, stacks: Stacks) -> Kin:
        together = [
            list(each) for _, each in groupby(spans, key=lambda span: (_form(span.version), _count(span, most)))
        ]
        for each in together:
            versions = tuple(span.version for span in each)
            self.stacks[versions] = stacks.get(versions) or _stack(versions)
        works = []
        for number, sums in enumerate(zip(*(span.version.sums() for span in spans), strict=True)):
            beside = []
            for each in together:
                low = self.stacks[tuple(span.version for span in each)][number]
                if low is not None:  # several together have no more rows each than a product takes
                    parts = _cut(each[0].start, each[-1].stop, most * len(each))
                    beside += [(part, low) for part in parts]
            works.append(Work(_pieces(spans, sums, most), beside))
        version, head = spans[0].version, works.pop()
        layers = [
            Layer(
                norm=layer.norm,
                qkv=works[at],
                qkv_bias=layer.qkv_bias,
                qk_norm=layer.qk_norm,
                o=works[at + 1],
                mlp_norm=layer.mlp_norm,
                gate_up=works[at + 2],
                down=works[at + 3],
            )
            for at, layer in zip(range(0, len(works), 4), version.layers, strict=True)
        ]
        return Kin(rows, version, layers, head)


def linear(x: Tensor, work: Work) -> Tensor:
    """Return the products (N, outputs) of x (N, inputs)."""
    pieces, beside = work
    parts = [product(x[rows], matrix) for rows, matrix in pieces]
    out = parts[0] if len(parts) == 1 else torch.cat(parts)
    for rows, (a, b) in beside:
        low = batch(x[rows].view(len(a), -1, x.shape[1]), a)
        add_batch(out[rows].view(len(a), -1, out.shape[1]), low, b)
    return out


def _kin(found: dict[Version, list[tuple[int, int, Sample]]]) -> Iterator[list[Version]]:
    """Group versions whose embedding and norms are the same tensors."""
    kin: dict[tuple[int, ...], list[Version]] = {}
    for version in found:
        small = [version.embed, version.norm]
        for layer in version.layers:
            small += [each for each in (layer.norm, layer.mlp_norm, layer.qkv_bias, layer.qk_norm) if each is not None]
        kin.setdefault(tuple(map(id, small)), []).append(version)
    yield from kin.values()


def _form(version: Version) -> tuple[int, ...]:
    """Return the ranks beside each matrix."""
    return tuple(0 if each.low is None else len(each.low.b) for each in version.sums())


def _count(span: Span, most: int) -> tuple[int, int]:
    """Return what spans have in common that go together: those with more rows than a product takes go alone."""
    count = span.stop - span.start
    return count, span.start if count > most else -1


def _stack(versions: tuple[Version, ...]) -> list[Low | None]:
    stacked: list[Low | None] = []
    for sums in zip(*(version.sums() for version in versions), strict=True):
        lows = [each.low for each in sums if each.low is not None]
        stacked.append(Low(*map(torch.stack, zip(*lows, strict=True))) if lows else None)
    return stacked


def _pieces(spans: list[Span], sums: Sequence[Sum], most: int) -> list[tuple[slice, Tensor]]:
    """Join neighbours with the same matrix; cut what has more rows than a product takes."""
    joined: list[tuple[int, int, Tensor]] = []
    for (_, start, stop), (matrix, _) in zip(spans, sums, strict=True):
        if joined and joined[-1][2] is matrix:
            joined[-1] = joined[-1][0], stop, matrix
        else:
            joined.append((start, stop, matrix))
    return [(part, matrix) for start, stop, matrix in joined for part in _cut(start, stop, most)]


def _cut(start: int, stop: int, most: int) -> list[slice]:
    return [slice(at, min(at + most, stop)) for at in range(start, stop, most)]
