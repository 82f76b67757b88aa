"""Keys and values of what is being sampled, laid out so that a sample's numbers never depend on its neighbours.

A block is up to 8 samples of one prompt, in step with each other; they share the prompt's keys. Blocks whose prompt
and whose generated part fall into the same size classes form a group, one set of tensors. A product over a group is a
batch of small products whose shapes follow from the classes alone, so each has the same bits alone or among others.
Letters in shapes: B blocks, K key heads, S = 8 slots, R query heads per key head, P and G places, E size of a head.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from doorstep.engine.native.decoder import Shape

SLOTS = 8
PROMPT_STEP = 64
FIRST_ROOM = 32


class Entry(NamedTuple):
    """What one block has in the cache: (layers, K, P, E) twice, (layers, K, S, G, E) twice."""

    prompt_keys: Tensor
    prompt_values: Tensor
    keys: Tensor
    values: Tensor


class Places(NamedTuple):
    """Where the rows of one step are in a group: block, slot and place of each, and the bias (B, 1, 1, 1, P + G)."""

    block: Tensor
    slot: Tensor
    place: Tensor
    bias: Tensor


class Group:
    """The cache of all blocks of one size class, packed at the front of tensors that double when full."""

    def __init__(self, shape: Shape, prompt_size: int, room: int) -> None:
        self.prompt_size = prompt_size
        self.room = room
        self.used = 0
        self._shape = shape
        self._tensors = self._allocate(1)

    def add(self, entry: Entry) -> None:
        """Put a block behind the last one; a shorter generated part leaves the rest of its room zero."""
        if self.used == self._tensors.keys.shape[1]:
            larger = self._allocate(2 * self.used)
            for new, old in zip(larger, self._tensors, strict=True):
                new[:, : self.used] = old
            self._tensors = larger
        for held, given in zip(self._tensors, entry, strict=True):
            places = held[:, self.used]
            places[..., : given.shape[-2], :] = given
            places[..., given.shape[-2] :, :] = 0  # masked, but a mixture of 0 times NaN would not be 0
        self.used += 1

    def take(self, index: int) -> Entry:
        """Return a copy of a block's entry."""
        return Entry(*(held[:, index].clone() for held in self._tensors))

    def remove(self, index: int) -> None:
        """Drop a block; the last one takes its place."""
        self.used -= 1
        for held in self._tensors:
            held[:, index] = held[:, self.used]

    def places(self, lengths: Sequence[tuple[int, int]], rows: Sequence[tuple[int, int]]) -> Places:
        """Plan a step: per block the lengths of prompt and generated part, per row its block and slot."""
        block, slot = torch.tensor(rows).T
        prompt, generated = torch.tensor(lengths).T
        seen = torch.cat(
            [torch.arange(self.prompt_size) < prompt[:, None], torch.arange(self.room) <= generated[:, None]], dim=1
        )
        bias = torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        return Places(block, slot, generated[block], bias[:, None, None, None])

    def attend(self, layer: int, at: Places, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the rows' new keys and values, (rows, K, E), and return what their queries mix, (rows, H·E)."""
        prompt_keys, prompt_values, keys, values = (held[layer, : self.used] for held in self._tensors)
        keys[at.block, :, at.slot, at.place] = k
        values[at.block, :, at.slot, at.place] = v
        size, kv = self._shape.head_size, self._shape.kv_heads
        queries = q.new_zeros(self.used, kv, SLOTS, self._shape.heads // kv, size)
        queries[at.block, :, at.slot] = (q * size**-0.5).unflatten(1, (kv, -1))
        shared, own = queries.view(self.used * kv, -1, size), queries.view(self.used * kv * SLOTS, -1, size)
        prompt_keys, prompt_values = prompt_keys.flatten(0, 1), prompt_values.flatten(0, 1)
        keys, values = keys.flatten(0, 2), values.flatten(0, 2)
        scores = torch.cat(
            [
                torch.bmm(shared, prompt_keys.transpose(1, 2)).view(*queries.shape[:-1], -1),
                torch.bmm(own, keys.transpose(1, 2)).view(*queries.shape[:-1], -1),
            ],
            dim=-1,
        )
        mixture = torch.softmax(scores.add_(at.bias), dim=-1)
        of_prompt, of_own = mixture.split((self.prompt_size, self.room), dim=-1)
        mixed = torch.bmm(of_prompt.flatten(2, 3).flatten(0, 1), prompt_values).view(queries.shape)
        mixed += torch.bmm(of_own.flatten(0, 2), values).view(queries.shape)
        return mixed[at.block, :, at.slot].flatten(1)

    def _allocate(self, capacity: int) -> Entry:
        shape = self._shape
        prompt = (shape.layers, capacity, shape.kv_heads, self.prompt_size, shape.head_size)
        own = (shape.layers, capacity, shape.kv_heads, SLOTS, self.room, shape.head_size)
        return Entry(torch.empty(prompt), torch.empty(prompt), torch.empty(own), torch.empty(own))
