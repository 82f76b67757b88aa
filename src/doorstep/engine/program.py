"""Running a custom loss: the steps of its ``graph`` on one row's log-probabilities, and the gradient by autograd.

Only operations that ``graph`` lists are looked up. Sizes are found before anything of that size is made, by a step on
tensors without storage; once a shape of row has passed, it is not asked again, unless the values decide sizes too.
"""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from doorstep.engine import graph
from doorstep.engine.graph import Graph, Node
from doorstep.errors import EngineError

MAX_WORK = 1 << 25  # numbers that the steps for one row read, make or multiply, all together; autograd keeps many
_EXACT = 1 << 53
_ROOTS = {"torch": torch, "operator": operator, "math": math}


class _Ref:
    """An argument that is another node's result."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Device:
    """An argument that is a device: always that of the log-probabilities."""


_DEVICE = _Device()


class Program:
    """A custom loss that can be run."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._steps = [_Step(node) for node in graph.nodes[len(graph.inputs) : -1]]
        loss, metrics = _decoded(graph.nodes[-1].args[0])
        self._loss: str = loss.name
        self._metrics: dict[str, str] = {name: each.name for name, each in metrics.items()}
        self._sized: set[tuple[torch.Size, ...]] = set()

    def run(self, logprobs: Tensor, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor, dict[str, float]]:
        """Return a row's loss, the gradient with respect to ``logprobs`` and the metrics."""
        rank = self.graph.inputs[0].rank
        if logprobs.dim() > rank:
            raise self._error(f"it takes logprobs of rank {rank}; the row has several targets a position")
        with torch.enable_grad():
            leaf = logprobs.detach().requires_grad_()
            seen = leaf[:, None] if rank > leaf.dim() else leaf
            shaped = {
                each.name: values[:, None] if each.rank > max(values.dim(), 1) else values
                for each, values in ((each, inputs[each.name]) for each in self.graph.inputs[1:])
            }
            results = self._results({"logprobs": seen} | shaped, leaf.device)
            loss = results[self._loss]
            if not isinstance(loss, Tensor) or loss.dim() != 0:
                raise self._error(f"its loss must be a scalar tensor, not {_told(loss)}")
            gradient = torch.autograd.grad(loss, leaf, allow_unused=True)[0] if loss.requires_grad else None
        if gradient is None:
            raise self._error("its loss does not depend on logprobs")
        return loss.detach(), gradient, {name: self._metric(name, results[at]) for name, at in self._metrics.items()}

    def _results(self, inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Any]:
        nodes = self.graph.nodes[: len(self.graph.inputs)]
        results: dict[str, Any] = {node.name: inputs[node.target] for node in nodes}
        shapes = tuple(values.shape for values in inputs.values())
        sized, work = shapes in self._sized, 0
        free = True  # whether the values decide no size
        for step in self._steps:
            try:
                args, kwargs = step.arguments(results, device)
                if not sized:
                    more, foreseen = step.work(args, kwargs)
                    work, free = work + more, free and foreseen
                    if work > MAX_WORK:
                        length = len(inputs["logprobs"])
                        raise ValueError(f"a row of {length} positions takes more than {MAX_WORK} numbers up to here")
                results[step.name] = step.call(*args, **kwargs)
            except Exception as error:  # whatever torch raises, the loss made it do so
                raise self._error(f"node {step.name} ({step.target}): {error}") from None
        if free:
            self._sized.add(shapes)
        return results

    def _metric(self, name: str, value: object) -> float:
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise self._error(f"its metric {name} must be a scalar tensor, not {_told(value)}")
        return float(value.detach())

    def _error(self, why: str) -> EngineError:
        return EngineError(f"custom loss {self.graph.name}: {why}")


_MADE_OF_NONE = frozenset(f"torch.{name}" for name in ("arange", "full", "linspace", "logspace", "ones", "zeros"))


