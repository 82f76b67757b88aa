"""Which matrices of a ``transformers`` module an adapter may change, and how PEFT spells them.

All linear layers of attention and MLP in the language model, the matrices of stacked experts, and the head. Not the
routers, what only chooses where to look, short convolutions and embeddings of layers; nor a vision tower. A layer that
is not understood is an error.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from doorstep.engine.adapter import Group, Site
from doorstep.engine.api import LoraSpec
from doorstep.errors import EngineError

# By what a layer or a module around it is called, or else by that module's class.
ATTENTION = re.compile(r"attn|attention|mamba|conv")
MLP = re.compile(r"mlp|feed_?forward|ffn|moe|expert|^fc\d$")
ATTENTION_CLASS = re.compile(r"Attention|Mixer|Mamba|Conv")
MLP_CLASS = re.compile(r"MLP|MoE$|FeedForward|Expert")
FROZEN = re.compile(r"(^|\.)(gate|router|shared_expert_gate|indexer|per_layer_\w+)(\.|$)")


class Sites:
    """The sites of a model."""

    def __init__(self, model: Any, body: Any) -> None:
        self._linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        decoder = body.get_decoder()
        self.decoder: str = next(name for name, module in model.named_modules() if module is decoder) + "."
        self.all = [*_body(model, decoder), _head(model)]
        self.head = str(self.all[-1].place)
        self.transposed = {
            f"{name}.{parameter}"
            for name, module in model.named_modules()
            if getattr(module, "is_transposed", False)
            for parameter, _ in _stacks(module)
        }

    def of(self, spec: LoraSpec) -> list[Site]:
        """Return the sites that a spec trains, in a fixed order."""
        groups = {"attention": spec.train_attn, "mlp": spec.train_mlp, "unembed": spec.train_unembed}
        return [site for site in self.all if groups[site.group]]

    def targets(self, spec: LoraSpec) -> dict[str, list[str]]:
        """Return what PEFT's configuration calls the sites of a spec.

        In a model with experts PEFT takes ``gate_proj`` and its like in ``target_modules`` for the experts' own (it
        reads adapters of models from before experts were stacked), so the MLP's matrices are named as parameters.
        """
        sites = self.of(spec)
        stacked = any(site.experts for site in self.all)
        modules = [site for site in sites if not (stacked and site.group == "mlp")]
        parameters = [site.place for site in sites if site not in modules]
        short = dict.fromkeys(_short(str(place)) for place in parameters)
        return {"target_modules": self._named([site.name for site in modules]), "target_parameters": list(short)}

    def turned(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return parameters with those that a family keeps as (experts, inputs, outputs) turned, and back again."""
        return {name: tensor.mT if name in self.transposed else tensor for name, tensor in tensors.items()}

    def _named(self, names: list[str]) -> list[str]:
        """Return the last words of names, or the names in full where other linear layers have such a last word too."""
        last = dict.fromkeys(name.rpartition(".")[2] for name in names)
        matched = [name for name in self._linears if name.rpartition(".")[2] in last]
        return list(last) if set(matched) == set(names) else names


def _short(place: str) -> str:
    return ".".join(place.split(".")[-2:])


def _body(model: Any, decoder: Any) -> Iterator[Site]:
    names = {module: name for name, module in model.named_modules()}
    for inner, module in decoder.named_modules():
        name = names[module]
        if FROZEN.search(inner) or isinstance(module, nn.Embedding):
            continue
        stacks = list(_stacks(module))
        if isinstance(module, nn.Linear):
            if not _within_kernel(decoder, inner):
                group = _group(decoder, inner, name)
                yield Site(name, group, f"{name}.weight", 0, module.out_features, module.in_features)
        elif stacks:
            for index, (parameter, tensor) in enumerate(stacks):
                experts, outputs, inputs = (tensor.mT if getattr(module, "is_transposed", False) else tensor).shape
                wrapped = name + ".base_layer" * (len(stacks) - 1 - index)  # PEFT wraps the module once a parameter
                yield Site(wrapped, "mlp", f"{name}.{parameter}", 0, outputs, inputs, experts)
        elif _unknown(module):
            raise EngineError(f"{name} is a {type(module).__name__}, not a linear layer; this model is not served here")


def _head(model: Any) -> Site:
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise EngineError(f"the head is a {type(head).__name__}, not a linear layer; this model is not served here")
    name = next(name for name, module in model.named_modules() if module is head)
    return Site(name, "unembed", f"{name}.weight", 0, head.out_features, head.in_features)


def _stacks(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters of a module that are matrices of experts, one behind another."""
    if "Expert" in type(module).__name__:
        yield from ((name, tensor) for name, tensor in module.named_parameters(recurse=False) if tensor.dim() == 3)


def _unknown(module: nn.Module) -> bool:
    """Tell whether a module computes with a matrix in a way that is not known here."""
    weight = getattr(module, "weight", None)
    matrix = isinstance(weight, Tensor) and weight.dim() == 2
    return matrix or ("Expert" in type(module).__name__ and any(p.dim() > 1 for p in module.parameters(recurse=False)))


def _within_kernel(decoder: nn.Module, inner: str) -> bool:
    """Tell whether a layer's weight is taken without calling the layer, as fused kernels of Mamba mixers do."""
    above, _, last = inner.rpartition(".")
    return last == "out_proj" and hasattr(decoder.get_submodule(above), "D")


def _group(decoder: nn.Module, inner: str, name: str) -> Group:
    words = inner.split(".")
    for length in range(len(words), 0, -1):
        word, kind = words[length - 1], type(decoder.get_submodule(".".join(words[:length]))).__name__
        if MLP.search(word):
            return "mlp"
        if ATTENTION.search(word) or ATTENTION_CLASS.search(kind):
            return "attention"
        if MLP_CLASS.search(kind):
            return "mlp"
    raise EngineError(f"{name} belongs neither to attention nor to an MLP; this model is not served here")
