"""The forward pass of a Llama- or Qwen3-like decoder on plain tensors: no module tree.

Sampling and training go through the same ``attention_inputs`` and ``rest_of_layer``, each with products and attention
of its own. Letters in shapes: N tokens, D width, H query and K key heads, E size of a head.
"""

from collections.abc import Callable
from typing import Generic, NamedTuple

import msgspec
import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import TypeVar

from doorstep.engine.native.gate import silu

M = TypeVar("M", default=Tensor)  # what stands for a matrix: it alone, or it and what adapters have beside it
Linear = Callable[[Tensor, M], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """The sizes of a decoder."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_size: int
    hidden: int  # of the MLP
    vocabulary: int
    eps: float


class Layer(NamedTuple, Generic[M]):
    """One layer; products that share their input are packed into one matrix, outputs one after another."""

    norm: Tensor
    qkv: M
    qkv_bias: Tensor | None
    qk_norm: Tensor | None  # (H + K, E)
    o: M
    mlp_norm: Tensor
    gate_up: M
    down: M


class Weights(msgspec.Struct, frozen=True, eq=False, weakref=True):
    """All weights of a decoder, one version of them: never changed in place, equal to itself alone.

    ``head`` may be the same tensor as ``embed``.
    """

    embed: Tensor
    layers: list[Layer]
    norm: Tensor
    head: Tensor


class Rope(NamedTuple):
    """Rotary tables (positions, E); ``sin`` carries the sign of the half that it multiplies."""

    cos: Tensor
    sin: Tensor


def through(
    shape: Shape, layers: list[Layer[M]], norm: Tensor, rope: Rope, x: Tensor, attend: Attend, linear: Linear[M]
) -> Tensor:
    """Return the normalised hidden states (N, D) of tokens that are not in rectangles; ``attend`` knows their rows."""
    for layer in layers:
        mixed = attend(*attention_inputs(shape, layer, rope, x, linear))
        x = rest_of_layer(shape, layer, x, mixed, linear)
    return normalise(x, norm, shape.eps)


def attention_inputs(
    shape: Shape, layer: Layer[M], rope: Rope, x: Tensor, linear: Linear[M]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys (both rotated) and values of a layer: (…, H, E), (…, K, E), (…, K, E)."""
    packed = linear(normalise(x, layer.norm, shape.eps), layer.qkv)
    if layer.qkv_bias is not None:
        packed = packed + layer.qkv_bias
    heads = packed.unflatten(-1, (-1, shape.head_size))
    qk, v = heads.split((shape.heads + shape.kv_heads, shape.kv_heads), dim=-2)
    if layer.qk_norm is not None:
        qk = F.rms_norm(qk, (shape.head_size,), eps=shape.eps) * layer.qk_norm
    qk = qk * rope.cos + qk.unflatten(-1, (2, -1)).flip(-2).flatten(-2) * rope.sin
    q, k = qk.split((shape.heads, shape.kv_heads), dim=-2)
    return q, k, v


def rest_of_layer(shape: Shape, layer: Layer[M], x: Tensor, mixed: Tensor, linear: Linear[M]) -> Tensor:
    """Return the layer's output: what attention mixed, added through ``o``, then the MLP."""
    x = x + linear(mixed, layer.o)
    gate, up = linear(normalise(x, layer.mlp_norm, shape.eps), layer.gate_up).chunk(2, dim=-1)
    return x + linear(silu(gate) * up, layer.down)


def normalise(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last dimension."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def logits(weights: Weights, hidden: Tensor, linear: Linear = F.linear) -> Tensor:
    """Return the scores of every vocabulary entry, (…, V)."""
    return linear(hidden, weights.head)


def rope_tables(cos: Tensor, sin: Tensor) -> Rope:
    """Make tables from those of ``transformers`` (positions, E), where rotation negates the second half's turn."""
    half = sin.shape[-1] // 2
    return Rope(cos.contiguous(), torch.cat([-sin[:, :half], sin[:, half:]], dim=-1))