class _Step:
    """A node ready to be called."""

    def __init__(self, node: Node) -> None:
        self.name = node.name
        self.target = node.target
        self.call = _callable(node)
        self._args = [_decoded(arg) for arg in node.args]
        self._kwargs = {name: _decoded(arg) for name, arg in node.kwargs.items()}

    def arguments(self, results: Mapping[str, Any], device: torch.device) -> tuple[list[Any], dict[str, Any]]:
        """Return the arguments, with what other nodes found in their places."""

        def place(arg: Any) -> Any:
            if isinstance(arg, _Ref):
                return results[arg.name]
            return device if arg is _DEVICE else arg

        args = [_mapped(place, arg) for arg in self._args]
        return args, {name: _mapped(place, arg) for name, arg in self._kwargs.items()}

    def work(self, args: list[Any], kwargs: dict[str, Any]) -> tuple[int, bool]:
        """Return how many numbers the step reads, makes or multiplies, and whether its result could be foreseen."""
        read = sum(map(_elements, (*_tensors(args), *_tensors(list(kwargs.values())))))
        sizes = [_mapped(_sizes, arg) for arg in args], {name: _mapped(_sizes, arg) for name, arg in kwargs.items()}
        try:
            # ``with torch.device("meta")`` misses those of which some library has put its own in place of torch's.
            place = {"device": "meta"} if self.target in _MADE_OF_NONE else {}
            with torch.no_grad():
                made = sum(map(_elements, _tensors(self.call(*sizes[0], **sizes[1] | place))))
        except NotImplementedError:  # only the values tell, and they make it no larger than what is read
            return read, False
        if self.target.rpartition(".")[2] in ("matmul", "mm", "mv") and isinstance(args[0], Tensor):
            made *= args[0].shape[-1]
        return read + made, True


def _sizes(value: Any) -> Any:
    """Return a tensor without its numbers."""
    if isinstance(value, torch.device):
        return torch.device("meta")
    return value.detach().to("meta") if isinstance(value, Tensor) else value


def _elements(tensor: Tensor) -> int:
    """Return a tensor's size; a dimension of none counts as one, for what goes through the others."""
    return math.prod(max(1, length) for length in tensor.shape)


def _callable(node: Node) -> Callable[..., Any]:
    if graph.calls_attribute(node):
        return getattr
    if node.op == "call_method":
        return _method(node.target)
    path = graph.CALLS[node.target].split(".")
    found: Any = _ROOTS[path[0]]
    for name in path[1:]:
        found = getattr(found, name)
    return found if path[0] == "torch" else _on_numbers(node.target, found)


def _method(name: str) -> Callable[..., Any]:
    def call(self: object, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, Tensor):
            raise TypeError(f"{name} is a method of tensors, not of {_told(self)}")
        return getattr(self, name)(*args, **kwargs)

    return call


def _on_numbers(target: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Guard a function of Python: numbers stay of a size that a machine holds, sequences are only indexed."""
    tensors = target.startswith("operator.")

    def call(*args: Any) -> Any:
        if any(isinstance(arg, Tensor) for arg in args):
            if not tensors:
                raise TypeError(f"takes numbers; use torch.{function.__name__} for a tensor")
            return function(*args)
        if target == "operator.getitem":
            return function(*args)
        if not all(isinstance(arg, int | float) for arg in args):
            raise TypeError(f"takes numbers and tensors, not {', '.join(map(_told, args))}")
        result = math.pow(*args) if target in ("operator.pow", "operator.ipow") else function(*args)
        if isinstance(result, int) and abs(result) > _EXACT:
            raise OverflowError("the result is too large")
        return result

    return call


def _decoded(arg: Any) -> Any:
    """Return an argument as Python has it."""
    if isinstance(arg, list):
        return [_decoded(each) for each in arg]
    if not isinstance(arg, dict):
        return arg
    ((kind, value),) = arg.items()
    match kind:
        case "ref":
            return _Ref(value)
        case "tuple":
            return tuple(_decoded(each) for each in value)
        case "dict":
            return {name: _decoded(each) for name, each in value.items()}
        case "slice":
            return slice(*(_decoded(each) for each in value))
        case "ellipsis":
            return ...
        case "float":
            return float(value)
        case "device":
            return _DEVICE
        case _:
            return getattr(torch, value)


def _mapped(change: Callable[[Any], Any], arg: Any) -> Any:
    if isinstance(arg, list | tuple):
        return type(arg)([_mapped(change, each) for each in arg])
    if isinstance(arg, slice):
        return slice(*(_mapped(change, each) for each in (arg.start, arg.stop, arg.step)))
    return change(arg)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [part for each in value for part in _tensors(each)] if isinstance(value, list | tuple) else []


def _told(value: object) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
