"""Sampling: all requests, whatever their adapters, decode together, a token of each at a time.

A sample's numbers are the same bits whatever else is in the batch: prompts are read one at a time (``prefix``), matrix
products keep to numbers of rows at which rows do not depend on each other (``products``), attention works as ``cache``
says, and everything else is row by row.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from doorstep.engine.choice import advance
from doorstep.engine.native import decoder
from doorstep.engine.native.base import Base
from doorstep.engine.native.cache import SLOTS, Entry, Group, Size, size_of
from doorstep.engine.native.decoder import Rope
from doorstep.engine.native.plan import Block, Plan, Stacks, linear
from doorstep.engine.native.prefix import Reader
from doorstep.engine.native.version import Version
from doorstep.engine.requests import Request


class NativeSampler:
    """Everything that is being sampled from a base and its adapters."""

    def __init__(self, base: Base, reader: Reader) -> None:
        self._base = base
        self._reader = reader
        self._held: dict[Size, tuple[Group, list[Block]]] = {}
        self._plan: Plan | None = None
        self._stacks: Stacks = {}

    @property
    def rows(self) -> int:
        """How many samples are alive."""
        return sum(len(block.live) for _, blocks in self._held.values() for block in blocks)

    def requests(self) -> list[Request]:
        """Return the requests with samples alive."""
        found = {id(block.request): block.request for _, blocks in self._held.values() for block in blocks}
        return list(found.values())

    @torch.inference_mode()
    def add(self, version: Version, request: Request) -> None:
        """Read a request's prompt and choose its first tokens."""
        read = self._reader.read(version, request.prompt)
        request.cached = read.cached
        scores = version.logits(read.hidden[-1:])
        live = set(map(id, advance(request.samples, scores.expand(len(request.samples), -1))))
        request.send()
        for first in range(0, len(request.samples), SLOTS):
            slots = request.samples[first : first + SLOTS]
            if samples := [sample for sample in slots if id(sample) in live]:
                size = size_of(len(request.prompt), len(slots), self._reader.rows)
                own = read.keys.new_zeros(*read.keys.shape[:2], size.slots, 0, read.keys.shape[-1])
                self._put(size, Block(version, request, samples), Entry(read.keys, read.values, own, own))

    @torch.inference_mode()
    def step(self) -> None:
        """Give every sample its next token; let the finished and the cancelled go."""
        self._drop(lambda block: block.request.cancelled)
        self._make_room()
        if not self._held:
            return
        if self._plan:
            self._plan.advance()
        else:
            self._plan = Plan(self._base, self._reader.rows, list(self._held.values()), self._stacks)
            self._stacks = self._plan.stacks
        plan = self._plan
        going = advance(plan.samples, self._scores(plan))
        if len(going) < len(plan.samples):
            self._keep(set(map(id, going)))
        for request in plan.requests:
            request.send()

    def _scores(self, plan: Plan) -> Tensor:
        """Feed each sample's last token; return the scores of its next, (samples, V)."""
        base = self._base
        plan.tokens[plan.order] = torch.tensor([sample.tokens[-1] for sample in plan.samples], device=plan.order.device)
        rope = Rope(base.rope.cos[plan.positions][:, None], base.rope.sin[plan.positions][:, None])
        x = _join([F.embedding(plan.tokens[kin.rows], kin.version.embed) for kin in plan.kin])
        mixed = x.new_zeros(len(x), base.shape.heads * base.shape.head_size)
        for index in range(base.shape.layers):
            parts = [
                decoder.attention_inputs(base.shape, kin.layers[index], Rope(*_of(kin.rows, rope)), x[kin.rows], linear)
                for kin in plan.kin
            ]
            q, k, v = map(_join, zip(*parts, strict=True))
            for group, places, rows in plan.groups:
                mixed[rows] = group.attend(index, places, q[rows], k[rows], v[rows])
            x = _join(
                [
                    decoder.rest_of_layer(base.shape, kin.layers[index], x[kin.rows], mixed[kin.rows], linear)
                    for kin in plan.kin
                ]
            )
        hidden = [decoder.normalise(x[kin.rows], kin.version.norm, base.shape.eps) for kin in plan.kin]
        return _join([linear(each, kin.head) for each, kin in zip(hidden, plan.kin, strict=True)])[plan.order]

    def _put(self, size: Size, block: Block, entry: Entry) -> None:
        if size not in self._held:
            self._held[size] = Group(self._base.shape, size, self._reader.rows, entry.keys), []
        group, blocks = self._held[size]
        group.add(entry)
        blocks.append(block)
        self._plan = None

    def _remove(self, group: Group, blocks: list[Block], number: int) -> None:
        group.remove(number)
        blocks[number] = blocks[-1]
        blocks.pop()
        self._plan = None

    def _make_room(self) -> None:
        """Move blocks whose next token does not fit to the group with twice the room."""
        for group, blocks in list(self._held.values()):
            for number in reversed(range(len(blocks))):
                if blocks[number].stored == group.size.room:
                    self._put(group.size._replace(room=2 * group.size.room), blocks[number], group.take(number))
                    self._remove(group, blocks, number)
        self._forget_empty()

    def _keep(self, going: set[int]) -> None:
        """Let all samples go but those with these identities."""
        for _, blocks in self._held.values():
            for block in blocks:
                block.live[:] = [sample for sample in block.live if id(sample) in going]
        self._drop(lambda block: not block.live)
        self._plan = None

    def _drop(self, done: Callable[[Block], bool]) -> None:
        for group, blocks in self._held.values():
            for number in reversed(range(len(blocks))):
                if done(blocks[number]):
                    self._remove(group, blocks, number)
        self._forget_empty()

    def _forget_empty(self) -> None:
        self._held = {size: held for size, held in self._held.items() if held[1]}


def _join(parts: list[Tensor] | tuple[Tensor, ...]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _of(rows: slice, rope: Rope) -> tuple[Tensor, Tensor]:
    return rope.cos[rows], rope.sin[rows]
