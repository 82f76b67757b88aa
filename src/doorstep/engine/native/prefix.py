"""Reading prompts: in chunks of 64 tokens over the keys of those before, each chunk's result kept for who begins alike.

What a chunk gives depends on the text up to its end alone, whoever reads it and how many are read together; so a kept
chunk is what reading it again would give, bit for bit. Sampling and scoring share what is kept.
"""

import hashlib
from array import array
from collections import OrderedDict
from functools import cached_property
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from doorstep.engine.native import decoder
from doorstep.engine.native.base import Base
from doorstep.engine.native.decoder import Rope
from doorstep.engine.native.products import ANY, Rows, rows_of
from doorstep.engine.native.version import Version, linear

CHUNK = 64  # tokens; shorter ones would be found more often, and each has an attention of its own
PASS = 512  # tokens read together; more are no quicker, and hold up what is being sampled longer
STEP = 16  # rows of a pass, so that threads which share them out have enough of them each
KEPT_BYTES = 512 << 20  # of all weights together: 140 000 tokens of the shipped base


class Chunk(NamedTuple):
    """What reading some tokens gave: hidden states (T, D) behind the last norm, keys and values (layers, K, T, E)."""

    hidden: Tensor
    keys: Tensor
    values: Tensor


class Read(NamedTuple):
    """A text that was read: like a chunk, and how many of its tokens were at hand."""

    hidden: Tensor
    keys: Tensor
    values: Tensor
    cached: int


class Reader:
    """Reads for a base and all its adapters. What it keeps of some weights goes with them."""

    def __init__(self, base: Base) -> None:
        self._base = base
        # Both orders are from the longest unused to the last used.
        self._kept: WeakKeyDictionary[Version, OrderedDict[bytes, Chunk]] = WeakKeyDictionary()
        shape = base.shape
        numbers = CHUNK * (shape.width + 2 * shape.layers * shape.kv_heads * shape.head_size)
        self._most = max(1, KEPT_BYTES // (numbers * base.weights.norm.element_size()))

    @cached_property
    def rows(self) -> Rows:
        """The numbers of rows that products may have here. Found out when first asked, on the thread that computes."""
        return rows_of(self._base.shape, self._base.weights)

    @property
    def chunks(self) -> int:
        """How many chunks are kept."""
        return sum(map(len, self._kept.values()))

    @torch.inference_mode()
    def read(self, version: Version, tokens: list[int]) -> Read:
        """Return what the decoder makes of a text."""
        kept = self._kept.pop(version, None) or OrderedDict()
        self._kept[version] = kept
        names = _names(tokens)
        chunks: list[Chunk] = []
        while len(chunks) < len(names) and names[len(chunks)] in kept:
            chunks.append(kept[names[len(chunks)]])
        cached = len(chunks) * CHUNK
        step = PASS if self.rows is ANY else CHUNK
        for start in range(cached, len(tokens), step):
            chunks += self._read(version, tokens[start : start + step], chunks)
        kept.update(zip(names, chunks, strict=False))  # a rest that is no whole chunk has no name
        for name in reversed(names):  # ends are forgotten before beginnings
            kept.move_to_end(name)
        self._forget()
        return Read(
            torch.cat([chunk.hidden for chunk in chunks]),
            torch.cat([chunk.keys for chunk in chunks], dim=2),
            torch.cat([chunk.values for chunk in chunks], dim=2),
            cached,
        )

    def _read(self, version: Version, tokens: list[int], before: list[Chunk]) -> list[Chunk]:
        """Read some chunks together: all that differs from one by one is how many rows a product has."""
        shape, start, device = self._base.shape, len(before) * CHUNK, version.embed.device
        padded = torch.zeros(-(-len(tokens) // STEP) * STEP, dtype=torch.long, device=device)
        padded[: len(tokens)] = torch.tensor(tokens, device=device)
        places = torch.arange(start, start + len(padded), device=device).clamp(max=len(self._base.rope.cos) - 1)
        rope = Rope(self._base.rope.cos[places][:, None], self._base.rope.sin[places][:, None])
        parts = [slice(at, min(at + CHUNK, len(tokens))) for at in range(0, len(tokens), CHUNK)]
        x = F.embedding(padded, version.embed)
        keys: list[list[Tensor]] = [[] for _ in parts]
        values: list[list[Tensor]] = [[] for _ in parts]
        for index, layer in enumerate(version.layers):
            q, k, v = (each.transpose(0, 1) for each in decoder.attention_inputs(shape, layer, rope, x, linear))
            seen_k, seen_v = [chunk.keys[index] for chunk in before], [chunk.values[index] for chunk in before]
            mixed = x.new_zeros(len(padded), shape.heads * shape.head_size)
            for part, of_k, of_v in zip(parts, keys, values, strict=True):
                of_k.append(k[:, part].contiguous())
                of_v.append(v[:, part].contiguous())
                seen_k.append(of_k[-1])
                seen_v.append(of_v[-1])
                mixed[part] = _attend(q[:, part].contiguous(), torch.cat(seen_k, dim=1), torch.cat(seen_v, dim=1))
            x = decoder.rest_of_layer(shape, layer, x, mixed, linear)
        hidden = decoder.normalise(x, version.norm, shape.eps)
        return [
            Chunk(hidden[part].clone(), torch.stack(of_k), torch.stack(of_v))
            for part, of_k, of_v in zip(parts, keys, values, strict=True)
        ]

    def _forget(self) -> None:
        over = self.chunks - self._most
        for kept in list(self._kept.values()):
            while kept and over > 0:
                kept.popitem(last=False)
                over -= 1


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return what the queries (H, T, E) of the last T places mix, (T, H·E)."""
    place = torch.arange(k.shape[1], device=q.device)
    mask = place[-q.shape[1] :, None] >= place
    mixed = F.scaled_dot_product_attention(q[None], k[None], v[None], mask, enable_gqa=len(q) != len(k))
    return mixed[0].transpose(0, 1).flatten(1)


def _names(tokens: list[int]) -> list[bytes]:
    """Return a name for each whole chunk: a digest of the text up to its end."""
    digest, names = hashlib.blake2b(digest_size=16), []
    for end in range(CHUNK, len(tokens) + 1, CHUNK):
        digest.update(array("q", tokens[end - CHUNK : end]).tobytes())
        names.append(digest.digest())
    return names
