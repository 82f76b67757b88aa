"""Where adapters change a decoder's packed weights: a place is (layer, field), the head is a place of its own."""

from collections.abc import Iterator

from doorstep.engine.adapter import Site
from doorstep.engine.api import LoraSpec
from doorstep.engine.native.decoder import Shape

HEAD = "head"
FIELDS = ("qkv", "o", "gate_up", "down")


class NativeSites:
    """The sites of a decoder of some shape; those of one place follow each other."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape

    def of(self, spec: LoraSpec) -> list[Site]:
        """Return the matrices that a spec trains, in a fixed order."""
        return list(_sites(spec, self._shape))

    def targets(self, spec: LoraSpec) -> dict[str, list[str]]:
        """Return the modules' names as PEFT's configuration has them."""
        return {"target_modules": list(dict.fromkeys(site.name.rpartition(".")[2] for site in self.of(spec)))}


def _sites(spec: LoraSpec, shape: Shape) -> Iterator[Site]:
    q, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    for layer in range(shape.layers):
        path = f"model.layers.{layer}"
        if spec.train_attn:
            qkv, attention = (layer, "qkv"), f"{path}.self_attn"
            yield Site(f"{attention}.q_proj", "attention", qkv, 0, q, shape.width)
            yield Site(f"{attention}.k_proj", "attention", qkv, q, q + kv, shape.width)
            yield Site(f"{attention}.v_proj", "attention", qkv, q + kv, q + 2 * kv, shape.width)
            yield Site(f"{attention}.o_proj", "attention", (layer, "o"), 0, shape.width, q)
        if spec.train_mlp:
            gate_up, mlp = (layer, "gate_up"), f"{path}.mlp"
            yield Site(f"{mlp}.gate_proj", "mlp", gate_up, 0, shape.hidden, shape.width)
            yield Site(f"{mlp}.up_proj", "mlp", gate_up, shape.hidden, 2 * shape.hidden, shape.width)
            yield Site(f"{mlp}.down_proj", "mlp", (layer, "down"), 0, shape.width, shape.hidden)
    if spec.train_unembed:
        yield Site("lm_head", "unembed", HEAD, 0, shape.vocabulary, shape.width)
