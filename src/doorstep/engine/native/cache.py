"""Keys and values of what is being sampled, laid out so that a sample's numbers never depend on its neighbours.

A block is up to 8 samples of one prompt, in step with each other; they share the prompt's keys. Blocks of the same
size class form a group, one set of tensors, whatever their weights. A product over a group is a batch of small products
whose shapes follow from the class alone, so each has the same bits alone or among others. Classes that differ in slots
differ in a product's number of rows, which does not matter either (see ``products``).
Letters in shapes: B blocks, K key heads, S slots, R query heads per key head, P and G places, E size of a head.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from doorstep.engine.native.decoder import Shape
from doorstep.engine.native.linear import batch
from doorstep.engine.native.products import ANY, Rows

SLOTS = 8
PROMPT_STEP = 64
FIRST_ROOM = 32


class Size(NamedTuple):
    """A size class: places of the prompt, samples, generated tokens."""

    prompt: int
    slots: int
    room: int


class Entry(NamedTuple):
    """What one block has in the cache: (layers, K, P, E) twice, (layers, K, S, G, E) twice."""

    prompt_keys: Tensor
    prompt_values: Tensor
    keys: Tensor
    values: Tensor


class Places(NamedTuple):
    """Where the rows of a step are in a group: block, slot and place of each, and the bias (B, 1, 1, P + G)."""

    block: Tensor
    slot: Tensor
    place: Tensor
    bias: Tensor
    queries: Tensor  # (B, K, padded S·R, E), to be filled

    def advance(self, prompt_size: int) -> None:
        """Go on to the next token of every row."""
        self.place.add_(1)
        self.bias[self.block, :, :, prompt_size + self.place] = 0


def size_of(prompt: int, samples: int, rows: Rows) -> Size:
    """Return the class of a new block: prompts in steps of 64, and above 256 of a quarter of the power of two."""
    step = PROMPT_STEP if prompt <= 4 * PROMPT_STEP else 1 << ((prompt - 1).bit_length() - 2)
    slots = 1 << (samples - 1).bit_length() if rows is ANY else SLOTS
    return Size(-(-prompt // step) * step, slots, FIRST_ROOM)


class Group:
    """The cache of all blocks of one size class, packed at the front of tensors that double when full."""

    def __init__(self, shape: Shape, size: Size, rows: Rows, like: Tensor) -> None:
        self.size = size
        self.used = 0
        self._shape = shape
        self._queries = rows.padded(size.slots * shape.heads // shape.kv_heads)
        self._like = like
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
        device = self._like.device
        block, slot = torch.tensor(rows, device=device).T
        prompt, generated = torch.tensor(lengths, device=device).T
        of_prompt, of_own = (torch.arange(size, device=device) for size in (self.size.prompt, self.size.room))
        seen = torch.cat([of_prompt < prompt[:, None], of_own <= generated[:, None]], dim=1)
        bias = self._like.new_zeros(seen.shape).masked_fill_(~seen, -torch.inf)
        shape = self._shape
        queries = self._like.new_zeros(self.used, shape.kv_heads, self._queries, shape.head_size)
        return Places(block, slot, generated[block], bias[:, None, None], queries)

    def attend(self, layer: int, at: Places, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Store the rows' new keys and values, (rows, K, E), and return what their queries mix, (rows, H·E)."""
        prompt_keys, prompt_values, keys, values = (held[layer, : self.used] for held in self._tensors)
        keys[at.block, :, at.slot, at.place] = k
        values[at.block, :, at.slot, at.place] = v
        head, kv, slots = self._shape.head_size, self._shape.kv_heads, self.size.slots
        asking = slots * self._shape.heads // kv
        queries = at.queries[:, :, :asking].unflatten(2, (slots, -1))
        queries[at.block, :, at.slot] = (q * head**-0.5).unflatten(1, (kv, -1))
        scores = torch.cat(
            [
                batch(at.queries.flatten(0, 1), prompt_keys.flatten(0, 1).transpose(1, 2))[:, :asking],
                batch(queries.flatten(0, 2), keys.flatten(0, 2).transpose(1, 2)).view(
                    self.used * kv, asking, self.size.room
                ),
            ],
            dim=-1,
        ).unflatten(0, (self.used, kv))
        mixture = torch.softmax(scores.add_(at.bias), dim=-1).flatten(0, 1)
        of_prompt, of_own = mixture.split((self.size.prompt, self.size.room), dim=-1)
        of_prompt = F.pad(of_prompt, (0, 0, 0, self._queries - asking))
        mixed = batch(of_prompt, prompt_values.flatten(0, 1))[:, :asking].unflatten(1, (slots, -1))
        own = batch(of_own.unflatten(1, (slots, -1)).flatten(0, 1), values.flatten(0, 2))
        mixed = (mixed + own.view(mixed.shape)).view(self.used, kv, slots, -1, head)
        found: Tensor = mixed[at.block, :, at.slot].flatten(1)
        return found

    def _allocate(self, capacity: int) -> Entry:
        shape, size = self._shape, self.size
        prompt = (shape.layers, capacity, shape.kv_heads, size.prompt, shape.head_size)
        own = (shape.layers, capacity, shape.kv_heads, size.slots, size.room, shape.head_size)
        return Entry(*(self._like.new_empty(sizes) for sizes in (prompt, prompt, own, own)))
