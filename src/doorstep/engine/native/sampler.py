"""Sampling: all requests to one version of one adapter decode together, a token of each at a time.

A sample's numbers are the same bits whatever else is in the batch: prompts are read one at a time, matrix products run
on blocks of exactly ``BLOCK`` rows, attention works as ``cache`` says, and everything else is row by row.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from doorstep.engine.choice import choose
from doorstep.engine.native import decoder
from doorstep.engine.native.base import Base
from doorstep.engine.native.cache import FIRST_ROOM, PROMPT_STEP, SLOTS, Entry, Group, Places
from doorstep.engine.native.decoder import KeyValues, Rope, Weights
from doorstep.engine.requests import Request, Sample

BLOCK = 32  # rows of every matrix product; below it the kernels differ with the number of rows


class Block(NamedTuple):
    """Samples of one request that are alive; each has as many tokens as the others."""

    request: Request
    live: list[Sample]

    @property
    def stored(self) -> int:
        """Generated tokens in the cache; the last one is still to be fed."""
        return len(self.live[0].tokens) - 1


class Batch:
    """Everything that is sampled from one set of weights."""

    def __init__(self, base: Base, weights: Weights) -> None:
        self._base = base
        self._weights = weights
        self._groups: dict[tuple[int, int], tuple[Group, list[Block]]] = {}

    def requests(self) -> list[Request]:
        """Return the requests with samples alive."""
        found = {id(block.request): block.request for _, blocks in self._groups.values() for block in blocks}
        return list(found.values())

    @property
    def rows(self) -> int:
        """How many samples are alive."""
        return sum(len(block.live) for _, blocks in self._groups.values() for block in blocks)

    @torch.inference_mode()
    def add(self, request: Request) -> None:
        """Read a request's prompt and choose its first tokens."""
        kept: list[KeyValues] = []
        base = self._base
        hidden = decoder.run(base.shape, self._weights, base.rope, torch.tensor([request.prompt]), keep=kept)
        scores = decoder.logits(self._weights, hidden[0, -1:])
        live = self._accept(request.samples, scores.expand(len(request.samples), -1))
        request.send()
        keys, values = (torch.cat([getattr(layer, name) for layer in kept]) for name in ("keys", "values"))
        own = keys.new_zeros(*keys.shape[:2], SLOTS, 0, keys.shape[-1])
        for first in range(0, len(request.samples), SLOTS):
            if samples := [sample for sample in live if first <= sample.index < first + SLOTS]:
                self._put(Block(request, samples), Entry(keys, values, own, own), FIRST_ROOM)

    @torch.inference_mode()
    def step(self) -> None:
        """Give every sample its next token; let the finished and the cancelled go."""
        self._drop(lambda block: block.request.cancelled)
        self._make_room()
        samples = [sample for _, blocks in self._groups.values() for block in blocks for sample in block.live]
        if not samples:
            return
        going = set(map(id, self._accept(samples, self._scores(samples))))
        requests = self.requests()
        for _, blocks in self._groups.values():
            for block in blocks:
                block.live[:] = [sample for sample in block.live if id(sample) in going]
        self._drop(lambda block: not block.live)
        for request in requests:
            request.send()

    def _accept(self, samples: list[Sample], scores: Tensor) -> list[Sample]:
        """Choose a token for each sample; return those that go on."""
        chosen = choose(scores, [sample.request.params for sample in samples], [sample.draw() for sample in samples])
        pairs = zip(samples, chosen.ids, chosen.logprobs, strict=True)
        return [sample for sample, token, logprob in pairs if sample.accept(token, logprob)]

    def _scores(self, samples: list[Sample]) -> Tensor:
        """Feed each sample's last token; return the scores of its next, (samples, V)."""
        base, weights, count = self._base, self._weights, len(samples)
        padding = [0] * (-count % BLOCK)
        tokens = torch.tensor([sample.tokens[-1] for sample in samples] + padding)
        at = torch.tensor([len(sample.request.prompt) + len(sample.tokens) - 1 for sample in samples] + padding)
        rope = Rope(base.rope.cos[at][:, None], base.rope.sin[at][:, None])
        plan = self._plan()
        x = F.embedding(tokens, weights.embed)
        mixed = x.new_zeros(len(tokens), base.shape.heads * base.shape.head_size)
        for index, layer in enumerate(weights.layers):
            q, k, v = decoder.attention_inputs(base.shape, layer, rope, x, _linear)
            for group, places, rows in plan:
                mixed[rows] = group.attend(index, places, q[rows], k[rows], v[rows])
            x = decoder.rest_of_layer(base.shape, layer, x, mixed, _linear)
        hidden = decoder.normalise(x, weights.norm, base.shape.eps)
        return decoder.logits(weights, hidden, _linear)[:count]

    def _plan(self) -> list[tuple[Group, Places, slice]]:
        plan, start = [], 0
        for group, blocks in self._groups.values():
            lengths = [(len(block.request.prompt), block.stored) for block in blocks]
            rows = [(number, sample.index % SLOTS) for number, block in enumerate(blocks) for sample in block.live]
            plan.append((group, group.places(lengths, rows), slice(start, start + len(rows))))
            start += len(rows)
        return plan

    def _put(self, block: Block, entry: Entry, room: int) -> None:
        size = -(-len(block.request.prompt) // PROMPT_STEP) * PROMPT_STEP
        if (size, room) not in self._groups:
            self._groups[size, room] = Group(self._base.shape, size, room), []
        group, blocks = self._groups[size, room]
        group.add(entry)
        blocks.append(block)

    def _make_room(self) -> None:
        """Move blocks whose next token does not fit to the group with twice the room."""
        for group, blocks in list(self._groups.values()):
            for number in reversed(range(len(blocks))):
                if blocks[number].stored == group.room:
                    self._put(blocks[number], group.take(number), 2 * group.room)
                    _remove(group, blocks, number)
        self._forget_empty()

    def _drop(self, done: Callable[[Block], bool]) -> None:
        for group, blocks in self._groups.values():
            for number in reversed(range(len(blocks))):
                if done(blocks[number]):
                    _remove(group, blocks, number)
        self._forget_empty()

    def _forget_empty(self) -> None:
        self._groups = {size: held for size, held in self._groups.items() if held[1]}


def _remove(group: Group, blocks: list[Block], number: int) -> None:
    group.remove(number)
    blocks[number] = blocks[-1]
    blocks.pop()


def _linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply BLOCK rows at a time, so that a row's result cannot depend on how many others there are."""
    out = x.new_empty(len(x), len(weight))
    for start in range(0, len(x), BLOCK):
        torch.mm(x[start : start + BLOCK], weight.T, out=out[start : start + BLOCK])
    return out
