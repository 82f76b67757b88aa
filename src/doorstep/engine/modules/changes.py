"""An adapter in effect on a module: merged into copies of the parameters that it changes, or beside them.

Merged is quicker where a copy costs little. Beside needs no second copy of the base, and no matrix that could be
written to: for large models, and for those whose matrices are quantised.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from doorstep.engine.adapter import Adapter, Factors, Site
from doorstep.engine.modules.sites import Sites


class Part(NamedTuple):
    """A part of a model that is called by itself; ``names`` are its parameters' names there by those in the model."""

    module: nn.Module
    names: dict[str, str]


class Merging(Protocol):
    """What is trained by way of copies of parameters."""

    def merge(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what takes the place of some of the base's ``tensors``."""
        ...

    def add_gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Add the gradients of what ``merge`` gave."""
        ...


class Changes(Protocol):
    """What an adapter was when this was made. ``trained`` collects gradients, ``add_gradients`` hands them on."""

    def call(self, part: Part, given: dict[str, Any]) -> Any:
        """Call a part of the model with the adapter in effect."""
        ...

    def trained(self) -> "Changes":
        """Return the same numbers as leaves of autograd's graph."""
        ...

    def add_gradients(self, adapter: Any) -> None:
        """Add what backward passes brought to the gradient of what this was made of."""
        ...


class Merged:
    """Parameters in another version than the base's; none: the base itself."""

    def __init__(self, tensors: dict[str, Tensor], sites: Sites) -> None:
        self._tensors = tensors
        self._sites = sites

    @classmethod
    def of(cls, adapter: Merging, parameters: Mapping[str, Tensor], sites: Sites) -> "Merged":
        """Merge an adapter."""
        merged = adapter.merge(sites.turned(parameters))
        return cls(sites.turned(merged), sites)

    def call(self, part: Part, given: dict[str, Any]) -> Any:
        """Call a part with the parameters in this version."""
        own = {part.names[name]: tensor for name, tensor in self._tensors.items() if name in part.names}
        return functional_call(part.module, own, kwargs=given, tie_weights=False)

    def trained(self) -> "Merged":
        """Return the same parameters, each a leaf."""
        leaves = {name: tensor.detach().requires_grad_() for name, tensor in self._tensors.items()}
        return Merged(leaves, self._sites)

    def add_gradients(self, adapter: Merging) -> None:
        """Add what the gradients of merged parameters mean for the adapter."""
        gradients = {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for name, leaf in self._tensors.items()
        }
        adapter.add_gradients(self._sites.turned(gradients))


class Beside:
    """Factors whose products are added to those of the base's matrices."""

    def __init__(self, flat: Tensor, adapter: Adapter, fitting: "Fitting") -> None:
        self._flat = flat
        self._adapter = adapter
        self._fitting = fitting

    @classmethod
    def of(cls, adapter: Adapter, fitting: "Fitting") -> "Beside":
        """Take a copy of an adapter's numbers."""
        return cls(adapter.flat.clone(), adapter, fitting)

    def call(self, part: Part, given: dict[str, Any]) -> Any:
        """Call a part with the factors in effect."""
        sites = zip(self._adapter.sites, self._adapter.views(self._flat), strict=True)
        with self._fitting.of({str(site.place): factors for site, factors in sites}, self._adapter.scaling):
            return part.module(**given)

    def trained(self) -> "Beside":
        """Return the same numbers as one leaf."""
        return Beside(self._flat.detach().requires_grad_(), self._adapter, self._fitting)

    def add_gradients(self, adapter: Adapter) -> None:
        """Add the leaf's gradient."""
        if self._flat.grad is not None:
            adapter.gradient.add_(self._flat.grad)


class Fitting:
    """What makes a model's layers add the products of the factors that are in effect."""

    def __init__(self, model: nn.Module, sites: Sites) -> None:
        self._factors: dict[str, Factors] = {}
        self._scaling = 0.0
        self._sites = sites
        stacks: dict[str, list[Site]] = {}
        for site in sites.all:
            name, _, parameter = str(site.place).rpartition(".")
            if site.experts:
                stacks.setdefault(name, []).append(site)
            else:
                model.get_submodule(name).register_forward_hook(partial(self._add, f"{name}.{parameter}"))
        for name, found in stacks.items():
            experts = model.get_submodule(name)
            places = {str(site.place).rpartition(".")[2]: str(site.place) for site in found}
            experts.forward = partial(self._experts, copy.copy(experts), places)

    @contextmanager
    def of(self, factors: dict[str, Factors], scaling: float) -> Iterator[None]:
        """Put factors, by their places, in effect."""
        self._factors, self._scaling = factors, scaling
        try:
            yield
        finally:
            self._factors = {}

    def _add(self, place: str, _: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        if (factors := self._factors.get(place)) is None:
            return output
        a, b = (factor.to(output.dtype) for factor in factors)
        return output + (inputs[0].to(output.dtype) @ a.T) @ (b.T * self._scaling)

    def _experts(self, experts: nn.Module, places: dict[str, str], *given: Any, **named: Any) -> Any:
        """Merge the stacks of one module for one call, and again for its backward pass: never two modules' at once."""
        factors = {name: self._factors[place] for name, place in places.items() if place in self._factors}
        if not factors:
            return experts(*given, **named)
        scaling = self._scaling

        def run(*inputs: Any) -> Any:
            merged: dict[str, Tensor] = {}
            for name, (a, b) in factors.items():
                place = places[name]
                stack = self._sites.turned({place: getattr(experts, name)})[place]
                changed = torch.baddbmm(stack, b.to(stack.dtype), a.to(stack.dtype), alpha=scaling)
                merged |= {name: self._sites.turned({place: changed})[place]}
            return functional_call(experts, merged, inputs, named)

        return checkpoint(run, *given, use_reentrant=False, preserve_rng_state=False)
