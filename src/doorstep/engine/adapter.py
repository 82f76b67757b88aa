"""A LoRA adapter: its numbers in one flat vector, merging into the base, and gradients back from merged weights.

Training and sampling both run on merged matrices W + scaling·B·A. With dW the gradient of a merged matrix,
dB = scaling·dW·Aᵀ and dA = scaling·Bᵀ·dW: the same gradients as through the factors, without their skinny products,
which are slower than the matrix itself at the widths that a CPU can train.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from doorstep.engine.api import LoraSpec
from doorstep.engine.native.decoder import Shape, Weights

HEAD = -1


class Site(NamedTuple):
    """A matrix of the base that an adapter changes: rows ``start`` … ``stop`` of a packed weight."""

    name: str  # as PEFT spells it, without ``base_model.model.``
    layer: int  # HEAD for the head
    field: str
    start: int
    stop: int
    inputs: int

    def of(self, weights: Weights) -> Tensor:
        """Return the packed weight that this site is in."""
        packed = weights.head if self.layer == HEAD else getattr(weights.layers[self.layer], self.field)
        assert isinstance(packed, Tensor)
        return packed


class Factors(NamedTuple):
    """Views of one site's A (rank, inputs) and B (outputs, rank) in the flat vector."""

    a: Tensor
    b: Tensor


class Adapter:
    """An adapter, its gradients since the last step, and its optimiser."""

    def __init__(self, spec: LoraSpec, shape: Shape) -> None:
        self.spec = spec
        self.scaling = spec.alpha / spec.rank
        self.sites = sites(spec, shape)
        size = sum(spec.rank * (site.inputs + site.stop - site.start) for site in self.sites)
        self.flat = torch.zeros(size)
        self.gradient = torch.zeros(size)
        self.optimizer = torch.optim.AdamW([self.flat])
        self.factors = self._views(self.flat)
        self._gradients = self._views(self.gradient)

    def initialise(self) -> None:
        """Draw A as PEFT does, uniform within 1/√inputs, from the spec's seed; B stays zero."""
        generator = torch.Generator().manual_seed(self.spec.seed)
        for site, factors in zip(self.sites, self.factors, strict=True):
            bound = 1 / math.sqrt(site.inputs)
            factors.a.uniform_(-bound, bound, generator=generator)

    def merge(self, base: Weights) -> Weights:
        """Return the base with this adapter in it; what the adapter does not touch is shared."""
        merged = {(site.layer, site.field): site.of(base) for site in self.sites}
        merged = {place: packed.clone() for place, packed in merged.items()}
        for site, factors in zip(self.sites, self.factors, strict=True):
            packed = merged[site.layer, site.field]
            packed[site.start : site.stop].addmm_(factors.b, factors.a, alpha=self.scaling)
        layers = [
            layer._replace(**{field: tensor for (index, field), tensor in merged.items() if index == number})
            for number, layer in enumerate(base.layers)
        ]
        return base._replace(layers=layers, head=merged.get((HEAD, "head"), base.head))

    def add_gradients(self, merged: Weights) -> None:
        """Add what backward passes left in the ``grad`` of merged weights."""
        for site, factors, gradient in zip(self.sites, self.factors, self._gradients, strict=True):
            packed = site.of(merged).grad
            assert packed is not None
            change = packed[site.start : site.stop]
            gradient.b.addmm_(change, factors.a.T, alpha=self.scaling)
            gradient.a.addmm_(factors.b.T, change, alpha=self.scaling)

    def _views(self, flat: Tensor) -> list[Factors]:
        views, at, rank = [], 0, self.spec.rank
        for site in self.sites:
            a, outputs = rank * site.inputs, site.stop - site.start
            b = at + a
            views.append(Factors(flat[at:b].view(rank, site.inputs), flat[b : b + rank * outputs].view(outputs, rank)))
            at = b + rank * outputs
        return views


def sites(spec: LoraSpec, shape: Shape) -> list[Site]:
    """Return the matrices that a spec trains, in a fixed order."""
    found: list[Site] = []
    q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    for layer in range(shape.layers):
        path = f"model.layers.{layer}"
        if spec.train_attn:
            found += [
                Site(f"{path}.self_attn.q_proj", layer, "qkv", 0, q, shape.width),
                Site(f"{path}.self_attn.k_proj", layer, "qkv", q, q + kv, shape.width),
                Site(f"{path}.self_attn.v_proj", layer, "qkv", q + kv, q + 2 * kv, shape.width),
                Site(f"{path}.self_attn.o_proj", layer, "o", 0, shape.width, q),
            ]
        if spec.train_mlp:
            found += [
                Site(f"{path}.mlp.gate_proj", layer, "gate_up", 0, shape.hidden, shape.width),
                Site(f"{path}.mlp.up_proj", layer, "gate_up", shape.hidden, 2 * shape.hidden, shape.width),
                Site(f"{path}.mlp.down_proj", layer, "down", 0, shape.width, shape.hidden),
            ]
    if spec.train_unembed:
        found.append(Site("lm_head", HEAD, "head", 0, shape.vocabulary, shape.width))
    return found
