"""A LoRA adapter: its numbers in one flat vector, beside a base that it knows only as matrices with places.

What it changes is a list of ``Site``s; a runtime makes that list, and finds the base's tensors by the sites' places.
A runtime computes with the factors beside the base, or merges them into copies of its tensors, W + scaling·B·A. With dW
the gradient of such a copy, dB = scaling·dW·Aᵀ and dA = scaling·Bᵀ·dW: the same gradients as through the factors.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from doorstep.engine.api import LoraSpec

Place = Any  # a runtime's own, hashable
MAX_RANK = 512
Group = Literal["attention", "mlp", "unembed"]


class Site(NamedTuple):
    """A matrix of the base that an adapter changes: rows ``start`` … ``stop`` of the (outputs, inputs) tensor there.

    With ``experts`` the tensor is that many matrices, (experts, outputs, inputs), each with factors of its own.
    """

    name: str  # as PEFT spells it, without ``base_model.model.``
    group: Group
    place: Place
    start: int
    stop: int
    inputs: int
    experts: int = 0

    @property
    def outputs(self) -> int:
        """How many rows of the tensor are this site's."""
        return self.stop - self.start

    def of(self, tensor: Tensor) -> Tensor:
        """Return this site's rows of the tensor at its place."""
        return tensor[..., self.start : self.stop, :]


class Factors(NamedTuple):
    """Views of one site's A (rank, inputs) and B (outputs, rank) in a flat vector; one more dimension with experts."""

    a: Tensor
    b: Tensor


class Trained(ABC):
    """Numbers in one flat vector, their gradient since the last step, and their optimiser."""

    def __init__(self, spec: LoraSpec, flat: Tensor) -> None:
        self.spec = spec
        self.flat = flat
        self.gradient = torch.zeros_like(flat)
        self.optimizer = torch.optim.AdamW([flat], fused=True)

    @abstractmethod
    def copy(self) -> "Trained":
        """Return the same numbers in memory of their own, without gradients and optimiser state."""


class Adapter(Trained):
    """An adapter; a fresh one is zero until ``initialise``."""

    def __init__(self, spec: LoraSpec, sites: Sequence[Site], device: torch.device | str = "cpu") -> None:
        self.sites = list(sites)
        self._rank = spec.rank
        super().__init__(spec, torch.zeros(sum(map(self.size, self.sites)), device=device))
        self.factors = self.views(self.flat)

    @property
    def scaling(self) -> float:
        """What B·A is multiplied by."""
        return self.spec.alpha / self.spec.rank

    def initialise(self) -> None:
        """Draw A as PEFT does, uniform within 1/√inputs, from the spec's seed; B stays zero."""
        generator = torch.Generator().manual_seed(self.spec.seed)
        for site, factors in zip(self.sites, self.factors, strict=True):
            bound = 1 / math.sqrt(site.inputs)
            factors.a.copy_(torch.empty(factors.a.shape).uniform_(-bound, bound, generator=generator))

    def copy(self) -> "Adapter":
        """Return an adapter of the same numbers."""
        copied = Adapter(self.spec, self.sites, self.flat.device)
        copied.flat.copy_(self.flat)
        return copied

    def merge(self, tensors: Mapping[Place, Tensor]) -> dict[Place, Tensor]:
        """Return what the adapter makes of the base's ``tensors``: new ones at the places that it changes."""
        merged: dict[Place, Tensor] = {}
        for site, (a, b) in zip(self.sites, self.factors, strict=True):
            if site.place not in merged:
                merged[site.place] = tensors[site.place].clone()
            part = site.of(merged[site.place])
            a, b = a.to(part.dtype), b.to(part.dtype)
            if site.experts:
                part.baddbmm_(b, a, alpha=self.scaling)
            else:
                part.addmm_(b, a, alpha=self.scaling)
        return merged

    def add_gradients(self, gradients: Mapping[Place, Tensor]) -> None:
        """Add what the gradients of merged tensors mean for the factors."""
        views = self.views(self.gradient)
        for site, factors, gradient in zip(self.sites, self.factors, views, strict=True):
            change = site.of(gradients[site.place]).to(gradient.a.dtype)
            if site.experts:
                gradient.b.baddbmm_(change, factors.a.mT, alpha=self.scaling)
                gradient.a.baddbmm_(factors.b.mT, change, alpha=self.scaling)
            else:
                gradient.b.addmm_(change, factors.a.T, alpha=self.scaling)
                gradient.a.addmm_(factors.b.T, change, alpha=self.scaling)

    def size(self, site: Site) -> int:
        """Return how many numbers a site has."""
        return self._rank * (site.inputs + site.outputs) * max(1, site.experts)

    def views(self, flat: Tensor) -> list[Factors]:
        """Return each site's factors in vectors (…, size) that are laid out like ``flat``."""
        found, rank, sizes = [], self._rank, [self.size(site) for site in self.sites]
        for site, part in zip(self.sites, flat.split(sizes, dim=-1), strict=True):
            experts = (site.experts,) if site.experts else ()
            inputs = rank * site.inputs * max(1, site.experts)
            a, b = part.tensor_split((inputs,), dim=-1)
            lead = (*flat.shape[:-1], *experts)
            found.append(Factors(a.view(*lead, rank, site.inputs), b.view(*lead, site.outputs, rank)))
        return found
